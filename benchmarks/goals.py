"""The data plane's goals, and whether a run meets them. Pure: the only input is a record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .paths import BARE, DIRECT, ENDPOINT, GATEWAY, RESOLVED, SPLICE
from .record import Record


@dataclass(frozen=True)
class Goal:
    """A limit for a figure of one path compared with another path's: a maximum, or a minimum."""

    text: str
    measurement: str
    backend: str
    path: str
    base: str
    figure: str
    """A field of `Sample`."""
    limit: float
    at_least: bool = False
    added: bool = False
    """Compare by the difference in milliseconds, not by the ratio."""


@dataclass(frozen=True)
class Single:
    """A single value of the record that must not exceed a limit."""

    text: str
    value: str
    limit: float
    unit: str = ""


@dataclass(frozen=True)
class Verdict:
    """A goal, its measured value (None if not measured), and whether it is met."""

    text: str
    limit: str
    measured: float | None
    met: bool | None


CPP, PYTHON = "C++", "Python"
UNARY, BULK, PACED = "unary-1kib-32", "saturated-64", "paced-64"

GOALS: tuple[Goal, ...] = (
    *(
        Goal(f"gateway, CPU a unary call against the bare proxy ({backend} backend)",
             UNARY, backend, GATEWAY, BARE, "cpu", 1.2)
        for backend in (CPP, PYTHON)
    ),
    Goal("gateway, CPU a streamed message against the bare proxy",
         BULK, CPP, GATEWAY, BARE, "cpu", 1.15),
    Goal("gateway, 64 streams of 20 messages/s: added to the median delay, ms",
         PACED, CPP, GATEWAY, DIRECT, "p50", 0.4, added=True),
    Goal("endpoint, unary calls 32 at a time against direct",
         UNARY, CPP, ENDPOINT, DIRECT, "rate", 0.6, at_least=True),
    Goal("endpoint, 64 saturated streams against direct",
         BULK, CPP, ENDPOINT, DIRECT, "rate", 0.75, at_least=True),
    Goal("endpoint, CPU a unary call against a blind splice",
         UNARY, CPP, ENDPOINT, SPLICE, "cpu", 1.4),
    Goal("endpoint, CPU a streamed message against a blind splice",
         BULK, CPP, ENDPOINT, SPLICE, "cpu", 1.4),
    Goal("ResolveModel, unary calls 32 at a time against direct",
         UNARY, CPP, RESOLVED, DIRECT, "rate", 0.97, at_least=True),
    Goal("ResolveModel, 64 saturated streams against direct",
         BULK, CPP, RESOLVED, DIRECT, "rate", 0.97, at_least=True),
)  # fmt: skip

OURS = "all"
"""The backend in the rows of a run with peers, where the name of a path includes its backend."""
BESIDE = "peers-unary-1kib-32"


def _ahead(way: str, backend: str, peer: str, limit: float) -> Goal:
    text = f"{way} before a {backend} backend, 32 at a time, against {peer}"
    return Goal(text, BESIDE, OURS, f"{way}, {backend}", peer, "rate", limit, at_least=True)


PEER_GOALS = (
    _ahead(GATEWAY, PYTHON, "mlserver-worker", 1.6),
    _ahead(GATEWAY, PYTHON, "ray", 3),
    _ahead(GATEWAY, PYTHON, "pytriton", 3),
    _ahead(ENDPOINT, PYTHON, "mlserver", 1.5),
    *(
        _ahead(ENDPOINT, CPP, peer, 1)
        for peer in ("mlserver", "mlserver-worker", "triton", "pytriton", "bentoml", "ray")
    ),
)

SINGLES = (
    Single("memory of an idle stream through the gateway against the bare proxy (1,000)",
           "idle_stream_ratio", 1.15),
    Single("four idle services together, PSS", "idle_services_pss_mb", 120, "MB"),
    Single("conversation, first token of turn 4 against turn 1", "last_turn_ratio", 1.2),
    Single("calls that failed while their model was reloaded", "reload_failures", 0),
    Single("soak: rules that were broken", "soak_failures", 0),
)  # fmt: skip


def verdicts(record: Record) -> Iterator[Verdict]:
    """Return the verdict on each goal."""
    peers = PEER_GOALS if any(row.measurement == BESIDE for row in record.traffic) else ()
    for goal in (*GOALS, *peers):
        yield _judged(goal, record)
    for single in SINGLES:
        value = record.values.get(single.value)
        met = None if value is None else value <= single.limit
        yield Verdict(single.text, f"≤ {single.limit:g} {single.unit}".strip(), value, met)


def _judged(goal: Goal, record: Record) -> Verdict:
    limit = f"{'≥' if goal.at_least else '≤'} {goal.limit:g}"
    row = record.row(goal.measurement, goal.backend, goal.path)
    base = record.row(goal.measurement, goal.backend, goal.base)
    if row is None or base is None:
        return Verdict(goal.text, limit, None, None)
    measure: Callable[[], float] = lambda: (
        row.added(goal.figure, base) / 1e3 if goal.added else row.ratio(goal.figure, base)
    )
    measured = measure()
    met = measured >= goal.limit if goal.at_least else measured <= goal.limit
    return Verdict(goal.text, limit, measured, met)
