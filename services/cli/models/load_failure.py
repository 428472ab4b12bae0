"""Why a load failed: details from the loader and the backend in addition to the error."""

from __future__ import annotations

from contextlib import aclosing, suppress
from typing import Final

from corral.loader.v1 import loader_pb2
from services.cli.client.clients import Clients
from services.cli.display import messages, phrases, text, views
from services.cli.failures import Failure, explain
from services.common.errors import CorralError

# An explanation is optional: it must not delay the failure much.
_TIMEOUT: Final = 2.0
_LINES: Final = 5
# The last useful lines are chosen from this many.
_HISTORY: Final = 50
_USELESS: Final = (loader_pb2.LogLine.LEVEL_DEBUG, loader_pb2.LogLine.LEVEL_INFO)
_LINE_WIDTH: Final = 300
_OF_BACKENDS: Final = frozenset(
    {
        "MODEL_LOAD_FAILED",
        "BACKEND_START_FAILED",
        "BACKEND_NOT_READY",
        "BACKEND_CRASHED",
        "BACKEND_NOT_FOUND",
        "LOAD_BACKOFF",
        "CRASH_LOOP",
    }
)


async def explained(clients: Clients, name: str, error: CorralError) -> Failure:
    """Return the failure of a load, with each backend's failure and last output, or the models in the way."""
    failure = explain(error, model=name)
    with suppress(CorralError, Failure):
        if failure.reason == "NO_ROOM":
            failure.details = tuple(await _blockers(clients, name, failure.message))
        elif failure.reason in _OF_BACKENDS:
            model = await _model(clients, name)
            failure.details = (
                *_candidates(model, failure.message),
                *await _last_output(clients, name, failure.message),
            )
            if failure.reason not in ("LOAD_BACKOFF", "CRASH_LOOP") and model["retry_time"]:
                failure.hint += f"; {phrases.retry(model['retry_time'])}, or at once with `corral load {name} --now`"
    return failure


def _candidates(model: views.Model, message: str) -> list[str]:
    """Return a line for each backend that failed, unless the message already contains it."""
    failed = model["failures"]
    if len(failed) == 1 and failed[0]["message"] in message:
        return []
    return [phrases.failure(one) for one in failed]


async def _model(clients: Clients, name: str) -> views.Model:
    request = loader_pb2.GetModelRequest(name=name)
    answer = await clients.call("loader", clients.loader.GetModel, request, timeout=_TIMEOUT)
    return messages.model(answer.model)


async def _last_output(clients: Clients, name: str, message: str) -> list[str]:
    """Return the last useful lines that the newest backend wrote to stderr and `message` does not contain."""
    request = loader_pb2.StreamLogsRequest(
        name=name, tail_lines=_HISTORY, streams=[loader_pb2.LogLine.STREAM_STDERR]
    )
    stream = clients.stream("loader", clients.loader.StreamLogs, request, timeout=_TIMEOUT)
    lines: list[loader_pb2.LogLine] = []
    with suppress(CorralError, Failure):
        async with aclosing(stream) as messages:
            lines = [message.line async for message in messages if message.HasField("line")]
    newest = max((line.generation for line in lines), default=0)
    useful = [
        text.clip(line.text, _LINE_WIDTH)
        for line in lines
        if line.generation == newest
        and line.level not in _USELESS
        and line.text.strip()
        and line.text.strip() not in message
    ]
    return [f"stderr: {line}" for line in useful[-_LINES:]]


async def _blockers(clients: Clients, name: str, message: str) -> list[str]:
    """Return the models that cannot be evicted, and why, unless `message` names them."""
    request = loader_pb2.PlanEvictionRequest(name=name)
    answer = await clients.call("loader", clients.loader.PlanEviction, request, timeout=_TIMEOUT)
    return [
        f"{messages.bare(one.model)} stays: {one.explanation}"
        for one in answer.blockers
        if messages.bare(one.model) not in message
    ]
