"""Records of processes: what is written is read again, and what is broken goes without harm."""

from __future__ import annotations

import json
import stat
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.loader.processes.registry import ProcessRecord, ProcessRegistry

UID = "0123456789abcdef" * 2
LOADER = "f" * 32
TEXT = st.text(min_size=1, alphabet=st.characters(exclude_categories=["Cs"]))
RECORDS = st.builds(
    ProcessRecord,
    uid=st.just(UID),
    pid=st.integers(2, 2**31 - 1),
    birth=TEXT,
    loader=st.uuids().map(lambda u: u.hex),
    model=TEXT,
    backend=TEXT,
    address=TEXT,
    token=TEXT,
    model_revision=TEXT,
    load_message=TEXT,
    generation=st.integers(0, 2**63 - 1),
    started=st.floats(0, 1e12),
    ready=st.none() | st.floats(0, 1e12),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
EVERY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)


def registry(folder: Path) -> ProcessRegistry:
    made = ProcessRegistry(folder, uuid.uuid4().hex)
    made.open()
    return made


def file_of(folder: Path, uid: str = UID) -> Path:
    return folder / "instances" / f"{uid}.json"


@EVERY
@given(record=RECORDS)
def test_what_is_written_is_read(tmp_path: Path, record: ProcessRecord) -> None:
    made = ProcessRegistry(tmp_path, LOADER)
    assert made.open() == (set(), [])
    assert made.write(record)
    assert made.open() == (set(), [record])
    made.remove(record.uid)


@EVERY
@given(content=st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_a_broken_record_is_removed(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    made = ProcessRegistry(tmp_path, LOADER)
    made.open()
    file_of(tmp_path).write_bytes(content)
    assert made.open()[1] == []
    assert not file_of(tmp_path).exists()


@EVERY
@given(
    record=RECORDS, field=st.sampled_from(sorted(ProcessRecord.model_fields)), value=JSON, cut=...
)
def test_a_damaged_record_is_whole_or_nothing(
    tmp_path: Path, record: ProcessRecord, field: str, value: Any, cut: bool
) -> None:
    made = ProcessRegistry(tmp_path, LOADER)
    made.open()
    made.write(record)
    changed = json.dumps({**json.loads(file_of(tmp_path).read_text()), field: value})
    file_of(tmp_path).write_text(changed[: len(changed) // 2] if cut else changed)
    _, records = made.open()
    for found in records:
        assert not cut and found.uid == UID and found.pid > 1
        assert isinstance(getattr(found, field), type(value)) or isinstance(value, int)
    assert bool(records) == file_of(tmp_path).exists()


def test_others_that_lie_there_are_removed(tmp_path: Path) -> None:
    registry(tmp_path)
    folder = tmp_path / "instances"
    (folder / f"{UID}.new").write_text("half of a re")
    (folder / "x.json").write_text("{}")
    (folder / f"{'f' * 32}.json").write_text(" " * 300_000)
    assert registry(tmp_path).open()[1] == []
    assert list(folder.iterdir()) == []


def test_a_record_under_another_name_is_not_believed(tmp_path: Path) -> None:
    made = registry(tmp_path)
    made.write(RECORD)
    file_of(tmp_path).rename(file_of(tmp_path, "f" * 32))
    assert registry(tmp_path).open()[1] == []


RECORD = ProcessRecord(
    uid=UID,
    pid=4711,
    birth="boot/1",
    loader=UID,
    model="m",
    model_revision="1",
    backend="b",
    backend_revision="1",
    run_file="/b/run.sh",
    address="unix:/s",
    token="secret-token",
    generation=3,
    started=1.0,
    ready=2.0,
    load_message="Loading succeeded",
    adoptable=True,
)


def test_only_the_user_can_read_it(tmp_path: Path) -> None:
    registry(tmp_path).write(RECORD)
    assert stat.S_IMODE(file_of(tmp_path).stat().st_mode) == 0o600
    assert stat.S_IMODE(file_of(tmp_path).parent.stat().st_mode) == 0o700
    assert "secret-token" not in repr(RECORD)


def test_a_folder_that_cannot_be_written_to_is_no_reason_to_fail(tmp_path: Path) -> None:
    made = registry(tmp_path)
    (tmp_path / "instances").rmdir()
    (tmp_path / "instances").write_text("in its place")
    assert made.write(RECORD) is False
    made.remove(UID)


def test_a_loader_stays_known_until_nothing_of_it_is_left(tmp_path: Path) -> None:
    made = registry(tmp_path)
    made.write(RECORD)
    made.close()
    later = ProcessRegistry(tmp_path, uuid.uuid4().hex)
    assert later.open() == ({made.loader}, [RECORD])
    later.forget({made.loader})
    later.remove(UID)
    later.close()
    assert ProcessRegistry(tmp_path, uuid.uuid4().hex).open() == (set(), [])
