"""The commands as real processes against small servers."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from corral.gallery.v1 import gallery_pb2
from tests.fakes.services_fake import STATE, FakeLoader, log_line, serving
from tests.tools.corral_command import World, corral, scripted_world, started
from tests.tools.service import ROOT

NOWHERE = "127.0.0.1:1"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with scripted_world(tmp_path) as made:
        yield made


def entry(name: str, **more: Any) -> gallery_pb2.ModelEntry:
    return gallery_pb2.ModelEntry(
        id=name, gallery="localai", description=f"The {name}.", backend="llama-cpp", **more
    )


async def read_until(stream: asyncio.StreamReader | None, text: str) -> str:
    assert stream is not None
    seen = b""
    async with asyncio.timeout(20):
        while text.encode() not in seen:
            piece = await stream.read(4096)
            assert piece, seen.decode()
            seen += piece
    return seen.decode()


# Listing


async def test_models_are_listed_over_all_pages(world: World) -> None:
    for name in ("a", "b", "c", "d", "e"):
        world.loader.add(name)
    world.loader.add("f", STATE.STATE_READY)
    done = await world.run("models", "--json")
    assert [model["name"] for model in done.json["models"]] == ["a", "b", "c", "d", "e", "f"]
    assert done.json["total"] == 6
    assert done.json["models"][5]["memory_bytes"] == 200 * 1024 * 1024
    assert done.json["models"][0]["memory_bytes"] is None
    assert done.code == 0
    assert done.err == ""


async def test_models_are_a_table_for_people(world: World) -> None:
    world.loader.add("tiny", usecases=["chat"])
    world.loader.add("big", STATE.STATE_FAILED, state_message="no\nroom")
    done = await world.run("models")
    header, big, tiny = done.out.splitlines()
    assert header.split() == ["NAME", "STATE", "BACKEND", "MEMORY", "USE", "NOTE"]
    assert big.split() == ["big", "failed", "llama-cpp", "no", "room"]
    assert tiny == "tiny  unloaded  llama-cpp          chat"


async def test_a_limit_ends_the_list(world: World) -> None:
    for name in "abcde":
        world.loader.add(name)
    done = await world.run("models", "--limit", "3")
    assert len(done.out.splitlines()) == 4
    assert "3 of 5" in done.err


async def test_what_can_be_installed(world: World) -> None:
    world.gallery.entries = [entry(name) for name in ("one", "two", "three")]
    done = await world.run("models", "--available", "--usecase", "chat", "--tag", "gguf")
    assert [line.split()[0] for line in done.out.splitlines()] == ["NAME", "one", "two", "three"]
    asked = world.gallery.requests[0]
    assert (asked.filter.usecase, asked.filter.tag) == ("chat", "gguf")
    assert not asked.filter.HasField("installed")


async def test_a_search_tells_of_galleries_that_did_not_answer(world: World) -> None:
    world.gallery.entries = [entry("one"), entry("two")]
    done = await world.run("models", "-a", "--search", "tw", "--installed")
    assert done.out.splitlines()[1].startswith("two")
    assert "could not read the gallery far-away" in done.err
    assert world.gallery.requests[0].filter.installed
    as_json = await world.run("models", "-a", "--search", "tw", "--json")
    assert as_json.json["unavailable_galleries"] == ["far-away"]


async def test_what_is_on_disk(world: World) -> None:
    world.gallery.installed = [
        gallery_pb2.InstalledModel(
            name="models/m", size_bytes=2**30, entry="galleries/localai/models/m"
        ),
        gallery_pb2.InstalledModel(name="models/file.gguf", loose=True),
    ]
    done = await world.run("models", "--installed")
    assert "m          1.0 GiB" in done.out
    assert "localai@m" in done.out
    assert "loose file" in done.out


async def test_an_empty_list_says_what_to_do(world: World) -> None:
    done = await world.run("models")
    assert done.out == ""
    assert "`corral models --available`" in done.err
    assert (await world.run("models", "--json")).json == {"models": [], "total": 0}


async def test_tags_belong_to_galleries(world: World) -> None:
    done = await world.run("models", "--tag", "x")
    assert done.code == 2
    assert "--available" in done.err


# Logs


async def test_logs_tell_where_lines_come_from(world: World) -> None:
    world.loader.add("m")
    world.loader.lines = [
        log_line(1, "starts", "LOADER"),
        log_line(2, "one"),
        log_line(3, "two\x1b[2J", "STDOUT"),
    ]
    done = await world.run("logs", "m")
    assert [line.split(maxsplit=2)[1:] for line in done.out.splitlines()] == [
        ["corral", "starts"],
        ["err", "one"],
        ["out", "two\\x1b[2J"],
    ]
    tail = await world.run("logs", "m", "--tail", "1", "--json")
    assert [line["text"] for line in tail.lines] == ["two\x1b[2J"]


@pytest.mark.parametrize("as_json", [True, False])
async def test_logs_are_followed_over_a_restart_of_the_loader(
    tmp_path: Path, as_json: bool
) -> None:
    loader = FakeLoader()
    loader.add("m")
    loader.lines = [log_line(n, f"old {n}") for n in range(1, 6)]
    more = ["--json"] if as_json else []
    async with AsyncExitStack() as stack:
        async with serving(loader) as address:
            process = await stack.enter_async_context(
                started(tmp_path, "logs", "m", "-f", *more, CORRAL_LOADER=address)
            )
            await read_until(process.stdout, "old 5")
            loader.lines.append(log_line(6, "old 6"))
            loader.new_line.set()
            await read_until(process.stdout, "old 6")
        # A restarted loader counts from 1.
        loader = FakeLoader()
        loader.add("m")
        loader.lines = [log_line(1, "new 1"), log_line(2, "new 2")]
        async with serving(loader, address=address):
            seen = await read_until(process.stdout, "new 2")
            assert "old" not in seen
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(10):
                assert await process.wait() == 130
            err = (await process.stderr.read()).decode() if process.stderr else ""
    # JSON: only data and errors.
    assert ("waiting for it to come back" in err) is not as_json
    assert ("started again; its log is empty now" in err) is not as_json


async def test_logs_of_some_lines_only(world: World) -> None:
    world.loader.add("m")
    world.loader.lines = [
        log_line(1, "a", "STDOUT", "INFO"),
        log_line(2, "b", "STDERR", "WARNING"),
        log_line(3, "c", "STDOUT", "ERROR"),
        log_line(4, "d", "LOADER", "ERROR"),
    ]
    done = await world.run(
        "logs", "m", "--level", "warning", "--stream", "stdout", "--stream", "loader", "--json"
    )
    assert [(line["text"], line["level"]) for line in done.lines] == [
        ("c", "error"),
        ("d", "error"),
    ]
    assert "a" in (await world.run("logs", "m", "-n", "4")).out
    nothing = await world.run("logs", "m", "--level", "error", "--stream", "stderr")
    assert (nothing.out, nothing.err) == ("", "nothing logged that matches\n")
    assert (await world.run("logs", "m", "--level", "loud")).code == 2


async def test_logs_tell_what_happened_between_lines(world: World) -> None:
    world.loader.add("m")
    world.loader.lines = [
        log_line(1, "one", generation=1),
        log_line(1236, "\x1b[31mtwo\x1b[0m", generation=1, level="ERROR"),
        log_line(1237, "three", generation=2),
        log_line(1238, "late", generation=1),
        log_line(1240, "four", generation=2),
    ]
    done = await world.run("logs", "m")
    assert [line.partition("err    ")[2] or line for line in done.out.splitlines()] == [
        "one",
        "... 1,234 lines missed ...",
        "two",
        "--- started again ---",
        "three",
        "late",
        "... 1 line missed ...",
        "four",
    ]
    data = (await world.run("logs", "m", "--json")).lines
    assert data[1] == {"missed_lines": 1234} and data[2]["text"] == "\x1b[31mtwo\x1b[0m"


async def test_a_log_that_is_empty_says_so(world: World) -> None:
    world.loader.add("m")
    done = await world.run("logs", "m")
    assert (done.code, done.out) == (0, "")
    assert "nothing logged" in done.err


# Help and completion


async def test_the_version(tmp_path: Path) -> None:
    short = await corral(tmp_path, "--version")
    assert short.out.startswith("corral ")
    long = await corral(tmp_path, "version", "--json")
    assert set(long.json) == {"corral", "python", "grpc"}


async def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from services.cli.app import app; "
        "sys.exit(' '.join({'grpc', 'google.protobuf', 'pydantic', 'rich.console'} & set(sys.modules)))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, cwd=ROOT, stderr=asyncio.subprocess.PIPE
    )
    _, err = await process.communicate()
    assert err.strip() == b""


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("corral load ", ["alpha", "beta"]),
        ("corral run al", ["alpha"]),
        ("corral unload ", ["beta"]),
        ("corral install g", ["gamma"]),
        ("corral operations wa", ["watch"]),
    ],
)
async def test_the_shell_completes_names(world: World, words: str, offered: list[str]) -> None:
    world.loader.add("alpha")
    world.loader.add("beta", STATE.STATE_READY)
    world.gallery.entries = [entry("gamma"), entry("delta"), entry("gimel")][:2]
    done = await world.run(
        COMP_WORDS="\n".join(words.split(" ")),
        COMP_CWORD=str(len(words.split(" ")) - 1),
        _CORRAL_COMPLETE="complete_bash",
    )
    assert sorted(done.out.split()) == offered


async def test_completion_without_services_offers_nothing(tmp_path: Path) -> None:
    done = await corral(
        tmp_path,
        COMP_WORDS="corral\nload\n",
        COMP_CWORD="2",
        _CORRAL_COMPLETE="complete_bash",
        CORRAL_LOADER=NOWHERE,
    )
    assert (done.out.strip(), done.err) == ("", "")
