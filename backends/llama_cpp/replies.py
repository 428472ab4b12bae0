"""What llama.cpp streams, as Reply messages."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from corral.backend import backend_pb2 as pb

from .stops import Piece


@dataclass
class Usage:
    """Counts and times of one request, as far as they are known; times in milliseconds."""

    tokens: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    """The part of the prompt that the slot had read for an earlier one."""
    prompt_ms: float = 0.0
    generation_ms: float = 0.0

    def update(self, chunk: Mapping[str, Any]) -> None:
        """Update the counts from a chunk."""
        if timings := chunk.get("timings"):
            self.tokens = timings["predicted_n"]
            self.reused_tokens = timings["cache_n"]
            self.prompt_tokens = self.reused_tokens + timings["prompt_n"]
            self.prompt_ms = timings["prompt_ms"]
            self.generation_ms = timings["predicted_ms"]
        if usage := chunk.get("usage"):
            self.tokens = usage["completion_tokens"]
            self.prompt_tokens = usage["prompt_tokens"]

    def reply(self, **fields: Any) -> pb.Reply:
        """A reply that carries the counts so far."""
        return pb.Reply(
            tokens=self.tokens,
            prompt_tokens=self.prompt_tokens,
            timing_prompt_processing=self.prompt_ms,
            timing_token_generation=self.generation_ms,
            **fields,
        )


@dataclass(frozen=True)
class Delta:
    """What one chunk adds to the answer."""

    piece: Piece
    reasoning: str = ""
    tool_calls: tuple[pb.ToolCallDelta, ...] = ()


def delta_of(chunk: Mapping[str, Any]) -> Delta | None:
    """The text, thoughts and tool calls in a chunk; None when it brings none."""
    choices = chunk.get("choices")
    if not choices:
        return None
    choice = choices[0]
    logprobs = tuple((choice.get("logprobs") or {}).get("content") or ())
    if "text" in choice:
        return _present(Delta(Piece(choice["text"], logprobs)))
    delta = choice.get("delta") or {}
    return _present(
        Delta(
            Piece(delta.get("content") or "", logprobs),
            delta.get("reasoning_content") or "",
            tuple(_tool_call(call) for call in delta.get("tool_calls") or ()),
        )
    )


def _present(delta: Delta) -> Delta | None:
    found = delta.piece.text or delta.piece.logprobs or delta.reasoning or delta.tool_calls
    return delta if found else None


def _tool_call(call: Mapping[str, Any]) -> pb.ToolCallDelta:
    function = call.get("function") or {}
    return pb.ToolCallDelta(
        index=call.get("index", 0),
        id=call.get("id") or "",
        name=function.get("name") or "",
        arguments=function.get("arguments") or "",
    )


def encode_logprobs(entries: Iterable[Any]) -> bytes:
    """Log probabilities in OpenAI's chat form; no bytes when there are none."""
    content = list(entries)
    return json.dumps({"content": content}).encode() if content else b""


def reply_of(delta: Delta, usage: Usage, chat: bool) -> pb.Reply:
    """One streamed message."""
    reply = usage.reply(
        message=delta.piece.text.encode(), logprobs=encode_logprobs(delta.piece.logprobs)
    )
    if chat:
        reply.chat_deltas.add(
            content=delta.piece.text,
            reasoning_content=delta.reasoning,
            tool_calls=delta.tool_calls,
        )
    return reply


class Whole:
    """Merges streamed replies into the one that Predict returns."""

    def __init__(self) -> None:
        """No reply has arrived yet."""
        self._message: list[bytes] = []
        self._logprobs: list[Any] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, pb.ToolCallDelta] = {}
        self._chat = False
        self._last = pb.Reply()

    def add(self, reply: pb.Reply) -> None:
        """Append one streamed reply."""
        self._last = reply
        self._message.append(reply.message)
        if reply.logprobs:
            self._logprobs += json.loads(reply.logprobs)["content"]
        for delta in reply.chat_deltas:
            self._chat = True
            self._reasoning.append(delta.reasoning_content)
            for call in delta.tool_calls:
                whole = self._calls.setdefault(call.index, pb.ToolCallDelta(index=call.index))
                whole.id = whole.id or call.id
                whole.name += call.name
                whole.arguments += call.arguments

    def reply(self) -> pb.Reply:
        """The whole answer; chat answers carry one delta with everything in it."""
        message = b"".join(self._message)
        out = pb.Reply()
        out.CopyFrom(self._last)
        out.message = message
        out.logprobs = encode_logprobs(self._logprobs)
        del out.chat_deltas[:]
        if self._chat:
            out.chat_deltas.add(
                content=message.decode(),
                reasoning_content="".join(self._reasoning),
                tool_calls=[self._calls[index] for index in sorted(self._calls)],
            )
        return out
