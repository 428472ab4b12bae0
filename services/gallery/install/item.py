"""One file of an installation, from its staging place to its target."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from services.common.errors import DownloadError
from services.gallery.download.downloader import Candidates
from services.gallery.download.staging import Stage
from services.gallery.index.entry import FileSpec
from services.gallery.operations.progress import FileProgress

_BLOCK: Final = 1024 * 1024


@dataclass(slots=True)
class Item:
    """One file of an installation."""

    spec: FileSpec
    target: Path
    stage: Stage
    progress: FileProgress
    candidates: Candidates
    in_place: bool = False
    """The models folder already has the file, with the right contents."""
    members: list[tuple[Path, str]] = field(default_factory=list)
    """Files of an archive: where each is unpacked, and its path below the models folder."""

    def mark_in_place(self) -> None:
        """Count the file as done: the models folder already has it."""
        self.in_place = True
        self.progress.resize(max(self.target.stat().st_size, 1))
        self.progress.finish()

    def matches_target(self, stop: threading.Event) -> bool:
        """Return whether the target has the right digest; False if no digest is known.

        Blocks while it reads the file; `stop` ends it early.
        """
        if not self.spec.sha256 or not self.target.is_file():
            return False
        return _digest(self.target, stop) == self.spec.sha256


def _digest(path: Path, stop: threading.Event) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb", 0) as file:
            while not stop.is_set() and (block := file.read(_BLOCK)):
                digest.update(block)
    except OSError as error:
        raise DownloadError(f"{path.name}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()
