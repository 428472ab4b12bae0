"""Describing the fields of a settings class: flag, environment variables, type, default, help."""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, TypeAlias, Union, get_args, get_origin

import platformdirs
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from services.common.quantities import Shown, format_duration, format_size

_LISTS: Final = (list, tuple, set, frozenset)


class LocalAI(dict[str, Any]):
    """A marker for `Annotated` (or `json_schema_extra`): LocalAI's names for the same setting."""


def localai(*variables: str, flags: tuple[str, ...] = ()) -> LocalAI:
    """Name LocalAI's environment variables (first wins) and flags for a field."""
    return LocalAI(localai_env=list(variables), localai_flags=list(flags))


def corral_home() -> Path:
    """Return the folder that holds all others: `CORRAL_HOME`, or Corral's in the user's data folder."""
    home = os.environ.get("CORRAL_HOME", "").strip()
    path = Path(home).expanduser() if home else Path(platformdirs.user_data_dir("corral"))
    return path.absolute()


@dataclass(frozen=True, slots=True)
class UnderHome:
    """A default_factory for a folder under `corral_home()`, evaluated when the settings are created."""

    name: str

    def __call__(self) -> Path:
        """Return the folder's path."""
        return corral_home() / self.name

    def __str__(self) -> str:
        """Return the path as the documentation shows it."""
        return f"<home>/{self.name}"


def parse_name_uri(text: str) -> tuple[str, str]:
    """Split `NAME=URI` or LocalAI's `name:uri` at the first `=` or `:`."""
    cuts = [at for at in (text.find("="), text.find(":")) if at >= 0]
    if not cuts:
        raise ValueError(f"{text!r} is not NAME=URI, for example whisper=127.0.0.1:50060")
    name, uri = text[: min(cuts)].strip(), text[min(cuts) + 1 :].strip()
    if not name or not uri:
        missing = "a name" if not name else "a URI"
        raise ValueError(f"{text!r} lacks {missing}; write NAME=URI")
    return name, uri


def parse_name_uris(value: Any) -> dict[str, str]:
    """Return a mapping for a mapping or for comma-separated NAME=URI texts."""
    if isinstance(value, Mapping):
        return {str(name): str(uri) for name, uri in value.items()}
    texts = [value] if isinstance(value, str) else [str(item) for item in value or ()]
    # LocalAI's flag accepts several in one text, as its variable does.
    items = [item for text in texts for item in split_list(text)]
    pairs: dict[str, str] = {}
    for item in items:
        name, uri = parse_name_uri(item)
        if pairs.setdefault(name, uri) != uri:
            raise ValueError(f"{name!r} is given twice, as {pairs[name]!r} and as {uri!r}")
    return pairs


NameUris: TypeAlias = Annotated[dict[str, str], BeforeValidator(parse_name_uris), Shown("NAME=URI")]


def split_list(text: str) -> list[str]:
    """Split a comma-separated text, as environment variables carry lists."""
    return [item for part in text.split(",") if (item := part.strip())]


@dataclass(frozen=True, slots=True)
class FieldDoc:
    """The documentation of one setting, for `--help` and the README."""

    name: str
    flag: str
    env: str
    localai_env: tuple[str, ...]
    localai_flags: tuple[str, ...]
    type: str
    default: str
    help: str
    shape: Literal["one", "bool", "list", "mapping"]
    has_path: bool
    optional: bool

    @property
    def repeatable(self) -> bool:
        """Whether the flag can be given several times."""
        return self.shape in ("list", "mapping")


def fields_of(cls: Any) -> Iterator[FieldDoc]:
    """Yield the documentation of each setting of a ServiceSettings class, in declaration order."""
    for name, field in cls.model_fields.items():
        parts = list(_walk(field))
        types = [part for part in parts if isinstance(part, type)]
        shown = next((part.name for part in parts if isinstance(part, Shown)), None)
        extra: Any = next((part for part in parts if isinstance(part, LocalAI)), None)
        if extra is None:
            extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        shape: Literal["one", "bool", "list", "mapping"] = "one"
        if dict in types:
            shape = "mapping"
        elif any(kind in types for kind in _LISTS):
            shape = "list"
        elif bool in types:
            shape = "bool"
        yield FieldDoc(
            name=name,
            flag="--" + name.replace("_", "-"),
            env=f"CORRAL_{cls.service.upper()}_{name.upper()}",
            localai_env=tuple(extra.get("localai_env", ())),
            localai_flags=tuple(extra.get("localai_flags", ())),
            type=shown or _in_words(parts, types),
            default=_default(field, shown),
            help=_help(cls, name),
            shape=shape,
            has_path=any(issubclass(kind, os.PathLike) for kind in types),
            optional=NoneType in types,
        )


def _walk(field: FieldInfo) -> Iterator[Any]:
    """Yield the types and markers in a field's annotation, outermost first."""
    yield from field.metadata
    todo = [field.annotation]
    while todo:
        part: Any = todo.pop(0)
        origin = get_origin(part)
        if origin is Annotated:
            yield from part.__metadata__
            todo.insert(0, part.__origin__)
        elif origin is Literal:
            yield part
        elif origin in (Union, UnionType):
            todo[:0] = get_args(part)
        elif origin is not None:
            yield origin
            todo[:0] = [arg for arg in get_args(part) if arg is not Ellipsis]
        else:
            yield part


def _in_words(parts: list[Any], types: list[type]) -> str:
    for part in parts:
        if get_origin(part) is Literal:
            return "|".join(str(value) for value in get_args(part))
    for kind in types:
        if kind in (*_LISTS, dict, NoneType):
            continue
        if issubclass(kind, enum.Enum):
            return "|".join(str(member.value) for member in kind)
        return (
            "path" if issubclass(kind, Path) else {"str": "text"}.get(kind.__name__, kind.__name__)
        )
    return "text"


def _default(field: FieldInfo, shown: str | None) -> str:
    if field.default_factory is not None:
        factory: Any = field.default_factory
        value = str(factory) if isinstance(factory, UnderHome) else factory()
    else:
        value = field.default
    return _value(value, shown)


def _value(value: Any, shown: str | None) -> str:
    if value is None or value is PydanticUndefined:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return ",".join(f"{key}={item}" for key, item in value.items())
    if isinstance(value, _LISTS):
        return ",".join(_value(item, shown) for item in value)
    if shown == "duration" and isinstance(value, int | float):
        return format_duration(value)
    if shown == "size" and isinstance(value, int):
        return format_size(value)
    return str(value.value if isinstance(value, enum.Enum) else value)


def _help(cls: Any, name: str) -> str:
    """Return the field's docstring, inherited if a subclass only changes the default."""
    for base in cls.__mro__:
        field = getattr(base, "model_fields", {}).get(name)
        if field is not None and field.description:
            return " ".join(field.description.split())
    return ""
