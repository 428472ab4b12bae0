"""Checks a backend's program without starting it: can it run here, and has it changed?"""

from __future__ import annotations

import hashlib
import os
import platform
import stat
from collections.abc import Iterable
from pathlib import Path

from services.common.files import stamp_of

_ELF = b"\x7fELF"
_MACHINE_AT = 18
"""Offset of the machine type in an ELF header (e_machine, two bytes)."""
_DATA_AT = 5
"""Offset of the byte order in an ELF header (EI_DATA); 2 means big endian."""
_MACHINES = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
_RUNS_TOO = {"x86_64": {"i386"}, "aarch64": {"arm"}}
_SAME = {"amd64": "x86_64", "arm64": "aarch64", "armv7l": "arm", "i686": "i386"}

Stamp = tuple[object, ...]
"""Compares equal as long as the file has not changed."""

ABSENT: Stamp = ()


def stamp(path: str | Path) -> Stamp:
    """Return a stamp that changes when the file is replaced, written to, or given other
    permissions."""
    try:
        status = os.stat(path)
    except OSError:
        return ABSENT
    return _stamp(status)


def program_stamps(folder: Path) -> tuple[tuple[str, Stamp], ...]:
    """Return the executable files directly in a folder, with their stamps.

    The folder's own time is not used: a backend may well write a log next to its program.
    """
    try:
        with os.scandir(folder) as files:
            stats = [(file.name, status) for file in files if (status := _status(file))]
    except OSError:
        return ()
    return tuple(
        (name, _stamp(status))
        for name, status in sorted(stats)
        if stat.S_ISREG(status.st_mode) and status.st_mode & 0o111
    )


def folders_in(path: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted. Raises OSError if it cannot be read."""
    with os.scandir(path) as entries:
        stats = [(entry.name, status) for entry in entries if (status := _status(entry))]
    return sorted(name for name, status in stats if stat.S_ISDIR(status.st_mode))


def files_in(path: Path) -> dict[str, Stamp]:
    """Return the stamps of the files in a folder by name, sorted. Raises OSError if it cannot be read."""
    with os.scandir(path) as entries:
        stats = [(entry.name, status) for entry in entries if (status := _status(entry))]
    return {name: _stamp(status) for name, status in sorted(stats) if stat.S_ISREG(status.st_mode)}


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat()
    except OSError:  # a link to nowhere, or it is gone already: the others are of use all the same
        return None


def digest(stamps: object) -> str:
    """Return a short digest of stamps."""
    return hashlib.sha256(repr(stamps).encode()).hexdigest()[:16]


def program_error(path: Path) -> str:
    """Return why a program cannot be started; empty if nothing speaks against it."""
    try:
        status = path.stat()
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    if not stat.S_ISREG(status.st_mode):
        return f"{path} is no file"
    # A program without any execute bit has lost it in an archive; its owner can set it at the
    # start.
    lost = not status.st_mode & 0o111
    if not os.access(path, os.X_OK) and not (lost and _may_chmod(status)):
        return (
            f"{path} is not executable, and only its owner can change that: chmod +x it, or run the"
            " loader as its owner"
        )
    return foreign_machine([path])


def foreign_machine(paths: Iterable[Path]) -> str:
    """Return for which other machine the programs are, if none of them is for this one."""
    here = _here()
    others = []
    for path in paths:
        machine = _elf_machine(path)
        if not machine:
            continue
        if machine == here or machine in _RUNS_TOO.get(here, ()):
            return ""
        others.append((path, machine))
    if not others:
        return ""
    path, machine = others[0]
    return f"{path.name} is a program for {machine}, and this machine is {here}"


def _here() -> str:
    machine = platform.machine().lower()
    return _SAME.get(machine, machine)


def _elf_machine(path: Path) -> str:
    """Return the machine that a binary is for; empty if it is not a binary, or is unreadable."""
    try:
        with path.open("rb") as file:
            head = file.read(_MACHINE_AT + 2)
    except OSError:
        return ""
    if not head.startswith(_ELF) or len(head) < _MACHINE_AT + 2:
        return ""
    number = int.from_bytes(head[_MACHINE_AT:], "big" if head[_DATA_AT] == 2 else "little")
    return _MACHINES.get(number, f"machine {number}")


def _may_chmod(status: os.stat_result) -> bool:
    return os.geteuid() in (0, status.st_uid)


def _stamp(status: os.stat_result) -> Stamp:
    return (*stamp_of(status), status.st_mode, status.st_uid)
