"""The event loop that a service is given."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from services.common.binding import StartError
from services.common.runtime import loop_factory


def test_asyncios_own_loop() -> None:
    assert loop_factory("asyncio") is None


@pytest.mark.parametrize("wanted", ["auto", "uvloop"])
def test_uvloop_is_taken_where_it_is(wanted: str) -> None:
    factory = loop_factory(wanted)  # type: ignore[arg-type]
    assert factory is not None
    loop = factory()
    try:
        assert type(loop).__module__.startswith("uvloop")
    finally:
        loop.close()


def test_without_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    with capture_logs() as lines:
        assert loop_factory("auto") is None
    assert "uvloop" in lines[0]["event"]
    with pytest.raises(StartError, match="--event-loop"):
        loop_factory("uvloop")


ARENAS = """
import ctypes, sys, threading
from services.common.runtime import settle_allocator

if sys.argv[2] == "settled":
    settle_allocator()
barrier = threading.Barrier(9)

def hold():
    kept = [bytearray(50_000) for _ in range(100)]
    barrier.wait()
    return kept

threads = [threading.Thread(target=hold) for _ in range(8)]
for thread in threads:
    thread.start()
barrier.wait()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="it is not glibc")
def test_threads_share_one_arena(tmp_path: Path) -> None:
    def arenas(how: str) -> int:
        file = tmp_path / how
        subprocess.run([sys.executable, "-c", ARENAS, file, how], check=True, timeout=30)
        return file.read_text().count("<heap nr=")

    assert arenas("as it is") > 1
    assert arenas("settled") == 1
