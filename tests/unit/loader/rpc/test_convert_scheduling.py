from pathlib import Path

from corral.loader.v1 import loader_pb2 as pb
from services.loader.live_settings import LiveSettings
from services.loader.rpc import convert_scheduling

TYPE = pb.SettingDescription


def described(live: LiveSettings) -> dict[str, pb.SettingDescription]:
    return {one.name: one for one in convert_scheduling.descriptions(live)}


def test_each_setting_is_described() -> None:
    found = described(LiveSettings({}, ()))
    assert list(found) == [field.name for field in pb.Settings.DESCRIPTOR.fields]
    assert all(one.description and one.type for one in found.values())


def test_values_defaults_types_and_units_are_as_typed(tmp_path: Path) -> None:
    live = LiveSettings({"context_size": 2048}, {"context_size"}, tmp_path / "settings.json")
    live.update({"watchdog_idle_timeout": 5400.0, "watchdog_idle": True})
    found = described(live)
    size, timeout, idle = (
        found[name] for name in ("context_size", "watchdog_idle_timeout", "watchdog_idle")
    )
    assert (size.value, size.default_value, size.type) == ("2048", "0", TYPE.TYPE_INTEGER)
    assert (size.unit, size.source, size.kept) == ("tokens", "start", False)
    assert (timeout.value, timeout.default_value) == ("1h30m", "15m")
    assert (timeout.type, timeout.source, timeout.kept) == (TYPE.TYPE_DURATION, "runtime", True)
    assert (idle.value, idle.default_value, idle.type) == ("true", "false", TYPE.TYPE_BOOL)
    assert found["memory_reclaimer_threshold"].value == "0.95"
    assert found["vram_budget"].type == TYPE.TYPE_TEXT


def test_a_change_is_not_kept_without_a_file() -> None:
    live = LiveSettings({}, ())
    live.update({"threads": 4})
    assert not described(live)["threads"].kept
