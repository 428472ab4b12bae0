"""The asset folder of LocalAI 2: one program a backend, and llama.cpp in a variant for each hardware.

`<folder>/backend-assets/grpc/<name>` is the program, `backend-assets/lib` has its shared libraries and
perhaps their own loader, `ld.so`, `backend-assets/espeak-ng-data` what piper needs. The order of the
variants is LocalAI's, with two differences: a processor with AVX2 takes the variant for AVX if there is
none for AVX2, and a missing variant is never chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from services.loader.devices.capability import DISABLE

from .backend import Backend, Source
from .known_engines import STORES, facts
from .program import Stamp, digest, files_in, program_error, stamp

_LLAMA = "llama-cpp"
_FALLBACK = "llama-cpp-fallback"
_OVER_NETWORK = "llama-cpp-grpc"
_GPU_VARIANTS: tuple[tuple[str, str], ...] = (
    ("nvidia", "llama-cpp-cuda"),
    ("amd", "llama-cpp-hipblas"),
    ("intel", "llama-cpp-sycl_16"),
    ("intel", "llama-cpp-sycl_32"),
)
_CPU_VARIANTS: tuple[tuple[str, str], ...] = (("avx2", "llama-cpp-avx2"), ("avx", "llama-cpp-avx"))
_REQUIRES: Mapping[str, str] = {name: need for need, name in (*_GPU_VARIANTS, *_CPU_VARIANTS)}
_PIPER = "piper"


@dataclass(frozen=True, slots=True)
class AssetRules:
    """The settings that select the variant of llama.cpp."""

    capability: str = "default"
    cpu_flags: frozenset[str] = frozenset()
    """As in /proc/cpuinfo: `avx`, `avx2`."""
    autodetect: bool = True
    """If off, each program is known only by its own name (LocalAI's DISABLE_AUTODETECT)."""
    f16: bool = False
    """Models are to use half precision, which is a variant of its own on Intel's cards."""
    grpc_servers: str = ""
    """Other machines that llama.cpp works on too (LLAMACPP_GRPC_SERVERS)."""

    def lacks(self, need: str) -> str:
        """Return why the variant's requirements are not met; empty if they are."""
        if need.startswith("avx"):
            return "" if need in self.cpu_flags else f"this processor has no {need.upper()}"
        if not need or self.capability == DISABLE or self.capability.startswith(need):
            return ""
        return f"it needs {need}, and this machine's capability is {self.capability!r}"


@dataclass(frozen=True, slots=True)
class Variant:
    """Which program `llama-cpp` is, and why."""

    name: str
    explanation: str


class BackendAssets:
    """One asset folder; it may be created later."""

    def __init__(self, path: Path, rules: AssetRules) -> None:
        """`path` is the folder that holds `backend-assets`."""
        self.path = path
        self.rules = rules
        self._problem = ""
        self._stamps: object = None
        self._backends: list[Backend] = []

    def read(self) -> list[Backend]:
        """Return one backend for each program, and `llama-cpp` for the variant that suits the machine."""
        stamps = self._programs()
        extra = tuple(stamp(self._assets / name) for name in ("lib/ld.so", "lib", "espeak-ng-data"))
        if (stamps, extra) != self._stamps:
            self._backends = self._found(stamps)
            self._stamps = (stamps, extra)
        return self._backends

    def problem(self) -> str:
        """Return why the folder could not be read the last time."""
        return self._problem

    @property
    def _assets(self) -> Path:
        return self.path / "backend-assets"

    def _programs(self) -> dict[str, Stamp]:
        folder = self._assets / "grpc"
        self._problem = ""
        try:
            files = files_in(folder)
        except OSError as error:
            self._problem = f"{folder} cannot be read: {error.strerror}"
            return {}
        return {
            name: stamped
            for name, stamped in files.items()
            if not name.endswith(".log") and not name.startswith(".")
        }

    def _found(self, programs: Mapping[str, Stamp]) -> list[Backend]:
        found = {name: self._backend(name, stamp) for name, stamp in programs.items()}
        if self.rules.autodetect:
            for name, backend in found.items():
                if name.startswith(_LLAMA):
                    found[name] = replace(backend, automatic=False)
            if llama := self._llama(found):
                found = {_LLAMA: llama} | {n: b for n, b in found.items() if n != _LLAMA}
        return list(found.values())

    def _backend(self, name: str, stamped: Stamp) -> Backend:
        program = (self._assets / "grpc" / name).absolute()
        libraries = self._assets / "lib"
        dynamic_loader = libraries / "ld.so"
        need = _REQUIRES.get(name, "")
        known = facts(name if not need else _LLAMA)
        environment = {}
        espeak = self._assets / "espeak-ng-data"
        if name == _PIPER and espeak.is_dir():
            # LocalAI 2 passed it in LoadModel, in a field that is gone; espeak-ng itself looks
            # here.
            environment["ESPEAK_DATA_PATH"] = str(espeak.absolute())
        if name == _OVER_NETWORK and self.rules.grpc_servers:
            environment["LLAMACPP_GRPC_SERVERS"] = self.rules.grpc_servers
        return Backend(
            name,
            run_file=program,
            source=Source.ASSETS,
            requires=(need,) if need else (),
            formats=known.formats,
            usecases=known.usecases,
            automatic=name not in STORES,
            interpreter=dynamic_loader.absolute() if dynamic_loader.is_file() else None,
            library_folders=tuple(
                folder.absolute() for folder in (libraries, self.path / "lib") if folder.is_dir()
            ),
            environment=environment,
            explanation=f"needs {need}" if need else "",
            error=program_error(program),
            unsuited=self.rules.lacks(need),
            revision=digest((str(program), stamped)),
        )

    def _llama(self, found: Mapping[str, Backend]) -> Backend | None:
        """Return the backend for `llama-cpp`; None if no variant of it is installed."""
        variants = {name: item for name, item in found.items() if name.startswith(_LLAMA)}
        if not variants:
            return None
        usable = {name for name, item in variants.items() if not item.unusable}
        variant = choose_variant(usable, self.rules)
        if variant is None:
            reasons = "; ".join(
                f"{name}: {item.unusable or 'it is taken only when it is named'}"
                for name, item in variants.items()
            )
            first = next(iter(variants.values()))
            error = f"no variant runs here: {reasons}"
            return replace(
                first, name=_LLAMA, requires=(), automatic=True, unsuited="", error=error
            )
        program = variants[variant.name]
        return replace(
            program,
            name=_LLAMA,
            automatic=True,
            fallback=_FALLBACK if _FALLBACK in usable and variant.name != _FALLBACK else "",
            explanation=variant.explanation,
            revision=f"{program.revision}/{variant.name}",
        )


def choose_variant(names: set[str], rules: AssetRules) -> Variant | None:
    """Return the variant of llama.cpp to run, of the usable ones; None if there is none."""
    if rules.grpc_servers and _OVER_NETWORK in names:
        return Variant(_OVER_NETWORK, f"{_OVER_NETWORK}: it works on {rules.grpc_servers} too")
    gpu = [pair for pair in _GPU_VARIANTS if rules.capability.startswith(pair[0])]
    if not rules.f16:
        gpu.reverse()
    for _, name in gpu:
        if name in names:
            return Variant(name, f"{name}: this machine's capability is {rules.capability!r}")
    for flag, name in _CPU_VARIANTS:
        if flag in rules.cpu_flags and name in names:
            return Variant(name, f"{name}: this processor has {flag.upper()}")
    for name in (_LLAMA, _FALLBACK):
        if name in names:
            return Variant(name, f"{name}: no variant for this machine is there")
    return None
