"""Forgetting is exact: what is remembered is what would be decided now, and nothing else was forgotten."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from support.doubles import LOCAL, NETWORK, OWN_MAC, VTEP_B, VTEP_C, frame, mac

from overlay.addr import BROADCAST, Mac, Vtep, VtepId
from overlay.bridge import Bridge, BridgePolicy
from overlay.fdb import Origin
from overlay.tables import (
    Change,
    FdbRefresh,
    FdbRemove,
    FdbReplace,
    FloodReplace,
    NeighborReplace,
    TableDelta,
    Tables,
    VtepRemove,
    VtepReplace,
    fdb_key,
)
from overlay.verdict import Decision, Deliver, TableKey
from tunnel.flows import (
    EXPIRE_SLICE,
    IDLE_SECONDS,
    PENDING_FRAMES_MAX,
    PENDING_OCTETS_MAX,
    Dependents,
    Flow,
    FlowTable,
    Held,
    PendingFlow,
)

KEY = b"destination-source"[:12]
PLACES = [fdb_key(NETWORK, mac(number)) for number in range(4)]


def flow(key: bytes = KEY, *rests_on: TableKey, now: float = 0.0, expires_at: float | None = None) -> Flow:
    decision = Decision(Deliver(), key, rests_on=rests_on, expires_at=expires_at)
    return Flow(key, decision, target=None, now=now)


# ── Exact forgetting ────────────────────────────────────────────────────────────────────────────────────

MACS = st.integers(0, 3).map(mac)
DESTINATIONS = st.one_of(MACS, st.sampled_from([BROADCAST, Mac(b"\x01\x80\xc2\0\0\x0e")]))
VTEPS = st.sampled_from([VTEP_B, VTEP_C])
CHANGES = st.one_of(
    st.builds(VtepReplace, st.just(NETWORK), st.builds(Vtep, VTEPS, st.sampled_from([4789, 8472]))),
    st.builds(VtepRemove, st.just(NETWORK), VTEPS),
    st.builds(FdbReplace, st.just(NETWORK), MACS, VTEPS, st.sampled_from(Origin), st.just(0.0)),
    st.builds(FdbRefresh, st.just(NETWORK), MACS, VTEPS, st.just(1.0)),
    st.builds(FdbRemove, st.just(NETWORK), MACS),
    st.builds(FloodReplace, st.just(NETWORK), st.lists(VTEPS, unique=True).map(tuple)),
    st.builds(
        NeighborReplace,
        st.just(NETWORK),
        st.just(ip_address("10.9.0.1")),
        MACS,
        st.just(Origin.LEARNED),
        st.just(0.0),
    ),
)


class ForgettingModel(RuleBasedStateMachine):
    """Real tables and decisions, every verdict remembered, and a naive search through all of them.

    One flow table for egress and one for each VTEP, as an engine has them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tables = Tables()
        self.tables.add_network(NETWORK)
        self.dependents = Dependents()
        self.egress_flows = FlowTable(1000, self.dependents)
        self.ingress_flows = {vtep: FlowTable(1000, self.dependents) for vtep in (VTEP_B, VTEP_C)}
        self.bridge = Bridge(BridgePolicy(NETWORK, OWN_MAC, fdb_max=3), self.tables)
        self.tables.subscribe(self.tables_changed)

    def tables_changed(self, _: TableDelta, touched: frozenset[TableKey]) -> None:
        """Forgets what rests on these places, and holds it against a search for them."""
        before = self.remembered()
        resting = {id(flow) for flow in before if touched.intersection(flow.rests_on)}
        assert self.dependents.forget(touched) == len(resting)
        assert {id(flow) for flow in before} - {id(flow) for flow in self.remembered()} == resting

    def remembered(self) -> list[Flow]:
        tables = (self.egress_flows, *self.ingress_flows.values())
        return [flow for table in tables for flow in table.active.values()]

    @rule(changes=st.lists(CHANGES, min_size=1, max_size=3))
    def apply(self, changes: list[Change]) -> None:
        known = set(self.tables[NETWORK].vteps)
        for change in changes:  # those that name a VTEP that is not there are another test's
            match change:
                case VtepReplace(_, vtep):
                    known.add(vtep.address)
                case VtepRemove(_, address):
                    known.discard(address)
                case FdbReplace(vtep=address) if address not in known:
                    return
                case FloodReplace(_, addresses) if not known.issuperset(addresses):
                    return
        self.tables.apply(TableDelta(tuple(changes)))

    @rule(destination=DESTINATIONS, source=MACS)
    def egress(self, destination: Mac, source: Mac) -> None:
        self.decided(self.egress_flows, self.bridge.egress(frame(destination, source), now=0.0))

    @rule(destination=DESTINATIONS, source=MACS, vtep=VTEPS)
    def ingress(self, destination: Mac, source: Mac, vtep: VtepId) -> None:
        if vtep in self.tables[NETWORK].vteps:
            decision = self.bridge.ingress(frame(destination, source), vtep, now=0.0)
            self.decided(self.ingress_flows[vtep], decision)

    def decided(self, table: FlowTable, decision: Decision) -> None:
        """What an engine does with a decision: writes its lesson, then remembers it."""
        if decision.delta is not None:
            self.tables.apply(decision.delta)
        assert decision.key is not None
        assert table.activate(Flow(decision.key, decision, target=None, now=0.0))

    @invariant()
    def every_remembered_verdict_is_what_would_be_decided_now(self) -> None:
        for key, remembered in self.egress_flows.active.items():
            assert remembered.verdict == self.bridge.egress(frame(key[:6], key[6:]), now=0.0).verdict
        for vtep, table in self.ingress_flows.items():
            for key, remembered in table.active.items():
                decision = self.bridge.ingress(frame(key[:6], key[6:]), vtep, now=0.0)
                assert remembered.verdict == decision.verdict

    @invariant()
    def nothing_forgotten_is_still_depended_on(self) -> None:
        held = [flow for flows in self.dependents._flows.values() for _, flow in flows.values()]
        assert {id(flow) for flow in held} <= {id(flow) for flow in self.remembered()}


