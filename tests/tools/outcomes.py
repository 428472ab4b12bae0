"""All that a client can see of a call, as one value that is comparable between clients."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from corral.backend import backend_pb2 as pb

Metadata = Sequence[tuple[str, str | bytes]]
Step = tuple[Any, ...]

TIMEOUT = 20.0
METHODS = {method.name: method for method in pb.DESCRIPTOR.services_by_name["Backend"].methods}

ADDED = ("corral-", "x-request-id")
"""Prefixes of the keys that a route to a backend may add to the client's metadata."""


@dataclass(frozen=True)
class Outcome:
    """What a client saw of one call."""

    code: grpc.StatusCode
    details: str = ""
    messages: tuple[bytes, ...] = ()
    initial: Metadata = ()
    trailing: Metadata = ()
    added: Metadata = field(default=(), compare=False)
    """Trailing metadata that the route added."""


def outcome(call: Any, messages: Iterable[bytes]) -> Outcome:
    """Return the outcome of a finished call of the sync client."""
    return outcome_of(
        call.code(),
        call.details(),
        messages,
        call.initial_metadata(),
        call.trailing_metadata(),
    )


def outcome_of(code: Any, details: Any, messages: Any, initial: Any, trailing: Any) -> Outcome:
    """Build the outcome from the parts that a client returns."""
    return Outcome(
        code,
        details or "",
        tuple(messages),
        _kept(initial),
        _kept(trailing),
        tuple((key, value) for key, value in trailing or () if key.startswith(ADDED)),
    )


def _kept(metadata: Any) -> Metadata:
    # Order matters only among the values of one key.
    pairs = ((key, value) for key, value in metadata or () if not key.startswith(ADDED))
    return tuple(sorted(pairs, key=lambda pair: pair[0]))


def pairs(metadata: Metadata) -> list[list[str]]:
    """Return metadata in the form of a fake backend's step."""
    return [
        [key, base64.b64encode(value).decode() if isinstance(value, bytes) else value]
        for key, value in metadata
    ]


def steps(*told: Step) -> tuple[tuple[str, str], ...]:
    """Return metadata with the fake backend's steps."""
    return (("fake-steps", json.dumps(told)),)


def joined(messages: Sequence[bytes]) -> bytes:
    """Return one message for the step `split`, which sends each of these."""
    return b"".join(len(message).to_bytes(4, "big") + message for message in messages)


_NUMBERS = itertools.count()


def call_name() -> str:
    """Return a unique name for a call."""
    return f"call-{next(_NUMBERS)}"


def kind_of(name: str) -> str:
    """Return grpcio's name for an RPC's kind; unknown RPCs are streams in both directions."""
    method = METHODS.get(name)
    streams = (method.client_streaming, method.server_streaming) if method else (True, True)
    return "_".join("stream" if one else "unary" for one in streams)


def method_of(channel: Any, name: str, kind: str = "") -> Any:
    """Return the callable of an RPC on raw bytes."""
    return getattr(channel, kind or kind_of(name))(f"/backend.Backend/{name}")
