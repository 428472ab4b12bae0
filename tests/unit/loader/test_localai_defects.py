"""LocalAI's defects: the tests that need no process, and a check that none is left out.

The others are in tests/integration/loader/localai. Each test's name has its defect's number.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.loader.devices.devices import Device
from services.loader.processes.lookup import birth, is_process, own_group
from services.loader.scheduling.watchdog import short_of_memory
from tests.tools.waiting import eventually_sync

ROOT = Path(__file__).resolve().parents[3]
SERVICES = ROOT / "services"
TESTS = ROOT / "tests"

V2 = {
    1: "one slow load or hanging health check stalls every model",
    2: "two concurrent first calls start two processes, and one is orphaned",
    3: "autoload takes the addresses of external backends for names",
    4: "the watchdog and the end of a call wait for each other",
    5: "the watchdog cannot be stopped",
    6: "parallel calls reset the busy time, and the first end makes a model idle",
    7: "a model in use is stopped, as `busy` is one flag for many calls",
    8: "stopping all goes through a map that changes meanwhile",
    9: "helper processes survive, as only one pid is signalled; SIGKILL follows SIGTERM at once",
    10: "monitor and shutdown append .bin to the name",
    11: "all models without a file share one key",
    12: "a dead address is returned for ever",
    13: "errors of loads at the start are lost; folders and watchers of output are left",
    14: "a log line has the resolved name twice, and the alias not at all",
}
HEAD = {
    1: "the first candidate's failure keeps the others from their try",
    2: "a model that starts is evicted for its own second call",
    3: "loads in progress are counted twice, and two cold models may exceed the limit",
    4: "an exit at the start is noticed after 40 s",
    5: "the first caller's cancellation ends the load of all, and counts as a failure",
    6: "those who waited for a failed load try again one by one",
    7: "typed errors are lost; a refused admission counts as a failed load",
    8: "a crash is noticed after up to 30 s",
    9: "a process that fails Health is taken for healthy",
    10: "what failed, crashed or was stopped still counts and is evicted",
    11: "a load counts as a stuck call; a model that was too busy to go is no longer watched",
    12: "changing the watchdogs hangs, and forgets or freezes what runs",
    13: "no retries turn the limits off, and pins exceed them, silently",
    14: "the reclaimer evicts before memory is back, adds up all GPUs, and starts processes to look",
    15: "files are looked at, and perhaps fetched, for each call",
    16: "waiting for any child steals the exit codes of others",
    17: "signal handlers add up, the exit has no deadline, and a second signal is ignored",
    18: "the stop after a failed load is reported as a crash",
    19: "unfinished installs are listed as backends",
    20: "`busy` is inverted, names with # are mixed up, logs of a model without any are dead",
    21: "anybody on the machine may call a backend's port",
    22: "a connection for each call",
    23: "stdin is closed, a log that cannot be opened ends all, pids of others are signalled, zombies live",
    24: "state is read without its lock",
}

CANNOT = {
    "V2 8": "no lock is needed: every change of a model runs to its end on the event loop",
    "V2 13": "no process has a folder or a watcher of its output that could be left",
    "HEAD 7": "errors are passed on as objects, and become texts at the edge only",
    "HEAD 12": "there is one watchdog from the start to the end; it reads the settings at each look",
    "HEAD 16": "nobody waits for any child, as the test checks",
    "HEAD 23": "backends write into pipes, so there is no file to open; a group is signalled only while"
    " its leader is not waited for, or known by its start time",
    "HEAD 24": "there is one thread that touches the state; debug mode raises where another tries",
}
"""Parts of defects that cannot occur here, and why; the other parts are tested."""


def numbers_tested() -> Iterator[str]:
    for file in TESTS.rglob("test_*defects.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (
                found := re.match(r"test_(v2|head)_(\d\d)_", node.name)
            ):
                yield f"{found[1].upper()} {int(found[2])}"


def test_no_defect_is_left_out() -> None:
    wanted = {f"V2 {n}" for n in range(1, 15)} | {f"HEAD {n}" for n in range(1, 25)}
    named = {f"V2 {n}" for n in V2} | {f"HEAD {n}" for n in HEAD}
    assert named == wanted
    assert set(numbers_tested()) == wanted
    assert CANNOT.keys() < wanted


def calls(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield every dotted name that is called."""
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                yield file, ast.unparse(node.func)


@pytest.mark.parametrize("total", [10, 24 * 1024**3])
def test_head_14_one_full_gpu_is_not_hidden_by_an_empty_one(total: int) -> None:
    full = Device("gpu0", "", total, available=0)
    empty = Device("gpu1", "", total, available=total)
    assert short_of_memory((empty, full), 0.95) is full
    assert short_of_memory((empty,), 0.95) is None
    assert short_of_memory((Device("gpu0", "", 0, 0),), 0.95) is None


def test_head_14_looking_at_memory_starts_no_process() -> None:
    looked = [*(SERVICES / "loader" / "devices").glob("*.py")]
    looked += [SERVICES / "loader" / name for name in ("memory/meter.py", "scheduling/ledger.py")]
    for name in looked:
        text = name.read_text()
        assert "subprocess" not in text and "os.system" not in text, name


def test_head_16_nobody_waits_for_any_child() -> None:
    """Each process is waited for by its own pid, through the object that started it."""
    forbidden = {"os.wait", "os.wait3", "os.wait4", "os.waitpid"}
    assert not {(file, name) for file, name in calls(SERVICES) if name in forbidden}
    for file in SERVICES.rglob("*.py"):
        text = file.read_text()
        assert "signal.SIGCHLD" not in text and "P_ALL" not in text, file


def test_head_23_a_pid_that_somebody_else_has_by_now_is_not_ours() -> None:
    command = [sys.executable, "-S", "-c", "import signal; signal.pause()"]
    marker = "CORRAL_INSTANCE=theirs"
    env = dict([marker.split("=")])
    with subprocess.Popen(command, env=env, start_new_session=True) as other:
        try:
            assert eventually_sync(
                lambda: is_process(other.pid, birth(other.pid), marker), what="its environment"
            )
            assert not is_process(other.pid, "another boot/1", marker)
            assert not is_process(other.pid, birth(other.pid), "CORRAL_INSTANCE=ours")
            assert own_group(other.pid, "CORRAL_INSTANCE=ours", leads=False) == []
        finally:
            other.kill()
