"""The event loop that a service is given."""

from __future__ import annotations

import sys

import pytest
from structlog.testing import capture_logs

from services.common.process.event_loop import loop_factory
from services.common.process.listen_address import StartError


def test_asyncios_own_loop() -> None:
    assert loop_factory("asyncio") is None


@pytest.mark.parametrize("wanted", ["auto", "uvloop"])
def test_uvloop_is_taken_where_it_is(wanted: str) -> None:
    factory = loop_factory(wanted)  # type: ignore[arg-type]
    assert factory is not None
    loop = factory()
    try:
        assert type(loop).__module__.startswith("uvloop")
    finally:
        loop.close()


def test_without_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    with capture_logs() as lines:
        assert loop_factory("auto") is None
    assert "uvloop" in lines[0]["event"]
    with pytest.raises(StartError, match="--event-loop"):
        loop_factory("uvloop")
