"""A strict parser for the head of an HTTP/1.1 request: whatever is ambiguous is refused."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

# Bytes. A scraper sends under 1 KiB; this leaves space for cookies and proxies' headers.
MAX_HEAD: Final = 16 * 1024


class BadRequest(Exception):
    """The request is malformed or not supported; the connection is closed after the response."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        """`status` and `text` go into the response."""
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """The head of a request; bodies are not supported."""

    method: str
    path: str
    headers: dict[str, str]
    keep_alive: bool


def parse_head(head: bytes) -> Request:
    """Parse a request's head, up to its empty line. Raises BadRequest."""
    first, *lines = head.decode("latin-1").strip("\r\n").split("\r\n")
    parts = first.split(" ")
    if len(parts) != 3 or not parts[0].isalpha() or not parts[1]:
        raise BadRequest(HTTPStatus.BAD_REQUEST, "this is not an HTTP request")
    method, target, protocol = parts
    if protocol not in ("HTTP/1.1", "HTTP/1.0"):
        raise BadRequest(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "HTTP/1.1 is spoken here")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        # A space before the colon, or a continuation line: proxies treat these differently.
        if not colon or not name or name != name.strip():
            raise BadRequest(HTTPStatus.BAD_REQUEST, "a malformed header")
        name, value = name.lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    if protocol == "HTTP/1.1" and "host" not in headers:
        raise BadRequest(HTTPStatus.BAD_REQUEST, "the header Host is missing")
    if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        raise BadRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "no request here takes a body")
    tokens = {token.strip().lower() for token in headers.get("connection", "").split(",")}
    keep_alive = "close" not in tokens and (protocol == "HTTP/1.1" or "keep-alive" in tokens)
    path = target.partition("?")[0]
    if path.startswith("http://"):
        path = "/" + path.removeprefix("http://").partition("/")[2]
    return Request(method=method, path=path, headers=headers, keep_alive=keep_alive)
