"""Immutable views of a model: its configuration, state and instance."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from services.loader.admission.meter import calls_at_once
from services.loader.instances.instance import Instance
from services.loader.lifecycle.state import Phase
from services.loader.memory.reservation import Basis
from services.loader.models.catalog import ModelEntry
from services.loader.scheduling.occupancy import LastUnload
from services.loader.supervision.supervisor import Supervisor

UNLOADED = "UNLOADED"
"""The name of the state in which nothing runs and nothing failed; the others are named as in Phase."""


@dataclass(frozen=True, slots=True)
class InstanceView:
    """An instance at one moment."""

    uid: str
    generation: int
    backend: str
    address: str
    pid: int
    started: float
    ready: float | None
    active: int
    total: int
    last_used: float | None
    load_message: str
    adopted: bool
    direct: int
    """Leases of clients that call the backend themselves."""


@dataclass(frozen=True, slots=True)
class FailureView:
    """A backend that failed with the model."""

    backend: str
    message: str
    reason: str
    count: int
    retry_time: float | None


@dataclass(frozen=True, slots=True)
class ModelView:
    """A model at one moment. Times are seconds since the epoch."""

    name: str
    state: str
    message: str
    state_time: float | None
    backend: str
    model_file: str
    config_file: str
    usecases: tuple[str, ...]
    pinned: bool
    config_error: str
    retry_time: float | None
    instance: InstanceView | None
    queued_calls: int
    calls_at_once: int
    groups: tuple[str, ...]
    memory: tuple[tuple[str, int], ...]
    """Bytes by device: measured, or reserved."""
    memory_basis: Basis
    failures: tuple[FailureView, ...]
    crashes: int
    last_unload: LastUnload | None
    endpoints: tuple[str, ...] = ()
    """The model's own addresses, at which it behaves like a plain backend."""
    endpoint_error: str = ""
    """Why the model lacks an address that it should have."""

    @property
    def etag(self) -> str:
        """A digest of all fields."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class ModelFilter:
    """A filter for models; every condition that is set must hold."""

    states: frozenset[str] = frozenset()
    backend: str = ""
    usecase: str = ""
    name_contains: str = ""

    def matches(self, model: ModelView) -> bool:
        """Whether the model matches the filter."""
        return (
            (not self.states or model.state in self.states)
            and (not self.backend or model.backend == self.backend)
            and (not self.usecase or self.usecase.lower() in map(str.lower, model.usecases))
            and self.name_contains.lower() in model.name.lower()
        )


def view(
    entry: ModelEntry,
    supervisor: Supervisor | None,
    *,
    pinned: bool,
    endpoints: tuple[str, ...] = (),
    endpoint_error: str = "",
) -> ModelView:
    """Return the view of a model now."""
    state = supervisor.state if supervisor else None
    phase = state.phase if state else Phase.STOPPED
    instance = supervisor.instance if supervisor else None
    backing_off = supervisor is not None and phase is Phase.BACKOFF
    return ModelView(
        name=entry.name,
        state=_state(phase, supervisor),
        message=_message(supervisor),
        state_time=supervisor.state_time if supervisor else None,
        backend=(state.candidate if state else "") or entry.config.backend,
        model_file=entry.config.model,
        config_file=entry.config_file,
        usecases=tuple(entry.config.known_usecases),
        pinned=pinned,
        config_error=str(entry.error) if entry.error else "",
        retry_time=supervisor.backoffs.retry_time(supervisor.state)
        if supervisor and backing_off
        else None,
        instance=instance_view(instance) if instance else None,
        queued_calls=supervisor.leases.calls if supervisor else 0,
        calls_at_once=calls_at_once(entry, instance.backend if instance else None),
        groups=tuple(entry.config.concurrency_groups),
        memory=tuple(sorted(supervisor.memory.items())) if supervisor else (),
        memory_basis=_basis(supervisor),
        failures=_failures(supervisor),
        crashes=state.crashes if state else 0,
        last_unload=supervisor.last_unload if supervisor else None,
        endpoints=endpoints,
        endpoint_error=endpoint_error,
    )


def _state(phase: Phase, supervisor: Supervisor | None) -> str:
    if phase is Phase.STOPPED:
        return UNLOADED
    if phase is Phase.WAITING and supervisor and not supervisor.reservation.waits_for:
        return Phase.STARTING.name  # its request is about to be answered
    return phase.name


def _message(supervisor: Supervisor | None) -> str:
    if supervisor is None:
        return ""
    if supervisor.state.phase is Phase.WAITING:
        return (
            f"waits for {supervisor.reservation.waits_for}"
            if supervisor.reservation.waits_for
            else ""
        )
    return supervisor.state.message


def _basis(supervisor: Supervisor | None) -> Basis:
    if supervisor is None:
        return Basis.ESTIMATED
    if supervisor.instance is not None and supervisor.instance.memory:
        return Basis.MEASURED
    return supervisor.reservation.current.basis


def _failures(supervisor: Supervisor | None) -> tuple[FailureView, ...]:
    if supervisor is None:
        return ()
    return tuple(
        FailureView(
            penalty.candidate,
            str(penalty.failure.error),
            getattr(penalty.failure.error, "reason", ""),
            penalty.count,
            supervisor.backoffs.until(penalty.candidate),
        )
        for penalty in supervisor.state.penalties
    )


def instance_view(instance: Instance) -> InstanceView:
    """Return the view of an instance now."""
    return InstanceView(
        uid=instance.uid,
        generation=instance.generation,
        backend=instance.backend.name,
        address=instance.address,
        pid=instance.pid,
        started=instance.started,
        ready=instance.ready,
        active=instance.calls.active,
        total=instance.calls.total,
        last_used=instance.calls.last_used,
        load_message=instance.load_message,
        adopted=instance.adopted,
        direct=instance.calls.direct,
    )
