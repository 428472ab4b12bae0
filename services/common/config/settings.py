"""The settings that all services have, and how a service's settings are read.

Highest first: flags, `CORRAL_<SERVICE>_<FIELD>`, LocalAI's variables, the file given with `--config`,
defaults. Only this module reads the environment.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from services.common.addresses import validate_address
from services.common.errors import InvalidRequestError
from services.common.quantities import ByteSize, Duration, parse_duration, parse_size

from . import sources
from .fields import FieldDoc, NameUris, UnderHome, corral_home, fields_of, localai, parse_name_uri

__all__ = [
    "ByteSize",
    "ConfigError",
    "Duration",
    "FieldDoc",
    "NameUris",
    "ServiceSettings",
    "UnderHome",
    "corral_home",
    "describe",
    "localai",
    "parse_duration",
    "parse_name_uri",
    "parse_size",
]

_FORMATS = {"default": "console", "text": "console"}
_WIDTH = 96


class ConfigError(Exception):
    """The settings are not valid; the text lists each problem and how to fix it."""

    exit_code: ClassVar[int] = 2

    def __init__(self, program: str, problems: Sequence[str]) -> None:
        """`problems`: one line each."""
        self.problems = tuple(problems)
        lines = [f"{program}: {problem}" for problem in self.problems]
        super().__init__("\n".join([*lines, f"See {program} --help."]))


class ServiceSettings(BaseModel):
    """The settings that every service has. Subclasses add fields and set `service`."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True
    )

    service: ClassVar[str] = "service"
    """The short name: part of the environment variables' prefix, and the section in the file."""

    listen: str = "127.0.0.1:0"
    """The address to serve on: host:port (port 0 takes a free one), [::1]:port, or unix:/path."""

    state_path: Path = Field(default_factory=UnderHome("state"))
    """The folder for data that must survive a restart."""

    log_level: Annotated[
        Literal["trace", "debug", "info", "warn", "error"],
        localai("LOCALAI_LOG_LEVEL"),
    ] = "info"
    """The lowest level to log; trace includes the messages of libraries."""

    log_format: Annotated[Literal["console", "json"], localai("LOCALAI_LOG_FORMAT")] = "console"
    """Text or JSON lines; LocalAI's "default" and "text" mean console."""

    grace: Duration = 30.0
    """How long running calls may take after SIGTERM before they are cancelled."""

    stop_timeout: Duration = 10.0
    """How long the rest of a stop may take before the process logs where it hangs, and exits."""

    call_timeout: Duration = 10.0
    """The deadline of a call to another service."""

    max_message_size: ByteSize = 50 * 1024 * 1024
    """The largest message to receive or send."""

    metrics: str | None = None
    """The address of the metrics service to report calls to; empty for none."""

    @classmethod
    def load(cls, argv: Sequence[str] | None = None) -> Self:
        """Return the settings; `--help` and `--version` print and exit. Raises ConfigError."""
        return cls._read(sys.argv[1:] if argv is None else argv, os.environ)

    @staticmethod
    def watch_fd() -> int | None:
        """Return the pipe that closes when the parent process ends (`CORRAL_WATCH_FD`), if any."""
        text = os.environ.get("CORRAL_WATCH_FD", "")
        return int(text) if text.isdecimal() else None

    @classmethod
    def program(cls) -> str:
        """Return the name of the command."""
        return f"corral-{cls.service}"

    @classmethod
    def _read(cls, argv: Sequence[str], environ: Mapping[str, str]) -> Self:
        docs = describe(cls)
        flags = sources.from_flags(docs, argv)
        if flags.help:
            sys.stdout.write(help_text(cls))
            raise SystemExit(0)
        if flags.version:
            sys.stdout.write(f"{cls.program()} {metadata.version('corral')}\n")
            raise SystemExit(0)
        layers: list[sources.Layer] = [
            flags,
            sources.from_environment(docs, environ),
            sources.from_localai(docs, environ),
        ]
        if file := flags.config if flags.config is not None else environ.get("CORRAL_CONFIG"):
            layers.append(sources.from_file(docs, cls.service, Path(file).expanduser()))
        elif flags.config is not None:
            flags.problems.append("--config: needs the name of a file")
        values: dict[str, Any] = {}
        origins: dict[str, str] = {}
        for layer in reversed(layers):
            values.update(layer.values)
            origins.update(layer.origins)
        problems = [problem for layer in layers for problem in layer.problems]
        try:
            settings = cls(**values)
        except ValidationError as error:
            problems += [_problem(docs, origins, item) for item in error.errors()]
        if problems:
            raise ConfigError(cls.program(), problems)
        return settings

    @field_validator("*", mode="before")
    @classmethod
    def _empty(cls, value: Any, info: Any) -> Any:
        doc = next((doc for doc in _docs(cls) if doc.name == info.field_name), None)
        if doc is None or not isinstance(value, str) or value.strip():
            return value
        if doc.optional:
            return None
        if doc.has_path and not doc.repeatable:
            raise ValueError("is empty; name a folder or a file")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _absolute(cls, value: Any) -> Any:
        if isinstance(value, Path):
            return value.expanduser().absolute()
        if isinstance(value, list | tuple) and any(isinstance(item, Path) for item in value):
            return type(value)(cls._absolute(item) for item in value)
        return value

    @field_validator("listen", mode="after")
    @classmethod
    def _listen(cls, value: str) -> str:
        return _address(value, listen=True)

    @field_validator("metrics", mode="after")
    @classmethod
    def _metrics(cls, value: str | None) -> str | None:
        return _address(value) if value else None

    @field_validator("log_level", mode="before")
    @classmethod
    def _level(cls, value: Any) -> Any:
        text = value.lower() if isinstance(value, str) else value
        return "warn" if text == "warning" else text

    @field_validator("log_format", mode="before")
    @classmethod
    def _format(cls, value: Any) -> Any:
        return _FORMATS.get(value.lower(), value.lower()) if isinstance(value, str) else value


