"""Capabilities, from folders that look like other machines."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.loader.devices.capability import (
    DISABLE,
    FORCE,
    RUN_FILE,
    Machine,
    cpu_flags,
    detect,
    gpu_vendor,
    parse_cpu_flags,
)
from services.loader.devices.gpus import Gpu
from tests.tools.kernel_files import write_files

GIB = 1 << 30
NVIDIA, AMD, INTEL, MATROX = "0x10de", "0x1002", "0x8086", "0x102b"


def machine(
    root: Path, environ: Mapping[str, str] | None = None, *, vram: int = 0, arm: bool = False
) -> Machine:
    return Machine(
        environ or {},
        gpus=(Gpu("gpu0", "nvidia", "", vram, vram),) if vram else (),
        ram=8 * GIB,
        system="Linux",
        processor="aarch64" if arm else "x86_64",
        root=root,
    )


def pci(root: Path, *vendors: str, kind: str = "0x030000") -> None:
    for number, vendor in enumerate(vendors):
        device = f"sys/bus/pci/devices/0000:0{number}:00.0"
        write_files(root, {f"{device}/vendor": vendor, f"{device}/class": kind})


def cuda(root: Path, *versions: int) -> None:
    for version in versions:
        (root / f"usr/local/cuda-{version}").mkdir(parents=True)


def name(found: Machine) -> str:
    capability = detect(found)
    assert capability.why
    return capability.name


def test_this_machine() -> None:
    assert name(Machine({}))


def test_forced_is_verbatim(tmp_path: Path) -> None:
    write_files(tmp_path, {"run/localai/capability": "amd"})
    assert name(machine(tmp_path, {FORCE: " any thing"})) == " any thing"


def test_disabled(tmp_path: Path) -> None:
    assert detect(machine(tmp_path, {FORCE: "disable"})).name == DISABLE
    assert detect(machine(tmp_path)).name != DISABLE


def test_the_run_file(tmp_path: Path) -> None:
    write_files(tmp_path, {"run/localai/capability": "  nvidia-cuda-12 \n", "other": "intel"})
    assert name(machine(tmp_path)) == "nvidia-cuda-12"
    assert name(machine(tmp_path, {RUN_FILE: str(tmp_path / "other")})) == "intel"
    assert name(machine(tmp_path, {RUN_FILE: str(tmp_path / "none")})) == "default"
    assert name(machine(tmp_path, {FORCE: ""})) == "nvidia-cuda-12"


def test_an_empty_run_file_says_nothing(tmp_path: Path) -> None:
    write_files(tmp_path, {"run/localai/capability": " "})
    assert name(machine(tmp_path)) == "default"


@pytest.mark.parametrize(("processor", "expected"), [("arm64", "metal"), ("x86_64", "darwin-x86")])
def test_macos(tmp_path: Path, processor: str, expected: str) -> None:
    assert name(Machine({}, system="Darwin", processor=processor, root=tmp_path)) == expected


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ((), "nvidia-l4t"),
        ((12,), "nvidia-l4t-cuda-12"),
        ((13,), "nvidia-l4t-cuda-13"),
        ((12, 13), "nvidia-l4t-cuda-13"),
    ],
)
def test_nvidia_on_arm_needs_no_memory_of_its_own(
    tmp_path: Path, versions: tuple[int, ...], expected: str
) -> None:
    write_files(tmp_path, {"proc/device-tree/compatible": "nvidia,p3737\0nvidia,tegra234\0"})
    cuda(tmp_path, *versions)
    assert name(machine(tmp_path, arm=True)) == expected


def test_another_make_on_arm(tmp_path: Path) -> None:
    pci(tmp_path, AMD)
    # A driver reports an nvidia GPU.
    assert name(machine(tmp_path, arm=True, vram=8 * GIB)) == "nvidia-l4t"
    assert name(machine(tmp_path, arm=True)) == "default"


def test_no_gpu(tmp_path: Path) -> None:
    pci(tmp_path, MATROX)
    assert detect(machine(tmp_path)).why == "no GPU found"


@pytest.mark.parametrize(("vram", "expected"), [(4 * GIB, "default"), (4 * GIB + 1, "nvidia")])
def test_little_memory(tmp_path: Path, vram: int, expected: str) -> None:
    pci(tmp_path, NVIDIA)
    assert name(machine(tmp_path, vram=vram)) == expected


def test_memory_counts_over_all_gpus(tmp_path: Path) -> None:
    one = machine(tmp_path, vram=3 * GIB)
    assert name(dataclasses.replace(one, gpus=[*one.gpus, *one.gpus])) == "nvidia"


def test_memory_that_is_not_known(tmp_path: Path) -> None:
    pci(tmp_path, INTEL)
    found = detect(machine(tmp_path))
    assert found.name == "default"
    assert "the intel GPU reports no memory" in found.why
    assert f"set {FORCE}=intel" in found.why


@pytest.mark.parametrize(
    ("versions", "expected"),
    [((), "nvidia"), ((12,), "nvidia-cuda-12"), ((12, 13), "nvidia-cuda-13"), ((11,), "nvidia")],
)
def test_nvidia(tmp_path: Path, versions: tuple[int, ...], expected: str) -> None:
    cuda(tmp_path, *versions)
    assert name(machine(tmp_path, vram=8 * GIB)) == expected


@pytest.mark.parametrize(("vendor", "expected"), [(AMD, "amd"), (INTEL, "intel")])
def test_other_makes(tmp_path: Path, vendor: str, expected: str) -> None:
    pci(tmp_path, MATROX, vendor, kind="0x038000")
    cuda(tmp_path, 12)
    gpus = (Gpu("gpu0", expected, "", 16 * GIB, 0),)
    assert name(dataclasses.replace(machine(tmp_path), gpus=gpus)) == expected


def test_which_of_several(tmp_path: Path) -> None:
    pci(tmp_path, INTEL, AMD)
    assert gpu_vendor(machine(tmp_path)) == "amd"
    write_files(tmp_path, {"proc/driver/nvidia/gpus/0000:05:00.0/information": "Model: x"})
    assert gpu_vendor(machine(tmp_path)) == "nvidia"


def test_a_chip_that_is_no_display(tmp_path: Path) -> None:
    pci(tmp_path, INTEL, kind="0x060000")
    assert gpu_vendor(machine(tmp_path)) == ""


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"sys/class/drm/renderD128/dev": "", "usr/share/vulkan/icd.d/panfrost.json": ""},
            "vulkan",
        ),
        ({"sys/class/drm/renderD128/dev": "", "etc/vulkan/icd.d/x.json": ""}, "vulkan"),
        ({"sys/class/drm/card0/dev": "", "etc/vulkan/icd.d/x.json": ""}, "default"),
        ({"sys/class/drm/renderD128/dev": ""}, "default"),
        (
            {"sys/class/drm/renderD128/dev": "", "etc/vulkan/icd.d/lvp_icd.x86_64.json": ""},
            "default",
        ),
        (
            {"sys/class/drm/renderD128/device/vendor": "0x1af4", "etc/vulkan/icd.d/x.json": ""},
            "default",
        ),
    ],
)
def test_vulkan(tmp_path: Path, files: dict[str, object], expected: str) -> None:
    write_files(tmp_path, files)
    assert name(machine(tmp_path)) == expected


def test_vulkan_shares_the_main_memory(tmp_path: Path) -> None:
    write_files(tmp_path, {"sys/class/drm/renderD128/dev": "", "etc/vulkan/icd.d/x.json": ""})
    assert name(dataclasses.replace(machine(tmp_path), ram=4 * GIB)) == "default"


def test_processors() -> None:
    x86 = "processor\t: 0\nflags\t\t: fpu avx avx2 f16c fma\n\nprocessor : 1\nflags : fpu avx fma\n"
    assert parse_cpu_flags(x86) == {"fpu", "avx", "fma"}
    arm = "processor\t: 0\nFeatures\t: fp asimd evtstrm\nCPU part: 0xd0c\n"
    assert parse_cpu_flags(arm) == {"fp", "asimd", "neon", "evtstrm"}
    assert parse_cpu_flags("Features : half neon") == {"half", "neon"}


def test_processors_of_this_machine(tmp_path: Path) -> None:
    assert cpu_flags() & {"sse2", "neon"}
    assert cpu_flags(tmp_path / "none") == frozenset()


@given(st.text("flagsFeatures :\n\t avx", max_size=60))
def test_no_text_makes_it_fail(text: str) -> None:
    assert all(flag == flag.lower().strip() for flag in parse_cpu_flags(text))
