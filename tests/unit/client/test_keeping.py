"""Which way a call takes: the rules of corral.client, in any order of events."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from corral.client import reach
from corral.client.keeping import Advice, Keeping, Lease, advice
from tests.tools.service import environment

IDLE, PAUSE = 10.0, 60.0


class Machine(RuleBasedStateMachine):
    """Calls that come and end while leases are granted, refused, advised about and lost."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.keeping = Keeping(idle=IDLE, pause=PAUSE, clock=lambda: self.now)
        self.leases: list[Lease] = []
        self.calls: list[Lease] = []
        self.refusals = 0

    @rule(seconds=st.floats(0, 30))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def call_begins(self) -> None:
        current = self.keeping.current
        lease = self.keeping.enter()
        assert lease is current
        if lease is not None:
            assert not lease.leaving
            self.calls.append(lease)
        elif self.keeping.ask():
            assert not self.keeping.closed
            assert not self.keeping.ask()  # one at a time

    @precondition(lambda self: self.calls)
    @rule(which=st.integers(0))
    def call_ends(self, which: int) -> None:
        lease = self.calls.pop(which % len(self.calls))
        told = self.keeping.leave(lease)
        assert told == (lease.leaving and lease not in self.calls)

    @precondition(lambda self: self.keeping.asking_since is not None)
    @rule()
    def granted(self) -> None:
        lease = Lease()
        self.keeping.granted(lease)
        self.leases.append(lease)
        self.refusals = 0
        assert (self.keeping.current is lease) is not self.keeping.closed

    @precondition(lambda self: self.keeping.asking_since is not None)
    @rule(for_long=st.booleans())
    def refused(self, for_long: bool) -> None:
        self.refusals += 1
        self.keeping.refused(for_long=for_long)
        assert not self.keeping.ask()
        pause = PAUSE if for_long else min(2.0 ** (self.refusals - 1), PAUSE)
        self.now += pause
        if self.keeping.ask():
            assert not self.keeping.closed
        else:
            assert self.keeping.closed

    @precondition(lambda self: self.leases)
    @rule(which=st.integers(0), told=st.sampled_from(Advice))
    def advised(self, which: int, told: Advice) -> None:
        lease = self.leases[which % len(self.leases)]
        self.keeping.advised(lease, told)
        if told is Advice.MOVE or (told is Advice.YIELD and not lease.active):
            assert lease.leaving

    @precondition(lambda self: self.keeping.current)
    @rule()
    def looked_at(self) -> None:
        lease = self.keeping.current
        assert lease is not None
        unused = not lease.active and self.now - lease.idle_since >= IDLE
        left = self.keeping.patience(lease)
        assert lease.leaving is unused and left >= 0

    @rule()
    @precondition(lambda self: len(self.leases) > 3)
    def closed(self) -> None:
        self.keeping.close()

    @invariant()
    def calls_are_counted_where_they_run(self) -> None:
        for lease in self.leases:
            assert lease.active == self.calls.count(lease)
            # What takes no more calls is never what new calls take.
            assert not (lease.leaving and self.keeping.current is lease)
        if self.keeping.closed:
            assert self.keeping.current is None


TestKeeping = Machine.TestCase


def test_advice_of_a_later_contract_means_to_go_on() -> None:
    assert [advice(number) for number in (0, 1, 2, 3, 99)] == [
        Advice.KEEP, Advice.KEEP, Advice.YIELD, Advice.MOVE, Advice.KEEP,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("loader", "address", "may"),
    [
        ("127.0.0.1:50051", "unix:/run/x.sock", True),
        ("unix:/run/loader.sock", "127.0.0.1:4000", True),
        ("localhost:50051", "[::1]:4000", True),
        ("[::1]:50051", "gpu-box:4000", True),
        # What is loopback there is another thing here.
        ("10.0.0.7:50051", "127.0.0.1:4000", False),
        ("loader.example:50051", "unix:/run/x.sock", False),
        ("loader.example:50051", "gpu-box:4000", True),
    ],
)
def test_addresses_that_mean_the_same_here(loader: str, address: str, may: bool) -> None:
    assert reach.reachable(loader, address) is may


def test_our_metadata_wins() -> None:
    own = reach.to_backend("t")
    given = [("authorization", "mine"), ("k", "v")]
    assert reach.joined(given, own) == (("k", "v"), ("authorization", "Bearer t"))
    assert reach.to_backend("") == ()
    assert reach.to_model("m") == (("corral-model", "m"),)
    assert reach.to_model("é") == (("corral-model-bin", "é".encode()),)


def test_the_client_needs_nothing_of_the_services() -> None:
    code = (
        "import sys, corral.client; roots = {name.split('.')[0] for name in sys.modules};"
        "print(*roots & {'services', 'structlog', 'pydantic', 'yaml'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env=environment(PYTHONPATH=":".join(sys.path)),
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\n", b"")
