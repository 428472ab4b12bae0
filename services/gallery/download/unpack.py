"""Unpacks an archive of model files next to it, as LocalAI does, but bounded and never outside."""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from services.common.errors import DiskFullError, PathEscapeError
from services.gallery.errors import RefusedError

from .transfer import open_disk, with_disk_errors

_TARS: Final = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_BLOCK: Final = 1024 * 1024
_BROKEN: Final = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
)


def is_archive(filename: str) -> bool:
    """Return whether a file of this name is unpacked after its download."""
    return filename.lower().endswith((*_TARS, ".zip"))


def unpack(
    archive: Path, name: str, folder: Path, *, limit: int, reserve: int, stop: threading.Event
) -> None:
    """Unpack an archive into `folder`, which appears only once it is complete.

    `name` is the archive's file name, `limit` the largest total size of its files. `stop` ends it early.
    """
    if folder.exists():
        return
    new = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    free = shutil.disk_usage(archive.parent).free - reserve
    room = min(limit, max(free, 0))
    try:
        new.mkdir()
        for path, size, source in _files(archive, name):
            room -= size
            if room < 0 and limit > free:
                raise DiskFullError(f"not enough disk space for the files in {name!r}")
            if room < 0:
                raise RefusedError(f"the files in {name!r} are larger than {limit} bytes")
            target = new / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with source, open_disk(target) as out:
                _copy(source, out, size, stop)
            if stop.is_set():
                return
        os.rename(new, folder)
    except _BROKEN as error:
        raise RefusedError(f"{name!r} cannot be unpacked: {error}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def unpacked(folder: Path) -> list[str]:
    """Return the paths of the files in an unpacked archive, sorted."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in files)


def _files(archive: Path, name: str) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Yield path, size and contents of each file."""
    if name.lower().endswith(_TARS):
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                if member.isdir():
                    continue
                source = tar.extractfile(member) if member.isreg() else None
                if source is None:
                    raise RefusedError(
                        f"{name!r} holds {member.name!r}, which is not a regular file"
                    )
                yield _inside(member.name), member.size, source
        return
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            if info.is_dir():
                continue
            if stat.S_ISLNK(info.external_attr >> 16):
                raise RefusedError(f"{name!r} holds {info.filename!r}, which is not a regular file")
            yield _inside(info.filename), info.file_size, opened.open(info)


def _inside(path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or not parts or ".." in parts or "\\" in path or "\0" in path:
        raise PathEscapeError(f"the archive holds {path!r}, which leads out of its folder")
    return "/".join(parts)


def _copy(source: IO[bytes], out: IO[bytes], size: int, stop: threading.Event) -> None:
    """Copy at most `size` bytes, the size in the archive's directory, even if there is more data."""
    left = size
    while left and not stop.is_set() and (block := source.read(min(left, _BLOCK))):
        with_disk_errors(out.write)(block)
        left -= len(block)
    with_disk_errors(os.fsync)(out.fileno())
