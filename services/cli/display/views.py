"""The shape of what `--json` writes, which tables and phrases are made of too.

These are an interface: a field is never renamed or given another meaning. Names of resources are bare
ids, as they are typed; sizes are bytes, time spans are seconds, times are RFC 3339.
"""

from __future__ import annotations

from typing import Any, TypedDict


class Reservation(TypedDict):
    """Memory of one device that a model has or needs."""

    device: str
    bytes: int
    basis: str


class CandidateFailure(TypedDict):
    """A backend that failed with a model."""

    backend: str
    message: str
    reason: str
    count: int
    retry_time: str | None


class Unload(TypedDict):
    """The last time that a model was unloaded."""

    cause: str
    message: str
    time: str | None
    for_model: str
    forced: bool


class Instance(TypedDict):
    """One backend that holds a model."""

    uid: str
    generation: int
    backend: str
    address: str
    pid: int
    start_time: str | None
    ready_time: str | None
    load_seconds: float | None
    active_calls: int
    total_calls: int
    last_used_time: str | None
    load_message: str
    adopted: bool


class Model(TypedDict):
    """A model as the loader knows it."""

    name: str
    state: str
    state_message: str
    state_time: str | None
    backend: str
    model_file: str
    config_file: str
    usecases: list[str]
    pinned: bool
    config_error: str
    retry_time: str | None
    queued_calls: int
    endpoints: list[str]
    endpoint_error: str
    max_concurrent_calls: int
    concurrency_groups: list[str]
    memory: list[Reservation]
    failures: list[CandidateFailure]
    crash_count: int
    last_unload: Unload | None
    instance: Instance | None
    """The first of `instances`."""
    instances: list[Instance]


class ListedModel(Model):
    """A model in a list, with the memory that it uses."""

    memory_bytes: int | None


class UnloadedModel(Model):
    """A model that was just unloaded."""

    seconds: float


class StayingModel(TypedDict):
    """A model that could not be unloaded."""

    name: str
    reason: str
    message: str
    hint: str


class Process(TypedDict):
    """The processes of one backend, added up."""

    pid: int
    process_count: int
    thread_count: int
    rss_bytes: int
    pss_bytes: int
    vms_bytes: int
    cpu_percent: float
    cpu_seconds: float | None
    open_file_count: int
    start_time: str | None
    gpu_memory_bytes: dict[str, int]


class Status(TypedDict):
    """What a loaded model does and uses, from the monitor."""

    activity: str
    source: str
    memory_bytes: int
    memory_breakdown: dict[str, int]
    active_calls: int
    backend_error: str
    time: str | None
    process: Process | None


class ModelWithStatus(Model):
    """A model with what it does and uses; None if the monitor has no answer."""

    status: Status | None


class Option(TypedDict):
    """One field of LoadModel's request, and where its value comes from."""

    field: str
    value: Any
    source: str
    detail: str


class Waiting(TypedDict):
    """A model that waits to be loaded."""

    model: str
    position: int
    explanation: str
    since: str | None


class ModelDetails(ModelWithStatus):
    """All that is known of one model."""

    health: str
    effective_options: list[Option]
    waiting: Waiting | None


class DeviceMemory(TypedDict):
    """How a device's memory is used."""

    total_bytes: int
    available_bytes: int
    reserved_bytes: int


class Device(DeviceMemory):
    """A device whose memory models can use."""

    name: str
    description: str
    budget_bytes: int


class Capacity(TypedDict):
    """The loader's slots, memory and queue."""

    devices: list[Device]
    active_models: int
    max_active_models: int
    loads: int
    max_loads: int
    calls: int
    max_calls: int
    waiting: list[Waiting]


class Eviction(TypedDict):
    """A model that would be evicted."""

    model: str
    freed_bytes: int
    idle_seconds: float | None
    explanation: str


class Blocker(TypedDict):
    """A model that cannot be evicted."""

    model: str
    explanation: str
    temporary: bool


class Plan(TypedDict):
    """What would happen to load a model."""

    model: str
    fits: bool
    explanation: str
    memory: list[Reservation]
    evictions: list[Eviction]
    blockers: list[Blocker]


class Backend(TypedDict):
    """A backend of the loader, usable or not."""

    name: str
    aliases: list[str]
    version: str
    source: str
    usable: bool
    error: str
    explanation: str
    chosen: str
    requires: list[str]
    formats: list[str]
    usecases: list[str]
    max_concurrent_calls: int
    run_file: str
    address: str
    system: bool
    gallery_url: str
    install_time: str | None
    revision: str


class Setting(TypedDict):
    """A setting that can be changed while the loader runs; durations are in seconds."""

    value: Any
    source: str
    meaning: str


class Entry(TypedDict):
    """A model that a gallery offers."""

    name: str
    gallery: str
    description: str
    license: str
    urls: list[str]
    tags: list[str]
    usecases: list[str]
    backend: str
    size_bytes: int
    installed: bool


class InstalledModel(TypedDict):
    """A model in the models folder."""

    name: str
    backend: str
    usecases: list[str]
    config_file: str
    model_file: str
    entry: str
    size_bytes: int
    loose: bool


class OperationError(TypedDict):
    """Why an operation failed."""

    code: int
    message: str


class Operation(TypedDict):
    """An operation of the gallery, with its progress."""

    name: str
    kind: str
    target: str
    phase: str
    file: str
    bytes_done: int
    bytes_total: int
    percent: float
    bytes_per_second: float
    eta_seconds: float | None
    message: str
    create_time: str | None
    end_time: str | None
    cancel_requested: bool
    done: bool
    error: OperationError | None


class LogLine(TypedDict):
    """A line that a backend, or the loader for it, wrote."""

    sequence: int
    time: str | None
    stream: str
    generation: int
    level: str
    text: str
