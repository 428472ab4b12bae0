"""The metadata of a call that is passed on: what they say to us, and what goes on to whom."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from grpc import aio

from services.common.errors import InvalidRequestError
from services.common.rpc.interceptors import REQUEST_ID_KEY, is_request_id, new_request_id
from services.common.rpc.routing import MODEL_KEY, MODEL_KEY_BINARY
from services.loader.instances.instance import Lease

CLIENT_KEY = "corral-client"
"""Whose call it is, in the client's words: calls of one client share one turn in a queue."""
POSITION_KEY = "corral-queue-position"
"""Initial metadata of a call that waits: 1 is the next."""
INSTANCE_KEY = "corral-instance"
"""Trailing metadata: the instance that had the call."""
QUEUE_KEY = "corral-queue-ms"
"""Trailing metadata: milliseconds for which the call waited for room or for a place."""
LOAD_KEY = "corral-load-ms"
"""Trailing metadata: milliseconds for which the call waited for the model to load."""

Pair = tuple[str, str | bytes]

_OF_THIS_HOP = frozenset(
    {"authorization", "user-agent", "content-type", "te", "host", "connection"}
)
"""Not passed on. `authorization` is the client's word to us; the backend gets its own token."""
_OURS = frozenset({MODEL_KEY, MODEL_KEY_BINARY, CLIENT_KEY, REQUEST_ID_KEY})
_SPECIAL = _OF_THIS_HOP | _OURS
_TRACING = frozenset({"grpc-trace-bin", "grpc-tags-bin"})
_DETAILS = "grpc-status-details-bin"
_NO_WAIT = ((QUEUE_KEY, "0"), (LOAD_KEY, "0"))


class Pairs(aio.Metadata):
    """Metadata that are only handed over: nobody looks a key up, so none are sorted in.

    gRPC's own class makes a table of them at each call, and brings pairs of different keys out of order.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        """Hold the pairs as they are."""
        self._pairs = pairs

    def __iter__(self) -> Iterator[Pair]:
        """Go through the pairs, in their order."""
        return iter(self._pairs)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._pairs)


class Heading:
    """What a call's metadata say, read in one pass."""

    __slots__ = ("_model", "client", "passed_on", "request_id")

    def __init__(self, metadata: Iterable[Pair]) -> None:
        """Read them; a name that is none is complained of when it is asked for."""
        self._model: Pair | None = None
        self.client = ""
        """Who says to be the client; empty if nobody."""
        self.request_id = ""
        self.passed_on: list[Pair] = []
        """What the backend is to see."""
        for pair in metadata:
            key = pair[0]
            if key not in _SPECIAL:
                if key[:5] != "grpc-" or key in _TRACING:
                    self.passed_on.append(pair)
            elif key == REQUEST_ID_KEY:
                self.passed_on.append(pair)
                if not self.request_id and is_request_id(pair[1]):
                    self.request_id = str(pair[1])
            elif key == CLIENT_KEY:
                self.client = str(pair[1])
            elif key not in _OF_THIS_HOP and self._model is None:
                self._model = pair
        if not self.request_id:
            self.request_id = new_request_id()

    def model(self) -> str | None:
        """Return the name in the metadata, None if there is none. Raises InvalidRequestError."""
        if self._model is None:
            return None
        key, value = self._model
        try:
            name = value.decode() if isinstance(value, bytes) else value
        except UnicodeDecodeError:
            raise InvalidRequestError.of(key, "is not UTF-8") from None
        if not name or name.isspace():
            raise InvalidRequestError.of(key, "is empty; name a model, or leave the key out")
        return name


def passed_back(metadata: Iterable[Pair] | None) -> tuple[Pair, ...]:
    """Return what of a backend's metadata the client is to see."""
    if not metadata:
        return ()
    return tuple([pair for pair in metadata if pair[0][:5] != "grpc-" or pair[0] == _DETAILS])


def trailers(request_id: str, lease: Lease | None, backends: tuple[Pair, ...]) -> tuple[Pair, ...]:
    """Return a call's trailing metadata: the backend's, and which instance had it after which waits."""
    if lease is None:
        return (*backends, (REQUEST_ID_KEY, request_id))
    queue, load = lease.queue_time, lease.load_time
    waits = _NO_WAIT if not (queue or load) else ((QUEUE_KEY, _ms(queue)), (LOAD_KEY, _ms(load)))
    own: tuple[Pair, ...] = (
        (REQUEST_ID_KEY, request_id),
        (INSTANCE_KEY, lease.instance.uid),
        *waits,
    )
    # The backend was given the client's id, and may have sent it back.
    if backends and any(key == REQUEST_ID_KEY for key, _ in backends):
        own = own[1:]
    return (*backends, *own)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}" if seconds else "0"
