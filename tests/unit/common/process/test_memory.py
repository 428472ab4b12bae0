"""How much memory a process keeps that it does not need."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path

import pytest

ARENAS = """
import ctypes, sys, threading
from services.common.process.memory import settle_allocator

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


TIDY = """
import asyncio, json
import psutil
from services.common.process import memory

class Node:
    pass

async def main():
    memory.settle_allocator()
    memory.settle_memory()
    # Small enough for the heap, each in a cycle with itself, and one at the heap's end.
    for _ in range(2000):
        node = Node()
        node.itself, node.message = node, b"x" * 100_000
    last = b"x" * 100_000
    before = psutil.Process().memory_info().rss
    work = asyncio.ensure_future(memory.tidy_up(every=0.01))
    async with asyncio.timeout(20):
        while psutil.Process().memory_info().rss > before / 2:
            await asyncio.sleep(0.01)
    work.cancel()
    print(json.dumps([before, psutil.Process().memory_info().rss, len(last)]))

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc is older than 2.33")
def test_garbage_is_found_and_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", TIDY], check=True, timeout=30, capture_output=True)
    before, after, _ = json.loads(done.stdout)
    assert before > 200_000_000 > 2 * after
