"""The loader's backends, capacity, plans and settings as views."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration

from corral.loader.v1 import loader_pb2

from . import views
from .messages import bare, moment, reservations, seconds, word


def backend(message: loader_pb2.Backend) -> views.Backend:
    """Show a backend, usable or not."""
    return {
        "name": bare(message.name),
        "aliases": list(message.aliases),
        "version": message.version,
        "source": word(loader_pb2.Backend.Source, message.source, "SOURCE_"),
        "usable": not message.error,
        "error": message.error,
        "explanation": message.explanation,
        "chosen": bare(message.chosen),
        "requires": list(message.requires),
        "formats": list(message.formats),
        "usecases": list(message.usecases),
        "max_concurrent_calls": message.max_concurrent_calls,
        "run_file": message.run_file,
        "address": message.address,
        "system": message.system,
        "gallery_url": message.gallery_url,
        "install_time": moment(message, "install_time"),
        "revision": message.revision,
    }


def option(message: loader_pb2.EffectiveOption) -> views.Option:
    """Show one option of LoadModel's request, with its source."""
    return {
        "field": message.field,
        "value": _decoded(message.value),
        "source": word(loader_pb2.EffectiveOption.Source, message.source, "SOURCE_"),
        "detail": message.detail,
    }


def capacity(message: loader_pb2.GetCapacityResponse) -> views.Capacity:
    """Show the loader's capacity, and the models that wait for it."""
    return {
        "devices": [
            {
                "name": device.name,
                "description": device.description,
                "total_bytes": device.total_bytes,
                "available_bytes": device.available_bytes,
                "reserved_bytes": device.reserved_bytes,
                "budget_bytes": device.budget_bytes,
            }
            for device in message.devices
        ],
        "active_models": message.active_models,
        "max_active_models": message.max_active_models,
        "loads": message.loads,
        "max_loads": message.max_loads,
        "calls": message.calls,
        "max_calls": message.max_calls,
        "waiting": [
            {
                "model": bare(one.model),
                "position": one.position,
                "explanation": one.explanation,
                "since": moment(one, "since"),
            }
            for one in message.waiting
        ],
    }


def plan(name: str, message: loader_pb2.PlanEvictionResponse) -> views.Plan:
    """Show what would be evicted for a model."""
    return {
        "model": bare(name),
        "fits": message.fits,
        "explanation": message.explanation,
        "memory": reservations(message.memory),
        "evictions": [
            {
                "model": bare(one.model),
                "freed_bytes": one.freed_bytes,
                "idle_seconds": seconds(one, "idle_duration"),
                "explanation": one.explanation,
            }
            for one in message.evictions
        ],
        "blockers": [
            {
                "model": bare(one.model),
                "explanation": one.explanation,
                "temporary": one.temporary,
            }
            for one in message.blockers
        ],
    }


def settings(
    message: loader_pb2.Settings, sources: Mapping[str, str], meanings: Mapping[str, str]
) -> dict[str, views.Setting]:
    """Show the settings by name."""
    return {
        field.name: {
            "value": _value(message, field),
            "source": sources.get(field.name, ""),
            "meaning": meanings.get(field.name, ""),
        }
        for field in message.DESCRIPTOR.fields
    }


def _value(message: loader_pb2.Settings, field: FieldDescriptor) -> Any:
    """Return one value: a duration in seconds, anything else as it is."""
    value = getattr(message, field.name)
    return value.ToNanoseconds() / 1e9 if isinstance(value, Duration) else value


def _decoded(value: str) -> Any:
    """Return the value of a text in protobuf's JSON form."""
    try:
        return json.loads(value)
    except ValueError:
        return value
