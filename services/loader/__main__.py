"""`corral-loader`: wires the loader and serves it."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from corral.loader.v1 import loader_pb2, loader_pb2_grpc
from services.common.backoff import Backoff
from services.common.names import MODELS, resource_name
from services.common.process.listen_address import StartError
from services.common.process.logging import get_logger
from services.common.rpc.health import HealthServicer
from services.common.rpc.mounts import AnyMount, Mount
from services.common.rpc.server import run_service
from services.common.tasks import Background
from services.loader.admission.meter import CallMeter
from services.loader.backends.catalog import BackendCatalog
from services.loader.devices.capability import Machine, detect
from services.loader.devices.devices import LocalDevices, gpu_totals
from services.loader.devices.gpus import Gpus
from services.loader.direct.lease_book import LeaseLimits
from services.loader.direct.resolver import Resolutions
from services.loader.endpoints.endpoint import EndpointTimeouts
from services.loader.endpoints.folder import FolderTakenError, endpoint_folder
from services.loader.endpoints.manager import Endpoints, EndpointSettings
from services.loader.gateway.backend_channel import GrpcConnection
from services.loader.gateway.gateway import Gateway
from services.loader.gateway.methods import SERVICE as DATA_SERVICE
from services.loader.instances.addresses import BackendAddresses, socket_folder
from services.loader.instances.stall import activity
from services.loader.instances.starter import BackendStarter, StartLimits
from services.loader.logs.log_book import LogBook
from services.loader.memory.learned import Footprints
from services.loader.memory.meter import Meter
from services.loader.models.catalog import ModelCatalog
from services.loader.models.pins import Pins
from services.loader.options.defaults import OptionSettings
from services.loader.options.resolver import OptionMaker
from services.loader.processes.environment import backend_environment
from services.loader.processes.group import Surroundings
from services.loader.processes.guard_client import Guard
from services.loader.processes.leftovers import LOADER_MARKER, Leftovers
from services.loader.processes.local import LocalLauncher
from services.loader.processes.pipes import NamedPipes
from services.loader.processes.registry import ProcessRegistry
from services.loader.processes.state_lock import state_lock
from services.loader.rpc.servicer import LoaderServicer
from services.loader.scheduling.ledger import Ledger
from services.loader.scheduling.scheduler import Scheduler
from services.loader.scheduling.watchdog import Watchdog
from services.loader.supervision.adoption import Adoption
from services.loader.supervision.dependencies import Services
from services.loader.supervision.runner import Timeouts
from services.loader.supervision.supervisor import Supervisor
from services.loader.views.change_log import ChangeLog
from services.loader.views.model import ModelView

from .config import LoaderSettings
from .live_settings import LiveSettings, Tunables
from .loader import Loader
from .wiring import backend_sources

_log = get_logger(__name__)

SERVICE = loader_pb2.DESCRIPTOR.services_by_name["LoaderService"].full_name


async def build(
    settings: LoaderSettings, stack: AsyncExitStack, health: HealthServicer
) -> Sequence[AnyMount]:
    """Put the loader together; what is entered on the stack ends in reverse order."""
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
    left = await leftovers.claim(guard, adopt=adopting)
    sockets = stack.enter_context(socket_folder(state))
    tasks = await stack.enter_async_context(Background())
    gpus = Gpus()
    devices = LocalDevices(gpus)
    machine = Machine(os.environ, gpus.read(), devices.read()[0].total)
    capability = detect(machine).name
    backends = BackendCatalog(backend_sources(settings, capability), capability)
    live = LiveSettings(
        {name: getattr(settings, name) for name in Tunables.model_fields},
        settings.model_fields_set,
        settings.state_path / "loader" / "runtime_settings.json",
    )

    def option_settings() -> OptionSettings:
        return OptionSettings(
            threads=live.now.threads,
            context_size=live.now.context_size,
            f16=live.now.f16,
            parallel=settings.llamacpp_parallel,
            guessing=not settings.disable_guessing,
            hardware=not settings.disable_hardware_defaults,
            xpu=settings.xpu,
        )

    to_options = OptionMaker(settings.models_path, option_settings, gpu_totals(devices))

    def connect(address: str, token: str) -> GrpcConnection:
        return GrpcConnection(address, token, max_message_size=settings.max_message_size)

    starter = BackendStarter(
        launcher=LocalLauncher(
            Surroundings(
                guard,
                settings.terminate_timeout,
                settings.kill_timeout,
                pipes if adopting else None,
            )
        ),
        connect=connect,
        limits=StartLimits(
            settings.start_attempts, settings.start_interval, settings.health_timeout
        ),
        environment=backend_environment(os.environ, marker, sys.executable, outlives=adopting),
        models_path=settings.models_path,
        addresses=BackendAddresses(sockets),
        registry=registry,
        external_token=settings.external_token.get_secret_value(),
    )

    footprints = Footprints(settings.state_path / "loader" / "footprints.json")
    stack.callback(footprints.close)
    ledger = Ledger(
        devices=devices,
        predict=to_options.predict,
        measure=Meter(gpus),
        footprints=footprints,
        release_timeout=settings.release_timeout,
    )
    calls = CallMeter(lambda: live.now.max_concurrent_backend_requests)

    def make_supervisor(name: str, changed: Callable[[Supervisor], None]) -> Supervisor:
        logs = LogBook(settings.log_lines, settings.log_bytes)
        return Supervisor(name, services=services, logs=logs, changed=changed)

    models = ModelCatalog(settings.models_path, settings.models_config_file)
    loader = Loader(
        models=models,
        backends=backends,
        make_supervisor=make_supervisor,
        changes=ChangeLog(settings.watch_history),
        calls=calls,
        pins=Pins(settings.state_path / "loader" / "pins.json"),
        ledger=ledger,
        settings=live,
        tasks=tasks,
        force_in_the_end=settings.force_backend_shutdown,
        leave_ready=settings.adoption == "restart",
    )
    scheduler = loader.scheduler = Scheduler(
        tenants=lambda: loader.supervisors,
        settings=live,
        free=ledger.free,
        changed=loader.waits_otherwise,
    )
    services = Services(
        starter=starter,
        find_backend=backends.find,
        models_path=settings.models_path,
        timeouts=Timeouts(
            load=settings.load_timeout,
            load_per_gib=settings.load_timeout_per_gib,
            load_stall=settings.load_stall_timeout,
            drain=settings.drain_timeout,
            free=settings.free_timeout,
            stable=settings.stable_time,
            exit_cause=settings.exit_cause_timeout,
            quarantine=settings.quarantine_time,
        ),
        backoff=lambda: Backoff(
            initial=live.now.model_load_failure_cooldown,
            maximum=max(live.now.model_load_failure_cooldown, settings.load_backoff_maximum),
        ),
        options=to_options,
        scheduler=scheduler,
        estimate=lambda entry, candidate, more: ledger.reserve(
            entry, backends.find(candidate), more=more
        ),
        pinned=loader.views.pinned,
        activity=activity,
        released=ledger.released,
        queue_size=lambda: live.now.queue_size,
        calls=calls,
        tasks=tasks,
    )
    watchdog = Watchdog(
        models=lambda: loader.supervisors,
        settings=live,
        devices=ledger.devices,
        measure=ledger.take_measure,
        measure_interval=settings.measure_interval,
    )
    endpoints = await _endpoints(settings, stack, loader, tasks, health)
    stack.push_async_callback(loader.close)
    if endpoints is not None:
        stack.push_async_callback(endpoints.drained, settings.grace)

    def tell_health(name: str, model: ModelView | None) -> None:
        if model is None:
            health.forget(resource_name(MODELS, name))
        else:
            ready = model.state == "READY"
            health.set(resource_name(MODELS, name), ready, model.message or model.state)

    loader.listen(tell_health)
    if endpoints is not None:
        loader.listen(lambda name, _: endpoints.changed(name))
    loader.refresh()
    adoption = Adoption(
        models=models,
        backends=backends,
        supervisor=loader.supervisor,
        starter=starter,
        reserve=lambda entry, backend: ledger.reserve(entry, backend, more=False),
        leftovers=leftovers,
        watch=guard,
    )
    await adoption.adopt(left)
    tasks.spawn(
        backends.follow(settings.backends_interval, loader.backends_changed),
        name="follow the backends",
    )
    tasks.spawn(loader.follow_folder(settings.models_interval), name="follow the models folder")
    loader.preload(settings.load_to_memory)
    tasks.spawn(watchdog.watch(), name="watchdog")
    tasks.spawn(watchdog.keep_measuring(), name="measure the models")
    gateway = Gateway(
        loader,
        max_message_size=settings.max_message_size,
        cause_timeout=settings.exit_cause_timeout,
    )

    resolutions = Resolutions(
        loader,
        LeaseLimits(settings.direct_lease, settings.direct_lease_maximum, settings.direct_leases),
    )
    # Before the loader: what it leaves to the next one, direct clients may go on using.
    stack.callback(resolutions.close)

    def drained() -> None:
        for name in (SERVICE, DATA_SERVICE.full_name):
            health.set(name, False, "the loader drains")

    servicer = LoaderServicer(
        loader,
        live,
        to_options,
        resolutions,
        health.stopping,
        drain_timeout=settings.drain_timeout,
        drained=drained,
    )
    return [
        Mount(
            SERVICE,
            lambda server: loader_pb2_grpc.add_LoaderServiceServicer_to_server(servicer, server),
        ),
        gateway.mount(),
    ]


async def _endpoints(
    settings: LoaderSettings,
    stack: AsyncExitStack,
    loader: Loader,
    tasks: Background,
    health: HealthServicer,
) -> Endpoints | None:
    """Give each model an address of its own, if that is wanted; sockets if their folder can be had."""
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
    endpoints.published = loader.endpoints_changed
    loader.views.endpoints_of = lambda name: (endpoints.addresses(name), endpoints.error(name))
    stack.push_async_callback(endpoints.close)
    tasks.spawn(endpoints.follow(), name="follow the endpoints")
    tasks.spawn(endpoints.refuse(health.stopping), name="refuse at the endpoints")
    return endpoints


def main() -> int:
    """Run the loader; return the process's exit code."""
    return run_service(LoaderSettings, build, event_loop=lambda settings: settings.event_loop)


if __name__ == "__main__":
    sys.exit(main())
