"""`corral run` as a real process against a scripted model."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from corral.backend import backend_pb2
from services.common import errors
from tests.fakes.services_fake import STATE, FakeLoader, reply, serving
from tests.tools.corral_command import command_environment, corral, started
from tests.tools.service import ROOT
from tests.tools.waiting import eventually


class Model:
    def __init__(self, home: Path, loader: FakeLoader, address: str) -> None:
        self.home = home
        self.loader = loader
        self.env: dict[str, Any] = {"CORRAL_LOADER": address}

    async def run(self, *args: str, stdin: str | None = None) -> Any:
        return await corral(self.home, "run", "m", *args, stdin=stdin, **self.env)

    @property
    def asked(self) -> list[backend_pb2.PredictOptions]:
        return [r for r in self.loader.requests if isinstance(r, backend_pb2.PredictOptions)]


@pytest.fixture
async def model(tmp_path: Path) -> AsyncIterator[Model]:
    loader = FakeLoader(replies=[reply("Hello"), reply(" there", tokens=2, prompt_tokens=5)])
    loader.add("m", STATE.STATE_READY)
    async with serving(loader) as address:
        yield Model(tmp_path, loader, address)


async def test_the_answer_goes_to_stdout_and_nothing_else(model: Model) -> None:
    done = await model.run("hi")
    assert (done.code, done.out, done.err) == (0, "Hello there\n", "")
    [asked] = model.asked
    assert model.loader.metadata["corral-model"] == "m"
    assert asked.UseTokenizerTemplate
    assert [(m.role, m.content) for m in asked.Messages] == [("user", "hi")]
    assert (asked.Prompt, asked.Tokens, asked.Seed) == ("", 512, -1)


async def test_settings_reach_the_backend(model: Model) -> None:
    await model.run(
        "hi", "--system", "be brief", "--max-tokens", "7", "--temperature", "0", "--top-p", "0.5",
        "--seed", "42", "--stop", "END", "--stop", "\n",
    )  # fmt: skip
    [asked] = model.asked
    assert [m.role for m in asked.Messages] == ["system", "user"]
    assert (asked.Tokens, asked.Temperature, asked.TopP, asked.Seed) == (7, 0, 0.5, 42)
    assert list(asked.StopPrompts) == ["END", "\n"]


async def test_a_raw_prompt_goes_as_it_is(model: Model) -> None:
    await model.run("--raw", "<|im_start|>x")
    [asked] = model.asked
    assert asked.Prompt == "<|im_start|>x"
    assert not asked.UseTokenizerTemplate
    assert not asked.Messages


async def test_a_prompt_from_stdin(model: Model) -> None:
    await model.run("-", stdin="two\nlines\n")
    assert model.asked[0].Messages[0].content == "two\nlines\n"
    empty = await model.run("-", stdin="")
    assert empty.code == 2
    assert "the prompt is empty" in empty.err


async def test_characters_that_are_cut_come_out_whole(model: Model) -> None:
    data = "naïve 🐎 日本".encode()
    model.loader.replies = [reply(data[at : at + 1]) for at in range(len(data))]
    assert (await model.run("hi")).out == "naïve 🐎 日本\n"
    model.loader.replies = [reply(b"a\xf0\x9f")]
    assert (await model.run("hi")).out == "a�\n"


async def test_a_name_that_is_not_ascii_goes_as_bytes(model: Model) -> None:
    model.loader.add("münchen", STATE.STATE_READY)
    done = await corral(model.home, "run", "münchen", "hi", **model.env)
    assert done.out == "Hello there\n"
    assert "corral-model" not in model.loader.metadata
    assert model.loader.metadata["corral-model-bin"] == "münchen".encode()


async def test_what_is_no_text_is_refused(model: Model) -> None:
    done = await model.run(os.fsdecode(b"\xff\xfe"))
    assert done.code == 2
    assert done.err.startswith("error: the input is not UTF-8")


async def test_a_terminal_without_the_characters_shows_others(model: Model) -> None:
    model.loader.replies = [reply("naïve")]
    done = await corral(model.home, "run", "m", "hi", PYTHONIOENCODING="ascii", **model.env)
    assert done.out == "na?ve\n"


async def test_answers_that_come_as_deltas(model: Model) -> None:
    delta = backend_pb2.ChatDelta(content="hi")
    model.loader.replies = [backend_pb2.Reply(chat_deltas=[delta])]
    assert (await model.run("x")).out == "hi\n"


async def test_json_has_a_line_a_chunk_and_the_counts_last(model: Model) -> None:
    done = await model.run("hi", "--json")
    first, second, last = done.lines
    assert first == {"type": "chunk", "text": "Hello"}
    assert second["text"] == " there"
    assert last["type"] == "done"
    assert (last["text"], last["model"]) == ("Hello there", "m")
    assert (last["tokens"], last["prompt_tokens"]) == (2, 5)
    assert last["seconds_to_first_token"] >= 0


async def test_stats_go_to_stderr(model: Model) -> None:
    done = await model.run("hi", "--stats")
    assert done.out == "Hello there\n"
    assert "2 tokens in" in done.err
    assert "prompt 5 tokens" in done.err


async def test_a_model_that_is_not_loaded_is_loaded_in_sight(model: Model) -> None:
    model.loader.add("m")
    model.loader.load_seconds = 0.3
    done = await model.run("hi")
    assert done.out == "Hello there\n"
    assert done.err.splitlines()[0] == "loading m"


async def test_a_model_that_cannot_be_loaded(model: Model) -> None:
    model.loader.add("m")
    model.loader.load_error = errors.ModelLoadError("not enough memory")
    done = await model.run("hi")
    assert (done.code, done.out) == (1, "")
    assert "error: not enough memory" in done.err


async def test_an_answer_that_breaks_off_keeps_what_came(model: Model) -> None:
    class Breaking(list[Any]):
        def __iter__(self) -> Any:
            yield reply("Hel")
            raise errors.BackendCrashedError("the backend ended: killed by SIGKILL")

    model.loader.replies = Breaking()
    done = await model.run("hi")
    assert (done.code, done.out) == (1, "Hel\n")
    assert done.err.startswith("error: the backend ended: killed by SIGKILL\nnext:  ")


async def test_an_answer_that_takes_too_long(model: Model) -> None:
    model.loader.replies = [reply("a"), 30.0]
    done = await model.run("hi", "--timeout", "300ms")
    assert (done.code, done.out) == (1, "a\n")
    assert "--timeout" in done.err


async def test_ctrl_c_cancels_the_call_at_the_server(model: Model) -> None:
    model.loader.replies = [reply("a"), 60.0]
    async with started(model.home, "run", "m", "hi", **model.env) as process, asyncio.timeout(20):
        assert process.stdout is not None
        assert await process.stdout.readexactly(1) == b"a"
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
        await model.loader.cancelled.wait()
    assert (process.returncode, out, err) == (130, b"\n", b"")


async def test_a_reader_that_goes_away_cancels_the_call(model: Model) -> None:
    model.loader.replies = [item for _ in range(500) for item in (reply("x" * 100), 0.01)]
    read, write = os.pipe()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "services.cli", "run", "m", "hi"),
        cwd=ROOT,
        env=command_environment(model.home, **model.env),
        stdout=write,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(write)
    await asyncio.to_thread(os.read, read, 10)
    os.close(read)
    async with asyncio.timeout(20):
        _, err = await process.communicate()
        await model.loader.cancelled.wait()
    assert (process.returncode, err) == (1, b"")


async def test_a_conversation_is_piped_in_line_by_line(model: Model) -> None:
    done = await model.run(
        "--chat", "--system", "s", stdin="one\n\ntwo\n/reset\nthree\n/exit\nno\n"
    )
    assert done.out == "Hello there\n" * 3
    assert [[m.content for m in asked.Messages] for asked in model.asked] == [
        ["s", "one"],
        ["s", "one", "Hello there", "two"],
        ["s", "three"],
    ]


async def test_a_conversation_begins_with_the_prompt(model: Model) -> None:
    done = await model.run("--chat", "first", "--json", stdin="second\n")
    assert [line["text"] for line in done.lines if line["type"] == "done"] == ["Hello there"] * 2
    assert [m.content for m in model.asked[1].Messages] == ["first", "Hello there", "second"]


class Terminal:
    """A process on a pseudo-terminal, and its output so far."""

    def __init__(self, model: Model, *args: str) -> None:
        self.master, slave = pty.openpty()
        os.set_blocking(self.master, False)
        env = command_environment(model.home, TERM="xterm", **model.env)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "services.cli", *args],
            cwd=ROOT,
            env=env,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.text = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def _sees(self, text: str) -> bool:
        with suppress(OSError):
            self.text += os.read(self.master, 65536).decode("utf-8", "replace")
        return text in self.text

    async def sees(self, text: str) -> None:
        """Wait for this text, and discard the output up to it."""
        await eventually(lambda: self._sees(text), timeout=20, what=f"{text!r} on the terminal")
        self.text = self.text.partition(text)[2]

    async def ends(self) -> int:
        async with asyncio.timeout(20):
            code = await asyncio.to_thread(self.process.wait)
        os.close(self.master)
        return code


@pytest.fixture
def terminals(model: Model) -> Iterator[Callable[..., Terminal]]:
    """Start commands, each on its own terminal; all are killed at the end of the test."""
    made: list[Terminal] = []

    def start(*args: str) -> Terminal:
        made.append(Terminal(model, *args))
        return made[-1]

    yield start
    for terminal in made:
        if terminal.process.poll() is None:
            terminal.process.kill()
            terminal.process.wait()
            os.close(terminal.master)


async def test_a_conversation_at_a_terminal_outlives_ctrl_c(
    model: Model, terminals: Callable[..., Terminal]
) -> None:
    terminal = terminals("run", "m", "--chat")
    await terminal.sees(">>> ")
    model.loader.replies = [reply("endless"), 60.0]
    terminal.type("one\n")
    await terminal.sees("endless")
    # The terminal is not the controlling one of the test's session, so send the signal by hand.
    terminal.process.send_signal(signal.SIGINT)
    await terminal.sees("that turn is forgotten")
    async with asyncio.timeout(10):
        await model.loader.cancelled.wait()
    await terminal.sees(">>> ")
    model.loader.replies = [reply("fine")]
    terminal.type("two\n")
    await terminal.sees("fine")
    await terminal.sees(">>> ")
    terminal.type("/exit\n")
    assert await terminal.ends() == 0
    assert [m.content for m in model.asked[-1].Messages] == ["two"]


async def test_a_turn_that_fails_does_not_end_the_conversation(
    model: Model, terminals: Callable[..., Terminal]
) -> None:
    terminal = terminals("run", "m", "--chat")
    await terminal.sees(">>> ")
    del model.loader.models["m"]
    terminal.type("one\n")
    await terminal.sees("model 'm' not found")
    await terminal.sees(">>> ")
    terminal.type("\x04")
    assert await terminal.ends() == 0


async def test_escape_sequences_of_a_model_do_not_reach_the_terminal(
    model: Model, terminals: Callable[..., Terminal]
) -> None:
    model.loader.replies = [reply("\x1b]0;title\x07x")]
    terminal = terminals("run", "m", "hi")
    await terminal.sees("\\x1b]0;title\\x07x")
    assert await terminal.ends() == 0
    assert (await model.run("hi")).out == "\x1b]0;title\x07x\n"
