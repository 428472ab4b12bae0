"""The backend proto is wire-identical to the table of LocalAI's contract."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

from corral.backend import backend_pb2

Table = dict[str, Any]

TABLE_FILE = Path(__file__).with_name("backend-contract.json")
KINDS = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}


def expected_table() -> Table:
    table: Table = json.loads(TABLE_FILE.read_text())
    return table


def compiled_file() -> FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto()
    backend_pb2.DESCRIPTOR.CopyToProto(file)
    return file


def compiled_table(file: FileDescriptorProto) -> Table:
    """Describe a compiled file in the table's own form."""
    (service,) = file.service
    messages: Table = {}
    enums = dict(describe_enums(file.package, file.enum_type))
    for name, message in walk(file.package, file.message_type):
        enums |= describe_enums(name, message.enum_type)
        messages[name] = {"fields": [describe_field(message, field) for field in message.field]}
        if message.reserved_range or message.reserved_name:
            # The descriptor's end is exclusive, the table's is inclusive.
            ranges = [[one.start, one.end - 1] for one in message.reserved_range]
            messages[name]["reserved"] = [*ranges, *message.reserved_name]
    return {
        "syntax": file.syntax,
        "package": file.package,
        "service": f"{file.package}.{service.name}",
        "rpcs": {
            method.name: {
                "request": method.input_type.removeprefix("."),
                "response": method.output_type.removeprefix("."),
                "kind": KINDS[method.client_streaming, method.server_streaming],
            }
            for method in service.method
        },
        "messages": messages,
        "enums": enums,
    }


def walk(scope: str, messages: Iterable[DescriptorProto]) -> Iterator[tuple[str, DescriptorProto]]:
    for message in messages:
        if not message.options.map_entry:
            name = f"{scope}.{message.name}"
            yield name, message
            yield from walk(name, message.nested_type)


def describe_enums(
    scope: str, enums: Iterable[EnumDescriptorProto]
) -> Iterator[tuple[str, dict[str, int]]]:
    for enum in enums:
        yield f"{scope}.{enum.name}", {value.name: value.number for value in enum.value}


def describe_field(message: DescriptorProto, field: FieldDescriptorProto) -> list[int | str]:
    row: list[int | str] = [field.number, field.name, describe_type(message, field)]
    if field.proto3_optional:
        row.append("optional")
    elif field.HasField("oneof_index"):
        row.append(f"oneof {message.oneof_decl[field.oneof_index].name}")
    return row


