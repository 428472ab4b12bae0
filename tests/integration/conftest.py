from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.tools.running import LoaderUnderTest


@pytest.fixture
async def loader(tmp_path: Path) -> AsyncIterator[LoaderUnderTest]:
    """A loader that is not started yet, so that the test can lay out its folders first."""
    under_test = LoaderUnderTest(tmp_path / "home")
    yield under_test
    await under_test.close()
