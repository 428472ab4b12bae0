"""Reading settings from flags, environment variables and a file, without converting types."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from services.common.syntax_errors import toml_errors, yaml_errors

from .fields import FieldDoc, split_list


@dataclass(slots=True)
class Layer:
    """The values of one source by field name, where each was set, and the problems."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def put(self, name: str, value: Any, origin: str) -> None:
        """Add a value."""
        self.values[name] = value
        self.origins[name] = origin


@dataclass(slots=True)
class Flags(Layer):
    """The command line, including the flags that are not settings."""

    config: str | None = None
    help: bool = False
    version: bool = False


def from_flags(docs: Sequence[FieldDoc], argv: Sequence[str]) -> Flags:
    """Read `--flag value`, `--flag=value`, `--switch` and `--no-switch`; collect all problems."""
    found = Flags()
    known = {name: doc for doc in docs for name in (doc.flag, *doc.localai_flags)}
    off = {f"--no-{flag[2:]}": doc for flag, doc in known.items() if doc.shape == "bool"}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        if word in ("-h", "--help"):
            found.help = True
        elif word == "--version":
            found.version = True
        elif flag in off and not equals:
            found.put(off[flag].name, "false", flag)
        elif flag in known and known[flag].shape == "bool":
            found.put(known[flag].name, value if equals else "true", flag)
        elif flag in known or flag == "--config":
            if not equals:
                if not rest or rest[0].startswith("--"):
                    found.problems.append(f"{flag}: needs a value")
                    continue
                value = rest.pop(0)
            if flag == "--config":
                found.config = value
            elif known[flag].repeatable:
                name = known[flag].name
                found.put(name, [*found.values.get(name, []), value], flag)
            else:
                found.put(known[flag].name, value, flag)
        elif word.startswith("-"):
            every = [*known, *off, "--config", "--help", "--version"]
            found.problems.append(f"{flag}: no such flag{nearest(flag, every)}")
        else:
            found.problems.append(f"{word!r}: not expected; every setting is a --flag")
    return found


def from_environment(docs: Sequence[FieldDoc], environ: Mapping[str, str]) -> Layer:
    """Read `CORRAL_<SERVICE>_<FIELD>`; a list is comma-separated."""
    found = Layer()
    for doc in docs:
        if doc.env in environ:
            _put_text(found, doc, environ[doc.env], doc.env)
    return found


def from_localai(docs: Sequence[FieldDoc], environ: Mapping[str, str]) -> Layer:
    """Read LocalAI's variables; an empty one counts as unset, as in LocalAI."""
    found = Layer()
    for doc in docs:
        for variable in doc.localai_env:
            if environ.get(variable):
                _put_text(found, doc, environ[variable], variable)
                break
    return found


def from_file(docs: Sequence[FieldDoc], service: str, path: Path) -> Layer:
    """Read a YAML or TOML file: keys for all services at the top, and one section a service."""
    found = Layer()
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".toml":
            with toml_errors():
                data = tomllib.loads(text)
        else:
            with yaml_errors(text):
                data = yaml.safe_load(text)
    except OSError as error:
        found.problems.append(f"--config {path}: {error.strerror or error}")
        return found
    except UnicodeError:
        found.problems.append(f"--config {path}: is not UTF-8; save the file in that encoding")
        return found
    except ValueError as error:
        found.problems.append(f"--config {path}: {error}")
        return found
    if data is None:
        return found
    if not isinstance(data, dict):
        found.problems.append(f"--config {path}: must hold keys and values")
        return found
    names = {doc.name for doc in docs}
    top = {_field_name(key): value for key, value in data.items()}
    # "metrics" is both a service and a setting of all services: with keys below it, it is the section.
    is_section = service not in names or not isinstance(top.get(service, {}), str)
    section = (top.pop(service, None) if is_section else None) or {}
    if not isinstance(section, dict):
        found.problems.append(f"--config {path}: {service}: must hold keys and values")
        section = {}
    others: Mapping[str, Collection[str]] | None = None
    for key, value in top.items():
        if key in names and not (isinstance(value, dict) and key in sibling_names()):
            found.put(key, value, f"{path}: {key}")
            continue
        # Loaded only when needed: a file for one service does not import the others.
        others = sibling_fields() if others is None else others
        if key not in others and not any(key in fields for fields in others.values()):
            known = [*names, *others, service]
            found.problems.append(f"{path}: {key}: no such setting{nearest(key, known)}")
    for key, value in section.items():
        name = _field_name(key)
        if name in names:
            found.put(name, value, f"{path}: {service}.{name}")
        else:
            found.problems.append(f"{path}: {service}.{key}: no such setting{nearest(name, names)}")
    return found


def sibling_fields() -> dict[str, Collection[str]]:
    """Return the names of the settings of each other service in this distribution."""
    found: dict[str, Collection[str]] = {}
    for name in sibling_names().values():
        try:
            contents = vars(importlib.import_module(name)).values()
        except ImportError:
            continue
        for item in contents:
            # Only classes defined in the module; it also imports the common base.
            if getattr(item, "__module__", "") == name and getattr(item, "service", None):
                found[str(item.service)] = tuple(getattr(item, "model_fields", ()))
    return found


def sibling_names() -> dict[str, str]:
    """Return the other services in this distribution, and the modules of their settings."""
    here = __package__.rpartition(".")[0]
    package = importlib.import_module(here.rpartition(".")[0])
    modules = {
        module.name: f"{package.__name__}.{module.name}.config"
        for module in pkgutil.iter_modules(package.__path__)
        if module.ispkg and f"{package.__name__}.{module.name}" != here
    }
    return {name: config for name, config in modules.items() if importlib.util.find_spec(config)}


def nearest(word: str, known: Collection[str]) -> str:
    """Return `; did you mean ...?` for the most similar known word, if there is one."""
    match = difflib.get_close_matches(word, sorted(known), n=1)
    return f"; did you mean {match[0]}?" if match else ""


def _put_text(found: Layer, doc: FieldDoc, text: str, origin: str) -> None:
    found.put(doc.name, split_list(text) if doc.repeatable else text, origin)


def _field_name(key: Any) -> str:
    return str(key).replace("-", "_")
