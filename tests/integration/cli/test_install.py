"""`corral install` and `corral operations` as real processes against a scripted gallery."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from corral.gallery.v1 import gallery_pb2
from services.common import errors
from tests.fakes.gallery_fake import FakeGallery
from tests.fakes.services_fake import serving
from tests.tools.corral_command import corral, started


class Shop:
    def __init__(self, home: Path, gallery: FakeGallery, address: str) -> None:
        self.home = home
        self.gallery = gallery
        self.env: dict[str, Any] = {"CORRAL_GALLERY": address}

    async def run(self, *args: str) -> Any:
        return await corral(self.home, *args, **self.env)


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    gallery = FakeGallery(entries=[gallery_pb2.ModelEntry(id="tiny")])
    async with serving(gallery) as address:
        yield Shop(tmp_path, gallery, address)


async def test_an_installation_is_followed_in_plain_lines(shop: Shop) -> None:
    done = await shop.run("install", "tiny", "--name", "mine", "--force")
    assert done.code == 0
    assert done.out == "installed mine (100 MiB, 100 MiB fetched)\n"
    lines = done.err.splitlines()
    assert lines[0] == "tiny: downloading model.gguf, 0%, 0 B of 100 MiB, 47.7 MiB/s"
    assert "tiny: downloading model.gguf, 50%, 50.0 MiB of 100 MiB, 47.7 MiB/s" in lines
    assert lines[-1] == 'Try it: corral run mine "Hello!"'
    [request] = shop.gallery.requests
    assert (request.entry, request.model_id, request.force) == ("tiny", "mine", True)
    assert len(request.request_id) == 36


async def test_an_installation_as_json_lines(shop: Shop) -> None:
    done = await shop.run("install", "tiny", "--json")
    *progress, last = done.lines
    assert {line["type"] for line in progress} == {"progress"}
    assert progress[1]["operation"]["bytes_total"] == 100 * 1024 * 1024
    assert last["type"] == "installed"
    assert last["model"]["name"] == "tiny"
    assert last["operation"]["done"]
    assert done.err == ""


async def test_without_waiting_the_operation_is_named(shop: Shop) -> None:
    done = await shop.run("install", "tiny", "--no-wait")
    assert done.out == "op1\n"
    assert "`corral operations watch op1`" in done.err
    watched = await shop.run("operations", "watch", "op1")
    assert watched.out == "install model tiny: done\n"


async def test_a_failed_installation_tells_why(shop: Shop) -> None:
    shop.gallery.fails = errors.DiskFullError("100 MiB are needed and 3 MiB are free")
    done = await shop.run("install", "tiny")
    assert (done.code, done.out) == (1, "")
    assert done.err.splitlines()[-2:] == [
        "error: 100 MiB are needed and 3 MiB are free",
        "next:  free some space, then run the same command again: what was fetched is kept",
    ]


async def test_an_unknown_entry(shop: Shop) -> None:
    done = await shop.run("install", "huge")
    assert done.code == 1
    assert "no gallery offers 'huge'" in done.err
    assert "--search" in done.err


async def test_ctrl_c_cancels_the_installation(shop: Shop) -> None:
    shop.gallery.step_seconds = 60
    async with started(shop.home, "install", "tiny", **shop.env) as process, asyncio.timeout(20):
        await shop.gallery.watched.wait()
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
    assert shop.gallery.cancel.is_set()
    assert (process.returncode, out) == (130, b"")
    assert err.decode().splitlines()[-1] == "cancelled; what was fetched is kept for the next try"


async def test_a_cancel_that_cannot_be_made_is_told(shop: Shop) -> None:
    shop.gallery.step_seconds = 60
    async with started(shop.home, "install", "tiny", **shop.env) as process, asyncio.timeout(20):
        await shop.gallery.watched.wait()
        shop.gallery.operation = None
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
    assert process.returncode == 130
    assert "could not cancel it: no operation 'operations/op1'" in err.decode()


async def test_a_broken_watch_is_taken_up_again(shop: Shop) -> None:
    shop.gallery.break_once = True
    done = await shop.run("install", "tiny")
    assert done.code == 0
    assert "waiting for it to come back" in done.err
    assert done.out.startswith("installed tiny")


async def test_a_gallery_that_restarts_is_waited_for(tmp_path: Path) -> None:
    gallery = FakeGallery(entries=[gallery_pb2.ModelEntry(id="tiny")], step_seconds=60)
    async with AsyncExitStack() as stack:
        async with serving(gallery) as address:
            process = await stack.enter_async_context(
                started(tmp_path, "install", "tiny", CORRAL_GALLERY=address)
            )
            async with asyncio.timeout(20):
                await gallery.watched.wait()
        gallery.step_seconds = 0.01
        async with serving(gallery, address=address), asyncio.timeout(20):
            out, _ = await process.communicate()
    assert (process.returncode, out[:14]) == (0, b"installed tiny")


async def test_operations_are_listed_and_cancelled(shop: Shop) -> None:
    assert "no operations" in (await shop.run("operations")).err
    shop.gallery.step_seconds = 60
    await shop.run("install", "tiny", "--no-wait")
    listed = await shop.run("operations", "--json")
    assert [op["phase"] for op in listed.json["operations"]] == ["downloading"]
    table = await shop.run("operations", "list")
    assert table.out.splitlines()[1].split()[:5] == [
        "op1",
        "install",
        "model",
        "tiny",
        "downloading",
    ]
    cancelled = await shop.run("operations", "cancel", "op1")
    assert cancelled.out.startswith("cancelled op1")
    again = await shop.run("operations", "cancel", "op1", "--json")
    assert again.json["phase"] == "cancelled"
    assert (await shop.run("operations", "watch", "op1")).code == 1
    assert (await shop.run("operations", "cancel", "op2")).code == 1
