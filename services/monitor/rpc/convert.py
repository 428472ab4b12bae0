"""Conversion between the protos' messages and the domain's values."""

from __future__ import annotations

from typing import Final

from corral.backend import backend_pb2
from corral.loader.v1 import loader_pb2
from corral.monitor.v1 import monitor_pb2 as pb
from services.common.errors import UnknownRemoteError
from services.common.names import MODELS, resource_id, resource_name
from services.common.rpc.times import duration, in_seconds, timestamp
from services.monitor.sampler import Sample
from services.monitor.status import BackendAnswer, LoaderInfo, Origin, Phase, Running, State, Status

_Loader = loader_pb2.Model
_PHASES: Final = {
    _Loader.STATE_STARTING: Phase.LOADING,
    _Loader.STATE_LOADING: Phase.LOADING,
    _Loader.STATE_READY: Phase.READY,
    # A model that is being unloaded still answers its running calls.
    _Loader.STATE_DRAINING: Phase.READY,
    _Loader.STATE_STOPPING: Phase.READY,
}
LOADED: Final = tuple(_PHASES)
"""The loader's states in which a model is loaded."""

_BACKEND_STATES: Final = {
    backend_pb2.StatusResponse.UNINITIALIZED: State.UNINITIALIZED,
    backend_pb2.StatusResponse.BUSY: State.BUSY,
    backend_pb2.StatusResponse.READY: State.READY,
    backend_pb2.StatusResponse.ERROR: State.ERROR,
}
_STATES: Final = {
    State.UNINITIALIZED: pb.ModelStatus.STATE_UNINITIALIZED,
    State.BUSY: pb.ModelStatus.STATE_BUSY,
    State.READY: pb.ModelStatus.STATE_READY,
    State.ERROR: pb.ModelStatus.STATE_ERROR,
}
_SOURCES: Final = {
    Origin.BACKEND: pb.ModelStatus.SOURCE_BACKEND,
    Origin.PROCESS: pb.ModelStatus.SOURCE_PROCESS,
}
_LARGEST: Final = 2**63 - 1


def model_id(name: str, field: str = "name") -> str:
    """Return the id in `models/{model}` or the bare id; InvalidRequestError if there is none."""
    return resource_id(MODELS, name, field)


def loader_info(model: loader_pb2.Model) -> LoaderInfo:
    """Return what the loader reports about a model."""
    running = None
    if model.instances:
        instance = model.instances[0]
        started = instance.start_time
        running = Running(
            pid=instance.pid,
            started=in_seconds(started) if instance.HasField("start_time") else None,
            active_calls=instance.active_calls,
        )
    return LoaderInfo(
        model=model_id(model.name),
        phase=_PHASES.get(model.state, Phase.NOT_LOADED),
        message=model.state_message,
        running=running,
    )


def backend_answer(response: backend_pb2.StatusResponse | None) -> BackendAnswer:
    """Return a backend's answer, or raise UnknownRemoteError if it is invalid."""
    if response is None:
        # grpc.aio returns None, and no error, for bytes that do not parse.
        raise UnknownRemoteError("the backend's answer is not a StatusResponse", code="INTERNAL")
    state = _BACKEND_STATES.get(response.state)
    if state is None:
        raise UnknownRemoteError(f"the backend answered with the unknown state {response.state}")
    return BackendAnswer(
        state=state, memory=response.memory.total, breakdown=dict(response.memory.breakdown)
    )


def status(value: Status) -> pb.ModelStatus:
    """Return the message for a status."""
    return pb.ModelStatus(
        model=resource_name(MODELS, value.model),
        state=_STATES[value.state],
        source=_SOURCES[value.origin],
        memory_bytes=_bytes(value.memory) if value.memory else None,
        memory_breakdown_bytes={part: _bytes(size) for part, size in value.breakdown.items()},
        active_calls=value.active_calls,
        process=sample(value.sample) if value.sample else None,
        backend_error=value.backend_error,
        time=timestamp(value.time),
    )


def sample(value: Sample) -> pb.ProcessSample:
    """Return the message for a sample."""
    return pb.ProcessSample(
        pid=value.pid,
        process_count=value.process_count,
        thread_count=value.thread_count,
        rss_bytes=value.rss,
        pss_bytes=value.pss,
        vms_bytes=value.vms,
        cpu_percent=value.cpu_percent,
        cpu_time=duration(value.cpu_seconds),
        open_file_count=value.open_files,
        start_time=timestamp(value.start_time),
        time=timestamp(value.time),
    )


def _bytes(size: int) -> int:
    """Return the size within a signed 64-bit field; a backend's is unsigned."""
    return min(size, _LARGEST)
