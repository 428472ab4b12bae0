"""What becomes of a request: an operation now, and the work when its turn comes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from services.common.names import MODELS, resource_name
from services.gallery.index.entry import FileSpec
from services.gallery.operations.manager import OperationManager
from services.gallery.operations.operation import Kind, Operation
from services.gallery.operations.progress import Progress
from services.gallery.resolve.planner import InstallRequest, Planner

from .installer import Installer


class InstallJobs:
    """Installations."""

    def __init__(self, planner: Planner, installer: Installer) -> None:
        """Take who plans and who installs."""
        self._planner = planner
        self._installer = installer

    async def submit(
        self, operations: OperationManager, request: InstallRequest, request_id: str
    ) -> Operation:
        """Check a request and queue it; one that was seen before is not looked at again."""
        if (known := operations.seen(request_id)) is not None:
            return known
        admitted = await self._planner.admit(request)
        target = resource_name(MODELS, admitted.model_id)
        return await operations.submit(Kind.INSTALL_MODEL, target, asdict(admitted), request_id)

    async def run(self, record: Mapping[str, Any], progress: Progress) -> Mapping[str, Any]:
        """Install what the journal holds, and return what it keeps of the result."""
        files = (FileSpec(**{**row, "uris": tuple(row["uris"])}) for row in record["files"])
        request = InstallRequest(**{**record, "files": tuple(files)})
        return asdict(await self._installer.install(request, progress))
