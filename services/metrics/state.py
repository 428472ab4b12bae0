"""The state folder: the HTTP server's address, and the last values before a stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from services.common.files import write_atomically
from services.common.process.logging import get_logger

HTTP_ADDRESS: Final = "http_address"
LAST_SCRAPE: Final = "last.prom"
_log = get_logger(__name__)


class StateFolder:
    """A folder of small files, each replaced whole or not at all.

    If the folder cannot be written to, a warning is logged and the service goes on. Thread-safe.
    """

    def __init__(self, path: Path) -> None:
        """`path` is created by the first write."""
        self._path = path
        self._lock = threading.Lock()

    def announce(self, address: str) -> None:
        """Write the address of `/metrics`, for clients that do not know the port."""
        self._write(HTTP_ADDRESS, lambda: f"{address}\n".encode())

    def withdraw(self) -> None:
        """Remove the address of `/metrics`."""
        (self._path / HTTP_ADDRESS).unlink(missing_ok=True)

    def keep(self, read: Callable[[], bytes]) -> None:
        """Write what `read` returns: after a stop, the values that no scrape collected.

        `read` is called under a lock, so that an older state never replaces a newer one.
        """
        self._write(LAST_SCRAPE, read)

    def _write(self, name: str, read: Callable[[], bytes]) -> None:
        with self._lock:
            content = read()
            try:
                # Readable by other users: the address of `/metrics` is not a secret.
                write_atomically(self._path / name, content, mode=0o666)
            except OSError as error:
                _log.warning(
                    "state cannot be written", file=str(self._path / name), error=str(error)
                )
