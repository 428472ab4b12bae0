"""compose.yaml, checked by what it says and by running each container's command as a process."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tools.running import ROOT

SERVICES = ("metrics", "loader", "gallery", "monitor")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
BIN = Path(sys.executable).parent


def test_it_has_the_four_services() -> None:
    assert set(COMPOSE["services"]) == set(SERVICES)


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_is_built_supervised_and_checked(name: str) -> None:
    service = COMPOSE["services"][name]
    assert (ROOT / service["build"]["dockerfile"]).is_file()
    assert service["init"] is True
    listen = service["command"][service["command"].index("--listen") + 1]
    port = listen.rpartition(":")[2]
    assert service["healthcheck"]["test"][-1] == f"127.0.0.1:{port}"
    # Everything is published, and on loopback only.
    published = [port for each in COMPOSE["services"].values() for port in each.get("ports", ())]
    assert f"127.0.0.1:{port}:{port}" in published
    assert all(entry.startswith("127.0.0.1:") for entry in published)


@pytest.mark.parametrize("name", SERVICES)
def test_named_volumes_are_declared_and_addresses_lead_somewhere(name: str) -> None:
    service = COMPOSE["services"][name]
    for volume in service["volumes"]:
        assert volume.partition(":")[0] in COMPOSE["volumes"]
    for flag in ("--loader", "--metrics"):
        if flag in service["command"]:
            host = service["command"][service["command"].index(flag) + 1].partition(":")[0]
            assert host in COMPOSE["services"] or (host == "127.0.0.1" and name == "monitor")


def test_models_are_shared_and_the_monitor_sees_the_loaders_processes() -> None:
    services = COMPOSE["services"]
    assert set(services["gallery"]["volumes"]) == set(services["loader"]["volumes"])
    assert services["monitor"]["pid"] == "service:loader"
    assert services["monitor"]["network_mode"] == "service:loader"


@pytest.mark.parametrize("name", SERVICES)
async def test_each_command_serves_and_passes_its_health_check(name: str, tmp_path: Path) -> None:
    service = COMPOSE["services"][name]
    program, *arguments = [
        "127.0.0.1:0" if argument.startswith("0.0.0.0:") else argument
        for argument in service["command"]
    ]
    process = await asyncio.create_subprocess_exec(
        BIN / program,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "CORRAL_HOME": str(tmp_path)},
    )
    try:
        assert process.stdout is not None
        ready = (await asyncio.wait_for(process.stdout.readline(), 20)).decode().split()
        assert ready[:2] == ["ready", name]
        check = service["healthcheck"]["test"]
        assert check[:2] == ["CMD", "python"]
        probe = await asyncio.create_subprocess_exec(
            sys.executable, *check[2:-1], ready[2], cwd=tmp_path
        )
        assert await asyncio.wait_for(probe.wait(), 10) == 0
    finally:
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 20) == 0
    dead = await asyncio.create_subprocess_exec(
        sys.executable, *check[2:-1], ready[2], cwd=tmp_path
    )
    assert await asyncio.wait_for(dead.wait(), 10) == 1
