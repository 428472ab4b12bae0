"""Phrases about a model, made from its view."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from . import messages, text, views

STATE_STYLES: Final = {
    "ready": "green",
    "waiting": "yellow",
    "starting": "yellow",
    "loading": "yellow",
    "draining": "yellow",
    "stopping": "yellow",
    "backoff": "red",
    "failed": "red",
    "unloaded": "dim",
}
_ON_ITS_WAY: Final = ("starting", "loading", "draining", "stopping")
_CLIP: Final = 200


def note(view: views.Model, waiting: Mapping[str, views.Waiting] | None = None) -> str:
    """Return the note on a model in a list: the reason for its state, or what it does.

    `waiting` holds the models that wait to be loaded, by name.
    """
    # Short parts first: a narrow terminal cuts the end.
    parts = ["pinned" if view["pinned"] else "", crashes(view), _reason(view, waiting or {})]
    instance = view["instance"]
    if view["state"] == "ready" and instance and instance["active_calls"]:
        parts.append(f"answers {text.plural(instance['active_calls'], 'call')}")
    return " · ".join(part for part in parts if part)


def crashes(view: views.Model) -> str:
    """Return how often a model crashed; empty if it did not."""
    count = view["crash_count"]
    return f"{count} crashes in a row" if count > 1 else "crashed once" if count else ""


def memory(reservations: list[views.Reservation]) -> str:
    """Return memory by device and the basis of the figures: `1.2 GiB, 4.0 GiB on gpu0 (estimated)`."""
    held = [one for one in reservations if one["bytes"]]
    if not held:
        return ""
    bases = list(dict.fromkeys(one["basis"] for one in held if one["basis"] != "unspecified"))
    shown = ", ".join(
        text.size(one["bytes"]) + ("" if one["device"] == "ram" else f" on {one['device']}")
        for one in held
    )
    # Figures are expected to be measured; any other basis is named.
    return shown if bases in ([], ["measured"]) else f"{shown} ({', '.join(bases)})"


def calls(view: views.Model) -> str:
    """Return calls in progress, of how many at once, and how many wait: `2/4 +3`."""
    active = sum(one["active_calls"] for one in view["instances"])
    limit, queued = view["max_concurrent_calls"], view["queued_calls"]
    if not view["instances"] and not queued:
        return ""
    return f"{active}{f'/{limit}' if limit else ''}{f' +{queued}' if queued else ''}"


def idle(view: views.Model) -> str:
    """Return how long a loaded model has been idle; empty if it is not."""
    instance = view["instance"]
    if view["state"] != "ready" or not instance or instance["active_calls"] or view["queued_calls"]:
        return ""
    since = instance["last_used_time"] or instance["ready_time"]
    return text.span(time.time() - messages.epoch(since)) if since else ""


def unload(view: views.Model) -> str:
    """Return when and why a model was last unloaded; empty if it never was."""
    last = view["last_unload"]
    if not last:
        return ""
    cause = last["message"] or last["cause"]
    if last["for_model"] and last["for_model"] not in cause:
        cause += f" (for {last['for_model']})"
    cause = text.clip(cause, _CLIP) + (", calls were cut" if last["forced"] else "")
    return f"{when(last['time'])}: {cause}" if last["time"] else cause


def failure(view: views.CandidateFailure) -> str:
    """Return how a backend failed with a model, and when the next try may start."""
    count = f" ({view['count']} times)" if view["count"] > 1 else ""
    again = retry(view["retry_time"])
    message = text.clip(view["message"], _CLIP) or view["reason"]
    return f"{view['backend']}: {message}{count}" + (f"; {again}" if again else "")


def retry(moment: str | None) -> str:
    """Return when the next try may start: `next try in 8 s`; empty if unknown."""
    if not moment:
        return ""
    left = messages.epoch(moment) - time.time()
    return f"next try in {text.span(left)}" if left > 0 else "may be tried again now"


def when(moment: str | None) -> str:
    """Return a time relative to now: `8 s ago`, `in 8 s`; empty for none."""
    if not moment:
        return ""
    away = time.time() - messages.epoch(moment)
    return f"{text.span(away)} ago" if away >= 0 else f"in {text.span(-away)}"


def _reason(view: views.Model, waiting: Mapping[str, views.Waiting]) -> str:
    state, message = view["state"], text.clip(view["state_message"], _CLIP)
    if view["config_error"]:
        return f"cannot be loaded: {text.clip(view['config_error'], _CLIP)}"
    if state == "backoff":
        return ": ".join(part for part in (retry(view["retry_time"]), message) if part)
    if state == "failed":
        return message
    if state == "waiting":
        place = waiting.get(view["name"])
        return place_of(place) if place else message or "waits to be loaded"
    if state in _ON_ITS_WAY:
        since = view["state_time"]
        passed = f"for {text.span(time.time() - messages.epoch(since))}" if since else ""
        return ": ".join(part for part in (passed, message) if part)
    if state == "unloaded":
        return unload(view)
    return ""


def place_of(waiting: views.Waiting) -> str:
    """Return what a model waits for and its place in the queue: `place 2: memory on gpu0`."""
    place = f"place {waiting['position']}" if waiting["position"] else "waits"
    explanation = text.clip(waiting["explanation"], _CLIP)
    return f"{place}: {explanation}" if explanation else place
