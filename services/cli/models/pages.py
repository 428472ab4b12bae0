"""The loader's models and backends, collected over all pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from corral.loader.v1 import loader_pb2
from services.cli.client.clients import Clients

_PAGE: Final = 1000


async def models(
    clients: Clients, states: Sequence[loader_pb2.Model.State.ValueType] = ()
) -> list[loader_pb2.Model]:
    """Return the models in these states, or all."""
    found: list[loader_pb2.Model] = []
    token = ""
    while True:
        request = loader_pb2.ListModelsRequest(
            page_size=_PAGE, page_token=token, filter=loader_pb2.ModelFilter(states=states)
        )
        answer = await clients.call("loader", clients.loader.ListModels, request)
        found += answer.models
        token = answer.next_page_token
        if not token:
            return found


async def backends(clients: Clients) -> list[loader_pb2.Backend]:
    """Return all backends, usable or not, in the order of their folders."""
    found: list[loader_pb2.Backend] = []
    token = ""
    while True:
        request = loader_pb2.ListBackendsRequest(page_size=_PAGE, page_token=token)
        answer = await clients.call("loader", clients.loader.ListBackends, request)
        found += answer.backends
        token = answer.next_page_token
        if not token:
            return found
