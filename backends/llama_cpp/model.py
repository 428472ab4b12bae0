"""The model of this process: loading it, holding on to it, letting it go."""

import asyncio
import contextlib
import enum
import logging
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from corral.backend import backend_pb2 as pb

from . import errors, gguf, options
from .admission import Admission
from .counters import Counters
from .engine import Engine
from .handover import Handover
from .options import Plan
from .scratch import Scratch

log = logging.getLogger(__name__)

# Threads for short calls (tokenising, templates, unloading) beside those that generate.
SIDE_THREADS = 4

R = TypeVar("R")


class State(enum.Enum):
    """What the process can do now."""

    EMPTY = enum.auto()
    LOADED = enum.auto()
    FAILED = enum.auto()


class Model:
    """A loaded model with its queue and its threads.

    Every engine call goes through `call`, `call_in_slot` or `submit` and holds the model,
    so it is never freed under a call.
    """

    def __init__(
        self, key: bytes, identity: str, plan: Plan, header: gguf.Header, engine: Engine
    ) -> None:
        """Take over a loaded engine; `key` tells whether two loads want the same."""
        self.key = key
        self.identity = identity
        self.plan = plan
        self.header = header
        self.engine = engine
        self.counters = Counters()
        self.admission = Admission(plan.parallel, plan.max_queue)
        self._threads = ThreadPoolExecutor(plan.parallel + SIDE_THREADS, "engine")
        self._users = 0
        self._closing = False
        self._unused = asyncio.Event()
        self._unused.set()
        self._running: set[Handover[Any]] = set()

    @property
    def users(self) -> int:
        """Calls that hold the model now."""
        return self._users

    def submit(self, slot: int, handover: Handover[Any], work: Callable[[], None]) -> None:
        """Run `work` in a thread of its own; its end closes the handover and frees the slot.

        The slot is this method's from now on, also when it raises.

        Raises:
            Unloaded: the model is being freed.
        """

        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - the consumer raises it
                handover.close(error)
            else:
                handover.close()

        def ended(_: object) -> None:
            self._running.discard(handover)
            self.admission.release(slot)
            self._let_go()

        try:
            self._take()
        except errors.Unloaded:
            self.admission.release(slot)
            raise
        self._running.add(handover)
        future = asyncio.get_running_loop().run_in_executor(self._threads, run)
        future.add_done_callback(ended)

    async def call(self, work: Callable[[], R]) -> R:
        """Run a short engine call in a thread and wait for it.

        Raises:
            Unloaded: the model is being freed.
        """
        self._take()
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        # The thread goes on when the caller is cancelled; the model is held until it is out.
        future.add_done_callback(self._call_ended)
        return await asyncio.shield(future)

    def _call_ended(self, future: asyncio.Future[Any]) -> None:
        if not future.cancelled():
            future.exception()  # a cancelled caller leaves nobody to look at it
        self._let_go()

    async def call_in_slot(self, work: Callable[[], R]) -> R:
        """Run an engine call that takes one of its slots."""
        slot = await self.admission.acquire()
        handover: Handover[R] = Handover(asyncio.get_running_loop(), 1)

        def produce() -> None:
            handover.put(work())

        self.submit(slot, handover, produce)
        try:
            results = await handover.take()
            if not results:
                raise errors.EngineFailed("the engine ended without an answer")
            return results[0]
        finally:
            handover.cancel()

    async def free(self) -> None:
        """End every request, wait until the engine is unused, and free it."""
        self._closing = True
        self.admission.close()
        for handover in list(self._running):
            handover.abort(errors.Unloaded("the model was unloaded while the request ran"))
        await self._unused.wait()
        await asyncio.get_running_loop().run_in_executor(self._threads, self.engine.close)
        self._threads.shutdown(wait=False)

    def _take(self) -> None:
        if self._closing:
            raise errors.Unloaded("the model is being unloaded")
        self._users += 1
        self._unused.clear()

    def _let_go(self) -> None:
        self._users -= 1
        if not self._users:
            self._unused.set()


class ModelHost:
    """Holds at most one model; loads and frees it, one after the other."""

    def __init__(self, scratch: Scratch) -> None:
        """Start empty."""
        self._scratch = scratch
        self._model: Model | None = None
        self._changing = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.failed = False

    @property
    def state(self) -> State:
        """Whether a model is loaded, and whether the last try failed."""
        if self._model is not None:
            return State.LOADED
        return State.FAILED if self.failed else State.EMPTY

    @property
    def loaded(self) -> Model | None:
        """The model, when there is one."""
        return self._model

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

    async def _detached(self, work: Coroutine[Any, Any, R]) -> R:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

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
        try:
            engine = await asyncio.to_thread(Engine, plan, self._scratch)
        except BaseException:
            self.failed = True
            raise
        self.failed = False
        log.info("loaded %s in %.3f s", path, time.monotonic() - started)
        return Model(key, request.Model, plan, header, engine)

    async def _free(self) -> bool:
        async with self._changing:
            model, self._model = self._model, None
            self.failed = False
            if model is None:
                return False
            await model.free()
            return True

    def abandon(self) -> None:
        """Leave everything as it is and remove the files: the process is about to end."""
        with contextlib.suppress(OSError):
            self._scratch.remove()
