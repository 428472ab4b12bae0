"""Calls and streams over all paths: each path once a repetition, in turn, so that all share the same conditions."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import grpc

from corral.backend import backend_pb2

from .figures import heading, progress
from .generator import Load, LoadError
from .paths import PATHS
from .record import RECORD, Row
from .report import tables
from .stage import Route, routes, stage

REPETITIONS = 5
PREDICT = "/backend.Backend/Predict"
STREAM = "/backend.Backend/PredictStream"
FAILURES = (OSError, RuntimeError, TimeoutError, grpc.aio.AioRpcError)
"""The errors that end the measurement of one path, but not of the others."""


@dataclass(frozen=True)
class Measurement:
    """The calls to make, the backends, and the paths."""

    key: str
    title: str
    request: backend_pb2.PredictOptions
    load: Load
    backends: tuple[str, ...] = ("C++", "Python")
    paths: tuple[str, ...] = PATHS

    @property
    def kind(self) -> str:
        """The kind of operation: a call or a message."""
        return "call" if self.load.mode == "unary" else "message"


def seconds(measurements: Sequence[Measurement]) -> float:
    """Return about how long the measurements take at least."""
    return REPETITIONS * sum(
        len(m.backends) * len(m.paths) * (m.load.seconds + m.load.warmup + 0.1)
        for m in measurements
    )


async def measure(name: str, measurements: Sequence[Measurement]) -> None:
    """Measure all and print the tables."""
    heading(
        f"{name}: {REPETITIONS} interleaved repetitions, medians"
        f" (about {seconds(measurements) / 60:.1f} minutes)"
    )
    rows: list[Row] = []
    backends = [b for b in ("C++", "Python") if any(b in m.backends for m in measurements)]
    with tempfile.TemporaryDirectory() as folder:
        async with stage(*backends) as it:
            await it.start_loader()
            for backend in backends:
                ways = await routes(it, backend)
                for measurement in measurements:
                    if backend in measurement.backends:
                        chosen = [ways[path] for path in measurement.paths]
                        rows += await repeat(with_request(measurement, Path(folder)), chosen)
    RECORD.traffic += rows
    print(tables(rows))


def with_request(measurement: Measurement, folder: Path) -> Measurement:
    """Write the request to a file in the folder; return the measurement that sends it."""
    request = folder / measurement.key
    request.write_bytes(measurement.request.SerializeToString())
    return replace(measurement, load=replace(measurement.load, request=request))


async def repeat(measurement: Measurement, ways: Sequence[Route]) -> list[Row]:
    """Measure each route in turn, once a repetition; return the rows of those that worked."""
    rows = [
        Row(measurement.key, measurement.title, measurement.kind, way.backend, way.name)
        for way in ways
    ]
    working = list(zip(ways, rows, strict=True))
    began = time.monotonic()
    for repetition in range(REPETITIONS):
        # Alternate the order, so that no route always follows the same one.
        for way, row in list(working) if repetition % 2 == 0 else list(reversed(working)):
            where = f"{way.backend} backend, {way.name}"
            progress(f"{measurement.title}, {where} ({repetition + 1}/{REPETITIONS})")
            try:
                sample = await way.measure(measurement.load)
            except LoadError as error:
                RECORD.failed(f"{where}, {measurement.title}", error)
            except FAILURES as error:
                RECORD.failed(where, error)
            else:
                if sample.errors:
                    why = f"{sample.errors} calls failed: {sample.error}"
                    RECORD.failed(f"{where}, {measurement.title}", why)
                row.samples.append(sample)
                continue
            working.remove((way, row))
            row.samples.clear()
    backend = ways[0].backend
    progress(f"{measurement.title}, {backend} backend: {time.monotonic() - began:.0f} s", end=True)
    return [row for row in rows if row.samples]
