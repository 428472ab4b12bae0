"""What this service leaves on disk: where its HTTP server is, and the last values before a stop."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

HTTP_ADDRESS: Final = "http_address"
LAST_SCRAPE: Final = "last.prom"


class StateFolder:
    """A folder with one small file for each fact; each is replaced whole or not at all."""

    def __init__(self, path: Path) -> None:
        """Use this folder; it is made when the first fact is written."""
        self._path = path

    def announce(self, address: str) -> None:
        """Write where `/metrics` is, for who was not told the port."""
        self._write(HTTP_ADDRESS, f"{address}\n".encode())

    def withdraw(self) -> None:
        """Say no longer where `/metrics` is."""
        (self._path / HTTP_ADDRESS).unlink(missing_ok=True)

    def keep(self, exposition: bytes) -> None:
        """Keep all values as they are now; after a stop they are what no scrape could take."""
        self._write(LAST_SCRAPE, exposition)

    def _write(self, name: str, content: bytes) -> None:
        self._path.mkdir(parents=True, exist_ok=True)
        fresh = self._path / f".{name}.{os.getpid()}"
        fresh.write_bytes(content)
        fresh.replace(self._path / name)
