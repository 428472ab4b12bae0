from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.peers import PEERS, UnavailableError
from benchmarks.peers.environment import REQUIREMENTS, Environment
from benchmarks.peers.peer import PROGRAMS, Peer


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "corral-bench" / "peers"


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_every_package_has_one_version(peer: Peer) -> None:
    lines = (REQUIREMENTS / f"{peer.environment.name}.txt").read_text().split()
    assert lines
    assert all(line.count("==") == 1 and "*" not in line for line in lines)


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_programs_are_there(peer: Peer) -> None:
    if isinstance(peer.request, str):
        assert (PROGRAMS / peer.request).is_file()
    else:
        assert b"payload" in peer.request(b"payload")


async def test_missing_interpreter_is_told(cache: Path) -> None:
    environment = Environment("mlserver", "/nonexistent/python", "apt-get install it")
    with pytest.raises(UnavailableError, match="apt-get install it"):
        await environment.prepare()


async def test_failed_install_is_told(cache: Path) -> None:
    with pytest.raises(UnavailableError, match="mlserver cannot be installed"):
        await Environment("mlserver", "/bin/false").prepare()
