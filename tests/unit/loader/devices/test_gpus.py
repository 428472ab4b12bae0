"""All GPUs together. NVIDIA's library is a fake, as no test machine has the driver."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from services.loader.devices.devices import LocalDevices
from services.loader.devices.gpus import Gpu, Gpus, NvidiaDriver
from services.loader.devices.nvml import NoDriverError, NvmlError
from tests.tools.kernel_files import amd_files, graphics_card, open_file
from tests.tools.waiting import eventually_sync

GIB = 1 << 30


class Library:
    """A fake driver with two GPUs, which fail or hang on request."""

    def __init__(self) -> None:
        self.asked = self.opened = 0
        self.error: NvmlError | None = None
        self.answers = threading.Event()
        self.answers.set()

    def open(self) -> "Library":
        self.opened += 1
        self._maybe_fail()
        return self

    def _maybe_fail(self) -> None:
        self.answers.wait(30)
        if self.error is not None:
            raise self.error

    def count(self) -> int:
        self.asked += 1
        self._maybe_fail()
        return 2

    def name(self, index: int) -> str:
        return f"GPU {index}"

    def memory(self, index: int) -> tuple[int, int] | None:
        return 80 * GIB, 50 * GIB - self.asked

    def processes(self, index: int) -> list[tuple[int, int]]:
        return [(7, 100), (8, 10), (7, 90)] if index else [(9, 5)]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def library() -> Iterator[Library]:
    made = Library()
    yield made
    made.answers.set()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def gpus(library: Library, clock: Clock, tmp_path: Path) -> Gpus:
    driver = NvidiaDriver(library.open, timeout=0.05, retry=60, clock=clock)
    return Gpus(driver, proc=tmp_path / "proc", drm=tmp_path / "drm")


def asking() -> int:
    return sum(thread.name == "nvml" for thread in threading.enumerate())


def free(gpus: Gpus) -> list[int]:
    return [50 * GIB - gpu.available for gpu in gpus.read()]


def test_this_machine() -> None:
    for gpu in Gpus().read():
        assert 0 <= gpu.available <= gpu.total


def test_figures(gpus: Gpus) -> None:
    assert gpus.read() == (
        Gpu("gpu0", "nvidia", "GPU 0", 80 * GIB, 50 * GIB - 1),
        Gpu("gpu1", "nvidia", "GPU 1", 80 * GIB, 50 * GIB - 1),
    )


def test_figures_are_kept_for_a_moment(gpus: Gpus, clock: Clock, library: Library) -> None:
    assert free(gpus) == free(gpus) == [1, 1]
    clock.now = 1.5
    assert free(gpus) == [2, 2]
    assert library.opened == 1


def test_use_by_process(gpus: Gpus) -> None:
    assert gpus.used_by([7, 8]) == {"gpu1": 110}
    assert gpus.used_by([7, 7, 9]) == {"gpu0": 5, "gpu1": 100}
    assert gpus.used_by([1]) == {}


def test_use_is_asked_afresh(gpus: Gpus, clock: Clock, library: Library) -> None:
    gpus.read()
    clock.now = 0.5
    gpus.used_by([7])
    assert library.asked == 2


def test_no_driver(gpus: Gpus, clock: Clock, library: Library) -> None:
    library.error = NoDriverError("none")
    with capture_logs() as logs:
        assert gpus.read() == () == gpus.read()
        assert library.opened == 1
        clock.now = 61
        assert gpus.read() == ()
        assert library.opened == 2
    assert not logs
    clock.now, library.error = 122, None
    assert len(gpus.read()) == 2


def test_a_driver_that_fails_is_left_alone_and_its_last_figures_stay(
    gpus: Gpus, clock: Clock, library: Library
) -> None:
    before = gpus.read()
    library.error = NvmlError("it broke")
    with capture_logs() as logs:
        for now in (10, 30, 69, 71, 100, 133):
            clock.now = now
            assert gpus.read() == before
    assert library.asked == 2
    assert library.opened == 3
    assert [(entry["log_level"], entry["error"]) for entry in logs] == [("warning", "it broke")]
    library.error = None
    clock.now = 200
    assert free(gpus) == [3, 3]


def test_a_driver_that_hangs_delays_once(gpus: Gpus, clock: Clock, library: Library) -> None:
    before = gpus.read()
    library.answers.clear()
    for now in range(10, 1000, 10):
        clock.now = now
        assert gpus.read() == before
    assert library.asked == 2
    eventually_sync(lambda: asking() == 1, what="no thread except the hanging one")
    library.answers.set()
    eventually_sync(lambda: asking() == 0, what="the end of the hanging thread")
    clock.now = 2000
    assert free(gpus) == [3, 3]


def test_other_makes_come_after(gpus: Gpus, tmp_path: Path) -> None:
    graphics_card(tmp_path, 3, amd_files(24 * GIB, GIB))
    fdinfo = "drm-client-id: 1\ndrm-pdev: 0000:03:00.0\ndrm-memory-vram: 2 MiB\n"
    open_file(tmp_path / "proc", 7, 4, "/dev/dri/renderD128", fdinfo)
    assert gpus.read()[2] == Gpu("gpu2", "amd", "AMD GPU 0x744c", 24 * GIB, 23 * GIB)
    assert gpus.used_by([7]) == {"gpu1": 100, "gpu2": 2 << 20}


def test_a_gpu_that_is_lost_or_shares_the_main_memory(
    gpus: Gpus, library: Library, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    graphics_card(tmp_path, 0, amd_files(GIB, 0))
    monkeypatch.setattr(library, "memory", lambda index: (GIB, 5) if index else None)
    assert [gpu.name for gpu in gpus.read()] == ["gpu1", "gpu2"]


@pytest.mark.parametrize("name", ["NVIDIA GB10", "Orin (nvgpu)", "NVIDIA Tegra X1", "Jetson Thor"])
def test_known_to_share_the_main_memory(
    gpus: Gpus, library: Library, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(library, "name", lambda index: name)
    assert gpus.read() == ()


def test_devices(gpus: Gpus, tmp_path: Path) -> None:
    ram, *others = LocalDevices(gpus).read()
    assert ram.name == "ram"
    assert ram.description.startswith("main memory")
    assert 0 < ram.available <= ram.total
    assert [(each.name, each.description) for each in others] == [
        ("gpu0", "GPU 0"),
        ("gpu1", "GPU 1"),
    ]


def test_a_limit_is_told(gpus: Gpus, tmp_path: Path) -> None:
    (tmp_path / "cgroup").mkdir()
    (tmp_path / "cgroup" / "memory.max").write_text("4096")
    ram = LocalDevices(gpus, cgroup=tmp_path / "cgroup").read()[0]
    assert (ram.total, ram.available) == (4096, 4096)
    assert ram.description == f"main memory, limited by {tmp_path / 'cgroup'}"
