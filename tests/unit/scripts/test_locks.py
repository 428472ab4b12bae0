"""The lock files hold what pyproject.toml asks for, with hashes and without the address of an index."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OWN = {"corral-sdk"}


def locked(name: str) -> dict[str, list[str]]:
    """Return each package's versions; several where they depend on the Python version."""
    versions: dict[str, list[str]] = {}
    for match in re.finditer(
        r"^([\w.-]+)==(\S+)", (ROOT / "requirements" / name).read_text(), re.MULTILINE
    ):
        versions.setdefault(canonicalize_name(match[1]), []).append(match[2])
    return versions


def group(name: str) -> list[Requirement]:
    entries: list[Any] = PROJECT["dependency-groups"][name]
    found = []
    for entry in entries:
        found += group(entry["include-group"]) if isinstance(entry, dict) else [Requirement(entry)]
    return found


def users() -> list[Requirement]:
    project = PROJECT["project"]
    texts = [*project["dependencies"], *project["optional-dependencies"]["llama-cpp"]]
    return [Requirement(text) for text in texts]


@pytest.mark.parametrize(
    ("lock", "wanted"),
    [
        ("users.lock", [*users(), *group("editable")]),
        ("developers.lock", [*users(), *group("dev")]),
    ],
)
def test_a_lock_holds_a_version_in_each_range(lock: str, wanted: list[Requirement]) -> None:
    versions = locked(lock)
    for requirement in wanted:
        if requirement.name not in OWN:
            found = versions.get(canonicalize_name(requirement.name), [])
            assert found, f"{lock} lacks {requirement.name}; run `make lock`"
            assert all(map(requirement.specifier.contains, found)), requirement


def test_users_get_the_versions_that_developers_test() -> None:
    developers = locked("developers.lock")
    assert {name: developers[name] for name in locked("users.lock")} == locked("users.lock")


@pytest.mark.parametrize("lock", ["users.lock", "developers.lock"])
def test_each_package_has_hashes_and_no_index_is_named(lock: str) -> None:
    text = (ROOT / "requirements" / lock).read_text()
    assert "://" not in text and not re.search(r"^--", text, re.MULTILINE)
    for entry in re.split(r"\n(?=\w)", text)[1:]:
        assert "--hash=sha256:" in entry, entry
        if marker := re.search(r" ; (.*?)( \\)?$", entry.splitlines()[0]):
            Marker(marker[1])