TestForgetting = ForgettingModel.TestCase
TestForgetting.settings = settings(stateful_step_count=25)


def test_a_place_where_nothing_stood_is_depended_on_too() -> None:
    dependents = Dependents()
    table = FlowTable(10, dependents)
    table.activate(flow(b"a", PLACES[0], PLACES[1]))
    table.activate(flow(b"b", PLACES[1]))
    assert dependents.forget([PLACES[2]]) == 0
    assert dependents.forget([PLACES[0]]) == 1
    assert list(table.active) == [b"b"]


def test_a_flow_that_rests_on_two_touched_places_is_forgotten_once() -> None:
    dependents = Dependents()
    table = FlowTable(10, dependents)
    table.activate(flow(b"a", PLACES[0], PLACES[1]))
    assert dependents.forget(PLACES) == 1
    assert dependents.forget(PLACES) == 0


def test_the_same_key_in_two_tables_is_two_flows() -> None:
    dependents = Dependents()
    one, other = FlowTable(10, dependents), FlowTable(10, dependents)
    one.activate(flow(KEY, PLACES[0]))
    other.activate(flow(KEY, PLACES[1]))
    assert dependents.forget([PLACES[0]]) == 1
    assert (len(one.active), len(other.active)) == (0, 1)


def test_a_verdict_decided_anew_takes_the_place_of_the_old_and_of_its_grounds() -> None:
    dependents = Dependents()
    table = FlowTable(1, dependents)
    table.activate(flow(KEY, PLACES[0]))
    assert table.activate(flow(KEY, PLACES[1]))
    assert dependents.forget([PLACES[0]]) == 0
    assert KEY in table.active
    assert dependents.forget([PLACES[1]]) == 1


