"""Only temporary errors are retried, and only as far as the policy allows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.common.backoff import Backoff
from services.common.errors import DownloadError, SourceNotFoundError
from services.gallery.download.retry import RetryPolicy, retry
from services.gallery.errors import RefusedError, UnreachableError

POLICY = RetryPolicy(attempts=3, backoff=Backoff(0.0, 1.0, 0.0), longest_wait=1.0)


class Attempts:
    """Work that raises one error after another, and then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.made = 0
        self._errors: Iterator[Exception] = iter(errors)

    async def __call__(self) -> str:
        self.made += 1
        for error in self._errors:
            raise error
        return "done"


async def test_a_temporary_error_is_retried_and_reported() -> None:
    work = Attempts(DownloadError("first"), DownloadError("second"))
    messages: list[str] = []
    assert await retry(work, POLICY, waiting=messages.append) == "done"
    assert work.made == 3
    assert ["first" in messages[0], messages[1], "second" in messages[2]] == [True, "", True]


@pytest.mark.parametrize("error", [RefusedError("no"), SourceNotFoundError("no")])
async def test_other_errors_are_raised_at_once(error: Exception) -> None:
    work = Attempts(error)
    with pytest.raises(type(error)):
        await retry(work, POLICY)
    assert work.made == 1


async def test_the_number_of_attempts_is_limited_unless_bytes_arrive() -> None:
    work = Attempts(*(DownloadError(str(n)) for n in range(5)))
    with pytest.raises(DownloadError, match="2"):
        await retry(work, POLICY)
    work = Attempts(*(DownloadError(str(n)) for n in range(5)))
    assert await retry(work, POLICY, position=lambda: work.made * 2**20) == "done"


async def test_an_unreachable_source_is_retried_only_if_it_is_the_last() -> None:
    work = Attempts(UnreachableError("gone"))
    with pytest.raises(UnreachableError):
        await retry(work, POLICY, alone=False)
    assert await retry(Attempts(UnreachableError("gone")), POLICY, alone=True) == "done"


async def test_a_server_that_asks_for_a_long_delay_is_not_retried() -> None:
    work = Attempts(DownloadError("busy", retry_after=5.0))
    with pytest.raises(DownloadError, match="busy"):
        await retry(work, POLICY)
    assert work.made == 1
