"""Calls Predict with grpcio's threads, as `callers.Calling` describes, until its stdin ends."""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

import grpc

from corral.backend import backend_pb2, backend_pb2_grpc


def main(how: dict[str, Any]) -> None:
    """Run."""
    calls: list[tuple[float, float]] = []
    failures: list[dict[str, Any]] = []
    ended = threading.Event()
    metadata = [tuple(pair) for pair in how["metadata"]]
    request = backend_pb2.PredictOptions(Prompt="x" * how["size"])

    def work(stub: Any) -> None:
        while not ended.is_set():
            began = time.monotonic()
            try:
                answer = stub.Predict(request, metadata=metadata, timeout=how["deadline"])
                assert len(answer.message) == how["size"], "the answer is another one"
            except (grpc.RpcError, AssertionError) as error:
                code = error.code().name if isinstance(error, grpc.RpcError) else "ANSWER"
                failures.append({"at": began, "code": code, "text": str(error)})
            calls.append((began, time.monotonic()))
            ended.wait(max(0.0, 1 / how["rate"] - (time.monotonic() - began)))

    with grpc.insecure_channel(how["target"]) as channel:
        stub: Any = backend_pb2_grpc.BackendStub(channel)
        threads = [threading.Thread(target=work, args=[stub]) for _ in range(how["workers"])]
        for thread in threads:
            thread.start()
        print("ready", flush=True)
        sys.stdin.read()
        ended.set()
        for thread in threads:
            thread.join()
    print(json.dumps({"calls": calls, "failures": failures}), flush=True)


main(json.loads(sys.argv[1]))
