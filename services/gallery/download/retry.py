"""Trying again: what may pass is tried until it passes, has failed too often, or would take too long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from services.common.backoff import Backoff
from services.common.errors import DownloadError
from services.gallery.errors import RefusedError, UnreachableError

# Bytes that make an attempt count as one that got somewhere: it is not held against the source.
_ADVANCE: Final = 1024 * 1024
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often to try, and how long to wait in between."""

    attempts: int
    backoff: Backoff
    longest_wait: float


async def retry(
    work: Callable[[], Awaitable[_T]],
    policy: RetryPolicy,
    *,
    alone: bool = True,
    position: Callable[[], int] = lambda: 0,
    waiting: Callable[[str], None] = lambda message: None,
) -> _T:
    """Do `work` until it succeeds; DownloadError is what may pass, all else is raised at once.

    `alone` means that there is nobody else to ask: then even a server that cannot be reached is tried
    again. `position` tells how much is there; `waiting` is told why there is a pause, and `""` after.
    """
    failures = 0
    while True:
        before = position()
        try:
            return await work()
        except RefusedError:
            raise
        except DownloadError as error:
            if isinstance(error, UnreachableError) and not alone:
                raise
            failures = 1 if position() - before >= _ADVANCE else failures + 1
            wait = max(policy.backoff.delay(failures), error.retry_after or 0.0)
            if failures >= policy.attempts or wait > policy.longest_wait:
                raise
            waiting(f"trying again in {wait:.1f} s: {error}")
            await asyncio.sleep(wait)
            waiting("")
