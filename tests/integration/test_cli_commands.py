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
from services.common import errors
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


# Loading


async def test_load_and_unload(world: World) -> None:
    world.loader.add("m")
    world.loader.load_seconds = 0.5
    done = await world.run("load", "m")
    assert done.out.startswith("m is ready on llama-cpp, after ")
    assert "loading m: starting its backend" in done.err
    again = await world.run("load", "m")
    assert again.out == "m is ready on llama-cpp already\n"
    gone = await world.run("unload", "m", "--json")
    assert (gone.json["name"], gone.json["state"]) == ("m", "unloaded")
    assert (await world.run("unload", "m")).out == "m was not loaded\n"


async def test_a_load_that_fails_says_where_to_look(world: World) -> None:
    world.loader.add("m")
    world.loader.load_error = errors.ModelLoadError("the backend said: bad magic")
    done = await world.run("load", "m")
    assert done.code == 1
    assert done.err.splitlines()[-2:] == [
        "error: the backend said: bad magic",
        "next:  see what the backend said with `corral logs m`",
    ]


async def test_a_load_that_takes_too_long_goes_on(world: World) -> None:
    world.loader.add("m")
    world.loader.load_seconds = 30
    done = await world.run("load", "m", "--timeout", "200ms")
    assert done.code == 1
    assert "m was not ready within 0.20 s" in done.err
    assert "the load goes on" in done.err


async def test_a_busy_model_is_not_unloaded_without_force(world: World) -> None:
    world.loader.add("m", STATE.STATE_READY).instances[0].active_calls = 1
    done = await world.run("unload", "m")
    assert done.code == 1
    assert "`corral unload m --force`" in done.err
    assert (await world.run("unload", "m", "--force")).code == 0


async def test_an_unknown_model(world: World) -> None:
    for command in (
        ["load", "x"],
        ["unload", "x"],
        ["logs", "x"],
        ["status", "x"],
        ["run", "x", "y"],
    ):
        done = await world.run(*command)
        assert done.code == 1, command
        assert done.out == ""
        assert done.err.startswith("error: model 'x' not found\nnext:  "), command


async def test_a_name_that_is_nearly_right(world: World) -> None:
    world.loader.add("smollm2-135m")
    for name in ("smollm2-135", "smolm2-135m", "SMOL"):
        done = await world.run("load", name)
        assert done.err.splitlines() == [
            f"error: there is no model {name!r} here",
            "next:  did you mean smollm2-135m? list all with `corral models`",
        ]


async def test_a_model_that_only_needs_installing(world: World) -> None:
    world.gallery.entries = [entry("tiny")]
    done = await world.run("run", "tiny", "hello")
    assert done.err.splitlines()[1] == "next:  install it first: `corral install tiny`"


# Status


async def test_status_of_everything(world: World) -> None:
    world.loader.add("idle")
    world.loader.add("m", STATE.STATE_READY)
    done = await world.run("status", "--json")
    assert done.code == 0
    assert {name: s["health"] for name, s in done.json["services"].items()} == dict.fromkeys(
        ("loader", "gallery", "monitor", "metrics"), "serving"
    )
    [model] = done.json["models"]
    assert model["name"] == "m"
    assert model["status"]["memory_bytes"] == 200 * 1024 * 1024
    assert model["status"]["process"]["cpu_percent"] == 12.0
    table = await world.run("status")
    assert "200 MiB" in table.out
    assert "idle" not in table.out


async def test_status_of_one_model(world: World) -> None:
    world.loader.add("m", STATE.STATE_READY, model_file="m.gguf")
    done = await world.run("status", "m")
    lines = [line.split(maxsplit=1) for line in done.out.splitlines()]
    assert ["state", "ready"] in lines
    assert ["file", "m.gguf"] in lines
    assert ["memory", "200 MiB as the backend counts"] in lines


async def test_status_fails_if_a_named_service_does_not_serve(world: World) -> None:
    done = await world.run("status", "--gallery", NOWHERE)
    assert done.code == 1
    assert "gallery  unreachable  127.0.0.1:1" in done.out


async def test_status_without_any_service(tmp_path: Path) -> None:
    flags = [f"--{name}={NOWHERE}" for name in ("loader", "gallery", "monitor", "metrics")]
    done = await corral(tmp_path, "status", *flags)
    assert done.code == 1
    assert done.err.startswith("error: no service answers\nnext:  start them with `corral up`")


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


async def test_logs_are_followed_over_a_restart_of_the_loader(tmp_path: Path) -> None:
    loader = FakeLoader()
    loader.add("m")
    loader.lines = [log_line(n, f"old {n}") for n in range(1, 6)]
    async with AsyncExitStack() as stack:
        async with serving(loader) as address:
            process = await stack.enter_async_context(
                started(tmp_path, "logs", "m", "-f", "--json", CORRAL_LOADER=address)
            )
            await read_until(process.stdout, "old 5")
            loader.lines.append(log_line(6, "old 6"))
            loader.new_line.set()
            await read_until(process.stdout, "old 6")
        # A loader that starts again counts from 1.
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
    assert "waiting for it to come back" not in err  # JSON: nothing but data and errors


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
