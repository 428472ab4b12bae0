"""`https://` and `http://`, and `github:`, which is short for a raw file's address."""

from __future__ import annotations

from urllib.parse import quote

from services.common.errors import UnsupportedSourceError

from .http import HttpClient, status_error
from .registry import Remote, scheme

_RAW = "https://raw.githubusercontent.com"


class HttpsSource:
    """A plain address."""

    form = "https://host/path"

    def __init__(self, http: HttpClient) -> None:
        """Ask through this client."""
        self._http = http

    def claims(self, uri: str) -> bool:
        """Take http and https."""
        return scheme(uri) in ("http", "https")

    async def locate(self, uri: str) -> Remote:
        """Ask for the size; the address stays the one given, for what it redirects to may expire."""
        response = await self._http.head(uri)
        if response.status_code in (404, 410):
            raise status_error(response, uri)
        if not response.is_success:
            # Many servers sign or allow a GET only; whether this one refuses, the GET will show.
            return Remote(uri)
        length = response.headers.get("Content-Length", "")
        return Remote(uri, size=int(length) if length.isdigit() else 0)


class GithubSource:
    """`github:owner/repo/path[@branch]`, as galleries name their base configurations."""

    form = "github:owner/repo/path[@branch]"

    def claims(self, uri: str) -> bool:
        """Take github: and github://."""
        return scheme(uri) == "github"

    async def locate(self, uri: str) -> Remote:
        """Return the raw file's address."""
        return Remote(raw_address(uri))


def raw_address(uri: str) -> str:
    """Return the address of a `github:` URI; the branch is `main` unless it is named."""
    path, _, branch = uri.partition(":")[2].removeprefix("//").partition("@")
    parts = [part for part in path.split("/") if part]
    if len(parts) < 3 or ".." in parts:
        raise UnsupportedSourceError(f"{uri!r} is not of the form {GithubSource.form}")
    owner, repo, *rest = (quote(part) for part in parts)
    return f"{_RAW}/{owner}/{repo}/{quote(branch or 'main')}/{'/'.join(rest)}"
