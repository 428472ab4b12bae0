"""The engine's process, seen from the backend: starting it, loading, calling, killing it."""

import asyncio
import contextlib
import json
import logging
import os
import secrets
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from . import errors
from .options import Plan
from .scratch import Scratch
from .settings import Enum
from .wire import Exchange, WireError

log = logging.getLogger(__name__)

WORKER = Path(__file__).with_name("worker.py")
# For calls that take no slot: they answer in milliseconds, but wait for a batch to end.
SIDE_TIMEOUT = 60.0
# The engine answers HTTP with one thread a request: one a slot, and these for other calls.
SIDE_THREADS = 4
# The last words of a process that is gone are in the pipe already.
LAST_WORDS_TIMEOUT = 0.5
# If an answer breaks off, the engine has ended or is stuck; after this time it is known which.
END_KNOWN_TIMEOUT = 2.0
KEPT_LINES = 50
REASON_LINES = 6

Chunk = dict[str, Any]
# Called with the exit status of an engine that ended by itself.
OnCrash = Callable[[int, str], None]


class Engine:
    """One process of llama.cpp; holds at most one model in its life."""

    def __init__(self, scratch: Scratch, on_crash: OnCrash) -> None:
        """Prepare; `start` starts the process."""
        # A fresh name each time: the engine leaves its socket behind, and refuses to start on it.
        self._scratch = scratch
        self._socket = Path()
        self._on_crash = on_crash
        self._key = secrets.token_hex(16)
        self._process: asyncio.subprocess.Process | None = None
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._reading: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._ending = False

    @property
    def pid(self) -> int:
        """The engine's process id; 0 before it started."""
        return self._process.pid if self._process else 0

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start the process; it imports the native library and waits for its model."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", str(WORKER), str(os.getpid())),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        self._reading = asyncio.create_task(self._pass_stderr_on())
        self._watching = asyncio.create_task(self._watch())

    async def load(self, plan: Plan) -> None:
        """Load the model.

        Raises:
            InvalidRequest: the engine does not take a parameter.
            EngineFailed: the load failed; the text ends with the engine's last log lines.
        """
        process = self._started()
        self._socket = await asyncio.to_thread(self._scratch.new_socket)
        order = {
            "parameters": {path: _plain(value) for path, value in plan.parameters.items()},
            "adapters": plan.adapters,
            "socket": str(self._socket),
            "key": self._key,
            "threads": plan.parallel + SIDE_THREADS,
        }
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.write(json.dumps(order).encode() + b"\n")
            await process.stdin.drain()
        word, _, reason = (await process.stdout.readline()).decode().strip().partition(" ")
        if word == "loaded":
            return
        if word:
            self._ending = True  # it gave a reason, so its end is not a crash
            await self._last_words()
        elif self._watching is not None:
            await self._watching  # which ends this process too
        if word == "refused":
            raise errors.InvalidRequest(json.loads(reason))
        # llama.cpp's exception has no reason, but its log has.
        why = self._reason() or (json.loads(reason) if reason else "its process ended")
        raise errors.EngineFailed(f"llama.cpp cannot load {str(plan.path)!r}: {why}")

    async def close(self) -> None:
        """Kill the process; the memory is back when this returns."""
        self._ending = True
        if self._process is not None:
            self.kill()
            await self._process.wait()
        if self._reading is not None:
            await self._last_words()
            self._reading.cancel()
        if self._socket.name:
            self._socket.unlink(missing_ok=True)

    def kill(self) -> None:
        """Kill the process and do not wait; it has nothing to save."""
        self._ending = True
        if self.alive and self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def exchange(self) -> Exchange:
        """A connection to the engine, not opened yet."""
        return Exchange(self._socket, self._key)

    async def generate(self, exchange: Exchange, body: Mapping[str, Any]) -> AsyncIterator[Chunk]:
        """Run one request, chat when it has `messages`, and pass its chunks on.

        Raises:
            BackendError: what the engine answered instead of text.
        """
        try:
            await exchange.send(
                "/v1/chat/completions" if "messages" in body else "/v1/completions", body
            )
            if await exchange.status() != 200:
                raise errors.from_engine((await exchange.json())["error"])
            async for chunk in exchange.events():
                if "error" in chunk:
                    raise errors.from_engine(chunk["error"])
                yield chunk
        except WireError as error:
            await self._end_known()
            raise errors.EngineGone(str(error)) from error

    async def call(self, route: str, body: Any = None, limit: float | None = None) -> Any:
        """Call one of the engine's routes and wait `limit` seconds, or as long as it takes.

        Raises:
            BackendError: what the engine answered instead.
        """
        exchange = self.exchange()
        try:
            async with asyncio.timeout(limit):
                await exchange.send(route, body)
                await exchange.status()
                answer = await exchange.json()
        except WireError as error:
            await self._end_known()
            raise errors.EngineGone(f"{route}: {error}") from error
        except TimeoutError as error:
            raise errors.EngineFailed(f"{route}: no answer within {limit} s") from error
        finally:
            exchange.close()
        if isinstance(answer, dict) and "error" in answer:
            raise errors.from_engine(answer["error"])
        return answer

    async def embed(self, content: str | list[int]) -> tuple[list[list[float]], int]:
        """Vectors for one input (one, or one a token without pooling), and its token count."""
        try:
            answer = await self.call("/v1/embeddings", {"input": content})
        except errors.InvalidRequest as error:
            if "none" not in str(error):
                raise
            # OpenAI's form has no vectors per token; the engine's own route has.
            rows = (await self.call("/embedding", {"content": content}))[0]["embedding"]
            return rows, len(rows)
        return [row["embedding"] for row in answer["data"]], answer["usage"]["prompt_tokens"]

    async def rerank(self, query: str, documents: list[str], top_n: int) -> Chunk:
        """Score documents against a query: `results` with `index` and `relevance_score`."""
        body = {"query": query, "documents": documents, "top_n": top_n}
        answer: Chunk = await self.call("/v1/rerank", body)
        return answer

    async def tokenize(self, text: str, special: bool) -> list[int]:
        """Token numbers of a text; `special` adds those the model wants at its ends."""
        body = {"content": text, "add_special": special, "parse_special": True}
        tokens: list[int] = (await self.call("/tokenize", body, SIDE_TIMEOUT))["tokens"]
        return tokens

    async def detokenize(self, tokens: list[int]) -> str:
        """The text of tokens."""
        answer = await self.call("/detokenize", {"tokens": tokens}, SIDE_TIMEOUT)
        text: str = answer["content"]
        return text

    async def apply_template(self, messages: list[Chunk]) -> str:
        """The prompt that the model's chat template makes of a conversation."""
        answer = await self.call("/apply-template", {"messages": messages}, SIDE_TIMEOUT)
        prompt: str = answer["prompt"]
        return prompt

    async def properties(self) -> Chunk:
        """The engine's properties of the loaded model."""
        found: Chunk = await self.call("/props", None, SIDE_TIMEOUT)
        return found

    def _started(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise errors.EngineFailed("the engine's process was not started")
        return self._process

    async def _pass_stderr_on(self) -> None:
        """Write the engine's log to this process's, and keep its end for error messages."""
        stream = self._started().stderr
        assert stream is not None
        pending = b""
        while piece := await stream.read(1 << 16):
            with contextlib.suppress(OSError):
                os.write(2, piece)
            *lines, pending = (pending + piece).split(b"\n")
            self._lines.extend(line.decode("utf-8", "replace") for line in lines)
        if pending:
            self._lines.append(pending.decode("utf-8", "replace"))

    async def _last_words(self) -> None:
        if self._reading is not None:
            await asyncio.wait({self._reading}, timeout=LAST_WORDS_TIMEOUT)

    async def _end_known(self) -> None:
        """Wait until an unexpected end is reported: that ends this process, a clearer sign than an answer."""
        if self._watching is not None and not self._ending:
            await asyncio.wait({self._watching}, timeout=END_KNOWN_TIMEOUT)

    async def _watch(self) -> None:
        """Report an unexpected end."""
        status = await self._started().wait()
        await self._last_words()
        if not self._ending:
            self._on_crash(status, self._reason())

    def _reason(self) -> str:
        """The engine's last errors, without times and repetitions."""
        lines = list(self._lines)
        # `0.00.004.869 E llama_model_load: …`
        wanted = [line.split(" E ", 1)[-1] for line in lines if " E " in line or "ASSERT" in line]
        unique = list(dict.fromkeys(line.strip() for line in wanted or lines if line.strip()))
        return "; ".join(unique[:REASON_LINES])


def _plain(value: Any) -> Any:
    """A parameter as JSON."""
    if isinstance(value, Enum):
        return {"enum": [value.type, value.name]}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def describe_status(status: int) -> str:
    """An exit status in words."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"exit code {status}"
