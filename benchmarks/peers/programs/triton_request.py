# mypy: ignore-errors
"""Writes Triton's request: `FILE_OF_PAYLOAD FILE_OF_REQUEST`. It runs in Triton's environment."""

import sys
from pathlib import Path

from tritonclient.grpc import service_pb2 as pb

given, made = map(Path, sys.argv[1:])
payload = given.read_bytes()
request = pb.ModelInferRequest(model_name="echo")
request.inputs.add(name="in", datatype="UINT8", shape=[len(payload)])
request.raw_input_contents.append(payload)
made.write_bytes(request.SerializeToString())
