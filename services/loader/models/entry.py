"""A model as the catalog knows it."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.common.errors import ModelConfigError

from .config import ModelConfig


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model: its configuration, or why it cannot be used."""

    name: str
    config: ModelConfig = field(default_factory=ModelConfig)
    config_file: str = ""
    """Below the models folder, or absolute if it is elsewhere; empty for a loose file."""
    error: ModelConfigError | None = None
    revision: str = ""
    """Changes with the model's own part of the configuration file; from `resolve` also with its file."""
    position: int = 0
    """The model's position in its file, from 0."""

    @property
    def loose(self) -> bool:
        """A model file without a configuration."""
        return not self.config_file
