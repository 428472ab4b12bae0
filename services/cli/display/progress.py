"""Progress of what takes time: a spinner or a bar on a terminal, plain lines otherwise."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

from . import text, views
from .output import Output

# Without a terminal: often enough to show progress, seldom enough not to fill a log.
_LINE_INTERVAL: Final = 5.0
_LINE_PERCENT: Final = 10.0
# A file name may be long, and the bar next to it must stay on the screen.
_FILE_WIDTH: Final = 36


class Waiting(Protocol):
    """A wait in progress, and the text that is shown for it."""

    def show(self, message: str) -> None:
        """Replace the text."""


@contextmanager
def spinner(out: Output, message: str, *, clock: bool = False) -> Iterator[Waiting]:
    """Show that work is in progress while the block runs; leaves no trace on a terminal.

    With `clock` the elapsed time is shown too.
    """
    began = time.monotonic() if clock else None
    if not out.live:
        lines = _Lines(out, began)
        lines.show(message)
        yield lines
        return
    shown = _Ticking(message, began)
    with out.stderr.status(shown, spinner="dots"):
        yield shown


class _Ticking:
    """A text with the elapsed time, made again whenever the terminal is redrawn."""

    def __init__(self, message: str, began: float | None) -> None:
        self._message = message
        self._began = began

    def show(self, message: str) -> None:
        self._message = message

    def __rich__(self) -> Any:
        from rich.text import Text

        shown = Text(text.printable(self._message), no_wrap=True, overflow="ellipsis")
        if self._began is not None:
            shown.append(f" {text.span(time.monotonic() - self._began)}", "dim")
        return shown


class _Lines:
    """Writes each new text once."""

    def __init__(self, out: Output, began: float | None) -> None:
        self._out = out
        self._began = began
        self._last = ""

    def show(self, message: str) -> None:
        message = message.removesuffix(" …")
        if message == self._last:
            return
        passed = ""
        if self._began is not None and self._last:
            passed = f" (after {text.duration(time.monotonic() - self._began)})"
        self._last = message
        self._out.note(message + passed)


class Transfer(Protocol):
    """The display of a running operation of the gallery."""

    def update(self, view: views.Operation) -> None:
        """Show the operation as it is now."""


@contextmanager
def transfer(out: Output, title: str) -> Iterator[Transfer]:
    """Show an operation's progress while the block runs."""
    if out.as_json:
        yield _JsonTransfer(out)
    elif not out.live:
        yield _LineTransfer(out, title)
    else:
        with _bar(out) as progress:
            yield _BarTransfer(progress, title)


class _JsonTransfer:
    """Writes each state but the last as a JSON line; the command writes the last."""

    def __init__(self, out: Output) -> None:
        self._out = out

    def update(self, view: views.Operation) -> None:
        if not view["done"]:
            self._out.emit({"type": "progress", "operation": view})


class _LineTransfer:
    """Writes a line for each phase and file, and for some of the bytes in between."""

    def __init__(self, out: Output, title: str) -> None:
        self._out = out
        self._title = title
        self._shown: tuple[str, str] = ("", "")
        self._percent = 0.0
        self._time = 0.0

    def update(self, view: views.Operation) -> None:
        if view["done"]:
            return
        now, what = time.monotonic(), (view["phase"], view["file"])
        moved = view["percent"] - self._percent >= _LINE_PERCENT
        late = view["phase"] == "downloading" and now - self._time >= _LINE_INTERVAL
        if what == self._shown and not moved and not late:
            return
        self._shown, self._percent, self._time = what, view["percent"], now
        self._out.note(f"{self._title}: {describe(view)}")


class _BarTransfer:
    """Draws a bar."""

    def __init__(self, progress: Any, title: str) -> None:
        self._progress = progress
        self._task = progress.add_task(title, total=None, what="", amount="", rate="", left="")

    def update(self, view: views.Operation) -> None:
        total = view["bytes_total"]
        self._progress.update(
            self._task,
            total=total or None,
            completed=view["bytes_done"],
            what=_what(view),
            amount=_amount(view),
            rate=f"{text.size(view['bytes_per_second'])}/s" if view["bytes_per_second"] else "",
            left=f"{text.span(view['eta_seconds'])} left" if view["eta_seconds"] else "",
        )


def describe(view: views.Operation) -> str:
    """Return an operation's progress in one line."""
    parts = [_what(view)]
    if view["phase"] == "downloading" and view["bytes_total"]:
        parts.append(f"{view['percent']:.0f}%")
    if view["phase"] == "downloading":
        parts.append(_amount(view))
    if view["bytes_per_second"]:
        parts.append(f"{text.size(view['bytes_per_second'])}/s")
    if view["eta_seconds"]:
        parts.append(f"{text.span(view['eta_seconds'])} left")
    return ", ".join(part for part in parts if part)


def _what(view: views.Operation) -> str:
    if view["cancel_requested"]:
        return "cancelling"
    name = text.clip(view["file"].rpartition("/")[2], _FILE_WIDTH)
    return f"{view['phase']} {name}".strip()


def _amount(view: views.Operation) -> str:
    if view["bytes_total"]:
        return f"{text.size(view['bytes_done'])} of {text.size(view['bytes_total'])}"
    return text.size(view["bytes_done"]) if view["bytes_done"] else ""


def _bar(out: Output) -> Any:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn

    def column(template: str, style: str = "") -> TextColumn:
        return TextColumn(template, style=style or "none", markup=False)

    return Progress(
        SpinnerColumn(),
        column("{task.fields[what]}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        column("{task.fields[amount]}"),
        column("{task.fields[rate]}", "cyan"),
        column("{task.fields[left]}", "dim"),
        console=out.stderr,
        transient=True,
    )
