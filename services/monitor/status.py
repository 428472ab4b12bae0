"""The status of a loaded model: as its backend reports it, or else derived from its process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from services.common.errors import (
    CorralError,
    DeadlineError,
    ModelNotLoadedError,
    NotImplementedYetError,
    Resource,
    UnknownRemoteError,
)

from .sampler import ProcessGoneError, Sample

_NAMES_SHOWN = 20
"""At most this many loaded models are listed in an error."""


class State(Enum):
    """What a model is doing."""

    UNINITIALIZED = "uninitialized"
    BUSY = "busy"
    READY = "ready"
    ERROR = "error"


class Origin(Enum):
    """Where a status comes from."""

    BACKEND = "backend"
    PROCESS = "process"


class Phase(Enum):
    """The state of a model in the loader, simplified."""

    NOT_LOADED = "not loaded"
    LOADING = "loading"
    READY = "ready"


@dataclass(frozen=True, slots=True)
class Running:
    """The instance that holds a model, as the loader reports it."""

    pid: int
    """0 for a backend on another machine."""
    started: float | None
    active_calls: int


@dataclass(frozen=True, slots=True)
class LoaderInfo:
    """What the loader reports about a model."""

    model: str
    phase: Phase
    message: str = ""
    running: Running | None = None


@dataclass(frozen=True, slots=True)
class BackendAnswer:
    """A backend's answer to Status."""

    state: State
    memory: int = 0
    breakdown: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Status:
    """What a loaded model is doing, and the memory it uses."""

    model: str
    state: State
    origin: Origin
    memory: int
    breakdown: Mapping[str, int]
    active_calls: int
    sample: Sample | None
    backend_error: str
    time: float


class Loader(Protocol):
    """The loader's interface. No method loads a model; failures are CorralErrors."""

    async def info(self, model: str) -> LoaderInfo:
        """Return what the loader reports about a model."""

    async def loaded(self) -> list[str]:
        """Return the names of the loaded models."""

    async def ask(self, model: str) -> BackendAnswer:
        """Return the backend's answer to Status; UnknownRemoteError and others if it has none."""

    async def unload(self, model: str, *, force: bool) -> None:
        """Unload a model; return after its process group is gone."""


class Sampling(Protocol):
    """The sampler's interface."""

    async def sample(self, pid: int, started: float | None = None) -> Sample:
        """Sample a process tree, or raise ProcessGoneError or DeadlineError."""


class Statuses:
    """Finds the status of models."""

    def __init__(self, loader: Loader, sampler: Sampling) -> None:
        """`loader` reports models and reaches their backends; `sampler` measures processes."""
        self._loader = loader
        self._sampler = sampler

    async def get(self, model: str) -> Status:
        """Return the status of a loaded model, or raise ModelNotLoadedError."""
        info, running = await self._running(model)
        # In parallel: a backend that does not answer must not delay the sample.
        answered, sampled = await asyncio.gather(self._answer(info), self._sample(running))
        if isinstance(answered, ModelNotLoadedError):
            # Unloaded in the meantime.
            raise answered
        sample = sampled if isinstance(sampled, Sample) else None
        if isinstance(answered, BackendAnswer):
            return Status(
                model=info.model,
                state=_state_by_backend(answered.state, info.phase, running),
                origin=Origin.BACKEND,
                memory=answered.memory or (sample.memory if sample else 0),
                breakdown=answered.breakdown,
                active_calls=running.active_calls,
                sample=sample,
                backend_error="",
                time=time.time(),
            )
        gone = isinstance(sampled, ProcessGoneError)
        return Status(
            model=info.model,
            state=State.ERROR if gone else _state_by_process(answered, info.phase, running),
            origin=Origin.PROCESS,
            memory=sample.memory if sample else 0,
            breakdown={},
            active_calls=running.active_calls,
            sample=sample,
            backend_error=f"{sampled}; {answered}" if gone else str(answered),
            time=time.time(),
        )

    async def sample(self, model: str) -> Sample:
        """Sample the process tree of a loaded model, or raise ModelNotLoadedError."""
        info, running = await self._running(model)
        if not running.pid:
            raise _not_loaded(info.model, "is loaded on another machine: it has no process here")
        try:
            return await self._sampler.sample(running.pid, running.started)
        except ProcessGoneError as error:
            raise _not_loaded(info.model, f"is not loaded any more: {error}") from error

    async def shut_down(self, model: str, *, force: bool) -> None:
        """Unload a model and wait until its process group is gone."""
        await self._loader.unload(model, force=force)

    async def _running(self, model: str) -> tuple[LoaderInfo, Running]:
        info = await self._loader.info(model)
        if info.running is not None and info.phase is not Phase.NOT_LOADED:
            return info, info.running
        names = await self._loader.loaded()
        shown = ", ".join(names[:_NAMES_SHOWN]) or "none"
        if (more := len(names) - _NAMES_SHOWN) > 0:
            shown += f" and {more} more"
        why = f" ({info.message})" if info.message else ""
        raise _not_loaded(info.model, f"is not loaded{why}; loaded models: {shown}")

    async def _answer(self, info: LoaderInfo) -> BackendAnswer | CorralError | str:
        if info.phase is Phase.LOADING:
            # Most backends answer nothing while they load a model; do not wait for the timeout.
            return "the model is still loading"
        try:
            return await self._loader.ask(info.model)
        except CorralError as error:
            return error

    async def _sample(self, running: Running) -> Sample | Exception | None:
        if not running.pid:
            return None
        try:
            return await self._sampler.sample(running.pid, running.started)
        except (ProcessGoneError, DeadlineError) as error:
            return error


def _state_by_backend(state: State, phase: Phase, running: Running) -> State:
    """Return the backend's state, corrected where the loader knows better.

    Many backends always report that they are uninitialized, and one that does not count its calls
    reports that it is ready while it is busy.
    """
    if state is State.UNINITIALIZED and phase is Phase.READY:
        state = State.READY
    if state is State.READY and running.active_calls > 0:
        state = State.BUSY
    return state


def _state_by_process(answered: CorralError | str, phase: Phase, running: Running) -> State:
    """Return the state derived from the process, given why the backend did not report it."""
    if phase is Phase.LOADING:
        return State.UNINITIALIZED
    if running.active_calls > 0:
        # A backend that handles one call at a time cannot answer a probe meanwhile; that is no failure.
        return State.BUSY
    return State.READY if _unimplemented(answered) else State.ERROR


def _unimplemented(answered: CorralError | str) -> bool:
    return isinstance(answered, NotImplementedYetError) or (
        isinstance(answered, UnknownRemoteError) and answered.code == "UNIMPLEMENTED"
    )


def _not_loaded(model: str, what: str) -> ModelNotLoadedError:
    return ModelNotLoadedError(f"model {model!r} {what}", resource=Resource("model", model))
