"""Where the backend listens: `host:port`, `unix:/path` or `unix:///path`."""

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from .scratch import MAX_SOCKET_PATH, listening


class AddressError(Exception):
    """The address cannot be used."""


@dataclass(frozen=True)
class Address:
    """A parsed `--addr`; `path` stands for Unix sockets, `host` and `port` for TCP."""

    host: str = ""
    port: int = 0
    path: Path | None = None

    @property
    def target(self) -> str:
        """The address as gRPC takes it."""
        return f"unix:{self.path}" if self.path else f"{self.host}:{self.port}"

    def bound(self, port: int) -> str:
        """The address with the real port."""
        return self.target if self.path else f"{self.host}:{port}"


def parse(text: str) -> Address:
    """Read an address.

    Raises:
        AddressError: it is not an address.
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        path = path.removeprefix("//") if path.startswith("//") else path
        if not path:
            raise AddressError(f"{text!r} names no socket")
        if len(os.fsencode(path)) > MAX_SOCKET_PATH:
            raise AddressError(f"the socket's path is longer than {MAX_SOCKET_PATH} bytes: {path}")
        return Address(path=Path(path))
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise AddressError(f"{text!r} is neither host:port nor unix:/path")
    # As Go reads ":50051": every interface.
    return Address(host=host or "0.0.0.0", port=int(port))


def make_way(address: Address) -> None:
    """Remove the socket file of a backend that is gone; gRPC would also replace one in use.

    Raises:
        AddressError: another process listens there, or the path is not a socket.
    """
    path = address.path
    if path is None or not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise AddressError(f"{path} exists and is not a socket")
    if listening(path):
        raise AddressError(f"{path} is in use by a running process")
    path.unlink(missing_ok=True)


def inode(address: Address) -> int:
    """The inode of the socket file; 0 without one."""
    try:
        return address.path.stat().st_ino if address.path else 0
    except OSError:
        return 0


def remove(address: Address, made: int) -> None:
    """Remove the socket file, unless another process has put its own there."""
    if address.path and made and inode(address) == made:
        with contextlib.suppress(OSError):
            address.path.unlink()
