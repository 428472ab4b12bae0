"""Addresses as people write them: `host:port`, `[::1]:port`, `:port`, `unix:/path`."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from .errors import InvalidRequestError

# Linux's sun_path holds 108 bytes with the closing zero; a longer one fails with a riddle.
_LONGEST_SOCKET_PATH: Final = 107
_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9.])?|\*")
_IPV6: Final = re.compile(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(%[A-Za-z0-9._-]+)?")


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed address: either a Unix socket's path, or a host and a port."""

    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def is_unix(self) -> bool:
        """Whether this is a Unix socket."""
        return bool(self.path)

    @property
    def is_local(self) -> bool:
        """Whether this is certain to be this machine: a Unix socket, or a loopback address."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        """Return the address as gRPC takes it."""
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_address(text: str, *, field: str = "address", listen: bool = False) -> Address:
    """Parse an address or raise InvalidRequestError that names the field.

    To listen, the host may be missing (all interfaces) and the port may be 0 (any free one).
    """
    text = text.strip()
    if not text:
        raise InvalidRequestError.of(field, f"is empty; write {_EXAMPLES}")
    if text.startswith("unix:"):
        return Address(path=_socket_path(text, field))
    if "://" in text:
        raise InvalidRequestError.of(field, f"{text!r} has a scheme; write {_EXAMPLES}")
    host, colon, port = text.rpartition(":")
    if not colon:
        raise InvalidRequestError.of(field, f"{text!r} has no port; write {_EXAMPLES}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        good = _IPV6.fullmatch(host) is not None
    elif ":" in host:
        raise InvalidRequestError.of(
            field, f"{text!r}: put an IPv6 address in brackets, as in [::1]:50051"
        )
    elif not host and listen:
        host, good = "[::]"[1:-1], True
    else:
        good = _HOST.fullmatch(host) is not None
    if host == "*":
        host, good = "::", listen
    if not good:
        raise InvalidRequestError.of(field, f"{text!r}: {host!r} is not a host name or an address")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise InvalidRequestError.of(field, f"{text!r}: the port must be a number up to 65535")
    if int(port) == 0 and not listen:
        raise InvalidRequestError.of(field, f"{text!r}: port 0 is no address to call")
    return Address(host=host, port=int(port))


def validate_address(text: str, *, field: str = "address", listen: bool = False) -> str:
    """Return the address in its normal form, or raise InvalidRequestError that names the field."""
    return str(parse_address(text, field=field, listen=listen))


_EXAMPLES: Final = "host:port (127.0.0.1:50051, [::1]:50051) or unix:/path/to/socket"


def _socket_path(text: str, field: str) -> str:
    path = text.removeprefix("unix:")
    if path.startswith("//"):
        path = "/" + path.lstrip("/")
    if not path:
        raise InvalidRequestError.of(field, f"{text!r} names no socket; write {_EXAMPLES}")
    if not path.isprintable():
        raise InvalidRequestError.of(field, f"{text!r} has unprintable characters")
    if (size := len(path.encode("utf-8", "surrogateescape"))) > _LONGEST_SOCKET_PATH:
        raise InvalidRequestError.of(
            field,
            f"the socket's path has {size} bytes and the system takes {_LONGEST_SOCKET_PATH}:"
            f" choose a shorter folder than {path!r}",
        )
    return path
