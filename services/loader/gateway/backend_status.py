"""The status with which a backend ended a call, and the error that the client gets for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

import grpc
from grpc import aio
from grpc.aio._call import Call

from services.common.errors import (
    BackendCrashedError,
    CorralError,
    DeadlineError,
    MessageTooLargeError,
    ServiceUnreachableError,
)
from services.common.tasks import wait_until
from services.loader.instances.instance import Instance

LOST = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})
"""gRPC's status when the connection breaks, or when this side cut the call."""

_GRPCS_OWN = "Internal error from Core"

# This side of the connection only: a backend's own limit reads "SERVER: Received ...".
_TOO_LARGE = re.compile(r"CLIENT: Received message larger than max \((\d+) vs\. (\d+)\)")


class BackendStatus:
    """The status with which the backend ended a call with streamed requests.

    When a backend ends a call while messages to it are on their way, grpc.aio puts an INTERNAL of its
    own in place of the backend's status, before or after that arrives. So each change is recorded.
    """

    __slots__ = ("backends",)

    def __init__(self, call: Any) -> None:
        """Follow the call."""
        self.backends: aio.AioRpcError | None = None
        call.add_done_callback(self._changed)

    def _changed(self, call: Any) -> None:
        code, details = _now(call.code()), _now(call.details())
        if code is not grpc.StatusCode.INTERNAL or details != _GRPCS_OWN:
            initial, trailing = _now(call.initial_metadata()), _now(call.trailing_metadata())
            self.backends = aio.AioRpcError(code, initial, trailing, details)

    async def settled(self, error: BaseException, timeout: float) -> BaseException:
        """Return the error with the backend's status, which may come a moment after gRPC's own."""
        if code(error) is not grpc.StatusCode.INTERNAL or said(error) != _GRPCS_OWN:
            return error
        with suppress(DeadlineError):
            await wait_until(lambda: self.backends is not None, timeout=timeout, what="a status")
        return self.backends or error


def canceller(kind: str, call: Any) -> Callable[[], object]:
    """Return the function that cancels a call to a backend.

    A unary call's own `cancel` also cancels the task that gRPC waits in, which then never frees the request
    (grpcio 1.85: 4 MiB of it were lost with every tenth call that was cancelled). The base class only cancels
    in gRPC's core, and the task ends with the call.
    """
    return partial(Call.cancel, call) if kind == "unary_unary" else call.cancel


def code(error: BaseException) -> grpc.StatusCode | None:
    """Return the status code; None for an error that is not a gRPC status."""
    return error.code() if isinstance(error, aio.AioRpcError) else None


def said(error: BaseException) -> str:
    """Return the text of the status."""
    return (isinstance(error, aio.AioRpcError) and error.details()) or "it does not answer"


def too_large(error: BaseException, limit: int) -> MessageTooLargeError | None:
    """Return the error for a response that gRPC rejected for being larger than `limit`."""
    if code(error) is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        return None
    found = _TOO_LARGE.search(said(error))
    # A different limit belongs to a hop behind the backend.
    if found is None or int(found[2]) != limit:
        return None
    return MessageTooLargeError.of("response", int(found[1]), limit)


def has_no_model(error: BaseException) -> bool:
    """Whether the error is the contract's for a missing model; older backends send UNKNOWN."""
    return (
        code(error) in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNKNOWN)
        and "model not loaded" in said(error).lower()
    )


def unreachable(instance: Instance, error: BaseException) -> CorralError:
    """Return the error for an external backend that does not answer."""
    return ServiceUnreachableError(
        f"the backend at {instance.address} cannot be reached: {said(error)}",
        metadata={"model": instance.model, "backend": instance.backend.name},
    )


def restarted(instance: Instance) -> CorralError:
    """Return the error for an external backend that restarted without the model."""
    return BackendCrashedError(
        f"the backend at {instance.address} was restarted and has lost model {instance.model!r}; the"
        " next call loads it again",
        metadata={"model": instance.model, "backend": instance.backend.name},
    )


def _now(answer: Coroutine[Any, Any, Any]) -> Any:
    """Return a result that is already there: an ended call's status has only awaitable parts."""
    try:
        answer.send(None)
    except StopIteration as known:
        return known.value
    answer.close()
    return None
