import sys

import pytest

from services.common.process.lean_imports import without


def test_imports_fail_within_only() -> None:
    sys.modules.pop("this", None)
    with without("this"), pytest.raises(ImportError):
        import this  # noqa: F401
    assert "this" not in sys.modules


def test_what_is_imported_already_stays() -> None:
    with without("sys"):
        import sys as again
    assert again is sys
