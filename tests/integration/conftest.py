from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.tools.faulty_http import FaultyServer
from tests.tools.gallery_service import DATA, PATH, SMALL, SMALL_PATH
from tests.tools.running import LoaderUnderTest
from tests.tools.transparency import World, running_world


@pytest.fixture
async def loader(tmp_path: Path) -> AsyncIterator[LoaderUnderTest]:
    """A loader that is not started yet, so that the test can set up its folders first."""
    under_test = LoaderUnderTest(tmp_path / "home")
    yield under_test
    await under_test.close()


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    """A model server that misbehaves as the test scripts it."""
    with FaultyServer() as running:
        running.add(PATH, DATA, etag='"1"')
        running.add(SMALL_PATH, SMALL)
        yield running


@pytest.fixture
async def running(loader: LoaderUnderTest) -> LoaderUnderTest:
    """A running loader with a scripted backend and one model, `m`, not loaded yet."""
    loader.add_backend("fake")
    loader.add_model("m", "fake")
    await loader.start("--load-backoff", "1s")
    return loader


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A standalone backend, a loader, and all routes to both."""
    with running_world(tmp_path_factory.mktemp("world")) as running:
        yield running
