"""The settings that can be changed while the loader runs: their fields, and the values in force.

Changes are saved in `runtime_settings.json` in the state folder, under the same names. As in LocalAI, a
flag or an environment variable at startup takes precedence over a saved value.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from services.common.config.settings import Duration, localai
from services.common.errors import FieldViolation, InvalidRequestError
from services.common.files import write_atomically
from services.common.process.logging import get_logger
from services.loader.devices.budgets import parse_budget

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Unit:
    """Marks a field with the unit of its number."""

    name: str


class Tunables(BaseModel):
    """The changeable settings; names, defaults and meanings are LocalAI's where it has the setting."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_active_backends: Annotated[
        int, localai("LOCALAI_MAX_ACTIVE_BACKENDS", "MAX_ACTIVE_BACKENDS"), Unit("models")
    ] = Field(default=0, ge=0)
    """Models loaded at once, not counting external backends; 0 means no limit."""

    single_active_backend: Annotated[
        bool, localai("LOCALAI_SINGLE_ACTIVE_BACKEND", "SINGLE_ACTIVE_BACKEND")
    ] = False
    """Load one model at once: the same as max_active_backends of 1, unless that is set."""

    force_eviction_when_busy: Annotated[
        bool, localai("LOCALAI_FORCE_EVICTION_WHEN_BUSY", "FORCE_EVICTION_WHEN_BUSY")
    ] = False
    """Evict models in use, and cut their calls, if evicting idle ones is not enough."""

    size_aware_eviction: Annotated[
        bool, localai("LOCALAI_SIZE_AWARE_EVICTION", "SIZE_AWARE_EVICTION")
    ] = False
    """Evict the largest model first instead of the one least worth keeping."""

    lru_eviction_max_retries: Annotated[
        int,
        localai("LOCALAI_LRU_EVICTION_MAX_RETRIES", "LRU_EVICTION_MAX_RETRIES"),
        Unit("retries"),
    ] = Field(default=30, ge=0)
    """Retries, one each lru_eviction_retry_interval, while a load waits for models in use; 0 refuses at once."""

    lru_eviction_retry_interval: Annotated[
        Duration, localai("LOCALAI_LRU_EVICTION_RETRY_INTERVAL", "LRU_EVICTION_RETRY_INTERVAL")
    ] = 1.0
    """See lru_eviction_max_retries."""

    watchdog_idle: Annotated[
        bool,
        localai("LOCALAI_WATCHDOG_IDLE", "WATCHDOG_IDLE", flags=("--enable-watchdog-idle",)),
    ] = False
    """Unload models without a call for watchdog_idle_timeout."""

    watchdog_idle_timeout: Annotated[
        Duration, localai("LOCALAI_WATCHDOG_IDLE_TIMEOUT", "WATCHDOG_IDLE_TIMEOUT")
    ] = 900.0
    """See watchdog_idle."""

    watchdog_busy: Annotated[
        bool,
        localai("LOCALAI_WATCHDOG_BUSY", "WATCHDOG_BUSY", flags=("--enable-watchdog-busy",)),
    ] = False
    """Stop backends with a call that made no progress for watchdog_busy_timeout; each message is progress."""

    watchdog_busy_timeout: Annotated[
        Duration, localai("LOCALAI_WATCHDOG_BUSY_TIMEOUT", "WATCHDOG_BUSY_TIMEOUT")
    ] = 300.0
    """See watchdog_busy."""

    watchdog_interval: Annotated[
        Duration, localai("LOCALAI_WATCHDOG_INTERVAL", "WATCHDOG_INTERVAL")
    ] = 0.5
    """How often the watchdogs check the models."""

    memory_reclaimer: Annotated[
        bool,
        localai(
            "LOCALAI_MEMORY_RECLAIMER",
            "MEMORY_RECLAIMER",
            "LOCALAI_GPU_RECLAIMER",
            "GPU_RECLAIMER",
            flags=("--enable-memory-reclaimer",),
        ),
    ] = False
    """Unload models when memory is short."""

    memory_reclaimer_threshold: Annotated[
        float,
        localai(
            "LOCALAI_MEMORY_RECLAIMER_THRESHOLD",
            "MEMORY_RECLAIMER_THRESHOLD",
            "LOCALAI_GPU_RECLAIMER_THRESHOLD",
            "GPU_RECLAIMER_THRESHOLD",
        ),
    ] = Field(default=0.95, gt=0, le=1)
    """The used fraction of a device's memory, between 0 and 1, above which memory_reclaimer unloads models."""

    vram_budget: Annotated[str, localai("LOCALAI_VRAM_BUDGET")] = ""
    """Memory that models may use on each GPU: 80%, 0.8, 12GB or bytes; empty means no limit."""

    ram_budget: str = ""
    """Main memory that models may use: 80%, 0.8, 12GB or bytes; empty means no limit."""

    fit_check: bool = True
    """Before a load, evict models until the new one fits into free memory; refuse it if it cannot fit."""

    max_concurrent_backend_requests: Annotated[
        int,
        localai("LOCALAI_MAX_CONCURRENT_BACKEND_REQUESTS", "MAX_CONCURRENT_BACKEND_REQUESTS"),
        Unit("calls"),
    ] = Field(default=1024, ge=1)
    """The most calls in progress and waiting, over all models; more are refused."""

    queue_size: Annotated[int, Unit("calls")] = Field(default=512, ge=0)
    """The most calls that may wait for one model."""

    parallel_loads: Annotated[int, Unit("models")] = Field(default=8, ge=1)
    """The most models that may load at the same time."""

    starvation_bound: Duration = 10.0
    """How long busy models, or models reloaded after an eviction, may keep another model waiting."""

    model_load_failure_cooldown: Annotated[
        Duration,
        localai(
            "LOCALAI_MODEL_LOAD_FAILURE_COOLDOWN",
            "MODEL_LOAD_FAILURE_COOLDOWN",
            flags=("--load-backoff",),
        ),
    ] = 10.0
    """How long to wait after a failed load before trying the same backend again; doubles with each failure."""

    threads: Annotated[int, localai("LOCALAI_THREADS", "THREADS"), Unit("threads")] = Field(
        default=0, ge=0
    )
    """Threads for models that do not set them; 0 leaves the choice to the backend."""

    context_size: Annotated[
        int, localai("LOCALAI_CONTEXT_SIZE", "CONTEXT_SIZE"), Unit("tokens")
    ] = Field(default=0, ge=0)
    """Context in tokens for models that do not set it; 0 uses the GGUF file's, up to 8192, otherwise 4096."""

    f16: Annotated[bool, localai("LOCALAI_F16", "F16")] = False
    """Use half precision for the models' working memory even if their configuration does not ask for it."""

    @field_validator("vram_budget", "ram_budget", mode="after")
    @classmethod
    def _budget(cls, value: str) -> str:
        try:
            parse_budget(value, "budget")
        except InvalidRequestError as error:
            raise ValueError(error.violations[0].description) from None
        return value

    @property
    def active_limit(self) -> int:
        """The most models loaded at once; 0 means no limit."""
        return self.max_active_backends or int(self.single_active_backend)

    @property
    def room_timeout(self) -> float:
        """Seconds that a load waits for models in use to become idle."""
        return self.lru_eviction_max_retries * self.lru_eviction_retry_interval


