"""What this service leaves on disk: where its HTTP server is, and the last values before a stop."""

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
    """A folder with one small file for each fact; each is replaced whole or not at all.

    A folder that cannot be written to is logged and is no reason not to serve. Any thread may call.
    """

    def __init__(self, path: Path) -> None:
        """Use this folder; it is made when the first fact is written."""
        self._path = path
        self._lock = threading.Lock()

    def announce(self, address: str) -> None:
        """Write where `/metrics` is, for who was not told the port."""
        self._write(HTTP_ADDRESS, lambda: f"{address}\n".encode())

    def withdraw(self) -> None:
        """Say no longer where `/metrics` is."""
        (self._path / HTTP_ADDRESS).unlink(missing_ok=True)

    def keep(self, read: Callable[[], bytes]) -> None:
        """Keep what `read` returns; after a stop these are the values that no scrape could take.

        It is read in turn with others that keep, so that an older state never replaces a newer one.
        """
        self._write(LAST_SCRAPE, read)

    def _write(self, name: str, read: Callable[[], bytes]) -> None:
        with self._lock:
            content = read()
            try:
                # For other users to read too: where `/metrics` is, is no secret.
                write_atomically(self._path / name, content, mode=0o666)
            except OSError as error:
                _log.warning("state cannot be kept", file=str(self._path / name), error=str(error))
