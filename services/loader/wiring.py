"""Where a loader with these settings looks for backends, in the order in which equal names win."""

from __future__ import annotations

from services.common.process.bundled import bundled_backends
from services.loader.backends.backend import BackendSource, Source
from services.loader.backends.external import EXTERNAL_FILE, ExternalBackends
from services.loader.backends.folders import BackendFolder
from services.loader.backends.localai2_assets import AssetRules, BackendAssets
from services.loader.devices.capability import cpu_flags

from .config import LoaderSettings


def backend_sources(settings: LoaderSettings, capability: str) -> list[BackendSource]:
    """Return the places: what was named, what the user installed, the system's, what comes with Corral."""
    bundled = bundled_backends()
    file = settings.localai_config_dir / EXTERNAL_FILE
    sources: list[BackendSource] = [ExternalBackends(settings.external_backend, file)]
    sources += [BackendFolder(path) for path in settings.backends_path if path != bundled]
    if settings.backend_assets_path is not None:
        rules = AssetRules(
            capability,
            cpu_flags(),
            autodetect=not settings.disable_autodetect,
            f16=settings.f16,
            grpc_servers=settings.llamacpp_grpc_servers,
        )
        sources.append(BackendAssets(settings.backend_assets_path, rules))
    sources.append(BackendFolder(settings.backends_system_path, Source.SYSTEM))
    if bundled in settings.backends_path:
        sources.append(BackendFolder(bundled, Source.BUNDLED))
    return sources
