"""Entries of a gallery's index in LocalAI's format, and the base configurations they refer to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from services.common.quantities import parse_size

from .document import DocumentError, parse, parse_mapping, plain, plain_mapping

_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class FileSpec:
    """A file to fetch: where it goes, and where it comes from, in order of preference."""

    filename: str
    uris: tuple[str, ...]
    sha256: str = ""
    size: int = 0


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt template, written to `<name>.tmpl`."""

    name: str
    content: str


@dataclass(frozen=True, slots=True)
class BaseConfig:
    """A base configuration: the model YAML that an entry's overrides are laid on, and its files."""

    config: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[FileSpec, ...] = ()
    templates: tuple[Template, ...] = ()
    description: str = ""
    license: str = ""
    icon: str = ""
    urls: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """A model that a gallery offers."""

    gallery: str
    name: str
    description: str = ""
    license: str = ""
    icon: str = ""
    urls: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    url: str = ""
    config: Mapping[str, Any] | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[FileSpec, ...] = ()
    variants: tuple[str, ...] = ()
    size: int = 0

    @property
    def full_name(self) -> str:
        """`gallery@name`, which names it among all galleries."""
        return f"{self.gallery}@{self.name}"

    @property
    def backend(self) -> str:
        """The backend; empty if only the base configuration names it."""
        return _text(self.overrides.get("backend") or (self.config or {}).get("backend"))

    @property
    def usecases(self) -> tuple[str, ...]:
        """The use cases."""
        named = self.overrides.get("known_usecases") or (self.config or {}).get("known_usecases")
        return usecases(named)


def usecases(value: Any) -> tuple[str, ...]:
    """Return normalised use cases: LocalAI also accepts `FLAG_CHAT` for `chat`."""
    return tuple(text.lower().removeprefix("flag_") for text in _texts(value))


def parse_index(text: str, gallery: str) -> tuple[list[Entry], list[str]]:
    """Return an index's entries in its own order, and what was wrong with those left out.

    Of several entries with one name the first counts, as in LocalAI. Raises DocumentError when the
    text is no index at all.
    """
    rows = parse(text)
    if not isinstance(rows, list):
        raise DocumentError("is not a list of entries")
    entries: dict[str, Entry] = {}
    problems = []
    for number, row in enumerate(rows, start=1):
        try:
            entry = _entry(row, gallery)
        except DocumentError as error:
            label = _text(row.get("name")) if isinstance(row, dict) else ""
            problems.append(f"entry {number} {label!r} {error}")
            continue
        entries.setdefault(entry.name.lower(), entry)
    return list(entries.values()), problems


def parse_base_config(text: str) -> BaseConfig:
    """Return a base configuration: LocalAI's file, whose `config_file` is a text that holds YAML."""
    row = parse_mapping(text)
    return BaseConfig(
        config=_config(row.get("config_file")) or {},
        files=parse_files(row.get("files")),
        templates=_templates(row.get("prompt_templates")),
        description=_text(row.get("description")),
        license=_text(row.get("license")),
        icon=_text(row.get("icon")),
        urls=_texts(row.get("urls")),
    )


def parse_files(value: Any) -> tuple[FileSpec, ...]:
    """Return the `files` of an entry; `uri` first, then our own extension `mirrors`."""
    if value is None:
        return ()
    if not isinstance(value, list):
        raise DocumentError("has `files` that are not a list")
    return tuple(_file(row) for row in value)


def digest(value: str) -> str:
    """Return a SHA-256 in lower case, without a `sha256:` before it; raises DocumentError."""
    text = value.strip().lower().removeprefix("sha256:")
    if text and not _SHA256.fullmatch(text):
        raise DocumentError(f"has a sha256 that is not 64 hexadecimal digits: {value!r}")
    return text


def _entry(row: Any, gallery: str) -> Entry:
    if not isinstance(row, dict):
        raise DocumentError("is not a map")
    name = _text(row.get("name")).strip()
    if not name:
        raise DocumentError("has no name")
    overrides = row.get("overrides")
    return Entry(
        gallery=gallery,
        name=name,
        description=_text(row.get("description")).strip(),
        license=_text(row.get("license")),
        icon=_text(row.get("icon")),
        urls=_texts(row.get("urls")),
        tags=_texts(row.get("tags")),
        url=_text(row.get("url")),
        config=_config(row.get("config_file")),
        overrides={} if overrides is None else plain_mapping(overrides),
        files=parse_files(row.get("files")),
        variants=_variants(row.get("variants")),
        size=_size(row.get("size")),
    )


def _config(value: Any) -> dict[str, Any] | None:
    """Return a `config_file`: a map in an index, a text with YAML in a base configuration."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return parse_mapping(value)
    return plain_mapping(value)


def _file(row: Any) -> FileSpec:
    if not isinstance(row, dict):
        raise DocumentError("has a file that is not a map")
    filename, uri = _text(row.get("filename")), _text(row.get("uri"))
    if not filename:
        raise DocumentError(f"has a file without a filename (uri {uri!r})")
    uris = tuple(dict.fromkeys(u for u in (uri, *_texts(row.get("mirrors"))) if u))
    if not uris:
        raise DocumentError(f"has the file {filename!r} without a uri")
    size = row.get("size")
    return FileSpec(filename, uris, digest(_text(row.get("sha256"))), _size(size))


def _templates(value: Any) -> tuple[Template, ...]:
    rows = value if isinstance(value, list) else []
    return tuple(
        Template(_text(row.get("name")), _text(row.get("content")))
        for row in rows
        if isinstance(row, dict) and row.get("name")
    )


def _variants(value: Any) -> tuple[str, ...]:
    rows = value if isinstance(value, list) else []
    return tuple(
        _text(row.get("model")) for row in rows if isinstance(row, dict) and row.get("model")
    )


def _size(value: Any) -> int:
    """Return bytes of a text such as `108MB`; 0 for what is no size."""
    try:
        return parse_size(value) if value is not None else 0
    except ValueError:
        return 0


def _text(value: Any) -> str:
    return "" if value is None else str(plain(value)) if not isinstance(value, str) else value


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    rows: Sequence[Any] = value if isinstance(value, list | tuple) else ()
    return tuple(_text(row) for row in rows if row is not None)
