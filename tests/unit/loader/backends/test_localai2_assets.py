"""LocalAI 2's asset folder: which program llama-cpp is on which machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.loader.backends.backend import Backend
from services.loader.backends.builds import resolve
from services.loader.backends.localai2_assets import AssetRules, BackendAssets, choose_variant

VARIANTS = (
    *("llama-cpp", "llama-cpp-avx2", "llama-cpp-avx", "llama-cpp-fallback", "llama-cpp-cuda"),
    *("llama-cpp-hipblas", "llama-cpp-sycl_16", "llama-cpp-sycl_32", "llama-cpp-grpc"),
)
MODERN = frozenset(("sse4_2", "avx", "avx2"))


def install(folder: Path, *names: str) -> Path:
    programs = folder / "backend-assets" / "grpc"
    programs.mkdir(parents=True, exist_ok=True)
    for name in names:
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o700)
    return folder


def found(folder: Path, rules: AssetRules) -> dict[str, Backend]:
    return {backend.name: backend for backend in BackendAssets(folder, rules).read()}


@pytest.mark.parametrize(
    ("capability", "flags", "there", "chosen"),
    [
        ("default", MODERN, VARIANTS, "llama-cpp-avx2"),
        # LocalAI's own fault: with AVX2 in the processor and no such file it forgot about AVX.
        ("default", MODERN, ("llama-cpp-avx", "llama-cpp-fallback"), "llama-cpp-avx"),
        ("default", {"avx"}, VARIANTS, "llama-cpp-avx"),
        ("default", (), VARIANTS, "llama-cpp"),
        ("default", (), ("llama-cpp-fallback", "llama-cpp-avx2"), "llama-cpp-fallback"),
        ("nvidia-cuda-12", MODERN, VARIANTS, "llama-cpp-cuda"),
        ("nvidia", MODERN, ("llama-cpp-avx2",), "llama-cpp-avx2"),
        ("amd", MODERN, VARIANTS, "llama-cpp-hipblas"),
        ("intel", MODERN, VARIANTS, "llama-cpp-sycl_32"),
        ("intel", MODERN, ("llama-cpp-sycl_16", "llama-cpp-avx"), "llama-cpp-sycl_16"),
        ("vulkan", MODERN, VARIANTS, "llama-cpp-avx2"),
    ],
)
def test_the_variant_for_the_machine(
    tmp_path: Path, capability: str, flags: frozenset[str], there: tuple[str, ...], chosen: str
) -> None:
    install(tmp_path, *there)
    backends = found(tmp_path, AssetRules(capability, frozenset(flags)))
    llama = backends["llama-cpp"]
    assert llama.run_file is not None and llama.run_file.name == chosen and not llama.unusable
    assert chosen in llama.explanation and llama.formats == ("gguf",)
    fallback = "llama-cpp-fallback" in there and chosen != "llama-cpp-fallback"
    assert llama.fallback == ("llama-cpp-fallback" if fallback else "")
    automatic = [name for name, backend in backends.items() if backend.automatic]
    assert automatic == ["llama-cpp"]


def test_half_precision_is_a_variant_of_its_own(tmp_path: Path) -> None:
    names = set(VARIANTS)
    for f16, chosen in ((True, "llama-cpp-sycl_16"), (False, "llama-cpp-sycl_32")):
        variant = choose_variant(names, AssetRules("intel", f16=f16))
        assert variant is not None and variant.name == chosen


def test_nothing_that_runs_here(tmp_path: Path) -> None:
    install(tmp_path, "llama-cpp-avx2", "llama-cpp-cuda", "llama-cpp-grpc")
    llama = found(tmp_path, AssetRules())["llama-cpp"]
    assert "this processor has no AVX2" in llama.error
    assert "llama-cpp-cuda: it needs nvidia" in llama.error


def test_other_machines(tmp_path: Path) -> None:
    install(tmp_path, *VARIANTS)
    llama = found(tmp_path, AssetRules("nvidia", MODERN, grpc_servers="10.0.0.2:50052"))[
        "llama-cpp"
    ]
    assert llama.run_file is not None and llama.run_file.name == "llama-cpp-grpc"
    assert llama.environment == {"LLAMACPP_GRPC_SERVERS": "10.0.0.2:50052"}


def test_without_autodetection_names_mean_what_they_say(tmp_path: Path) -> None:
    install(tmp_path, "llama-cpp-avx2", "llama-cpp-fallback")
    rules = AssetRules(cpu_flags=MODERN, autodetect=False)
    backends = found(tmp_path, rules)
    assert set(backends) == {"llama-cpp-avx2", "llama-cpp-fallback"}
    install(tmp_path, "llama-cpp")
    llama = found(tmp_path, rules)["llama-cpp"]
    assert llama.run_file is not None and llama.run_file.name == "llama-cpp" and not llama.fallback


def test_what_stands_beside_the_programs(tmp_path: Path) -> None:
    install(tmp_path, "piper", "whisper", "whisper.log", "local-store", "huggingface")
    assets = tmp_path / "backend-assets"
    for name in ("lib", "espeak-ng-data"):
        (assets / name).mkdir()
    (tmp_path / "lib").mkdir()
    source = BackendAssets(tmp_path, AssetRules())
    backends = {backend.name: backend for backend in source.read()}
    assert set(backends) == {"piper", "whisper", "local-store", "huggingface"}
    assert not backends["local-store"].automatic and backends["whisper"].automatic
    assert backends["whisper"].library_folders == (assets / "lib", tmp_path / "lib")
    assert backends["piper"].environment == {"ESPEAK_DATA_PATH": str(assets / "espeak-ng-data")}
    assert backends["whisper"].interpreter is None and backends["whisper"].system
    (assets / "lib" / "ld.so").write_bytes(b"")
    assert source.read()[0].interpreter == assets / "lib" / "ld.so"


def test_the_folder_is_followed(tmp_path: Path) -> None:
    source = BackendAssets(tmp_path / "later", AssetRules())
    assert source.read() == [] and "cannot be read" in source.problem()
    install(tmp_path / "later", "llama-cpp-fallback")
    before = source.read()
    assert before[0].name == "llama-cpp" and source.read() is before and source.problem() == ""
    install(tmp_path / "later", "llama-cpp")
    assert source.read()[0].revision != before[0].revision


@given(
    st.sets(st.sampled_from(VARIANTS)),
    st.sampled_from(["default", "nvidia", "amd", "intel", "vulkan", "disable"]),
    st.sets(st.sampled_from(["avx", "avx2"])),
)
def test_a_variant_that_is_not_there_is_never_chosen(
    names: set[str], capability: str, flags: set[str]
) -> None:
    variant = choose_variant(names, AssetRules(capability, frozenset(flags)))
    if variant is None:
        assert not names & {"llama-cpp", "llama-cpp-fallback"}
    else:
        assert variant.name in names


def test_its_names_are_resolved_with_the_others(tmp_path: Path) -> None:
    install(tmp_path, "llama-cpp-avx2", "llama-cpp-fallback")
    resolved = resolve(BackendAssets(tmp_path, AssetRules(cpu_flags=MODERN)).read(), "default")
    llama = resolved.get("llama-cpp")
    assert llama is not None and not llama.chosen and llama.run_file is not None
