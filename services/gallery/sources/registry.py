"""Where files come from: each scheme turns a URI into an address to fetch, or a file to copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

from services.common.errors import DownloadError, UnsupportedSourceError
from services.gallery.threads import run_to_completion

from .http import HttpClient, redact


@dataclass(frozen=True, slots=True)
class Remote:
    """Bytes behind an HTTP address."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    """Goes to that host only: a redirect elsewhere loses it."""
    size: int = 0
    """0 while unknown."""
    sha256: str = ""
    """Of what the address answers with, as far as the source says so."""
    member: str = ""
    """The wanted file's path inside the zip file at the address; empty if the answer is the file."""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file on this machine."""

    path: Path
    size: int


Located: TypeAlias = Remote | LocalFile


class Source(Protocol):
    """One way to name files."""

    @property
    def form(self) -> str:
        """How its URIs look, for people."""

    def claims(self, uri: str) -> bool:
        """Say whether this is one of its URIs."""

    async def locate(self, uri: str) -> Located:
        """Find a file.

        Raises SourceNotFoundError, AccessDeniedError, UnsupportedSourceError (a malformed URI), or
        DownloadError for what may pass.
        """


class SourceRegistry:
    """All of them; the first that claims a URI has it."""

    def __init__(self, sources: Sequence[Source], http: HttpClient) -> None:
        """Take the sources in order."""
        self._sources = tuple(sources)
        self._http = http

    async def locate(self, uri: str) -> Located:
        """Find a file; raises as Source.locate."""
        return await self._source(uri).locate(uri)

    def check(self, uri: str) -> None:
        """Raise UnsupportedSourceError for a URI that no source claims."""
        self._source(uri)

    async def read(self, uri: str, *, limit: int) -> str:
        """Return a small text; raises as Source.locate."""
        located = await self.locate(uri)
        if isinstance(located, LocalFile):
            if located.size > limit:
                raise DownloadError(f"{uri}: larger than {limit} bytes")
            return await run_to_completion(_read_text, located.path)
        text, _, _ = await self._http.text(located.url, headers=located.headers, limit=limit)
        return text

    def _source(self, uri: str) -> Source:
        for source in self._sources:
            if source.claims(uri):
                return source
        forms = ", ".join(source.form for source in self._sources)
        raise UnsupportedSourceError(
            f"{redact(uri)!r}: no source for such a URI; known are {forms}"
        )


def scheme(uri: str) -> str:
    """Return what stands before the first colon, in lower case."""
    return uri.partition(":")[0].lower() if ":" in uri else ""


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DownloadError(f"{path}: cannot be read: {error.strerror}") from error
