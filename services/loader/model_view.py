"""A model as others see it: one immutable picture of configuration, state and instance."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from .lifecycle import Phase
from .model_catalog import ModelEntry
from .supervisor import Supervisor

UNLOADED = "UNLOADED"
"""The name of the state in which nothing runs and nothing failed; all others are those of Phase."""


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

    @property
    def etag(self) -> str:
        """A digest of everything else."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]


def view(entry: ModelEntry, supervisor: Supervisor | None) -> ModelView:
    """Return the picture of a model now."""
    state = supervisor.state if supervisor else None
    phase = state.phase if state else Phase.STOPPED
    return ModelView(
        name=entry.name,
        state=UNLOADED if phase is Phase.STOPPED else phase.name,
        message=state.message if state else "",
        state_time=supervisor.state_time if supervisor else None,
        backend=(state.candidate if state else "") or entry.config.backend,
        model_file=entry.config.model,
        config_file=entry.config_file,
        usecases=tuple(entry.config.known_usecases),
        pinned=entry.config.pinned,
        config_error=str(entry.error) if entry.error else "",
        retry_time=supervisor.retry_at if supervisor and phase is Phase.BACKOFF else None,
        instance=_instance(supervisor),
    )


def _instance(supervisor: Supervisor | None) -> InstanceView | None:
    instance = supervisor.instance if supervisor else None
    if instance is None:
        return None
    return InstanceView(
        uid=instance.uid,
        generation=instance.generation,
        backend=instance.backend.name,
        address=instance.address,
        pid=instance.pid,
        started=instance.started,
        ready=instance.ready,
        active=instance.active,
        total=instance.total,
        last_used=instance.last_used,
        load_message=instance.load_message,
    )
