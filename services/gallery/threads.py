"""Runs blocking work off the event loop; the functions differ in what a cancellation does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def run_to_completion(work: Callable[..., T], *args: object) -> T:
    """Run `work` in a thread; a cancellation takes effect only when it has ended.

    `asyncio.to_thread` is cancelled at once, and its thread keeps writing to a file that its owner has
    closed, or whose descriptor belongs to another file by then.
    """
    future = asyncio.get_running_loop().run_in_executor(None, work, *args)
    cancelled = False
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        future.exception()
        raise asyncio.CancelledError
    return future.result()


async def run_cancellable(work: Callable[[threading.Event], T]) -> T:
    """Run `work` in a thread; when cancelled, set the event passed to it and wait for its end.

    For work that may take minutes, such as the digest of a large file. It MUST check the event often.
    """
    stop = threading.Event()
    running = asyncio.ensure_future(run_to_completion(work, stop))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait({running})
        raise


async def run_detached(work: Callable[[], T], *, name: str) -> T:
    """Run `work` in a thread of its own; when cancelled, return at once and ignore its result.

    For requests through a library that cannot be interrupted: neither the caller nor the end of the
    process should wait for a result that is no longer needed.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: Exception | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result: T | None = None
        failure: Exception | None = None
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - raised again where it is awaited
            failure = error
        # The loop may be closed before the work has ended.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(deliver, result, failure)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await answer
