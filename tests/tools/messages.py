"""Random messages of any type, built from its descriptor."""

from __future__ import annotations

from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import strategies as st

_DEPTH = 3

_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    # Open enums: unnamed values are valid.
    FieldDescriptor.CPPTYPE_ENUM: st.integers(0, 9),
}
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_BYTES = st.binary(max_size=12)

_UNKNOWN = (
    b"",
    b"\xd0\xbb\x01\x05",  # field 2999, a number
    b"\xd2\xbb\x01\x03abc",  # field 2999, bytes
    b"\xd3\xbb\x01\x08\x01\xd4\xbb\x01",  # field 2999, a group
)
"""Fields that the contract does not have yet."""


def messages(descriptor: Descriptor) -> st.SearchStrategy[bytes]:
    """Return valid serialized messages of a type, some of them with unknown fields."""
    return st.builds(
        lambda message, unknown: message.SerializeToString() + unknown,
        _messages(descriptor, _DEPTH),
        st.sampled_from(_UNKNOWN),
    )


@st.composite
def _messages(draw: st.DrawFn, descriptor: Descriptor, depth: int) -> Any:
    message = message_factory.GetMessageClass(descriptor)()
    usable = [
        one
        for one in descriptor.fields
        if depth or one.cpp_type != one.CPPTYPE_MESSAGE or _map(one)
    ]
    if usable:
        # The last field of a oneof wins.
        for one in draw(
            st.lists(st.sampled_from(usable), max_size=6, unique_by=lambda f: f.number)
        ):
            _fill(draw, message, one, depth)
    return message


def _fill(draw: st.DrawFn, message: Any, field: FieldDescriptor, depth: int) -> None:
    nested = field.message_type
    if nested is not None and _map(field):
        keys, values = (nested.fields_by_name[name] for name in ("key", "value"))
        if values.message_type is not None:
            for key in draw(st.lists(_scalar(keys), max_size=2)):
                getattr(message, field.name)[key].CopyFrom(
                    draw(_messages(values.message_type, max(depth - 1, 0)))
                )
        else:
            drawn = draw(st.dictionaries(_scalar(keys), _scalar(values), max_size=2))
            getattr(message, field.name).update(drawn)
    elif nested is not None:
        inner = _messages(nested, depth - 1)
        if field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(inner, max_size=2)))
        else:
            getattr(message, field.name).CopyFrom(draw(inner))
    elif field.is_repeated:
        getattr(message, field.name).extend(draw(st.lists(_scalar(field), max_size=3)))
    else:
        setattr(message, field.name, draw(_scalar(field)))


def _scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.cpp_type == field.CPPTYPE_STRING:
        return _TEXT if field.type == field.TYPE_STRING else _BYTES
    return _SCALARS[field.cpp_type]


def _map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry
