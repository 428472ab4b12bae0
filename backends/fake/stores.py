"""State across calls: stored vectors, and jobs."""

from __future__ import annotations

from typing import Any

import grpc

from corral.backend import backend_pb2 as pb

from . import words
from .behaviour import Behaviour
from .errors import Refused


class Stores:
    """The vector store: values by their vectors, in insertion order."""

    def __init__(self) -> None:
        """The store is empty."""
        self._values: dict[tuple[float, ...], bytes] = {}

    def set(self, request: Any, _: Behaviour) -> pb.Result:
        """Store values."""
        if not request.Keys or len(request.Keys) != len(request.Values):
            raise Refused(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"{len(request.Keys)} keys and {len(request.Values)} values",
            )
        lengths = {len(key) for key in self._values} | {len(key.Floats) for key in request.Keys}
        if len(lengths) > 1:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "the vectors differ in length")
        for key, value in zip(request.Keys, request.Values, strict=True):
            self._values[tuple(key.Floats)] = value.Bytes
        return pb.Result(success=True)

    def delete(self, request: Any, _: Behaviour) -> pb.Result:
        """Delete values."""
        for key in request.Keys:
            self._values.pop(tuple(key.Floats), None)
        return pb.Result(success=True)

    def get(self, request: Any, _: Behaviour) -> pb.StoresGetResult:
        """Return the values of the keys that exist."""
        keys = [key for key in request.Keys if tuple(key.Floats) in self._values]
        values = [pb.StoresValue(Bytes=self._values[tuple(key.Floats)]) for key in keys]
        return pb.StoresGetResult(Keys=keys, Values=values)

    def find(self, request: Any, _: Behaviour) -> pb.StoresFindResult:
        """Return the nearest keys."""
        if request.TopK < 1:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"TopK is {request.TopK}")
        nearest = sorted(
            ((words.similarity(request.Key.Floats, key), key) for key in self._values),
            key=lambda pair: -pair[0],
        )[: request.TopK]
        return pb.StoresFindResult(
            Keys=[pb.StoresKey(Floats=key) for _, key in nearest],
            Values=[pb.StoresValue(Bytes=self._values[key]) for _, key in nearest],
            Similarities=[score for score, _ in nearest],
        )


class Jobs:
    """Training and quantization jobs: a job has a few steps, and is done once its progress was read."""

    STEPS = 4

    def __init__(self) -> None:
        """There are no jobs."""
        self._stopped: dict[str, bool] = {}

    def start(self, job: str) -> dict[str, Any]:
        """Start a job; returns the fields of the result."""
        job = job or f"job-{len(self._stopped) + 1}"
        if job in self._stopped:
            return {"success": False, "message": f"there is a job {job!r} already"}
        self._stopped[job] = False
        return {"job_id": job, "success": True, "message": "started"}

    def stop(self, job: str) -> pb.Result:
        """Stop a job."""
        if job not in self._stopped:
            return pb.Result(success=False, message=f"no job {job!r}")
        self._stopped[job] = True
        return pb.Result(success=True)

    def stopped(self, job: str) -> bool:
        """Whether a job was stopped. Raises Refused for an unknown job."""
        if job not in self._stopped:
            raise Refused(grpc.StatusCode.NOT_FOUND, f"no job {job!r}")
        return self._stopped[job]
