"""The process title, as `ps` and `/proc/<pid>/cmdline` show it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

# The fields of /proc/self/stat (proc(5)) with the addresses of the arguments, counted from the field
# after the command's name, which may contain blanks.
_ARG_START, _ARG_END = 48 - 3, 49 - 3
_PR_SET_NAME = 15


def set_process_title(arguments: Sequence[str], name: str) -> None:
    """Replace the process's arguments, cut to the length of the original ones.

    `name` is the short name (15 bytes) that `top` shows. Does nothing where this is not supported.
    """
    with suppress(OSError, ValueError, IndexError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
        text = " ".join(arguments).encode()[: end - start - 2]
        # The kernel shows the text up to its first zero if the last byte of the area is not zero.
        ctypes.memmove(start, text.ljust(end - start - 1, b"\0") + b".", end - start)
