"""Converts between the scheduler's types and the messages on the wire: plans, capacity, settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from corral.loader.v1 import loader_pb2 as pb
from services.common.errors import InvalidRequestError
from services.common.names import MODELS, resource_name
from services.common.quantities import format_duration
from services.common.rpc.times import duration, in_seconds, timestamp
from services.loader.devices.devices import Device
from services.loader.live_settings import LiveSettings, Tunables, Unit
from services.loader.memory.reservation import Reservation
from services.loader.scheduling.eviction import Plan
from services.loader.scheduling.scheduler import RoomRequest

from .convert import reservations

_DURATIONS = frozenset(
    field.name
    for field in pb.Settings.DESCRIPTOR.fields
    if field.message_type is not None
    and field.message_type.full_name == Duration.DESCRIPTOR.full_name
)
_TYPES: Final = {
    FieldDescriptor.TYPE_BOOL: pb.SettingDescription.TYPE_BOOL,
    FieldDescriptor.TYPE_INT32: pb.SettingDescription.TYPE_INTEGER,
    FieldDescriptor.TYPE_DOUBLE: pb.SettingDescription.TYPE_NUMBER,
    FieldDescriptor.TYPE_STRING: pb.SettingDescription.TYPE_TEXT,
    FieldDescriptor.TYPE_MESSAGE: pb.SettingDescription.TYPE_DURATION,
}


def plan(found: Plan, needs: Reservation) -> pb.PlanEvictionResponse:
    """Return the message for a plan."""
    return pb.PlanEvictionResponse(
        fits=found.fits or bool(found.victims) or (bool(found.pending) and not found.blockers),
        explanation=_explanation(found),
        evictions=[
            pb.Eviction(
                model=resource_name(MODELS, victim.name),
                freed_bytes=victim.freed,
                idle_duration=duration(victim.idle),
                explanation=victim.why,
            )
            for victim in found.victims
        ],
        blockers=[
            pb.Blocker(
                model=resource_name(MODELS, blocker.name),
                explanation=blocker.why,
                temporary=blocker.temporary,
            )
            for blocker in found.blockers
        ],
        memory=reservations(needs.memory, needs.basis),
    )


def _explanation(found: Plan) -> str:
    if found.fits:
        return "it fits as things are"
    if found.victims:
        names = ", ".join(victim.name for victim in found.victims)
        return f"it fits once {names} has gone: {found.lacking}"
    if found.pending and not found.blockers:
        return f"it fits once {', '.join(found.pending)} has gone, which is on its way out"
    return f"it does not fit now: {found.lacking}"


def device(item: Device, reserved: int, budget: int) -> pb.Device:
    """Return the message for a device."""
    return pb.Device(
        name=item.name,
        description=item.description,
        total_bytes=item.total,
        available_bytes=item.available,
        reserved_bytes=reserved,
        budget_bytes=budget,
    )


def waiting(place: int, request: RoomRequest) -> pb.Waiting:
    """Return the message for a waiting model."""
    return pb.Waiting(
        model=resource_name(MODELS, request.name),
        position=place,
        explanation=request.waits_for,
        since=timestamp(request.since),
    )


def settings(live: LiveSettings) -> tuple[pb.Settings, dict[str, str]]:
    """Return the settings in force, and where each comes from."""
    message = pb.Settings()
    for name in Tunables.model_fields:
        value = getattr(live.now, name)
        if name in _DURATIONS:
            getattr(message, name).CopyFrom(duration(value))
        else:
            setattr(message, name, value)
    return message, {name: source.value for name, source in live.sources.items()}


def descriptions(live: LiveSettings) -> list[pb.SettingDescription]:
    """Return each setting with its value, default and meaning."""
    sources, kept = live.sources, live.kept
    described = []
    for field in pb.Settings.DESCRIPTOR.fields:
        declared = Tunables.model_fields[field.name]
        described.append(
            pb.SettingDescription(
                name=field.name,
                value=_typed(field.name, getattr(live.now, field.name)),
                default_value=_typed(field.name, declared.default),
                type=_TYPES[field.type],
                unit=next((mark.name for mark in declared.metadata if isinstance(mark, Unit)), ""),
                description=" ".join((declared.description or "").split()),
                source=sources[field.name].value,
                kept=field.name in kept,
            )
        )
    return described


def _typed(name: str, value: Any) -> str:
    """Return a setting's value as a user types it."""
    if name in _DURATIONS:
        return format_duration(value)
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def changes(message: pb.Settings, mask: FieldMask) -> Mapping[str, Any]:
    """Return the values to change. Raises InvalidRequestError for a mask that is empty or names no setting."""
    if not mask.paths:
        raise InvalidRequestError.of(
            "update_mask", "is empty; name the settings to change, such as max_active_backends"
        )
    found: dict[str, Any] = {}
    for path in mask.paths:
        if path not in Tunables.model_fields:
            known = ", ".join(Tunables.model_fields)
            raise InvalidRequestError.of(
                "update_mask", f"{path!r} is not a setting that can be changed; there are: {known}"
            )
        read: Callable[[Any], Any] = in_seconds if path in _DURATIONS else lambda value: value
        found[path] = read(getattr(message, path))
    return found
