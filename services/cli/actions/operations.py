"""The gallery's long-running operations: listing, following, cancelling."""

from __future__ import annotations

import time
from typing import Final

from google.longrunning import operations_pb2

from services.cli.client.clients import Clients
from services.cli.display import messages, text, views
from services.cli.display.output import Column, Output
from services.cli.failures import Failure
from services.cli.tracking import operation_progress

_PAGE: Final = 100
_PHASE_STYLES: Final = {"done": "green", "failed": "red", "cancelled": "yellow"}


async def list_all(clients: Clients, out: Output) -> None:
    """List the gallery's operations, newest first."""
    shown: list[views.Operation] = []
    token = ""
    while True:
        answer = await clients.call(
            "gallery",
            clients.operations.ListOperations,
            operations_pb2.ListOperationsRequest(
                name="operations", page_size=_PAGE, page_token=token
            ),
        )
        shown += [messages.operation(operation) for operation in answer.operations]
        token = answer.next_page_token
        if not token:
            break
    shown.sort(key=lambda view: view["create_time"] or "", reverse=True)
    if out.as_json:
        out.emit({"operations": shown})
        return
    if not shown:
        out.note("no operations: `corral install` starts one")
        return
    out.table(
        [
            Column("ID"),
            Column("WHAT"),
            Column("MODEL"),
            Column("PHASE"),
            Column("PROGRESS", right=True),
            Column("BEGAN", right=True),
            Column("NOTE", flexible=True),
        ],
        [
            (
                (view["name"], "bold"),
                view["kind"].replace("_", " "),
                view["target"],
                (view["phase"], _PHASE_STYLES.get(view["phase"], "cyan")),
                f"{view['percent']:.0f}%" if view["bytes_total"] else "",
                _ago(view["create_time"]),
                view["error"]["message"] if view["error"] else view["message"],
            )
            for view in shown
        ],
    )


async def watch(clients: Clients, out: Output, identifier: str) -> None:
    """Follow an operation to its end; fails if the operation fails."""
    operation = await _get(clients, identifier)
    ended = await operation_progress.to_the_end(
        clients, out, operation, messages.bare(operation.name)
    )
    view = messages.operation(ended)
    if out.as_json:
        out.emit({"type": "ended", "operation": view})
    operation_progress.check(ended)
    if not out.as_json:
        out.line(f"{view['kind'].replace('_', ' ')} {view['target']}: {view['phase']}")


async def cancel(clients: Clients, out: Output, identifier: str) -> None:
    """Cancel an operation and show how it ended."""
    operation = await _get(clients, identifier)
    if not operation.done:
        try:
            operation = await operation_progress.cancel(clients, operation.name)
        except TimeoutError:
            raise Failure(
                f"the operation did not stop within {operation_progress.CANCEL_TIMEOUT:.0f} s",
                f"it may still stop: see `corral operations watch {identifier}`",
                reason="DEADLINE_EXCEEDED",
            ) from None
    view = messages.operation(operation)
    if out.as_json:
        out.emit(view)
    elif view["phase"] == "cancelled":
        out.line(f"cancelled {view['name']}; what was fetched is kept for the next try")
    else:
        out.line(f"{view['name']} had ended already: {view['phase']}")


async def _get(clients: Clients, identifier: str) -> operations_pb2.Operation:
    name = f"operations/{identifier.removeprefix('operations/')}"
    operation: operations_pb2.Operation = await clients.call(
        "gallery",
        clients.operations.GetOperation,
        operations_pb2.GetOperationRequest(name=name),
    )
    return operation


def _ago(moment: str | None) -> str:
    if not moment:
        return ""
    return f"{text.span(time.time() - messages.epoch(moment))} ago"
