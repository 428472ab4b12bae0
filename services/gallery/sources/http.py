"""The HTTP client, and the errors of its failures."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from importlib import metadata
from urllib.parse import urlsplit, urlunsplit

from services.common.errors import (
    AccessDeniedError,
    CorralError,
    DownloadError,
    InvalidRequestError,
    SourceNotFoundError,
)
from services.common.process.lean_imports import without
from services.gallery.errors import RefusedError, UnreachableError

with without("rich", "click"):
    import httpx

# Downloads run one after another within an operation; this many sockets wait for nothing else.
_LIMITS = httpx.Limits(max_connections=64, max_keepalive_connections=8, keepalive_expiry=15.0)


def redact(uri: str) -> str:
    """Return a URI without what may be secret in it: user, password, query, fragment."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return uri
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class HttpClient:
    """An HTTP client with our timeouts; errors come as CorralError."""

    def __init__(
        self, *, connect_timeout: float, stall_timeout: float, answer_timeout: float
    ) -> None:
        """Open no connection yet. `stall_timeout` is for downloads, `answer_timeout` for short answers."""
        timeout = httpx.Timeout(stall_timeout, connect=connect_timeout)
        self._answer_timeout = httpx.Timeout(answer_timeout, connect=connect_timeout)
        agent = f"corral/{metadata.version('corral')}"
        # httpx drops Authorization when a redirect leads to another host.
        self._client = httpx.AsyncClient(
            timeout=timeout,
            limits=_LIMITS,
            follow_redirects=True,
            headers={"User-Agent": agent, "Accept-Encoding": "identity"},
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    def request(self, url: str, headers: Mapping[str, str]) -> httpx.Request:
        """Build a GET for `send`."""
        try:
            return self._client.build_request("GET", url, headers=dict(headers))
        except (httpx.InvalidURL, UnicodeError) as error:
            raise InvalidRequestError.of(
                "uri", f"{redact(url)!r} is not a valid address: {error}"
            ) from None

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Send a request for a large body; the caller reads and closes the response."""
        return await self._client.send(request, stream=True)

    async def head(self, url: str, headers: Mapping[str, str] = {}) -> httpx.Response:
        """Send a HEAD request; the caller checks the status."""
        try:
            return await self._client.head(url, headers=dict(headers), timeout=self._answer_timeout)
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise transport_error(error, url) from error

    async def text(
        self, url: str, *, headers: Mapping[str, str] = {}, limit: int
    ) -> tuple[str, httpx.Headers, str]:
        """Return a small document, its headers, and the address it came from in the end."""
        try:
            async with self._client.stream(
                "GET", url, headers=dict(headers), timeout=self._answer_timeout
            ) as response:
                check(response, url)
                body = bytearray()
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > limit:
                        raise RefusedError(f"{redact(url)}: larger than {limit} bytes")
                return (
                    body.decode(response.encoding or "utf-8", "replace"),
                    response.headers,
                    str(response.url),
                )
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise transport_error(error, url) from error


def check(response: httpx.Response, url: str) -> None:
    """Raise the error of an HTTP status, unless it is a success."""
    if not response.is_success:
        raise status_error(response, url)


def status_error(response: httpx.Response, url: str) -> CorralError:
    """Return the error of an HTTP status."""
    status, where = response.status_code, redact(url)
    text = f"{where}: HTTP {status} {response.reason_phrase}".rstrip()
    if status in (401, 403):
        return AccessDeniedError(f"{text}: the server requires credentials that are not configured")
    if status in (404, 410):
        return SourceNotFoundError(f"{text}: there is no such file")
    if status in (408, 425, 429) or status >= 500:
        return DownloadError(text, retry_after=_retry_after(response))
    return RefusedError(text)


def transport_error(error: Exception, url: str) -> CorralError:
    """Return the error of a failed request."""
    where = redact(url)
    cause = str(error) or type(error).__name__
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return UnreachableError(f"{where}: cannot be reached: {cause}")
    if isinstance(error, httpx.ReadTimeout):
        return DownloadError(f"{where}: nothing arrived for a while (stalled)")
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol | UnicodeError):
        return RefusedError(f"{where}: is not a valid address: {cause}")
    if isinstance(error, httpx.TooManyRedirects):
        return RefusedError(f"{where}: too many redirects")
    return DownloadError(f"{where}: the connection broke: {cause}")


def _retry_after(response: httpx.Response) -> float | None:
    """Return the seconds of a Retry-After header, which also may be a date."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdigit():
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(date.timestamp() - time.time(), 0.0)
