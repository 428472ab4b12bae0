"""Watching models: a snapshot, then each change, for one subscriber and its filter."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from enum import Enum, auto

from .change_log import ChangeLog
from .model import ModelFilter, ModelView
from .models import Views


class ChangeKind(Enum):
    """The kind of a message to a subscriber."""

    SNAPSHOT = auto()
    SNAPSHOT_END = auto()
    CHANGED = auto()
    REMOVED = auto()


@dataclass(frozen=True, slots=True)
class ModelEvent:
    """One message to a subscriber."""

    said: ChangeKind
    name: str = ""
    model: ModelView | None = None
    token: str = ""


async def watch(
    views: Views, changes: ChangeLog[ModelView], condition: ModelFilter, token: str
) -> AsyncGenerator[ModelEvent, None]:
    """Yield a snapshot unless the token can be resumed, then each change, until cancelled.

    A subscriber that falls behind the history gets a new snapshot instead of the changes it missed.
    """
    position = changes.position(token) if token else None
    while True:
        shown: set[str] | None = None  # after a resume it is not known what the client has
        if position is None:
            position, shown = changes.last, set()
            for model in views.select(condition):
                shown.add(model.name)
                yield ModelEvent(ChangeKind.SNAPSHOT, model.name, model)
            yield ModelEvent(ChangeKind.SNAPSHOT_END, token=changes.token(position))
        async for change in changes.follow(position):
            at = changes.token(change.sequence)
            if change.value is not None and condition.matches(change.value):
                if shown is not None:
                    shown.add(change.key)
                yield ModelEvent(ChangeKind.CHANGED, change.key, change.value, at)
            elif shown is None or change.key in shown:
                if shown is not None:
                    shown.discard(change.key)
                yield ModelEvent(ChangeKind.REMOVED, change.key, token=at)
        position = None
