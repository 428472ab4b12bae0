"""The error for a backend process that ended by itself, and how a lack of memory is recognised."""

from __future__ import annotations

import re

from services.common.errors import BackendCrashedError, CorralError, ModelLoadError, Resource
from services.loader.processes.interface import Exit

from .instance import Instance


def exited(instance: Instance, how: Exit, last_lines: list[str], *, loading: bool) -> CorralError:
    """Return the error for a process that ended by itself, while it read the model or later."""
    said = f"; it last wrote: {last_lines[-1]}" if last_lines else ""
    what = f"backend {instance.backend.name} of model {instance.model!r} {how}"
    kind = ModelLoadError if loading else BackendCrashedError
    return kind(
        f"could not load model: {what} while it read the model{said}"
        if loading
        else f"{what}{said}",
        metadata={
            "model": instance.model,
            "backend": instance.backend.name,
            "exit_code": "" if how.code is None else str(how.code),
            "signal": how.signal_name,
            "out_of_memory": str(how.out_of_memory).lower(),
            "stderr": "\n".join(last_lines),
        },
        resource=Resource("model", instance.model),
    )


_LACKS_MEMORY = re.compile(
    r"out of memory|cannot allocate memory|failed to allocate|unable to allocate|bad_alloc"
    r"|outofmemory|memoryerror|insufficient memory|not enough memory",
    re.IGNORECASE,
)
"""How engines report it: CUDA and HIP, llama.cpp, PyTorch, C++, Python, the C library."""


def lacks_memory(text: str) -> bool:
    """Whether an error's text reports a lack of memory."""
    return _LACKS_MEMORY.search(text) is not None
