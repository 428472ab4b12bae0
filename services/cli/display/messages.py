"""The services' messages as views: the plain objects that `--json` writes and tables are made of."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from google.longrunning import operations_pb2
from google.protobuf.message import Message

from corral.gallery.v1 import gallery_pb2
from corral.loader.v1 import loader_pb2
from corral.monitor.v1 import monitor_pb2

from . import views


def bare(name: str) -> str:
    """Return the id in a resource name."""
    return (
        name.rpartition("/")[2]
        if name.startswith(("backends/", "operations/"))
        else (name.removeprefix("models/"))
    )


def origin(entry: str) -> str:
    """Return a gallery's entry as it is typed, `gallery@model`."""
    gallery, _, model = entry.removeprefix("galleries/").partition("/models/")
    return f"{gallery}@{model}" if model else gallery


def state_of(model: loader_pb2.Model) -> str:
    """Return a model's state in one lower-case word."""
    return word(loader_pb2.Model.State, model.state, "STATE_")


def model(message: loader_pb2.Model) -> views.Model:
    """Show a model as the loader knows it."""
    return {
        "name": bare(message.name),
        "state": state_of(message),
        "state_message": message.state_message,
        "state_time": moment(message, "state_time"),
        "backend": message.backend,
        "model_file": message.model_file,
        "config_file": message.config_file,
        "usecases": list(message.usecases),
        "pinned": message.pinned,
        "config_error": message.config_error,
        "retry_time": moment(message, "retry_time"),
        "queued_calls": message.queued_calls,
        "endpoints": list(message.endpoints),
        "endpoint_error": message.endpoint_error,
        "max_concurrent_calls": message.max_concurrent_calls,
        "concurrency_groups": list(message.concurrency_groups),
        "memory": reservations(message.memory),
        "failures": [_failure(failed) for failed in message.failures],
        "crash_count": message.crash_count,
        "last_unload": _unload(message.last_unload) if message.HasField("last_unload") else None,
        "instance": _instance(message.instances[0]) if message.instances else None,
        "instances": [_instance(one) for one in message.instances],
    }


def reservations(messages: Iterable[loader_pb2.MemoryReservation]) -> list[views.Reservation]:
    """Show memory by device, with the basis of each figure."""
    bases = loader_pb2.MemoryReservation.Basis
    return [
        {"device": one.device, "bytes": one.bytes, "basis": word(bases, one.basis, "BASIS_")}
        for one in messages
    ]


def word(kind: Any, value: int, prefix: str) -> str:
    """Return a value of an enum as one lower-case word, or its number if this version has no name for it."""
    try:
        return str(kind.Name(value)).removeprefix(prefix).lower()
    except ValueError:
        return str(value)


def entry(message: gallery_pb2.ModelEntry) -> views.Entry:
    """Show a model that a gallery offers."""
    return {
        "name": message.id,
        "gallery": message.gallery,
        "description": message.description,
        "license": message.license,
        "urls": list(message.urls),
        "tags": list(message.tags),
        "usecases": list(message.usecases),
        "backend": message.backend,
        "size_bytes": message.size_bytes,
        "installed": message.installed,
    }


def installed(message: gallery_pb2.InstalledModel) -> views.InstalledModel:
    """Show a model in the models folder."""
    return {
        "name": bare(message.name),
        "backend": message.backend,
        "usecases": list(message.usecases),
        "config_file": message.config_file,
        "model_file": message.model_file,
        "entry": origin(message.entry),
        "size_bytes": message.size_bytes,
        "loose": message.loose,
    }


def status(message: monitor_pb2.ModelStatus) -> views.Status:
    """Show what a loaded model does and uses."""
    return {
        "activity": monitor_pb2.ModelStatus.State.Name(message.state)
        .removeprefix("STATE_")
        .lower(),
        "source": monitor_pb2.ModelStatus.Source.Name(message.source)
        .removeprefix("SOURCE_")
        .lower(),
        "memory_bytes": message.memory_bytes,
        "memory_breakdown": dict(message.memory_breakdown_bytes),
        "active_calls": message.active_calls,
        "backend_error": message.backend_error,
        "time": moment(message, "time"),
        "process": _process(message.process) if message.HasField("process") else None,
    }


