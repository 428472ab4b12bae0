"""The addresses that started backends serve on: sockets in a folder of the loader, or ports."""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

_LONGEST_FOLDER = 70
"""Bytes: leaves room for a socket's name below the system's 107."""

_DRAWS = 100
"""Ports to try before one that was promised to another backend is given out again."""


class BackendAddresses:
    """Gives out addresses, each to one backend at a time."""

    def __init__(self, folder: Path) -> None:
        """`folder` is closed to other users."""
        self._folder = folder
        self._promised: set[str] = set()

    def socket(self, uid: str) -> str:
        """Return the address of a Unix socket for an instance."""
        return f"unix:{self._folder / uid[:12]}.sock"

    def port(self) -> str:
        """Return a free loopback port.

        Somebody may take it before the backend does (see PortTakenError), but not another backend of
        ours: the system likes to offer the same one twice until a process listens on it.
        """
        for _ in range(_DRAWS):
            address = f"127.0.0.1:{_free_port()}"
            if address not in self._promised:
                break
        self._promised.add(address)
        return address

    def give_back(self, address: str) -> None:
        """Called when the backend has ended: free its address and remove its socket."""
        self._promised.discard(address)
        if address.startswith("unix:"):
            with suppress(OSError):
                os.unlink(address.removeprefix("unix:"))


@contextmanager
def socket_folder(state: Path) -> Iterator[Path]:
    """Yield a folder for sockets that only this user can enter: below `state`, unless that is too long.

    Sockets that a killed loader left there are removed, at the start and at the end.
    """
    folder = state / "sockets"
    if len(str(folder).encode()) <= _LONGEST_FOLDER:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    else:
        folder = _temporary(state)
    _remove_dead_sockets(folder)
    try:
        yield folder
    finally:
        _remove_dead_sockets(folder)
        with suppress(OSError):
            folder.rmdir()


def _temporary(state: Path) -> Path:
    # The same folder at each start, so that killed loaders leave one folder and not one each.
    digest = hashlib.sha256(str(state.absolute()).encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"corral-{os.getuid()}-{digest}"
    with suppress(OSError):
        folder.mkdir(mode=0o700)
    with suppress(OSError):
        found = folder.lstat()
        if (
            stat.S_ISDIR(found.st_mode)
            and found.st_uid == os.getuid()
            and not stat.S_IMODE(found.st_mode) & 0o077
        ):
            return folder
    return Path(tempfile.mkdtemp(prefix="corral-"))  # another user created it first


def _remove_dead_sockets(folder: Path) -> None:
    for path in folder.glob("*.sock"):
        with suppress(OSError), closing(socket.socket(socket.AF_UNIX)) as probe:
            probe.setblocking(False)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()  # its process is gone


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
