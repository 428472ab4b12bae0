"""The methods of `backend.Backend`, with the facts that the gateway needs."""

from __future__ import annotations

from dataclasses import dataclass

from corral.backend import backend_pb2

SERVICE = backend_pb2.DESCRIPTOR.services_by_name["Backend"]

CONTROL_ONLY = frozenset({"LoadModel", "Free"})
"""Reserved for the control plane: a client that frees a shared model takes it from the others."""

PROBES = frozenset({"Health", "Status", "GetMetrics"})
"""Never load a model and never count as its use."""


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC, in the contract or newer than it."""

    path: str
    name: str
    kind: str
    """The kinds of request and response, such as `unary_stream`."""
    identity_field: int = 0
    """The field number of ModelIdentity in the request; 0 if it has none."""


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
    """Return a method newer than the contract: a unary call is a one-message stream on the wire."""
    return Method(path, path.rpartition("/")[2], "stream_stream")
