"""A small world of models, limits and processes for tests: real supervisors, a real scheduler."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.common.tasks import Background
from services.loader.admission.meter import CallMeter
from services.loader.backends.catalog import Backend
from services.loader.instances.instance import Instance, LoadAnswer
from services.loader.live_settings import LiveSettings
from services.loader.logs.log_book import LogBook
from services.loader.memory.reservation import Reservation
from services.loader.models.catalog import ModelEntry
from services.loader.processes.interface import Exit
from services.loader.scheduling.scheduler import Scheduler
from services.loader.supervision.dependencies import SupervisorDependencies
from services.loader.supervision.runner import Timeouts
from services.loader.supervision.supervisor import Supervisor

NAMES = ("a", "b", "c", "p")
GROUPS = {"a": ["g"], "b": ["g"]}
MEMORY = {"a": 30, "b": 40, "c": 50, "p": 10, "big": 90}
TOTAL = 100


class Process:
    """A fake process that the test controls, and a connection to it."""

    def __init__(self, world: World, instance: Instance) -> None:
        self.world, self.instance = world, instance
        self.pid, self.address = 1, "fake"
        loop = asyncio.get_running_loop()
        self.started: asyncio.Future[None] = loop.create_future()
        self.loaded: asyncio.Future[LoadAnswer] = loop.create_future()
        self.exit: asyncio.Future[Exit] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()

    async def wait(self) -> Exit:
        return await asyncio.shield(self.exit)

    async def owns_port(self, port: int) -> bool:
        return True

    async def drain_output(self, timeout: float) -> None:
        return

    def keep(self) -> bool:
        return False

    def leave(self) -> bool:
        return False

    async def stop(self, *, graceful: bool) -> bool:
        return True

    async def health(self, timeout: float) -> bool:
        return True

    async def load(self, options: Mapping[str, Any], timeout: float) -> LoadAnswer:
        self.options = options
        return await self.loaded

    async def free(self, timeout: float) -> None:
        return

    async def close(self) -> None:
        return


class World:
    """Models, limits, processes, and recorded errors."""

    def __init__(self) -> None:
        self.live = LiveSettings(
            {
                "lru_eviction_max_retries": 1000,
                "starvation_bound": 1000,
                "queue_size": 6,
                "model_load_failure_cooldown": 1e6,
            },
            (),
        )
        self.meter = CallMeter(lambda: 10)
        self.tasks = Background()
        self.processes: dict[str, Process] = {}
        self.wrong: list[str] = []
        self.allowed: set[str] = set()
        """Models that may be stopped while calls hold them or while they load."""
        self.external: set[str] = set()
        """External backends."""
        self.aliases: dict[str, str] = {}
        """Backend names that now mean another backend."""
        self.estimate_fails: Exception | None = None
        self.taken = 0
        """Memory used by other processes."""
        self.supervisors: dict[str, Supervisor] = {}
        self.scheduler = Scheduler(settings=self.live, free=self.free)
        dependencies = SupervisorDependencies(
            starter=self,
            backends=self,
            models_path=Path("/none"),
            timeouts=Timeouts(1e6, 0, 1e6, 1e6, 1, 1e6, 0.0, 1e6),
            settings=self.live,
            backoff_maximum=1e6,
            options=self,
            scheduler=self.scheduler,
            ledger=self,
            pins=self,
            activity=self.activity,
            calls=self.meter,
            tasks=self.tasks,
        )
        for name in MEMORY:
            self.supervisors[name] = Supervisor(
                name, dependencies=dependencies, logs=LogBook(10), changed=self.changed
            )

    def changed(self, supervisor: Supervisor) -> None:
        return

    def find(self, name: str) -> Backend:
        found = self.aliases.get(name, name)
        return Backend(found, Path("/fake"), address="far:1" if name in self.external else "")

    def pinned(self, name: str, configured: bool) -> bool:
        return name == "p"

    def reserve(self, entry: ModelEntry, backend: Backend, *, more: bool) -> Reservation:
        if self.estimate_fails:
            raise self.estimate_fails
        options = self.sent(entry, backend.name)
        if backend.external:
            return Reservation(options=options, backend=backend.name)
        memory = {"ram": int(MEMORY[entry.name] * (1.5 if more else 1))}
        return Reservation(memory, options=options, backend=backend.name)

    def sent(self, entry: ModelEntry, backend: str) -> dict[str, Any]:
        return {"ContextSize": self.live.now.context_size, "Backend": backend}

    def free(self, occupants: Any, settings: Any) -> dict[str, int]:
        return {"ram": TOTAL - self.taken - sum(each.memory.get("ram", 0) for each in occupants)}

    async def activity(self, instance: Instance) -> object:
        return object()

    async def released(self, instance: Instance) -> None:
        return

    async def start(self, instance: Instance, logs: LogBook) -> Any:
        name = instance.model
        if name in self.processes:
            self.wrong.append(f"two processes of {name}")
        process = self.processes[name] = Process(self, instance)
        instance.attach(process)
        others = [n for n in self.processes if n != name]
        limit = self.live.now.active_limit
        if limit and len(others) >= limit:
            self.wrong.append(f"{name} starts alongside {others}, the limit is {limit}")
        if any(set(GROUPS.get(name, [])) & set(GROUPS.get(other, [])) for other in others):
            self.wrong.append(f"{name} starts alongside {others} of its group")
        if sum(s.loading for s in self.supervisors.values()) > self.live.now.parallel_loads:
            self.wrong.append("too many loads")
        await process.started
        return process

    def loaded(self, instance: Instance) -> None:
        if instance is not self.processes[instance.model].instance:
            self.wrong.append(f"{instance.model} was loaded by another process than it has")

    async def leave(self, instance: Instance) -> bool:
        return False

    async def stop(self, instance: Instance, *, graceful: bool) -> bool:
        process = self.processes[instance.model]
        if not process.exit.done() and instance.model not in self.allowed:
            if instance.calls.active:
                self.wrong.append(f"{instance.model} was stopped under a call")
            if not instance.ready_since and not _failed(process):
                self.wrong.append(f"{instance.model} was stopped on its way up")
        await process.gone
        del self.processes[instance.model]
        return True


def _failed(process: Process) -> bool:
    return any(
        future.done() and not future.cancelled() and future.exception() is not None
        for future in (process.started, process.loaded)
    ) or (process.loaded.done() and not process.loaded.cancelled())
