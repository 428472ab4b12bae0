"""What callers are told when a model cannot be had: one error for each way in which it fails or ends."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping

from services.common.errors import (
    BackendCrashedError,
    CorralError,
    CrashLoopError,
    DeadlineTooShortError,
    LoadBackoffError,
    ModelBusyError,
    ModelLoadError,
    ModelUnloadedError,
    QueueFullError,
    Resource,
)
from services.loader.admission import wait_estimate as pace
from services.loader.instances.instance import Instance
from services.loader.lifecycle.events import Failure
from services.loader.processes.interface import Exit


def exited(instance: Instance, how: Exit, last_lines: list[str], *, loading: bool) -> CorralError:
    """Return the error for a process that ended by itself, while it read the model or later."""
    said = f"; it last wrote: {last_lines[-1]}" if last_lines else ""
    what = f"backend {instance.backend.name} of model {instance.model!r} {how}"
    kind = ModelLoadError if loading else BackendCrashedError
    return kind(
        f"could not load model: {what} while it read the model{said}"
        if loading
        else f"{what}{said}",
        metadata={
            "model": instance.model,
            "backend": instance.backend.name,
            "exit_code": "" if how.code is None else str(how.code),
            "signal": how.signal_name,
            "out_of_memory": str(how.out_of_memory).lower(),
            "stderr": "\n".join(last_lines),
        },
        resource=Resource("model", instance.model),
    )


def ended(model: str, why: str, failure: Failure | None) -> CorralError:
    """Return what the calls of an instance that goes away are told."""
    if failure is not None and isinstance(failure.error, CorralError):
        return failure.error
    return ModelUnloadedError(
        f"model {model!r} was unloaded: {why or 'on request'}", resource=Resource("model", model)
    )


def all_failed(
    model: str, failures: tuple[Failure, ...], not_tried: Mapping[str, str] | None = None
) -> CorralError:
    """Return one error for what each candidate failed with, and for those that were none."""
    others = "\n".join(f"[{name}]: {why}" for name, why in (not_tried or {}).items())
    if len(failures) == 1:
        error = failures[0].error
        found = (
            copy.copy(error) if isinstance(error, CorralError) else ended(model, str(error), None)
        )
        if others:
            found.metadata = {**found.metadata, "not_tried": others}
        return found
    each = "\n".join(f"[{failure.candidate}]: {failure.error}" for failure in failures)
    return ModelLoadError(
        f"could not load model - all backends returned error: {each}",
        metadata={"model": model} | ({"not_tried": others} if others else {}),
        resource=Resource("model", model),
    )


def backing_off(model: str, left: float, failures: tuple[Failure, ...]) -> LoadBackoffError:
    """Return the error for a call that comes `left` seconds too early after a failure."""
    cause = all_failed(model, failures)
    return LoadBackoffError(
        f"model {model!r} is not tried again for {left:.1f} s, because its last load failed: {cause}",
        retry_after=left,
        metadata={"cause": cause.reason},
        resource=Resource("model", model),
    )


def quarantined(model: str, left: float, crashes: int, failures: Iterable[Failure]) -> CorralError:
    """Return the error for a call to a model whose backend crashed again and again."""
    last = "; ".join(str(failure.error) for failure in failures)
    return CrashLoopError(
        f"model {model!r} crashed {crashes} times in a row and is in quarantine for {left:.0f} s: {last};"
        " mend the cause, then load it with reset_backoff (`corral load --now`)",
        retry_after=left,
        metadata={"crashes": str(crashes)},
        resource=Resource("model", model),
    )


def queue_full(model: str, waiting: int, retry_after: float) -> CorralError:
    """Return the error for a call that finds as many others waiting as may."""
    return QueueFullError(
        f"model {model!r} is busy and {waiting} calls wait for it already, which is as many as may"
        " (queue_size); retry later",
        retry_after=retry_after,
        metadata={"model": model, "queue_length": str(waiting)},
        resource=Resource("model", model),
    )


def deadline_too_short(
    model: str, *, left: float, wait: float, load_left: float, position: int, waiting: int
) -> DeadlineTooShortError:
    """Return the error for a call that would only wait for its deadline: `left` and `wait` in seconds."""
    why = f"{waiting} calls wait for it already" if waiting else "it is not loaded"
    if load_left:
        why = f"its load takes about {load_left:.1f} s and goes on"
    return DeadlineTooShortError(
        f"model {model!r} cannot begin the call within the {max(left, 0):.2f} s before its deadline: {why};"
        f" it would wait about {wait:.1f} s: allow more time, or retry then",
        retry_after=pace.retry_after(wait),
        metadata={
            "model": model,
            "queue_length": str(waiting),
            "position": str(position),
            "expected_wait_seconds": f"{wait:.3f}",
        },
        resource=Resource("model", model),
    )


_LACKS_MEMORY = re.compile(
    r"out of memory|cannot allocate memory|failed to allocate|unable to allocate|bad_alloc"
    r"|outofmemory|memoryerror|insufficient memory|not enough memory",
    re.IGNORECASE,
)
"""How engines say it: CUDA and HIP, llama.cpp, PyTorch, C++, Python, the C library."""


def lacks_memory(text: str) -> bool:
    """Whether an error is one for lack of memory, by its words."""
    return _LACKS_MEMORY.search(text) is not None


def busy(instance: Instance, waited: float) -> ModelBusyError:
    """Return the error for an unload that running calls, or leases of direct clients, did not allow."""
    model, direct = instance.model, instance.direct
    held = f"{instance.active} running calls" + (f" and {direct} direct leases" if direct else "")
    return ModelBusyError(
        f"model is still busy: {model!r} has {held} after {waited:g} s; retry later, or force it",
        resource=Resource("model", model),
    )
