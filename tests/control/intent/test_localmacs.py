"""A MAC is claimed where it is seen, follows its owner, and is frozen where it is in two places at once."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from support.doubles import mac

from control.intent.localmacs import FROZEN_SECONDS, LOCAL_MACS_MAX, MOVES_MAX, MOVES_SECONDS, LocalMacs
from control.membership.recordbody import LocalMac
from overlay.addr import Mac

OWN, A, B = mac(0), mac(1), mac(2)


def claims(macs: LocalMacs, elsewhere: dict[Mac, int] | None = None, *, now: float) -> dict[Mac, int]:
    return {each.mac: each.sequence for each in macs.claims(elsewhere or {}, now=now)}


def test_the_devices_own_mac_is_always_claimed_and_never_moves() -> None:
    macs = LocalMacs(OWN, ageing=300)
    macs.see({OWN: 5.0}, {OWN: 7}, now=5.0)
    assert claims(macs, {OWN: 7}, now=1e6) == {OWN: 0}


def test_what_is_seen_is_claimed_until_it_ages() -> None:
    macs = LocalMacs(OWN, ageing=300)
    macs.see({A: 10.0}, {}, now=11.0)
    assert claims(macs, now=309.0) == {OWN: 0, A: 0}
    macs.see({A: 200.0}, {}, now=201.0)
    assert A in claims(macs, now=499.0)
    assert A not in claims(macs, now=500.0)


def test_what_was_elsewhere_is_claimed_one_higher() -> None:
    macs = LocalMacs(OWN, ageing=300)
    macs.see({A: 10.0}, {A: 4}, now=10.0)
    assert claims(macs, {A: 4}, now=10.0)[A] == 5


def test_what_moves_away_is_let_go_and_an_old_flow_does_not_call_it_back() -> None:
    macs = LocalMacs(OWN, ageing=300)
    macs.see({A: 10.0}, {}, now=10.0)
    assert A not in claims(macs, {A: 1}, now=12.0)
    macs.see({A: 10.0}, {A: 1}, now=13.0)
    assert A not in claims(macs, {A: 1}, now=13.0)
    macs.see({A: 14.0}, {A: 1}, now=14.0)
    assert claims(macs, {A: 1}, now=14.0)[A] == 2


def test_what_moves_back_and_forth_is_frozen_and_named() -> None:
    macs, other = LocalMacs(OWN, ageing=300), 0
    for move in range(MOVES_MAX + 3):
        now = 10.0 + move
        macs.see({A: now}, {A: other}, now=now)
        other = claims(macs, {A: other}, now=now).get(A, other) + 1
    assert macs.doubles(now=20.0) == [A]
    assert macs.doubles(now=20.0 + FROZEN_SECONDS) == []


def test_moves_long_ago_do_not_count() -> None:
    macs, now = LocalMacs(OWN, ageing=1e9), 0.0
    for move in range(3 * MOVES_MAX):
        now = 10.0 + move * MOVES_SECONDS / 2
        macs.see({A: now}, {A: 2 * move}, now=now)
    assert macs.doubles(now=now) == []


def test_a_flood_of_sources_fills_its_own_room_and_no_more() -> None:
    macs = LocalMacs(OWN, ageing=300)
    macs.see({mac(number): 1.0 for number in range(1, LOCAL_MACS_MAX + 10)}, {}, now=1.0)
    assert len(claims(macs, now=2.0)) == LOCAL_MACS_MAX + 1
    assert macs.is_full
    macs.forget(now=301.0)
    assert not macs.is_full
    macs.see({B: 301.0}, {}, now=301.0)
    assert B in claims(macs, now=301.0)


class TwoNodes(RuleBasedStateMachine):
    """One station that talks at either of two nodes; each hears the other's claims at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.nodes = (LocalMacs(mac(90), ageing=300), LocalMacs(mac(91), ageing=300))
        self.last: int | None = None

    def claim(self, side: int, elsewhere: dict[Mac, int]) -> dict[Mac, int]:
        mine = {each.mac: each.sequence for each in self.nodes[side].claims(elsewhere, now=self.now)}
        return {A: mine[A]} if A in mine else {}

    @rule(side=st.integers(0, 1), after=st.floats(30.0, 100.0))
    def talk(self, side: int, after: float) -> None:
        self.now += after
        theirs = self.claim(1 - side, {})
        self.nodes[side].see({A: self.now}, theirs, now=self.now)
        self.last = side

    @invariant()
    def it_is_where_it_talked_last(self) -> None:
        if self.last is None or any(node.doubles(now=self.now) for node in self.nodes):
            return
        here = self.claim(self.last, {})
        there = self.claim(1 - self.last, here)
        assert here, "nobody claims what is seen"
        assert not there or there[A] < here[A]


TestTwoNodes = TwoNodes.TestCase


def test_claims_are_in_order_so_that_a_record_changes_only_when_they_do() -> None:
    macs = LocalMacs(OWN, ageing=300)
    macs.see({B: 1.0, A: 1.0}, {}, now=1.0)
    assert macs.claims({}, now=2.0) == (LocalMac(OWN), LocalMac(A), LocalMac(B))
