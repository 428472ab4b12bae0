"""Converts between protos and the domain, one function for each message."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Any, Final

from google.longrunning import operations_pb2
from google.protobuf import json_format

from corral.gallery.v1 import gallery_pb2 as pb
from services.common.errors import InvalidRequestError
from services.common.names import GALLERIES, MODELS, resource_name
from services.common.rpc import status
from services.common.rpc.times import timestamp
from services.gallery.index.document import DocumentError
from services.gallery.index.entry import Entry, FileSpec, digest
from services.gallery.index.galleries import GalleryState
from services.gallery.index.search import EntryFilter
from services.gallery.install.installer import Installed
from services.gallery.library.installed import (
    InstalledModel,
    InstalledNames,
    LooseFiles,
    ModelFilter,
)
from services.gallery.operations.operation import Operation
from services.gallery.operations.progress import Phase
from services.gallery.resolve.planner import InstallRequest

_P = pb.LooseFilePolicy
_POLICIES: Final = {
    _P.LOOSE_FILE_POLICY_UNSPECIFIED: LooseFiles.SKIP_IF_CONFIGURED,
    _P.LOOSE_FILE_POLICY_LOOSE_ONLY: LooseFiles.LOOSE_ONLY,
    _P.LOOSE_FILE_POLICY_SKIP_IF_CONFIGURED: LooseFiles.SKIP_IF_CONFIGURED,
    _P.LOOSE_FILE_POLICY_SKIP_ALWAYS: LooseFiles.SKIP_ALWAYS,
    _P.LOOSE_FILE_POLICY_ALWAYS_INCLUDE: LooseFiles.ALWAYS_INCLUDE,
}
_PHASES: Final = {phase: pb.OperationMetadata.Phase.Value(f"PHASE_{phase.name}") for phase in Phase}


def entry_filter(message: pb.ModelEntryFilter) -> EntryFilter:
    """Read a filter of entries."""
    return EntryFilter(
        tag=message.tag,
        usecase=message.usecase,
        backend=message.backend,
        installed=message.installed if message.HasField("installed") else None,
        gallery=message.gallery.removeprefix(f"{GALLERIES}/"),
    )


def model_filter(message: pb.InstalledModelFilter) -> ModelFilter:
    """Read a filter of installed models."""
    return ModelFilter(
        backend=message.backend, usecase=message.usecase, name_contains=message.name_contains
    )


def entry_name(gallery: str, model: str) -> str:
    """Return the resource name of an entry."""
    return f"{GALLERIES}/{gallery}/{MODELS}/{model}"


def gallery_names(galleries: Iterable[str]) -> list[str]:
    """Return the resource names of galleries."""
    return [resource_name(GALLERIES, name) for name in galleries]


def model_entry(entry: Entry, installed: InstalledNames, *, whole: bool = False) -> pb.ModelEntry:
    """Write an entry; `whole` adds what lists leave out."""
    message = pb.ModelEntry(
        name=entry_name(entry.gallery, entry.name),
        id=entry.name,
        gallery=entry.gallery,
        description=entry.description,
        license=entry.license,
        icon=entry.icon,
        urls=entry.urls,
        tags=entry.tags,
        usecases=entry.usecases,
        backend=entry.backend,
        size_bytes=entry.size or sum(file.size for file in entry.files) or None,
        installed=installed.has(entry.gallery, entry.name),
        variants=[pb.ModelVariant(id=variant) for variant in entry.variants],
    )
    if whole:
        message.files.extend(
            pb.FileSource(
                filename=file.filename,
                uris=file.uris,
                sha256=file.sha256,
                size_bytes=file.size or None,
            )
            for file in entry.files
        )
        message.overrides.update(dict(entry.overrides))
    return message


def gallery(state: GalleryState) -> pb.Gallery:
    """Write a gallery and its state."""
    first, *others = state.config.addresses or ("",)
    return pb.Gallery(
        name=resource_name(GALLERIES, state.config.name),
        uri=first,
        mirrors=others,
        kind=pb.GALLERY_KIND_MODELS,
        built_in=not state.config.addresses,
        entry_count=len(state.entries),
        refresh_time=timestamp(state.read_at),
        error=state.error,
    )


def install_request(message: pb.InstallModelRequest) -> InstallRequest:
    """Read a request to install; raises InvalidRequestError that names the field."""
    return InstallRequest(
        entry=message.entry,
        model_id=message.model_id,
        overrides=_plain(json_format.MessageToDict(message.overrides)),
        files=tuple(_file(file, f"files[{at}]") for at, file in enumerate(message.files)),
        variant=message.variant,
        force=message.force,
    )


def request_id(text: str) -> str:
    """Return a request id in canonical form; empty stays empty."""
    if not text:
        return ""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise InvalidRequestError.of("request_id", f"{text!r} is not a UUID") from None


def policy(value: pb.LooseFilePolicy.ValueType) -> LooseFiles:
    """Read a loose-file policy."""
    try:
        return _POLICIES[value]
    except KeyError:
        raise InvalidRequestError.of("loose_file_policy", f"{value} is unknown") from None


def installed_model(model: InstalledModel) -> pb.InstalledModel:
    """Write a model of the models folder."""
    # Recorded as LocalAI writes it: `gallery@entry`.
    gallery, _, entry = model.entry.partition("@")
    return pb.InstalledModel(
        name=resource_name(MODELS, model.name),
        config_file=model.config_file,
        model_file=model.model_file,
        backend=model.backend,
        usecases=model.usecases,
        entry=entry_name(gallery, entry) if entry else "",
        size_bytes=model.size,
        loose=model.loose,
    )


def operation(item: Operation) -> Any:
    """Write an operation as it is now, a `google.longrunning.Operation`."""
    done = item.done
    message = operations_pb2.Operation(name=item.name, done=done)
    message.metadata.Pack(_metadata(item))
    if done and item.error is not None:
        message.error.CopyFrom(status.to_status(item.error))
    elif done and isinstance(item.result, Installed):
        message.response.Pack(_install_result(item.result))
    return message


def operations(items: Iterable[Operation], next_token: str) -> Any:
    """Write a page of operations."""
    return operations_pb2.ListOperationsResponse(
        operations=[operation(item) for item in items], next_page_token=next_token
    )


def _metadata(item: Operation) -> pb.OperationMetadata:
    progress = item.progress.snapshot()
    message = pb.OperationMetadata(
        kind=pb.OperationMetadata.Kind.Value(f"KIND_{item.kind.name.upper()}"),
        target=item.target,
        phase=_PHASES[progress.phase],
        file=progress.file,
        bytes_done=progress.done,
        bytes_total=progress.total or None,
        percent=progress.percent,
        bytes_per_second=progress.rate,
        source=progress.source,
        message=progress.message,
        create_time=timestamp(item.create_time),
        start_time=timestamp(item.start_time),
        update_time=timestamp(item.update_time),
        end_time=timestamp(item.end_time),
        cancel_requested=item.cancel_requested,
    )
    if (eta := progress.eta) is not None:
        message.eta.FromMilliseconds(round(eta * 1000))
    return message


def _install_result(result: Installed) -> pb.InstallModelResult:
    return pb.InstallModelResult(
        model=installed_model(result.model), bytes_fetched=result.bytes_fetched
    )


def _file(message: pb.FileSource, field: str) -> FileSpec:
    if not message.filename:
        raise InvalidRequestError.of(f"{field}.filename", "is empty")
    uris: Sequence[str] = tuple(uri for uri in message.uris if uri)
    if not uris:
        raise InvalidRequestError.of(f"{field}.uris", "is empty; give at least one source")
    if message.size_bytes < 0:
        raise InvalidRequestError.of(f"{field}.size_bytes", "is negative")
    try:
        sha256 = digest(message.sha256)
    except DocumentError:
        raise InvalidRequestError.of(
            f"{field}.sha256", f"{message.sha256!r} is not 64 hexadecimal digits"
        ) from None
    return FileSpec(message.filename, tuple(uris), sha256, message.size_bytes)


def _plain(value: Any) -> Any:
    """Convert whole numbers to int: a Struct has only doubles, but a configuration needs 4096."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
