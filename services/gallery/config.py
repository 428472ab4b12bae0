"""The settings of the gallery."""

from __future__ import annotations

import configparser
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, TypeAlias

import platformdirs
from pydantic import BeforeValidator, Field, PositiveInt, SecretStr, field_validator

from services.common.config.settings import ByteSize, Duration, ServiceSettings, UnderHome, localai
from services.common.quantities import Shown

_PYPI: Final = "https://pypi.org/simple"


@dataclass(frozen=True, slots=True)
class GallerySource:
    """A configured gallery: LocalAI's `{name, url, mirrors}`."""

    name: str
    url: str
    mirrors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GallerySources:
    """The configured galleries, in order of precedence."""

    items: tuple[GallerySource, ...] = ()

    def __str__(self) -> str:
        """Return the JSON that gives this list."""
        rows = [{"name": item.name, "url": item.url} for item in self.items]
        return json.dumps(rows) if rows else ""


def _galleries(value: Any) -> Any:
    if isinstance(value, GallerySources):
        return value
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else []
        except ValueError:
            raise ValueError(_GALLERIES_FORM) from None
    if not isinstance(value, list):
        raise ValueError(_GALLERIES_FORM)  # noqa: TRY004 - pydantic reports only ValueError
    items: dict[str, GallerySource] = {}
    for row in value:
        if not isinstance(row, Mapping) or not row.get("name") or not row.get("url"):
            raise ValueError(_GALLERIES_FORM)
        name = str(row["name"])
        if "@" in name or "/" in name:
            raise ValueError(f"the name of gallery {name!r} must not contain / or @")
        if name in items:
            raise ValueError(f"the gallery {name!r} is given twice")
        mirrors = tuple(str(mirror) for mirror in row.get("mirrors") or ())
        items[name] = GallerySource(name, str(row["url"]), mirrors)
    return GallerySources(tuple(items.values()))


_GALLERIES_FORM: Final = (
    'must be a JSON list, such as [{"name": "mine", "url": "https://…/index.yaml"}]'
)

Galleries: TypeAlias = Annotated[GallerySources, BeforeValidator(_galleries), Shown("JSON")]


class GallerySettings(ServiceSettings):
    """Installs models from galleries, reports progress, and lists the installed models."""

    service: ClassVar[str] = "gallery"

    listen: str = "127.0.0.1:50052"

    models_path: Annotated[Path, localai("LOCALAI_MODELS_PATH", "MODELS_PATH")] = Field(
        default_factory=UnderHome("models")
    )
    """The folder that models are installed into."""

    backends_path: Annotated[Path, localai("LOCALAI_BACKENDS_PATH", "BACKENDS_PATH")] = Field(
        default_factory=UnderHome("backends")
    )
    """The folder of installed backends."""

    loader: str = "127.0.0.1:50051"
    """The address of the loader, which unloads models that are deleted."""

    galleries: Annotated[Galleries, localai("LOCALAI_GALLERIES", "GALLERIES")] = GallerySources()
    """Galleries in addition to the built-in one: a JSON list of objects with name, url and optional mirrors."""

    built_in_gallery: bool = True
    """Offer the built-in gallery."""

    index_ttl: Duration = 3600.0
    """How long a gallery's index is used before it is read again."""

    index_timeout: Duration = 30.0
    """How long reading one index or base configuration may take, from one address."""

    index_retry_after: Duration = 60.0
    """How long to wait before reading a failed gallery again; its last good copy is used meanwhile."""

    connect_timeout: Duration = 15.0
    """How long connecting to a download server may take."""

    resolve_timeout: Duration = 30.0
    """How long a source may take to report the location and size of a file."""

    read_stall_timeout: Duration = 60.0
    """How long a download may receive nothing before its connection is closed."""

    download_attempts: PositiveInt = 4
    """How often a source is tried in a row without progress."""

    retry_initial_delay: Duration = 1.0
    """The delay before the second attempt; it doubles with each further one."""

    retry_maximum_delay: Duration = 30.0
    """The longest delay between attempts; a server that asks for a longer one is not retried."""

    parallel_operations: PositiveInt = 4
    """How many operations run in parallel; operations on the same model run one after another."""

    maximum_pending: PositiveInt = 1000
    """The maximum of unfinished operations; further requests are refused."""

    keep_operations: PositiveInt = 1000
    """How many ended operations stay listed."""

    keep_operations_for: Duration = 30 * 86400.0
    """How long an ended operation stays listed."""

    keep_partials_for: Duration = 86400.0
    """How long partial downloads are kept so that they can be resumed."""

    watch_interval: Duration = 0.2
    """The shortest time between two updates of a watched operation."""

    wait_timeout: Duration = 300.0
    """How long WaitOperation waits if the client sets neither a timeout nor a deadline."""

    progress_save_interval: Duration = 5.0
    """The shortest time between two records of an operation's progress on disk."""

    disk_reserve: ByteSize = 256 * 1024 * 1024
    """Space that must stay free on the disk of the models; an install that needs it is refused."""

    maximum_document_size: ByteSize = 64 * 1024 * 1024
    """The largest index or base configuration to read."""

    maximum_extracted_size: ByteSize = 64 * 1024**3
    """The largest total size of the files in one archive."""

    hf_endpoint: Annotated[str, localai("HF_MIRROR", "HF", "HF_ENDPOINT")] = (
        "https://huggingface.co"
    )
    """The Hugging Face hub, or a mirror of it."""

    hf_token: Annotated[SecretStr | None, Shown("secret"), localai("HF_TOKEN")] = None
    """The token for Hugging Face; needed for gated and private repositories."""

    pypi_index_url: Annotated[str, localai("PIP_INDEX_URL")] = ""
    """The package index for pypi://; by default the one that pip is configured for, or pypi.org."""

    @property
    def package_index(self) -> str:
        """The package index to ask."""
        return (self.pypi_index_url or _pip_index_url() or _PYPI).rstrip("/")

    @property
    def gallery_state(self) -> Path:
        """The folder of the gallery's own state."""
        return self.state_path / "gallery"

    @field_validator("hf_endpoint", "pypi_index_url", mode="after")
    @classmethod
    def _http(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("must begin with https:// or http://")
        return value.rstrip("/")


def _pip_index_url() -> str:
    """Return `[global] index-url` of pip's configuration; later files win, as in pip."""
    parser = configparser.RawConfigParser()
    for path in _pip_files():
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError):
            # pip reports its own broken files; they are no reason for us not to start.
            continue
    return parser.get("global", "index-url", fallback="").strip()


def _pip_files() -> list[Path]:
    named = os.environ.get("PIP_CONFIG_FILE", "")
    if named == os.devnull:
        return []
    files = [Path(folder) / "pip" / "pip.conf" for folder in _site_folders()]
    files += [
        Path("/etc/pip.conf"),
        Path.home() / ".pip" / "pip.conf",
        Path(platformdirs.user_config_dir("pip", appauthor=False)) / "pip.conf",
        Path(sys.prefix) / "pip.conf",
    ]
    return [*files, Path(named)] if named else files


def _site_folders() -> list[str]:
    return list(
        reversed(platformdirs.site_config_dir(appauthor=False, multipath=True).split(os.pathsep))
    )
