"""A backend's log: history, and new lines for as long as they are wanted."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from datetime import datetime
from typing import Final

from corral.loader.v1 import loader_pb2
from services.cli import views
from services.cli.clients import RECONNECT_TIMEOUT, Clients
from services.cli.failures import Lost, Unreachable
from services.cli.output import Output
from services.cli.text import printable
from services.common.backoff import Backoff
from services.common.errors import ShuttingDownError

from . import load

_BACKOFF: Final = Backoff(initial=0.1, factor=2, maximum=2, jitter=0.2)
_NAMES: Final = {"stdout": "out", "stderr": "err", "loader": "corral"}
_STYLES: Final = {"stdout": "cyan", "stderr": "yellow", "loader": "magenta"}


async def show(clients: Clients, out: Output, name: str, *, follow: bool, tail: int) -> None:
    """Write a model's log; while following, a loader that restarts is waited for."""
    await load.get(clients, name)
    last, failures, heard = 0, 0, time.monotonic()
    shown = False
    while True:
        request = loader_pb2.StreamLogsRequest(
            name=name, follow=follow, after_sequence=last, tail_lines=0 if last else tail
        )
        try:
            async for message in clients.stream("loader", clients.loader.StreamLogs, request):
                failures, heard, shown = 0, time.monotonic(), True
                last = message.line.sequence
                _write(out, message.line)
            if not follow:
                break
        except (Lost, Unreachable, ShuttingDownError):
            if not follow or time.monotonic() - heard > RECONNECT_TIMEOUT:
                raise
            if failures == 0:
                out.note("the loader does not answer; waiting for it to come back", "yellow")
        failures += 1
        await asyncio.sleep(_BACKOFF.delay(failures))
        last = await _still_valid(clients, name, last)
    if not shown and not out.as_json:
        out.note(f"nothing logged: {name} was not started since the loader was")


async def _still_valid(clients: Clients, name: str, last: int) -> int:
    """Return where to go on; a loader that was restarted counts its lines from 1 again."""
    if not last:
        return 0
    request = loader_pb2.StreamLogsRequest(name=name, tail_lines=1)
    newest = 0
    try:
        async with aclosing(
            clients.stream("loader", clients.loader.StreamLogs, request)
        ) as messages:
            async for message in messages:
                newest = message.line.sequence
    except (Lost, Unreachable, ShuttingDownError):
        return last
    return last if newest >= last else 0


def _write(out: Output, line: loader_pb2.LogLine) -> None:
    if out.as_json:
        out.emit(views.log_line(line))
        return
    from rich.text import Text

    stream = views.stream_of(line)
    when = datetime.fromtimestamp(line.time.ToNanoseconds() / 1e9).astimezone()
    stamp = f"{when:%H:%M:%S}.{when.microsecond // 1000:03d}"
    out.stdout.print(
        Text.assemble(
            (stamp, "dim"),
            " ",
            (f"{_NAMES.get(stream, stream):<6}", _STYLES.get(stream, "")),
            " ",
            printable(line.text),
        ),
        soft_wrap=True,
    )
