"""What the process has done and holds: counts, speed and memory."""

import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

from .replies import Usage


@dataclass
class Counters:
    """Sums since the model was loaded, and the latest request's speed."""

    tokens: int = 0
    prompt_tokens: int = 0
    """Tokens that were read; those that a slot had read already are not counted again."""
    tokens_per_second: float = 0.0
    slot: int = 0

    def finished(self, slot: int, usage: Usage) -> None:
        """Count a request, whole or not."""
        self.tokens += usage.tokens
        self.prompt_tokens += usage.prompt_tokens - usage.reused_tokens
        self.slot = slot
        if usage.generation_ms > 0:
            self.tokens_per_second = usage.tokens * 1000 / usage.generation_ms


def resident_bytes(pid: int = 0) -> int:
    """Memory of a process (0: this one) that is in RAM, mapped model pages included.

    0 if it is not known.
    """
    try:
        statm = Path(f"/proc/{pid or 'self'}/statm").read_text(encoding="ascii")
        return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        if pid:
            return 0
    # Without /proc only the peak is known.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
