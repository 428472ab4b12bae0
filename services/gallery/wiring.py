"""How the gallery is put together from its settings."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial

from google.longrunning import operations_pb2_grpc

from corral.gallery.v1 import gallery_pb2_grpc
from services.common.backoff import Backoff
from services.common.rpc.health import HealthServicer
from services.common.rpc.mounts import AnyMount, Mount
from services.gallery.download.downloader import Downloader, DownloadLimits
from services.gallery.download.retry import RetryPolicy
from services.gallery.download.staging import Staging
from services.gallery.index.galleries import BUILT_IN, Galleries, GalleryConfig, IndexLimits
from services.gallery.install.fetch import Fetcher
from services.gallery.install.installer import Installer
from services.gallery.install.jobs import InstallJobs
from services.gallery.library.installed import InstalledModels
from services.gallery.library.models_folder import ModelsFolder
from services.gallery.operations.journal import Journal
from services.gallery.operations.manager import OperationLimits, OperationManager
from services.gallery.resolve.planner import Planner
from services.gallery.rpc.servicer import (
    OPERATIONS_SERVICE,
    SERVICE,
    GalleryServicer,
    OperationsServicer,
)
from services.gallery.sources.file import FileSource
from services.gallery.sources.http import HttpClient
from services.gallery.sources.https import GithubSource, HttpsSource
from services.gallery.sources.huggingface import HuggingFaceSource
from services.gallery.sources.pypi import PypiSource
from services.gallery.sources.registry import SourceRegistry

from .config import GallerySettings


async def build(
    settings: GallerySettings, stack: AsyncExitStack, health: HealthServicer
) -> Sequence[AnyMount]:
    """Create the components, resume unfinished operations, and return the services to mount."""
    http = HttpClient(
        connect_timeout=settings.connect_timeout,
        stall_timeout=settings.read_stall_timeout,
        answer_timeout=settings.resolve_timeout,
    )
    stack.push_async_callback(http.close)
    sources = _sources(settings, http)
    galleries = _galleries(settings, sources)
    planner = Planner(
        galleries,
        sources,
        retry_policy=_retry_policy(settings),
        document_size=settings.maximum_document_size,
    )
    folder = ModelsFolder(settings.models_path)
    staging = Staging(settings.models_path)
    fetcher = Fetcher(
        _downloader(settings, http, sources),
        staging,
        disk_reserve=settings.disk_reserve,
        extracted_size=settings.maximum_extracted_size,
    )
    installs = InstallJobs(planner, Installer(planner, fetcher, folder, staging))
    operations = _operations(settings, installs, health, staging)
    stack.push_async_callback(operations.close)
    await operations.start()
    gallery = GalleryServicer(galleries, InstalledModels(folder), installs, operations)
    standard = OperationsServicer(operations, wait_timeout=settings.wait_timeout)
    return [
        Mount(SERVICE, partial(gallery_pb2_grpc.add_GalleryServiceServicer_to_server, gallery)),
        Mount(
            OPERATIONS_SERVICE,
            partial(operations_pb2_grpc.add_OperationsServicer_to_server, standard),
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


def _galleries(settings: GallerySettings, sources: SourceRegistry) -> Galleries:
    built_in = [GalleryConfig(BUILT_IN)] if settings.built_in_gallery else []
    configured = [
        GalleryConfig(item.name, (item.url, *item.mirrors)) for item in settings.galleries.items
    ]
    return Galleries(
        [*built_in, *configured],
        sources,
        settings.gallery_state / "index",
        IndexLimits(
            ttl=settings.index_ttl,
            timeout=settings.index_timeout,
            retry_after=settings.index_retry_after,
            document_size=settings.maximum_document_size,
        ),
    )


def _retry_policy(settings: GallerySettings) -> RetryPolicy:
    # Half of each delay is random, so that downloads that failed together do not retry together.
    backoff = Backoff(settings.retry_initial_delay, 2.0, settings.retry_maximum_delay, jitter=0.5)
    return RetryPolicy(
        attempts=settings.download_attempts,
        backoff=backoff,
        longest_wait=settings.retry_maximum_delay,
    )


def _downloader(settings: GallerySettings, http: HttpClient, sources: SourceRegistry) -> Downloader:
    limits = DownloadLimits(
        _retry_policy(settings), settings.maximum_extracted_size, settings.disk_reserve
    )
    return Downloader(http, sources, limits)


def _operations(
    settings: GallerySettings, installs: InstallJobs, health: HealthServicer, staging: Staging
) -> OperationManager:
    return OperationManager(
        Journal(settings.gallery_state / "operations.db"),
        [installs],
        OperationLimits(
            parallel=settings.parallel_operations,
            pending=settings.maximum_pending,
            keep=settings.keep_operations,
            keep_for=settings.keep_operations_for,
            watch_interval=settings.watch_interval,
            save_interval=settings.progress_save_interval,
        ),
        stopping=health.stopping,
        idle=partial(staging.reap, settings.keep_partials_for),
    )
