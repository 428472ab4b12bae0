"""A real HTTP server for tests that misbehaves on request.

   with FaultyServer() as server:
       server.add("/model.gguf", b"...", etag='"1"')
       server.fail("/model.gguf", Drop(after=1000), Status(503, {"Retry-After": "0"}))
       ... server.url("/model.gguf") ...

Each GET of a path uses up one of its faults, in order; after the last the path works normally.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit


@dataclass
class Resource:
    """The contents and behaviour of a path."""

    body: bytes
    etag: str = ""
    ranges: bool = True
    """Whether Range requests are honoured."""
    head: int = 200
    """The status of a HEAD, for servers that only support GET."""
    headers: Mapping[str, str] = field(default_factory=dict)
    rate: int = 0
    """Bytes a second; 0 for no limit."""


@dataclass
class Drop:
    """Break the connection after this many bytes of the body."""

    after: int


@dataclass
class Stall:
    """Send nothing more after this many bytes, until the server closes."""

    after: int


@dataclass
class Status:
    """Answer with another status."""

    code: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class WrongLength:
    """Announce this many bytes more than are sent."""

    more: int


@dataclass
class Corrupt:
    """Send other bytes of the same length."""


Fault = Drop | Stall | Status | WrongLength | Corrupt


@dataclass
class Seen:
    """A request received."""

    method: str
    path: str
    headers: Message


class FaultyServer:
    """The server, in its own thread, on a free port of 127.0.0.1 (or another loopback address)."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.resources: dict[str, Resource] = {}
        self.requests: list[Seen] = []
        self._faults: dict[str, deque[Fault]] = defaultdict(deque)
        self._closing = threading.Event()
        self.gate: threading.Event | None = None
        """If given, each body stops after its first block until this event is set."""
        handler = type("Handler", (_Handler,), {"faulty": self})
        self._server = http.server.ThreadingHTTPServer((host, 0), handler)
        self._server.daemon_threads = False
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="faulty http"
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        if self.gate is not None:
            self.gate.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def address(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def url(self, path: str) -> str:
        return self.address + path

    def add(self, path: str, body: bytes | str, **facts: Any) -> str:
        """Serve a body and return its address."""
        data = body.encode() if isinstance(body, str) else body
        self.resources[path] = Resource(data, **facts)
        return self.url(path)

    def fail(self, path: str, *faults: Fault) -> None:
        """Queue faults for the next GETs of a path."""
        self._faults[path].extend(faults)

    def gets(self, path: str) -> list[Seen]:
        """Return the GETs of a path so far."""
        return [seen for seen in self.requests if seen.method == "GET" and seen.path == path]

    def find(self, request: Seen) -> Resource | Status:
        """Return the resource for a request; subclasses override this to make other servers."""
        return self.resources.get(request.path) or Status(404)

    def fault(self, request: Seen) -> Fault | None:
        faults = self._faults[request.path]
        return faults.popleft() if request.method == "GET" and faults else None

    def pause(self, seconds: float) -> None:
        """Wait, but no longer than the server runs."""
        self._closing.wait(seconds)

    @property
    def closing(self) -> bool:
        return self._closing.is_set()


class _Handler(http.server.BaseHTTPRequestHandler):
    faulty: FaultyServer
    protocol_version = "HTTP/1.1"
    # How often keep-alive connections check for the server's end, so that closing it is quick.
    timeout = 5

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        # One request per connection: otherwise a closing server would wait for idle ones.
        self.close_connection = True
        seen = Seen(self.command, unquote(urlsplit(self.path).path), self.headers)
        self.faulty.requests.append(seen)
        fault = self.faulty.fault(seen)
        found = self.faulty.find(seen)
        with contextlib.suppress(ConnectionError, TimeoutError):
            if isinstance(fault, Status):
                found = fault
            if isinstance(found, Status):
                self._head(found.code, {"Content-Length": "0", **found.headers})
            elif self.command == "HEAD" and found.head != 200:
                self._head(found.head, {"Content-Length": "0"})
            else:
                self._body(found, fault)

    def _body(self, found: Resource, fault: Fault | None) -> None:
        start, size = self._start(found), len(found.body)
        if start > size or (start == size and size):
            self._head(416, {"Content-Range": f"bytes */{size}", "Content-Length": "0"})
            return
        body = found.body[start:]
        extra = fault.more if isinstance(fault, WrongLength) else 0
        headers = {"Content-Length": str(len(body) + extra), **found.headers}
        if found.etag:
            headers["ETag"] = found.etag
        if found.ranges:
            headers["Accept-Ranges"] = "bytes"
        if start:
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        self._head(206 if start else 200, headers)
        if self.command == "HEAD":
            return
        if isinstance(fault, Corrupt):
            body = bytes(byte ^ 0xFF for byte in body)
        cut = fault.after if isinstance(fault, Drop | Stall) else len(body)
        self._send(body[:cut], found)
        if isinstance(fault, Stall):
            self.faulty.pause(60)

    def _start(self, found: Resource) -> int:
        asked = self.headers.get("Range", "")
        condition = self.headers.get("If-Range")
        if not found.ranges or not asked or (condition and condition != found.etag):
            return 0
        return int(asked.removeprefix("bytes=").partition("-")[0])

    def _send(self, body: bytes, found: Resource) -> None:
        at = 0
        while at < len(body) and not self.faulty.closing:
            # A test may speed up the rest.
            rate = found.rate
            block = max(rate // 20, 1) if rate else 64 * 1024
            self.wfile.write(body[at : at + block])
            self.wfile.flush()
            at += block
            if rate:
                self.faulty.pause(block / rate)
            if self.faulty.gate is not None:
                self.faulty.gate.wait(30)

    def _head(self, code: int, headers: Mapping[str, str]) -> None:
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Connection", "close")
        self.end_headers()


def simple_index(server: FaultyServer, project: str, files: Iterable[Mapping[str, Any]]) -> None:
    """Serve a project's page of a package index as PEP 691 JSON."""
    server.add(
        f"/simple/{project}/",
        json.dumps({"meta": {"api-version": "1.0"}, "name": project, "files": list(files)}),
        headers={"Content-Type": "application/vnd.pypi.simple.v1+json"},
    )
