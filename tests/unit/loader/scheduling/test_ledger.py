"""The memory that models are expected to need, and how it changes when it was too little."""

from __future__ import annotations

from pathlib import Path

from services.loader.backends.catalog import Backend
from services.loader.devices.devices import RAM, Device
from services.loader.live_settings import Tunables
from services.loader.memory.learned import Footprints
from services.loader.memory.reservation import Reservation
from services.loader.models.catalog import ModelEntry
from services.loader.scheduling.ledger import Ledger


class Machine:
    """1000 bytes, 100 of them used by other processes."""

    def read(self) -> tuple[Device, ...]:
        return (Device(RAM, "", 1000, 900),)

    def measure(self, group: int, uid: str) -> dict[str, int]:
        return {}


def test_a_model_that_lacks_memory_again_and_again_can_still_be_loaded(tmp_path: Path) -> None:
    footprints = Footprints(tmp_path / "footprints.json")
    ledger = Ledger(
        devices=Machine(),
        predict=lambda entry, backend: Reservation({RAM: 100}),
        measure=Machine(),
        footprints=footprints,
        release_timeout=1.0,
    )
    free = ledger.free((), Tunables())
    entry, backend = ModelEntry("m"), Backend("x", Path("/x"))
    assert ledger.reserve(entry, backend, more=True).memory[RAM] == 150
    assert ledger.reserve(entry, backend, more=False).memory[RAM] == 150
    for _ in range(20):
        ledger.reserve(entry, backend, more=True)
    assert ledger.reserve(entry, backend, more=False).memory[RAM] == 810 < free[RAM]
    footprints.close()
