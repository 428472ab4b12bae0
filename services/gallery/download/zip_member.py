"""Extracts one file of a zip file (a wheel), streamed and bounded."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import zipfile
import zlib
from pathlib import Path
from typing import Final

from services.common.errors import DiskFullError, SourceNotFoundError
from services.gallery.errors import RefusedError

from .transfer import open_disk, with_disk_errors

_BLOCK: Final = 1024 * 1024


def extract(
    archive: Path, member: str, target: Path, *, limit: int, reserve: int, stop: threading.Event
) -> str:
    """Write `member` to `target` and return its SHA-256. Blocks; `stop` ends it early.

    Its size in the archive's directory is checked against `limit` and the disk before the first byte is
    written, and no more is read: a zip bomb has no effect.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            try:
                info = opened.getinfo(member)
            except KeyError:
                raise SourceNotFoundError(f"the archive does not contain {member!r}") from None
            if info.is_dir():
                raise SourceNotFoundError(f"{member!r} is a folder in the archive")
            if info.file_size > limit:
                raise RefusedError(f"{member!r} has {info.file_size} bytes; the limit is {limit}")
            free = shutil.disk_usage(target.parent).free - reserve
            if info.file_size > free:
                raise DiskFullError(
                    f"{member!r} needs {info.file_size} bytes and {max(free, 0)} are available",
                    metadata={"needed": str(info.file_size), "free": str(max(free, 0))},
                )
            digest = hashlib.sha256()
            with opened.open(info) as source, open_disk(target) as out:
                out.truncate()
                write = with_disk_errors(out.write)
                while not stop.is_set() and (block := source.read(_BLOCK)):
                    digest.update(block)
                    write(block)
                with_disk_errors(os.fsync)(out.fileno())
            return digest.hexdigest()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise RefusedError(f"the archive cannot be read: {error}") from error
