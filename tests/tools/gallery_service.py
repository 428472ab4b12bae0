"""A gallery for tests, on a real socket in this process, or as a process of its own."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import yaml
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

from corral.gallery.v1 import gallery_pb2 as pb
from corral.gallery.v1 import gallery_pb2_grpc as pb_grpc
from services.common.rpc.health import HealthServicer
from services.common.rpc.server import serving
from services.gallery.config import GallerySettings
from services.gallery.wiring import build
from tests.tools.service import Service, running_service


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def payload(size: int, seed: int = 0) -> bytes:
    """Return bytes in which compression or a mix-up would be noticed."""
    block = b"".join(hashlib.sha256(b"%d %d" % (seed, n)).digest() for n in range(1024))
    return (block * (size // len(block) + 1))[:size]


# The files on the tests' servers: one large enough to be interrupted, and a small one.
DATA = payload(3_000_000)
PATH = "/m.gguf"
SMALL = payload(200_000)
SMALL_PATH = "/m"


def write_index(path: Path, entries: list[dict[str, Any]]) -> str:
    """Write an index and return its `file://` address."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(entries, sort_keys=False))
    return path.as_uri()


def entry(name: str, *files: dict[str, Any], **facts: Any) -> dict[str, Any]:
    """Return an entry of an index."""
    config: dict[str, Any] = {"backend": "llama-cpp"}
    if files:
        config["parameters"] = {"model": files[0]["filename"]}
    return {"name": name, "config_file": config, "files": list(files), **facts}


def file(name: str, uri: str, data: bytes | None = None, *mirrors: str) -> dict[str, Any]:
    """Return a file of an entry; if data is given, with its digest."""
    row: dict[str, Any] = {"filename": name, "uri": uri}
    if data is not None:
        row["sha256"] = sha256(data)
    if mirrors:
        row["mirrors"] = list(mirrors)
    return row


def settings(home: Path, index: str = "", **changes: Any) -> GallerySettings:
    """Return settings with short timeouts, confined to a folder."""
    galleries = [{"name": "test", "url": index}] if index else []
    values: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "models_path": home / "models",
        "backends_path": home / "backends",
        "state_path": home / "state",
        "galleries": galleries,
        "built_in_gallery": not index,
        "grace": 1,
        "connect_timeout": 2,
        "resolve_timeout": 5,
        "read_stall_timeout": 5,
        "retry_initial_delay": 0.01,
        "retry_maximum_delay": 2,
        "watch_interval": 0.02,
        "index_ttl": 0,
        "index_retry_after": 0,
        "disk_reserve": 0,
        "hf_endpoint": "http://127.0.0.1:9",
        "pypi_index_url": "http://127.0.0.1:9/simple",
    }
    return GallerySettings(**{**values, **changes})


def one_file(tmp_path: Path, uri: str, data: bytes | None = DATA, *mirrors: str) -> str:
    """An index with one entry `m` of one file `m.gguf`."""
    rows = [entry("m", file("m.gguf", uri, data, *mirrors))]
    return write_index(tmp_path / "gallery" / "index.yaml", rows)


def leftovers(models: Path) -> list[str]:
    folder = models / ".corral" / "partial"
    return sorted(os.listdir(folder)) if folder.exists() else []


