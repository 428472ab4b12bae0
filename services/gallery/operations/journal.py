"""Keeps the operations in SQLite, so that they survive the process."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

from services.common.errors import ConflictError
from services.common.file_lock import FileLock
from services.common.process.logging import get_logger

from .operation import OperationRecord

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS operations (
    name TEXT PRIMARY KEY,
    create_time REAL NOT NULL,
    record TEXT NOT NULL
)
"""
# How long to wait for another process that has the file open, such as the sqlite3 shell.
_BUSY_TIMEOUT: Final = 5.0
_T = TypeVar("_T")
_log = get_logger(__name__)


class Journal:
    """A table of operations; once `put` returns, the record is on disk."""

    def __init__(self, path: Path) -> None:
        """`path` is the database; `open` opens it."""
        self._path = path
        # One thread: SQLite's connection is bound to it, and the order of the writes is kept.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._database: sqlite3.Connection | None = None
        self._lock: FileLock | None = None

    async def open(self) -> list[OperationRecord]:
        """Open or create the database, and return all records, the oldest first."""
        return await self._do(self._open)

    async def put(self, record: OperationRecord) -> None:
        """Write a record; it replaces the one with the same name."""
        text = json.dumps(record)
        await self._do(self._put, record["name"], record["create_time"], text)

    async def remove(self, names: Iterable[str]) -> None:
        """Remove records."""
        await self._do(self._remove, list(names))

    async def close(self) -> None:
        """Close the database after all pending writes."""
        await self._do(self._close)
        self._thread.shutdown(wait=False)

    async def _do(self, work: Callable[..., _T], *args: Any) -> _T:
        # Shielded: a cancelled caller must not prevent the write.
        return await asyncio.shield(
            asyncio.get_running_loop().run_in_executor(self._thread, work, *args)
        )

    def _open(self) -> list[OperationRecord]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._claim()
        try:
            return self._connect()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            # Not a database: start with an empty one, and keep the file for inspection.
            self._disconnect()
            aside = self._path.with_name(f"{self._path.name}.broken-{int(time.time())}")
            self._path.rename(aside)
            _log.error(
                "the journal is not readable; started an empty one",
                kept=str(aside),
                error=str(error),
            )
            return self._connect()

    def _claim(self) -> None:
        """Acquire the lock: two galleries would run each operation twice, into the same files.

        The system releases it when the process ends, even if it is killed.
        """
        self._lock = FileLock(self._path.with_suffix(".lock"), mode=0o644)
        if not self._lock.acquire():
            self._release()
            raise ConflictError(
                f"another gallery runs with {self._path.parent}; stop it, or give --state-path"
            )

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _connect(self) -> list[OperationRecord]:
        database = sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT, isolation_level=None)
        self._database = database
        database.execute("PRAGMA journal_mode=WAL")
        # In WAL mode only FULL makes each commit outlive a power cut.
        database.execute("PRAGMA synchronous=FULL")
        database.execute(_SCHEMA)
        rows = database.execute("SELECT record FROM operations ORDER BY create_time, name")
        return [json.loads(text) for (text,) in rows]

    def _put(self, name: str, create_time: float, text: str) -> None:
        assert self._database is not None
        self._database.execute(
            "INSERT INTO operations VALUES (?, ?, ?)"
            " ON CONFLICT (name) DO UPDATE SET record = excluded.record",
            (name, create_time, text),
        )

    def _remove(self, names: list[str]) -> None:
        assert self._database is not None
        self._database.executemany("DELETE FROM operations WHERE name = ?", [(n,) for n in names])

    def _close(self) -> None:
        self._disconnect()
        self._release()

    def _disconnect(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None
