"""The manager of operations, with work that the tests hold in their hands."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from services.common.errors import (
    ConflictError,
    DiskFullError,
    OperationCancelledError,
    QueueFullError,
    Resource,
)
from services.gallery.operations.journal import Journal
from services.gallery.operations.manager import OperationLimits, OperationManager
from services.gallery.operations.operation import Operation, OperationRecord
from services.gallery.operations.progress import Phase, Progress
from services.gallery.rpc.operation_filter import parse_filter
from tests.tools.waiting import eventually

LIMITS = OperationLimits(
    parallel=2, pending=5, keep=3, keep_for=1000.0, watch_interval=0.01, save_interval=0.0
)


class Work:
    """A kind of operation whose work waits until the test lets it end."""

    name = "install_model"

    def __init__(self) -> None:
        self.running: list[str] = []
        self.started: list[str] = []
        self.most = 0
        self.leave: dict[str, asyncio.Event] = {}
        self.failures: dict[str, Exception] = {}

    async def run(self, request: Mapping[str, Any], progress: Progress) -> Mapping[str, Any]:
        key = request["key"]
        self.started.append(key)
        self.running.append(key)
        self.most = max(self.most, len(self.running))
        progress.enter(Phase.DOWNLOADING)
        try:
            await self.leave.setdefault(key, asyncio.Event()).wait()
            if key in self.failures:
                raise self.failures[key]
            return {"key": key}
        finally:
            self.running.remove(key)

    def encode_request(self, request: Mapping[str, Any]) -> Mapping[str, object]:
        return request

    def decode_request(self, record: Mapping[str, object]) -> Mapping[str, Any]:
        return record

    def encode_result(self, result: Mapping[str, Any]) -> Mapping[str, object]:
        return result

    def decode_result(self, record: Mapping[str, object]) -> Mapping[str, Any]:
        return record

    def let(self, *keys: str) -> None:
        for key in keys:
            self.leave.setdefault(key, asyncio.Event()).set()


@asynccontextmanager
async def manager(
    folder: Path, work: Work, limits: OperationLimits = LIMITS
) -> AsyncIterator[OperationManager]:
    made = OperationManager(
        Journal(folder / "operations.db"),
        [work],
        limits,
        stopping=asyncio.Event(),
    )
    try:
        await made.start()
        yield made
    finally:
        await made.close()


async def begin(operations: OperationManager, key: str, target: str = "") -> Operation:
    kind = operations.kinds["install_model"]
    return await operations.submit(kind, target or f"models/{key}", {"key": key})


async def end(operation: Operation) -> Operation:
    async with asyncio.timeout(5):
        await operation.ended.wait()
    return operation


async def test_one_target_one_at_a_time_and_in_order(tmp_path: Path) -> None:
    work = Work()
    work.let(*"abcd")
    async with manager(tmp_path, work) as operations:
        made = [await begin(operations, key, "models/same") for key in "abcd"]
        for key, operation in zip("abcd", made, strict=True):
            assert operation.request == {"key": key}
            assert (await end(operation)).result == {"key": key}
    assert work.started == list("abcd")
    assert work.most == 1


async def test_different_targets_at_once_up_to_the_limit(tmp_path: Path) -> None:
    work = Work()
    async with manager(tmp_path, work) as operations:
        made = [await begin(operations, key) for key in "abc"]
        await eventually(lambda: len(work.running) == 2, timeout=5, interval=0.001)
        assert made[2].phase is Phase.QUEUED
        # Waiting on one's own element takes no place from others.
        work.let(*"abc")
        for operation in made:
            await end(operation)
    assert work.most == 2


async def test_a_waiting_one_on_a_busy_element_holds_no_place(tmp_path: Path) -> None:
    work = Work()
    async with manager(tmp_path, work) as operations:
        await begin(operations, "a", "models/same")
        await begin(operations, "b", "models/same")
        await begin(operations, "c")
        await eventually(lambda: work.running == ["a", "c"], timeout=5, interval=0.001)


async def test_what_was_not_finished_is_taken_up_again_in_order(tmp_path: Path) -> None:
    work = Work()
    async with manager(tmp_path, work) as operations:
        first = await begin(operations, "a", "models/same")
        second = await begin(operations, "b", "models/same")
        done = await begin(operations, "c")
        work.let("c")
        await end(done)
        first.progress.add("f", 100).arrived(40)
        await eventually(lambda: work.running == ["a"], timeout=5, interval=0.001)
    assert not first.done

    work = Work()
    work.let("a", "b")
    async with manager(tmp_path, work) as operations:
        assert operations.get(done.name).result == {"key": "c"}
        assert operations.get(done.name).progress.percent == 100.0
        again = operations.get(first.name)
        await end(operations.get(second.name))
        assert again.done
    assert work.started == ["a", "b"]


async def test_how_it_failed_outlives_a_restart(tmp_path: Path) -> None:
    work = Work()
    work.let("a", "bug")
    work.failures["a"] = DiskFullError(
        "full", metadata={"needed": "5"}, retry_after=2.5, resource=Resource("disk", "d", "x")
    )
    work.failures["bug"] = KeyError("secret")
    async with manager(tmp_path, work) as operations:
        failed = await end(await begin(operations, "a"))
        bug = await end(await begin(operations, "bug"))
        assert failed.phase is Phase.FAILED
        assert bug.error is not None
        assert bug.error.reason == "INTERNAL"
        assert "secret" not in bug.error.message
    async with manager(tmp_path, Work()) as operations:
        error = operations.get(failed.name).error
    assert isinstance(error, DiskFullError)
    assert (error.message, error.metadata, error.retry_after) == ("full", {"needed": "5"}, 2.5)
    assert error.resource == Resource("disk", "d", "x")


async def test_cancelling_running_and_queued_ones(tmp_path: Path) -> None:
    work = Work()
    async with manager(tmp_path, work) as operations:
        running = await begin(operations, "a", "models/same")
        queued = await begin(operations, "b", "models/same")
        await eventually(lambda: work.running == ["a"], timeout=5, interval=0.001)
        await operations.cancel(queued.name)
        await operations.cancel(running.name)
        for operation in (running, queued):
            assert (await end(operation)).phase is Phase.CANCELLED
            assert isinstance(operation.error, OperationCancelledError)
        await operations.cancel(running.name)
    assert work.started == ["a"]


async def test_a_cancellation_that_comes_too_late_changes_nothing(tmp_path: Path) -> None:
    work = Work()
    async with manager(tmp_path, work) as operations:
        for _ in range(50):
            operation = await begin(operations, "a")
            await eventually(lambda: work.running == ["a"], timeout=5, interval=0.001)
            work.let("a")
            canceller = asyncio.create_task(operations.cancel(operation.name))
            await end(operation)
            await canceller
            work.leave.clear()
            kept = Operation.from_record(operation.to_record(), operations.kinds)
            assert kept.phase in (Phase.DONE, Phase.CANCELLED)
    async with manager(tmp_path, Work()) as operations:
        assert all(operation.done for operation in operations.every())


async def test_ended_ones_are_forgotten_after_a_while(tmp_path: Path) -> None:
    work = Work()
    work.let(*"abcdef")
    async with manager(tmp_path, work) as operations:
        made = [await end(await begin(operations, key)) for key in "abcdef"]
        await eventually(lambda: len(operations.every()) == LIMITS.keep, timeout=5, interval=0.001)
        assert [o.name for o in operations.every()] == [o.name for o in reversed(made[3:])]
    short = OperationLimits(2, 5, 3, 0.0, 0.01, 0.0)
    async with manager(tmp_path, Work(), short) as operations:
        assert operations.every() == []


async def test_too_many_are_refused(tmp_path: Path) -> None:
    work = Work()
    async with manager(tmp_path, work) as operations:
        for key in "abcde":
            await begin(operations, key)
        with pytest.raises(QueueFullError) as caught:
            await begin(operations, "f")
    assert caught.value.retry_after is not None


async def test_a_running_one_is_not_deleted(tmp_path: Path) -> None:
    work = Work()
    async with manager(tmp_path, work) as operations:
        operation = await begin(operations, "a")
        with pytest.raises(ConflictError, match="cancel it first"):
            await operations.delete(operation.name)
        work.let("a")
        await end(operation)
        await operations.delete(operation.name)
    async with manager(tmp_path, Work()) as operations:
        assert operations.every() == []


async def test_only_one_gallery_uses_a_journal(tmp_path: Path) -> None:
    async with manager(tmp_path, Work()):
        with pytest.raises(ConflictError, match="another gallery runs"):
            async with manager(tmp_path, Work()):
                pass
    async with manager(tmp_path, Work()):
        pass


async def test_a_journal_that_is_none_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "operations.db").write_bytes(b"not a database, but long enough to be one" * 100)
    work = Work()
    work.let("a")
    async with manager(tmp_path, work) as operations:
        await end(await begin(operations, "a"))
    assert sum(".broken-" in name for name in os.listdir(tmp_path)) == 1


async def test_records_of_no_use_do_not_hinder_the_others(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "operations.db")
    await journal.open()
    record = {"name": "operations/x", "create_time": 1.0, "kind": "of the future"}
    await journal.put(cast(OperationRecord, record))
    await journal.close()
    async with manager(tmp_path, Work()) as operations:
        assert operations.every() == []


def test_filters() -> None:
    operation = Operation("operations/1", Work(), "models/A", {})
    for text, expected in {
        "": True,
        "done = false": True,
        "done=true": False,
        "kind = INSTALL_MODEL": True,
        "kind = KIND_INSTALL_MODEL": True,
        'target = "models/a" AND phase = PHASE_QUEUED': True,
        "target != models/a": False,
    }.items():
        assert parse_filter(text)(operation) is expected, text
