import os
from pathlib import Path

import pytest

from services.common.file_lock import FileLock


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with FileLock(path) as first, FileLock(path) as second:
        assert first.acquire()
        assert second.pid() == ""
        first.write_pid()
        assert not second.acquire()
        assert second.pid() == str(os.getpid())
        first.close()
        assert second.acquire()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_shorter_process_id_leaves_nothing_of_a_longer_one(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("99999999999\n")
    with FileLock(path) as lock:
        lock.write_pid()
        assert lock.pid() == str(os.getpid())


def test_a_folder_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileLock(tmp_path / "missing" / "lock")
