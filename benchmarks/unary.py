"""Unary calls: the same calls straight to a backend and over each path."""

from __future__ import annotations

from pathlib import Path

from corral.backend import backend_pb2

from .generator import Load
from .traffic import PREDICT, Measurement, measure

SIZES = {"1 KiB": 1 << 10, "64 KiB": 1 << 16, "1 MiB": 1 << 20}
WIDTHS = (1, 32, 256)
SHORT = {("1 KiB", 1): ("C++",), ("1 KiB", 32): ("C++", "Python")}
"""What a short run measures, and with which backends."""
GOAL = ("1 KiB", 32)
"""The case that the goals are for: measured longer, as a few milliseconds change a ratio noticeably."""
FULL_PYTHON = {("1 KiB", 1), ("1 KiB", 32), ("1 KiB", 256), ("64 KiB", 32), ("1 MiB", 32)}
"""The cases of a full run with a Python backend; the others would only repeat what C++ shows."""


def measurement(size: str, width: int, backends: tuple[str, ...], seconds: float) -> Measurement:
    """Return the measurement of an echo of this size, `width` calls at a time."""
    bulky = SIZES[size] * width >= 32 << 20  # a proxy needs a second or more to answer them
    load = Load(
        PREDICT,
        Path(),
        concurrency=width,
        seconds=seconds * ((3 if width > 32 else 2) if bulky else 1),
        warmup=0.6 if bulky else 0.2,
    )
    request = backend_pb2.PredictOptions(Prompt="x" * SIZES[size])
    key = f"unary-{size.replace(' ', '').lower()}-{width}"
    return Measurement(key, f"{size}, {width} at a time", request, load, backends)


async def run(*, full: bool) -> None:
    """Measure and print."""
    if full:
        chosen = [
            measurement(
                size,
                width,
                ("C++", "Python") if (size, width) in FULL_PYTHON else ("C++",),
                1 if (size, width) == GOAL else 0.35,
            )
            for size in SIZES
            for width in WIDTHS
        ]
    else:
        chosen = [measurement(*which, backends, 0.5) for which, backends in SHORT.items()]
    await measure("unary calls", chosen)
