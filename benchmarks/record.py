"""The results of one run of the benchmarks, as written to its JSON file.

    {"schema": 1, "date", "seconds", "full", "commit", "machine": {...},
     "traffic":  [{"measurement", "title", "kind", "backend", "path",
                   "samples": [Sample, ...], "medians": {...}}],
     "lines":    [{"benchmark", "heading", "label", "figure", "goal", "met"}],
     "values":   {"name": number},
     "failures": [{"where", "why"}]}

`traffic` has a sample for each repetition, in order: samples of two paths at the same index were taken
side by side. `values` are the single figures that have goals.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import psutil

from .generator import Sample

SCHEMA = 1
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("grpcio", "protobuf", "uvloop")


@dataclass
class Row:
    """One measurement on one path to one backend."""

    measurement: str
    title: str
    kind: str
    """`call` or `message`: what an operation is."""
    backend: str
    path: str
    samples: list[Sample] = field(default_factory=list)

    def median(self, of: str) -> float:
        """Return the median of a figure of the samples."""
        values: list[float] = [getattr(sample, of) for sample in self.samples]
        return median(values)

    def medians(self) -> dict[str, float]:
        """Return the medians of all figures."""
        names = ("rate", "p50", "p99", "cpu", "backend_cpu", "client_cpu")
        return {name: round(self.median(name), 3) for name in names}

    def ratio(self, of: str, base: Row) -> float:
        """Return the median of the figure's ratios to those of `base`, repetition by repetition."""
        pairs = zip(self.samples, base.samples, strict=False)
        ratios: list[float] = [getattr(a, of) / getattr(b, of) for a, b in pairs]
        return median(ratios)

    def added(self, of: str, base: Row) -> float:
        """Return the median of the figure's differences from those of `base`, repetition by repetition."""
        pairs = zip(self.samples, base.samples, strict=False)
        differences: list[float] = [getattr(a, of) - getattr(b, of) for a, b in pairs]
        return median(differences)


@dataclass(frozen=True)
class Line:
    """A figure as shown to people, with its goal if it has one."""

    benchmark: str
    heading: str
    label: str
    figure: str
    goal: str = ""
    met: bool | None = None


@dataclass
class Record:
    """All results of a run."""

    full: bool = False
    benchmark: str = ""
    """The name of the running benchmark."""
    heading: str = ""
    traffic: list[Row] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    values: dict[str, float] = field(default_factory=dict)
    failures: list[dict[str, str]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    """`date`, `seconds`, `commit`, `machine`."""

    def row(self, measurement: str, backend: str, path: str) -> Row | None:
        """Return a row that has samples, or None."""
        for row in self.traffic:
            if (row.measurement, row.backend, row.path) == (measurement, backend, path):
                return row if row.samples else None
        return None

    def failed(self, where: str, why: BaseException | str) -> None:
        """Record what could not be measured; repeated failures are recorded once."""
        text = (said(why).strip() or type(why).__name__).splitlines()[0][:300]
        failure = {"where": where, "why": text}
        if failure not in self.failures:
            self.failures.append(failure)
            print(f"  FAILED {where}: {text}", flush=True)

    def write(self, path: Path) -> None:
        """Write the record as JSON."""
        content = {
            "schema": SCHEMA,
            "full": self.full,
            **self.facts,
            "traffic": [asdict(row) | {"medians": row.medians()} for row in self.traffic],
            "lines": [asdict(line) for line in self.lines],
            "values": self.values,
            "failures": self.failures,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n")


def said(why: BaseException | str) -> str:
    """Return an error's message; for an RPC, its status code and details."""
    if isinstance(why, grpc.aio.AioRpcError):
        return f"{why.code().name}: {why.details()}"
    return str(why)


def read(path: Path) -> Record:
    """Read a record that `write` wrote. Raises ValueError for any other file."""
    content = json.loads(path.read_text())
    if content.get("schema") != SCHEMA:
        raise ValueError(f"{path} is no result of this program")
    return Record(
        full=content["full"],
        traffic=[
            Row(
                **{name: row[name] for name in ("measurement", "title", "kind", "backend", "path")},
                samples=[Sample(**sample) for sample in row["samples"]],
            )
            for row in content["traffic"]
        ],
        lines=[Line(**line) for line in content["lines"]],
        values=content["values"],
        failures=content["failures"],
        facts={key: content[key] for key in ("date", "seconds", "commit", "machine")},
    )


def facts(seconds: float) -> dict[str, Any]:
    """Return the date, the machine and the commit of the run."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "seconds": round(seconds),
        "commit": _commit(),
        "machine": {
            "processor": _processor(),
            "processors": os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "system": f"{platform.system()} {platform.release()}",
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
            "load": round(os.getloadavg()[0], 1),
        },
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    name = git("rev-parse", "--short=10", "HEAD")
    return name + (" with changes" if git("status", "--porcelain", "-uno") else "")


def _processor() -> str:
    lines: Iterable[str] = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


RECORD = Record()
"""The record of this process's run."""
