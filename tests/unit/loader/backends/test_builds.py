"""Which of several builds a shared name leads to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.loader.backends.backend import Backend, Source
from services.loader.backends.builds import Resolved, resolve
from services.loader.backends.names import requirements

CAPABILITIES = (
    *("default", "nvidia", "nvidia-cuda-12", "nvidia-cuda-13", "nvidia-l4t", "nvidia-l4t-cuda-13"),
    *("amd", "intel", "vulkan", "metal", "darwin-x86", "disable"),
)
BUILDS = (
    *(
        "cpu-llama-cpp",
        "cuda12-llama-cpp",
        "cuda13-llama-cpp",
        "vulkan-llama-cpp",
        "rocm-llama-cpp",
    ),
    *("intel-sycl-f16-llama-cpp", "metal-llama-cpp", "nvidia-l4t-arm64-llama-cpp", "my-llama"),
    *("cuda13-nvidia-l4t-arm64-llama-cpp", "cpu-llama-cpp-development"),
)


def build(name: str, source: Source = Source.USER, error: str = "") -> Backend:
    return Backend(
        name,
        run_file=Path("/backends", name, "run.sh"),
        source=source,
        folder_name=name,
        group="llama-cpp",
        requires=requirements(name),
        error=error,
        revision=name,
    )


def meta(chosen: str) -> Backend:
    return Backend("llama-cpp", folder_name="llama-cpp", stands_for=chosen, revision="meta")


def leads_to(resolved: Resolved, name: str = "llama-cpp") -> str:
    found = resolved.get(name)
    assert found is not None
    return "" if found.error else found.name


@pytest.mark.parametrize(
    ("capability", "chosen"),
    [
        ("default", "cpu-llama-cpp"),
        ("nvidia", "cuda12-llama-cpp"),
        ("nvidia-cuda-12", "cuda12-llama-cpp"),
        ("nvidia-cuda-13", "cuda13-llama-cpp"),
        ("nvidia-l4t", "nvidia-l4t-arm64-llama-cpp"),
        ("nvidia-l4t-cuda-12", "nvidia-l4t-arm64-llama-cpp"),
        ("nvidia-l4t-cuda-13", "cuda13-nvidia-l4t-arm64-llama-cpp"),
        ("amd", "rocm-llama-cpp"),
        ("intel", "intel-sycl-f16-llama-cpp"),
        ("vulkan", "vulkan-llama-cpp"),
        ("metal", "metal-llama-cpp"),
        ("darwin-x86", "cpu-llama-cpp"),
        ("disable", "cpu-llama-cpp"),
    ],
)
def test_each_machine_gets_its_build(capability: str, chosen: str) -> None:
    resolved = resolve(map(build, sorted(BUILDS)), capability)
    assert leads_to(resolved) == chosen
    listed = resolved.backends["llama-cpp"]
    assert listed.chosen == chosen and capability in listed.explanation
    assert resolved.backends[chosen].aliases == ("llama-cpp",)
    assert set(resolved.backends) == {*BUILDS, "llama-cpp"}


def test_without_a_build_for_the_machine() -> None:
    vulkan, plain, cuda = map(build, ("vulkan-llama-cpp", "my-llama", "cuda12-llama-cpp"))
    assert leads_to(resolve([vulkan, plain, cuda], "default")) == "my-llama"
    assert leads_to(resolve([vulkan, cuda], "default")) == "vulkan-llama-cpp"
    none = resolve([cuda], "default")
    assert leads_to(none) == ""
    error = none.backends["llama-cpp"].error
    assert "cuda12-llama-cpp: it needs nvidia-cuda-12" in error
    assert "LOCALAI_FORCE_META_BACKEND_CAPABILITY" in error
    # By its own name it can be had all the same: detection may be wrong.
    assert leads_to(none, "cuda12-llama-cpp") == "cuda12-llama-cpp"


def test_a_name_never_leads_to_what_cannot_start() -> None:
    """LocalAI takes an alias's first member, though its run.sh be missing."""
    broken = build("cpu-llama-cpp", error="it has no run.sh")
    assert leads_to(resolve([broken, build("vulkan-llama-cpp")], "default")) == "vulkan-llama-cpp"
    assert "no run.sh" in resolve([broken], "default").backends["llama-cpp"].error


