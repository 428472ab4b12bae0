# mypy: ignore-errors
"""Writes BentoML's request: `FILE_OF_PAYLOAD FILE_OF_REQUEST`. It runs in BentoML's environment."""

import sys
from pathlib import Path

from bentoml.grpc.v1 import service_pb2 as pb

given, made = map(Path, sys.argv[1:])
request = pb.Request(api_name="echo")
request.text.value = given.read_text()
made.write_bytes(request.SerializeToString())
