"""What a service hands to the server builder, and the options that every server has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import grpc
from grpc import aio

from .call_records import CallAccounts, CallObserver


@dataclass(frozen=True, slots=True)
class Mount:
    """One gRPC service: its full name (from the descriptor), and the generated function that adds it."""

    service: str
    add: Callable[[aio.Server], None]


@dataclass(frozen=True, slots=True)
class GenericMount:
    """Services without generated code: their full names, and the handler that answers for them."""

    names: tuple[str, ...]
    handler: grpc.GenericRpcHandler


@dataclass(frozen=True, slots=True)
class AccountingMount:
    """Like a GenericMount, of a service that must be quick: no interceptor is put around its calls.

    `make` is given the accounts, to which the service tells of its calls itself, and returns the
    handler. It answers with an error's status itself too, and refuses messages that are too large: the
    server lets through up to OVERSIZE times `max_message_size`, so that it can say which and why.
    """

    names: tuple[str, ...]
    make: Callable[[CallAccounts], grpc.GenericRpcHandler]


OVERSIZE: Final = 4
"""A bound all the same, for the memory's sake; beyond it the refusal is gRPC's, in gRPC's words."""


_WINDOW: Final = 512 * 1024
"""Bytes that a client may send ahead of its handler, on each stream."""


@dataclass(frozen=True, slots=True)
class Observe:
    """Not a service: somebody who is told of each call that ended."""

    observer: CallObserver


AnyMount: TypeAlias = Mount | GenericMount | AccountingMount | Observe


def server_options(max_message_size: int, *, oversize: int = 1) -> list[tuple[str, Any]]:
    """Return the options that each of our servers has."""
    return [
        # gRPC's sizes are of 31 bits.
        ("grpc.max_receive_message_length", min(max_message_size * oversize, 2**31 - 1)),
        ("grpc.max_send_message_length", max_message_size),
        # On by default, and then two servers silently share a port and half the calls go astray.
        ("grpc.so_reuseport", 0),
        # A client whose machine vanished holds its lease until TCP notices, after about 15 minutes;
        # a ping after 60 s of silence, unanswered for 20 s, ends it well within the idle watchdog's
        # shortest sensible time, and costs nothing that shows.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        # gRPC takes a client's pings for an attack if they come more often than each 5 minutes, and
        # hangs up with "too_many_pings". Our channels ping each 30 s; meshes use 10 s.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        # Else our own pings end after two on a stream that is silent, which is where they matter.
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.keepalive_permit_without_calls", 1),
        # gRPC's own windows grow with what the connection can carry: 16 clients whose messages a handler
        # does not take were 90 to 220 MiB. Fixed, a stream is at most this ahead of its handler; calls
        # with a MiB cost the same at 512 KiB, and more below.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _WINDOW),
        ("grpc.http2.max_frame_size", _WINDOW),
        # What the channelz service reports from.
        ("grpc.enable_channelz", 1),
    ]