def test_forgetting_a_flow_that_was_replaced_leaves_its_successor() -> None:
    table = FlowTable(10, Dependents())
    old = flow()
    table.activate(old)
    table.activate(flow())
    table.forget(old)
    assert KEY in table.active


# ── Bounds ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_full_table_remembers_nothing_new_and_forgets_nothing_in_use() -> None:
    table = FlowTable(2, Dependents())
    assert table.activate(flow(b"a"))
    assert table.activate(flow(b"b"))
    assert not table.activate(flow(b"c"))
    assert table.activate(flow(b"a"))
    assert set(table.active) == {b"a", b"b"}


def test_clearing_leaves_what_is_pending() -> None:
    dependents = Dependents()
    table = FlowTable(10, dependents)
    table.activate(flow(b"a", PLACES[0]))
    table.pending[b"p"] = PendingFlow(b"p", now=0.0)
    table.clear()
    assert (table.active, set(table.pending)) == ({}, {b"p"})
    assert dependents.forget(PLACES) == 0


def test_idle_flows_leave_after_a_minute_and_used_ones_stay() -> None:
    table = FlowTable(10, Dependents())
    table.activate(flow(b"idle", now=0.0))
    table.activate(flow(b"used", now=0.0))
    table.active[b"used"].used_at = 1.0
    sweep(table, now=IDLE_SECONDS - 0.001)
    assert set(table.active) == {b"idle", b"used"}
    sweep(table, now=IDLE_SECONDS)
    assert set(table.active) == {b"used"}


def test_a_verdict_with_an_end_of_its_own_ends_then_however_busy() -> None:
    table = FlowTable(10, Dependents())
    table.activate(flow(b"limited", now=9.9, expires_at=10.0))
    sweep(table, now=9.99)
    assert b"limited" in table.active
    sweep(table, now=10.0)
    assert b"limited" not in table.active


def test_one_call_looks_at_a_slice_and_every_flow_gets_its_turn() -> None:
    table = FlowTable(10 * EXPIRE_SLICE, Dependents())
    for number in range(2 * EXPIRE_SLICE):
        table.activate(flow(number.to_bytes(4, "big"), now=0.0))
    table.expire(now=IDLE_SECONDS)  # takes stock
    table.expire(now=IDLE_SECONDS)
    assert len(table.active) == EXPIRE_SLICE
    table.expire(now=IDLE_SECONDS)
    assert len(table.active) == 0


def sweep(table: FlowTable, *, now: float) -> None:
    """As many calls as a table so small needs: one that takes stock, one that looks."""
    for _ in range(3):
        table.expire(now=now)


# ── Pending ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_pending_flow_holds_its_frames_in_order() -> None:
    pending = PendingFlow(KEY, now=0.0)
    frames = [bytes([number]) for number in range(PENDING_FRAMES_MAX)]
    assert all(pending.hold(Held(frame)) for frame in frames)
    assert not pending.hold(Held(b"one too many"))
    assert [held.frame for held in pending.frames] == frames


@pytest.mark.parametrize("length", [1, 9000, 65535])
def test_a_pending_flow_holds_so_many_octets_and_no_more(length: int) -> None:
    pending = PendingFlow(KEY, now=0.0)
    while pending.hold(Held(bytes(length))):
        pass
    assert pending.octets == len(pending.frames) * length <= PENDING_OCTETS_MAX
    fits = min(PENDING_FRAMES_MAX, PENDING_OCTETS_MAX // length)
    assert len(pending.frames) == fits


def test_a_smaller_frame_still_fits_where_a_larger_one_did_not() -> None:
    pending = PendingFlow(KEY, now=0.0)
    assert pending.hold(Held(bytes(PENDING_OCTETS_MAX - 1)))
    assert not pending.hold(Held(bytes(2)))
    assert pending.hold(Held(LOCAL[:1]))
