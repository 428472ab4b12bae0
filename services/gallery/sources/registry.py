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
    """Of the response's body, if the source reports it."""
    member: str = ""
    """The wanted file's path inside the zip file at the address; empty if the answer is the file."""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file on this machine."""

    path: Path
    size: int


Located: TypeAlias = Remote | LocalFile


class Source(Protocol):
    """A scheme of URIs."""

    @property
    def form(self) -> str:
        """The form of its URIs, for messages."""

    def claims(self, uri: str) -> bool:
        """Return whether this is one of its URIs."""

    async def locate(self, uri: str) -> Located:
        """Find a file.

        Raises SourceNotFoundError, AccessDeniedError, UnsupportedSourceError (a malformed URI), or
        DownloadError for what may pass.
        """


class SourceRegistry:
    """All sources, in order of precedence."""

    def __init__(self, sources: Sequence[Source], http: HttpClient) -> None:
        """The first of `sources` that claims a URI is used."""
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
        raise UnsupportedSourceError(f"{redact(uri)!r}: no source has such URIs; known are {forms}")


def scheme(uri: str) -> str:
    """Return the part before the first colon, in lower case."""
    return uri.partition(":")[0].lower() if ":" in uri else ""


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DownloadError(f"{path}: cannot be read: {error.strerror}") from error
