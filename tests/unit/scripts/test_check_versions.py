"""The suite and its SDK have one version."""

from __future__ import annotations

import pytest

from scripts.check_versions import main, problem


def suite(version: str, wanted: str) -> str:
    return f'[project]\nversion = "{version}"\ndependencies = ["corral-sdk{wanted}"]\n'


@pytest.mark.parametrize(
    ("version", "wanted", "sdk", "expected"),
    [
        ("1.2.0", "==1.2.0", "1.2.0", ""),
        ("1.2.0", "==1.2.0", "1.2.1", "corral is 1.2.0 and corral-sdk is 1.2.1"),
        ("1.2.0", ">=1.2.0", "1.2.0", "must depend on corral-sdk==1.2.0"),
    ],
)
def test_other_versions_are_a_problem(version: str, wanted: str, sdk: str, expected: str) -> None:
    found = problem(suite(version, wanted), f'[project]\nversion = "{sdk}"\n')
    assert expected in found and bool(expected) == bool(found)


def test_the_checkout_has_equal_versions() -> None:
    assert main() == 0