def describe_type(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    for nested in message.nested_type:
        if nested.options.map_entry and field.type_name.endswith(f".{message.name}.{nested.name}"):
            key, value = nested.field
            return f"map<{describe_type(nested, key)}, {describe_type(nested, value)}>"
    label = "repeated " if field.label == FieldDescriptorProto.LABEL_REPEATED else ""
    scalar = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    return label + (field.type_name.removeprefix(".") or scalar)


def differences(expected: Table, actual: Table) -> list[str]:
    """Say in which messages, fields, enum values and RPCs two tables differ."""
    found = [
        f"{key}: expected {expected[key]!r}, got {actual[key]!r}"
        for key in ("syntax", "package", "service")
        if expected[key] != actual[key]
    ]
    same_rpcs = expected["rpcs"].keys() == actual["rpcs"].keys()
    if same_rpcs and list(expected["rpcs"]) != list(actual["rpcs"]):
        found.append("rpcs: the order differs")
    found += compare("rpc ", expected["rpcs"], actual["rpcs"])
    found += compare(
        "message ", dict.fromkeys(expected["messages"]), dict.fromkeys(actual["messages"])
    )
    found += compare("enum ", dict.fromkeys(expected["enums"]), dict.fromkeys(actual["enums"]))
    for name in expected["enums"].keys() & actual["enums"].keys():
        found += compare(f"{name}.", expected["enums"][name], actual["enums"][name])
    for name in expected["messages"].keys() & actual["messages"].keys():
        ours, theirs = actual["messages"][name], expected["messages"][name]
        found += compare(f"{name}.", fields_by_name(theirs), fields_by_name(ours))
        if theirs.get("reserved") != ours.get("reserved"):
            found.append(
                f"{name}: expected reserved {theirs.get('reserved')}, got {ours.get('reserved')}"
            )
    return sorted(found)


def fields_by_name(message: Table) -> Table:
    return {field[1]: field for field in message["fields"]}


def compare(label: str, expected: Table, actual: Table) -> Iterator[str]:
    for name in expected.keys() | actual.keys():
        if name not in actual:
            yield f"{label}{name}: missing"
        elif name not in expected:
            yield f"{label}{name}: not in the contract"
        elif expected[name] != actual[name]:
            yield f"{label}{name}: expected {expected[name]}, got {actual[name]}"


def test_the_compiled_proto_is_the_contract() -> None:
    assert differences(expected_table(), compiled_table(compiled_file())) == []


def test_the_contract_is_whole() -> None:
    table = expected_table()
    assert (len(table["rpcs"]), len(table["messages"]), len(table["enums"])) == (52, 114, 3)


def message_of(file: FileDescriptorProto, name: str) -> DescriptorProto:
    return next(message for message in file.message_type if message.name == name)


def renumber(file: FileDescriptorProto) -> None:
    message_of(file, "Reply").field[1].number = 99


def retype(file: FileDescriptorProto) -> None:
    message_of(file, "Reply").field[0].type = FieldDescriptorProto.TYPE_STRING


def relabel(file: FileDescriptorProto) -> None:
    message_of(file, "StoresKey").field[0].label = FieldDescriptorProto.LABEL_OPTIONAL


def lose_presence(file: FileDescriptorProto) -> None:
    message_of(file, "TTSRequest").field[4].proto3_optional = False
    message_of(file, "TTSRequest").field[4].ClearField("oneof_index")


def leave_oneof(file: FileDescriptorProto) -> None:
    message_of(file, "TranscriptLiveRequest").field[0].ClearField("oneof_index")


def drop_field(file: FileDescriptorProto) -> None:
    del message_of(file, "Result").field[1]


def unreserve(file: FileDescriptorProto) -> None:
    message_of(file, "PredictOptions").ClearField("reserved_range")


def add_enum_value(file: FileDescriptorProto) -> None:
    file.enum_type[0].value.add(name="EMBEDDING_LAYOUT_NEW", number=3)


def drop_message(file: FileDescriptorProto) -> None:
    file.message_type.remove(message_of(file, "MetricsResponse"))


def drop_rpc(file: FileDescriptorProto) -> None:
    del file.service[0].method[1]


def stop_streaming(file: FileDescriptorProto) -> None:
    file.service[0].method[4].server_streaming = False


def swap_rpcs(file: FileDescriptorProto) -> None:
    first, second, *rest = [copy.deepcopy(method) for method in file.service[0].method]
    del file.service[0].method[:]
    file.service[0].method.extend([second, first, *rest])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (renumber, "backend.Reply.tokens: expected [2, 'tokens', 'int32'], got [99,"),
        (retype, "backend.Reply.message: expected [1, 'message', 'bytes'], got"),
        (relabel, "backend.StoresKey.Floats: expected [1, 'Floats', 'repeated float'], got"),
        (lose_presence, "backend.TTSRequest.language: expected"),
        (leave_oneof, "backend.TranscriptLiveRequest.config: expected"),
        (drop_field, "backend.Result.success: missing"),
        (unreserve, "backend.PredictOptions: expected reserved [[24, 24]], got None"),
        (add_enum_value, "backend.EmbeddingLayout.EMBEDDING_LAYOUT_NEW: not in the contract"),
        (drop_message, "message backend.MetricsResponse: missing"),
        (drop_rpc, "rpc Free: missing"),
        (stop_streaming, "rpc PredictStream: expected"),
        (swap_rpcs, "rpcs: the order"),
    ],
)
def test_every_kind_of_change_is_reported(
    change: Callable[[FileDescriptorProto], None], named: str
) -> None:
    file = compiled_file()
    change(file)
    (difference,) = differences(expected_table(), compiled_table(file))
    assert difference.startswith(named)
