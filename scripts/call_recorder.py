"""Records the calls between the services' modules in a running process, and counts them.

- A *call* is the fresh call of a function in services/. Not counted are the resumption of a coroutine
  or a generator, comprehensions, generator expressions, and what runs when a module is imported.
- Its caller is the nearest function of the services on the stack, also with a library's between them;
  what the event loop or a thread begins has no caller, and changes nothing.
- A *change of file* is a call from one file into another, an *arrow* a distinct pair of such files, and
  *both ways* the pairs of files that call each other.
- A *package* is the first folder below a service (services.loader.admission); a module directly in a
  service is a package of its own, and services.common is divided in the same way.
"""

from __future__ import annotations

import asyncio
import dis
import functools
import inspect
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SERVICES = f"{ROOT / 'services'}{os.sep}"
QUIET = 0.5
"""Seconds without a call after which a walk has come to its end."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the services: its module and its qualified name."""

    module: str
    name: str

    @property
    def package(self) -> str:
        """The first folder below the service, or the module if it is in none."""
        return ".".join(self.module.split(".")[:3])

    def __str__(self) -> str:
        """Return both, as `--list` prints them."""
        return f"{self.module.removeprefix('services.')}.{self.name}"


@dataclass(frozen=True, slots=True)
class Call:
    """A fresh call; no caller if a library or the event loop made it."""

    caller: Function | None
    callee: Function

    @property
    def changes_file(self) -> bool:
        """Whether it goes from one file into another."""
        return self.caller is not None and self.caller.module != self.callee.module

    @property
    def changes_package(self) -> bool:
        """Whether it goes from one package into another."""
        return self.caller is not None and self.caller.package != self.callee.package


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one walk, in the order in which they are printed."""

    calls: int
    files: int
    changes_of_file: int
    arrows: int
    both_ways: int
    packages: int
    changes_of_package: int

    @classmethod
    def of(cls, calls: Sequence[Call]) -> Figures:
        """Count a walk."""
        pairs = {
            (call.caller.module, call.callee.module)
            for call in calls
            if call.caller is not None and call.changes_file
        }
        return cls(
            calls=len(calls),
            files=len({call.callee.module for call in calls}),
            changes_of_file=sum(call.changes_file for call in calls),
            arrows=len(pairs),
            both_ways=sum(a < b and (b, a) in pairs for a, b in pairs),
            packages=len({call.callee.package for call in calls}),
            changes_of_package=sum(call.changes_package for call in calls),
        )


class Recorder:
    """Sees every call of all threads that were started after it was installed; keeps those it is asked for."""

    def __init__(self) -> None:
        """Keep nothing yet."""
        self._calls: list[Call] | None = None

    def install(self) -> None:
        """Begin to see calls, in this thread and in later ones."""
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)

    @contextmanager
    def recording(self) -> Iterator[list[Call]]:
        """Keep the calls that are made meanwhile."""
        calls: list[Call] = []
        self._calls = calls
        try:
            yield calls
        finally:
            self._calls = None

    @staticmethod
    async def quiet(calls: Sequence[Call]) -> None:
        """Wait until nothing is called any more."""
        seen = -1
        while seen != len(calls):
            seen = len(calls)
            await asyncio.sleep(QUIET)

    def _profile(self, frame: FrameType, event: str, _: Any) -> None:
        if self._calls is None or event != "call":
            return
        callee = function(frame.f_code)
        if callee is not None and is_fresh(frame.f_code, frame.f_lasti):
            back = frame.f_back
            while back is not None and function(back.f_code) is None:
                back = back.f_back
            self._calls.append(Call(function(back.f_code) if back else None, callee))


@functools.cache
def function(code: CodeType) -> Function | None:
    """Return whose code it is; None for what is not in services/, or no function of its own."""
    if not code.co_filename.startswith(SERVICES):
        return None
    path = Path(code.co_filename).relative_to(ROOT).with_suffix("")
    return Function(".".join(path.parts).removesuffix(".__init__"), code.co_qualname)


@functools.cache
def is_fresh(code: CodeType, at: int) -> bool:
    """Whether a frame of this code that goes on at this instruction has only just begun."""
    if code.co_name in ("<genexpr>", "<listcomp>", "<setcomp>", "<dictcomp>"):
        return False
    if not code.co_flags & inspect.CO_OPTIMIZED:
        # A module or the body of a class.
        return False
    resume = code.co_code[at : at + 2]
    # The argument's low bits are 0 at a function's start, and not 0 after a yield or an await.
    return dis.opname[resume[0]] != "RESUME" or resume[1] & 3 == 0
