"""Taking an address to listen on, with an error that says what to do when it is taken."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from services.common.addresses import Address

# A live server's kernel answers a connect to its Unix socket at once; this only bounds a stuck one.
_CONNECT_TIMEOUT: Final = 1.0


class StartError(Exception):
    """The service cannot start; the text is one line that says why and what to do."""


class AddressInUseError(StartError):
    """Somebody else listens on the address."""


def prepare(address: Address, *, flag: str = "--listen") -> None:
    """Check that the address can be bound, and clear away the socket of a dead process.

    gRPC itself only says that it failed, and silently takes a living server's Unix socket away.
    """
    if address.is_unix:
        _prepare_socket(Path(address.path), flag)
    elif address.port:
        _prepare_port(address, flag)


def identity(address: Address) -> tuple[int, int] | None:
    """Return what tells our Unix socket from one that another process put in its place."""
    if not address.is_unix:
        return None
    with suppress(OSError):
        found = os.stat(address.path)
        return found.st_dev, found.st_ino
    return None


def release(address: Address, mine: tuple[int, int] | None) -> None:
    """Remove our Unix socket, if it is still ours."""
    if mine is not None and identity(address) == mine:
        with suppress(OSError):
            os.unlink(address.path)


def _prepare_socket(path: Path, flag: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise StartError(f"cannot listen on unix:{path}: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise StartError(
            f"cannot listen on unix:{path}: it exists and is no socket; choose another"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECT_TIMEOUT)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            # Nobody accepts on it: its process is gone without having removed it.
            with suppress(FileNotFoundError):
                path.unlink()
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno == errno.EACCES:
                raise StartError(
                    f"cannot listen on unix:{path}: it belongs to somebody else; choose another"
                ) from error
    raise AddressInUseError(
        f"unix:{path} is in use by a running process; stop it, or choose another with {flag}"
    )


def _prepare_port(address: Address, flag: str) -> None:
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise StartError(
            f"cannot listen on {address}: {address.host!r} cannot be resolved"
        ) from error
    for family, kind, protocol, _, target in found:
        try:
            probe = socket.socket(family, kind, protocol)
        except OSError:
            # A machine without IPv6 still resolves names to it.
            continue
        with probe:
            # As gRPC does: a port whose old connections linger is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(target)
            except OSError as error:
                raise _bind_error(address, flag, error) from error


def _bind_error(address: Address, flag: str, error: OSError) -> StartError:
    if error.errno == errno.EADDRINUSE:
        return AddressInUseError(
            f"{address} is in use; stop what listens there, or choose another with {flag}"
            " (port 0 takes a free one)"
        )
    if error.errno == errno.EACCES:
        return StartError(f"{address}: not allowed to bind; choose a port above 1023 with {flag}")
    if error.errno == errno.EADDRNOTAVAIL:
        return StartError(
            f"{address}: this machine has no such address; choose another with {flag}"
        )
    return StartError(f"cannot listen on {address}: {error.strerror}")
