"""Gallery operations over a real channel: start, watch, wait, cancel, resume."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import time
import uuid
from pathlib import Path
from typing import Any

import grpc
from google.longrunning import operations_pb2 as lro

from corral.gallery.v1 import gallery_pb2 as pb
from tests.tools.faulty_http import FaultyServer
from tests.tools.gallery_service import (
    SMALL,
    Client,
    entry,
    failure,
    file,
    gallery,
    metadata,
    refusal,
    settings,
    write_index,
)
from tests.tools.waiting import eventually


async def test_the_standard_operations_service(tmp_path: Path, server: FaultyServer) -> None:
    rows = [entry(f"m{n}", file(f"m{n}.gguf", server.url("/m"), SMALL)) for n in range(3)]
    rows.append(entry("broken", file("b.gguf", server.url("/missing"))))
    index = write_index(tmp_path / "g" / "index.yaml", rows)
    async with gallery(settings(tmp_path, index)) as client:
        started = [await client.begin(f"m{n}") for n in range(3)]
        for name in started:
            await client.end(name)
        failed = await client.begin("broken")
        ended = await client.operations.WaitOperation(lro.WaitOperationRequest(name=failed))
        assert ended.done
        assert failure(ended.error).reason == "SOURCE_NOT_FOUND"
        assert metadata(ended).phase == pb.OperationMetadata.PHASE_FAILED

        async def listed(filter_: str = "", size: int = 0, token: str = "") -> Any:
            return await client.operations.ListOperations(
                lro.ListOperationsRequest(
                    name="operations", filter=filter_, page_size=size, page_token=token
                )
            )

        newest_first = [failed, *reversed(started)]
        assert [o.name for o in (await listed()).operations] == newest_first
        first = await listed(size=3)
        rest = await listed(size=3, token=first.next_page_token)
        assert [o.name for o in (*first.operations, *rest.operations)] == newest_first
        assert [o.name for o in (await listed("phase = FAILED")).operations] == [failed]
        some = await listed('done = true AND target = "models/m1" AND kind != UPDATE_MODEL')
        assert [o.name for o in some.operations] == [started[1]]
        assert not (await listed("done=false")).operations
        for filter_ in ("colour = red", "done", "done = true OR done = false"):
            bad = await refusal(listed(filter_))
            assert bad.fields == ["filter"]
        bad = await refusal(listed("done = true", token=first.next_page_token))
        assert bad.fields == ["page_token"]

        await client.cancel(started[0])  # Already ended: nothing happens.
        assert (await client.get(started[0])).HasField("response")
        await client.operations.DeleteOperation(lro.DeleteOperationRequest(name=failed))
        bad = await refusal(client.get(failed))
        assert (bad.code, bad.reason) == ("NOT_FOUND", "OPERATION_NOT_FOUND")
        calls = [
            client.cancel("operations/none"),
            client.operations.WaitOperation(lro.WaitOperationRequest(name="none")),
            client.operations.DeleteOperation(lro.DeleteOperationRequest(name="none")),
            client.end("none"),
        ]
        for call in calls:
            assert (await refusal(call)).reason == "OPERATION_NOT_FOUND"
        assert (await refusal(client.get(""))).fields == ["name"]


async def test_waiting_has_an_end(tmp_path: Path, server: FaultyServer) -> None:
    server.resources["/m"].rate = 1000
    index = write_index(
        tmp_path / "g" / "index.yaml", [entry("m", file("m.gguf", server.url("/m"), SMALL))]
    )
    async with gallery(settings(tmp_path, index)) as client:
        name = await client.begin("m")
        loop = asyncio.get_running_loop()
        start = loop.time()
        request = lro.WaitOperationRequest(name=name)
        request.timeout.FromMilliseconds(100)
        assert not (await client.operations.WaitOperation(request)).done
        # The client's deadline comes before its timeout: it gets an answer, not DEADLINE_EXCEEDED.
        request.timeout.FromSeconds(60)
        assert not (await client.operations.WaitOperation(request, timeout=0.5)).done
        assert loop.time() - start < 5
        bad = await refusal(
            client.operations.DeleteOperation(lro.DeleteOperationRequest(name=name))
        )
        assert bad.reason == "CONFLICT"
        await client.cancel(name)
        ended = await client.operations.WaitOperation(request)
        assert ended.done
        assert failure(ended.error).code == "CANCELLED"


async def test_cancelling_leaves_nothing(tmp_path: Path, server: FaultyServer) -> None:
    server.resources["/m"].rate = 100_000
    rows = [entry("m", file("m.gguf", server.url("/m"), SMALL))]
    index = write_index(tmp_path / "g" / "index.yaml", rows)
    async with gallery(settings(tmp_path, index)) as client:
        name = await client.begin("m")
        await client.until(name, lambda state: state.bytes_done > 0)
        await client.cancel(name)
        await client.cancel(name)
        operation = await client.end(name)
        found = failure(operation.error)
        assert (found.code, found.reason) == ("CANCELLED", "OPERATION_CANCELLED")
        assert metadata(operation).phase == pb.OperationMetadata.PHASE_CANCELLED
        assert metadata(operation).cancel_requested
        everything = [p.name for p in client.models.rglob("*") if p.is_file()]
        assert everything == []
        server.resources["/m"].rate = 0
        await client.install("m")
        assert (client.models / "m.gguf").read_bytes() == SMALL


async def test_same_elements_queue_and_different_ones_run_at_once(
    tmp_path: Path, server: FaultyServer
) -> None:
    for n in range(3):
        server.add(f"/{n}", SMALL, rate=100_000)
    rows = [entry(f"m{n}", file(f"m{n}.gguf", server.url(f"/{n}"), SMALL)) for n in range(3)]
    index = write_index(tmp_path / "g" / "index.yaml", rows)
    async with gallery(settings(tmp_path, index, parallel_operations=2)) as client:
        first, second, third, again = [
            await client.begin(name) for name in ("m0", "m1", "m2", "m0")
        ]
        for name in (first, second):
            await client.until(name, lambda state: state.bytes_done > 0)
        for name in (third, again):
            assert metadata(await client.get(name)).phase == pb.OperationMetadata.PHASE_QUEUED
        # A queued operation is cancelled at once; the running one is not affected.
        await client.cancel(third)
        assert failure((await client.end(third)).error).code == "CANCELLED"
        for resource in server.resources.values():
            resource.rate = 0
        results = [await client.end(name) for name in (first, second, again)]
        assert not any(operation.HasField("error") for operation in results)
        assert len(server.gets("/0")) == 1
        assert not server.gets("/2")
        states = [metadata(operation) for operation in results]
        assert states[2].start_time.ToNanoseconds() >= states[0].end_time.ToNanoseconds()
        assert states[1].start_time.ToNanoseconds() < states[0].end_time.ToNanoseconds()


async def test_two_models_that_share_a_file(tmp_path: Path, server: FaultyServer) -> None:
    server.resources["/m"].rate = 400_000
    rows = [entry(f"m{n}", file("shared.gguf", server.url("/m"), SMALL)) for n in range(3)]
    index = write_index(tmp_path / "g" / "index.yaml", rows)
    async with gallery(settings(tmp_path, index)) as client:
        started = [await client.begin(f"m{n}") for n in range(3)]
        for name in started:
            operation = await client.end(name)
            assert not operation.HasField("error"), operation.error
        assert len(server.gets("/m")) == 1
        assert (client.models / "shared.gguf").read_bytes() == SMALL
        assert all((client.models / f"m{n}.yaml").exists() for n in range(3))


async def test_a_request_id_makes_one_operation(tmp_path: Path, server: FaultyServer) -> None:
    rows = [entry("m", file("m.gguf", server.url("/m"), SMALL))]
    index = write_index(tmp_path / "g" / "index.yaml", rows)
    key = str(uuid.uuid4())
    async with gallery(settings(tmp_path, index)) as client:
        together = await asyncio.gather(*(client.begin("m", request_id=key) for _ in range(5)))
        assert len(set(together)) == 1
        await client.end(together[0])
        assert await client.begin("m", request_id=key.upper()) == together[0]
        assert await client.begin("m", request_id=str(uuid.uuid4())) != together[0]
    async with gallery(settings(tmp_path, index)) as client:
        assert await client.begin("m", request_id=key) == together[0]
        assert (await client.get(together[0])).HasField("response")


async def test_watching_joins_updates_and_ends_with_the_end(
    tmp_path: Path, server: FaultyServer
) -> None:
    server.resources["/m"].rate = 200_000
    rows = [entry("m", file("m.gguf", server.url("/m"), SMALL))]
    index = write_index(tmp_path / "g" / "index.yaml", rows)
    async with gallery(settings(tmp_path, index, watch_interval=0.2)) as client:
        loop = asyncio.get_running_loop()
        name = await client.begin("m")
        watched = [(loop.time(), o, s) async for o, s in client.watch(name)]
        seconds = watched[-1][0] - watched[0][0]
        assert 3 <= len(watched) <= seconds / 0.2 + 3
        assert [o.done for _, o, _ in watched] == [False] * (len(watched) - 1) + [True]
        percents = [s.percent for _, _, s in watched]
        assert percents == sorted(percents)
        assert percents[-1] == 100
        assert any(s.bytes_per_second > 0 and s.HasField("eta") for _, _, s in watched)
        # A watcher that joins late, and one that leaves early.
        late = [o async for o, _ in client.watch(name)]
        assert [o.done for o in late] == [True]


async def test_a_watcher_that_leaves_stops_nothing(tmp_path: Path, server: FaultyServer) -> None:
    server.resources["/m"].rate = 400_000
    rows = [entry("m", file("m.gguf", server.url("/m"), SMALL))]
    index = write_index(tmp_path / "g" / "index.yaml", rows)
    async with gallery(settings(tmp_path, index)) as client:
        name = await client.begin("m")
        call = client.gallery.WatchOperation(pb.WatchOperationRequest(name=name))
        await call.read()
        call.cancel()
        assert (await client.end(name)).HasField("response")


async def test_stopping_ends_watchers_and_the_work_goes_on_later(
    tmp_path: Path, server: FaultyServer
) -> None:
    server.resources["/m"].rate = 40_000
    rows = [entry("m", file("m.gguf", server.url("/m"), SMALL))]
    index = write_index(tmp_path / "g" / "index.yaml", rows)
    watched: list[Any] = []

    async def watch(client: Client, name: str) -> str:
        try:
            async for operation, _ in client.watch(name):
                watched.append(operation)
        except grpc.RpcError as error:
            return error.code().name
        return "ended"

    async with gallery(settings(tmp_path, index, grace=10)) as client:
        name = await client.begin("m")
        await client.until(name, lambda state: state.bytes_done > 0)
        watching = asyncio.create_task(watch(client, name))
        await eventually(lambda: watched, what="the first state")
        # A stopping service does this first; its streams must not delay the rest.
        client.health.shut_down()
        async with asyncio.timeout(5):
            assert await watching == "UNAVAILABLE"
    assert not watched[-1].done
    assert not (tmp_path / "models" / "m.gguf").exists()
    server.resources["/m"].rate = 0
    async with gallery(settings(tmp_path, index)) as client:
        assert (await client.end(name)).HasField("response")
    assert (tmp_path / "models" / "m.gguf").read_bytes() == SMALL
    assert server.gets("/m")[1].headers["Range"].startswith("bytes=")


async def test_an_operation_of_an_earlier_version_is_resumed(
    tmp_path: Path, server: FaultyServer
) -> None:
    index = write_index(
        tmp_path / "g" / "index.yaml", [entry("m", file("m.gguf", server.url("/m"), SMALL))]
    )
    config = settings(tmp_path, index)
    async with gallery(config) as client:
        await client.end(await client.begin("m", model_id="first"))
    (client.models / "m.gguf").unlink()
    # How the first version journalled a request: a plain object, without a digest of the entry.
    record = {
        "name": "operations/old",
        "kind": "install_model",
        "target": "models/mine",
        "request": {
            "entry": "test@m",
            "model_id": "mine",
            "overrides": {"threads": 3},
            "files": [
                {"filename": "n.gguf", "uris": [server.url("/m")], "sha256": "", "size": 0},
            ],
            "variant": "",
            "force": False,
        },
        "request_id": "",
        "create_time": 1.0,
        "start_time": 2.0,
        "update_time": 3.0,
        "end_time": None,
        "phase": "downloading",
        "percent": 40.0,
        "bytes_done": 4,
        "bytes_total": 10,
        "cancel_requested": False,
        "error": None,
        "result": None,
    }
    ended = {
        **record,
        "name": "operations/ended",
        "end_time": time.time(),
        "phase": "done",
        "percent": 100.0,
        "result": {
            "model": {
                "name": "x",
                "config_file": "x.yaml",
                "model_file": "x.gguf",
                "backend": "b",
                "usecases": ["chat"],
                "entry": "test@m",
                "size": 7,
            },
            "bytes_fetched": 5,
        },
    }
    with contextlib.closing(sqlite3.connect(config.gallery_state / "operations.db")) as journal:
        rows = [(row["name"], row["create_time"], json.dumps(row)) for row in (record, ended)]
        journal.executemany("INSERT INTO operations VALUES (?, ?, ?)", rows)
        journal.commit()
    async with gallery(config) as client:
        operation = await client.end("operations/old")
        result = pb.InstallModelResult()
        assert operation.response.Unpack(result), operation
        assert result.model.name == "models/mine"
        assert (client.models / "n.gguf").read_bytes() == SMALL
        assert "threads: 3" in (client.models / "mine.yaml").read_text()
        assert (await client.get("operations/ended")).response.Unpack(result)
        assert (result.model.size_bytes, result.bytes_fetched) == (7, 5)
        assert list(result.model.usecases) == ["chat"]
