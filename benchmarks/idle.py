"""What the four services use while idle, when started by `corral up`."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from statistics import median

import psutil

from services.cli.client.addresses import SERVICES
from tests.tools.corral_command import started
from tests.tools.waiting import eventually

from .clocks import cpu_seconds, memory, tree
from .figures import heading, progress, show
from .record import RECORD

GOAL = 120.0
"""The maximum PSS of all four services together, in MB."""
SETTLE = 3.0
SECONDS, FULL_SECONDS = 10.0, 60.0
LOOKS = 5
READY_TIMEOUT = 30.0


async def run(*, full: bool) -> None:
    """Measure and print."""
    seconds = FULL_SECONDS if full else SECONDS
    heading(f"idle: the four services idle for {seconds:g} s, memory as a median of {LOOKS} looks")
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        folders = ["--models-path", str(home / "models"), "--backends-path", str(home / "backends")]
        for folder in folders[1::2]:
            Path(folder).mkdir()  # noqa: ASYNC240 - nothing else runs
        began = time.perf_counter()
        async with started(home, "up", "--listen", "127.0.0.1:0", *folders) as up:
            file = home / "run" / "endpoints.json"  # written when all services are ready
            await eventually(file.exists, timeout=READY_TIMEOUT, what="corral up")
            show("start of `corral up` to all four ready", f"{time.perf_counter() - began:.2f} s")
            progress("idling")
            await asyncio.sleep(SETTLE)
            await _idle(up.pid, seconds)
            up.terminate()
            await up.communicate()


async def _idle(supervisor: int, seconds: float) -> None:
    pids = [pid for pid in tree(supervisor) if pid != supervisor]
    used = {pid: cpu_seconds([pid]) for pid in (*pids, supervisor)}
    looks = []
    for _ in range(LOOKS):
        await asyncio.sleep(seconds / LOOKS)
        looks.append({pid: (memory([pid]), memory([pid], "Rss")) for pid in (*pids, supervisor)})

    def line(pid: int) -> str:
        pss, rss = (median(look[pid][place] for look in looks) / 1e6 for place in (0, 1))
        share = (cpu_seconds([pid]) - used[pid]) / seconds
        return f"{pss:.1f} MB, {rss:.1f} MB RSS, {share:.2%} CPU"

    def together(some: list[int]) -> float:
        return median(sum(look[pid][0] for pid in some) for look in looks) / 1e6

    for pid in pids:
        show(_name(pid), line(pid))
    show("the supervisor", line(supervisor))
    four = [pid for pid in pids if _name(pid).removeprefix("services.") in SERVICES]
    total = RECORD.values["idle_services_pss_mb"] = together(four)
    show("the four services together", f"{total:.1f} MB", f"{GOAL:g} MB", met=total <= GOAL)
    show("the same with the fork server and the loader's guard", f"{together(pids):.1f} MB")


def _name(pid: int) -> str:
    """Return a process's name: its module, or the name it gives itself."""
    words = [word for word in psutil.Process(pid).cmdline() if word]
    if "-m" in words:
        return words[words.index("-m") + 1]
    scripts = [Path(word).name for word in words if word.endswith(".py")]
    return scripts[0] if scripts else Path(words[0]).name
