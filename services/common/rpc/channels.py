"""Channels to other servers, and unary calls on them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, TypeVar

import grpc
from grpc import aio

from services.common.addresses import parse_address, validate_address
from services.common.errors import DeadlineError

from . import status

__all__ = [
    "DEFAULT_MAX_MESSAGE_SIZE",
    "call",
    "channel_options",
    "open_channel",
    "validate_address",
]

# LocalAI's own limit, both ways: a backend may answer with an image or a long embedding.
DEFAULT_MAX_MESSAGE_SIZE: Final = 50 * 1024 * 1024

KEEPALIVE_SECONDS: Final[float] = 30
"""How long a running call may be silent before our own services are pinged."""

FOREIGN_KEEPALIVE_SECONDS: Final = 330
"""The same for servers that are not ours: by default gRPC servers close a connection that pings more
often than every 5 minutes."""

NO_KEEPALIVE: Final = {"grpc.keepalive_time_ms": 2**31 - 1}
"""For processes on this machine whose end is noticed in other ways."""

FOREIGN_KEEPALIVE: Final = {"grpc.keepalive_time_ms": FOREIGN_KEEPALIVE_SECONDS * 1000}

_Response = TypeVar("_Response")
Options = Mapping[str, Any]


def channel_options(
    *,
    max_message_size: int = DEFAULT_MAX_MESSAGE_SIZE,
    retry: Sequence[str] = (),
    extra: Options = MappingProxyType({}),
) -> list[tuple[str, Any]]:
    """Return the options of a channel, each name once; `extra` replaces the defaults.

    gRPC takes the first of two equal names, so a list of defaults with others after it would ignore
    the others.
    """
    options: dict[str, Any] = {
        "grpc.max_receive_message_length": max_message_size,
        "grpc.max_send_message_length": max_message_size,
        # gRPC waits 1 s before its second attempt to connect by default: a server that is ready after
        # 20 ms would be reached after a second. 50 ms is not noticeable, and the maximum of 1 s
        # limits the wait for a server that comes back.
        "grpc.initial_reconnect_backoff_ms": 50,
        "grpc.min_reconnect_backoff_ms": 50,
        "grpc.max_reconnect_backoff_ms": 1000,
        # Detects a peer whose machine is gone; our servers allow a ping every 10 s. No pings without
        # calls: idle channels cost nothing.
        "grpc.keepalive_time_ms": int(KEEPALIVE_SECONDS * 1000),
        "grpc.keepalive_timeout_ms": 10_000,
        "grpc.keepalive_permit_without_calls": 0,
        # By default the pings end after two on a silent stream, which is where they matter.
        "grpc.http2.max_pings_without_data": 0,
        # Ignore proxy variables: these channels lead to our own processes.
        "grpc.enable_http_proxy": 0,
    }
    if retry:
        options |= {"grpc.enable_retries": 1, "grpc.service_config": _service_config(retry)}
    return list({**options, **extra}.items())


def open_channel(
    address: str,
    *,
    max_message_size: int = DEFAULT_MAX_MESSAGE_SIZE,
    retry: Sequence[str] = (),
    extra: Options = MappingProxyType({}),
) -> aio.Channel:
    """Open a channel to `host:port` or `unix:/path`; it connects with the first call.

    `retry` names the idempotent unary methods (`/package.Service/Method`, or `/package.Service/` for
    all of a service) that are retried when the server is UNAVAILABLE.
    """
    target = parse_address(address)
    # An explicit scheme, so that gRPC cannot misread the address.
    name = f"unix:{target.path}" if target.is_unix else f"dns:///{target}"
    return aio.insecure_channel(
        name, options=channel_options(max_message_size=max_message_size, retry=retry, extra=extra)
    )


async def call(
    method: aio.UnaryUnaryMultiCallable[Any, _Response],
    request: Any,
    *,
    timeout: float,
    metadata: Mapping[str, str | bytes] | Sequence[tuple[str, str | bytes]] = (),
    wait_for_ready: bool = False,
) -> _Response:
    """Make a unary call with a deadline; failures are raised as CorralError.

    `timeout` has no default on purpose: it is a setting of the caller's service.
    """
    pairs = tuple(metadata.items()) if isinstance(metadata, Mapping) else tuple(metadata)
    running = method(
        request, timeout=timeout, metadata=aio.Metadata(*pairs), wait_for_ready=wait_for_ready
    )
    try:
        return await running
    except grpc.RpcError as error:
        raise status.from_rpc_error(error) from error
    except asyncio.CancelledError:
        running.cancel()
        raise
    except TimeoutError as error:
        raise DeadlineError(f"no answer within {timeout:g} s") from error


def _service_config(methods: Sequence[str]) -> str:
    names = []
    for method in methods:
        service, _, rpc = method.strip("/").partition("/")
        names.append({"service": service, "method": rpc} if rpc else {"service": service})
    # 4 attempts within about a second: enough for a server that restarts or drops an idle connection,
    # and short enough to report an unreachable server soon.
    policy = {
        "maxAttempts": 4,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return json.dumps({"methodConfig": [{"name": names, "retryPolicy": policy}]})
