"""A unit test is found where its module is: services/x/y.py is tested in tests/unit/x/test_y.py."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "tests" / "unit"

ACROSS_MODULES = {
    "loader/endpoints/test_folder_and_config.py": "the folder, its settings and the header blocks",
    "loader/endpoints/test_frames.py": "client_frames and backend_frames against hyperframe",
    "loader/scheduling/test_ledger_release.py": "the ledger together with the stop of an instance",
    "loader/supervision/test_room.py": "the supervisors together with the scheduler",
    "loader/test_localai_defects.py": "a list of LocalAI's defects, each with its test",
}
"""Tests of several modules together, and what they cover."""


def test_each_unit_test_has_the_name_and_the_place_of_its_module() -> None:
    misplaced = []
    for service in (ROOT / "services").iterdir():
        for file in (UNIT / service.name).rglob("test_*.py"):
            name = file.relative_to(UNIT).as_posix()
            folder = (ROOT / "services" / name).parent
            module = folder / file.name.removeprefix("test_")
            if not folder.is_dir() or not (module.is_file() or name in ACROSS_MODULES):
                misplaced.append(name)
    assert not misplaced


def test_tests_across_modules_exist_and_say_what_they_cover() -> None:
    for name in ACROSS_MODULES:
        assert (UNIT / name).read_text().startswith('"""'), name
