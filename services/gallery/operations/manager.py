"""Runs operations in parallel, but one at a time for each target; they are journalled first."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from services.common.errors import (
    ConflictError,
    CorralError,
    InternalError,
    OperationCancelledError,
    OperationNotFoundError,
    QueueFullError,
    Resource,
    ShuttingDownError,
)
from services.common.names import OPERATIONS, resource_id, resource_name
from services.common.process.logging import get_logger
from services.common.tasks import Background

from .journal import Journal
from .operation import Kind, Operation, RequestT
from .progress import Phase, Progress

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class OperationLimits:
    """How many operations may run and wait, and how long ended ones stay listed."""

    parallel: int
    pending: int
    keep: int
    keep_for: float
    watch_interval: float
    save_interval: float


class OperationManager:
    """Submits, runs, lists, watches and cancels operations."""

    def __init__(
        self,
        journal: Journal,
        kinds: Iterable[Kind[Any, Any]],
        limits: OperationLimits,
        *,
        stopping: asyncio.Event,
        idle: Callable[[], None] = lambda: None,
    ) -> None:
        """`kinds` are the kinds of operations that can be submitted or resumed.

        `stopping` ends waits and watches; `idle` is called when no operation runs or waits.
        """
        self._journal = journal
        self.kinds = {kind.name: kind for kind in kinds}
        self._limits = limits
        self._stopping = stopping
        self._idle = idle
        self._operations: dict[str, Operation] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._background = Background()
        self._queues: dict[str, asyncio.Lock] = {}
        self._waiting: Counter[str] = Counter()
        self._slots = asyncio.Semaphore(limits.parallel)
        self._submitting = asyncio.Lock()
        self._saved: dict[str, float] = {}

    async def start(self) -> None:
        """Read the journal, and resume unfinished operations in their old order."""
        for record in await self._journal.open():
            try:
                operation = Operation.from_record(record, self.kinds)
            except (KeyError, ValueError, TypeError) as error:
                _log.error("skipped an invalid record of the journal", error=str(error))
                continue
            self._operations[operation.name] = operation
        await self._prune()
        for operation in list(self._operations.values()):
            if operation.done:
                continue
            if operation.cancel_requested:
                await self._end(operation, error=_cancelled(operation))
                continue
            _log.info("resumed", operation=operation.name, target=operation.target)
            self._begin(operation)
        self._when_idle()

    async def close(self) -> None:
        """Stop running operations; the next start resumes them."""
        await self._background.close()
        await self._journal.close()

    async def submit(
        self, kind: Kind[RequestT, Any], target: str, request: RequestT, request_id: str = ""
    ) -> Operation:
        """Queue an operation and return it once it is journalled; a known request id returns the old one."""
        async with self._submitting:
            if (known := self.seen(request_id)) is not None:
                return known
            pending = sum(not operation.done for operation in self._operations.values())
            if pending >= self._limits.pending:
                raise QueueFullError(
                    f"{pending} operations wait or run, the maximum (maximum_pending)",
                    metadata={"pending": str(pending)},
                    retry_after=self._limits.save_interval,
                )
            operation = Operation(
                name=resource_name(OPERATIONS, str(uuid.uuid4())),
                kind=kind,
                target=target,
                request=request,
                request_id=request_id,
            )
            await self._journal.put(operation.to_record())
            self._operations[operation.name] = operation
            self._begin(operation)
            return operation

    def seen(self, request_id: str) -> Operation | None:
        """Return the operation with a request id, if any."""
        if not request_id:
            return None
        every = self._operations.values()
        return next((one for one in every if one.request_id == request_id), None)

    def get(self, name: str) -> Operation:
        """Return an operation by its name, or raise OperationNotFoundError."""
        full = resource_name(OPERATIONS, resource_id(OPERATIONS, name))
        if (operation := self._operations.get(full)) is None:
            raise OperationNotFoundError(
                f"there is no operation {name!r}; ended ones are removed after a while",
                resource=Resource("operation", full),
            )
        return operation

    def every(self) -> Sequence[Operation]:
        """Return all operations, the newest first."""
        return sorted(self._operations.values(), key=lambda operation: operation.order)

    async def wait(self, name: str, timeout: float) -> Operation:
        """Return the operation when it has ended, or as it is after `timeout` seconds."""
        operation = self.get(name)
        await self._first(operation.ended, timeout=timeout)
        return operation

    async def watch(self, name: str) -> AsyncIterator[Operation]:
        """Yield the operation now, after changes (combined if they are frequent), and when it has ended.

        Raises ShuttingDownError when the service stops; watch again after its next start.
        """
        operation = self.get(name)
        while True:
            change = operation.next_change()
            last = operation.done
            yield operation
            if last:
                return
            # The pause ends with the operation, so that its end is sent at once.
            await self._first(operation.ended, timeout=self._limits.watch_interval)
            if not operation.done:
                await self._first(change, timeout=None)
            if self._stopping.is_set() and not operation.done:
                raise ShuttingDownError(
                    f"the gallery is stopping; {operation.name} continues after its next start",
                    retry_after=self._limits.save_interval,
                )

    async def cancel(self, name: str) -> None:
        """Ask an operation to stop; no effect on one that has ended."""
        operation = self.get(name)
        if operation.ending or operation.cancel_requested:
            return
        operation.cancel_requested = operation.progress.cancel_requested = True
        operation.touch()
        # Recorded first: after a crash in between, it must not be resumed.
        await self._journal.put(operation.to_record())
        # It may have ended in the meantime.
        if (task := self._running(operation)) is not None:
            task.cancel()

    async def delete(self, name: str) -> None:
        """Remove an operation that has ended."""
        operation = self.get(name)
        if not operation.done:
            raise ConflictError(f"{operation.name} is still running; cancel it first")
        await self._forget([operation.name])

    async def _first(self, event: asyncio.Event, *, timeout: float | None) -> None:
        """Wait for the event, the stop of the service, or the timeout."""
        waits = {asyncio.ensure_future(one.wait()) for one in (event, self._stopping)}
        try:
            await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _begin(self, operation: Operation) -> None:
        def changed() -> None:
            operation.touch()
            self._save_soon(operation)

        operation.progress = Progress(changed, percent=operation.progress.percent)
        operation.start_time = None
        task = self._background.spawn(self._run(operation), name=operation.name)
        self._tasks[operation.name] = task

    async def _run(self, operation: Operation) -> None:
        try:
            async with self._turn(operation.target):
                await self._work(operation)
        except asyncio.CancelledError:
            # Cancelled while queued; without a request to cancel, the service is stopping.
            if not operation.cancel_requested or operation.ending:
                raise
            await self._end(operation, error=_cancelled(operation))
        await self._prune()
        self._when_idle()

    async def _work(self, operation: Operation) -> None:
        result: object = None
        error: CorralError | None = None
        try:
            async with self._slots:
                operation.start_time = time.time()
                operation.progress.enter(Phase.RESOLVING)
                await self._save(operation)
                result = await operation.kind.run(operation.request, operation.progress)
        except asyncio.CancelledError:
            if not operation.cancel_requested:
                raise
            error = _cancelled(operation)
        except CorralError as failure:
            error = failure
        except Exception as failure:  # noqa: BLE001 - a bug must end the operation, not hang it
            _log.error(
                "an operation failed unexpectedly", operation=operation.name, exc_info=failure
            )
            error = InternalError(
                f"internal error; the service's log has the details under {operation.name}"
            )
        await self._end(operation, result=result, error=error)

    async def _end(
        self,
        operation: Operation,
        *,
        result: object = None,
        error: CorralError | None = None,
    ) -> None:
        phase = Phase.DONE
        if error is not None:
            cancelled = isinstance(error, OperationCancelledError)
            phase = Phase.CANCELLED if cancelled else Phase.FAILED
        # Recorded before it is visible: an operation that a client saw end must not run again.
        await self._journal.put(operation.end(phase, result, error))
        self._tasks.pop(operation.name, None)
        self._saved.pop(operation.name, None)
        operation.show_end(phase, result, error)
        _log.info(
            "operation ended",
            operation=operation.name,
            target=operation.target,
            phase=phase.value,
            error=str(error) if error else None,
        )

    def _running(self, operation: Operation) -> asyncio.Task[None] | None:
        return None if operation.ending else self._tasks.get(operation.name)

    @contextlib.asynccontextmanager
    async def _turn(self, target: str) -> AsyncIterator[None]:
        """Wait until all earlier operations on the target have ended."""
        queue = self._queues.setdefault(target, asyncio.Lock())
        self._waiting[target] += 1
        try:
            async with queue:
                yield
        finally:
            self._waiting[target] -= 1
            if not self._waiting[target]:
                del self._waiting[target], self._queues[target]

    def _save_soon(self, operation: Operation) -> None:
        """Record the progress from time to time, so that percent does not start at 0 after a crash."""
        now = time.monotonic()
        if (
            operation.done
            or now - self._saved.get(operation.name, 0.0) < self._limits.save_interval
        ):
            return
        self._saved[operation.name] = now
        self._background.spawn(self._save(operation), name=f"save {operation.name}")

    async def _save(self, operation: Operation) -> None:
        if operation.name in self._operations and not operation.ending:
            await self._journal.put(operation.to_record())

    async def _prune(self) -> None:
        ended = sorted(
            (one for one in self._operations.values() if one.end_time is not None),
            key=lambda one: one.end_time or 0.0,
            reverse=True,
        )
        oldest = time.time() - self._limits.keep_for
        old = [
            one.name
            for position, one in enumerate(ended)
            if position >= self._limits.keep or (one.end_time or 0.0) < oldest
        ]
        if old:
            await self._forget(old)

    async def _forget(self, names: Sequence[str]) -> None:
        for name in names:
            self._operations.pop(name, None)
        await self._journal.remove(names)

    def _when_idle(self) -> None:
        if all(operation.done for operation in self._operations.values()):
            self._idle()


def _cancelled(operation: Operation) -> OperationCancelledError:
    return OperationCancelledError(
        f"{operation.name} was cancelled", resource=Resource("operation", operation.name)
    )
