"""A backend's log: its history, and new lines until Ctrl-C."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from corral.loader.v1 import loader_pb2
from services.cli.client.clients import RECONNECT_TIMEOUT, Clients
from services.cli.display import messages
from services.cli.display.output import Output
from services.cli.display.text import printable
from services.cli.failures import Lost, Unreachable
from services.cli.models import lookup
from services.common.backoff import Backoff
from services.common.errors import ShuttingDownError

_BACKOFF: Final = Backoff(initial=0.1, factor=2, maximum=2, jitter=0.2)
_NAMES: Final = {"stdout": "out", "stderr": "err", "loader": "corral"}
_STYLES: Final = {"stdout": "cyan", "stderr": "yellow", "loader": "magenta"}
_LEVELS: Final = {"debug": "dim", "warning": "yellow", "error": "bold red"}
# A backend's own colours are dropped: colours show levels here.
_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class Wanted:
    """The model, and the lines to show."""

    model: str
    follow: bool
    tail: int
    level: str = ""
    streams: tuple[str, ...] = ()

    def request(self, after: int) -> loader_pb2.StreamLogsRequest:
        """Return the request for the lines after this sequence number."""
        line = loader_pb2.LogLine
        return loader_pb2.StreamLogsRequest(
            name=self.model,
            follow=self.follow,
            after_sequence=after,
            tail_lines=0 if after else self.tail,
            streams=[line.Stream.Value(f"STREAM_{name.upper()}") for name in self.streams],
            minimum_level=line.Level.Value(f"LEVEL_{self.level.upper() or 'UNSPECIFIED'}"),
        )


async def show(clients: Clients, out: Output, wanted: Wanted) -> None:
    """Write a model's log; while following, wait for a loader that restarts."""
    await lookup.get(clients, wanted.model)
    writer = _Writer(out)
    failures, heard = 0, time.monotonic()
    while True:
        request = wanted.request(writer.last)
        try:
            async for message in clients.stream("loader", clients.loader.StreamLogs, request):
                failures, heard = 0, time.monotonic()
                writer.write(message)
            if not wanted.follow:
                break
        except (Lost, Unreachable, ShuttingDownError):
            if not wanted.follow or time.monotonic() - heard > RECONNECT_TIMEOUT:
                raise
            if failures == 0:
                out.note("the loader does not answer; waiting for it to come back", "yellow")
        failures += 1
        await asyncio.sleep(_BACKOFF.delay(failures))
        if not await _still_valid(clients, wanted.model, writer.last):
            out.note("the loader was started again; its log is empty now", "yellow")
            writer.reset()
    if not writer.wrote and not out.as_json:
        out.note(f"nothing logged{_that_matches(wanted)}")


def _that_matches(wanted: Wanted) -> str:
    if wanted.level or wanted.streams:
        return " that matches"
    return f": {wanted.model} has not run since the loader was started"


async def _still_valid(clients: Clients, name: str, last: int) -> bool:
    """Return whether the loader still has the line `last`; a restarted loader counts from 1 again."""
    if not last:
        return True
    request = loader_pb2.StreamLogsRequest(name=name, tail_lines=1)
    newest = 0
    try:
        async with aclosing(
            clients.stream("loader", clients.loader.StreamLogs, request)
        ) as messages:
            async for message in messages:
                newest = message.line.sequence
    except (Lost, Unreachable, ShuttingDownError):
        return True
    return newest >= last


class _Writer:
    """Writes lines, and notes on restarts and missed lines between them."""

    def __init__(self, out: Output) -> None:
        self.last = 0
        """The number of the last line; 0 before the first."""
        self.wrote = False
        self._out = out
        self._generation = 0

    def reset(self) -> None:
        """Treat the next line as the first one."""
        self.last = self._generation = 0

    def write(self, message: loader_pb2.StreamLogsResponse) -> None:
        self.wrote = True
        if message.missed_lines:
            self._missed(message.missed_lines)
        if not message.HasField("line"):
            return
        line = message.line
        self.last = line.sequence
        if self._out.as_json:
            self._out.emit(messages.log_line(line))
            return
        if 0 < self._generation < line.generation:
            self._out.line("--- started again ---", "bold")
        self._generation = max(self._generation, line.generation)
        self._line(line)

    def _missed(self, count: int) -> None:
        if self._out.as_json:
            self._out.emit({"missed_lines": count})
        else:
            noun = "line" if count == 1 else "lines"
            self._out.line(f"... {count:,} {noun} missed ...", "yellow")

    def _line(self, line: loader_pb2.LogLine) -> None:
        from rich.text import Text

        stream, level = messages.stream_of(line), messages.level_of(line)
        when = datetime.fromtimestamp(line.time.ToNanoseconds() / 1e9).astimezone()
        stamp = f"{when:%H:%M:%S}.{when.microsecond // 1000:03d}"
        self._out.stdout.print(
            Text.assemble(
                (stamp, "dim"),
                " ",
                (f"{_NAMES.get(stream, stream):<6}", _STYLES.get(stream, "")),
                " ",
                (printable(_COLOURS.sub("", line.text)), _LEVELS.get(level, "")),
            ),
            soft_wrap=True,
        )
