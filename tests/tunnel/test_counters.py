"""The book of an engine: every way to write in it keeps the ledger balanced."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from support.doubles import NETWORK

from overlay.addr import NetworkId
from overlay.verdict import Deliver, Direction, DropReason
from tunnel.counters import Counters, drop_counts, joined
from tunnel.interfaces import FlowStatistics

OTHER = NetworkId("other")
REASONS = st.sampled_from(DropReason)
NETWORKS = st.sampled_from([NETWORK, OTHER, None])


class BookModel(RuleBasedStateMachine):
    """Frames come, wait, and leave once, each way an engine has."""

    def __init__(self) -> None:
        super().__init__()
        self.counters = Counters()
        self.held = 0
        self.named: dict[tuple[NetworkId | None, DropReason], int] = {}
        self.of_vtep = drop_counts()
        self.dropped_of_vtep = 0

    @rule()
    def receive(self) -> None:
        self.counters.received += 1
        self.held += 1

    @rule()
    def generate(self) -> None:
        self.counters.generated += 1
        self.held += 1

    @rule(is_sent=st.booleans())
    def carry(self, is_sent: bool) -> None:
        if self.held:
            self.held -= 1
            self.counters.sent += is_sent
            self.counters.delivered += not is_sent

    @rule(reason=REASONS, network=NETWORKS, has_vtep=st.booleans())
    def drop(self, reason: DropReason, network: NetworkId | None, has_vtep: bool) -> None:
        if self.held:
            self.held -= 1
            self.counters.drop(reason, network, self.of_vtep if has_vtep else None)
            self.name(network, reason, 1)
            self.dropped_of_vtep += has_vtep

    @rule(reason=REASONS, network=NETWORKS, frames=st.integers(1, 99))
    def lose_before(self, reason: DropReason, network: NetworkId | None, frames: int) -> None:
        self.counters.lost_before_us(reason, network, frames=frames)
        self.name(network, reason, frames)

    @rule(reason=REASONS)
    def lose_after(self, reason: DropReason) -> None:
        if self.counters.sent:
            self.counters.lost_after_us(reason, NETWORK, self.of_vtep)
            self.name(NETWORK, reason, 1)
            self.dropped_of_vtep += 1

    def name(self, network: NetworkId | None, reason: DropReason, frames: int) -> None:
        self.named[network, reason] = self.named.get((network, reason), 0) + frames

    @invariant()
    def the_ledger_balances(self) -> None:
        assert self.counters.ledger(held=self.held).balances

    @invariant()
    def every_drop_has_its_name_and_place(self) -> None:
        written = {
            (network, reason): count
            for network, drops in self.counters.drops.items()
            for reason, count in drops.items()
        }
        assert written == self.named
        assert self.counters.dropped == sum(self.named.values())
        assert sum(self.of_vtep.values()) == self.dropped_of_vtep


TestBook = BookModel.TestCase
TestBook.settings = settings(stateful_step_count=30)


def test_a_frame_that_vanished_is_seen() -> None:
    counters = Counters()
    counters.received += 2
    counters.sent += 1
    assert not counters.ledger(held=0).balances
    assert counters.ledger(held=1).balances


def test_what_several_workers_remember_of_two_ends_is_one_row() -> None:
    flow = FlowStatistics(NetworkId("lab"), Direction.EGRESS, None, bytes(12), Deliver(), 1, 60, 5.0)
    other = replace(flow, frames=5, octets=700, used_at=4.0)
    elsewhere = replace(flow, direction=Direction.INGRESS)
    assert list(joined([flow, elsewhere, other])) == [replace(flow, frames=6, octets=760), elsewhere]
