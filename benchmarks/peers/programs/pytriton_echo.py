# mypy: ignore-errors
"""Triton through pytriton: `GRPC_PORT HTTP_PORT METRICS_PORT`. It runs in Triton's environment."""

import sys

import numpy
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def echo(requests):
    """Return each request's tensor."""
    return [{"out": request.data["in"]} for request in requests]


grpc_port, http_port, metrics_port = map(int, sys.argv[1:])
config = TritonConfig(
    grpc_address="127.0.0.1",
    grpc_port=grpc_port,
    http_address="127.0.0.1",
    http_port=http_port,
    metrics_address="127.0.0.1",
    metrics_port=metrics_port,
)
with Triton(config=config) as triton:
    triton.bind(
        model_name="echo",
        infer_func=echo,
        inputs=[Tensor(name="in", dtype=numpy.uint8, shape=(-1,))],
        outputs=[Tensor(name="out", dtype=numpy.uint8, shape=(-1,))],
        config=ModelConfig(batching=False),
    )
    triton.serve()
