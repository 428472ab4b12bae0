"""The services that a server serves, and the options that every server has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import grpc
from grpc import aio

from .call_records import CallAccounts, CallObserver


@dataclass(frozen=True, slots=True)
class Mount:
    """A gRPC service: its full name (from the descriptor), and the generated function that adds it."""

    service: str
    add: Callable[[aio.Server], None]


@dataclass(frozen=True, slots=True)
class GenericMount:
    """Services without generated code: their full names, and their handler."""

    names: tuple[str, ...]
    handler: grpc.GenericRpcHandler


@dataclass(frozen=True, slots=True)
class AccountingMount:
    """Like a GenericMount, for a service that must be fast: its calls have no interceptors.

    `make` is called with the accounts, and returns the handler. The handler itself records its calls,
    turns errors into statuses, and refuses messages that are too large: the server accepts up to
    OVERSIZE times `max_message_size`, so that the handler can explain the refusal.
    """

    names: tuple[str, ...]
    make: Callable[[CallAccounts], grpc.GenericRpcHandler]


OVERSIZE: Final = 4
"""Limits the memory; beyond it, gRPC itself refuses the message."""


_WINDOW: Final = 512 * 1024
"""Bytes that a client may send ahead of its handler, on each stream."""


@dataclass(frozen=True, slots=True)
class Observe:
    """Not a service: an observer of finished calls."""

    observer: CallObserver


AnyMount: TypeAlias = Mount | GenericMount | AccountingMount | Observe


def server_options(max_message_size: int, *, oversize: int = 1) -> list[tuple[str, Any]]:
    """Return the options of a server."""
    return [
        # gRPC's sizes have 31 bits.
        ("grpc.max_receive_message_length", min(max_message_size * oversize, 2**31 - 1)),
        ("grpc.max_send_message_length", max_message_size),
        # On by default; then two servers can silently share a port, and each gets half of the calls.
        ("grpc.so_reuseport", 0),
        # A client whose machine is gone holds its lease until TCP detects it, after about 15 minutes;
        # a ping after 60 s of silence, unanswered for 20 s, ends it much earlier than the idle
        # watchdog, at no measurable cost.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        # By default gRPC closes connections with more than one ping per 5 minutes, as an attack
        # ("too_many_pings"). Our channels ping every 30 s; service meshes use 10 s.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        # Otherwise our own pings stop after two on a silent stream, where they matter.
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.keepalive_permit_without_calls", 1),
        # By default gRPC's windows grow with the connection's bandwidth: with 16 clients whose handlers
        # did not read, to 90 to 220 MiB. Fixed, a client can be at most this far ahead of its handler;
        # calls with 1 MiB are not slower with 512 KiB, but with less.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _WINDOW),
        ("grpc.http2.max_frame_size", _WINDOW),
        # The source of the channelz service.
        ("grpc.enable_channelz", 1),
    ]
