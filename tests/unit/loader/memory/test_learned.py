"""What models needed before: kept, bounded, and never in the way."""

import json
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from services.loader.memory.learned import FootprintKey, Footprints, merged
from tests.tools.waiting import eventually_sync

KEY = FootprintKey("tiny", "r1", "llama-cpp")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "footprints.json"


def timers() -> list[threading.Timer]:
    return [
        thread
        for thread in threading.enumerate()
        if isinstance(thread, threading.Timer) and thread.interval == 3600
    ]


def test_nothing_is_known_at_first(path: Path) -> None:
    assert Footprints(path).get(KEY) is None


def test_they_outlive_a_restart(path: Path) -> None:
    first = Footprints(path)
    first.learn(KEY, {"ram": 100, "gpu0": 7})
    first.close()
    assert Footprints(path).get(KEY) == {"ram": 100, "gpu0": 7}
    assert Footprints(path).get(KEY._replace(revision="r2")) is None
    assert Footprints(path).get(KEY._replace(backend="other")) is None
    assert [file.name for file in path.parent.iterdir()] == ["footprints.json"]


def test_they_are_written_in_time_without_a_close(path: Path) -> None:
    footprints = Footprints(path, write_interval=0.02)
    for size in range(100):
        footprints.learn(KEY, {"ram": size})
    eventually_sync(path.exists, what="the file")
    footprints.learn(KEY, {"ram": 1000})
    eventually_sync(lambda: Footprints(path).get(KEY) == {"ram": 1000}, what="the second write")
    footprints.close()


def test_many_changes_are_one_write(path: Path) -> None:
    footprints = Footprints(path, write_interval=3600)
    for size in range(100):
        footprints.learn(KEY, {"ram": size})
    (timer,) = timers()
    assert not path.exists()
    footprints.close()
    footprints.close()
    assert Footprints(path).get(KEY) == {"ram": 99}
    eventually_sync(lambda: timer not in timers(), what="the end of the timer")


def test_it_rises_at_once_and_falls_slowly(path: Path) -> None:
    footprints = Footprints(path)
    footprints.learn(KEY, {"ram": 100})
    footprints.learn(KEY, {"ram": 200})
    assert footprints.get(KEY) == {"ram": 200}
    footprints.learn(KEY, {"ram": 100})
    assert footprints.get(KEY) == {"ram": 180}
    footprints.close()


def test_what_was_not_measured_stays(path: Path) -> None:
    footprints = Footprints(path)
    footprints.learn(KEY, {"ram": 100, "gpu0": 50})
    footprints.learn(KEY, {"ram": 100})
    footprints.learn(KEY, {})
    assert footprints.get(KEY) == {"ram": 100, "gpu0": 50}
    footprints.close()


def test_the_number_is_bounded(path: Path) -> None:
    footprints = Footprints(path, max_entries=3)
    for number in range(4):
        footprints.learn(KEY._replace(model=str(number)), {"ram": 1})
    footprints.learn(KEY._replace(model="1"), {"ram": 1})
    footprints.learn(KEY._replace(model="4"), {"ram": 1})
    footprints.close()
    assert {item["model"] for item in json.loads(path.read_text())["footprints"]} == {"3", "1", "4"}
    smaller = Footprints(path, max_entries=1)
    assert smaller.get(KEY._replace(model="3")) is None
    assert smaller.get(KEY._replace(model="4")) == {"ram": 1}


@pytest.mark.parametrize(
    "content",
    [
        *(
            "",
            "{",
            "[]",
            "null",
            "7",
            '{"version": 2, "footprints": []}',
            '{"version": 1}',
            "[" * 10**5,
        ),
        '{"version": 1, "footprints": [{"model": "m"}]}',
        '{"version": 1, "footprints": [{"model":"m","revision":"r","backend":"b","bytes":{"ram":"x"}}]}',
        '{"version": 1, "footprints": [{"model":"m","revision":"r","backend":"b","bytes":{"ram":-1}}]}',
        '{"version": 1, "footprints": [{"model":[],"revision":"r","backend":"b","bytes":{"ram":1}}]}',
        '{"version": 1, "footprints": [{"model":"m","revision":"r","backend":"b","bytes":[1]}]}',
        '{"version": 1, "footprints": 5}',
        b"\xff\xfe",
    ],
)
def test_a_broken_file_is_told_and_replaced(path: Path, content: str | bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with capture_logs() as logs:
        footprints = Footprints(path)
    assert [entry["log_level"] for entry in logs] == ["warning"]
    assert footprints.get(KEY) is None
    footprints.learn(KEY, {"ram": 5})
    footprints.close()
    assert Footprints(path).get(KEY) == {"ram": 5}


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch(stat.S_IRUSR)
    footprints = Footprints(tmp_path / "file" / "footprints.json")
    footprints.learn(KEY, {"ram": 5})
    with capture_logs() as logs:
        footprints.close()
    assert [entry["log_level"] for entry in logs] == ["warning"]
    assert footprints.get(KEY) == {"ram": 5}


sizes = st.integers(0, 2**50)


@given(sizes, sizes)
def test_a_figure_is_between_the_old_and_the_new(before: int, measured: int) -> None:
    assert measured <= merged(before, measured) <= max(before, measured)
    assert merged(None, measured) == measured


@given(sizes, sizes)
def test_a_figure_comes_down_in_the_end(before: int, measured: int) -> None:
    figure = before
    for _ in range(60):
        figure = merged(figure, measured)
    assert figure <= measured + max(before - measured, 0) // 10**5 + 3


names = st.text(max_size=10)


@given(
    st.dictionaries(
        st.builds(FootprintKey, names, names, names),
        st.dictionaries(names, sizes, min_size=1, max_size=3),
        max_size=5,
    )
)
def test_any_names_survive(
    tmp_path_factory: pytest.TempPathFactory,
    entries: dict[FootprintKey, dict[str, int]],
) -> None:
    path = tmp_path_factory.mktemp("state") / "footprints.json"
    footprints = Footprints(path, write_interval=3600)
    for key, measured in entries.items():
        footprints.learn(key, measured)
    footprints.close()
    again = Footprints(path)
    for key, measured in entries.items():
        assert again.get(key) == measured
