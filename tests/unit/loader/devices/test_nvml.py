"""Calls to NVIDIA's library through its real interface; a fake C library has the functions.

No machine that runs the tests has the driver. The library below has the names, argument types and
structures of `nvml.h`; it is compiled when there is a compiler.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from services.loader.devices.nvml import DriverNvml, NoDriverError, NvmlError, read_all

GIB = 1 << 30
SOURCE = """
#include <stdio.h>
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned pid; unsigned long long used; unsigned gi, ci; } process_t;
static int gpus[4] = {0, 1, 2, 3};
static int index_of(void *gpu) { return (int)((int *)gpu - gpus); }

int nvmlInit_v2(void) { return INIT; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 4; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **gpu) {
    if (index == 2) return 15; /* lost */
    *gpu = &gpus[index];
    return 0;
}
int nvmlDeviceGetName(void *gpu, char *name, unsigned length) {
    snprintf(name, length, index_of(gpu) == 3 ? "NVIDIA GB10" : "NVIDIA H100 %d", index_of(gpu));
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *gpu, memory_t *memory) {
    if (index_of(gpu) == 3) return 3; /* not supported */
    memory->total = 80ULL << 30;
    memory->free = 50ULL << 30;
    memory->used = 30ULL << 30;
    return 0;
}
static int list(unsigned *count, process_t *out, const process_t *all, unsigned size) {
    unsigned room = *count;
    *count = size;
    if (size == 0) return 0;
    if (out == NULL || room < size) return 7;
    memcpy(out, all, size * sizeof *all);
    return 0;
}
int nvmlDeviceGetComputeRunningProcesses_VERSION(void *gpu, unsigned *count, process_t *out) {
    static const process_t all[] = {
        {100, 20ULL << 30, 0xFFFFFFFF, 0xFFFFFFFF}, {101, 5, 0, 0}, {102, ~0ULL, 0, 0}};
    return list(count, out, all, index_of(gpu) == 0 ? 3 : 0);
}
int nvmlDeviceGetGraphicsRunningProcesses_VERSION(void *gpu, unsigned *count, process_t *out) {
    static const process_t all[] = {{101, 6, 0, 0}};
    return list(count, out, all, 1);
}
"""


def compiled(folder: Path, *, init: int = 0, version: str = "v3") -> str:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (folder / "nvml.c").write_text(SOURCE.replace("_VERSION", f"_{version}"))
    library = folder / "libnvml.so"
    command = [
        compiler,
        "-shared",
        "-fPIC",
        f"-DINIT={init}",
        "-o",
        str(library),
        str(folder / "nvml.c"),
    ]
    subprocess.run(command, check=True, timeout=50)
    return str(library)


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_the_whole_of_it(tmp_path: Path, version: str) -> None:
    count, (first, second) = read_all(DriverNvml(compiled(tmp_path, version=version)))
    assert count == 4
    assert (first.index, first.name) == (0, "NVIDIA H100 0")
    assert (first.total, first.free) == (80 * GIB, 50 * GIB)
    assert first.processes == {100: 20 * GIB, 101: 6}
    assert (second.index, second.processes) == (1, {101: 6})


def test_a_driver_that_does_not_tell_processes(tmp_path: Path) -> None:
    _, (first, _) = read_all(DriverNvml(compiled(tmp_path, version="v1")))
    assert first.total == 80 * GIB
    assert first.processes == {}


def test_a_driver_that_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(NvmlError, match="nvmlInit_v2 answered 18"):
        DriverNvml(compiled(tmp_path, init=18))


def test_no_driver() -> None:
    with pytest.raises(NoDriverError):
        DriverNvml("libnvidia-ml-that-is-not-there.so.1")
