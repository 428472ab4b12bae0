"""Downloads a file from the first of its sources that has it."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from services.common.errors import (
    AccessDeniedError,
    CorralError,
    DigestMismatchError,
    DownloadError,
    SourceNotFoundError,
    UnsupportedSourceError,
)
from services.common.process.logging import get_logger
from services.gallery.errors import RefusedError
from services.gallery.index.entry import FileSpec
from services.gallery.operations.progress import FileProgress, Phase
from services.gallery.sources.http import HttpClient, redact
from services.gallery.sources.registry import LocalFile, Located, Remote, SourceRegistry
from services.gallery.threads import run_cancellable, run_to_completion

from .retry import RetryPolicy, retry
from .staging import Stage, forget
from .transfer import Transfer, mismatch, open_disk, with_disk_errors
from .zip_member import extract

_BLOCK: Final = 1024 * 1024
# Errors of one source, after which the next one is tried; any other error ends the operation.
_SOURCE_ERRORS: Final = (
    DigestMismatchError,
    DownloadError,
    SourceNotFoundError,
    AccessDeniedError,
    UnsupportedSourceError,
)
# The error that is reported if several sources fail: the first of these that occurred.
_BY_PRECEDENCE: Final = (
    DigestMismatchError,
    DownloadError,
    AccessDeniedError,
    SourceNotFoundError,
    UnsupportedSourceError,
)
_T = TypeVar("_T")
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DownloadLimits:
    """Retries, and limits for what is taken out of archives."""

    retry_policy: RetryPolicy
    extracted_size: int
    disk_reserve: int


@dataclass(slots=True)
class Candidates:
    """The sources of one file: failed, in use, and not tried yet."""

    spec: FileSpec
    left: list[str] = field(default_factory=list)
    located: Located | None = None
    failures: list[tuple[str, CorralError]] = field(default_factory=list)

    @property
    def uri(self) -> str:
        """The source in use."""
        return self.left[0]

    def fail(self, error: CorralError) -> None:
        """Record the failure of the source in use, and continue with the next one."""
        self.failures.append((self.left.pop(0), error))
        self.located = None
        _log.warning(
            "source failed", file=self.spec.filename, error=str(error), left=len(self.left)
        )

    def verdict(self) -> CorralError:
        """Return one error for all sources, with the failure of each in its message."""
        if len(self.failures) == 1:
            return self.failures[0][1]
        errors = [error for _, error in self.failures]
        first = next(
            (e for kind in _BY_PRECEDENCE for e in errors if isinstance(e, kind)), errors[-1]
        )
        each = "; ".join(f"{redact(uri)}: {error}" for uri, error in self.failures)
        kind = next(kind for kind in _BY_PRECEDENCE if isinstance(first, kind))
        return kind(
            f"{self.spec.filename}: none of {len(errors)} sources has it: {each}",
            metadata=first.metadata,
            retry_after=first.retry_after,
        )


class Downloader:
    """Downloads files into their staging places."""

    def __init__(self, http: HttpClient, sources: SourceRegistry, limits: DownloadLimits) -> None:
        """`sources` locates the files, `http` fetches them."""
        self._http = http
        self._sources = sources
        self._limits = limits

    async def locate(self, candidates: Candidates) -> Located:
        """Return the file's location at the first source that answers, usually with its size."""
        while candidates.located is None:
            if not candidates.left:
                raise self._with_retry_after(candidates.verdict())
            ask = functools.partial(self._sources.locate, candidates.uri)
            try:
                candidates.located = self._checked(await self._retry(ask, candidates), candidates)
            except _SOURCE_ERRORS as error:
                candidates.fail(error)
        return candidates.located

    async def fetch(self, candidates: Candidates, stage: Stage, progress: FileProgress) -> None:
        """Download and verify the file into `stage.whole`; raises one error for all sources."""
        while True:
            located = await self.locate(candidates)
            progress.begin(redact(candidates.uri))
            progress.enter(Phase.DOWNLOADING)
            try:
                await self._from(located, candidates, stage, progress)
            except _SOURCE_ERRORS as error:
                candidates.fail(error)
                continue
            progress.finish()
            return

    async def _from(
        self, located: Located, candidates: Candidates, stage: Stage, progress: FileProgress
    ) -> None:
        sha256 = candidates.spec.sha256
        if isinstance(located, LocalFile):
            found = await self._copy(located, stage, progress)
        elif located.member:
            found = await self._take_out(located, candidates, stage, progress)
        else:
            transfer = Transfer(
                self._http, located, stage, stage.part, progress, sha256 or located.sha256
            )
            found = await self._retry(transfer.run, candidates, progress)
        progress.enter(Phase.VERIFYING)
        if sha256 and found != sha256:
            await run_to_completion(forget, stage.part)
            raise mismatch(redact(candidates.uri), sha256, found)
        await run_to_completion(_complete, stage)

    async def _take_out(
        self, located: Remote, candidates: Candidates, stage: Stage, progress: FileProgress
    ) -> str:
        """Download the archive, extract the one file, and remove the archive."""
        transfer = Transfer(self._http, located, stage, stage.archive, progress, located.sha256)
        await self._retry(transfer.run, candidates, progress)
        progress.enter(Phase.EXTRACTING)

        def work(stop: threading.Event) -> str:
            return extract(
                stage.archive,
                located.member,
                stage.part,
                limit=self._limits.extracted_size,
                reserve=self._limits.disk_reserve,
                stop=stop,
            )

        try:
            found = await run_cancellable(work)
        except _SOURCE_ERRORS:
            await run_to_completion(forget, stage.archive)
            raise
        await run_to_completion(forget, stage.archive)
        return found

    async def _copy(self, located: LocalFile, stage: Stage, progress: FileProgress) -> str:
        progress.resize(located.size)
        progress.at(0)
        loop = asyncio.get_running_loop()

        def arrived(count: int) -> None:
            loop.call_soon_threadsafe(progress.arrived, count)

        return await run_cancellable(lambda stop: _copied(located.path, stage.part, stop, arrived))

    def _with_retry_after(self, error: CorralError) -> CorralError:
        """Add a retry delay to an error that a retry may fix."""
        temporary = isinstance(error, DownloadError) and not isinstance(error, RefusedError)
        if temporary and error.retry_after is None:
            error.retry_after = self._limits.retry_policy.longest_wait
        return error

    def _checked(self, located: Located, candidates: Candidates) -> Located:
        """Return the location; raise DigestMismatchError if the source announces another digest."""
        expected = candidates.spec.sha256
        if (
            isinstance(located, Remote)
            and not located.member
            and expected
            and located.sha256
            and located.sha256 != expected
        ):
            raise mismatch(redact(candidates.uri), expected, located.sha256)
        return located

    async def _retry(
        self,
        work: Callable[[], Awaitable[_T]],
        candidates: Candidates,
        progress: FileProgress | None = None,
    ) -> _T:
        """Retry one source; an unreachable one only if it is the last."""
        alone = len(candidates.left) == 1
        if progress is None:
            return await retry(work, self._limits.retry_policy, alone=alone)
        return await retry(
            work,
            self._limits.retry_policy,
            alone=alone,
            position=lambda: progress.bytes_done,
            waiting=lambda message: progress.enter(Phase.DOWNLOADING, message),
        )


def _copied(
    source: Path, target: Path, stop: threading.Event, arrived: Callable[[int], None]
) -> str:
    digest = hashlib.sha256()
    try:
        opened = source.open("rb", 0)
    except OSError as error:
        raise SourceNotFoundError(f"file://{source}: {error.strerror}") from error
    with opened, open_disk(target) as out:
        out.truncate()
        write = with_disk_errors(out.write)
        while not stop.is_set() and (block := with_disk_errors(opened.read)(_BLOCK)):
            digest.update(block)
            write(block)
            arrived(len(block))
        with_disk_errors(os.fsync)(out.fileno())
    return digest.hexdigest()


def _complete(stage: Stage) -> None:
    os.replace(stage.part, stage.whole)
    forget(stage.part)
