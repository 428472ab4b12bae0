"""What the gateway does that no Python backend can tell from outside."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from services.loader.backend_catalog import Backend
from services.loader.gateway import Requests
from services.loader.instance import Instance, Lease
from services.loader.model_catalog import ModelEntry


def lease() -> Lease:
    instance = Instance("u", 1, "m", Backend("fake", Path("/run.sh")), ModelEntry("m"), 0.0)
    return Lease(instance, lambda instance: None)


class Ended:
    def __aiter__(self) -> Ended:
        return self

    async def __anext__(self) -> bytes:
        raise StopAsyncIteration


async def test_the_end_of_a_cancelled_calls_messages_is_not_passed_on() -> None:
    """gRPC ends them a moment before it says that the client cancelled."""
    end = asyncio.ensure_future(Requests(Ended(), lease()).__anext__())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not end.done()
    end.cancel()
    with pytest.raises(asyncio.CancelledError):
        await end


async def test_the_end_of_a_clients_messages_is_passed_on() -> None:
    held = lease()
    assert [request async for request in Requests(Ended(), held)] == []
    assert held.progress < float("inf"), "it is the backend's turn"
