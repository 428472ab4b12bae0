"""The plot of a record: each path's throughput and cost as bars on a logarithmic scale, in SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import floor, log10

from .record import Record, Row

PANELS = (
    ("unary-1kib-32", "rate", "Unary 1 KiB, 32 at a time: calls/s"),
    ("unary-1kib-32", "cpu", "… CPU a call, µs"),
    ("saturated-64", "rate", "64 streams, saturated: messages/s"),
    ("saturated-64", "cpu", "… CPU a message, µs"),
)
"""Measurement, figure, title."""
COLOURS = {"C++": "#4477aa", "Python": "#ccbb44"}
WIDTH, LABEL, BAR, GAP, TOP = 460, 110, 14, 6, 34
ROOM = 70
"""Pixels for the number at the end of a bar."""


def plot(record: Record) -> str:
    """Return the SVG."""
    panels = [
        (title, figure, [row for row in record.traffic if row.measurement == key])
        for key, figure, title in PANELS
    ]
    shown = [(title, figure, rows) for title, figure, rows in panels if rows]
    heights = [TOP + len(rows) * (BAR + GAP) for _, _, rows in shown]
    parts, y = [], 0
    for left in range(0, len(shown), 2):
        for column, (title, figure, rows) in enumerate(shown[left : left + 2]):
            parts.append(_panel(column * WIDTH, y, title, figure, rows))
        y += max(heights[left : left + 2])
    legend = "".join(
        f'<rect x="{10 + 130 * place}" y="{y + 8}" width="12" height="12" fill="{colour}"/>'
        f'<text x="{28 + 130 * place}" y="{y + 18}">{escape(name)} backend</text>'
        for place, (name, colour) in enumerate(COLOURS.items())
    )
    note = "bars on a logarithmic scale; CPU: of what is between, else of the backend"
    legend += f'<text x="{WIDTH + 10}" y="{y + 18}">{note}</text>'
    style = 'font-family="sans-serif" font-size="11" fill="#333"'
    size = f'width="{2 * WIDTH}" height="{y + 30}" viewBox="0 0 {2 * WIDTH} {y + 30}"'
    back = '<rect width="100%" height="100%" fill="white"/>'
    body = "".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{back}{body}{legend}</svg>\n'


def _panel(x: int, y: int, title: str, figure: str, rows: Sequence[Row]) -> str:
    values = [row.median(figure) for row in rows]
    low = 10 ** floor(log10(min(values)))
    span = max(log10(max(values) / low), 0.1)
    parts = [f'<text x="{x + 10}" y="{y + 22}" font-weight="bold">{escape(title)}</text>']
    for place, (row, value) in enumerate(zip(rows, values, strict=True)):
        top = y + TOP + place * (BAR + GAP)
        length = max(log10(value / low) / span * (WIDTH - LABEL - ROOM), 1)
        colour = COLOURS.get(row.backend, "#888")
        parts.append(
            f'<text x="{x + LABEL - 6}" y="{top + 11}" text-anchor="end">{escape(row.path)}</text>'
            f'<rect x="{x + LABEL}" y="{top}" width="{length:.0f}" height="{BAR}" fill="{colour}"/>'
            f'<text x="{x + LABEL + length + 5:.0f}" y="{top + 11}">{_short(value)}</text>'
        )
    return "".join(parts)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
