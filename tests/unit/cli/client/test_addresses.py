import json
import os
from pathlib import Path

import pytest

from services.cli.client import addresses
from services.cli.client.addresses import Running
from services.cli.failures import Failure


def running(pid: int | None = None) -> Running:
    pid = pid or os.getpid()
    return Running(pid, addresses.start_time(pid), {"loader": "127.0.0.1:1", "http": "h:2"})


def test_defaults_where_nothing_runs(tmp_path: Path) -> None:
    found = addresses.resolve({}, tmp_path)
    assert found["loader"].address == "127.0.0.1:50051"
    assert found["metrics"].address == "127.0.0.1:50054"
    assert {address.source for address in found.values()} == {"default"}


def test_what_is_given_wins_over_what_runs(tmp_path: Path) -> None:
    addresses.write(addresses.addresses_file(tmp_path), running())
    assert addresses.resolve({}, tmp_path)["loader"].address == "127.0.0.1:1"
    assert addresses.resolve({}, tmp_path)["loader"].source == "up"
    given = addresses.resolve({"loader": "unix:/x"}, tmp_path)
    assert (given["loader"].address, given["loader"].source) == ("unix:/x", "given")
    # What `up` does not name is looked for at its default.
    assert given["gallery"].source == "default"


def test_a_bad_address_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="--gallery: 'nowhere' has no port") as caught:
        addresses.resolve({"gallery": "nowhere"}, tmp_path)
    assert caught.value.exit_code == 2


def test_a_dead_process_is_not_believed(tmp_path: Path) -> None:
    file = addresses.addresses_file(tmp_path)
    addresses.write(file, Running(2**22 + 1, 1.0, {"loader": "127.0.0.1:1"}))
    assert addresses.read(file) is None
    # The pid lives, and belongs to another process now.
    addresses.write(file, Running(os.getpid(), 1.0, {"loader": "127.0.0.1:1"}))
    assert addresses.read(file) is None


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"pid": "x"}', '{"pid": 1, "started": 1}', "\0"]
)
def test_a_damaged_file_is_no_file(tmp_path: Path, content: str) -> None:
    file = tmp_path / "endpoints.json"
    file.write_text(content)
    assert addresses.read(file) is None


def test_only_ones_own_file_is_removed(tmp_path: Path) -> None:
    file = addresses.addresses_file(tmp_path)
    addresses.write(file, running())
    addresses.remove(file, os.getpid() + 1)
    assert json.loads(file.read_text())["pid"] == os.getpid()
    addresses.remove(file, os.getpid())
    assert not file.exists()
    addresses.remove(file, os.getpid())
    assert list(file.parent.iterdir()) == []
