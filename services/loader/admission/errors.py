"""The errors for calls that are refused because the queue is full or their deadline is too short."""

from __future__ import annotations

from services.common.errors import DeadlineTooShortError, QueueFullError, Resource

from .wait_estimate import retry_after as suggested_retry


def queue_full(model: str, waiting: int, retry_after: float) -> QueueFullError:
    """Return the error for a call that finds the queue full."""
    return QueueFullError(
        f"model {model!r} is busy and {waiting} calls wait for it already, the maximum"
        " (queue_size); retry later",
        retry_after=retry_after,
        metadata={"model": model, "queue_length": str(waiting)},
        resource=Resource("model", model),
    )


def deadline_too_short(
    model: str, *, left: float, wait: float, load_left: float, position: int, waiting: int
) -> DeadlineTooShortError:
    """Return the error for a call whose deadline would pass while it waits.

    `left`, `wait` and `load_left` are seconds.
    """
    why = f"{waiting} calls wait for it already" if waiting else "it is not loaded"
    if load_left:
        why = f"its load takes about {load_left:.1f} s and goes on"
    return DeadlineTooShortError(
        f"model {model!r} cannot begin the call within the {max(left, 0):.2f} s before its deadline: {why};"
        f" it would wait about {wait:.1f} s: allow more time, or retry then",
        retry_after=suggested_retry(wait),
        metadata={
            "model": model,
            "queue_length": str(waiting),
            "position": str(position),
            "expected_wait_seconds": f"{wait:.3f}",
        },
        resource=Resource("model", model),
    )
