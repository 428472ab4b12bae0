"""Becomes a program whose descendants stay below it, also those whose parent ends: `PROGRAM ARGUMENT...`.

It is killed when the one that started it ends. A process of its own does this, because grpcio, once used,
makes every fork with Python in the child slow and loud.
"""

import ctypes
import os
import signal
import sys

SET_PDEATHSIG = 1
SET_CHILD_SUBREAPER = 36

prctl = ctypes.CDLL(None).prctl
# Both outlast execve(2).
prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
prctl(SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
