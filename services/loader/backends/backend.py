"""A backend's description, wherever it was found."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


class Source(enum.Enum):
    """Where a backend was found."""

    EXTERNAL = "named by a setting or in external_backends.json"
    USER = "a folder of installed backends"
    ASSETS = "LocalAI 2's asset folder"
    SYSTEM = "the system's folder of backends"
    BUNDLED = "comes with Corral"


@dataclass(frozen=True, slots=True)
class Backend:
    """An installed program, an external address, or a name that stands for one of them."""

    name: str
    run_file: Path | None = None
    """The program; None for an address, and for a name that stands for no usable program."""
    address: str = ""
    aliases: tuple[str, ...] = ()
    """Other names of the same backend."""
    source: Source = Source.USER
    folder_name: str = ""
    """The name of its folder, by which it can be called too."""
    group: str = ""
    """The alias that it may share with other builds (`alias` in its metadata)."""
    stands_for: str = ""
    """For a folder without a program: the backend that its installer chose (`meta_backend_for`)."""
    version: str = ""
    gallery_url: str = ""
    installed: float | None = None
    """Seconds since the epoch."""
    takes_unix: bool = False
    """It takes `--addr unix:/path`, which no other user of the machine can reach or impersonate."""
    requires: tuple[str, ...] = ()
    """The build's requirement on the machine, such as `nvidia-cuda-12`."""
    formats: tuple[str, ...] = ()
    """File formats it reads, such as `gguf`; empty if unknown."""
    usecases: tuple[str, ...] = ()
    """Use cases, such as `chat`; empty if unknown."""
    concurrency: int = 0
    """Calls that it can run at once, from its metadata; 0 if not given there."""
    automatic: bool = True
    """It may be tried for models that name no backend."""
    fallback: str = ""
    """The backend to try when this one fails to load a model."""
    interpreter: Path | None = None
    """Command that runs the program, such as a dynamic loader that comes with it."""
    library_folders: tuple[Path, ...] = ()
    """Where the program's shared libraries are, in addition to the system's."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables for the program, in addition to those that every backend gets."""
    chosen: str = ""
    """For a name that stands for others: the backend it leads to."""
    explanation: str = ""
    """Why it is usable or not, or why `chosen` was chosen."""
    error: str = ""
    """Why it cannot be started at all."""
    unsuited: str = ""
    """Why it is not meant for this machine: it is never chosen, and tried only when a model names
    it."""
    revision: str = ""
    """Changes when the program or its metadata change."""

    @property
    def external(self) -> bool:
        """It runs elsewhere; there is no process to start or end."""
        return bool(self.address)

    @property
    def system(self) -> bool:
        """The gallery cannot delete it."""
        return self.source in (Source.SYSTEM, Source.BUNDLED, Source.ASSETS)

    @property
    def unusable(self) -> str:
        """Why it is not chosen; empty if it may be."""
        return self.error or self.unsuited


class BackendSource(Protocol):
    """A place where backends are found. Blocking, and cheap when nothing changed."""

    def read(self) -> list[Backend]:
        """Return the installed backends; an unusable one is included with its error."""
        ...

    def problem(self) -> str:
        """Return why the place itself could not be read the last time; empty if it could."""
        ...