def test_a_meta_backend_leads_to_what_was_installed_for_it() -> None:
    cpu, vulkan = build("cpu-llama-cpp"), build("vulkan-llama-cpp")
    assert (
        leads_to(resolve([cpu, vulkan, meta("vulkan-llama-cpp")], "default")) == "vulkan-llama-cpp"
    )
    gone = resolve([cpu, vulkan, meta("rocm-llama-cpp")], "vulkan")
    assert leads_to(gone) == "vulkan-llama-cpp"
    assert "rocm-llama-cpp" in gone.backends["llama-cpp"].explanation
    nothing = resolve([meta("rocm-llama-cpp")], "amd")
    assert "rocm-llama-cpp: it is not installed any more" in nothing.backends["llama-cpp"].error


def test_a_meta_backend_of_development_builds() -> None:
    """Their alias is that of the releases, in LocalAI's index."""
    builds = [build("cpu-llama-cpp"), build("cpu-llama-cpp-development")]
    name = "llama-cpp-development"
    recorded = replace(meta("cpu-llama-cpp-development"), name=name, folder_name=name)
    resolved = resolve([*builds, recorded], "default")
    assert leads_to(resolved, name) == "cpu-llama-cpp-development"
    assert leads_to(resolved) == "cpu-llama-cpp"
    assert leads_to(resolve([builds[0], recorded], "default"), name) == "cpu-llama-cpp"


def test_builds_without_an_alias_are_known_by_their_names() -> None:
    """LocalAI's piper builds have none in its index."""
    found = [replace(build("cpu-piper"), group=""), Backend("piper", stands_for="metal-piper")]
    assert leads_to(resolve(found, "default"), "piper") == "cpu-piper"


def test_a_program_of_that_very_name() -> None:
    bundled = replace(build("llama-cpp", Source.BUNDLED), folder_name="llama_cpp")
    alone = resolve([bundled], "default")
    assert leads_to(alone) == leads_to(alone, "llama_cpp") == "llama-cpp"
    assert list(alone.backends) == ["llama-cpp"] and not alone.backends["llama-cpp"].chosen
    both = resolve([build("cpu-llama-cpp"), bundled], "default")
    assert leads_to(both) == "cpu-llama-cpp"
    assert leads_to(both, "llama_cpp") == "llama_cpp"
    beside_gpu = resolve([build("cuda12-llama-cpp"), bundled], "default")
    assert leads_to(beside_gpu) == "llama-cpp"


def test_the_first_source_wins_and_an_external_one_is_never_hidden() -> None:
    user, system = build("cpu-llama-cpp"), build("cpu-llama-cpp", Source.SYSTEM)
    assert resolve([user, system], "default").backends["cpu-llama-cpp"].source is Source.USER
    external = Backend("llama-cpp", address="127.0.0.1:1", source=Source.EXTERNAL)
    resolved = resolve([external, user, meta("cpu-llama-cpp")], "default")
    assert resolved.backends["llama-cpp"].address and not resolved.backends["llama-cpp"].chosen


@given(
    st.lists(st.sampled_from([*BUILDS, "llama-cpp"]), unique=True),
    st.sets(st.sampled_from(BUILDS)),
    st.none() | st.sampled_from(BUILDS),
    st.sampled_from(CAPABILITIES),
)
def test_names_lead_to_programs_that_can_run(
    names: list[str], broken: set[str], recorded: str | None, capability: str
) -> None:
    found = [build(name, error="broken" if name in broken else "") for name in names]
    if recorded:
        found.append(meta(recorded))
    resolved = resolve(found, capability)
    for name, item in resolved.backends.items():
        assert item.name == name
        if item.chosen:
            target = resolved.backends[item.chosen]
            assert not target.chosen and not target.unusable and target.run_file == item.run_file
            assert name in target.aliases and item.explanation
        elif item.run_file is None:
            assert item.error
        for alias in item.aliases:
            leading = resolved.get(alias)
            assert leading is not None and leading.name == name
    programs = [item.run_file for item in resolved.backends.values() if not item.chosen]
    assert sorted(map(str, filter(None, programs))) == sorted(
        str(b.run_file) for b in found if b.run_file
    )
    if (
        any(not item.unusable for item in resolved.backends.values())
        and "llama-cpp" in resolved.backends
    ):
        assert not resolved.backends["llama-cpp"].error
