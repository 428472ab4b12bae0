"""One YAML file of models: one model, or a list of them. What is broken in it stays by itself."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from pydantic import ValidationError

from services.common.errors import ModelConfigError
from services.common.go_yaml import as_written, first_document
from services.common.syntax_errors import TextSyntaxError

from . import config_errors
from .config import ModelConfig
from .entry import ModelEntry
from .source_lines import Lines, Part, items

MAXIMUM_BYTES = 4 * 1024 * 1024
"""No real model's file comes near; a larger one is not a configuration."""
MAXIMUM_LIST_BYTES = 64 * 1024 * 1024
"""The same for a file that is meant to hold all models."""

_MAXIMUM_NODES = 1_000_000
"""Aliases cost a few bytes each, and a few levels of them make more than the memory holds."""

_UNREADABLE = (ValueError, RecursionError)


@dataclass(frozen=True, slots=True)
class _Document:
    """One model's settings as written in the file."""

    value: Any
    part: Part
    position: int | None
    """Which item of the part's list it is; None if the part is the model."""


def read_file(path: str, *, maximum: int = MAXIMUM_BYTES) -> bytes:
    """Return the file's content. Raises ModelConfigError; never waits for a pipe's other end."""
    name = os.path.basename(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb", buffering=0) as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise config_errors.unreadable(name, "is not a file; remove or rename it")
            content = b"" if status.st_size > maximum else file.readall()
    except OSError as error:
        why = f"cannot be read: {error.strerror}"
        if os.path.islink(path) and not os.path.exists(path):
            why = f"is a link to {os.readlink(path)!r}, which does not exist; fix or remove it"
        raise config_errors.unreadable(name, why) from error
    if status.st_size > maximum:
        why = f"is larger than {maximum} bytes, and so no configuration of a model; remove it"
        raise config_errors.unreadable(name, why)
    return content


def models_in(content: bytes, file: str) -> Iterator[ModelEntry]:
    """Yield the models of a YAML file, each usable or with its error; nothing for a gallery's file.

    `file` is its path as users see it. A model without a name is named after its model file, or
    after `file` if it has none.
    """
    try:
        documents = _documents(content)
    except _UNREADABLE as error:
        parts = items(content) if isinstance(error, TextSyntaxError) else []
        if not parts:
            stem = PurePath(file).stem
            yield _broken(stem, file, content, config_errors.not_yaml(file, Part(content), error))
            return
        yield from _models_in_parts(parts, file)
        return
    for position, document in enumerate(documents):
        yield from _model(document, file, position, many=len(documents) > 1)


def lines_of(content: bytes, position: int) -> Lines:
    """Return the lines of the model at `position` in the file. Raises ValueError."""
    try:
        return Lines(Part(content), position)
    except TextSyntaxError:
        parts = items(content)
        if position >= len(parts):
            raise
        return Lines(parts[position], 0)


def _documents(content: bytes) -> list[_Document]:
    value = first_document(content)
    if b"&" in content and _nodes(value, {}) > _MAXIMUM_NODES:
        raise ValueError("its aliases multiply it beyond any sense")
    whole = Part(content)
    if isinstance(value, list):
        return [_Document(item, whole, position) for position, item in enumerate(value)]
    return [_Document(value, whole, None)]


def _nodes(value: object, known: dict[int, int]) -> int:
    """Return how many nodes a value has once its aliases are written out; above any limit for a cycle."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = _MAXIMUM_NODES + 1
        inner = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_nodes(item, known) for item in inner)
    return known[id(value)]


def _models_in_parts(parts: list[Part], file: str) -> Iterator[ModelEntry]:
    for position, part in enumerate(parts):
        name = f"{PurePath(file).stem}[{position}]"
        try:
            value = first_document(part.content)[0]
        except (*_UNREADABLE, TypeError, IndexError) as error:
            where = f"{file}[{position}]"
            broken = config_errors.not_yaml(where, part, error)
            yield _broken(name, file, part.content, broken, position)
        else:
            yield from _model(_Document(value, part, 0), file, position, many=True)


def _model(document: _Document, file: str, position: int, *, many: bool) -> Iterator[ModelEntry]:
    source = f"{file}[{position}]" if many else file
    value = document.value
    if not isinstance(value, dict):
        stem = PurePath(file).stem
        line = Lines(document.part, document.position).of(())
        error = config_errors.not_a_map(source, line)
        name = f"{stem}[{position}]" if many else stem
        yield _broken(name, file, repr(value).encode(), error, position)
        return
    if is_gallery_entry(value):
        return
    name = _name(value) or PurePath(file).stem
    # A comment does not change a model, and one model of a list is not the others.
    revision = _digest(repr(value).encode())
    if "name" not in value or value["name"] in (None, ""):
        value = {**value, "name": name}
    try:
        config = ModelConfig.model_validate(value)
        if config.engine_args:
            _check_engine_args(config.engine_args, source, document)
    except ValidationError as problem:
        wrong = config_errors.wrong_fields(source, document.part, document.position, problem)
        yield ModelEntry(name, ModelConfig(), file, wrong, revision, position)
    except ModelConfigError as wrong:
        yield ModelEntry(name, ModelConfig(), file, wrong, revision, position)
    else:
        yield ModelEntry(config.name, config, file, None, revision, position)


def _check_engine_args(arguments: Mapping[str, Any], source: str, document: _Document) -> None:
    try:
        json.dumps(arguments, default=str)
    except (TypeError, ValueError, RecursionError) as error:
        line = Lines(document.part, document.position).of(("engine_args",))
        raise ModelConfigError(
            f"{source}, line {line}, engine_args: cannot be written as JSON;"
            " use texts, numbers, lists and maps with texts as names"
        ) from error


def is_gallery_entry(document: Mapping[str, Any]) -> bool:
    """Whether a map is an entry of a gallery, or a gallery's base configuration, and not a model.

    LocalAI's galleries keep the model's settings in `config_file` as a text, and replacements in
    `overrides` as a map, where a model's own is a list of texts.
    """
    if isinstance(document.get("config_file"), str) or isinstance(document.get("overrides"), dict):
        return True
    own = {"parameters", "backend", "alias"} & document.keys()
    return not own and ("url" in document or isinstance(document.get("files"), list))


def _name(document: Mapping[str, Any]) -> str:
    parameters = document.get("parameters")
    model = parameters.get("model") if isinstance(parameters, dict) else None
    return _as_name(document.get("name")) or _as_name(model)


def _as_name(value: object) -> str:
    return value if isinstance(value, str) else as_written(value) or ""


def _broken(
    name: str, file: str, content: bytes, error: ModelConfigError, position: int = 0
) -> ModelEntry:
    return ModelEntry(name, ModelConfig(), file, error, _digest(content), position)


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()
