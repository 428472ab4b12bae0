"""Which backends there are: folders with a `run.sh`, and external ones named on the command line.

The folder's shape and metadata are LocalAI's (`run.sh`, `metadata.json`), so that its backends run
from here as they are. Corral's own add a `corral` object to the metadata: which kinds of address the
program takes. A backend whose metadata cannot be read stands in the catalog with its error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from services.common.addresses import validate_address
from services.common.errors import BackendNotFoundError, InvalidRequestError, Resource
from services.common.logs import get_logger

_log = get_logger(__name__)

RUN_FILE = "run.sh"
METADATA = "metadata.json"
_UNFINISHED = (".install-tmp", ".install-backup", ".upgrade-tmp", ".backup", ".partial")

# LocalAI's other names for backends, and the model type that some of them imply.
NAME_ALIASES: Mapping[str, str] = {
    "go-llama": "llama-cpp",
    "llama": "llama-cpp",
    "ik_llama": "ik-llama-cpp",
    "ik-llama": "ik-llama-cpp",
    "embedded-store": "local-store",
    "valkey": "valkey-store",
    "huggingface-embeddings": "transformers",
    "transformers-musicgen": "transformers",
    "sentencetransformers": "transformers",
    "mamba": "transformers",
    "stablediffusion": "stablediffusion-ggml",
}
TYPE_ALIASES: Mapping[str, str] = {
    "sentencetransformers": "SentenceTransformer",
    "huggingface-embeddings": "SentenceTransformer",
    "mamba": "Mamba",
    "transformers-musicgen": "MusicgenForConditionalGeneration",
}


@dataclass(frozen=True, slots=True)
class Backend:
    """An installed program, or an external address."""

    name: str
    run_file: Path | None = None
    address: str = ""
    aliases: tuple[str, ...] = ()
    version: str = ""
    system: bool = False
    takes_unix: bool = False
    """It takes `--addr unix:/path`, which no other user of the machine can reach or impersonate."""
    formats: tuple[str, ...] = ()
    """File formats it reads, such as `gguf`; empty if it does not say."""
    error: str = ""
    concurrency: int = 0
    """Calls that it can work on at once, as its metadata says; 0 if it does not."""

    @property
    def external(self) -> bool:
        """It runs elsewhere; there is no process to start or end."""
        return bool(self.address)


class BackendCatalog:
    """The backends folders, in order: of equal names the first folder's wins."""

    def __init__(
        self, folders: Sequence[Path], external: Mapping[str, str], bundled: Path | None = None
    ) -> None:
        """`external` maps names to a program's path or an address; they win over all folders."""
        self._folders = tuple(folders)
        self._external = dict(external)
        self._bundled = bundled

    def backends(self) -> dict[str, Backend]:
        """Return all backends by name, external ones first, then in the folders' order."""
        found = {name: _external(name, uri) for name, uri in self._external.items()}
        choices: dict[str, str] = {}
        for folder in self._folders:
            for path in _listed(folder):
                if backend := _installed(path, system=folder == self._bundled):
                    found.setdefault(backend.name, backend)
                elif choice := _choice(path):
                    choices.setdefault(path.name, choice)
        for name, chosen in choices.items():
            if chosen in found and name not in found:
                _alias_only(found, name, chosen)
        return found

    def find(self, name: str) -> Backend:
        """Return the backend that `name` means: exactly, by LocalAI's aliases, or by its own.

        Raises BackendNotFoundError that lists what is installed.
        """
        backends = self.backends()
        lowered = name.lower()
        for wanted in dict.fromkeys((name, lowered, NAME_ALIASES.get(lowered, lowered))):
            if wanted in backends:
                return backends[wanted]
            for backend in backends.values():
                if wanted in backend.aliases:
                    return backend
        installed = ", ".join(sorted(backends)) or "none"
        raise BackendNotFoundError(
            f"backend not found: {name}; installed: {installed}. Install it, or name its folder with"
            " --backends-path",
            resource=Resource("backend", name),
            metadata={"backend": name},
        )


def _external(name: str, uri: str) -> Backend:
    path = Path(uri).expanduser()
    # LocalAI's rule: what exists as a file is a program, everything else an address.
    if path.is_file():
        return Backend(name, run_file=path.absolute())
    if uri.startswith(("/", "./", "../", "~")):
        return Backend(name, run_file=path.absolute(), error=f"{uri} does not exist")
    try:
        validate_address(uri)
    except InvalidRequestError as error:
        return Backend(name, address=uri, error=str(error))
    return Backend(name, address=uri)


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        # The other folders' backends are of use all the same.
        _log.warning("a backends folder cannot be read", folder=str(folder), why=error.strerror)
        return []


def _installed(folder: Path, *, system: bool) -> Backend | None:
    if folder.name.startswith((".", "_")) or folder.name.endswith(_UNFINISHED):
        return None
    run_file = folder / RUN_FILE
    if not run_file.is_file():
        return None
    try:
        metadata = _metadata(folder / METADATA)
    except (OSError, ValueError) as error:
        return Backend(folder.name, run_file, system=system, error=f"{METADATA}: {error}")
    own = metadata.get("corral")
    own = own if isinstance(own, dict) else {}
    names = [folder.name, _string(metadata, "name"), _string(metadata, "alias")]
    name = names[1] or names[0]
    return Backend(
        name,
        run_file.absolute(),
        aliases=tuple(dict.fromkeys(other for other in names if other and other != name)),
        version=_string(metadata, "version"),
        system=system,
        takes_unix="unix" in _strings(own, "addresses"),
        formats=_strings(own, "formats"),
    )


def _choice(folder: Path) -> str:
    """Return which backend a folder without a program stands for; LocalAI has them for "meta" backends."""
    if folder.name.startswith((".", "_")) or folder.name.endswith(_UNFINISHED):
        return ""
    with suppress(OSError, ValueError):
        return _string(_metadata(folder / METADATA), "meta_backend_for")
    return ""


def _alias_only(found: dict[str, Backend], name: str, chosen: str) -> None:
    """Let a name lead to the chosen backend, and to no other that claims it too."""
    for other, backend in found.items():
        aliases = tuple(alias for alias in backend.aliases if alias != name)
        if other == chosen:
            aliases = (*aliases, name)
        if aliases != backend.aliases:
            found[other] = replace(backend, aliases=aliases)


def _metadata(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
        raise ValueError("is not a JSON object")  # noqa: TRY004 - the file is wrong, not the caller
    return content


def _strings(metadata: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = metadata.get(key)
    return tuple(map(str, value)) if isinstance(value, list) else ()


def _string(metadata: Mapping[str, Any], key: str) -> str:
    value = metadata.get(key)
    return value if isinstance(value, str) else ""
