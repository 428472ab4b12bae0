import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common.addresses import Address
from services.common.process import listen_address
from services.common.process.listen_address import AddressInUseError, StartError


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_a_port_in_use_is_an_error_that_names_the_flag(listening: socket.socket) -> None:
    port = listening.getsockname()[1]
    with pytest.raises(AddressInUseError, match="choose another with --http-listen"):
        listen_address.prepare(Address(host="127.0.0.1", port=port), flag="--http-listen")


def test_any_free_port_is_fine() -> None:
    listen_address.prepare(Address(host="127.0.0.1", port=0))


def test_an_address_of_another_machine_is_an_error() -> None:
    with pytest.raises(StartError, match="no such address"):
        listen_address.prepare(Address(host="192.0.2.1", port=50051))


def test_the_socket_of_a_dead_process_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "s"
    address = Address(path=str(path))
    listen_address.prepare(address)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        with pytest.raises(AddressInUseError, match="in use by a running process"):
            listen_address.prepare(address)
    listen_address.prepare(address)
    assert not path.exists()


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("")
    with pytest.raises(StartError, match="is not a socket"):
        listen_address.prepare(Address(path=str(tmp_path / "s")))


def test_only_our_own_socket_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    address = Address(path=str(path))
    path.write_text("")
    mine = listen_address.identity(address)
    (tmp_path / "other").write_text("")
    os.replace(tmp_path / "other", path)
    listen_address.release(address, mine)
    assert path.exists()
    listen_address.release(address, listen_address.identity(address))
    assert not path.exists()
