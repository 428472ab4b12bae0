"""`file://`: a file on this machine, copied."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

from services.common.errors import AccessDeniedError, SourceNotFoundError, UnsupportedSourceError
from services.gallery.threads import run_to_completion

from .registry import LocalFile, scheme


class FileSource:
    """An absolute path."""

    form = "file:///path"

    def claims(self, uri: str) -> bool:
        """Take file."""
        return scheme(uri) == "file"

    async def locate(self, uri: str) -> LocalFile:
        """Find the file; a folder or a device is none."""
        path = local_path(uri)
        return LocalFile(path, await run_to_completion(_size, path))


def local_path(uri: str) -> Path:
    """Return the path of a `file://` URI."""
    parts = urlsplit(uri)
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path.startswith("/") or "\0" in path:
        raise UnsupportedSourceError(f"{uri!r} is not of the form {FileSource.form}")
    return Path(path)


def _size(path: Path) -> int:
    try:
        found = path.stat()
    except PermissionError:
        raise AccessDeniedError(f"file://{path}: may not be read by this service") from None
    except OSError:
        raise SourceNotFoundError(f"file://{path}: there is no such file") from None
    if not stat.S_ISREG(found.st_mode):
        raise SourceNotFoundError(f"file://{path}: is not a regular file")
    if not os.access(path, os.R_OK):
        raise AccessDeniedError(f"file://{path}: may not be read by this service")
    return found.st_size
