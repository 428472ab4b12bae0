"""Pinned models: by PinModel, which is kept over restarts, or otherwise by their configuration."""

from __future__ import annotations

import json
from pathlib import Path

from services.common.files import write_atomically
from services.common.process.logging import get_logger

_log = get_logger(__name__)


class Pins:
    """The pins that were set or lifted by name."""

    def __init__(self, file: Path) -> None:
        """Read the saved pins; an unreadable file is treated as empty."""
        self._file = file
        self._pins: dict[str, bool] = {}
        try:
            kept = json.loads(file.read_text())
            self._pins = {str(name): bool(pinned) for name, pinned in kept.items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, AttributeError) as error:
            _log.warning("kept pins cannot be read", file=str(file), why=str(error))

    def pinned(self, name: str, configured: bool) -> bool:
        """Whether the model is pinned; `configured` is the value in its configuration."""
        return self._pins.get(name, configured)

    def set(self, name: str, pinned: bool) -> None:
        """Pin or unpin; raises OSError if it cannot be kept, and then nothing has changed."""
        pins = {**self._pins, name: pinned}
        write_atomically(self._file, json.dumps(pins, indent=2, ensure_ascii=False) + "\n")
        self._pins = pins
