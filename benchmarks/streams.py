"""Streams of small messages: as fast as they are read, and at the pace of a language model."""

from __future__ import annotations

from pathlib import Path

from corral.backend import backend_pb2

from .generator import Load
from .traffic import STREAM, Measurement, measure

WIDTHS = {1: 2000, 64: 200, 256: 60, 1000: 20}
"""Streams at a time, and the number of messages of each when they are saturated."""
RATES = {1: 20, 64: 20, 256: 10, 1000: 2}
"""Messages a second of each stream when they are paced: fewer than one Python process can forward."""
SHORT = (64,)


def saturated(width: int, backends: tuple[str, ...], seconds: float) -> Measurement:
    """Return the measurement of streams without a pause."""
    load = Load(STREAM, Path(), mode="stream", concurrency=width, seconds=seconds)
    request = backend_pb2.PredictOptions(Tokens=WIDTHS[width])
    return Measurement(f"saturated-{width}", _title(width, "saturated"), request, load, backends)


def paced(width: int, backends: tuple[str, ...], seconds: float) -> Measurement:
    """Return the measurement of streams with a pause before each message."""
    rate = RATES[width]
    request = backend_pb2.PredictOptions(Metadata={"rate": str(rate)})
    load = Load(
        STREAM,
        Path(),
        mode="stream",
        concurrency=width,
        seconds=seconds,
        warmup=max(0.5, width / 400),  # until all streams are open, even through a Python proxy
        paced=rate,
        drain=0,
    )
    return Measurement(
        f"paced-{width}", _title(width, f"{rate} messages/s"), request, load, backends
    )


def _title(width: int, how: str) -> str:
    return f"{width} stream{'s' * (width > 1)}, {how}{' each' * (width > 1 and '/s' in how)}"


async def run(*, full: bool) -> None:
    """Measure and print."""
    if full:
        both, one = ("C++", "Python"), ("C++",)
        chosen = [saturated(width, both if width < 256 else one, 0.4) for width in WIDTHS]
        chosen += [paced(width, both if width < 256 else one, 0.7) for width in WIDTHS]
    else:
        chosen = [saturated(width, ("C++",), 0.5) for width in SHORT]
        chosen += [paced(width, ("C++",), 1) for width in SHORT]
    await measure("streams", chosen)
