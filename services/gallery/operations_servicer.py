"""`google.longrunning.Operations`: list, get, wait, cancel, delete."""

from __future__ import annotations

from typing import Any, Final

from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf import empty_pb2
from grpc import aio

from services.common.errors import InvalidRequestError
from services.common.names import OPERATIONS
from services.common.paging import paginate

from . import convert
from .operation_filter import parse_filter
from .operations import Operations

SERVICE: Final[str] = operations_pb2.DESCRIPTOR.services_by_name["Operations"].full_name
# Of the client's deadline, what is left for the answer's way back.
_ANSWER_TIME: Final = 0.2
_Context = aio.ServicerContext[Any, Any]


class OperationsServicer(operations_pb2_grpc.OperationsServicer):  # type: ignore[misc]
    """The standard service, over all operations of this one."""

    def __init__(self, operations: Operations, *, wait_timeout: float) -> None:
        """Wait for `wait_timeout` seconds when the client leaves it open."""
        self._operations = operations
        self._wait_timeout = wait_timeout

    async def ListOperations(self, request: Any, context: _Context) -> Any:
        """List operations, the newest first; `filter` may name done, kind, target and phase."""
        if request.name.strip("/") not in ("", OPERATIONS):
            raise InvalidRequestError.of("name", f"{request.name!r} is not {OPERATIONS!r}")
        wanted = parse_filter(request.filter)
        page = paginate(
            [item for item in self._operations.every() if wanted(item)],
            size=request.page_size,
            token=request.page_token,
            key=lambda item: item.order,
            scope=("operations", request.filter),
        )
        return convert.operations(page.items, page.next_token)

    async def GetOperation(self, request: Any, context: _Context) -> Any:
        """Return an operation as it is now."""
        return convert.operation(self._operations.get(request.name))

    async def WaitOperation(self, request: Any, context: _Context) -> Any:
        """Return an operation when it has ended, or as it is when the time is over."""
        timeout = self._wait_timeout
        left = context.time_remaining()
        if request.HasField("timeout"):
            timeout = max(request.timeout.ToMilliseconds() / 1000, 0.0)
        elif left is not None:
            timeout = left
        if left is not None:
            timeout = min(timeout, max(left - _ANSWER_TIME, 0.0))
        return convert.operation(await self._operations.wait(request.name, timeout))

    async def CancelOperation(self, request: Any, context: _Context) -> Any:
        """Ask an operation to stop."""
        await self._operations.cancel(request.name)
        return empty_pb2.Empty()

    async def DeleteOperation(self, request: Any, context: _Context) -> Any:
        """Forget an operation that has ended."""
        await self._operations.delete(request.name)
        return empty_pb2.Empty()
