"""Turns a request into a plan of exactly what will be installed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from services.common.errors import (
    InvalidRequestError,
    ModelConfigError,
    NothingToInstallError,
    PathEscapeError,
    UnsupportedSourceError,
)
from services.common.go_yaml import dump
from services.gallery.download.retry import RetryPolicy, retry
from services.gallery.index.document import DocumentError
from services.gallery.index.entry import BaseConfig, Entry, FileSpec, Template, parse_base_config
from services.gallery.index.galleries import Galleries, GalleryConfig
from services.gallery.index.search import find_entry
from services.gallery.library.models_folder import RECORD_PREFIX, Configured, check_name
from services.gallery.sources.registry import SourceRegistry, scheme

from .config_merge import model_config

_BACKEND: Final = re.compile(r"[a-zA-Z0-9_.-]+")


@dataclass(frozen=True, slots=True)
class InstallRequest:
    """What a client asked for."""

    entry: str
    model_id: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[FileSpec, ...] = ()
    variant: str = ""
    force: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """The entry that a request names."""

    entry: Entry
    payload: Entry
    """The entry whose configuration and files are installed: the same one, or its variant."""

    @property
    def digest(self) -> str:
        """A digest of both, to detect that the gallery changed them."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that was checked, with the full name of its entry and the model's name."""

    request: InstallRequest
    digest: str = ""
    """The digest of the choice at that time; empty if an earlier version journalled the request."""
    choice: Choice | None = None
    """Not journalled: after a restart it is read from the galleries again."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that will be installed."""

    name: str
    entry: Entry
    config: Mapping[str, Any]
    files: tuple[FileSpec, ...]
    templates: tuple[Template, ...]
    record: Mapping[str, Any]
    changed: bool = False
    """The gallery changed the entry since the request was admitted."""

    @property
    def configured(self) -> Configured:
        """The model as the models folder will have it."""
        return Configured(self.config_file, self.config, self.record)

    @property
    def config_file(self) -> str:
        """The name of the model's configuration file."""
        return f"{self.name}.yaml"

    @property
    def texts(self) -> dict[str, str]:
        """The small files to write, by name, in order: the configuration is last."""
        written = {f"{template.name}.tmpl": template.content for template in self.templates}
        written[f"{RECORD_PREFIX}{self.name}.yaml"] = dump(self.record)
        written[self.config_file] = dump(self.config)
        return written


class Planner:
    """Checks requests, and makes plans from them."""

    def __init__(
        self,
        galleries: Galleries,
        sources: SourceRegistry,
        *,
        retry_policy: RetryPolicy,
        document_size: int,
    ) -> None:
        """`retry_policy` and `document_size` are for base configurations."""
        self._galleries = galleries
        self._sources = sources
        self._retry_policy = retry_policy
        self._document_size = document_size

    async def admit(self, request: InstallRequest) -> Admitted:
        """Return the checked request, or raise what is wrong with it."""
        choice = await self._choose(request)
        for file in request.files:
            for uri in file.uris:
                self._sources.check(uri)
        name = check_name(
            request.model_id or choice.entry.name, "model_id" if request.model_id else "entry"
        )
        complete = replace(request, entry=choice.entry.full_name, model_id=name)
        return Admitted(complete, choice.digest, choice)

    async def plan(self, admitted: Admitted) -> Plan:
        """Return the plan of an admitted request.

        The galleries are read only if the request comes from the journal; then the plan shows
        whether the entry has changed since.
        """
        request = admitted.request
        choice = admitted.choice or await self._choose(request)
        entry, payload = choice.entry, choice.payload
        base = await self._base(payload)
        name = check_name(request.model_id or entry.name, "model_id")
        files = _unique([*base.files, *request.files, *payload.files], {f"{name}.yaml"})
        if not (base.config or payload.overrides or request.overrides or files):
            raise NothingToInstallError(f"{entry.full_name} has no configuration and no files")
        gallery = self._galleries.gallery(payload.gallery) or GalleryConfig(payload.gallery, ("",))
        trusted = {uri for file in request.files for uri in file.uris}
        for file in files:
            _check_source(file, trusted, gallery)
        config = model_config(base.config, name, payload.overrides, request.overrides)
        _check_config(config)
        for template in base.templates:
            check_name(template.name, "prompt_templates")
        return Plan(
            name=name,
            entry=entry,
            config=config,
            files=files,
            templates=base.templates,
            record=_record(name, entry, payload, base, files, request.variant),
            changed=admitted.digest not in ("", choice.digest),
        )

    async def _choose(self, request: InstallRequest) -> Choice:
        entries, _ = await self._galleries.entries()
        entry = find_entry(entries, request.entry)
        return Choice(entry, _payload(entry, entries, request.variant))

    async def _base(self, entry: Entry) -> BaseConfig:
        """Return the base configuration at the entry's address, or the one in the entry itself."""
        if not entry.url:
            return BaseConfig(config=entry.config or {})
        address = self._address(entry)
        text = await retry(
            lambda: self._sources.read(address, limit=self._document_size), self._retry_policy
        )
        try:
            return parse_base_config(text)
        except DocumentError as error:
            raise ModelConfigError(
                f"the base configuration {address} of {entry.full_name} {error}"
            ) from None

    def _address(self, entry: Entry) -> str:
        gallery = self._galleries.gallery(entry.gallery)
        if scheme(entry.url) == "file" and not (gallery and gallery.local):
            raise UnsupportedSourceError(
                f"{entry.full_name}: a remote gallery may not refer to files of this machine"
            )
        # As in LocalAI: a gallery in a local folder has the files next to its index.
        if gallery and gallery.folder and scheme(entry.url) == "github":
            beside = gallery.folder / entry.url.partition("@")[0].rpartition("/")[2]
            if beside.is_file():
                return beside.absolute().as_uri()
        return entry.url


