"""What is done to the models meanwhile: unloads, forced ones too, and backends killed with SIGKILL."""

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
"""Seconds between two of them."""
AFTERMATH = 2.0
"""Seconds after a crash or a cut in which calls may still be told of it."""
SENT = 0.25
"""Seconds before it: a call may be told of a cut that it met when it was sent."""
TOLD_OF = {
    "crash": ("BACKEND_CRASHED", "LOAD_BACKOFF", "CRASH_LOOP"),
    "force": ("MODEL_UNLOADED",),
}
"""The reasons by which a call may be told. At an endpoint there is a text, and no reason."""


@dataclass(frozen=True)
class Cut:
    """Something that ends calls, and when (CLOCK_MONOTONIC)."""

    kind: str
    model: str
    began: float
    ended: float


@dataclass
class Cuts:
    """What was done so far."""

    loader: LoaderUnderTest
    models: tuple[str, ...]
    done: list[Cut] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)
    """Unloads that failed, other than because the model was busy."""

    async def go_on(self) -> None:
        """Do one after the other, until this is cancelled."""
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
            return  # an unload ends a load, and tells those that wait for it; this one is to hurt nobody
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
        """Return which kind of cut a call was told of; empty if there was none to tell of."""
        if trouble.code != "UNAVAILABLE":
            return ""
        for cut in self._around(trouble):
            told_of = TOLD_OF.get(cut.kind, ())
            if told_of and (not trouble.reason or trouble.reason in told_of):
                return cut.kind
        return ""

    def beside(self, trouble: Trouble) -> str:
        """Return what was done to the model then, for people."""
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
