"""Downloads one address into one file, resumed and verified."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from services.common.errors import DigestMismatchError, DiskFullError, DownloadError
from services.common.process.lean_imports import without
from services.gallery.operations.progress import FileProgress
from services.gallery.sources.http import HttpClient, redact, status_error, transport_error
from services.gallery.sources.registry import Remote
from services.gallery.threads import run_cancellable, run_to_completion

from .staging import Origin, Stage, forget

with without("rich", "click"):
    import httpx

# Each block is one hop to a thread (some 50 us) and about 1 ms of hashing and writing.
_BLOCK: Final = 1024 * 1024
# Data from a slow server is written after this many seconds, so that a crash loses little.
_SOON: Final = 0.1
_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


@dataclass(slots=True)
class _Sink:
    """The file being written, and the digest of its contents."""

    file: IO[bytes]
    digest: Any
    position: int = 0

    def write(self, block: bytes) -> None:
        self.file.write(block)
        self.digest.update(block)
        self.position += len(block)

    def restart(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.digest = hashlib.sha256()
        self.position = 0

    def finish(self) -> None:
        # Otherwise a power cut could leave a complete name with incomplete contents.
        os.fsync(self.file.fileno())


class Transfer:
    """The download of one file from one address; running it again after a failure resumes it."""

    def __init__(
        self,
        http: HttpClient,
        remote: Remote,
        stage: Stage,
        path: Path,
        progress: FileProgress,
        sha256: str,
    ) -> None:
        """Download into `path`, one of the stage's paths; `sha256` may be empty."""
        self._http = http
        self._remote = remote
        self._stage = stage
        self._path = path
        self._progress = progress
        self._sha256 = sha256
        self._spliced = False

    async def run(self) -> str:
        """Download the missing part and return the SHA-256 of the file.

        Raises DigestMismatchError (and removes the file), or DownloadError and similar errors (and
        keeps the partial file). If a resumed file has the wrong digest, it is downloaded once more
        from the start: the parts may be of different editions.
        """
        digest = await self._fetch()
        if self._sha256 and digest != self._sha256 and self._spliced:
            await run_to_completion(forget, self._path)
            digest = await self._fetch()
        if self._sha256 and digest != self._sha256:
            await run_to_completion(forget, self._path)
            raise mismatch(redact(self._remote.url), self._sha256, digest)
        return digest

    async def _fetch(self) -> str:
        with open_disk(self._path) as file:
            sink = await run_cancellable(lambda stop: self._begin(file, stop))
            self._spliced = sink.position > 0
            self._progress.resize(self._remote.size)
            self._progress.at(sink.position)
            if not self._remote.size or sink.position != self._remote.size:
                await self._request(sink)
            await run_to_completion(with_disk_errors(sink.finish))
            return str(sink.digest.hexdigest())

    def _begin(self, file: IO[bytes], stop: threading.Event) -> _Sink:
        """Continue the partial file, if it may be resumed; otherwise start at zero."""
        sink = _Sink(file, hashlib.sha256())
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        origin = self._stage.origin(self._path)
        mine = origin.url == self._remote.url and origin.validator
        if size and (self._sha256 or mine) and (not self._remote.size or size <= self._remote.size):
            while not stop.is_set() and (block := file.read(_BLOCK)):
                sink.digest.update(block)
                sink.position += len(block)
        else:
            sink.restart()
        return sink

    async def _request(self, sink: _Sink) -> None:
        headers = dict(self._remote.headers)
        if sink.position:
            headers["Range"] = f"bytes={sink.position}-"
            origin = self._stage.origin(self._path)
            if origin.url == self._remote.url and origin.validator:
                # If the file has changed meanwhile, the response is the whole new file.
                headers["If-Range"] = origin.validator
        try:
            response = await self._http.send(self._http.request(self._remote.url, headers))
            try:
                await self._receive(response, sink)
            finally:
                await response.aclose()
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise transport_error(error, self._remote.url) from error

    async def _receive(self, response: httpx.Response, sink: _Sink) -> None:
        where = redact(self._remote.url)
        if response.status_code == 416:
            if response.headers.get("Content-Range", "") == f"bytes */{sink.position}":
                return
            await run_to_completion(forget, self._path)
            raise DownloadError(
                f"{where}: the file on the server is shorter than the part that was downloaded"
            )
        if not response.is_success:
            raise status_error(response, self._remote.url)
        total = _total(response)
        if response.status_code != 206:
            # The server does not support ranges, or the file has changed: this is the whole file.
            if sink.position:
                await run_to_completion(sink.restart)
                self._spliced = False
                self._progress.at(0)
        elif not _continues(response, sink.position):
            raise DownloadError(f"{where}: the server sent another range than requested")
        validator = _validator(response)
        await run_to_completion(self._stage.record, self._path, Origin(self._remote.url, validator))
        self._progress.resize(total)
        await self._drain(response, sink)
        expected = total or self._remote.size
        if expected and sink.position != expected:
            raise DownloadError(f"{where}: ended after {sink.position} of {expected} bytes")

    async def _drain(self, response: httpx.Response, sink: _Sink) -> None:
        """Write the body in blocks, early if it arrives slowly, and also when it breaks off."""
        waiting = bytearray()
        written = time.monotonic()

        async def flush() -> None:
            block = bytes(waiting)
            waiting.clear()
            await run_to_completion(with_disk_errors(sink.write), block)
            self._progress.arrived(len(block))

        try:
            # Raw: a body that was compressed against our request would fail on length and digest.
            async for block in response.aiter_raw():
                waiting += block
                if len(waiting) >= _BLOCK or time.monotonic() - written >= _SOON:
                    await flush()
                    written = time.monotonic()
        finally:
            if waiting:
                await flush()


def mismatch(where: str, expected: str, found: str) -> DigestMismatchError:
    """Return the error that names both digests."""
    return DigestMismatchError(
        f"{where}: its SHA-256 is {found}, expected {expected}",
        metadata={"expected_sha256": expected, "found_sha256": found},
    )


def open_disk(path: Path) -> IO[bytes]:
    """Open a file for reading and writing, created if missing; its mode honours the umask."""
    try:
        return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b", 0)
    except OSError as error:
        raise disk_error(error) from error


def disk_error(error: OSError) -> Exception:
    """Return the error for a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(f"{error.filename or 'the disk of the models'}: no space left")
    return DownloadError(f"{error.filename or 'the models folder'}: {error.strerror or error}")


def with_disk_errors(work: Callable[..., Any]) -> Callable[..., Any]:
    """Return `work` with each OSError converted by `disk_error`."""

    def run(*args: Any) -> Any:
        try:
            return work(*args)
        except OSError as error:
            raise disk_error(error) from error

    return run


def _total(response: httpx.Response) -> int:
    """Return the size of the whole file, or 0 if the response lacks it."""
    if response.status_code == 206:
        match = _RANGE.match(response.headers.get("Content-Range", ""))
        return int(match[2]) if match and match[2] != "*" else 0
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else 0


def _continues(response: httpx.Response, position: int) -> bool:
    match = _RANGE.match(response.headers.get("Content-Range", ""))
    return match is not None and int(match[1]) == position


def _validator(response: httpx.Response) -> str:
    etag = str(response.headers.get("ETag", ""))
    if etag and not etag.startswith("W/"):
        return etag
    return str(response.headers.get("Last-Modified", ""))
