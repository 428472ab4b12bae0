"""The gallery as a process: settings in, services out."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack

from google.longrunning import operations_pb2_grpc

from corral.gallery.v1 import gallery_pb2_grpc
from services.common.backoff import Backoff
from services.common.rpc.health import HealthServicer
from services.common.rpc.server import AnyMount, Mount, run_service
from services.gallery.download.downloader import Downloader, DownloadLimits
from services.gallery.download.retry import RetryPolicy
from services.gallery.download.staging import Staging
from services.gallery.index.galleries import BUILT_IN, Galleries, GalleryConfig, IndexLimits
from services.gallery.install.installer import Installer
from services.gallery.install.jobs import InstallJobs
from services.gallery.library.installed import InstalledModels
from services.gallery.library.models_folder import ModelsFolder
from services.gallery.operations.journal import Journal
from services.gallery.operations.manager import OperationLimits, OperationManager
from services.gallery.operations.operation import Kind
from services.gallery.resolve.planner import Planner
from services.gallery.rpc.servicer import (
    OPERATIONS_SERVICE,
    SERVICE,
    GalleryServicer,
    OperationsServicer,
)
from services.gallery.sources.http import HttpClient
from services.gallery.sources.registry import SourceRegistry

from .config import GallerySettings
from .sources.file import FileSource
from .sources.https import GithubSource, HttpsSource
from .sources.huggingface import HuggingFaceSource
from .sources.pypi import PypiSource


async def build(
    settings: GallerySettings, stack: AsyncExitStack, health: HealthServicer
) -> Sequence[AnyMount]:
    """Wire the gallery and take up again what the last process left unfinished."""
    http = HttpClient(
        connect_timeout=settings.connect_timeout,
        stall_timeout=settings.read_stall_timeout,
        answer_timeout=settings.resolve_timeout,
    )
    stack.push_async_callback(http.close)
    sources = _sources(settings, http)
    retry_policy = RetryPolicy(
        attempts=settings.download_attempts,
        # Half of each wait is chance: what failed together should not come back together.
        backoff=Backoff(
            settings.retry_initial_delay, 2.0, settings.retry_maximum_delay, jitter=0.5
        ),
        longest_wait=settings.retry_maximum_delay,
    )
    galleries = Galleries(
        _galleries(settings),
        sources,
        settings.gallery_state / "index",
        IndexLimits(
            ttl=settings.index_ttl,
            timeout=settings.index_timeout,
            retry_after=settings.index_retry_after,
            document_size=settings.maximum_document_size,
        ),
    )
    planner = Planner(
        galleries, sources, retry_policy=retry_policy, document_size=settings.maximum_document_size
    )
    folder = ModelsFolder(settings.models_path)
    staging = Staging(settings.models_path)
    downloader = Downloader(
        http,
        sources,
        DownloadLimits(retry_policy, settings.maximum_extracted_size, settings.disk_reserve),
    )
    installer = Installer(
        planner,
        downloader,
        folder,
        staging,
        disk_reserve=settings.disk_reserve,
        extracted_size=settings.maximum_extracted_size,
    )
    installs = InstallJobs(planner, installer)
    operations = OperationManager(
        Journal(settings.gallery_state / "operations.db"),
        {Kind.INSTALL_MODEL: installs.run},
        OperationLimits(
            parallel=settings.parallel_operations,
            pending=settings.maximum_pending,
            keep=settings.keep_operations,
            keep_for=settings.keep_operations_for,
            watch_interval=settings.watch_interval,
            save_interval=settings.progress_save_interval,
        ),
        stopping=health.stopping,
        idle=functools.partial(staging.reap, settings.keep_partials_for),
    )
    stack.push_async_callback(operations.close)
    await operations.start()
    gallery = GalleryServicer(galleries, InstalledModels(folder), installs, operations)
    standard = OperationsServicer(operations, wait_timeout=settings.wait_timeout)
    return [
        Mount(
            SERVICE,
            functools.partial(gallery_pb2_grpc.add_GalleryServiceServicer_to_server, gallery),
        ),
        Mount(
            OPERATIONS_SERVICE,
            functools.partial(operations_pb2_grpc.add_OperationsServicer_to_server, standard),
        ),
    ]


def _sources(settings: GallerySettings, http: HttpClient) -> SourceRegistry:
    return SourceRegistry(
        [
            # First, because it also claims the hub's https addresses.
            HuggingFaceSource(
                endpoint=settings.hf_endpoint,
                token=settings.hf_token,
                timeout=settings.resolve_timeout,
            ),
            HttpsSource(http),
            GithubSource(),
            PypiSource(http, index_url=settings.package_index),
            FileSource(),
        ],
        http,
    )


def _galleries(settings: GallerySettings) -> list[GalleryConfig]:
    configured = [
        GalleryConfig(item.name, (item.url, *item.mirrors)) for item in settings.galleries.items
    ]
    return [*([GalleryConfig(BUILT_IN)] if settings.built_in_gallery else []), *configured]


def main() -> int:
    """Run the service until it is told to stop."""
    return run_service(GallerySettings, build)


if __name__ == "__main__":
    sys.exit(main())
