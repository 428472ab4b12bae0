"""The data plane: passes each call of `backend.Backend` to the backend that holds its model.

Nothing is parsed or changed on the way: bytes in, bytes out, for all four kinds of RPC, with metadata,
deadline, cancellation, trailers and status details both ways. The gateway adds three things: it
loads the model if needed, the call holds a lease to its end, and a backend's death is reported with
its cause.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
from grpc import aio

from services.common.rpc.call_records import CallAccounts
from services.common.rpc.mounts import AccountingMount
from services.loader.loader import Loader

from .call import Passage
from .methods import SERVICE, Method, methods, unknown

Behaviour = Callable[[Any, aio.ServicerContext[Any, Any]], Any]


class Gateway:
    """Serves `backend.Backend` on the loader's port."""

    def __init__(self, loader: Loader, *, max_message_size: int, cause_timeout: float) -> None:
        """`max_message_size` in bytes, both ways.

        `cause_timeout`: seconds that a call whose connection broke waits for the cause.
        """
        self._loader = loader
        self._max_message_size = max_message_size
        self._cause_timeout = cause_timeout

    def mount(self) -> AccountingMount:
        """Return the mount for the server builder."""
        return AccountingMount((SERVICE.full_name,), lambda accounts: Handlers(self, accounts))

    def passage(self, method: Method, context: aio.ServicerContext[Any, Any]) -> Passage:
        """Return the passage of a new call."""
        return Passage(
            method,
            context,
            self._loader,
            max_message_size=self._max_message_size,
            cause_timeout=self._cause_timeout,
        )


class Handlers(grpc.GenericRpcHandler):
    """The gRPC side: one handler for each method.

    They are coroutines for streams too: an asynchronous generator would cost time at every message.
    """

    def __init__(self, gateway: Gateway, accounts: CallAccounts) -> None:
        """Handle calls with the gateway's passages, and report each ended call to `accounts`."""
        self._gateway = gateway
        self._accounts = accounts
        self._prefix = f"/{SERVICE.full_name}/"
        self._handlers = {path: self._handler(method) for path, method in methods().items()}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the handler for a call; None if the call is not for this service."""
        path = handler_call_details.method
        if handler := self._handlers.get(path):
            return handler
        return self._handler(unknown(path)) if path.startswith(self._prefix) else None

    def _handler(self, method: Method) -> Any:
        one = method.kind.endswith("unary")
        make = getattr(grpc, f"{method.kind}_rpc_method_handler")
        return make(self._one(method) if one else self._many(method))

    def _one(self, method: Method) -> Behaviour:
        start, ended = self._gateway.passage, self._accounts.ended
        streamed = method.kind.startswith("stream")

        async def behaviour(request: Any, context: aio.ServicerContext[Any, Any]) -> bytes:
            passage = start(method, context)
            try:
                call = await passage.begin(None if streamed else request)
                return await passage.pass_back_one(call)
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - `fail` ends the call
                await passage.fail(error)
                return b""  # gRPC has the status already
            finally:
                ended(passage.end())

        return behaviour

    def _many(self, method: Method) -> Behaviour:
        start, ended = self._gateway.passage, self._accounts.ended
        streamed = method.kind.startswith("stream")

        async def behaviour(request: Any, context: aio.ServicerContext[Any, Any]) -> None:
            passage = start(method, context)
            try:
                call = await passage.begin(None if streamed else request)
                await passage.pass_back_all(call)
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - `fail` ends the call
                await passage.fail(error)
            finally:
                ended(passage.end())

        return behaviour
