"""Writing small files whole, and stamps that show whether a file changed."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

Stamp: TypeAlias = tuple[int, int, int]
"""A file's modification time in nanoseconds, size and inode: equal as long as it did not change."""


def write_atomically(
    path: Path, content: str | bytes, *, mode: int = 0o600, durable: bool = False
) -> None:
    """Replace the file `path` whole or not at all; create its folder if it is missing.

    With `durable`, the new content survives a power cut once this returns. Raises OSError, and leaves
    the old file as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    data = content.encode() if isinstance(content, str) else content
    try:
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(new)
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where the file system supports it."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def stamp_of(status: os.stat_result) -> Stamp:
    """Return the stamp of a file with this status."""
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def file_stamp(path: Path | str) -> Stamp | None:
    """Return the file's stamp; None if it does not exist or cannot be examined."""
    try:
        return stamp_of(os.stat(path))
    except (OSError, ValueError):
        return None
