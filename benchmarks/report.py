"""A record as tables: on the terminal during a run, in docs/performance.md afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median

from .goals import Verdict, verdicts
from .paths import BARE, DIRECT, GATEWAY
from .plot import plot
from .record import Line, Record, Row, read

BEGIN, END = "<!-- results: begin -->\n", "<!-- results: end -->\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table with aligned columns, which is readable as plain text too."""
    cells = [list(head), *map(list, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(line(row) for row in (cells[0], rule, *cells[1:]))


def number(value: float) -> str:
    """Format a number with three significant digits, or with all digits before the decimal point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def tables(rows: Sequence[Row]) -> str:
    """Return throughput, processor time and latency of each measurement, by backend; paths are columns."""
    parts = []
    for backend in dict.fromkeys(row.backend for row in rows):
        own = [row for row in rows if row.backend == backend]
        parts += [_titled(f"{backend} backend: {what}", own, cell) for what, cell in _VIEWS]
    return "\n\n".join(part for part in parts if part)


def _titled(title: str, rows: Sequence[Row], cell: Callable[[Row, dict[str, Row]], str]) -> str:
    paths = list(dict.fromkeys(row.path for row in rows))
    lines = []
    for measurement in dict.fromkeys(row.measurement for row in rows):
        beside = {row.path: row for row in rows if row.measurement == measurement}
        cells = [cell(beside[path], beside) if path in beside else "failed" for path in paths]
        if any(cells):
            lines.append([next(iter(beside.values())).title, *cells])
    return f"**{title}**\n\n{table(['', *paths], lines)}" if lines else ""


def _throughput(row: Row, beside: dict[str, Row]) -> str:
    base = beside.get(DIRECT)
    ratio = f" ({row.ratio('rate', base):.2f})" if base and row is not base else ""
    return f"{number(row.median('rate'))}{ratio}"


def _processor(row: Row, beside: dict[str, Row]) -> str:
    base = beside.get(BARE)
    ratio = f" ({row.ratio('cpu', base):.2f})" if base and row.path == GATEWAY else ""
    return f"{number(row.median('cpu'))}{ratio}"


def _latency(row: Row, beside: dict[str, Row]) -> str:
    p50, p99 = row.median("p50"), row.median("p99")
    return f"{number(p50 / 1e3)} / {number(p99 / 1e3)}" if p50 else ""


_VIEWS = (
    ("calls or messages a second (of direct)", _throughput),
    (
        "processor time an operation, µs; direct and ResolveModel: the backend's; the others: that"
        + " of what is between (gateway: against the bare proxy)",
        _processor,
    ),
    ("latency of a call or delay of a message, p50 / p99, ms", _latency),
)


def by_path(rows: Sequence[Row]) -> str:
    """Return one table for each measurement with a row for each path, to compare many paths."""
    parts = []
    for measurement in dict.fromkeys(row.measurement for row in rows):
        own = [row for row in rows if row.measurement == measurement]
        cells = [
            [
                row.path,
                number(row.median("rate")),
                number(median(sample.server_cpu for sample in row.samples)),
                _latency(row, {}),
            ]
            for row in own
        ]
        head = ["", "calls/s", "CPU of all servers, µs a call", "p50 / p99, ms"]
        parts.append(f"**{own[0].title}**\n\n{table(head, cells)}")
    return "\n\n".join(parts)


def goals(record: Record) -> str:
    """Return the table of the goals."""

    def row(verdict: Verdict) -> list[str]:
        if verdict.measured is None:
            return [verdict.text, verdict.limit, "", "not measured"]
        return [
            verdict.text,
            verdict.limit,
            f"{verdict.measured:.2f}",
            "met" if verdict.met else "NOT MET",
        ]

    return table(["goal", "limit", "measured", ""], map(row, verdicts(record)))


def lines(record: Record) -> str:
    """Return the tables of the other benchmarks, one for each heading."""
    parts = []
    for heading in dict.fromkeys(line.heading for line in record.lines):
        own = [line for line in record.lines if line.heading == heading]
        verdict = {None: "", True: "met", False: "NOT MET"}
        rows = [[_label(line), line.figure, line.goal, verdict[line.met]] for line in own]
        parts.append(f"**{heading}**\n\n{table(['', 'figure', 'goal', ''], rows)}")
    return "\n\n".join(parts)


def _label(line: Line) -> str:
    """Return the label; a line without a figure is the title of the lines that follow."""
    text = line.label.strip()
    return text if line.figure else f"*{text}*"


def markdown(record: Record) -> str:
    """Return everything that docs/performance.md shows of a run."""
    machine = record.facts["machine"]
    measured = (
        f"Measured {record.facts['date']} UTC at commit {record.facts['commit']} in"
        f" {record.facts['seconds'] / 60:.0f} minutes on {machine['processors']} processors"
        f" ({machine['processor']}, {machine['memory_gib']} GiB, {machine['system']}, Python"
        f" {machine['python']}, grpcio {machine['grpcio']})."
    )
    parts = [
        measured,
        "### Goals",
        goals(record),
        "![Operations a second and processor time, by path](performance.svg)",
        "### Paths",
        tables([row for row in record.traffic if not row.measurement.startswith("peers")]),
    ]
    if peers := [row for row in record.traffic if row.measurement.startswith("peers")]:
        parts += ["### Peers", by_path(peers)]
    if record.lines:
        parts += ["### The rest", lines(record)]
    if record.failures:
        failed = (f"- {failure['where']}: {failure['why']}" for failure in record.failures)
        parts += ["### What failed", "\n".join(failed)]
    return "\n\n".join(parts) + "\n"


def write(file: Path, document: Path) -> None:
    """Put a run's results between a document's marks, and its plot and JSON in the same folder."""
    record, content = read(file), file.read_text()
    text = document.read_text()
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    document.write_text(f"{head}{BEGIN}\n{markdown(record)}\n{END}{tail}")
    document.with_suffix(".svg").write_text(plot(record))
    document.with_suffix(".json").write_text(content)
