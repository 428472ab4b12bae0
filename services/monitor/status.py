"""What a loaded model does: the backend's word where it has one, else what can be seen from outside."""

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

# Names enough to see the mistake, and few enough to read.
_NAMES_SHOWN = 20


class State(Enum):
    """What a model does."""

    UNINITIALIZED = "uninitialized"
    BUSY = "busy"
    READY = "ready"
    ERROR = "error"


class Origin(Enum):
    """Whose word a status is."""

    BACKEND = "backend"
    PROCESS = "process"


class Phase(Enum):
    """Where the loader has a model, as far as it matters here."""

    NOT_LOADED = "not loaded"
    LOADING = "loading"
    READY = "ready"


@dataclass(frozen=True, slots=True)
class Running:
    """The instance that holds a model, as the loader tells it."""

    pid: int
    """0 for a backend on another machine."""
    started: float | None
    active_calls: int


@dataclass(frozen=True, slots=True)
class Known:
    """What the loader knows of a model."""

    model: str
    phase: Phase
    message: str = ""
    running: Running | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a backend says of itself."""

    state: State
    memory: int = 0
    breakdown: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Status:
    """What a loaded model does and uses."""

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
    """What is asked of the loader. None of it loads a model; failures are CorralErrors."""

    async def known(self, model: str) -> Known:
        """Return what is known of a model."""

    async def loaded(self) -> list[str]:
        """Return the names of the loaded models."""

    async def ask(self, model: str) -> Answer:
        """Return the backend's own answer; UnknownRemoteError and others if it has none."""

    async def unload(self, model: str, *, force: bool) -> None:
        """Unload a model; return after its process group is gone."""


class Sampling(Protocol):
    """What is asked of the sampler."""

    async def sample(self, pid: int, started: float | None = None) -> Sample:
        """Sample a process tree, or raise ProcessGoneError or DeadlineError."""


class Statuses:
    """Answers what models do, one at a time."""

    def __init__(self, loader: Loader, sampler: Sampling) -> None:
        """Ask this loader, and sample with this sampler."""
        self._loader = loader
        self._sampler = sampler

    async def get(self, model: str) -> Status:
        """Return the status of a loaded model, or raise ModelNotLoadedError."""
        known, running = await self._running(model)
        # At the same time: a backend that does not answer should not delay the sample too.
        answered, sampled = await asyncio.gather(self._answer(known), self._sample(running))
        if isinstance(answered, ModelNotLoadedError):
            # Unloaded since the loader was asked.
            raise answered
        sample = sampled if isinstance(sampled, Sample) else None
        if isinstance(answered, Answer):
            return Status(
                model=known.model,
                state=_told(answered.state, known.phase, running),
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
            model=known.model,
            state=State.ERROR if gone else _seen(answered, known.phase, running),
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
        known, running = await self._running(model)
        if not running.pid:
            raise _not_loaded(known.model, "is loaded on another machine: it has no process here")
        try:
            return await self._sampler.sample(running.pid, running.started)
        except ProcessGoneError as error:
            raise _not_loaded(known.model, f"is not loaded any more: {error}") from error

    async def shut_down(self, model: str, *, force: bool) -> None:
        """Unload a model and wait until its process group is gone."""
        await self._loader.unload(model, force=force)

    async def _running(self, model: str) -> tuple[Known, Running]:
        known = await self._loader.known(model)
        if known.running is not None and known.phase is not Phase.NOT_LOADED:
            return known, known.running
        names = await self._loader.loaded()
        shown = ", ".join(names[:_NAMES_SHOWN]) or "none"
        if (more := len(names) - _NAMES_SHOWN) > 0:
            shown += f" and {more} more"
        why = f" ({known.message})" if known.message else ""
        raise _not_loaded(known.model, f"is not loaded{why}; loaded models: {shown}")

    async def _answer(self, known: Known) -> Answer | CorralError | str:
        if known.phase is Phase.LOADING:
            # Most backends answer nothing while they read a model; waiting for that tells nothing.
            return "the model is still loading"
        try:
            return await self._loader.ask(known.model)
        except CorralError as error:
            return error

    async def _sample(self, running: Running) -> Sample | Exception | None:
        if not running.pid:
            return None
        try:
            return await self._sampler.sample(running.pid, running.started)
        except (ProcessGoneError, DeadlineError) as error:
            return error


def _told(state: State, phase: Phase, running: Running) -> State:
    """Return the backend's state, mended where the loader knows better.

    Many backends only ever say that they are uninitialized, and one that counts nothing itself says
    that it is ready while it answers calls.
    """
    if state is State.UNINITIALIZED and phase is Phase.READY:
        state = State.READY
    if state is State.READY and running.active_calls > 0:
        state = State.BUSY
    return state


def _seen(answered: CorralError | str, phase: Phase, running: Running) -> State:
    """Return the state as it looks from outside, given why the backend did not say it."""
    if phase is Phase.LOADING:
        return State.UNINITIALIZED
    if running.active_calls > 0:
        # One that does one thing at a time answers no probe meanwhile: silence is no failure then.
        return State.BUSY
    return State.READY if _unimplemented(answered) else State.ERROR


def _unimplemented(answered: CorralError | str) -> bool:
    return isinstance(answered, NotImplementedYetError) or (
        isinstance(answered, UnknownRemoteError) and answered.code == "UNIMPLEMENTED"
    )


def _not_loaded(model: str, what: str) -> ModelNotLoadedError:
    return ModelNotLoadedError(f"model {model!r} {what}", resource=Resource("model", model))
