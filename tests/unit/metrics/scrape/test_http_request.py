from __future__ import annotations

import asyncio
from http import HTTPStatus

import pytest

from services.metrics.scrape.exporter import read_request
from services.metrics.scrape.http_request import MAX_HEAD, BadRequest, parse_head


def head(first: str, *lines: str) -> bytes:
    return "\r\n".join((first, *lines, "", "")).encode("latin-1")


def test_a_scrape() -> None:
    request = parse_head(head("GET /metrics?x=1 HTTP/1.1", "Host: a:1", "ACCEPT:  text/plain "))
    assert (request.method, request.path, request.keep_alive) == ("GET", "/metrics", True)
    assert request.headers["accept"] == "text/plain"


@pytest.mark.parametrize(
    ("first", "connection", "expected"),
    [
        ("GET / HTTP/1.1", "close", False),
        ("GET / HTTP/1.1", "Keep-Alive", True),
        ("GET / HTTP/1.0", "", False),
        ("GET / HTTP/1.0", "keep-alive", True),
    ],
)
def test_keeping_the_connection(first: str, connection: str, expected: bool) -> None:
    request = parse_head(head(first, "Host: a", f"Connection: {connection}"))
    assert request.keep_alive is expected


def test_an_absolute_target_and_a_repeated_header() -> None:
    request = parse_head(
        head("GET http://a:1/metrics HTTP/1.1", "Host: a", "Accept: x", "Accept: y")
    )
    assert request.path == "/metrics"
    assert request.headers["accept"] == "x, y"


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["GET /"], HTTPStatus.BAD_REQUEST),
        (["GET  / HTTP/1.1"], HTTPStatus.BAD_REQUEST),
        (["\x16\x03\x01 tls"], HTTPStatus.BAD_REQUEST),
        (["GET / HTTP/2.0"], HTTPStatus.HTTP_VERSION_NOT_SUPPORTED),
        (["GET / HTTP/1.1"], HTTPStatus.BAD_REQUEST),
        (["GET / HTTP/1.1", "Host: a", "no colon"], HTTPStatus.BAD_REQUEST),
        (["GET / HTTP/1.1", "Host : a"], HTTPStatus.BAD_REQUEST),
        (["GET / HTTP/1.1", "Host: a", " folded: b"], HTTPStatus.BAD_REQUEST),
        (
            ["POST / HTTP/1.1", "Host: a", "Content-Length: 1"],
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        ),
        (
            ["POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked"],
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        ),
    ],
)
def test_what_is_no_request(lines: list[str], status: HTTPStatus) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_head(head(*lines))
    assert caught.value.status == status


async def test_reading() -> None:
    reader = asyncio.StreamReader(limit=MAX_HEAD)
    reader.feed_data(head("GET /metrics HTTP/1.1", "Host: a") + b"GET /pa")
    reader.feed_eof()
    request = await read_request(reader)
    assert request is not None
    assert request.path == "/metrics"
    with pytest.raises(BadRequest, match="incomplete"):
        await read_request(reader)
    assert await read_request(reader) is None


async def test_a_head_that_is_too_long() -> None:
    reader = asyncio.StreamReader(limit=MAX_HEAD)
    reader.feed_data(b"GET / HTTP/1.1\r\nX: " + b"x" * (2 * MAX_HEAD))
    with pytest.raises(BadRequest) as caught:
        await read_request(reader)
    assert caught.value.status == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
