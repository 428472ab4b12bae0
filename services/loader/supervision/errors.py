"""The errors that callers get from a load, an unload or the end of an instance."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

from services.common.errors import (
    CorralError,
    CrashLoopError,
    LoadBackoffError,
    ModelBusyError,
    ModelLoadError,
    ModelUnloadedError,
    Resource,
)
from services.loader.instances.instance import Instance
from services.loader.lifecycle.events import Failure


def ended(model: str, why: str, failure: Failure | None) -> CorralError:
    """Return the error for the calls of an instance that is being stopped."""
    if failure is not None and isinstance(failure.error, CorralError):
        return failure.error
    return ModelUnloadedError(
        f"model {model!r} was unloaded: {why or 'on request'}", resource=Resource("model", model)
    )


def all_failed(
    model: str, failures: tuple[Failure, ...], not_tried: Mapping[str, str] | None = None
) -> CorralError:
    """Return one error for the failures of all candidates, and for backends that were not tried."""
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
    """Return the error for a call made when `left` seconds of the back-off remain."""
    cause = all_failed(model, failures)
    return LoadBackoffError(
        f"model {model!r} is not tried again for {left:.1f} s, because its last load failed: {cause}",
        retry_after=left,
        metadata={"cause": cause.reason},
        resource=Resource("model", model),
    )


def quarantined(model: str, left: float, crashes: int, failures: Iterable[Failure]) -> CorralError:
    """Return the error for a call to a model in quarantine after repeated crashes."""
    last = "; ".join(str(failure.error) for failure in failures)
    return CrashLoopError(
        f"model {model!r} crashed {crashes} times in a row and is in quarantine for {left:.0f} s: {last};"
        " fix the cause, then load it with reset_backoff (`corral load --now`)",
        retry_after=left,
        metadata={"crashes": str(crashes)},
        resource=Resource("model", model),
    )


def busy(instance: Instance, waited: float) -> ModelBusyError:
    """Return the error for an unload blocked by running calls or by leases of direct clients."""
    model, direct = instance.model, instance.calls.direct
    held = f"{instance.calls.active} running calls" + (
        f" and {direct} direct leases" if direct else ""
    )
    return ModelBusyError(
        f"model is still busy: {model!r} has {held} after {waited:g} s; retry later, or force it",
        resource=Resource("model", model),
    )
