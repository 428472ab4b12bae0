"""This machine's compute capability, in LocalAI's words, by which meta backends choose a concrete
one.

The order is LocalAI's (HEAD). It finds the GPU's make by running a vendor's tools in processes of
their own; here it is read from the kernel's files.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .gpus import Gpu
from .kernel_files import read_text

FORCE: Final = "LOCALAI_FORCE_META_BACKEND_CAPABILITY"
RUN_FILE: Final = "LOCALAI_FORCE_META_BACKEND_CAPABILITY_RUN_FILE"

DISABLE: Final = "disable"
"""The forced value that turns all filtering by capability off."""

DEFAULT: Final = "default"
"""Nothing but the processor."""

SMALL_VRAM: Final = 4 << 30
"""Bytes of graphics memory, over all GPUs, up to which LocalAI leaves GPUs alone."""

_RUN_FILE: Final = "run/localai/capability"
_NVIDIA, _AMD, _INTEL, _VULKAN = "nvidia", "amd", "intel", "vulkan"
_PCI_VENDORS: Final = {"0x10de": _NVIDIA, "0x1002": _AMD, "0x8086": _INTEL}
_DISPLAY: Final = "0x03"
"""Prefix of the PCI class of display controllers."""
_SOFTWARE_VULKAN: Final = "lvp_"
_VIRTUAL: Final = ("0x1af4", "0x15ad", "0x1414", "0x80ee")
"""PCI vendors of the screens of virtual machines: virtio, VMware, Hyper-V, VirtualBox."""
_ARM64: Final = ("aarch64", "arm64")
_ARM_NAMES: Final = {"asimd": "neon"}
"""64-bit ARM's names for features that have another name elsewhere."""


@dataclass(frozen=True, slots=True)
class Capability:
    """A word such as `nvidia-cuda-12`, `amd`, `metal` or `default`, and the reason for it, for
    people."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Machine:
    """Paths to read: all can be set, and nothing is read before `detect`."""

    environ: Mapping[str, str]
    gpus: Sequence[Gpu] = ()
    """GPUs that have a memory of their own and report its size."""
    ram: int = 0
    """Bytes of main memory."""
    system: str = field(default_factory=platform.system)
    processor: str = field(default_factory=platform.machine)
    root: Path = Path("/")

    def vram(self, vendor: str) -> int:
        """Bytes of graphics memory over all GPUs; 0 if unknown."""
        # A GPU that is of none of the three makers sits in a system on a chip, and shares its memory.
        return self.ram if vendor == _VULKAN else sum(gpu.total for gpu in self.gpus)

    @property
    def arm64(self) -> bool:
        """Whether it is a 64-bit ARM machine."""
        return self.processor.lower() in _ARM64


def detect(machine: Machine) -> Capability:
    """Find the capability. Blocking for about a millisecond; never raises; ask once and keep it."""
    if forced := machine.environ.get(FORCE):
        return Capability(forced, f"set by {FORCE}")
    run_file = Path(machine.environ.get(RUN_FILE) or machine.root / _RUN_FILE)
    if written := read_text(run_file).strip():
        return Capability(written, f"set in {run_file}")
    if machine.system == "Darwin":
        if machine.arm64:
            return Capability("metal", "macOS on Apple's processors")
        return Capability("darwin-x86", "macOS on Intel's processors")
    vendor = gpu_vendor(machine)
    if machine.system == "Linux" and machine.arm64 and vendor == _NVIDIA:
        return _with_cuda("nvidia-l4t", machine.root, "an NVIDIA GPU on 64-bit ARM")
    if not vendor:
        return Capability(DEFAULT, "no GPU found")
    if (vram := machine.vram(vendor)) <= SMALL_VRAM:
        known = f"has {vram / (1 << 30):.1f} GiB of memory" if vram else "reports no memory"
        return Capability(
            DEFAULT,
            f"the {vendor} GPU {known}, and up to {SMALL_VRAM >> 30} GiB only the processor is used;"
            f" set {FORCE}={vendor} to use it",
        )
    if vendor == _NVIDIA:
        return _with_cuda(_NVIDIA, machine.root, "an NVIDIA GPU")
    return Capability(vendor, f"a GPU for {vendor}" if vendor == _VULKAN else f"a GPU of {vendor}")


def gpu_vendor(machine: Machine) -> str:
    """Return `nvidia`, `amd`, `intel` or `vulkan`, in this order if there are several; empty if none."""
    root = machine.root
    found = {gpu.vendor for gpu in machine.gpus}
    found |= {_PCI_VENDORS.get(vendor, "") for vendor in _display_vendors(root)}
    if _has_nvidia(root):
        found.add(_NVIDIA)
    for vendor in (_NVIDIA, _AMD, _INTEL):
        if vendor in found:
            return vendor
    return _VULKAN if _has_vulkan(root) else ""


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the features of every processor: `avx`, `avx2`, `avx512f`, `fma`, `f16c`, `neon` and
    so on.

    The words are Linux's, and `neon` too where 64-bit ARM calls it `asimd`. Empty where Linux does
    not list them.
    """
    return parse_cpu_flags(read_text(cpuinfo))


def parse_cpu_flags(text: str) -> frozenset[str]:
    """Return the flags that all processors in `/proc/cpuinfo` have."""
    common: frozenset[str] | None = None
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            flags = frozenset(value.lower().split())
            common = flags if common is None else common & flags
    common = common or frozenset()
    return common | {_ARM_NAMES[flag] for flag in common if flag in _ARM_NAMES}


def _with_cuda(name: str, root: Path, why: str) -> Capability:
    for version in (13, 12):
        folder = root / f"usr/local/cuda-{version}"
        if folder.is_dir():
            return Capability(f"{name}-cuda-{version}", f"{why}, and {folder} is there")
    return Capability(name, f"{why}, and neither CUDA 13 nor 12 in {root / 'usr/local'}")


def _display_vendors(root: Path) -> set[str]:
    devices = _folder(root / "sys/bus/pci/devices")
    return {
        read_text(device / "vendor").strip()
        for device in devices
        if read_text(device / "class").startswith(_DISPLAY)
    }


def _has_nvidia(root: Path) -> bool:
    # The driver reports GPUs that are not PCI devices of ours (virtual machines, WSL); the device
    # tree lists those that are part of a system on a chip.
    driver = bool(_folder(root / "proc/driver/nvidia/gpus"))
    return driver or "nvidia,tegra" in read_text(root / "proc/device-tree/compatible")


def _has_vulkan(root: Path) -> bool:
    drivers = [
        path
        for folder in ("usr/share/vulkan/icd.d", "etc/vulkan/icd.d")
        for path in _folder(root / folder)
        if path.suffix == ".json" and not path.name.startswith(_SOFTWARE_VULKAN)
    ]
    nodes = [
        path
        for path in _folder(root / "sys/class/drm")
        if path.name.startswith("renderD")
        and read_text(path / "device/vendor").strip() not in _VIRTUAL
    ]
    return bool(drivers and nodes)


def _folder(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError:
        return []
