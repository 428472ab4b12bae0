"""A client that knows only backend.proto, as a developer without any Corral code would write it.

usage: plain_client.py STUBS ADDRESS JSON
STUBS is a folder with the code generated from backend.proto alone. JSON: {"metadata": [[key, value]],
"load": {ModelOptions} or absent, "rpc": name, "request": {fields}}. Prints each answer as a line of JSON.
"""

import json
import sys

import grpc

stubs, address, order = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
sys.path.insert(0, stubs)

import backend_pb2 as pb  # type: ignore[import-not-found]
import backend_pb2_grpc  # type: ignore[import-not-found]
from google.protobuf.json_format import MessageToDict, ParseDict

METHODS = {
    "Predict": pb.PredictOptions,
    "PredictStream": pb.PredictOptions,
    "Embedding": pb.PredictOptions,
    "TokenizeString": pb.PredictOptions,
}

with grpc.insecure_channel(address) as channel:
    grpc.channel_ready_future(channel).result(timeout=30)
    stub = backend_pb2_grpc.BackendStub(channel)
    metadata = [tuple(pair) for pair in order.get("metadata", [])]
    if "load" in order:
        loaded = stub.LoadModel(ParseDict(order["load"], pb.ModelOptions()), timeout=60)
        assert loaded.success, loaded.message
    request = ParseDict(order["request"], METHODS[order["rpc"]]())
    answer = getattr(stub, order["rpc"])(request, metadata=metadata, timeout=120)
    for message in answer if hasattr(answer, "__iter__") else [answer]:
        sys.stdout.write(json.dumps(MessageToDict(message)) + "\n")
assert not any(name.split(".")[0] in ("corral", "services") for name in sys.modules)
