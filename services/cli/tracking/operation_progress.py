"""Following an operation of the gallery to its end, also across restarts of the gallery."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Final, TypeVar

from google.longrunning import operations_pb2
from google.protobuf.message import Message

from corral.gallery.v1 import gallery_pb2
from services.cli.client.clients import RECONNECT_TIMEOUT, Clients
from services.cli.display import messages
from services.cli.display.output import Output
from services.cli.display.progress import transfer
from services.cli.failures import Failure, Lost, Unreachable, explain
from services.common.backoff import Backoff
from services.common.errors import ShuttingDownError
from services.common.rpc.status import from_status

_Result = TypeVar("_Result", bound=Message)
_BACKOFF: Final = Backoff(initial=0.1, factor=2, maximum=2, jitter=0.2)
# How long a command waits for a cancelled operation to stop.
CANCEL_TIMEOUT: Final = 10.0


async def to_the_end(
    clients: Clients, out: Output, operation: operations_pb2.Operation, title: str
) -> operations_pb2.Operation:
    """Show an operation's progress, and return the operation when it has ended or failed."""
    last = operation
    with transfer(out, title) as progress:
        progress.update(messages.operation(last))
        if not last.done:
            async for last in _changes(clients, out, operation.name):
                progress.update(messages.operation(last))
    return last


async def cancel(clients: Clients, name: str) -> operations_pb2.Operation:
    """Cancel an operation and return it when it has ended. Raises TimeoutError."""
    async with asyncio.timeout(CANCEL_TIMEOUT):
        await clients.call(
            "gallery",
            clients.operations.CancelOperation,
            operations_pb2.CancelOperationRequest(name=name),
            timeout=CANCEL_TIMEOUT,
        )
        request = gallery_pb2.WatchOperationRequest(name=name)
        async with aclosing(
            clients.stream("gallery", clients.gallery.WatchOperation, request)
        ) as messages:
            async for message in messages:
                if message.operation.done:
                    return message.operation
    raise Failure("the operation's stream ended before the operation did")


def check(operation: operations_pb2.Operation) -> None:
    """Raise the failure of an ended operation, if it failed."""
    if operation.HasField("error"):
        # It has the same details as a failed call, so it gets the same hints.
        raise explain(from_status(operation.error))


def outcome(operation: operations_pb2.Operation, result: _Result) -> _Result:
    """Return `result` filled with an ended operation's response, or raise its failure."""
    check(operation)
    operation.response.Unpack(result)
    return result


async def _changes(
    clients: Clients, out: Output, name: str
) -> AsyncIterator[operations_pb2.Operation]:
    """Yield an operation's states until it has ended; reconnect to a gallery that comes back in time."""
    request = gallery_pb2.WatchOperationRequest(name=name)
    failures, answered = 0, time.monotonic()
    while True:
        try:
            async for message in clients.stream("gallery", clients.gallery.WatchOperation, request):
                failures, answered = 0, time.monotonic()
                yield message.operation
                if message.operation.done:
                    return
        except (Lost, Unreachable, ShuttingDownError) as error:
            if time.monotonic() - answered > RECONNECT_TIMEOUT:
                raise Failure(
                    error.message,
                    f"the operation continues when the gallery is back: `corral operations watch"
                    f" {messages.bare(name)}`",
                    reason=error.reason,
                ) from error
            if failures == 0:
                out.note("the gallery does not answer; waiting for it to come back", "yellow")
        failures += 1
        await asyncio.sleep(_BACKOFF.delay(failures))
