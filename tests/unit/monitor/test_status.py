"""The status of a model, from what the loader, the backend and the process report."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.common.errors import (
    CorralError,
    ModelNotLoadedError,
    NotImplementedYetError,
    ServiceUnreachableError,
    UnknownRemoteError,
)
from services.monitor.sampler import ProcessGoneError, Sample
from services.monitor.status import (
    BackendAnswer,
    LoaderInfo,
    Origin,
    Phase,
    Running,
    State,
    Statuses,
)

SAMPLE = Sample(7, 1, 1, 200, 100, 300, 1.0, 1.0, 3, 10.0, 20.0)
IDLE = Running(pid=7, started=10.0, active_calls=0)
BUSY = replace(IDLE, active_calls=2)


class Loader:
    def __init__(self, info: LoaderInfo, answer: BackendAnswer | CorralError) -> None:
        self._info = info
        self._answer = answer
        self.unloaded: list[tuple[str, bool]] = []

    async def info(self, model: str) -> LoaderInfo:
        return self._info

    async def loaded(self) -> list[str]:
        return [f"m{number}" for number in range(22)]

    async def ask(self, model: str) -> BackendAnswer:
        if isinstance(self._answer, CorralError):
            raise self._answer
        return self._answer

    async def unload(self, model: str, *, force: bool) -> None:
        self.unloaded.append((model, force))


class Sampler:
    def __init__(self, gone: bool) -> None:
        self._gone = gone

    async def sample(self, pid: int, started: float | None = None) -> Sample:
        if self._gone:
            raise ProcessGoneError("process 7 is gone")
        return SAMPLE


def statuses(
    answer: BackendAnswer | CorralError,
    *,
    running: Running | None = IDLE,
    phase: Phase = Phase.READY,
    gone: bool = False,
) -> Statuses:
    return Statuses(Loader(LoaderInfo("m", phase, "why", running), answer), Sampler(gone))


@pytest.mark.parametrize(
    ("state", "phase", "running", "expected"),
    [
        (State.READY, Phase.READY, IDLE, State.READY),
        (State.READY, Phase.READY, BUSY, State.BUSY),
        (State.UNINITIALIZED, Phase.READY, IDLE, State.READY),
        (State.UNINITIALIZED, Phase.READY, BUSY, State.BUSY),
        (State.ERROR, Phase.READY, BUSY, State.ERROR),
    ],
)
async def test_the_state_by_the_backend(
    state: State, phase: Phase, running: Running, expected: State
) -> None:
    status = await statuses(BackendAnswer(state), phase=phase, running=running).get("m")
    assert (status.state, status.origin) == (expected, Origin.BACKEND)
    assert status.memory == SAMPLE.memory == 100
    assert status.backend_error == ""


@pytest.mark.parametrize(
    ("error", "phase", "running", "expected"),
    [
        (NotImplementedYetError("x"), Phase.READY, IDLE, State.READY),
        (UnknownRemoteError("x", code="UNIMPLEMENTED"), Phase.READY, IDLE, State.READY),
        (UnknownRemoteError("x"), Phase.READY, IDLE, State.ERROR),
        (ServiceUnreachableError("x"), Phase.READY, IDLE, State.ERROR),
        (ServiceUnreachableError("x"), Phase.READY, BUSY, State.BUSY),
        (ServiceUnreachableError("x"), Phase.LOADING, IDLE, State.UNINITIALIZED),
    ],
)
async def test_the_state_by_the_process(
    error: CorralError, phase: Phase, running: Running, expected: State
) -> None:
    status = await statuses(error, phase=phase, running=running).get("m")
    assert (status.state, status.origin) == (expected, Origin.PROCESS)
    assert status.backend_error


async def test_a_process_that_is_gone_is_an_error() -> None:
    status = await statuses(ServiceUnreachableError("no answer"), running=BUSY, gone=True).get("m")
    assert (status.state, status.memory) == (State.ERROR, 0)
    assert status.backend_error == "process 7 is gone; no answer"


async def test_a_backend_on_another_machine_has_no_sample() -> None:
    remote = statuses(BackendAnswer(State.READY, 5), running=replace(IDLE, pid=0))
    status = await remote.get("m")
    assert (status.sample, status.memory) == (None, 5)
    with pytest.raises(ModelNotLoadedError, match="another machine"):
        await remote.sample("m")


async def test_a_model_that_is_not_loaded_is_an_error() -> None:
    with pytest.raises(ModelNotLoadedError, match=r"\(why\); loaded models: m0, .* and 2 more"):
        await statuses(BackendAnswer(State.READY), running=None).get("m")
    with pytest.raises(ModelNotLoadedError):
        await statuses(ModelNotLoadedError("unloaded meanwhile")).get("m")
    with pytest.raises(ModelNotLoadedError, match="process 7 is gone"):
        await statuses(BackendAnswer(State.READY), gone=True).sample("m")