def operation(message: operations_pb2.Operation) -> views.Operation:
    """Show an operation of the gallery, with its progress."""
    meta = gallery_pb2.OperationMetadata()
    message.metadata.Unpack(meta)
    failed = message.HasField("error")
    return {
        "name": bare(message.name),
        "kind": gallery_pb2.OperationMetadata.Kind.Name(meta.kind).removeprefix("KIND_").lower(),
        "target": bare(meta.target),
        "phase": phase_of(meta),
        "file": meta.file,
        "bytes_done": meta.bytes_done,
        "bytes_total": meta.bytes_total,
        "percent": round(meta.percent, 2),
        "bytes_per_second": meta.bytes_per_second,
        "eta_seconds": seconds(meta, "eta"),
        "message": meta.message,
        "create_time": moment(meta, "create_time"),
        "end_time": moment(meta, "end_time"),
        "cancel_requested": meta.cancel_requested,
        "done": message.done,
        "error": {"code": message.error.code, "message": message.error.message} if failed else None,
    }


def phase_of(meta: gallery_pb2.OperationMetadata) -> str:
    """Return an operation's phase in one lower-case word."""
    return gallery_pb2.OperationMetadata.Phase.Name(meta.phase).removeprefix("PHASE_").lower()


def log_line(message: loader_pb2.LogLine) -> views.LogLine:
    """Show a line that a backend wrote."""
    return {
        "sequence": message.sequence,
        "time": moment(message, "time"),
        "stream": stream_of(message),
        "generation": message.generation,
        "level": level_of(message),
        "text": message.text,
    }


def level_of(message: loader_pb2.LogLine) -> str:
    """Return a line's level in one lower-case word; empty if unknown."""
    name = loader_pb2.LogLine.Level.Name(message.level).removeprefix("LEVEL_").lower()
    return "" if name == "unspecified" else name


def stream_of(message: loader_pb2.LogLine) -> str:
    """Return a line's source: stdout, stderr or loader."""
    return loader_pb2.LogLine.Stream.Name(message.stream).removeprefix("STREAM_").lower()


def epoch(moment: str) -> float:
    """Return the seconds since 1970 of a time in a view."""
    return datetime.fromisoformat(moment).timestamp()


def _instance(message: loader_pb2.Instance) -> views.Instance:
    return {
        "uid": message.uid,
        "generation": message.generation,
        "backend": message.backend,
        "address": message.address,
        "pid": message.pid,
        "start_time": moment(message, "start_time"),
        "ready_time": moment(message, "ready_time"),
        "load_seconds": seconds(message, "load_duration"),
        "active_calls": message.active_calls,
        "total_calls": message.total_calls,
        "last_used_time": moment(message, "last_used_time"),
        "load_message": message.load_message,
        "adopted": message.adopted,
    }


def _failure(message: loader_pb2.CandidateFailure) -> views.CandidateFailure:
    return {
        "backend": message.backend,
        "message": message.message,
        "reason": message.reason,
        "count": message.count,
        "retry_time": moment(message, "retry_time"),
    }


def _unload(message: loader_pb2.Unload) -> views.Unload:
    return {
        "cause": word(loader_pb2.Unload.Cause, message.cause, "CAUSE_"),
        "message": message.message,
        "time": moment(message, "time"),
        "for_model": bare(message.for_model),
        "forced": message.forced,
    }


def _process(message: monitor_pb2.ProcessSample) -> views.Process:
    return {
        "pid": message.pid,
        "process_count": message.process_count,
        "thread_count": message.thread_count,
        "rss_bytes": message.rss_bytes,
        "pss_bytes": message.pss_bytes,
        "vms_bytes": message.vms_bytes,
        "cpu_percent": round(message.cpu_percent, 2),
        "cpu_seconds": seconds(message, "cpu_time"),
        "open_file_count": message.open_file_count,
        "start_time": moment(message, "start_time"),
        "gpu_memory_bytes": dict(message.gpu_memory_bytes),
    }


def moment(message: Message, field: str) -> str | None:
    """Return a timestamp as RFC 3339, or None if it is unset."""
    if not message.HasField(field):
        return None
    return str(getattr(message, field).ToJsonString())


def seconds(message: Message, field: str) -> float | None:
    """Return a duration in seconds, or None if it is unset."""
    if not message.HasField(field):
        return None
    return float(getattr(message, field).ToNanoseconds()) / 1e9
