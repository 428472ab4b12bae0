"""What `ps` and `/proc/<pid>/cmdline` show of this process."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

# The fields of /proc/self/stat (proc(5)) that say where the kernel finds the arguments; counted from
# the one after the command's name, which may hold blanks itself.
_ARG_START, _ARG_END = 48 - 3, 49 - 3
_PR_SET_NAME = 15


def set_process_title(arguments: Sequence[str], name: str) -> None:
    """Show these arguments as this process's; cut to the room that those it was started with took.

    `name` is the short one (15 bytes) that `top` shows. Where it cannot be done, nothing happens.
    """
    with suppress(OSError, ValueError, IndexError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
        text = " ".join(arguments).encode()[: end - start - 2]
        # The kernel shows the text to its first zero, if the last byte of the room is none.
        ctypes.memmove(start, text.ljust(end - start - 1, b"\0") + b".", end - start)
