"""Logs on stderr, as text or JSON; stdout is left to the ready line."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TextIO, TypeAlias

from .lean_imports import without

# Without rich: structlog uses it for coloured tracebacks, and it is 4 MiB that no service needs.
with without("rich"):
    import structlog

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor

Level: TypeAlias = Literal["trace", "debug", "info", "warn", "error"]
Format: TypeAlias = Literal["console", "json"]

# structlog has no level below debug; "trace" is debug including the messages of libraries.
_LEVELS: Final = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}
# Libraries that log every request, or every iteration of the loop, at info or debug.
_CHATTY: Final = ("httpx", "httpcore", "httpx2", "httpcore2", "asyncio", "grpc", "huggingface_hub")


def configure(
    level: Level = "info",
    format: Format = "console",
    service: str = "",
    *,
    stream: TextIO | None = None,
) -> None:
    """Send structlog and the standard library's logging to one stream, in one format.

    Call it once, at the start of a process. `service` is added to each line.
    """
    out = stream or sys.stderr
    number = _LEVELS[level]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _Stamp(service),
    ]
    render = _json() if format == "json" else _console(out)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(number if level == "trace" else logging.WARNING)
    logging.captureWarnings(True)
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        # Not through the standard library: its records double the cost of an access log line.
        logger_factory=partial(_Lines, out),
        # Not cached: modules create their loggers at import, before this function is called.
        cache_logger_on_first_use=False,
    )


def bind_request_id(request_id: str) -> None:
    """Put the request id on every line that the current task logs."""
    structlog.contextvars.bind_contextvars(request_id=request_id)


def bound_request_id() -> str | None:
    """Return the request id that the current task's lines carry."""
    return structlog.contextvars.get_contextvars().get("request_id")


def get_logger(name: str) -> Any:
    """Return a structlog logger for a module's `__name__`. Safe to call before `configure`."""
    return structlog.stdlib.get_logger(name)


class _Lines:
    """Writes structlog's finished lines; structlog expects a method for each level."""

    __slots__ = ("_out", "name")

    def __init__(self, out: TextIO, name: str = "") -> None:
        self._out = out
        self.name = name

    def msg(self, line: str) -> None:
        # A failure to log (a full disk, a closed pipe) must not fail the caller.
        with suppress(OSError, ValueError):
            self._out.write(line + "\n")
            self._out.flush()

    debug = info = warning = error = critical = exception = msg


class _Stamp:
    """Adds the service's name to each line."""

    def __init__(self, service: str) -> None:
        self._service = service

    def __call__(self, logger: Any, method: str, event: EventDict) -> EventDict:
        if self._service:
            event.setdefault("service", self._service)
        return event


def _json() -> list[Processor]:
    return [
        structlog.processors.format_exc_info,
        structlog.processors.EventRenamer("message"),
        structlog.processors.JSONRenderer(default=str, ensure_ascii=False),
    ]


def _console(out: TextIO) -> list[Processor]:
    return [
        structlog.processors.format_exc_info,
        _escape,
        structlog.dev.ConsoleRenderer(
            colors=out.isatty(),
            pad_event_to=40,
            # Plain, because the pretty tracebacks show local variables, and so secrets.
            exception_formatter=structlog.dev.plain_traceback,
        ),
    ]


def _escape(logger: Any, method: str, event: EventDict) -> EventDict:
    """Keep each event on one line: a value from outside must not be able to forge another line.

    The lines of a traceback each get a bar in front: an error's message may come from outside too.
    """
    for key, value in event.items():
        if key in _MANY_LINES and isinstance(value, str):
            event[key] = "\n".join(f"  | {_printable(line)}" for line in value.splitlines())
        elif isinstance(value, str) and not value.isprintable():
            event[key] = _printable(value)
    return event


_MANY_LINES: Final = ("exception", "stack")


def _printable(text: str) -> str:
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode("ascii")
        for c in text
    )


if not structlog.is_configured():
    # structlog's own default prints to stdout, which belongs to the ready line.
    structlog.configure(
        processors=[structlog.stdlib.render_to_log_kwargs],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
