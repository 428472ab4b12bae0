"""Retries downloads that failed with a temporary error."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from services.common.backoff import Backoff
from services.common.errors import DownloadError
from services.gallery.errors import RefusedError, UnreachableError

# An attempt that fetched this many bytes resets the count of failures.
_ADVANCE: Final = 1024 * 1024
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The number of attempts, and the delays between them."""

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
    """Run `work` until it succeeds; only DownloadError is retried, as far as the policy allows.

    `alone` means that there is no other source: then an unreachable server is retried too. `position`
    returns the bytes fetched so far. `waiting` is called with the reason of a delay, and with `""`
    after it.
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
