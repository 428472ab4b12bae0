"""What a break is, and where the code and the tests are."""

from __future__ import annotations

from dataclasses import dataclass

LOADER = "services/loader"
LIFE = "tests/unit/loader/test_lifecycle.py"
PLANS = "tests/unit/loader/test_eviction.py"
WAITERS = "tests/unit/loader/test_waiters.py"
TURNS = "tests/unit/loader/test_fair_queue.py"
ADMISSION = "tests/unit/loader/test_admission.py"
LOOKS = "tests/unit/loader/test_scheduler.py"
RELEASE = "tests/unit/loader/test_release.py"
LEASES = "tests/unit/loader/test_lease_book.py"
DIRECT = "tests/integration/test_loader_direct.py"
LIVES = "tests/integration/test_loader_lifecycle.py"
FAILURES = "tests/integration/test_loader_failures.py"
LIMITS = "tests/integration/test_loader_limits.py"
CALL_LIMITS = "tests/integration/test_loader_limits_calls.py"
ADMITS = "tests/integration/test_loader_admission.py"
PROCESS = "tests/integration/test_loader_process.py"
ADOPTION = "tests/integration/test_loader_adoption.py"
ORPHANS = "tests/integration/test_loader_orphans.py"
ENDPOINTS = "tests/integration/test_endpoints.py"
PROMISES = "tests/integration/test_loader_invariants.py"
V2 = "tests/integration/test_localai_v2_defects.py"
HEAD = "tests/integration/test_localai_head_defects.py"


@dataclass(frozen=True, slots=True)
class Break:
    """One change that breaks a rule."""

    invariant: int
    what: str
    file: str
    old: str
    """Occurs once in the file."""
    new: str
    test: str
    """Must fail with the change."""
