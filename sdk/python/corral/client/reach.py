"""The channels of both clients: their addresses, their options, and the meaning of failures."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any, Final

import grpc

DEFAULT_LOADER: Final = "127.0.0.1:50051"
"""The loader's default address."""

MAX_MESSAGE_SIZE: Final = 50 * 1024 * 1024
"""Bytes, in both directions: the default limit of the loader and of LocalAI's backends."""

IDLE: Final = 60.0
"""Seconds without a call after which a lease is released. The loader asks for it earlier if other models need the memory."""

PATIENCE: Final = 0.25
"""Seconds for which a blocking call waits for a lease before it goes through the loader: a model that is
loaded is leased in milliseconds, and one that is not takes longer than a call should wait here."""

PATIENCE_SHARE: Final = 0.25
"""Which part of a call's timeout that may take at most."""

CONNECT_TIMEOUT: Final = 2.0
"""Seconds for connecting to a backend on the same machine."""

PAUSE: Final = 60.0
"""The longest time, in seconds, until a lease is requested again after a refusal or a useless one."""

Metadata = tuple[tuple[str, str | bytes], ...]

_NEVER_SENT: Final = ("failed to connect to all addresses", "connections to all backends failing")
"""gRPC's texts for a call that found no connection. With any other text, the call may have been sent."""

_LOADERS_OWN: Final = frozenset({"LoadModel", "Free"})
"""The loader refuses them on purpose: a client that frees a shared model takes it from all others."""

_LOOKS: Final = frozenset({"Health", "Status", "GetMetrics"})
"""They neither load a model nor keep one."""


def channel_options(max_message_size: int) -> list[tuple[str, Any]]:
    """Return the options of a channel to a loader or to one of its backends."""
    return [
        ("grpc.max_receive_message_length", max_message_size),
        ("grpc.max_send_message_length", max_message_size),
        # gRPC waits a second before its second try to connect; these are processes on this machine.
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.min_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # Addresses of ended backends are used again; connections must not be.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
    ]


def target(address: str) -> str:
    """Return gRPC's name for `unix:/path` or `host:port`."""
    return address if address.startswith("unix:") else f"dns:///{address}"


def is_local(address: str) -> bool:
    """Whether an address means this machine, and means something else on another one."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def reachable(loader: str, address: str) -> bool:
    """Whether an address that the loader gives out means the same here: loopback is each machine's own."""
    return is_local(loader) or not is_local(address)


def goes_direct(path: str) -> bool:
    """Whether a method may go to the backend itself."""
    return path.rpartition("/")[2] not in _LOADERS_OWN


def asks_for_lease(path: str) -> bool:
    """Whether a call of the method is a reason to hold the model."""
    return goes_direct(path) and path.rpartition("/")[2] not in _LOOKS


def to_model(name: str) -> Metadata:
    """Return the metadata that names the model to the loader."""
    if name.isascii() and name.isprintable():
        return (("corral-model", name),)
    return (("corral-model-bin", name.encode()),)


def to_backend(token: str) -> Metadata:
    """Return the metadata that a backend wants."""
    return (("authorization", f"Bearer {token}"),) if token else ()


def joined(metadata: Iterable[tuple[str, str | bytes]], own: Metadata) -> Metadata:
    """Return the caller's metadata with ours, which wins."""
    keys = {key for key, _ in own}
    return (*((key, value) for key, value in metadata if key not in keys), *own)


def never_sent(error: Any) -> bool:
    """Whether a failed call has certainly not reached the other side."""
    return error.code() is grpc.StatusCode.UNAVAILABLE and (error.details() or "").startswith(
        _NEVER_SENT
    )
