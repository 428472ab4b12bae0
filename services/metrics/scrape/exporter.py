"""HTTP server for `/metrics` and `/healthz`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from types import TracebackType
from typing import Final, Self

from services.common.addresses import Address
from services.common.process import listen_address
from services.common.process.logging import get_logger

from .exposition import Page
from .http_request import MAX_HEAD, BadRequest, Request, parse_head

# A connection over the limit gets a 503 if its request comes soon; silent ones are closed.
_REFUSAL_TIMEOUT: Final = 1.0
_METHODS: Final = ("GET", "HEAD")
_HEALTHY: Final = Page(b"ok\n", "text/plain; charset=utf-8")
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Timeouts, and the limit on connections."""

    head_timeout: float
    """Seconds to receive the head of a request, including the wait for it."""
    scrape_timeout: float
    """Seconds to render the values."""
    send_timeout: float
    """Seconds for the client to receive a response."""
    close_timeout: float
    """Seconds that a stop waits for responses in progress."""
    max_connections: int


class Exporter:
    """An HTTP/1.1 server for scrapes; an async context manager that listens while entered.

    `scrape` is called with the headers Accept and Accept-Encoding, on a thread: rendering a thousand
    series on the event loop would delay gRPC calls.
    """

    def __init__(
        self, listen: Address, scrape: Callable[[str, str], Page], limits: HttpLimits
    ) -> None:
        """`listen`: the address; port 0 takes a free one."""
        self._listen = listen
        self._scrape = scrape
        self._limits = limits
        self._server: asyncio.Server | None = None
        self._socket: tuple[int, int] | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        """The listening address, with the real port."""
        if self._server is None or self._listen.is_unix:
            return str(self._listen)
        host, port = self._server.sockets[0].getsockname()[:2]
        return str(Address(host=host, port=port))

    async def __aenter__(self) -> Self:
        """Listen."""
        if self._listen.is_unix:
            self._server = await asyncio.start_unix_server(
                self._connected, self._listen.path, limit=MAX_HEAD
            )
            self._socket = listen_address.identity(self._listen)
        else:
            self._server = await asyncio.start_server(
                self._connected, self._listen.host, self._listen.port, limit=MAX_HEAD
            )
        _log.info("metrics are served over HTTP", address=self.address, path="/metrics")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop listening, and wait for responses in progress."""
        assert self._server is not None
        self._server.close()
        listen_address.release(self._listen, self._socket)
        if self._connections:
            # Idle connections will get no further request.
            for task in self._connections:
                if task.get_name() == _IDLE:
                    task.cancel()
            _, late = await asyncio.wait(
                self._connections,
                timeout=self._limits.close_timeout,
            )
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._converse(task, reader, writer)
        except (ConnectionError, TimeoutError, asyncio.CancelledError):
            # The client disconnected or timed out, or the server stops: nothing to report.
            pass
        except Exception:  # noqa: BLE001 - one client's failure must not affect others
            _log.exception("HTTP connection failed")
        finally:
            self._connections.discard(task)
            writer.close()

    async def _converse(
        self,
        task: asyncio.Task[None],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        while True:
            # An idle connection may be closed at any time.
            task.set_name(_IDLE)
            full = len(self._connections) > self._limits.max_connections
            limit = self._limits.head_timeout
            try:
                async with asyncio.timeout(min(limit, _REFUSAL_TIMEOUT) if full else limit):
                    request = await read_request(reader)
            except BadRequest as bad:
                task.set_name(_ANSWERING)
                page = Page(f"{bad}\n".encode(), "text/plain; charset=utf-8")
                await self._send(writer, bad.status, page, keep_alive=False)
                return
            task.set_name(_ANSWERING)
            if request is None:
                return
            if full:
                status, page = HTTPStatus.SERVICE_UNAVAILABLE, _text("too many connections")
            else:
                status, page = await self._answer(request)
            assert self._server is not None
            keep_alive = request.keep_alive and not full and self._server.is_serving()
            await self._send(
                writer, status, page, keep_alive=keep_alive, body=request.method != "HEAD"
            )
            if not keep_alive:
                return

    async def _answer(self, request: Request) -> tuple[HTTPStatus, Page]:
        if request.path not in ("/metrics", "/healthz"):
            return HTTPStatus.NOT_FOUND, _text("not found; see /metrics")
        if request.method not in _METHODS:
            return HTTPStatus.METHOD_NOT_ALLOWED, _text("only GET and HEAD")
        if request.path == "/healthz":
            return HTTPStatus.OK, _HEALTHY
        headers = request.headers
        try:
            async with asyncio.timeout(self._limits.scrape_timeout):
                page = await asyncio.to_thread(
                    self._scrape, headers.get("accept", ""), headers.get("accept-encoding", "")
                )
        except TimeoutError:
            return HTTPStatus.SERVICE_UNAVAILABLE, _text("the scrape took too long")
        except Exception:  # noqa: BLE001 - the scraper gets a status, the log the cause
            _log.exception("scrape failed")
            return HTTPStatus.INTERNAL_SERVER_ERROR, _text("scrape failed; see the log")
        return HTTPStatus.OK, page

    async def _send(
        self,
        writer: asyncio.StreamWriter,
        status: HTTPStatus,
        page: Page,
        *,
        keep_alive: bool,
        body: bool = True,
    ) -> None:
        lines = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            f"Date: {formatdate(usegmt=True)}",
            f"Content-Type: {page.content_type}",
            f"Content-Length: {len(page.body)}",
            "Vary: Accept, Accept-Encoding",
            f"Connection: {'keep-alive' if keep_alive else 'close'}",
        ]
        if page.encoding:
            lines.append(f"Content-Encoding: {page.encoding}")
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            lines.append(f"Allow: {', '.join(_METHODS)}")
        writer.write("\r\n".join((*lines, "", "")).encode("latin-1"))
        if body:
            writer.write(page.body)
        async with asyncio.timeout(self._limits.send_timeout):
            await writer.drain()
            if not keep_alive:
                writer.write_eof()


_IDLE: Final = "metrics http: idle"
_ANSWERING: Final = "metrics http: answering"


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """Return the next request's head; None if the client closed the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial.strip():
            raise BadRequest(HTTPStatus.BAD_REQUEST, "the request's head is incomplete") from error
        return None
    except asyncio.LimitOverrunError as error:
        raise BadRequest(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"more than {MAX_HEAD} bytes of head"
        ) from error
    return parse_head(head)


def _text(text: str) -> Page:
    return Page(f"{text}\n".encode(), "text/plain; charset=utf-8")