class Source(Enum):
    """Where a setting's value comes from."""

    DEFAULT = "default"
    START = "start"
    RUNTIME = "runtime"


class LiveSettings:
    """The settings in force. Listeners are called at once after a change."""

    def __init__(
        self, at_start: Mapping[str, Any], given: Collection[str], file: Path | None = None
    ) -> None:
        """`given` names the settings given at startup; `file` saves changes across restarts."""
        self._file = file
        self._sources = {
            name: Source.START if name in given else Source.DEFAULT
            for name in Tunables.model_fields
        }
        self.now = Tunables(**at_start)
        self._kept: dict[str, Any] = {}
        self._listeners: list[Callable[[], None]] = []
        self._take_kept(given)

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` after every change."""
        self._listeners.append(listener)

    def call_ceiling(self) -> int:
        """Return how many calls may be in progress or waiting, over all models."""
        return self.now.max_concurrent_backend_requests

    @property
    def sources(self) -> dict[str, Source]:
        """Where each value comes from, by its name."""
        return dict(self._sources)

    @property
    def kept(self) -> frozenset[str]:
        """The names of the settings saved for the next start."""
        return frozenset(self._kept) if self._file is not None else frozenset()

    def update(self, values: Mapping[str, Any]) -> None:
        """Change all of these settings or none. Raises InvalidRequestError that names the invalid ones."""
        self.now = _changed(self.now, values)
        self._kept |= {name: getattr(self.now, name) for name in values}
        self._sources |= dict.fromkeys(values, Source.RUNTIME)
        _log.info("settings changed", **{name: getattr(self.now, name) for name in values})
        if self._file is not None:
            try:
                write_atomically(self._file, json.dumps(self._kept, indent=2) + "\n")
            except OSError as error:
                _log.warning("settings hold until the next start only", why=str(error))
        for listener in self._listeners:
            listener()

    def _take_kept(self, given: Collection[str]) -> None:
        if self._file is None or not self._file.exists():
            return
        try:
            kept = json.loads(self._file.read_text())
            if not isinstance(kept, dict):
                raise ValueError("it must hold names and values")  # noqa: TRY004 - the file is wrong, not the caller
        except (OSError, ValueError) as error:
            _log.warning("kept settings cannot be read", file=str(self._file), why=str(error))
            return
        for name, value in kept.items():
            try:
                changed = _changed(self.now, {name: value})
            except InvalidRequestError as error:
                _log.warning("a kept setting is not taken", file=str(self._file), why=str(error))
                continue
            self._kept[name] = value
            if name not in given:
                self.now = changed
                self._sources[name] = Source.RUNTIME


def _changed(now: Tunables, values: Mapping[str, Any]) -> Tunables:
    try:
        return Tunables.model_validate({**now.model_dump(), **values})
    except ValidationError as error:
        violations = [
            FieldViolation(
                f"settings.{'.'.join(map(str, problem['loc']))}",
                problem["msg"].removeprefix("Value error, "),
            )
            for problem in error.errors()
        ]
        text = "; ".join(f"{each.field}: {each.description}" for each in violations)
        raise InvalidRequestError(text, violations=violations) from error
