"""Folders with the files by which kernels describe a machine, for code that takes their root."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def write_files(root: Path, files: Mapping[str, object]) -> None:
    """Write each file below `root`, ending in a line feed like the kernel's."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


def graphics_card(root: Path, number: int, files: Mapping[str, object]) -> None:
    """Make `drm/card<number>` at PCI address 0000:0<number>:00.0.

    `device/...` names the device's files.
    """
    device = root / "devices" / f"0000:0{number}:00.0"
    path = root / "drm" / f"card{number}"
    device.mkdir(parents=True)
    path.mkdir(parents=True)
    (path / "device").symlink_to(device)
    write_files(path, files)


def amd_files(total: int, used: int) -> dict[str, object]:
    """Return the files in which amdgpu reports a card's memory in bytes."""
    return {
        "device/vendor": "0x1002",
        "device/device": "0x744c",
        "device/mem_info_vram_total": total,
        "device/mem_info_vram_used": used,
    }


def open_file(proc: Path, pid: int, number: int, target: str, fdinfo: str) -> None:
    """Add an open file to a process."""
    for folder in ("fd", "fdinfo"):
        (proc / str(pid) / folder).mkdir(parents=True, exist_ok=True)
    (proc / str(pid) / "fd" / str(number)).symlink_to(target)
    (proc / str(pid) / "fdinfo" / str(number)).write_text(fdinfo)