@dataclass
class Client:
    """The stubs on one channel, and common steps of tests."""

    channel: aio.Channel
    models: Path
    health: HealthServicer = field(default_factory=HealthServicer)

    @property
    def gallery(self) -> Any:
        return pb_grpc.GalleryServiceStub(self.channel)

    @property
    def operations(self) -> Any:
        return operations_pb2_grpc.OperationsStub(self.channel)

    async def begin(self, entry_name: str, **facts: Any) -> str:
        """Start an installation and return the operation's name."""
        request = pb.InstallModelRequest(entry=entry_name, **facts)
        return str((await self.gallery.InstallModel(request)).name)

    async def watch(self, name: str) -> AsyncIterator[tuple[Any, pb.OperationMetadata]]:
        async for update in self.gallery.WatchOperation(pb.WatchOperationRequest(name=name)):
            yield update.operation, metadata(update.operation)

    async def end(self, name: str) -> Any:
        """Wait for an operation to end and return it."""
        async with asyncio.timeout(20):
            async for operation, _ in self.watch(name):
                last = operation
        assert last.done
        return last

    async def install(self, entry_name: str, **facts: Any) -> pb.InstallModelResult:
        """Install, and fail the test if the installation fails."""
        operation = await self.end(await self.begin(entry_name, **facts))
        assert not operation.HasField("error"), operation.error
        result = pb.InstallModelResult()
        assert operation.response.Unpack(result)
        return result

    async def failure(self, entry_name: str, **facts: Any) -> Failure:
        """Install, and return the failure."""
        operation = await self.end(await self.begin(entry_name, **facts))
        assert operation.HasField("error")
        return failure(operation.error)

    async def get(self, name: str) -> Any:
        return await self.operations.GetOperation(operations_pb2.GetOperationRequest(name=name))

    async def cancel(self, name: str) -> None:
        await self.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=name))

    async def until(self, name: str, condition: Any) -> pb.OperationMetadata:
        """Watch until a state's metadata meets a condition."""
        async with asyncio.timeout(20):
            async for _, state in self.watch(name):
                if condition(state):
                    return state
        raise AssertionError("the operation ended without it")


@dataclass
class Failure:
    """The details of an error."""

    code: str
    reason: str
    message: str
    metadata: dict[str, str]
    fields: list[str]
    retry: bool


def failure(status: Any) -> Failure:
    """Read the details of a status."""
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = False
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
        retry = retry or detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR)
    assert info.domain == "corral"
    code = next(c.name for c in grpc.StatusCode if c.value[0] == status.code)
    fields = [violation.field for violation in bad.field_violations]
    return Failure(code, info.reason, status.message, dict(info.metadata), fields, retry)


async def refusal(call: Any) -> Failure:
    """Await a call that must fail, and return its failure."""
    try:
        await call
    except grpc.RpcError as error:
        trailers: Any = error.trailing_metadata()
        status = status_pb2.Status.FromString(dict(trailers)["grpc-status-details-bin"])
        found = failure(status)
        assert found.code == error.code().name
        return found
    raise AssertionError("the call succeeded")


def metadata(operation: Any) -> pb.OperationMetadata:
    state = pb.OperationMetadata()
    assert operation.metadata.Unpack(state)
    return state


@asynccontextmanager
async def gallery(config: GallerySettings) -> AsyncIterator[Client]:
    """Serve a gallery in the test's event loop."""
    health = HealthServicer()
    async with AsyncExitStack() as stack:
        mounts = await build(config, stack, health)
        async with (
            serving(name="gallery", settings=config, mounts=mounts, health=health) as server,
            aio.insecure_channel(server.address) as channel,
        ):
            yield Client(channel, config.models_path, health)


@asynccontextmanager
async def gallery_process(
    config: GallerySettings, home: Path
) -> AsyncIterator[tuple[Service, Client]]:
    """Run the real command with these settings; its log goes to a file in `home`."""
    flags = []
    for setting in type(config).model_fields:
        value = getattr(config, setting)
        if setting == "galleries":
            rows = [{"name": item.name, "url": item.url} for item in value.items]
            value = json.dumps(rows)
        if isinstance(value, bool):
            flags.append(f"--{'' if value else 'no-'}{setting.replace('_', '-')}")
        elif value is not None and value != "":
            flags.append(f"--{setting.replace('_', '-')}={value}")
    async with (
        running_service("gallery", home, *flags) as service,
        aio.insecure_channel(service.address) as channel,
    ):
        yield service, Client(channel, config.models_path)
