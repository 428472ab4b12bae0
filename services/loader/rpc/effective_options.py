"""The effective options of a model as clients see them: each value, and where it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format

from corral.loader.v1 import loader_pb2 as pb
from services.loader.gateway.load_request import message
from services.loader.models.source_lines import Lines
from services.loader.options.defaults import Source, Value
from services.loader.options.effective import sent as bare


def effective_options(
    values: Mapping[str, Value], file: str, lines: Lines | None
) -> list[pb.EffectiveOption]:
    """Return the options in the order of the contract: those that are not empty, and empty ones that the
    model's configuration sets. `lines` are those of the model in `file`.
    """
    sent = message(bare(values))
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
