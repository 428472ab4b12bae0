"""AMD and Intel GPUs, from the files of the kernel's graphics drivers (`/sys/class/drm`, fdinfo).

AMD: `mem_info_vram_total` and `mem_info_vram_used` in the PCI device's folder. Intel:
`lmem_total_bytes` and `lmem_avail_bytes`, which only some drivers of discrete cards have; the
others report no total, and such a card is left out. A process's memory on a card is in the fdinfo
of its open device files, as specified in the kernel's `Documentation/gpu/drm-usage-stats.rst`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .kernel_files import read_number, read_text

AMD: Final = "0x1002"
INTEL: Final = "0x8086"

_CARD: Final = re.compile(r"card(\d{1,9})")
_DEVICE_FILES: Final = "/dev/dri/"
_MEMORY: Final = re.compile(r"drm-(resident|memory|total)-((?:vram|local)\d*)")
_PREFERENCE: Final = ("resident", "memory", "total")
"""Memory in use comes first; `memory` is amdgpu's older name for it; `total` counts swapped-out
memory too."""
_UNITS: Final = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SIZE: Final = re.compile(r"([0-9]{1,20})\s*(|KiB|MiB|GiB)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU with a memory of its own; bytes."""

    address: str
    """PCI address, such as 0000:03:00.0."""
    vendor: str
    """`amd` or `intel`."""
    description: str
    total: int
    available: int


@dataclass(frozen=True, slots=True)
class Client:
    """One user of a GPU, as one open file shows it. Files that share a client show it each."""

    address: str
    number: str
    size: int
    """Bytes of the GPU's own memory."""


def read_cards(drm: Path) -> tuple[Card, ...]:
    """Return the cards in the kernel's order, given where `/sys/class/drm` is. Never raises."""
    found = []
    with suppress(OSError):
        numbered = [
            (int(match[1]), path) for path in drm.iterdir() if (match := _CARD.fullmatch(path.name))
        ]
        for _, path in sorted(numbered):
            card = _card(path)
            if card is not None:
                found.append(card)
    return tuple(found)


def read_clients(proc: Path, pids: Iterable[int]) -> Iterator[Client]:
    """Yield the GPU clients of some processes, given where `/proc` is. Never raises."""
    for pid in pids:
        # A process may end in any of these lines, and some belong to another user.
        with suppress(OSError):
            for link in (proc / str(pid) / "fd").iterdir():
                with suppress(OSError):
                    if str(link.readlink()).startswith(_DEVICE_FILES):
                        client = parse_fdinfo(read_text(proc / str(pid) / "fdinfo" / link.name))
                        if client is not None:
                            yield client


def sum_clients(clients: Iterable[Client]) -> dict[str, int]:
    """Return bytes by PCI address, each client counted once."""
    # A forked child has its parent's files open, and with them the same clients.
    once = {(client.address, client.number): client.size for client in clients}
    sums: dict[str, int] = {}
    for (address, _), size in once.items():
        sums[address] = sums.get(address, 0) + size
    return sums


def parse_fdinfo(text: str) -> Client | None:
    """Return the client that an fdinfo file describes; None if it is not a GPU's."""
    values = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        values[key.strip()] = value.strip()
    address, number = values.get("drm-pdev"), values.get("drm-client-id")
    if not address or not number:
        return None
    regions: dict[str, dict[str, int]] = {}
    for key, value in values.items():
        named, size = _MEMORY.fullmatch(key), _SIZE.fullmatch(value)
        if named and size:
            regions.setdefault(named[2], {})[named[1]] = int(size[1]) * _UNITS[size[2]]
    return Client(address, number, sum(_size(region) for region in regions.values()))


def _size(region: dict[str, int]) -> int:
    return next(region[kind] for kind in _PREFERENCE if kind in region)


def _card(path: Path) -> Card | None:
    device = path / "device"
    vendor = read_text(device / "vendor").strip()
    if vendor == AMD:
        total = read_number(device / "mem_info_vram_total")
        used = read_number(device / "mem_info_vram_used")
        free = None if total is None else total - (used or 0)
    elif vendor == INTEL:
        total, free = read_number(path / "lmem_total_bytes"), read_number(path / "lmem_avail_bytes")
    else:
        return None
    if not total:
        return None
    product = read_text(device / "product_name").strip() or read_text(device / "device").strip()
    return Card(
        address=device.resolve().name,
        vendor="amd" if vendor == AMD else "intel",
        description=f"{'AMD' if vendor == AMD else 'Intel'} GPU {product}".strip(),
        total=total,
        available=total if free is None else max(min(free, total), 0),
    )
