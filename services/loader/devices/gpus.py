"""The GPUs of this machine: NVIDIA's through their driver, AMD's and Intel's through the kernel's files."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from services.common.process.logging import get_logger

from .drm import read_cards, read_clients, sum_clients
from .nvml import DriverNvml, NoDriverError, Nvml, NvmlError, NvmlGpu, read_all

_log = get_logger(__name__)

MAX_AGE: Final = 1.0
"""Seconds for which figures are good enough for watching; the watchdog's tick may be shorter."""

FRESH: Final = 0.1
"""The same for measuring one backend, so that measuring several in a row asks the driver once."""

DRIVER_TIMEOUT: Final = 2.0
"""Seconds for NVIDIA's driver to answer. It takes some milliseconds, and a second to wake up the
GPUs where nothing keeps them awake; with a GPU that has failed it may hang forever."""

DRIVER_RETRY: Final = 60.0
"""Seconds until a driver that is missing, failed or hung is queried again."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that has a memory of its own; bytes."""

    name: str
    """`gpu0`, `gpu1`: NVIDIA's in the order of their PCI addresses, then the others.

    CUDA itself counts the fastest first, unless `CUDA_DEVICE_ORDER` is `PCI_BUS_ID`.
    """
    vendor: str
    """`nvidia`, `amd` or `intel`."""
    description: str
    total: int
    available: int


@dataclass(frozen=True, slots=True)
class _Reading:
    """The last answer of NVIDIA's driver."""

    count: int = 0
    gpus: tuple[NvmlGpu, ...] = ()


@dataclass(slots=True)
class _Question:
    """One call of the driver, in a thread that can be left behind."""

    ask: Callable[[], _Reading]
    answer: _Reading | None = None
    error: NvmlError | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        try:
            self.answer = self.ask()
        except NvmlError as error:
            self.error = error
        finally:
            self.done.set()


class NvidiaDriver:
    """NVIDIA's driver, queried no more often than needed, and with a limit on each wait.

    While it fails or hangs, its last answer is kept: the memory is still there, and so are the
    models in it. May be used from any thread.
    """

    def __init__(
        self,
        open_library: Callable[[], Nvml] = DriverNvml,
        *,
        timeout: float = DRIVER_TIMEOUT,
        retry: float = DRIVER_RETRY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """The arguments open the library (NvmlError without a driver), and set the limits."""
        self._open = open_library
        self._timeout = timeout
        self._retry = retry
        self._clock = clock
        self._lock = threading.Lock()
        self._library: Nvml | None = None
        self._hanging: _Question | None = None
        self._last = _Reading()
        self._read_at = float("-inf")
        self._failed_at = float("-inf")
        self._warned = False

    def read(self, max_age: float) -> _Reading:
        """Return the driver's answer, reused for up to `max_age` seconds. Never raises."""
        with self._lock:
            now = self._clock()
            if now - self._read_at <= max_age or now - self._failed_at < self._retry:
                return self._last
            if self._hanging is not None and not self._hanging.done.is_set():
                self._failed_at = now
                return self._last
            self._hanging = None
            question = _Question(self._ask)
            threading.Thread(target=question.run, name="nvml", daemon=True).start()
            if not question.done.wait(self._timeout):
                # Its thread cannot be ended; no second one is started until it comes back.
                self._hanging = question
                self._fail(NvmlError(f"no answer within {self._timeout:g} s"))
            elif question.answer is None:
                self._fail(question.error)
            else:
                self._last, self._read_at = question.answer, self._clock()
                self._warned = False
            return self._last

    def _ask(self) -> _Reading:
        if self._library is None:
            self._library = self._open()
        return _Reading(*read_all(self._library))

    def _fail(self, error: NvmlError | None) -> None:
        self._failed_at = self._clock()
        self._library = None  # after a reload of the driver it must be reopened
        if not isinstance(error, NoDriverError) and not self._warned:
            self._warned = True
            _log.warning("NVIDIA's driver fails", error=str(error), retry_seconds=self._retry)


class Gpus:
    """All GPUs of this machine. Blocking; may be used from any thread; never raises."""

    def __init__(
        self,
        nvidia: NvidiaDriver | None = None,
        *,
        proc: Path = Path("/proc"),
        drm: Path = Path("/sys/class/drm"),
    ) -> None:
        """Take NVIDIA's driver, and where the kernel's files are."""
        self._nvidia = nvidia or NvidiaDriver()
        self._proc = proc
        self._drm = drm

    def read(self, max_age: float = MAX_AGE) -> tuple[Gpu, ...]:
        """Return the GPUs; NVIDIA's figures are at most `max_age` seconds old."""
        seen = self._nvidia.read(max_age)
        nvidia = [
            Gpu(_name(gpu.index), "nvidia", gpu.name, gpu.total, gpu.free) for gpu in seen.gpus
        ]
        others = [
            Gpu(_name(index), card.vendor, card.description, card.total, card.available)
            for index, card in enumerate(read_cards(self._drm), seen.count)
        ]
        return (*nvidia, *others)

    def used_by(self, pids: Collection[int], max_age: float = FRESH) -> dict[str, int]:
        """Return the bytes that the given processes use together, by GPU; unused GPUs are left out.

        Also empty where the driver does not report them, as in many containers: there it counts the
        processes of the host.
        """
        seen = self._nvidia.read(max_age)
        used = {
            _name(gpu.index): sum(gpu.processes.get(pid, 0) for pid in set(pids))
            for gpu in seen.gpus
        }
        cards = read_cards(self._drm)
        if cards:
            by_address = sum_clients(read_clients(self._proc, pids))
            for index, card in enumerate(cards, seen.count):
                used[_name(index)] = by_address.get(card.address, 0)
        return {name: size for name, size in used.items() if size}


def _name(index: int) -> str:
    return f"gpu{index}"
