"""`corral up` as a real process, with fake services."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from services.cli.client import addresses
from tests.tools.corral_command import command_environment, corral
from tests.tools.processes import alive
from tests.tools.service import ROOT
from tests.tools.waiting import eventually

SERVICES = ("loader", "gallery", "monitor", "metrics")


class Up:
    """A running `corral up`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.told = home / "told"
        self.told.mkdir()
        self.process: asyncio.subprocess.Process
        self.processes: list[asyncio.subprocess.Process] = []

    async def start(self, *words: str, wrapper: str = "env", **modes: str) -> None:
        env = command_environment(
            self.home,
            STANDIN_LOG=str(self.told),
            **{f"STANDIN_{service.upper()}": mode for service, mode in modes.items()},
        )
        self.process = await asyncio.create_subprocess_exec(
            wrapper,
            sys.executable,
            *("-m", "tests.fakes.up_standins", "listen=127.0.0.1:0", *words),
            cwd=ROOT,
            env=env,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=2**24,
        )
        self.processes.append(self.process)

    async def ready(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            line = await self.process.stdout.readline()
        assert line, (await self.process.communicate())[1].decode()
        return dict(json.loads(line))

    async def ends(self) -> tuple[int, str]:
        async with asyncio.timeout(20):
            _, err = await self.process.communicate()
        assert self.process.returncode is not None
        assert b"Traceback" not in err, err.decode()
        return self.process.returncode, err.decode()

    def starts(self, service: str) -> list[str]:
        """Each start of a service: its pid and its arguments."""
        file = self.told / service
        return file.read_text().splitlines() if file.exists() else []

    def has_started(self, service: str, times: int) -> bool:
        return len(self.starts(service)) == times

    def pid(self, service: str) -> int:
        return int(self.starts(service)[-1].split()[0])

    def living(self) -> set[str]:
        return {
            service
            for service in SERVICES
            if any(alive(int(line.split()[0])) for line in self.starts(service))
        }

    @property
    def file(self) -> Path:
        return addresses.addresses_file(self.home)


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[Up]:
    stack = Up(tmp_path)
    yield stack
    for process in stack.processes:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    await eventually(lambda: not stack.living(), timeout=10, what="the end of the stand-ins")


async def test_the_services_are_told_of_each_other_and_others_of_them(up: Up) -> None:
    await up.start("json", "state_path=/s", "log_format=json", "models_path=/m")
    ready = await up.ready()
    where = ready["services"]
    [metrics] = up.starts("metrics")
    [loader] = up.starts("loader")
    [gallery] = up.starts("gallery")
    [monitor] = up.starts("monitor")
    assert "--metrics=" not in metrics
    assert f"--metrics={where['metrics']}" in loader
    assert f"--loader={where['loader']}" in gallery
    assert "--models-path=/m" in gallery
    assert f"--loader={where['loader']}" in monitor
    assert "--models-path" not in monitor
    running = addresses.read(up.file)
    assert running is not None
    assert running.pid == up.process.pid == ready["pid"]
    assert running.addresses["gallery"] == where["gallery"]
    # Other commands find them: one without addresses uses these.
    status = await corral(up.home, "status", "--json")
    assert status.json["services"]["loader"]["address"] == where["loader"]
    assert status.json["up"]["pid"] == up.process.pid


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
async def test_a_signal_stops_all_in_order(up: Up, number: signal.Signals, code: int) -> None:
    await up.start("json")
    await up.ready()
    assert up.living() == set(SERVICES)
    up.process.send_signal(number)
    ended, err = await up.ends()
    assert ended == code
    assert up.living() == set()
    assert not up.file.exists()
    stopped = (up.told / "stopped").read_text().split()
    assert set(stopped[:2]) == {"monitor", "gallery"}
    assert stopped[2:] == ["loader", "metrics"]
    assert "metrics | metrics stopped" in err
    assert err.endswith("corral  | stopped\n")


async def test_a_terminals_ctrl_c_reaches_only_up(up: Up) -> None:
    await up.start("json")
    await up.ready()
    for service in SERVICES:
        assert os.getsid(up.pid(service)) == up.pid(service)


async def test_a_killed_service_comes_back_at_its_address(up: Up) -> None:
    await up.start("json")
    where = (await up.ready())["services"]
    os.kill(up.pid("loader"), signal.SIGKILL)
    await eventually(lambda: len(up.starts("loader")) == 2, timeout=10, what="the restart")
    assert f"--listen={where['loader']}" in up.starts("loader")[1]
    assert len(up.starts("gallery")) == 1
    up.process.terminate()
    _, err = await up.ends()
    assert "the loader ended (killed by SIGKILL)" in err
    assert "try 1 of 2" in err


async def test_a_service_that_keeps_dying_ends_everything(up: Up) -> None:
    await up.start("json")
    await up.ready()
    for starts in (1, 2, 3):
        await eventually(partial(up.has_started, "monitor", starts), timeout=10, what="a restart")
        os.kill(up.pid("monitor"), signal.SIGKILL)
    code, err = await up.ends()
    assert code == 1
    assert "3 times in a row" in err
    assert up.living() == set()
    assert not up.file.exists()


@pytest.mark.parametrize(
    ("mode", "code", "message"),
    [
        (
            "exit-at-start",
            1,
            "the gallery could not start (exit code 1): cannot listen on 127.0.0.1:0: in use",
        ),
        (
            "usage-at-start",
            2,
            "the gallery could not start (exit code 2): --config x: no such setting",
        ),
        ("hang-at-start", 1, "the gallery was not ready within 3 s"),
    ],
)
async def test_a_service_that_cannot_start_ends_everything(
    up: Up, mode: str, code: int, message: str
) -> None:
    await up.start(gallery=mode)
    ended, err = await up.ends()
    assert ended == code
    assert f"error: {message}" in err
    assert "next:  " in err
    assert up.living() == set()
    assert not up.file.exists()


async def test_a_service_that_does_not_stop_is_killed(up: Up) -> None:
    await up.start("json", loader="ignore-sigterm")
    await up.ready()
    up.process.terminate()
    code, err = await up.ends()
    assert code == 0
    assert "the loader did not stop in time and was killed" in err
    assert up.living() == set()


async def test_a_second_signal_kills(up: Up) -> None:
    await up.start("json", monitor="ignore-sigterm")
    await up.ready()
    up.process.terminate()
    await eventually(
        lambda: (up.told / "stopped").exists(), timeout=10, what="the stop of the gallery"
    )
    up.process.terminate()
    code, err = await up.ends()
    assert code == 0
    assert "once more to kill" in err
    assert up.living() == set()


async def test_nohup_is_meant(up: Up) -> None:
    await up.start("json", wrapper="nohup")
    await up.ready()
    up.process.send_signal(signal.SIGHUP)
    # It keeps running: a service that exits is still restarted.
    os.kill(up.pid("monitor"), signal.SIGKILL)
    await eventually(lambda: len(up.starts("monitor")) == 2, timeout=10, what="the restart")


async def test_a_closed_terminal_stops_all(up: Up) -> None:
    await up.start("json")
    await up.ready()
    up.process.send_signal(signal.SIGHUP)
    assert (await up.ends())[0] == 0
    assert up.living() == set()


async def test_a_signal_during_the_start_stops_what_was_started(up: Up) -> None:
    await up.start("json", loader="hang-at-start")
    await eventually(lambda: bool(up.starts("loader")), timeout=10, what="the loader's start")
    up.process.terminate()
    code, _ = await up.ends()
    assert code == 0
    assert up.living() == set()
    assert not up.starts("gallery")


async def test_sigkill_of_up_takes_the_services_with_it(up: Up) -> None:
    await up.start("json")
    await up.ready()
    up.process.kill()
    await eventually(lambda: not up.living(), timeout=5, what="the end of the services")
    # The file stays, but is ignored.
    assert up.file.exists()
    assert addresses.read(up.file) is None
    # And it does not get in the way of the next start.
    await up.start("json")
    await up.ready()


async def test_only_one_runs_in_a_home(up: Up) -> None:
    await up.start("json")
    await up.ready()
    first = up.process
    await up.start()
    code, err = await up.ends()
    assert code == 1
    assert f"`corral up` already runs (pid {first.pid})" in err
    assert addresses.read(up.file) is not None


async def test_a_flood_of_log_lines_comes_through(up: Up) -> None:
    await up.start("json", metrics="flood")
    await up.ready()
    up.process.terminate()
    _, err = await up.ends()
    assert sum(line.startswith("metrics | line ") for line in err.splitlines()) == 2000


async def test_a_log_that_nobody_reads_stops_nothing(up: Up) -> None:
    await up.start("json")
    await up.ready()
    assert up.process.stderr is not None
    up.process.stderr._transport.close()  # type: ignore[attr-defined]
    os.kill(up.pid("loader"), signal.SIGKILL)
    await eventually(lambda: len(up.starts("loader")) == 2, timeout=10, what="the restart")


@pytest.mark.parametrize("words", [(), ("json",)])
async def test_a_summary_that_nobody_reads_stops_nothing(up: Up, words: tuple[str, ...]) -> None:
    await up.start(*words)
    assert up.process.stdout is not None
    up.process.stdout._transport.close()  # type: ignore[attr-defined]
    await eventually(lambda: addresses.read(up.file) is not None, timeout=20, what="the start")
    os.kill(up.pid("loader"), signal.SIGKILL)
    await eventually(lambda: len(up.starts("loader")) == 2, timeout=10, what="the restart")


async def test_the_log_as_json(up: Up) -> None:
    await up.start("json", "log_format=json")
    await up.ready()
    up.process.terminate()
    _, err = await up.ends()
    lines = [json.loads(line) for line in err.splitlines()]
    assert {line["service"] for line in lines} == {*SERVICES, "corral"}


async def test_people_are_told_what_to_do_next(up: Up) -> None:
    await up.start()
    assert up.process.stdout is not None
    async with asyncio.timeout(20):
        text = (await up.process.stdout.readuntil(b"Ctrl-C stops everything.")).decode()
    assert "Corral is up." in text
    assert "corral models --available" in text
    running = addresses.read(up.file)
    assert running is not None
    assert all(running.addresses[service] in text for service in SERVICES)


async def test_a_home_that_cannot_be_written(up: Up) -> None:
    (up.home / "run").write_text("a file")
    await up.start()
    code, err = await up.ends()
    assert code == 1
    assert "error: cannot write to" in err
    assert "CORRAL_HOME" in err
