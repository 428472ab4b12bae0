"""NVIDIA's management library, as little of it as is needed.

It is called through ctypes: the `nvidia-ml-py` package is the same library with all its functions, and
its import takes 77 ms and 18 MB, which an idle loader should not spend. The structures are those of
`nvml.h`; NVIDIA keeps them for each version that a function's name carries.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Final, Protocol

_LIBRARY: Final = "libnvidia-ml.so.1"
_NOT_SUPPORTED: Final = 3
_INSUFFICIENT_SIZE: Final = 7
_NO_VALUE: Final = 2**64 - 1
_NAME_SIZE: Final = 96
_UNIFIED: Final = ("tegra", "orin", "thor", "gb10")
"""Parts of the names of GPUs that share the main memory, for drivers that give it as theirs."""


class NvmlError(Exception):
    """The driver could not answer."""


class NoDriverError(NvmlError):
    """There is no NVIDIA driver on this machine."""


class Nvml(Protocol):
    """The queries to the library. GPUs are counted from 0 by PCI address, as `nvidia-smi` does.

    Each method may block, and raises NvmlError.
    """

    def count(self) -> int:
        """Return the number of GPUs."""
        ...

    def name(self, index: int) -> str:
        """Return the GPU's name."""
        ...

    def memory(self, index: int) -> tuple[int, int] | None:
        """Total and free bytes; None where the GPU has no memory of its own."""
        ...

    def processes(self, index: int) -> list[tuple[int, int]]:
        """Processes and the bytes that each has there; one may be listed twice (compute, graphics)."""
        ...


@dataclass(frozen=True, slots=True)
class NvmlGpu:
    """One GPU at one moment."""

    index: int
    name: str
    total: int
    free: int
    processes: dict[int, int]
    """Bytes by process. In a container the numbers may be the host's, as the driver likes."""


def read_all(nvml: Nvml) -> tuple[int, tuple[NvmlGpu, ...]]:
    """Return the number of GPUs, and those that have a memory of their own and answer."""
    count = nvml.count()
    found = []
    for index in range(count):
        try:
            name, memory = nvml.name(index), nvml.memory(index)
        except NvmlError:
            continue  # this one is lost; the others are not
        if memory is None or not memory[0] or any(part in name.lower() for part in _UNIFIED):
            continue
        total, free = memory
        used: dict[int, int] = {}
        try:
            for pid, size in nvml.processes(index):
                used[pid] = max(used.get(pid, 0), size)
        except NvmlError:
            used = {}  # older drivers do not report it
        found.append(NvmlGpu(index, name, total, max(min(free, total), 0), used))
    return count, tuple(found)


class _Memory(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


class _Process(ctypes.Structure):
    _fields_ = [
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    ]


class DriverNvml:
    """The library of the installed driver."""

    def __init__(self, library: str = _LIBRARY) -> None:
        """Load and initialise it; raises NoDriverError, in 0.05 ms, where there is none."""
        try:
            self._library = ctypes.CDLL(library)
        except OSError as error:
            raise NoDriverError(str(error)) from error
        self._call("nvmlInit_v2")

    def count(self) -> int:
        """Return the number of GPUs."""
        count = ctypes.c_uint()
        self._call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        return count.value

    def name(self, index: int) -> str:
        """Return the GPU's name."""
        buffer = ctypes.create_string_buffer(_NAME_SIZE)
        self._call("nvmlDeviceGetName", self._handle(index), buffer, ctypes.c_uint(_NAME_SIZE))
        return buffer.value.decode("utf-8", "replace")

    def memory(self, index: int) -> tuple[int, int] | None:
        """Total and free bytes; None where the GPU has no memory of its own."""
        memory = _Memory()
        if self._call(
            "nvmlDeviceGetMemoryInfo",
            self._handle(index),
            ctypes.byref(memory),
            accept=_NOT_SUPPORTED,
        ):
            return None
        return memory.total, memory.free

    def processes(self, index: int) -> list[tuple[int, int]]:
        """Processes and the bytes that each has there."""
        handle = self._handle(index)
        return [*self._processes("Compute", handle), *self._processes("Graphics", handle)]

    def _processes(self, kind: str, handle: ctypes.c_void_p) -> list[tuple[int, int]]:
        name = f"nvmlDeviceGet{kind}RunningProcesses_v3"
        if not hasattr(self._library, name):  # drivers before 510; the structure is the same
            name = name.replace("_v3", "_v2")
        count = ctypes.c_uint(0)
        if not self._call(name, handle, ctypes.byref(count), None, accept=_INSUFFICIENT_SIZE):
            return []
        # Room for those that start between the two calls.
        count.value = count.value * 2 + 8
        listed = (_Process * count.value)()
        self._call(name, handle, ctypes.byref(count), listed)
        return [(item.pid, item.used) for item in listed[: count.value] if item.used != _NO_VALUE]

    def _handle(self, index: int) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
        return handle

    def _call(self, name: str, *arguments: Any, accept: int = 0) -> int:
        """Call a function; return 0 or the code to accept, raise NvmlError for any other."""
        try:
            function = getattr(self._library, name)
        except AttributeError as error:
            raise NvmlError(f"the driver has no {name}") from error
        code = int(function(*arguments))
        if code not in (0, accept):
            raise NvmlError(f"{name} answered {code}")
        return code
