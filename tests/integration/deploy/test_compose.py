"""compose.yaml: its contents, and each container's command run as a process."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tools.service import ROOT, installed, running_service

SERVICES = ("metrics", "loader", "gallery", "monitor")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())


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
    # All ports are published, on loopback only.
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
    check = service["healthcheck"]["test"]
    assert check[:2] == ["CMD", "python"]

    async def probe(address: str) -> int:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *check[2:-1], address, cwd=tmp_path
        )
        return await asyncio.wait_for(process.wait(), 10)

    async with running_service(
        name, tmp_path, *arguments, program=[installed(program)], cwd=tmp_path
    ) as process:
        assert await probe(process.address) == 0
        assert await process.stop() == 0
    assert await probe(process.address) == 1
