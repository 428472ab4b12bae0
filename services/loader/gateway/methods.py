"""The methods of `backend.Backend`, as the gateway needs to know them."""

from __future__ import annotations

from dataclasses import dataclass

from corral.backend import backend_pb2

SERVICE = backend_pb2.DESCRIPTOR.services_by_name["Backend"]

CONTROL_ONLY = frozenset({"LoadModel", "Free"})
"""The control plane owns them: a client that frees a shared model takes it from all others."""

PROBES = frozenset({"Health", "Status", "GetMetrics"})
"""Never load a model and never count as its use."""


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC of the contract, or one it does not have yet."""

    path: str
    name: str
    kind: str
    """Such as `unary_stream`: what the client sends, and what it gets."""
    identity_field: int = 0
    """The number of the request's ModelIdentity; 0 if it has none."""


def methods() -> dict[str, Method]:
    """Return the contract's RPCs by path."""
    found = {}
    for rpc in SERVICE.methods:
        path = f"/{SERVICE.full_name}/{rpc.name}"
        kind = (
            f"{'stream' if rpc.client_streaming else 'unary'}"
            f"_{'stream' if rpc.server_streaming else 'unary'}"
        )
        identity = rpc.input_type.fields_by_name.get("ModelIdentity")
        found[path] = Method(path, rpc.name, kind, identity.number if identity else 0)
    return found


def unknown(path: str) -> Method:
    """Return a method of a newer backend: on the wire, a stream of one message is a unary call."""
    return Method(path, path.rpartition("/")[2], "stream_stream")