def _payload(entry: Entry, entries: Sequence[Entry], variant: str) -> Entry:
    """Return the entry whose configuration and files are taken: the one asked for, or its variant."""
    if not variant or variant.lower() == entry.name.lower():
        return entry
    if variant.lower() not in (name.lower() for name in entry.variants):
        offered = ", ".join((entry.name, *entry.variants))
        raise InvalidRequestError.of(
            "variant", f"{entry.full_name} has no variant {variant!r}; it has {offered}"
        )
    return find_entry(entries, f"{entry.gallery}@{variant}")


def _unique(files: Sequence[FileSpec], reserved: set[str]) -> tuple[FileSpec, ...]:
    """Merge specifications of the same file; raise if they have different digests."""
    found: dict[str, FileSpec] = {}
    for file in files:
        if file.filename in reserved:
            raise InvalidRequestError.of(
                "files", f"{file.filename!r} is the name of the configuration file"
            )
        known = found.setdefault(file.filename, file)
        if known is file:
            continue
        if known.sha256 and file.sha256 and known.sha256 != file.sha256:
            raise InvalidRequestError.of(
                "files", f"{file.filename!r} is listed twice, with different digests"
            )
        found[file.filename] = FileSpec(
            file.filename,
            tuple(dict.fromkeys((*known.uris, *file.uris))),
            known.sha256 or file.sha256,
            known.size or file.size,
        )
    return tuple(found.values())


def _check_source(file: FileSpec, trusted: set[str], gallery: GalleryConfig) -> None:
    """Refuse `file://` in remote galleries: their authors must not read files of this machine."""
    for uri in file.uris:
        if scheme(uri) == "file" and uri not in trusted and not gallery.local:
            raise UnsupportedSourceError(
                f"{uri!r}: a remote gallery may not refer to files of this machine"
            )


def _check_config(config: Mapping[str, Any]) -> None:
    """Refuse a configuration that refers to files outside the models folder, as LocalAI does."""
    backend = config.get("backend")
    if backend not in (None, "") and not _BACKEND.fullmatch(str(backend)):
        raise ModelConfigError(f"backend: {backend!r} is not a backend's name")
    parameters = config.get("parameters") or {}
    if not isinstance(parameters, Mapping):
        raise ModelConfigError("parameters: is not a map")
    downloads = config.get("download_files") or []
    named = [
        ("parameters.model", parameters.get("model")),
        ("mmproj", config.get("mmproj")),
        ("draft_model", config.get("draft_model")),
        *(
            ("download_files", row.get("filename"))
            for row in (downloads if isinstance(downloads, list) else [])
            if isinstance(row, Mapping)
        ),
    ]
    for key, value in named:
        if value is None:
            continue
        if not isinstance(value, str):
            raise ModelConfigError(f"{key}: is not a string")
        if value.startswith("/") or ".." in value.split("/"):
            raise PathEscapeError(f"{key}: {value!r} is outside the models folder")
    if config.get("artifacts"):
        raise UnsupportedSourceError(
            "artifacts: fetching whole repositories is not implemented yet; list the files instead"
        )


def _record(
    name: str,
    entry: Entry,
    payload: Entry,
    base: BaseConfig,
    files: Sequence[FileSpec],
    variant: str,
) -> dict[str, Any]:
    """Return what `._gallery_<name>.yaml` holds: LocalAI's fields, and the gallery's name."""
    record: dict[str, Any] = {
        "description": entry.description or base.description,
        "icon": entry.icon or base.icon,
        "license": entry.license or base.license,
        "urls": list(dict.fromkeys((*base.urls, *entry.urls))),
        "name": name,
        "config_file": dump(dict(base.config)) if base.config else "",
        "files": [
            {"filename": file.filename, "sha256": file.sha256, "uri": file.uris[0]}
            for file in files
        ],
        "prompt_templates": [
            {"name": template.name, "content": template.content} for template in base.templates
        ],
        "entry_name": entry.name,
        "gallery": entry.gallery,
    }
    if payload is not entry:
        record["resolved_variant"] = payload.name
    if variant:
        record["pinned_variant"] = variant
    return record
