"""What docs/architecture.md names exists, and it leaves out no package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs" / "architecture.md").read_text()
PATHS = sorted(set(re.findall(r"`([a-z_]+(?:/[a-z_]+)*(?:/|\.py|\.toml))`", TEXT)))
PACKAGES = sorted(
    f"{folder.relative_to(ROOT / 'services')}/"
    for folder in (ROOT / "services").glob("*/*")
    if (folder / "__init__.py").exists()
)


@pytest.mark.parametrize("path", PATHS)
def test_each_path_exists(path: str) -> None:
    assert (ROOT / "services" / path).exists() or (ROOT / path).exists()


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_is_left_out(package: str) -> None:
    assert f"`{package}`" in TEXT


def test_the_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / "docs" / target).exists()
