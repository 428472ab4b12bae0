"""A program that needs only `corral-sdk`: streams from the loader at the address in argv[1]."""

import importlib.util
import sys

import grpc

from corral.backend import backend_pb2, backend_pb2_grpc
from corral.client import connect
from corral.gallery.v1 import gallery_pb2_grpc
from corral.loader.v1 import loader_pb2, loader_pb2_grpc
from corral.metrics.v1 import metrics_pb2_grpc
from corral.monitor.v1 import monitor_pb2_grpc

ADDRESS, MODEL, PROMPT = sys.argv[1:]
REQUEST = backend_pb2.PredictOptions(Prompt=PROMPT, Tokens=3)

assert importlib.util.find_spec("services") is None

with grpc.insecure_channel(ADDRESS) as channel:
    gallery_pb2_grpc.GalleryServiceStub(channel)
    metrics_pb2_grpc.MetricsServiceStub(channel)
    monitor_pb2_grpc.MonitorServiceStub(channel)
    stub = backend_pb2_grpc.BackendStub(channel)
    through = [r.message for r in stub.PredictStream(REQUEST, metadata=(("corral-model", MODEL),))]
    loader = loader_pb2_grpc.LoaderServiceStub(channel)
    listed = loader.ListModels(loader_pb2.ListModelsRequest()).models
    assert [model.name for model in listed] == [f"models/{MODEL}"]
with connect(MODEL, ADDRESS) as backend:
    straight = [reply.message for reply in backend.PredictStream(REQUEST)]
assert len(through) > 1 and b"".join(through) == b"".join(straight), (through, straight)
print(b"".join(through).decode())