def describe(cls: type[ServiceSettings]) -> list[FieldDoc]:
    """Return each setting's flag, variables, type, default and help, for the README's tables."""
    return list(_docs(cls))


def help_text(cls: type[ServiceSettings]) -> str:
    """Return what `--help` prints."""
    lines = [f"usage: {cls.program()} [--flag value ...]", ""]
    lines += textwrap.wrap((cls.__doc__ or "").strip().split("\n\n")[0], _WIDTH)
    lines += [
        "",
        "Settings, highest first: flags, environment variables, LocalAI's variables, --config, defaults.",
        "<home> is $CORRAL_HOME, or the user's data folder.",
        "",
    ]
    for doc in describe(cls):
        name = (
            f"{doc.flag}, --no-{doc.flag[2:]}" if doc.shape == "bool" else f"{doc.flag} {doc.type}"
        )
        lines.append(f"  {name}" + ("  (repeatable)" if doc.repeatable else ""))
        facts = f"default: {doc.default or 'none'}; env: {', '.join((doc.env, *doc.localai_env))}"
        for text in (doc.help, facts):
            lines += textwrap.wrap(
                text,
                _WIDTH,
                initial_indent=" " * 6,
                subsequent_indent=" " * 6,
                break_on_hyphens=False,
            )
    lines += [
        "  --config path",
        "      A YAML or TOML file: keys for all services at the top, one section a service.",
        "      env: CORRAL_CONFIG",
        "  --help, --version",
        "      Print this, or the version, and exit.",
    ]
    return "\n".join(lines) + "\n"


@cache
def _docs(cls: type[ServiceSettings]) -> tuple[FieldDoc, ...]:
    return tuple(fields_of(cls))


def _address(text: str, *, listen: bool = False) -> str:
    try:
        return validate_address(text, listen=listen)
    except InvalidRequestError as error:
        raise ValueError(error.violations[0].description) from None


def _problem(docs: Sequence[FieldDoc], origins: Mapping[str, str], error: Any) -> str:
    where = error["loc"][0] if error["loc"] else ""
    doc = next((doc for doc in docs if doc.name == where), None)
    text = str(error["msg"]).removeprefix("Value error, ")
    if doc is None:
        return text
    origin = origins.get(doc.name, "default")
    text = text[:1].lower() + text[1:] if not text.startswith(("'", '"')) else text
    return f"{origin}: {text} (set {doc.flag} or {doc.env})"
