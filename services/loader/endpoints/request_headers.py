"""Classifies a request by its header block: a call, a probe, or reserved for the control plane.

Reading a request's method requires following the connection's header table (RFC 7541), which takes
tens of microseconds a call. So decoded blocks are cached while the table does not change. gRPC
clients send the same bytes again and again, so most calls cost one dictionary lookup.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any

from .http2 import MAX_FRAME

_LARGEST = 1024 * 1024
"""Bytes of a request's header fields: far above what any gRPC server takes (8 to 16 KiB)."""
_DEFAULT_TABLE = 4096
"""Bytes of the table before a backend has allowed more (RFC 9113, section 6.5.2)."""
_ANY_TABLE = 2**32
"""The table limit once the backend sets the real one."""
_KEPT = 128
"""Decoded blocks cached for one connection: with varying metadata hardly any comes twice."""

_SERVICE = b"/backend.Backend/"
_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


class Kind(Enum):
    """The kind of a request, which decides how it is handled."""

    CALL = "call"
    PROBE = "probe"
    """Never loads a model, and never counts as its use."""
    CONTROL = "control"
    """Answered here: passed on, it would take the model from its other clients."""


@dataclass(frozen=True, slots=True)
class Request:
    """A decoded header block."""

    kind: Kind
    path: str
    timeout: float | None = None
    """Seconds until the client's deadline."""

    @property
    def method(self) -> str:
        """The RPC's name, if it is in the contract."""
        return self.path[len(_SERVICE) :] if self.path.startswith(_SERVICE.decode()) else ""


class HeadersError(Exception):
    """The header table can no longer be followed, so the connection must end."""


class RequestHeaders:
    """Follows the header table of one client, and classifies its requests."""

    __slots__ = ("_decoder", "_field", "calls", "changed", "known")

    def __init__(self) -> None:
        """Start with an empty table."""
        self._decoder = _hpack().Decoder(max_header_list_size=_LARGEST)
        self._decoder.max_allowed_table_size = _DEFAULT_TABLE
        self.calls: dict[bytes, bytes] = {}
        """Blocks of ordinary calls, each with the bytes that go to the backend for it."""
        self._field = b""
        self.known: dict[bytes, Request] = {}
        """Cached requests by block; these blocks do not change the table."""
        self.changed = False
        """Whether the last block read changed the table."""

    def allow_any_table(self) -> None:
        """Accept any table size from now on: the backend limits the table."""
        self._decoder.max_allowed_table_size = _ANY_TABLE

    def add_field(self, field: bytes) -> None:
        """Append this field to all blocks for the backend from now on."""
        self._field = field
        known, self.calls = self.calls, {}
        for block in known:
            self._learn(block)

    def _learn(self, block: bytes) -> None:
        onward = block + self._field if self._field else block
        if len(onward) <= MAX_FRAME:
            self.calls[block] = onward

    def read(self, block: bytes) -> Request:
        """Decode a block that is not in the cache. Raises HeadersError."""
        table = self._decoder.header_table
        entries = table.dynamic_entries
        before = (len(entries), table.maxsize, entries[0] if entries else None)
        try:
            fields = self._decoder.decode(block, raw=True)
        except (_hpack().HPACKError, UnicodeError, IndexError) as error:
            raise HeadersError(f"a header block cannot be read: {error}") from error
        entries = table.dynamic_entries
        newest = entries[0] if entries else None
        self.changed = (len(entries), table.maxsize) != before[:2] or newest is not before[2]
        request = _request(fields)
        if self.changed or len(self.known) >= _KEPT:
            self.known.clear()
            self.calls.clear()
        if not self.changed:
            self.known[block] = request
            if request.kind is Kind.CALL:
                self._learn(block)
        return request


@cache
def _hpack() -> Any:
    import hpack  # its tables take a while to load, which would delay the start

    return hpack


def _request(fields: Any) -> Request:
    path, timeout = b"", None
    for name, value in fields:
        if name == b":path":
            path = bytes(value)
        elif name == b"grpc-timeout":
            timeout = _seconds(bytes(value))
    return Request(_kind(path), path.decode("latin-1"), timeout)


def _kind(path: bytes) -> Kind:
    if path.startswith(_SERVICE):
        return _KINDS.get(path[len(_SERVICE) :], Kind.CALL)
    # Services that any gRPC server may have: health, reflection, channelz.
    return Kind.PROBE if path.startswith(b"/grpc.") else Kind.CALL


_KINDS = {
    b"Health": Kind.PROBE,
    b"Status": Kind.PROBE,
    b"GetMetrics": Kind.PROBE,
    b"LoadModel": Kind.CONTROL,
    b"Free": Kind.CONTROL,
}


def _seconds(value: bytes) -> float | None:
    digits, unit = value[:-1], _UNITS.get(value[-1:])
    return int(digits) * unit if unit and digits.isdigit() else None
