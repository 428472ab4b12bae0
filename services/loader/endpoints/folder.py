"""The folder of the model endpoints' sockets: one per loader, with a socket name per model."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from services.common.file_lock import FileLock

LONGEST_PATH = 107
"""Bytes: Linux's sun_path holds 108 with the closing zero."""
_DIGEST = 8
_PLAIN = re.compile(r"[A-Za-z0-9_+@=~-][A-Za-z0-9._+@:=~-]*")
"""Names that need no escaping in a file system or in a gRPC address, which is a URI."""
_SHORTEST = len("x-.sock") + _DIGEST


class FolderTakenError(Exception):
    """Another loader uses the folder."""


def socket_path(folder: Path, model: str) -> Path:
    """Return the path of the model's socket; names that are not valid in a path are escaped.

    Invalid characters become `_` and long names are cut; both get a digest of the name appended.
    """
    room = LONGEST_PATH - len(os.fsencode(folder)) - len("/.sock")
    if _PLAIN.fullmatch(model) and len(model) <= room:
        return folder / f"{model}.sock"
    digest = hashlib.sha256(model.encode("utf-8", "surrogateescape")).hexdigest()[:_DIGEST]
    plain = re.sub(r"[^A-Za-z0-9._+@:=~-]", "_", model).lstrip(".") or "model"
    return folder / f"{plain[: max(room - _DIGEST - 1, 1)]}-{digest}.sock"


@contextmanager
def endpoint_folder(runtime: Path, socket_mode: int) -> Iterator[Path]:
    """Lock the folder for this process and yield its path; its sockets are removed at the end.

    Only users with access by the socket mode may enter the folder. Sockets left by a killed
    loader are removed. If the path is too long for any socket, a temporary folder is used instead.
    Raises OSError, and FolderTakenError if another loader uses the folder.
    """
    folder = runtime / "models"
    if len(os.fsencode(folder)) + 1 + _SHORTEST > LONGEST_PATH:
        digest = hashlib.sha256(os.fsencode(runtime.absolute())).hexdigest()[:12]
        runtime = Path(tempfile.gettempdir()) / f"corral-run-{os.getuid()}-{digest}"
        folder = runtime / "models"
    mode = _folder_mode(socket_mode)
    runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_owner(runtime)
    with FileLock(runtime / "lock") as lock:
        if not lock.acquire():
            raise FolderTakenError(str(runtime))
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(mode)
        runtime.chmod(mode)
        _clear(folder)
        yield folder
        _clear(folder)
        with suppress(OSError):
            folder.rmdir()


def _folder_mode(socket_mode: int) -> int:
    """Return 0700, plus search permission for group and others that may write to a socket."""
    group = 0o010 if socket_mode & 0o020 else 0
    others = 0o001 if socket_mode & 0o002 else 0
    return 0o700 | group | others


def _check_owner(folder: Path) -> None:
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise PermissionError(f"{folder} is not a folder of this user")


def _clear(folder: Path) -> None:
    # This process holds the lock, so all sockets here are from loaders that ended.
    for path in folder.iterdir():
        with suppress(OSError):
            if stat.S_ISSOCK(path.lstat().st_mode):
                path.unlink()
