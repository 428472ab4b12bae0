# mypy: ignore-errors
"""Writes MLServer's request: `FILE_OF_PAYLOAD FILE_OF_REQUEST`. It runs in MLServer's environment."""

import sys
from pathlib import Path

from mlserver.grpc import dataplane_pb2 as pb

given, made = map(Path, sys.argv[1:])
request = pb.ModelInferRequest(model_name="echo")
tensor = request.inputs.add(name="in", datatype="BYTES", shape=[1])
tensor.contents.bytes_contents.append(given.read_bytes())
made.write_bytes(request.SerializeToString())
