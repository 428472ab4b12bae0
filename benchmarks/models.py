"""A models folder with thousands of configurations, against an empty one: start, pages, changes, idling."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from corral.loader.v1 import loader_pb2 as pb
from tests.tools.running import LoaderUnderTest

from .figures import heading, ms, p99, show, timed

MODELS = 5000
REPETITIONS = 5
PAGES = 40
CHANGES = 20
REWRITTEN = 1000
IDLE_SECONDS = 10.0
PAUSE = 0.005

CONFIG = """name: {name}
backend: llama-cpp
context_size: {context}
f16: true
known_usecases: [chat, completion]
parameters:
  model: {name}.gguf
  temperature: 0.7
stopwords:
- <|im_end|>
- <|eot_id|>
template:
  chat: |
    {{{{.Input -}}}}
    <|im_start|>assistant
  chat_message: |
    <|im_start|>{{{{ .RoleName }}}}
    {{{{ if .FunctionCall -}}}}
    Function call:
    {{{{ else if eq .RoleName "tool" -}}}}
    Function response:
    {{{{ end -}}}}
    {{{{ .Content }}}}<|im_end|>
options:
- use_jinja:true
"""


@dataclass
class Result:
    """The measurements, in seconds, except `idle`, which is processor time a second."""

    starts: list[float] = field(default_factory=list)
    start_cpu: list[float] = field(default_factory=list)
    pages: list[float] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)
    idle: float = 0.0


async def run(*, full: bool) -> None:
    """Measure and print."""
    results = {count: Result() for count in (1, MODELS)}
    with tempfile.TemporaryDirectory() as folder:
        loaders = {count: _laid_out(Path(folder) / str(count), count) for count in results}
        for _ in range(REPETITIONS):
            for count, loader in loaders.items():
                await _start(loader, results[count])
                await loader.close()
        for count, loader in loaders.items():
            await _start(loader, results[count])
            try:
                await _measure(loader, results[count], count)
            finally:
                await loader.close()
    heading(
        f"models: {REPETITIONS} interleaved starts, {PAGES} pages, {CHANGES} changes, with one model and"
        f" with {MODELS}"
    )
    rows: dict[str, tuple[Callable[[Result], float], float]] = {
        "process start to ready, median": (lambda r: statistics.median(r.starts), 3.0),
        "  of it processor time": (lambda r: statistics.median(r.start_cpu), 0),
        "page of 100, median": (lambda r: statistics.median(r.pages), 0),
        "page of 100, slowest": (lambda r: max(r.pages), 0.02),
        "a file's change to WatchModels, median": (lambda r: statistics.median(r.changes), 0),
        "a file's change, slowest": (lambda r: max(r.changes), 1.0),
        f"GetModel while {REWRITTEN} change, p99": (lambda r: p99(r.calls), 0),
        "idle, processor time by the second": (lambda r: r.idle, 0),
    }
    for label, (pick, goal) in rows.items():
        one, many = (pick(result) for result in results.values())
        text, met = (ms(goal), many <= goal) if goal else ("", None)
        show(label, f"{ms(one)}, {ms(many)}", text, met=met)


def _laid_out(home: Path, count: int) -> LoaderUnderTest:
    loader = LoaderUnderTest(home)
    for number in range(count):
        _write(loader, number, 4096)
    return loader


def _write(loader: LoaderUnderTest, number: int, context: int) -> str:
    name = f"model-{number:05}"
    (loader.models / f"{name}.yaml").write_text(CONFIG.format(name=name, context=context))
    return name


async def _start(loader: LoaderUnderTest, result: Result) -> None:
    started = time.perf_counter()
    await loader.start("--log-level", "warn")
    result.starts.append(time.perf_counter() - started)
    result.start_cpu.append(sum(psutil.Process(loader.service.pid).cpu_times()[:2]))


async def _measure(loader: LoaderUnderTest, result: Result, count: int) -> None:
    async def page() -> None:
        await loader.control.ListModels(pb.ListModelsRequest(page_size=100))

    await page()
    process = psutil.Process(loader.service.pid)
    before = sum(process.cpu_times()[:2])
    await asyncio.sleep(IDLE_SECONDS)
    result.idle = (sum(process.cpu_times()[:2]) - before) / IDLE_SECONDS
    result.pages = [await timed(page()) for _ in range(PAGES)]
    watch = loader.control.WatchModels(pb.WatchModelsRequest())
    while (await watch.read()).change_type != pb.WatchModelsResponse.CHANGE_TYPE_SNAPSHOT_END:
        pass
    for number in range(CHANGES):
        name = _write(loader, number % count, 5000 + number)

        async def seen(name: str = name) -> None:
            while (await watch.read()).model.name != f"models/{name}":
                pass

        result.changes.append(await timed(seen()))
    watch.cancel()
    await _while_many_change(loader, result, min(count, REWRITTEN))


async def _while_many_change(loader: LoaderUnderTest, result: Result, count: int) -> None:
    async def get() -> None:
        await loader.control.GetModel(pb.GetModelRequest(name="model-00000"))

    rewriting = asyncio.create_task(asyncio.to_thread(_rewrite, loader, count))
    while not rewriting.done() or len(result.calls) < PAGES * 5:
        result.calls.append(await timed(get()))
        await asyncio.sleep(PAUSE)
    await rewriting


def _rewrite(loader: LoaderUnderTest, count: int) -> None:
    for number in range(count):
        _write(loader, number, 6000)
