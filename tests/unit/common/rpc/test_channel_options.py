"""The names of gRPC options: a misspelt one is ignored without a word."""

from pathlib import Path

from grpc._cython import cygrpc

from services.common.rpc.channels import channel_options
from services.common.rpc.mounts import server_options


def test_grpc_knows_every_option() -> None:
    library = Path(cygrpc.__file__).read_bytes()
    options = [*server_options(1), *channel_options(retry=["/a/b"])]
    assert [name for name, _ in options if name.encode() + b"\0" not in library] == []
