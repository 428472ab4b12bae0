"""LoadModel's request: the effective values of a model as the message on the wire."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from corral.backend import backend_pb2
from corral.loader.v1 import loader_pb2 as pb
from services.common.files import Stamp, file_stamp
from services.common.process.logging import get_logger
from services.loader.backends.backend import Backend
from services.loader.devices.devices import Device
from services.loader.memory import estimate as footprint
from services.loader.memory.estimate import Footprint
from services.loader.models.catalog import ModelEntry
from services.loader.models.gguf import GgufError, Header, read_header
from services.loader.models.source_lines import Lines
from services.loader.scheduling.ledger import Basis, Reservation

from .defaults import Facts, OptionSettings, Source, Value, is_llama
from .effective import effective_values, usage_of

_log = get_logger(__name__)

_KEPT = 1024
"""Headers to keep: they are small, and one is needed at each look at its model."""


@dataclass(frozen=True, slots=True)
class _Kept:
    stamp: Stamp
    header: Header | None


class OptionMaker:
    """Makes LoadModel's request from a model and the name of the backend that is to hold it.

    Reads the header of a GGUF file when it is asked about one that it does not know yet: blocking, and
    safe to call from several threads.
    """

    def __init__(
        self,
        models_path: Path,
        settings: Callable[[], OptionSettings] = OptionSettings,
        gpus: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """`settings` and `gpus` (total bytes by name, `gpu0` and so on) are asked each time."""
        self._models_path = models_path
        self._settings = settings
        self._gpus = gpus
        self._headers: dict[str, _Kept] = {}

    def __call__(self, entry: ModelEntry, backend: str) -> backend_pb2.ModelOptions:
        """Return the request."""
        return message(self.values(entry, backend))

    def values(self, entry: ModelEntry, backend: str) -> dict[str, Value]:
        """Return the value of each of its fields, and where it comes from."""
        settings = self._settings()
        asked = settings.guessing and is_llama(backend)
        facts = Facts(settings, self.header(entry) if asked else None, self._gpus())
        revision = entry.revision.partition("/")[0]
        return effective_values(entry.config, revision, backend, self._models_path, facts)

    def footprint(self, entry: ModelEntry, backend: str) -> Footprint:
        """Return what the model will need under that backend."""
        usage = usage_of(self.values(entry, backend))
        header, gpus = self.header(entry), self._gpus()
        return footprint.estimate(entry.config, self._models_path, header, usage, gpus)

    def predict(
        self, entry: ModelEntry, backend: Backend, devices: Sequence[Device]
    ) -> Reservation:
        """Return what to reserve for the model; see `footprint`."""
        found = self.footprint(entry, backend.name)
        return Reservation(found.devices, Basis(found.basis.value))

    def header(self, entry: ModelEntry) -> Header | None:
        """Return the header of the model's file; None if it has none. Read again when the file changes."""
        model = entry.config.model
        path = self._models_path / model
        if (stamp := file_stamp(path)) is None:
            return None
        kept = self._headers.get(model)
        if kept is None or kept.stamp != stamp:
            kept = _Kept(stamp, _header(path))
            if len(self._headers) >= _KEPT:
                self._headers.clear()
            self._headers[model] = kept
        return kept.header


def message(values: Mapping[str, Value]) -> backend_pb2.ModelOptions:
    """Return the message with these values."""
    return backend_pb2.ModelOptions(**{field: value.value for field, value in values.items()})


def effective_options(
    values: Mapping[str, Value], file: str, lines: Lines | None
) -> list[pb.EffectiveOption]:
    """Return what is sent, in the order of the contract: all that is not empty, and what the model's
    configuration says though it is. `lines` are those of the model in `file`.
    """
    sent = message(values)
    written: dict[str, Any] = json_format.MessageToDict(sent, preserving_proto_field_name=True)
    shown = []
    for field in sent.DESCRIPTOR.fields:
        value = values.get(field.name)
        if value is None or (field.name not in written and value.source is not Source.CONFIG):
            continue
        content = written.get(field.name, value.value)
        shown.append(
            pb.EffectiveOption(
                field=field.name,
                value=json.dumps(content, ensure_ascii=False),
                source=pb.EffectiveOption.Source.Value(f"SOURCE_{value.source.name}"),
                detail=_detail(value, file, lines),
            )
        )
    return shown


def _detail(value: Value, file: str, lines: Lines | None) -> str:
    if not value.path or not file:
        return value.detail
    place = f"{'.'.join(value.path)} in {file}"
    if lines is not None:
        place = f"{place}, line {lines.of(value.path)}"
    return f"{place}; {value.detail}" if value.detail else place


def _header(path: Path) -> Header | None:
    try:
        if not path.is_file():
            return None
        return read_header(path)
    except GgufError as error:
        _log.debug("no header", file=str(path), why=str(error))
    except OSError as error:
        _log.debug("a model file cannot be read", file=str(path), why=str(error))
    return None
