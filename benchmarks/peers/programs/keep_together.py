"""Executes a program whose descendants stay below it even if their parent ends: `PROGRAM ARGUMENT...`.

It is killed when its parent ends. This is a separate process because grpcio, once used, makes every fork
that runs Python in the child slow and noisy.
"""

import ctypes
import os
import signal
import sys

SET_PDEATHSIG = 1
SET_CHILD_SUBREAPER = 36

prctl = ctypes.CDLL(None).prctl
# Both settings survive execve(2).
prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
prctl(SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
