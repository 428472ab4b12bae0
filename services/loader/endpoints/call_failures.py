"""The end of a call with the status and details of an error, as frames."""

from __future__ import annotations

from services.common.errors import CorralError
from services.common.rpc.status import to_status

from .http2 import failure
from .streams import BEGUN


def call_failure(stream: int, flags: int, error: CorralError) -> bytes:
    """Return what ends a stream with these flags."""
    status = to_status(error)
    details = status.SerializeToString()
    return failure(stream, status.code, status.message, details, begun=bool(flags & BEGUN))
