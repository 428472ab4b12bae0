"""The fake model: loading and freeing it, its state, and its answers."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import grpc

from corral.backend import backend_pb2 as pb

from . import disorder, streams
from .behaviour import Behaviour, BehaviourError, Script
from .call import Call, Slots
from .errors import Refused, status_code

_REFUSALS = {
    "refuse": "no such architecture",
    "oom": "failed to allocate a buffer of 99 GiB: out of memory",
    "error": "the file is broken",
}
_COUNT_FILE = "loads.count"
_MIB = 1024 * 1024


class Model:
    """The model of this process. Every RPC's method takes the request and its call."""

    def __init__(self, script: Script) -> None:
        """No model is loaded."""
        self.options: pb.ModelOptions | None = None
        self.slots = Slots()
        self._script = script
        self._began = time.monotonic()
        self._kept: list[bytearray] = []
        self._tokens = 0
        self._prompts = 0

    def leak(self, mib: int) -> None:
        """Allocate memory and never free it."""
        self._kept.append(disorder.memory(mib))

    async def health(self, _: Any, call: Call) -> pb.Reply:
        """Report that the process serves."""
        how = call.how
        left = self._began + how.health_seconds - time.monotonic()
        if left > 0:
            await asyncio.sleep(left)
        kind, _, code = how.health.partition(":")
        if kind == "hang":
            await asyncio.Event().wait()
        if kind == "status":
            raise Refused(status_code(code), f"requested status {code}")
        return pb.Reply(message=b"OK" if kind == "ok" else b"not yet")

    async def load(self, request: pb.ModelOptions, call: Call) -> pb.Result:
        """Load the model that the request names."""
        how = call.how
        disorder.note(how, f"load {request.Model}")
        disorder.keep_request(how, request.SerializeToString())
        if how.load_memory_mib:
            self._kept.append(disorder.memory(how.load_memory_mib))
        if how.load_progress:
            await asyncio.to_thread(disorder.burn, how.load_seconds)
        elif how.load_seconds:
            await asyncio.sleep(how.load_seconds)
        kind, _, code = how.load.partition(":")
        if how.load_failures:
            if self._count_load() > how.load_failures:
                kind = "ok"
            elif kind == "ok":
                kind = "refuse"
        text = how.load_text or _REFUSALS.get(kind, f"requested status {code}")
        if kind in ("refuse", "oom"):
            return pb.Result(success=False, message=text)
        if kind == "error":
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, text)
        if kind == "status":
            raise Refused(status_code(code), text)
        if kind == "crash":
            disorder.crash(how, words="tensor 7 is out of bounds", default="SIGABRT")
        if kind == "hang":
            await asyncio.Event().wait()
        self.options = request
        loop = asyncio.get_running_loop()
        if how.crash_after:
            loop.call_later(how.crash_after, self._crash_later)
        if how.freeze_after:
            loop.call_later(how.freeze_after, disorder.freeze)
        return pb.Result(success=True, message="Loading succeeded")

    def _crash_later(self) -> None:
        disorder.crash(self._script.now(), words="about to crash", default="SIGKILL")

    def _count_load(self) -> int:
        file = Path(_COUNT_FILE)
        count = int(file.read_text()) + 1 if file.exists() else 1
        file.write_text(f"{count}\n")
        return count

    async def free(self, _: Any, call: Call) -> pb.Result:
        """Free the model."""
        how = call.how
        disorder.note(how, "free")
        kind, _, code = how.free.partition(":")
        if kind == "hang":
            await asyncio.Event().wait()
        if kind == "crash":
            disorder.crash(how, words="double free", default="SIGABRT")
        if kind == "status":
            raise Refused(status_code(code), f"requested status {code}")
        if kind == "fail":
            return pb.Result(success=False, message="requested failure")
        self.options = None
        return pb.Result(success=True)

    async def predict(self, request: pb.PredictOptions, call: Call) -> pb.Reply:
        """Return the prompt or the request, or fail as the prompt demands."""
        prompt = request.Prompt
        if prompt.startswith("fail:"):
            code = prompt.removeprefix("fail:")
            raise Refused(status_code(code), f"requested status {code}")
        if prompt == "crash":
            disorder.crash(call.how, words="about to crash", default="SIGKILL")
        if prompt == "wait":
            await asyncio.Event().wait()
        said = streams.spoken(request)
        count = len(said.split())
        self._prompts += count
        if call.how.echo == "request":
            said = json.dumps(
                {
                    "prompt": prompt,
                    "identity": request.ModelIdentity,
                    "metadata": {k: v for k, v in call.metadata if isinstance(v, str)},
                    "remaining": call.context.time_remaining(),
                    "pid": os.getpid(),
                }
            )
        reply = pb.Reply(message=said.encode(), tokens=count, prompt_tokens=count)
        self.filled(reply, call.how)
        return reply

    def filled(self, message: Any, how: Behaviour) -> Any:
        """Count a reply, and pad it to `message_bytes`."""
        if isinstance(message, pb.Reply):
            self._tokens += 1
            if how.message_bytes > len(message.message):
                message.message = message.message.ljust(how.message_bytes, b".")
        return message

    def status(self, _: Any, call: Call) -> pb.StatusResponse:
        """Return the state and the memory."""
        how = call.how
        if how.state:
            try:
                state = pb.StatusResponse.State.Value(how.state.upper())
            except ValueError as error:
                raise BehaviourError(f"state: {error}") from None
        elif self.options is None:
            state = pb.StatusResponse.UNINITIALIZED
        else:
            state = pb.StatusResponse.BUSY if self.slots.taken else pb.StatusResponse.READY
        total = how.memory_mib * _MIB or _resident()
        return pb.StatusResponse(
            state=state, memory=pb.MemoryUsageData(total=total, breakdown={"rss": total})
        )

    def metrics(self, _: Any, call: Call) -> pb.MetricsResponse:
        """Return the counters."""
        how = call.how
        return pb.MetricsResponse(
            tokens_per_second=1 / how.token_seconds if how.token_seconds else 0,
            tokens_generated=self._tokens,
            prompt_tokens_processed=self._prompts,
        )


def _resident() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
