"""Checks of an address to listen on, with errors that name the remedy."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from services.common.addresses import Address

# Seconds. A connect to a Unix socket is answered at once; this limits a stuck one.
_CONNECT_TIMEOUT: Final = 1.0


class StartError(Exception):
    """The service cannot start; the text is one line with the problem and its remedy."""


class AddressInUseError(StartError):
    """Another process listens on the address."""


def prepare(address: Address, *, flag: str = "--listen") -> None:
    """Check that the address can be bound, and remove the socket that a dead process left.

    gRPC itself gives no reason for a failure, and silently replaces a running server's Unix socket.
    """
    if address.is_unix:
        _prepare_socket(Path(address.path), flag)
    elif address.port:
        _prepare_port(address, flag)


def identity(address: Address) -> tuple[int, int] | None:
    """Return the device and inode of our Unix socket, to recognise it later."""
    if not address.is_unix:
        return None
    with suppress(OSError):
        found = os.stat(address.path)
        return found.st_dev, found.st_ino
    return None


def release(address: Address, mine: tuple[int, int] | None) -> None:
    """Remove our Unix socket, unless another process replaced it."""
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
            f"cannot listen on unix:{path}: it exists and is not a socket; choose another"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECT_TIMEOUT)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            # Its process ended without removing it.
            with suppress(FileNotFoundError):
                path.unlink()
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno == errno.EACCES:
                raise StartError(
                    f"cannot listen on unix:{path}: it belongs to another user; choose another"
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
            # A machine without IPv6 may still resolve names to IPv6 addresses.
            continue
        with probe:
            # As gRPC does: a port with connections in TIME_WAIT is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(target)
            except OSError as error:
                raise _bind_error(address, flag, error) from error


def _bind_error(address: Address, flag: str, error: OSError) -> StartError:
    if error.errno == errno.EADDRINUSE:
        return AddressInUseError(
            f"{address} is in use; stop the process that listens there, or choose another with {flag}"
            " (port 0 takes a free one)"
        )
    if error.errno == errno.EACCES:
        return StartError(f"{address}: not allowed to bind; choose a port above 1023 with {flag}")
    if error.errno == errno.EADDRNOTAVAIL:
        return StartError(
            f"{address}: this machine has no such address; choose another with {flag}"
        )
    return StartError(f"cannot listen on {address}: {error.strerror}")
