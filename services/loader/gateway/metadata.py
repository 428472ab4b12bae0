"""The metadata of a proxied call: the keys read here, and those passed on in each direction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from grpc import aio

from services.common.errors import InvalidRequestError
from services.common.rpc.interceptors import REQUEST_ID_KEY, is_request_id, new_request_id
from services.common.rpc.routing import MODEL_KEY, MODEL_KEY_BINARY
from services.loader.instances.instance import Lease

CLIENT_KEY = "corral-client"
"""The client id, set by the client: calls with the same id share one turn in a queue."""
POSITION_KEY = "corral-queue-position"
"""Initial metadata of a waiting call: its position in the queue, 1 being next."""
INSTANCE_KEY = "corral-instance"
"""Trailing metadata: the instance that served the call."""
QUEUE_KEY = "corral-queue-ms"
"""Trailing metadata: milliseconds that the call waited for memory or for a slot."""
LOAD_KEY = "corral-load-ms"
"""Trailing metadata: milliseconds that the call waited for the model to load."""

Pair = tuple[str, str | bytes]

_OF_THIS_HOP = frozenset(
    {"authorization", "user-agent", "content-type", "te", "host", "connection"}
)
"""Not passed on. `authorization` authenticates the client here; the backend gets its own token."""
_OURS = frozenset({MODEL_KEY, MODEL_KEY_BINARY, CLIENT_KEY, REQUEST_ID_KEY})
_SPECIAL = _OF_THIS_HOP | _OURS
_TRACING = frozenset({"grpc-trace-bin", "grpc-tags-bin"})
_DETAILS = "grpc-status-details-bin"
_NO_WAIT = ((QUEUE_KEY, "0"), (LOAD_KEY, "0"))


class Pairs(aio.Metadata):
    """Metadata that are only passed on: no key is looked up, so no table is built.

    gRPC's own class builds a table at each call, and does not keep the order of different keys.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        """Keep the pairs unchanged."""
        self._pairs = pairs

    def __iter__(self) -> Iterator[Pair]:
        """Iterate over the pairs in their order."""
        return iter(self._pairs)

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self._pairs)


class Heading:
    """A call's metadata, read in one pass."""

    __slots__ = ("_model", "client", "passed_on", "request_id")

    def __init__(self, metadata: Iterable[Pair]) -> None:
        """Read the metadata; an invalid model name raises only in `model`."""
        self._model: Pair | None = None
        self.client = ""
        """The client id; empty if not set."""
        self.request_id = ""
        self.passed_on: list[Pair] = []
        """The metadata passed on to the backend."""
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
        """Return the model's name in the metadata, None if not set. Raises InvalidRequestError."""
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
    """Return the part of a backend's metadata that is passed back to the client."""
    if not metadata:
        return ()
    return tuple([pair for pair in metadata if pair[0][:5] != "grpc-" or pair[0] == _DETAILS])


def trailers(request_id: str, lease: Lease | None, backends: tuple[Pair, ...]) -> tuple[Pair, ...]:
    """Return a call's trailing metadata: the backend's, the instance and the waiting times."""
    if lease is None:
        return (*backends, (REQUEST_ID_KEY, request_id))
    queue, load = lease.queue_time, lease.load_time
    waits = _NO_WAIT if not (queue or load) else ((QUEUE_KEY, _ms(queue)), (LOAD_KEY, _ms(load)))
    own: tuple[Pair, ...] = (
        (REQUEST_ID_KEY, request_id),
        (INSTANCE_KEY, lease.instance.uid),
        *waits,
    )
    # The backend received the request id, and may have sent it back.
    if backends and any(key == REQUEST_ID_KEY for key, _ in backends):
        own = own[1:]
    return (*backends, *own)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}" if seconds else "0"
