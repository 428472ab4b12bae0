"""The loader's resources during the soak test, and whether they grow."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from itertools import combinations

import psutil

from benchmarks.clocks import memory
from corral.loader.v1 import loader_pb2 as pb
from tests.tools.running import LoaderUnderTest


@dataclass(frozen=True)
class Sample:
    """The loader's resources at one moment."""

    at: float
    pss: int
    """Bytes: its private memory, and its share of shared memory."""
    own: int
    """Bytes of private memory, which would be freed if it ended."""
    descriptors: int
    threads: int
    calls: int
    """Calls in progress and waiting, as GetCapacity counts them."""
    leases: int
    """Holds on the instances, as ListModels counts them: calls in progress, and leases of direct clients."""


async def sample(loader: LoaderUnderTest) -> Sample:
    """Sample the loader's resources now."""
    process = psutil.Process(loader.service.pid)
    capacity = await loader.control.GetCapacity(pb.GetCapacityRequest())
    models = (await loader.control.ListModels(pb.ListModelsRequest())).models
    pids = [process.pid]
    return Sample(
        time.monotonic(),
        memory(pids),
        sum(memory(pids, field) for field in ("Private_Clean", "Private_Dirty")),
        process.num_fds(),
        process.num_threads(),
        capacity.calls,
        sum(_held(instance) for model in models for instance in model.instances),
    )


def _held(instance: pb.Instance) -> int:
    # The leases are not in the contract yet.
    return instance.active_calls + int(getattr(instance, "direct_leases", 0))


def slope(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Return the median of the slopes between all pairs (Theil-Sen), and its lower bound.

    Up to a third of the points may be outliers. The lower bound is the lower end of the interval that has the
    true slope in 95 of 100 cases (Sen 1968): above 0, the points rise and do not just vary.
    """
    slopes = sorted((b - a) / (y - x) for (x, a), (y, b) in combinations(points, 2) if y > x)
    if not slopes:
        return 0.0, 0.0
    count = len(points)
    spread = 1.96 * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    lowest = max(int((len(slopes) - spread) / 2), 0)
    return statistics.median(slopes), slopes[lowest]
