"""What tests of the loader ask for again and again."""

from __future__ import annotations

from typing import Any

from corral.backend import backend_pb2
from corral.loader.v1 import loader_pb2

from .processes import command, processes_in
from .running import LoaderUnderTest

MODEL = (("corral-model", "m"),)
FOREVER = backend_pb2.PredictOptions(Prompt="on and on")


def load(name: str = "m", **fields: Any) -> loader_pb2.LoadModelRequest:
    return loader_pb2.LoadModelRequest(name=f"models/{name}", **fields)


def prompt(text: str) -> backend_pb2.PredictOptions:
    return backend_pb2.PredictOptions(Prompt=text)


def backends_running(loader: LoaderUnderTest) -> int:
    """Return how many scripted backends are alive."""
    return sum("backend_fake" in command(p) for p in processes_in(loader.backends))
