import threading

import pytest

from services.common.errors import DeadlineError
from services.metrics.readout import Readout
from services.metrics.values.family import Family, Kind


def source() -> list[Family]:
    return [Family("n", "", "", Kind.COUNTER, {(): 2.0})]


async def test_all_sources_are_merged() -> None:
    readout = Readout(source, source, limit=5)
    (family,) = await readout.read()
    assert family.series == {(): 4.0}
    assert b"n_total 4.0" in readout.page().body


async def test_a_read_that_takes_too_long_is_an_error() -> None:
    go_on = threading.Event()
    readout = Readout(limit=0.01)
    try:
        with pytest.raises(DeadlineError, match="longer than"):
            await readout.on_thread(go_on.wait)
    finally:
        go_on.set()
