"""Checks that an installation replaces nothing that belongs to another model or to the user."""

from __future__ import annotations

import filecmp
import functools
import threading
from collections.abc import Sequence
from pathlib import Path

from services.common.errors import ConflictError
from services.gallery.library.models_folder import Contents, ModelsFolder

from .item import Item


class Conflicts:
    """The checks of one installation. They block: call them from a thread.

    The models folder is scanned at most once, and only if a file would be replaced.
    """

    def __init__(self, folder: ModelsFolder, config_file: str) -> None:
        """`config_file` is the configuration of the model that is being installed."""
        self._folder = folder
        self._config_file = config_file

    def check_config(self) -> None:
        """Raise ConflictError if the configuration would replace one that no gallery wrote."""
        existing = self._folder.configured(self._config_file)
        if existing is not None and not existing.record:
            raise ConflictError(
                f"{self._config_file} was not written by a gallery and would be overwritten;"
                " choose another model_id, or use force"
            )

    def check_file(self, item: Item, stop: threading.Event) -> None:
        """Raise ConflictError if another model uses the file: its weights would change silently."""
        name = item.spec.filename
        if item.target.is_dir():
            raise ConflictError(f"{name!r} is a folder in the models folder")
        if not item.target.exists():
            return
        users = self._users(name)
        if users and not item.matches_target(stop):
            raise ConflictError(
                f"{name!r} exists with other contents and is used by {', '.join(users)};"
                " delete that model first, or install it from another gallery entry",
                metadata={"file": name, "used_by": ",".join(users)},
            )

    def check_member(self, staged: Path, target: Path, name: str) -> None:
        """Do the same for a file of an archive; `name` is its path below the models folder."""
        if not target.is_file() or not staged.exists():
            return
        users = self._users(name)
        if users and not filecmp.cmp(staged, target, shallow=False):
            raise ConflictError(
                f"{target.name!r} exists with other contents and is used by {', '.join(users)}",
                metadata={"file": target.name, "used_by": ",".join(users)},
            )

    def _users(self, name: str) -> Sequence[str]:
        return self._contents.users(name, but=self._config_file)

    @functools.cached_property
    def _contents(self) -> Contents:
        return self._folder.scan()
