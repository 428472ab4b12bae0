"""The shape of log lines."""

import io
import json
import logging
from collections.abc import Iterator
from datetime import datetime

import pytest
import structlog

from services.common.process import logging as logs


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    before = structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.configure(**before)
    structlog.contextvars.clear_contextvars()


def test_json_lines() -> None:
    out = io.StringIO()
    logs.configure("info", "json", "toy", stream=out)
    structlog.contextvars.bind_contextvars(request_id="r-1")
    logs.get_logger("a.b").info("model loaded", model="phi\n3", seconds=1.5, path=object)
    logs.get_logger("a.b").debug("not shown")
    logging.getLogger("foreign").warning("took %d s", 3, extra={"who": "me"})
    logging.getLogger("httpx").info("GET /")
    first, second = [json.loads(line) for line in out.getvalue().splitlines()]
    when = datetime.fromisoformat(first.pop("timestamp"))
    assert when.utcoffset() is not None
    assert first == {
        "level": "info",
        "logger": "a.b",
        "message": "model loaded",
        "model": "phi\n3",
        "path": "<class 'object'>",
        "request_id": "r-1",
        "seconds": 1.5,
        "service": "toy",
    }
    assert (second["message"], second["who"], second["level"]) == ("took 3 s", "me", "warning")


def test_an_exception_is_part_of_its_line() -> None:
    out = io.StringIO()
    logs.configure("info", "json", "toy", stream=out)
    try:
        raise KeyError("x")
    except KeyError as error:
        logs.get_logger("a").error("failed", exc_info=error)
    line = json.loads(out.getvalue())
    assert "KeyError: 'x'" in line["exception"]


def test_console_lines_cannot_be_forged() -> None:
    out = io.StringIO()
    logs.configure("info", "console", "toy", stream=out)
    logs.get_logger("a").info("said", text="x\n2026-01-01 [error] forged\x1b[2J", note="naïve ✓")
    logging.getLogger("foreign").warning("a\nb %s", "c\rd")
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    try:
        raise ValueError("x\n2026-01-01 [error] forged")
    except ValueError:
        logs.get_logger("a").exception("failed")
    rest = out.getvalue().splitlines()[3:]
    assert rest
    assert all(line.startswith("  | ") for line in rest)
    assert "\x1b" not in out.getvalue()
    assert "naïve ✓" in lines[0]


def test_levels_and_chatty_libraries() -> None:
    out = io.StringIO()
    logs.configure("debug", "json", stream=out)
    logging.getLogger("httpx").info("hidden")
    logging.getLogger("httpx").warning("shown")
    logs.get_logger("a").debug("mine")
    logs.configure("trace", "json", stream=out)
    logging.getLogger("httpx").info("traced")
    logs.configure("error", "json", stream=out)
    logs.get_logger("a").warning("hidden too")
    messages = [json.loads(line)["message"] for line in out.getvalue().splitlines()]
    assert messages == ["shown", "mine", "traced"]


def test_a_logger_made_before_the_configuration_obeys_it() -> None:
    out = io.StringIO()
    log = logs.get_logger("early")
    log.debug("goes nowhere, and not to stdout")
    logs.configure("info", "json", stream=out)
    log.info("now")
    assert json.loads(out.getvalue())["message"] == "now"
