"""A private folder for sockets, and the removal of those that killed backends left."""

import contextlib
import itertools
import os
import shutil
import socket
import tempfile
import time
from pathlib import Path

PREFIX = "corral-llama-cpp-"
# The kernel's limit for a socket's path, with its closing zero.
MAX_SOCKET_PATH = 107
# A process id, eight random characters, and the socket itself.
NAME_LENGTH = 32
PROBE_TIMEOUT = 1.0
YOUNG = 60.0


class Scratch:
    """A folder only this user can enter; made on first use, removed by `remove`."""

    def __init__(self, base: Path | None = None) -> None:
        """Keep the folder in `base`, or in the system's temporary folder."""
        self._base = base or Path(tempfile.gettempdir())
        self._folder: Path | None = None
        self._numbers = itertools.count(1)

    def new_socket(self) -> Path:
        """A path that no socket of this process had before."""
        if self._folder is None:
            base = self._base
            if len(os.fsencode(base / PREFIX)) + NAME_LENGTH > MAX_SOCKET_PATH:
                base = Path("/tmp")  # mkdtemp makes the folder itself private
            sweep(base)
            self._folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=base))
        return self._folder / f"{next(self._numbers)}.sock"

    def remove(self) -> None:
        """Remove the folder and what is in it."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def sweep(base: Path) -> None:
    """Remove the folders of this user's backends that were killed."""
    for folder in base.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid == os.getuid() and not _in_use(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _in_use(folder: Path) -> bool:
    """Whether the folder's backend is probably running.

    The process id is not enough where containers share the folder, so a socket that answers counts
    too, and so does a folder so new that its socket may not exist yet.
    """
    owner = folder.name.removeprefix(PREFIX).split("-")[0]
    if not owner.isdigit() or _alive(int(owner)):
        return True
    if time.time() - folder.stat().st_mtime < YOUNG:
        return True
    return any(listening(path) for path in folder.glob("*.sock"))


def listening(path: Path) -> bool:
    """Whether a process accepts connections on a Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_TIMEOUT)
        try:
            probe.connect(str(path))
        except TimeoutError:
            return True  # its backlog is full: a process listens
        except OSError:
            return False
        return True


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
