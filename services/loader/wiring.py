"""How the loader is put together from its settings: one function for each part."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from corral.loader.v1 import loader_pb2_grpc
from services.common.process.bundled import bundled_backends
from services.common.process.listen_address import StartError
from services.common.process.logging import get_logger
from services.common.rpc.health import HealthServicer
from services.common.rpc.mounts import AnyMount, Mount
from services.common.tasks import Background
from services.loader.admission.meter import CallMeter
from services.loader.backends.backend import BackendSource, Source
from services.loader.backends.catalog import BackendCatalog
from services.loader.backends.external import EXTERNAL_FILE, ExternalBackends
from services.loader.backends.folders import BackendFolder
from services.loader.backends.localai2_assets import AssetRules, BackendAssets
from services.loader.devices.capability import Machine, cpu_flags, detect
from services.loader.devices.devices import LocalDevices, gpu_totals
from services.loader.devices.gpus import Gpus
from services.loader.direct.lease_book import LeaseLimits
from services.loader.direct.resolver import Resolutions
from services.loader.endpoints.endpoint import EndpointTimeouts
from services.loader.endpoints.folder import FolderTakenError, endpoint_folder
from services.loader.endpoints.manager import Endpoints, EndpointSettings
from services.loader.gateway.backend_channel import GrpcConnection
from services.loader.gateway.gateway import Gateway
from services.loader.instances.addresses import BackendAddresses, socket_folder
from services.loader.instances.stall import activity
from services.loader.instances.starter import BackendStarter, StartLimits
from services.loader.memory.learned import Footprints
from services.loader.memory.meter import Meter
from services.loader.models.catalog import ModelCatalog
from services.loader.models.pins import Pins
from services.loader.options.defaults import OptionSettings
from services.loader.options.resolver import LoaderDefaults, OptionMaker
from services.loader.processes.environment import backend_environment
from services.loader.processes.group import Surroundings
from services.loader.processes.guard_client import Guard
from services.loader.processes.leftovers import LOADER_MARKER, Leftovers
from services.loader.processes.local import LocalLauncher
from services.loader.processes.pipes import NamedPipes
from services.loader.processes.registry import ProcessRecord, ProcessRegistry
from services.loader.processes.state_lock import state_lock
from services.loader.rpc.health import LoaderHealth
from services.loader.rpc.servicer import SERVICE, LoaderServicer
from services.loader.scheduling.ledger import Ledger
from services.loader.scheduling.scheduler import Scheduler
from services.loader.scheduling.watchdog import Watchdog
from services.loader.supervision.adoption import Adoption
from services.loader.supervision.dependencies import SupervisorDependencies
from services.loader.supervision.fleet import Fleet
from services.loader.supervision.runner import Timeouts
from services.loader.views.change_log import ChangeLog
from services.loader.views.forecast import Forecast
from services.loader.views.models import Views

from .config import LoaderSettings
from .live_settings import LiveSettings, Tunables
from .loader import Loader

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Processes:
    """The parts that start and record processes, and adopt those of an earlier loader."""

    marker: str
    registry: ProcessRegistry
    guard: Guard
    pipes: NamedPipes | None
    """None if no later loader may adopt the backends."""
    leftovers: Leftovers
    records: Sequence[ProcessRecord]
    """Backends that an earlier loader left and that may be adopted."""


async def build(
    settings: LoaderSettings, stack: AsyncExitStack, health: HealthServicer
) -> Sequence[AnyMount]:
    """Put the loader together; parts entered on the stack are closed in reverse order."""
    processes = await _processes(settings, stack)
    sockets = stack.enter_context(socket_folder(settings.state_path / "loader"))
    tasks = await stack.enter_async_context(Background())
    gpus = Gpus()
    devices = LocalDevices(gpus)
    backends = _backends(settings, gpus, devices)
    live = _live_settings(settings)
    options = _options(settings, live, devices)
    ledger = _ledger(settings, stack, gpus, devices, options)
    calls = CallMeter(live.call_ceiling)
    pins = Pins(settings.state_path / "loader" / "pins.json")
    scheduler = Scheduler(settings=live, free=ledger.free)
    starter = _starter(settings, processes, sockets)
    dependencies = SupervisorDependencies(
        starter=starter,
        backends=backends,
        models_path=settings.models_path,
        timeouts=_timeouts(settings),
        settings=live,
        backoff_maximum=settings.load_backoff_maximum,
        options=options,
        scheduler=scheduler,
        ledger=ledger,
        pins=pins,
        activity=activity,
        calls=calls,
        tasks=tasks,
    )
    fleet = Fleet(dependencies, log_lines=settings.log_lines, log_bytes=settings.log_bytes)
    models = ModelCatalog(settings.models_path, settings.models_config_file)
    views = Views(models, fleet, pins)
    forecast = Forecast(
        models,
        backends,
        fleet,
        scheduler=scheduler,
        ledger=ledger,
        settings=live,
        calls=calls,
    )
    loader = Loader(
        models=models,
        backends=backends,
        fleet=fleet,
        scheduler=scheduler,
        views=views,
        forecast=forecast,
        changes=ChangeLog(settings.watch_history),
        calls=calls,
        pins=pins,
        ledger=ledger,
        settings=live,
        tasks=tasks,
        force_in_the_end=settings.force_backend_shutdown,
        leave_ready=settings.adoption == "restart",
    )
    endpoints = await _endpoints(settings, stack, loader, tasks, health)
    stack.push_async_callback(loader.close)
    if endpoints is not None:
        stack.push_async_callback(endpoints.drained, settings.grace)
    reported = LoaderHealth(health)
    loader.listen(reported.changed)
    if endpoints is not None:
        loader.listen(endpoints.changed)
    loader.refresh()
    adoption = Adoption(
        models=models,
        backends=backends,
        fleet=fleet,
        starter=starter,
        ledger=ledger,
        leftovers=processes.leftovers,
        watch=processes.guard,
    )
    await adoption.adopt(processes.records)
    _background(settings, tasks, loader, backends, Watchdog(fleet, live, ledger))
    # Closed before the loader: direct clients may go on using backends left for the next loader.
    resolutions = Resolutions(
        loader,
        LeaseLimits(settings.direct_lease, settings.direct_lease_maximum, settings.direct_leases),
    )
    stack.callback(resolutions.close)
    servicer = LoaderServicer(
        loader,
        views,
        forecast,
        live,
        options,
        resolutions,
        health.stopping,
        drain_timeout=settings.drain_timeout,
        drained=reported.drained,
    )
    gateway = Gateway(
        loader,
        max_message_size=settings.max_message_size,
        cause_timeout=settings.exit_cause_timeout,
    )
    add = partial(loader_pb2_grpc.add_LoaderServiceServicer_to_server, servicer)
    return [Mount(SERVICE, add), gateway.mount()]


async def _processes(settings: LoaderSettings, stack: AsyncExitStack) -> _Processes:
    """Lock the state folder, start the guard, and claim the backends that an earlier loader left."""
    loader_id = uuid.uuid4().hex
    marker = f"{LOADER_MARKER}={loader_id}"
    state = settings.state_path / "loader"
    await stack.enter_async_context(state_lock(state))
    registry = ProcessRegistry(state, loader_id)
    pipes, adopting = NamedPipes(state / "pipes"), settings.adoption != "off"
    leftovers = Leftovers(*registry.open(), registry, pipes, settings.kill_timeout)
    stack.callback(registry.close)
    guard = await stack.enter_async_context(
        Guard(marker, patience=settings.adoption_timeout, earlier=leftovers.markers)
    )
    records = await leftovers.claim(guard, adopt=adopting)
    return _Processes(marker, registry, guard, pipes if adopting else None, leftovers, records)


def _backends(settings: LoaderSettings, gpus: Gpus, devices: LocalDevices) -> BackendCatalog:
    machine = Machine(os.environ, gpus.read(), devices.read()[0].total)
    capability = detect(machine).name
    return BackendCatalog(backend_sources(settings, capability), capability)


def backend_sources(settings: LoaderSettings, capability: str) -> list[BackendSource]:
    """Return the backend sources in order of precedence for equal names.

    External backends, what the user installed, the system's, and what comes with Corral.
    """
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


def _live_settings(settings: LoaderSettings) -> LiveSettings:
    return LiveSettings(
        {name: getattr(settings, name) for name in Tunables.model_fields},
        settings.model_fields_set,
        settings.state_path / "loader" / "runtime_settings.json",
    )


def _options(settings: LoaderSettings, live: LiveSettings, devices: LocalDevices) -> OptionMaker:
    at_start = OptionSettings(
        parallel=settings.llamacpp_parallel,
        guessing=not settings.disable_guessing,
        hardware=not settings.disable_hardware_defaults,
        xpu=settings.xpu,
    )
    defaults = LoaderDefaults(at_start, live)
    return OptionMaker(settings.models_path, defaults.now, gpu_totals(devices))


def _ledger(
    settings: LoaderSettings,
    stack: AsyncExitStack,
    gpus: Gpus,
    devices: LocalDevices,
    options: OptionMaker,
) -> Ledger:
    footprints = Footprints(settings.state_path / "loader" / "footprints.json")
    stack.callback(footprints.close)
    return Ledger(
        devices=devices,
        predict=options.predict,
        measure=Meter(gpus),
        footprints=footprints,
        release_timeout=settings.release_timeout,
    )


def _starter(settings: LoaderSettings, processes: _Processes, sockets: Path) -> BackendStarter:
    surroundings = Surroundings(
        processes.guard, settings.terminate_timeout, settings.kill_timeout, processes.pipes
    )
    return BackendStarter(
        launcher=LocalLauncher(surroundings),
        connect=partial(GrpcConnection, max_message_size=settings.max_message_size),
        limits=StartLimits(
            settings.start_attempts, settings.start_interval, settings.health_timeout
        ),
        environment=backend_environment(
            os.environ, processes.marker, sys.executable, outlives=processes.pipes is not None
        ),
        models_path=settings.models_path,
        addresses=BackendAddresses(sockets),
        registry=processes.registry,
        external_token=settings.external_token.get_secret_value(),
    )


def _timeouts(settings: LoaderSettings) -> Timeouts:
    return Timeouts(
        load=settings.load_timeout,
        load_per_gib=settings.load_timeout_per_gib,
        load_stall=settings.load_stall_timeout,
        drain=settings.drain_timeout,
        free=settings.free_timeout,
        stable=settings.stable_time,
        exit_cause=settings.exit_cause_timeout,
        quarantine=settings.quarantine_time,
    )


def _background(
    settings: LoaderSettings,
    tasks: Background,
    loader: Loader,
    backends: BackendCatalog,
    watchdog: Watchdog,
) -> None:
    """Start the background tasks that run as long as the loader."""
    tasks.spawn(
        backends.follow(settings.backends_interval, loader.backends_changed),
        name="follow the backends",
    )
    tasks.spawn(loader.follow_folder(settings.models_interval), name="follow the models folder")
    loader.preload(settings.load_to_memory)
    tasks.spawn(watchdog.watch(), name="watchdog")
    tasks.spawn(watchdog.keep_measuring(settings.measure_interval), name="measure the models")


async def _endpoints(
    settings: LoaderSettings,
    stack: AsyncExitStack,
    loader: Loader,
    tasks: Background,
    health: HealthServicer,
) -> Endpoints | None:
    """Open an endpoint for each model, unless that is off; with sockets if their folder can be used."""
    if settings.model_endpoints == "off":
        return None
    mode = int(settings.endpoint_mode, 8)
    folder: Path | None = None
    try:
        folder = stack.enter_context(endpoint_folder(settings.runtime_path, mode))
    except FolderTakenError as taken:
        why = (
            f"another loader has its sockets in {taken}; give this one its own with --runtime-path"
        )
        if "runtime_path" in settings.model_fields_set:
            raise StartError(why) from None
        _log.error("the models have no sockets", why=why)
    except OSError as error:
        why = f"{error.filename or settings.runtime_path}: {error.strerror or error}"
        raise StartError(
            f"the folder for the models' sockets cannot be used: {why}; choose another with"
            " --runtime-path, or none with --model-endpoints off"
        ) from error
    timeouts = EndpointTimeouts(
        cause=settings.exit_cause_timeout,
        linger=settings.endpoint_linger,
        handshake=settings.endpoint_handshake_timeout,
        connect=settings.endpoint_connect_timeout,
    )
    endpoints = Endpoints(
        loader,
        EndpointSettings(folder, mode, settings.ports, settings.endpoint_limit, timeouts),
        tasks,
    )
    stack.push_async_callback(endpoints.close)
    tasks.spawn(endpoints.follow(), name="follow the endpoints")
    tasks.spawn(endpoints.refuse(health.stopping), name="refuse at the endpoints")
    return endpoints
