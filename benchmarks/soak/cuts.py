"""What is done to the models during the soak test: unloads, some forced, and backends killed with SIGKILL."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

import grpc

from corral.loader.v1 import loader_pb2 as pb
from tests.tools.running import LoaderUnderTest

from .clients import Trouble

PAUSE = (0.5, 2.5)
"""Seconds between two cuts."""
AFTERMATH = 2.0
"""Seconds after a crash or a cut in which calls may still fail because of it."""
SENT = 0.25
"""Seconds before a cut in which a call that it met while being sent may already have failed."""
TOLD_OF = {
    "crash": ("BACKEND_CRASHED", "LOAD_BACKOFF", "CRASH_LOOP"),
    "force": ("MODEL_UNLOADED",),
}
"""The reasons in a call's error for each kind of cut. At an endpoint there is only a text, no reason."""


@dataclass(frozen=True)
class Cut:
    """Something that ends calls, with its times (CLOCK_MONOTONIC)."""

    kind: str
    model: str
    began: float
    ended: float


@dataclass
class Cuts:
    """The cuts so far."""

    loader: LoaderUnderTest
    models: tuple[str, ...]
    done: list[Cut] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)
    """Unloads that failed for a reason other than a busy model."""

    async def go_on(self) -> None:
        """Make one cut after the other, until cancelled."""
        chance = random.Random(1)
        while True:
            await asyncio.sleep(chance.uniform(*PAUSE))
            model = chance.choice(self.models)
            kind = chance.choice(("unload", "unload", "force", "crash"))
            if kind == "crash":
                await self._crash(model)
            else:
                await self._unload(model, force=kind == "force")

    async def _crash(self, model: str) -> None:
        answer = await self.loader.control.GetModel(pb.GetModelRequest(name=model))
        if answer.model.state != pb.Model.STATE_READY:
            return
        began = time.monotonic()
        with suppress(ProcessLookupError):
            os.kill(answer.model.instances[0].pid, signal.SIGKILL)
            self.done.append(Cut("crash", model, began, time.monotonic()))
            self.counts["crash"] += 1

    async def _unload(self, model: str, *, force: bool) -> None:
        kind = "force" if force else "unload"
        answer = await self.loader.control.GetModel(pb.GetModelRequest(name=model))
        if answer.model.state != pb.Model.STATE_READY and not force:
            return  # an unload would end a load and fail the calls that wait for it; this one must fail none
        began = time.monotonic()
        try:
            await self.loader.control.UnloadModel(pb.UnloadModelRequest(name=model, force=force))
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION or force:
                self.refused.append(f"{kind}: {error.code().name}: {error.details()}")
            kind = "busy"
        finally:
            self.done.append(Cut(kind, model, began, time.monotonic()))
        self.counts[kind] += 1

    def explain(self, trouble: Trouble) -> str:
        """Return the kind of cut that explains a call's error; empty if there is none."""
        if trouble.code != "UNAVAILABLE":
            return ""
        for cut in self._around(trouble):
            told_of = TOLD_OF.get(cut.kind, ())
            if told_of and (not trouble.reason or trouble.reason in told_of):
                return cut.kind
        return ""

    def beside(self, trouble: Trouble) -> str:
        """Describe what was done to the model around the call, for people."""
        around = [
            f"{cut.kind} of {cut.ended - cut.began:.1f} s, {trouble.end - cut.began:+.1f} s before"
            for cut in self._around(trouble)
        ]
        return "; ".join(around) or "nothing"

    def _around(self, trouble: Trouble) -> Iterable[Cut]:
        for cut in self.done:
            in_time = trouble.at <= cut.ended + AFTERMATH and cut.began - SENT <= trouble.end
            if cut.model == trouble.way.model and in_time:
                yield cut
