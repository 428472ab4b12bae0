"""Room for one of two models: what deciding on an eviction costs, and how two groups of clients share it.

The decision: a call to the model that is not loaded, against unloading one and loading the other by hand.
The contest: each group always calls its own model. With a `starvation_bound` of 0 every call's model is
loaded at once, which is the thrashing that the rule prevents; it is compared with the rule.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corral.backend import backend_pb2
from corral.loader.v1 import loader_pb2 as pb
from tests.tools.running import LoaderUnderTest

from .figures import count_starts, heading, ms, named, predict, show, starts, timed, unload

REPETITIONS = 15
MODELS = ("a", "b")
CLIENTS = 4
SECONDS, FULL_SECONDS = 20.0, 60.0
START_SECONDS = 1.0
"""A generous limit for starting one Python backend and ending another."""
CALL_SECONDS = 0.02
LOADING = {pb.Model.STATE_STARTING, pb.Model.STATE_LOADING}
BOUND = 3.0
RULES = {"no rule (starvation_bound 0 s)": 0.0, f"the rule (starvation_bound {BOUND:g} s)": BOUND}
LOADING_GOAL = 0.6
"""The maximum share of the time that is spent loading: half (docs/scheduling.md), plus the first loads, which
need no eviction."""


@dataclass(frozen=True)
class Pattern:
    """How two groups of clients call, and how long a load takes; in seconds."""

    name: str
    pause: float = 0.0
    load: float = 1.0


PATTERNS = (
    Pattern("call without a pause"),
    Pattern("pause between calls", pause=0.2),
    Pattern("call without a pause, loads longer than starvation_bound", load=4.0),
)


@dataclass
class Contest:
    """The result of a contest."""

    seconds: float
    loads: int
    serving: float
    """Seconds in which a model was ready."""
    loading: float
    """Seconds in which a model was starting or loading, and none was ready."""
    waits: list[float]
    """How long each call took, in seconds."""


async def run(*, full: bool) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        loader = await _started(Path(folder), {}, "--max-active-backends", "1")
        try:
            evictions, by_hand = await _decisions(loader)
        finally:
            await loader.close()
    heading(f"eviction: one place, two models; {REPETITIONS} interleaved repetitions, medians")
    show("unload one, load the other, call it", ms(statistics.median(by_hand)))
    show("call it, which evicts one", ms(statistics.median(evictions)))
    pairs = zip(evictions, by_hand, strict=True)
    show("  added by the decision", ms(statistics.median(x - y for x, y in pairs)))
    seconds = FULL_SECONDS if full else SECONDS
    for pattern in PATTERNS:
        show(
            f"two groups of {CLIENTS} clients that {pattern.name}, {seconds:g} s;"
            f" a load takes {pattern.load:g} s and the start of a Python backend",
            "",
        )
        for rule, bound in RULES.items():
            _report(rule, pattern, bound, await _contest(pattern, bound, seconds))


async def _started(home: Path, behaviour: dict[str, Any], *arguments: str) -> LoaderUnderTest:
    loader = LoaderUnderTest(home / "home")
    for name in MODELS:
        count_starts(loader.add_backend(name, **behaviour))
        loader.add_model(name, name)
    await loader.start("--log-level", "error", *arguments)
    return loader


async def _decisions(loader: LoaderUnderTest) -> tuple[list[float], list[float]]:
    evictions, by_hand = [], []
    for _ in range(REPETITIONS):
        await predict(loader, "a")
        began = time.perf_counter()
        await unload(loader, "a")
        await predict(loader, "b")
        by_hand.append(time.perf_counter() - began)
        await unload(loader, "b")
        await predict(loader, "a")
        evictions.append(await timed(predict(loader, "b")))
        await unload(loader, "b")
    return evictions, by_hand


async def _contest(pattern: Pattern, bound: float, seconds: float) -> Contest:
    behaviour = {"load_seconds": pattern.load, "call_seconds": CALL_SECONDS}
    with tempfile.TemporaryDirectory() as folder:
        arguments = ("--max-active-backends", "1", "--starvation-bound", f"{bound:g}s")
        loader = await _started(Path(folder), behaviour, *arguments)
        waits: list[float] = []
        try:
            end = time.perf_counter() + seconds
            states = asyncio.create_task(_states(loader, seconds))
            clients = [
                _client(loader, model, pattern.pause, end, waits)
                for model in MODELS
                for _ in range(CLIENTS)
            ]
            await asyncio.gather(*clients)
            loads = sum(starts(loader.backends / name) for name in MODELS)
            serving, loading = await states
            return Contest(seconds, loads, serving, loading, waits)
        finally:
            await loader.close()


async def _client(
    loader: LoaderUnderTest, model: str, pause: float, end: float, waits: list[float]
) -> None:
    while time.perf_counter() < end:
        request = backend_pb2.PredictOptions(Prompt=model)
        waits.append(await timed(loader.data.Predict(request, metadata=named(model))))
        await asyncio.sleep(pause)


async def _states(loader: LoaderUnderTest, seconds: float) -> tuple[float, float]:
    """Return how long a model was ready, and how long one was being loaded while none was ready."""
    watch = loader.control.WatchModels(pb.WatchModelsRequest())
    began = since = time.perf_counter()
    serving = loading = 0.0
    states: dict[str, int] = {}
    while since < began + seconds:
        model = None
        with suppress(TimeoutError):
            model = (await asyncio.wait_for(watch.read(), began + seconds - since)).model
        now = time.perf_counter()
        if pb.Model.STATE_READY in states.values():
            serving += now - since
        elif LOADING & set(states.values()):
            loading += now - since
        since = now
        if model is not None:
            states[model.name] = model.state
    watch.cancel()
    return serving, loading


def _report(rule: str, pattern: Pattern, bound: float, contest: Contest) -> None:
    serving, loading = contest.serving / contest.seconds, contest.loading / contest.seconds
    # A call may arrive just after the other model's turn began: it waits for that model's load and turn,
    # and then for its own model's load.
    goal = bound + 2 * (pattern.load + START_SECONDS)
    longest = max(contest.waits)
    show(rule, "")
    show("  loads a second", f"{contest.loads / contest.seconds:.2f}")
    show("  share of the time in which a model serves", f"{serving * 100:.0f} %")
    # A model that stays loaded no longer than the bound cannot make up for a load that takes longer.
    met = loading <= LOADING_GOAL if bound and pattern.load <= bound else None
    text = f"at most {LOADING_GOAL * 100:.0f} %"
    show("  share of the time that goes into loading", f"{loading * 100:.0f} %", text, met=met)
    show("  answers a second", f"{len(contest.waits) / contest.seconds:.1f}")
    met = longest <= goal if bound else None
    show("  longest wait of any call", f"{longest:.1f} s", f"{goal:g} s", met=met)
