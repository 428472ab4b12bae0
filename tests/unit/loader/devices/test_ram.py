"""Main memory and control groups, from files as kernels and containers write them."""

import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.loader.devices.ram import Group, parse_membership, parse_meminfo, read_ram, tightest
from tests.tools.kernel_files import write_files

GIB = 1 << 30
NO_LIMIT = 2**63 - 4096


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    write_files(
        tmp_path / "proc",
        {"meminfo": f"MemTotal: {16 * 1024**2} kB\nMemFree: 5 kB\nMemAvailable: {8 * 1024**2} kB"},
    )
    return tmp_path / "proc"


@pytest.fixture
def cgroup(tmp_path: Path) -> Path:
    return tmp_path / "cgroup"


def test_this_machine() -> None:
    ram = read_ram(Path("/proc"), Path("/sys/fs/cgroup"))
    assert 0 < ram.available <= ram.total <= psutil.virtual_memory().total


def test_it_is_quick() -> None:
    def once() -> float:
        began = time.perf_counter()
        read_ram(Path("/proc"), Path("/sys/fs/cgroup"))
        return time.perf_counter() - began

    assert min(once() for _ in range(50)) < 0.002


def test_without_control_groups(proc: Path, cgroup: Path) -> None:
    ram = read_ram(proc, cgroup)
    assert (ram.total, ram.available, ram.limited_by) == (16 * GIB, 8 * GIB, "")


def test_without_any_file(tmp_path: Path) -> None:
    ram = read_ram(tmp_path / "a", tmp_path / "b")
    assert 0 < ram.available <= ram.total


def test_kernels_without_available() -> None:
    text = "MemTotal: 100 kB\nMemFree: 10 kB\nBuffers: 5 kB\nCached: 20 kB\n"
    assert parse_meminfo(text) == (100 * 1024, 35 * 1024)


def test_version_2(proc: Path, cgroup: Path) -> None:
    write_files(proc, {"self/cgroup": "0::/box"})
    write_files(
        cgroup,
        {
            "box/memory.max": 4 * GIB,
            "box/memory.current": 3 * GIB,
            "box/memory.stat": f"anon 5\ninactive_file {GIB}\nactive_file 7",
        },
    )
    ram = read_ram(proc, cgroup)
    assert (ram.total, ram.available) == (4 * GIB, 2 * GIB)
    assert ram.limited_by == str(cgroup / "box")


def test_the_tightest_group_above_counts(proc: Path, cgroup: Path) -> None:
    write_files(proc, {"self/cgroup": "0::/pod/box"})
    write_files(
        cgroup,
        {
            "pod/memory.max": 2 * GIB,
            "pod/memory.current": 2 * GIB - 5,
            "pod/box/memory.max": 4 * GIB,
            "pod/box/memory.current": 0,
        },
    )
    ram = read_ram(proc, cgroup)
    assert (ram.total, ram.available) == (2 * GIB, 5)


def test_a_group_above_may_have_less_left_than_a_tighter_one(proc: Path, cgroup: Path) -> None:
    write_files(proc, {"self/cgroup": "0::/pod/box"})
    write_files(
        cgroup,
        {
            "pod/memory.max": 4 * GIB,
            "pod/memory.current": 4 * GIB - 7,
            "pod/box/memory.max": 2 * GIB,
            "pod/box/memory.current": 0,
        },
    )
    ram = read_ram(proc, cgroup)
    assert (ram.total, ram.available) == (2 * GIB, 7)


def test_max_is_no_limit(proc: Path, cgroup: Path) -> None:
    write_files(proc, {"self/cgroup": "0::/box"})
    write_files(cgroup, {"box/memory.max": "max", "box/memory.current": 3 * GIB})
    assert read_ram(proc, cgroup).total == 16 * GIB


@pytest.mark.parametrize("path", ["/docker/1234", "/../../elsewhere", "/", ""])
def test_a_container_sees_its_group_as_the_root(proc: Path, cgroup: Path, path: str) -> None:
    write_files(proc, {"self/cgroup": f"0::{path}"})
    write_files(cgroup, {"memory.max": GIB, "memory.current": 1})
    assert read_ram(proc, cgroup).available == GIB - 1


def test_version_1(proc: Path, cgroup: Path) -> None:
    write_files(proc, {"self/cgroup": "12:cpu,cpuacct:/x\n4:memory:/docker/1\n0::/"})
    write_files(
        cgroup / "memory",
        {
            "memory.limit_in_bytes": NO_LIMIT,
            "memory.usage_in_bytes": 9 * GIB,
            "docker/1/memory.limit_in_bytes": 3 * GIB,
            "docker/1/memory.usage_in_bytes": 2 * GIB,
            "docker/1/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB}",
        },
    )
    ram = read_ram(proc, cgroup)
    assert (ram.total, ram.available) == (3 * GIB, 2 * GIB)


def test_version_1_without_a_limit(proc: Path, cgroup: Path) -> None:
    write_files(proc, {"self/cgroup": "4:memory:/"})
    write_files(
        cgroup / "memory", {"memory.limit_in_bytes": NO_LIMIT, "memory.usage_in_bytes": 10**18}
    )
    ram = read_ram(proc, cgroup)
    assert (ram.total, ram.available, ram.limited_by) == (16 * GIB, 8 * GIB, "")


def test_both_versions_side_by_side(proc: Path, cgroup: Path) -> None:
    write_files(proc, {"self/cgroup": "4:memory:/a\n0::/b"})
    write_files(
        cgroup, {"memory/a/memory.limit_in_bytes": 3 * GIB, "unified/b/memory.max": 2 * GIB}
    )
    assert read_ram(proc, cgroup).total == 2 * GIB


def test_membership() -> None:
    assert parse_membership("5:cpu:/c\n4:hugetlb,memory:/m:x\n0::/u\n") == ("/u", "/m:x")
    assert parse_membership("nonsense") == (None, None)


sizes = st.integers(0, 2**63)
groups = st.builds(Group, st.just("g"), sizes, sizes, sizes)


@given(sizes, sizes, st.lists(groups, max_size=5))
def test_no_group_gives_more_than_it_may(total: int, available: int, found: list[Group]) -> None:
    ram = tightest(total, available, found)
    assert 0 <= ram.available <= ram.total <= total
    assert ram.available <= available
    for group in found:
        assert ram.total <= group.limit
        assert ram.available <= group.available


short = st.text("0123456789-+ max:/.\0\n\u00b2\ud800kB", max_size=20)
figures = st.integers(-5, 2**70).map(str) | st.sampled_from(["max", "9" * 5000]) | short
keys = st.sampled_from(["MemTotal:", "MemAvailable:", "inactive_file", "0::/", "4:memory:/"])
lines = st.builds("{} {} kB".format, keys, figures) | st.builds("{}{}".format, keys, short)
contents = st.one_of(
    st.binary(max_size=40),
    figures.map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(lines, max_size=4).map(lambda each: "\n".join(each).encode("utf-8", "surrogatepass")),
)
NAMES = (
    *("proc/meminfo", "proc/self/cgroup", "cgroup/memory.max", "cgroup/memory.current"),
    *("cgroup/memory.stat", "cgroup/memory/memory.limit_in_bytes"),
    "cgroup/memory/memory.usage_in_bytes",
)


@given(st.dictionaries(st.sampled_from(NAMES), contents))
def test_no_file_makes_it_fail(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> None:
    root = tmp_path_factory.mktemp("files")
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    ram = read_ram(root / "proc", root / "cgroup")
    assert 0 <= ram.available <= ram.total
