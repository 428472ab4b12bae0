"""Client processes that come and go: they end cleanly, are killed, or are stopped and killed later."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("client.py")
LIFE = (3.0, 12.0)
"""Seconds for which a client makes calls."""
STOPPED = (2.0, 6.0)
"""Seconds for which a client is stopped before it is killed."""
FATES = ("ends", "killed", "vanishes")
END_TIMEOUT = 20.0
LONGEST_LINE = 1024 * 1024


@dataclass(frozen=True)
class Way:
    """A route to a model."""

    name: str
    model: str
    target: str
    metadata: tuple[tuple[str, str], ...] = ()
    direct: bool = False
    """Resolves the model at the target, and calls its address."""


@dataclass(frozen=True)
class Trouble:
    """A call that failed."""

    way: Way
    kind: str
    at: float
    """When the call began; `end` is when it ended (CLOCK_MONOTONIC)."""
    end: float
    code: str
    reason: str
    text: str


@dataclass
class Story:
    """What the clients of a soak test did, and which failures they saw."""

    calls: Counter[str] = field(default_factory=Counter)
    fates: Counter[str] = field(default_factory=Counter)
    troubles: list[Trouble] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """Errors of the clients themselves."""


async def come_and_go(way: Way, story: Story, number: int) -> None:
    """Run one client after the other on a route, until cancelled."""
    chance = random.Random(number)
    fates: Iterator[str] = itertools.cycle(chance.sample(FATES, len(FATES)))
    while True:
        await live(way, story, chance.randrange(2**31), next(fates), chance.uniform(*LIFE), chance)


async def live(
    way: Way, story: Story, seed: int, fate: str, seconds: float, chance: random.Random
) -> None:
    """Run one client for some seconds, then end it by its `fate`."""
    settings = json.dumps({**asdict(way), "seed": seed})
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(PROGRAM), settings),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT / "sdk" / "python")},
        limit=LONGEST_LINE,
    )
    hearing = asyncio.create_task(_hear(process, way, story))
    errors = asyncio.create_task(_rest(process))
    try:
        await asyncio.wait([hearing], timeout=seconds)
        if process.returncode is not None or hearing.done():
            story.faults.append(f"{way.name}: a client ended: {(await errors)[-500:]}")
            return
        if fate == "vanishes":
            process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(chance.uniform(*STOPPED))
        if fate != "ends":
            process.kill()
        assert process.stdin is not None
        process.stdin.close()
        async with asyncio.timeout(END_TIMEOUT):
            await process.wait()
        if fate == "ends" and process.returncode:
            story.faults.append(f"{way.name}: a client failed: {(await errors)[-500:]}")
        story.fates[fate] += 1
    except TimeoutError:
        story.faults.append(f"{way.name}: a client hangs at its end")
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await asyncio.gather(hearing, errors)


async def _hear(process: asyncio.subprocess.Process, way: Way, story: Story) -> None:
    """Read a client's output until it ends."""
    assert process.stdout is not None
    counts: dict[str, int] = {}
    async for line in process.stdout:
        try:
            said = json.loads(line)
        except ValueError:
            continue  # the client was killed while writing the line
        if "counts" in said:
            counts = said["counts"]
        else:
            story.troubles.append(Trouble(way, **said))
    story.calls.update(counts)


async def _rest(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    return (await process.stderr.read()).decode(errors="replace")
