"""Installations as a kind of operation: how they are admitted, journalled and run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Final

from pydantic import TypeAdapter

from services.common.names import MODELS, resource_name
from services.gallery.operations.manager import OperationManager
from services.gallery.operations.operation import Operation
from services.gallery.operations.progress import Progress
from services.gallery.resolve.planner import Admitted, InstallRequest, Planner

from .installer import Installed, Installer

_REQUEST: Final = TypeAdapter(InstallRequest)
_RESULT: Final = TypeAdapter(Installed)


class InstallJobs:
    """Installations; the kind of operation `install_model`."""

    name: Final = "install_model"

    def __init__(self, planner: Planner, installer: Installer) -> None:
        """`planner` admits requests, `installer` carries them out."""
        self._planner = planner
        self._installer = installer

    async def submit(
        self, operations: OperationManager, request: InstallRequest, request_id: str
    ) -> Operation:
        """Check and queue a request; a known request id returns its operation without a check."""
        if (known := operations.seen(request_id)) is not None:
            return known
        admitted = await self._planner.admit(request)
        target = resource_name(MODELS, admitted.request.model_id)
        return await operations.submit(self, target, admitted, request_id)

    async def run(self, request: Admitted, progress: Progress) -> Installed:
        """Install a model."""
        return await self._installer.install(request, progress)

    def encode_request(self, request: Admitted) -> Mapping[str, object]:
        """Return what the journal keeps of a request: all but the entry itself."""
        return {**asdict(request.request), "digest": request.digest}

    def decode_request(self, record: Mapping[str, object]) -> Admitted:
        """Return a journalled request; records of earlier versions have no digest."""
        return Admitted(_REQUEST.validate_python(record), str(record.get("digest", "")))

    def encode_result(self, result: Installed) -> Mapping[str, object]:
        """Return what the journal keeps of a result."""
        return asdict(result)

    def decode_result(self, record: Mapping[str, object]) -> Installed:
        """Return a journalled result."""
        return _RESULT.validate_python(record)
