"""Results on stdout, everything else on stderr; for people, or as JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from .text import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from services.cli.failures import Failure

# Wide enough that nothing is cut or wrapped if there is no terminal.
_UNLIMITED: Final = 10_000
_GAP: Final = 2
_NARROWEST: Final = 12


@dataclass(frozen=True, slots=True)
class Column:
    """A table's column: its title, and how it shrinks on a narrow terminal.

    A flexible column is shortened. If that is not enough, columns with a rank are left out, the
    highest rank first.
    """

    title: str
    right: bool = False
    flexible: bool = False
    style: str = ""
    rank: int = 0


class Output:
    """Where a command writes. With `as_json` only JSON goes to stdout."""

    def __init__(self, *, as_json: bool = False) -> None:
        """Write JSON or text."""
        self.as_json = as_json

    @cached_property
    def stdout(self) -> Console:
        """Rich's console on stdout; without colours and a width unless it is a terminal."""
        return _console(stderr=False)

    @cached_property
    def stderr(self) -> Console:
        """Rich's console on stderr."""
        return _console(stderr=True)

    @property
    def live(self) -> bool:
        """Whether bars and spinners may be drawn on stderr."""
        return self.stderr.is_terminal and not self.stderr.is_dumb_terminal and not self.as_json

    def emit(self, data: Mapping[str, Any] | Sequence[Any]) -> None:
        """Write one JSON value as one line to stdout."""
        sys.stdout.write(json.dumps(data, ensure_ascii=False) + "\n")
        sys.stdout.flush()

    def line(self, text: str = "", style: str = "") -> None:
        """Write a line for people to stdout."""
        _print(self.stdout, text, style)

    def note(self, text: str, style: str = "") -> None:
        """Write a line for people to stderr; nothing with JSON, which contains the same."""
        if not self.as_json:
            _print(self.stderr, text, style)

    def table(
        self, columns: Sequence[Column], rows: Iterable[Sequence[str | tuple[str, str]]]
    ) -> None:
        """Write a table to stdout; a cell is text, or text and its style."""
        from rich.table import Table
        from rich.text import Text

        cells = [
            [Text(printable(c)) if isinstance(c, str) else Text(printable(c[0]), c[1]) for c in row]
            for row in rows
        ]
        widths = [
            max([len(column.title), *(row[at].cell_len for row in cells)])
            for at, column in enumerate(columns)
        ]
        # An empty column is left out if it is flexible: such a column is empty for most rows.
        kept = [
            at
            for at, column in enumerate(columns)
            if not column.flexible or any(row[at].cell_len for row in cells)
        ]
        while _least(columns, widths, kept) > self.stdout.width:
            least = max(kept, key=lambda at: columns[at].rank)
            if not columns[least].rank:
                break
            kept.remove(least)
        columns = [columns[at] for at in kept]
        widths = [widths[at] for at in kept]
        cells = [[row[at] for at in kept] for row in cells]
        # The columns that identify a row are never cut; flexible ones share the rest of the width.
        fixed = [width for width, c in zip(widths, columns, strict=True) if not c.flexible]
        free = self.stdout.width - sum(fixed) - _GAP * (len(columns) - 1)
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
        for column, width in zip(columns, widths, strict=True):
            table.add_column(
                Text(column.title),
                justify="right" if column.right else "left",
                no_wrap=True,
                overflow="ellipsis",
                width=min(width, max(free, _NARROWEST)) if column.flexible else width,
                style=column.style,
            )
        for row in cells:
            table.add_row(*row)
        self._write_table(table)

    def facts(self, rows: Iterable[tuple[str, str, str]]) -> None:
        """Write names and values to stdout, one a line; the third of each row is the value's style."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, _GAP, 0, 0))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value, style in rows:
            table.add_row(name, Text(printable(value), style=style))
        self._write_table(table)

    def _write_table(self, table: Table) -> None:
        if self.stdout.is_terminal:
            self.stdout.print(table)
            return
        # Rich pads the last column with blanks, which are noise in a file.
        with self.stdout.capture() as captured:
            self.stdout.print(table)
        for text in captured.get().splitlines():
            sys.stdout.write(text.rstrip() + "\n")

    def failure(self, failure: Failure) -> None:
        """Write a failure to stderr: what failed, and what to do next."""
        if self.as_json:
            data = {
                "reason": failure.reason,
                "message": failure.message,
                "hint": failure.hint,
                "details": list(failure.details),
                "retry_after": failure.retry_after,
            }
            sys.stderr.write(json.dumps({"error": data}, ensure_ascii=False) + "\n")
            return
        from rich.text import Text

        text = Text.assemble(("error: ", "bold red"), printable(failure.message))
        self.stderr.print(text, soft_wrap=True)
        for detail in failure.details:
            self.stderr.print(Text(f"       {printable(detail)}"), soft_wrap=True)
        if failure.hint:
            self.stderr.print(
                Text.assemble(("next:  ", "bold"), printable(failure.hint)), soft_wrap=True
            )


def _least(columns: Sequence[Column], widths: Sequence[int], kept: Sequence[int]) -> int:
    """Return the least width that a table of these columns takes."""
    needed = [min(widths[at], _NARROWEST) if columns[at].flexible else widths[at] for at in kept]
    return sum(needed) + _GAP * (len(kept) - 1)


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console = Console(stderr=stderr, highlight=False, width=_UNLIMITED)
    return console


def _print(console: Console, text: str, style: str) -> None:
    from rich.text import Text

    console.print(Text(printable(text), style=style), soft_wrap=True)
