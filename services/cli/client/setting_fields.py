"""The loader's settings that can be changed while it runs: what they mean, and how they are typed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any, Final

from services.cli.failures import Failure
from services.common.quantities import format_duration, parse_duration

MEANINGS: Final[Mapping[str, str]] = {
    "max_active_backends": "models loaded at once, external ones apart; 0 is no limit",
    "single_active_backend": "one model at once, unless max_active_backends says more",
    "force_eviction_when_busy": "evict models in use too, cutting their calls, if idle ones are too few",
    "size_aware_eviction": "evict the largest first, not the one least worth keeping",
    "lru_eviction_max_retries": "with the interval below, how long a load waits for models in use",
    "lru_eviction_retry_interval": "see lru_eviction_max_retries",
    "watchdog_idle": "unload models that nobody called for watchdog_idle_timeout",
    "watchdog_idle_timeout": "see watchdog_idle",
    "watchdog_busy": "end backends whose call made no progress for watchdog_busy_timeout",
    "watchdog_busy_timeout": "see watchdog_busy",
    "watchdog_interval": "how often the watchdogs look",
    "memory_reclaimer": "unload models when memory is short",
    "memory_reclaimer_threshold": "the used part of memory above which it is short, 0 to 1",
    "vram_budget": "what models may have of each GPU: 80%, 12GB or bytes; empty is no limit",
    "ram_budget": "what models may have of the main memory, likewise",
    "fit_check": "make room for, or refuse, what does not fit into free memory before it is loaded",
    "max_concurrent_backend_requests": "calls in progress and waiting, over all models",
    "queue_size": "calls that may wait for one model",
    "parallel_loads": "models that may load at the same time",
    "starvation_bound": "the longest that a model waits because another, in demand, is kept",
    "model_load_failure_cooldown": "how long a backend that failed is not tried; doubles each time",
    "threads": "threads for models that do not say, from the next load on; 0 leaves it to the backend",
    "context_size": "context in tokens for models that do not say, from the next load on",
    "f16": "half precision for models that do not say, from the next load on",
}
_TRUE: Final = ("true", "yes", "on", "1")
_FALSE: Final = ("false", "no", "off", "0")
_KINDS: Final = {
    "bool": "true or false",
    "int": "a whole number",
    "duration": "a duration such as 90s or 15m",
    "float": "a number such as 0.8, or 80%",
    "str": "text",
}


def named(name: str) -> str:
    """Return the name of a setting as the loader has it, or say which may be meant."""
    wanted = name.strip().lstrip("-").replace("-", "_").lower()
    if wanted in MEANINGS:
        return wanted
    near = difflib.get_close_matches(wanted, MEANINGS, n=1, cutoff=0.5)
    near += [other for other in MEANINGS if wanted and wanted in other]
    hint = f"did you mean {near[0]}? " if near else ""
    raise Failure(
        f"there is no setting {name!r}",
        f"{hint}list all with `corral settings`",
        exit_code=2,
        reason="INVALID_REQUEST",
    )


def parse(name: str, kind: str, text: str) -> Any:
    """Return the value that `text` stands for; durations in seconds."""
    text = text.strip()
    try:
        if kind == "bool":
            if text.lower() not in _TRUE + _FALSE:
                raise ValueError
            return text.lower() in _TRUE
        if kind == "int":
            return _int32(int(text))
        if kind == "duration":
            return parse_duration(text)
        if kind == "float":
            return _finite(float(text[:-1]) / 100 if text.endswith("%") else float(text))
    except ValueError:
        raise Failure(
            f"{name}: {text!r} is not {_KINDS[kind]}",
            f"it means: {MEANINGS[name]}",
            exit_code=2,
            reason="INVALID_REQUEST",
        ) from None
    return text


def shown(value: Any, kind: str) -> str:
    """Return a value as it is typed."""
    if kind == "duration":
        return format_duration(value)
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'


def _int32(value: int) -> int:
    if not -(2**31) <= value < 2**31:
        raise ValueError
    return value


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError
    return value
