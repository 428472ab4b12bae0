"""gRPC's options: a misspelt one is ignored silently, and of two equal ones the second."""

from pathlib import Path

import pytest
from grpc._cython import cygrpc

from services.common.rpc.channels import channel_options
from services.common.rpc.mounts import server_options
from services.loader.gateway.backend_channel import backend_options


def test_grpc_knows_every_option() -> None:
    library = Path(cygrpc.__file__).read_bytes()
    options = [
        *server_options(1),
        *channel_options(retry=["/a/b"], extra=backend_options("unix:/x")),
    ]
    assert [name for name, _ in options if name.encode() + b"\0" not in library] == []


@pytest.mark.parametrize(
    "address", ["unix:/x", "127.0.0.1:1", "localhost:1", "[::1]:1", "far.example:1"]
)
def test_an_option_has_one_value(address: str) -> None:
    """gRPC takes the first of two equal names: a list of defaults would hide what replaces them."""
    wanted = backend_options(address)
    names = [name for name, _ in channel_options(retry=["/a/b"], extra=wanted)]
    assert len(names) == len(set(names))
    assert wanted.items() <= dict(channel_options(retry=["/a/b"], extra=wanted)).items()


def test_local_backends_are_never_pinged_and_others_as_seldom_as_grpc_allows() -> None:
    never, five_minutes = 2**31 - 1, 300_000
    for address in ("unix:/x", "127.0.0.1:1", "localhost:1", "[::1]:1"):
        assert backend_options(address)["grpc.keepalive_time_ms"] == never
    for address in ("far.example:1", "10.1.2.3:1"):
        assert five_minutes < backend_options(address)["grpc.keepalive_time_ms"] < never
    names = [name for name, _ in server_options(1)]
    assert len(names) == len(set(names))
