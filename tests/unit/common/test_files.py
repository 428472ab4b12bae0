import os
from pathlib import Path

import pytest

from services.common.files import file_stamp, stamp_of, write_atomically


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("content", ["grün\n", "grün\n".encode()])
def test_a_file_is_written_whole_in_a_new_folder(
    tmp_path: Path, content: str | bytes, durable: bool
) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_atomically(path, "old")
    write_atomically(path, content, durable=durable)
    assert path.read_bytes() == "grün\n".encode()
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(path.parent) == ["file"]


def test_the_mode_is_subject_to_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", "x", mode=0o666)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    (path / "in the way").mkdir(parents=True)
    with pytest.raises(OSError):
        write_atomically(path, "new")
    assert os.listdir(tmp_path) == ["file"]


def test_a_stamp_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert file_stamp(path) is None
    assert file_stamp("a\0b") is None
    path.write_text("one")
    stamp = file_stamp(path)
    assert stamp == stamp_of(path.stat()) == file_stamp(str(path))
    write_atomically(path, "two")
    assert file_stamp(path) != stamp
