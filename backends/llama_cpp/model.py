"""The model of this process: loading it, using it, letting it go."""

import asyncio
import enum
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from corral.backend import backend_pb2 as pb

from . import errors, gguf, options
from .admission import Admission
from .counters import Counters
from .engine import Chunk, Engine, OnCrash
from .options import Plan
from .scratch import Scratch
from .wire import Exchange

log = logging.getLogger(__name__)

R = TypeVar("R")


class State(enum.Enum):
    """What the process can do now."""

    EMPTY = enum.auto()
    LOADED = enum.auto()
    FAILED = enum.auto()


class Model:
    """A loaded model with its queue."""

    def __init__(
        self, key: bytes, identity: str, plan: Plan, header: gguf.Header, engine: Engine
    ) -> None:
        """`engine` has loaded the model; equal loads have equal keys."""
        self.key = key
        self.identity = identity
        self.plan = plan
        self.header = header
        self.engine = engine
        self.counters = Counters()
        self.admission = Admission(plan.parallel, plan.max_queue)
        self._closing = False
        self._calls = 0
        self._endings: set[asyncio.Task[None]] = set()

    @property
    def busy(self) -> bool:
        """Whether the engine works on anything."""
        return bool(self.admission.running or self._calls)

    @asynccontextmanager
    async def generation(
        self, body: Mapping[str, Any]
    ) -> AsyncIterator[tuple[int, AsyncIterator[Chunk]]]:
        """Wait for a slot and run a request in it; leaving the block early stops the request.

        The slot stays taken until the engine has released it, even if the caller is gone: a prompt
        that is being read cannot be interrupted.

        Raises:
            Exhausted: the queue is full.
            Unloaded: the model is freed meanwhile.
        """
        slot = await self.admission.acquire()
        exchange = self.engine.exchange()
        ended = False

        async def chunks() -> AsyncIterator[Chunk]:
            nonlocal ended
            async for chunk in self.engine.generate(exchange, body):
                yield chunk
            ended = True

        try:
            with self._explained():
                yield slot, chunks()
        except errors.BackendError:
            ended = True  # the engine will send no more
            raise
        finally:
            if ended:
                exchange.close()
                self.admission.release(slot)
            else:
                self._end_later(exchange, slot)

    async def in_slot(self, work: Callable[[], Awaitable[R]]) -> R:
        """Make an engine call that takes one of its slots and can not be interrupted."""
        slot = await self.admission.acquire()
        task = asyncio.ensure_future(work())
        task.add_done_callback(lambda done: (done.cancelled() or done.exception(), None))
        task.add_done_callback(lambda _: self.admission.release(slot))
        with self._explained():
            return await asyncio.shield(task)

    async def call(self, work: Awaitable[R]) -> R:
        """Make a short engine call, which takes no slot."""
        self._calls += 1
        try:
            with self._explained():
                return await work
        finally:
            self._calls -= 1

    async def free(self) -> None:
        """End every request and the engine; returns when its memory is back."""
        self._closing = True
        self.admission.close()
        await self.engine.close()
        if self._endings:
            await asyncio.wait(self._endings)

    def _end_later(self, exchange: Exchange, slot: int) -> None:
        """Wait until the engine notices that the caller is gone, then free the slot."""

        async def end() -> None:
            try:
                await exchange.anything()
            finally:
                exchange.close()
                self.admission.release(slot)

        task = asyncio.create_task(end())
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)

    def _explained(self) -> "_Explained":
        return _Explained(self)

    @property
    def closing(self) -> bool:
        """Whether the model is being freed."""
        return self._closing


class _Explained:
    """Says "unloaded" where a call failed because the engine was taken away from under it."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def __enter__(self) -> None:
        if self._model.closing:
            raise errors.Unloaded("the model is being unloaded")

    def __exit__(self, kind: type[BaseException] | None, error: object, _: object) -> None:
        if isinstance(error, errors.EngineFailed) and self._model.closing:
            raise errors.Unloaded("the model was unloaded while the request ran") from error


class ModelHost:
    """Holds at most one model; loads and frees it, one after the other."""

    def __init__(self, scratch: Scratch, on_crash: OnCrash) -> None:
        """`on_crash` is called when the engine ends unexpectedly."""
        self._scratch = scratch
        self._on_crash = on_crash
        self._model: Model | None = None
        self._engine: Engine | None = None
        self._changing = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failed = False

    @property
    def state(self) -> State:
        """Whether a model is loaded, and whether the last try failed."""
        if self._model is not None:
            return State.LOADED
        return State.FAILED if self._failed else State.EMPTY

    @property
    def loaded(self) -> Model | None:
        """The model, when there is one."""
        return self._model

    @property
    def engine_pid(self) -> int:
        """The engine's process, with or without a model; 0 when there is none."""
        return self._engine.pid if self._engine is not None and self._engine.alive else 0

    def require(self, identity: str = "") -> Model:
        """The loaded model.

        Raises:
            NotLoaded: there is none.
            IdentityMismatch: there is one, under another name than `identity`.
        """
        if self._model is None:
            raise errors.NotLoaded("model not loaded; call LoadModel first")
        if identity and self._model.identity and identity != self._model.identity:
            raise errors.IdentityMismatch(
                f"model identity mismatch: loaded {self._model.identity!r}, wanted {identity!r}"
            )
        return self._model

    async def warm_up(self) -> None:
        """Start the engine's process before a model is asked for."""
        async with self._changing:
            await self._ready_engine()

    async def load(self, request: pb.ModelOptions) -> Model:
        """Load a model, or do nothing when it is loaded with the same options.

        A load that has begun goes on when the caller is cancelled.

        Raises:
            WrongState: another model is loaded, or this one with other options.
            BackendError: the options, the file or the engine are at fault.
        """
        return await self._detached(self._load(request))

    async def free(self) -> bool:
        """Unload the model; False when there was none."""
        return await self._detached(self._free())

    def kill(self) -> None:
        """Kill the engine without a word: the process is about to end."""
        if self._engine is not None:
            self._engine.kill()

    async def _detached(self, work: Coroutine[Any, Any, R]) -> R:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        # Looked at here, since a cancelled caller does not.
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("ended with %r", error)

    async def _ready_engine(self) -> Engine:
        if self._engine is None or not self._engine.alive:
            self._engine = Engine(self._scratch, self._on_crash)
            await self._engine.start()
        return self._engine

    async def _load(self, request: pb.ModelOptions) -> Model:
        key = request.SerializeToString(deterministic=True)
        async with self._changing:
            if self._model is not None:
                if self._model.key == key:
                    return self._model
                raise errors.WrongState(
                    f"model {self._model.identity or str(self._model.plan.path)!r} is loaded "
                    "already, with other options; call Free first"
                )
            self._model = await self._start(key, request)
            return self._model

    async def _start(self, key: bytes, request: pb.ModelOptions) -> Model:
        started = time.monotonic()
        path = options.model_path(request)
        header = await asyncio.to_thread(gguf.read, path)
        plan = options.plan(request, header)
        for item in plan.ignored:
            log.warning("ignored: %s", item)
        engine = await self._ready_engine()
        try:
            await engine.load(plan)
        except errors.BackendError as error:
            self._failed = isinstance(error, errors.EngineFailed)
            await engine.close()
            raise
        self._failed = False
        log.info("loaded %s in %.3f s", path, time.monotonic() - started)
        return Model(key, request.Model, plan, header, engine)

    async def _free(self) -> bool:
        # A load can not be interrupted, but its process can be killed.
        async with self._changing:
            model, self._model = self._model, None
            self._failed = False
            if model is None:
                return False
            await model.free()
            return True
