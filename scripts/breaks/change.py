"""What a break is, and where the code and the tests are."""

from __future__ import annotations

from dataclasses import dataclass

LOADER = "services/loader"
LIFE = "tests/unit/loader/lifecycle/test_machine.py"
PLANS = "tests/unit/loader/scheduling/test_eviction.py"
WAITERS = "tests/unit/loader/admission/test_waiters.py"
TURNS = "tests/unit/loader/admission/test_fair_queue.py"
ADMISSION = "tests/unit/loader/admission/test_meter.py"
LOOKS = "tests/unit/loader/scheduling/test_scheduler.py"
RELEASE = "tests/unit/loader/scheduling/test_ledger_release.py"
LEASES = "tests/unit/loader/direct/test_lease_book.py"
DIRECT = "tests/integration/loader/test_direct.py"
LIVES = "tests/integration/loader/test_lifecycle.py"
FAILURES = "tests/integration/loader/test_failures.py"
LIMITS = "tests/integration/loader/test_limits.py"
CALL_LIMITS = "tests/integration/loader/test_limits_calls.py"
ADMITS = "tests/integration/loader/test_admission.py"
PROCESS = "tests/integration/loader/test_process.py"
ADOPTION = "tests/integration/loader/test_adoption.py"
ORPHANS = "tests/integration/loader/test_orphans.py"
ENDPOINTS = "tests/integration/loader/endpoints/test_endpoints.py"
PROMISES = "tests/integration/loader/test_invariants.py"
V2 = "tests/integration/loader/localai/test_v2_defects.py"
HEAD = "tests/integration/loader/localai/test_head_defects.py"


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
