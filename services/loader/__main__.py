"""`corral-loader`: wires the loader and serves it."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

from corral.loader.v1 import loader_pb2, loader_pb2_grpc
from services.common.backoff import Backoff
from services.common.health import HealthServicer
from services.common.mounts import AnyMount, Mount
from services.common.names import MODELS, resource_name
from services.common.server import run_service
from services.common.tasks import Background

from .backend_addresses import BackendAddresses, socket_folder
from .backend_catalog import BackendCatalog
from .config import LoaderSettings, bundled_backends
from .connection import GrpcConnection
from .convert import model_options
from .environment import backend_environment
from .events import ChangeLog
from .gateway import Gateway
from .guarding import Guard
from .loader import Loader
from .logs import LogBook
from .model_catalog import ModelCatalog
from .model_view import ModelView
from .process import LocalLauncher
from .servicer import LoaderServicer
from .starter import BackendStarter, StartLimits
from .supervisor import Supervisor, Timeouts

SERVICE = loader_pb2.DESCRIPTOR.services_by_name["LoaderService"].full_name


async def build(
    settings: LoaderSettings, stack: AsyncExitStack, health: HealthServicer
) -> Sequence[AnyMount]:
    """Put the loader together; what is entered on the stack ends in reverse order."""
    marker = f"CORRAL_LOADER_ID={uuid.uuid4().hex}"
    guard = await stack.enter_async_context(Guard(marker))
    sockets = stack.enter_context(socket_folder(settings.state_path / "loader"))
    tasks = await stack.enter_async_context(Background())
    backends = BackendCatalog(settings.backends_path, settings.external_backend, bundled_backends())
    to_options = model_options(
        settings.models_path,
        threads=settings.threads,
        context_size=settings.context_size,
        f16=settings.f16,
    )

    def connect(address: str, token: str) -> GrpcConnection:
        return GrpcConnection(
            address, token, to_options=to_options, max_message_size=settings.max_message_size
        )

    starter = BackendStarter(
        launcher=LocalLauncher(guard, settings.terminate_timeout, settings.kill_timeout),
        connect=connect,
        limits=StartLimits(
            settings.start_attempts, settings.start_interval, settings.health_timeout
        ),
        environment=backend_environment(os.environ, marker, sys.executable),
        models_path=settings.models_path,
        addresses=BackendAddresses(sockets),
        external_token=settings.external_token.get_secret_value(),
    )

    def make_supervisor(
        name: str, changed: Callable[[Supervisor], None], tasks: Background
    ) -> Supervisor:
        return Supervisor(
            name,
            starter=starter,
            find_backend=backends.find,
            models_path=settings.models_path,
            timeouts=Timeouts(
                load=settings.load_timeout,
                load_per_gib=settings.load_timeout_per_gib,
                drain=settings.drain_timeout,
                free=settings.free_timeout,
                stable=settings.stable_time,
                exit_cause=settings.exit_cause_timeout,
            ),
            backoff=Backoff(
                initial=settings.load_backoff,
                maximum=max(settings.load_backoff, settings.load_backoff_maximum),
            ),
            logs=LogBook(settings.log_lines),
            tasks=tasks,
            changed=changed,
        )

    loader = Loader(
        models=ModelCatalog(settings.models_path),
        backends=backends,
        make_supervisor=make_supervisor,
        changes=ChangeLog(settings.watch_history),
        tasks=tasks,
    )
    stack.push_async_callback(loader.close)

    def tell_health(name: str, model: ModelView | None) -> None:
        if model is None:
            health.forget(resource_name(MODELS, name))
        else:
            ready = model.state == "READY"
            health.set(resource_name(MODELS, name), ready, model.message or model.state)

    loader.listen(tell_health)
    loader.refresh()
    tasks.spawn(loader.follow_folder(settings.models_interval), name="follow the models folder")
    gateway = Gateway(loader, cause_timeout=settings.exit_cause_timeout)
    servicer = LoaderServicer(loader, health.stopping)
    return [
        Mount(
            SERVICE,
            lambda server: loader_pb2_grpc.add_LoaderServiceServicer_to_server(servicer, server),
        ),
        gateway.mount(),
    ]


def main() -> int:
    """Run the loader; return the process's exit code."""
    return run_service(LoaderSettings, build)


if __name__ == "__main__":
    sys.exit(main())
