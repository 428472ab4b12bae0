"""The memory that models can be put into: the main memory, and each GPU that has its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Protocol

from .gpus import Gpus
from .ram import read_ram

RAM: Final = "ram"


@dataclass(frozen=True, slots=True)
class Device:
    """One kind of memory at one moment; bytes."""

    name: str
    """`ram`, `gpu0`, `gpu1` and so on."""
    description: str
    """Description, for people."""
    total: int
    """All of it, within the limits of a container."""
    available: int
    """Bytes free now, whichever process uses the rest; never more than `total`.

    Main memory counts page cache that can be dropped as free, including the weights of a model that
    maps its file. So a fit check takes the lesser of this and `total` less what is reserved.
    """


class Devices(Protocol):
    """Where memory is looked up."""

    def read(self) -> tuple[Device, ...]:
        """Return the main memory, then each GPU. May block for some milliseconds; never raises."""
        ...


class LocalDevices:
    """The memory of this machine, as far as the container that we are in may use it.

    A GPU that shares the main memory (Tegra, GB10) is no device: its models need room in `ram`.
    """

    def __init__(
        self,
        gpus: Gpus | None = None,
        *,
        proc: Path = Path("/proc"),
        cgroup: Path = Path("/sys/fs/cgroup"),
    ) -> None:
        """The arguments are the GPUs, and where the kernel's files are."""
        self._gpus = gpus or Gpus()
        self._proc = proc
        self._cgroup = cgroup

    def read(self) -> tuple[Device, ...]:
        """Return the main memory, then each GPU. Blocking (see gpus.py for how long at most)."""
        ram = read_ram(self._proc, self._cgroup)
        limit = f", limited by {ram.limited_by}" if ram.limited_by else ""
        return (
            Device(RAM, f"main memory{limit}", ram.total, ram.available),
            *(
                Device(gpu.name, gpu.description, gpu.total, gpu.available)
                for gpu in self._gpus.read()
            ),
        )


def gpu_totals(devices: Devices) -> Callable[[], Mapping[str, int]]:
    """Return a function for the bytes of each GPU; it measures once, and may then block."""

    @cache
    def totals() -> Mapping[str, int]:
        return {device.name: device.total for device in devices.read() if device.name != RAM}

    return totals
