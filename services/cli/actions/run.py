"""Asking a model, and streaming its answer."""

from __future__ import annotations

import codecs
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

from corral.backend import backend_pb2
from corral.loader.v1 import loader_pb2
from services.cli.client.clients import Clients
from services.cli.display import messages, text
from services.cli.display.output import Output
from services.cli.failures import Failure, Lost, Unreachable
from services.cli.models import loading, lookup
from services.common.errors import UnknownRemoteError
from services.common.rpc.status import from_rpc_error

# Seconds for finding the direct address of a model that is already loaded.
_DIRECT_TIMEOUT: Final = 1.0
# Seconds for the loader to report why the backend ended.
_CAUSE_TIMEOUT: Final = 0.5
_PATH: Final = "/backend.Backend/PredictStream"
# A backend that is being stopped ends its calls with this status, or breaks the connection.
_CANCELLED: Final = "CANCELLED"
# LocalAI's default: this command has no option for it, and backends would take 0 literally.
_TOP_K: Final = 40


@dataclass(frozen=True, slots=True)
class Settings:
    """The model, and how it should answer."""

    model: str
    system: str = ""
    raw: bool = False
    max_tokens: int = 512
    temperature: float = 0.7
    top_p: float = 0.95
    seed: int = -1
    stop: tuple[str, ...] = ()
    timeout: float = 600.0
    stats: bool = False


@dataclass(slots=True)
class Answer:
    """An answer, with its counts and times."""

    parts: list[str] = field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int = 0
    began: float = 0.0
    first: float | None = None
    ended: float = 0.0

    @property
    def text(self) -> str:
        """The whole answer so far."""
        return "".join(self.parts)

    def facts(self) -> dict[str, float | int | None]:
        """Return the numbers for `--stats` and `--json`."""
        first = self.first - self.began if self.first is not None else None
        writing = self.ended - (self.first or self.ended)
        # The first token marks the end of reading the prompt, so it does not count as written.
        speed = (self.tokens - 1) / writing if self.tokens > 1 and writing > 0 else None
        return {
            "prompt_tokens": self.prompt_tokens,
            "tokens": self.tokens,
            "seconds": round(self.ended - self.began, 4),
            "seconds_to_first_token": round(first, 4) if first is not None else None,
            "tokens_per_second": round(speed, 2) if speed is not None else None,
        }


async def answer_once(clients: Clients, out: Output, settings: Settings, prompt: str) -> None:
    """Answer one prompt; `-` reads it from stdin."""
    if prompt == "-":
        prompt = sys.stdin.read()
    if not prompt.strip():
        raise Failure("the prompt is empty", "give it in quotes", exit_code=2, reason="NO_PROMPT")
    messages = [backend_pb2.Message(role="user", content=prompt)]
    if settings.system:
        messages.insert(0, backend_pb2.Message(role="system", content=settings.system))
    await prepare(clients, out, settings)
    await respond(clients, out, settings, request_for(settings, messages, prompt))


async def prepare(clients: Clients, out: Output, settings: Settings) -> None:
    """Load the model if it is not ready, showing the progress."""
    model = await lookup.get(clients, settings.model)
    if model.state != loader_pb2.Model.State.STATE_READY:
        await loading.ensure_loaded(clients, out, messages.bare(model.name), limit=settings.timeout)


def request_for(
    settings: Settings, messages: Sequence[backend_pb2.Message], prompt: str
) -> backend_pb2.PredictOptions:
    """Return the request: the conversation through the model's own template, or the raw prompt."""
    request = backend_pb2.PredictOptions(
        Tokens=settings.max_tokens,
        Temperature=settings.temperature,
        TopP=settings.top_p,
        TopK=_TOP_K,
        Seed=settings.seed,
        StopPrompts=settings.stop,
    )
    if settings.raw:
        request.Prompt = prompt
    else:
        request.UseTokenizerTemplate = True
        request.Messages.extend(messages)
    return request


async def respond(
    clients: Clients,
    out: Output,
    settings: Settings,
    request: backend_pb2.PredictOptions,
) -> Answer:
    """Write the answer as it arrives, and return it."""
    answer = Answer(began=time.monotonic())
    try:
        async for piece in _pieces(clients, settings, request, answer):
            if out.as_json:
                out.emit({"type": "chunk", "text": piece})
            else:
                sys.stdout.write(text.printable(piece) if out.stdout.is_terminal else piece)
                sys.stdout.flush()
    finally:
        if not out.as_json and answer.parts and not answer.text.endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()
    if out.as_json:
        model = messages.bare(settings.model)
        out.emit({"type": "done", "model": model, "text": answer.text, **answer.facts()})
    elif settings.stats:
        out.note(summary(answer), "dim")
    return answer


def summary(answer: Answer) -> str:
    """Return one line about an answer's size and speed."""
    facts = answer.facts()
    parts = [f"{answer.tokens} tokens in {text.duration(facts['seconds'] or 0)}"]
    if facts["tokens_per_second"]:
        parts.append(f"{facts['tokens_per_second']:.1f} tokens/s")
    if facts["seconds_to_first_token"] is not None:
        parts.append(f"first after {text.duration(facts['seconds_to_first_token'])}")
    if answer.prompt_tokens:
        parts.append(f"prompt {answer.prompt_tokens} tokens")
    return " · ".join(parts)


async def _pieces(
    clients: Clients,
    settings: Settings,
    request: backend_pb2.PredictOptions,
    answer: Answer,
) -> AsyncIterator[str]:
    """Yield the answer's text as it arrives, recording counts and times in `answer`."""
    # A backend may split its bytes anywhere, even within a character.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    try:
        async with aclosing(_replies(clients, settings, request)) as stream:
            async for reply in stream:
                # Counts grow from reply to reply; some backends send them with the last one only.
                answer.tokens = reply.tokens or answer.tokens
                answer.prompt_tokens = reply.prompt_tokens or answer.prompt_tokens
                piece = decoder.decode(_bytes(reply))
                if piece:
                    if answer.first is None:
                        answer.first = time.monotonic()
                    answer.parts.append(piece)
                    yield piece
            if rest := decoder.decode(b"", final=True):
                answer.parts.append(rest)
                yield rest
    finally:
        answer.ended = time.monotonic()


async def _replies(
    clients: Clients, settings: Settings, request: backend_pb2.PredictOptions
) -> AsyncGenerator[backend_pb2.Reply, None]:
    """Yield the model's replies; the lease lasts for this answer only, since a chat may pause for long."""
    async with clients.model(messages.bare(settings.model)) as model:
        # If there is no direct address, the call itself fails with the reason.
        direct = await model.ready(_DIRECT_TIMEOUT)
        began, status = time.monotonic(), "CANCELLED"
        try:
            async with aclosing(
                clients.stream("loader", model.PredictStream, request, timeout=settings.timeout)
            ) as replies:
                async for reply in replies:
                    yield reply
            status = "OK"
        except (Lost, Unreachable, UnknownRemoteError) as error:
            status = error.code if isinstance(error, UnknownRemoteError) else "UNAVAILABLE"
            if isinstance(error, UnknownRemoteError) and error.code != _CANCELLED:
                raise
            if (cause := await model.cause(_CAUSE_TIMEOUT)) is None:
                raise
            raise from_rpc_error(cause) from error
        finally:
            if direct:  # no service has seen this call
                await clients.observe(_PATH, status, time.monotonic() - began)


def _bytes(reply: backend_pb2.Reply) -> bytes:
    if reply.message or not reply.chat_deltas:
        return reply.message
    return "".join(delta.content for delta in reply.chat_deltas).encode()
