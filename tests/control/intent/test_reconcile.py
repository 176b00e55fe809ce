"""Plans reach what is wanted from anywhere, in an order in which no frame goes astray, and only once."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st
from support.doubles import mac

from control.intent.desired import DesiredNetwork
from control.intent.reconcile import Step, reconcile
from overlay.addr import IpAddress, Mac, NetworkId, Vtep, VtepId
from overlay.fdb import Origin
from overlay.tables import (
    Change,
    FdbRemove,
    FdbReplace,
    FloodReplace,
    NeighborRemove,
    NeighborReplace,
    RouteRemove,
    RouteReplace,
    TableDelta,
    Tables,
    VtepRemove,
    VtepReplace,
)

LAB, OTHER = NetworkId("lab"), NetworkId("other")
A, B, C = (ip_address(f"192.0.2.{host}") for host in (2, 3, 4))
IP = ip_address("10.9.0.1")
NOW = 100.0
IN_ORDER = (
    VtepReplace,
    NeighborReplace,
    FdbReplace,
    FloodReplace,
    RouteReplace,
    RouteRemove,
    FdbRemove,
    NeighborRemove,
    VtepRemove,
)

PINNED = st.sampled_from([Origin.STATIC, Origin.CONTROL])
MACS = st.integers(0, 3).map(mac)
SUBNETS = st.sampled_from([ip_network("10.5.2.0/24"), ip_network("10.5.0.0/16"), ip_network("fd05::/64")])
IPS = st.sampled_from([IP, ip_address("fd09::1"), ip_address("10.9.0.2")])


@st.composite
def wanted_networks(draw: st.DrawFn) -> DesiredNetwork:
    ports = draw(st.dictionaries(st.sampled_from([A, B, C]), st.sampled_from([4789, 8472])))
    vteps = {address: Vtep(address, port) for address, port in ports.items()}
    known = sorted(vteps, key=str)
    places = st.tuples(st.sampled_from(known), PINNED) if known else st.nothing()
    return DesiredNetwork(
        vteps=vteps,
        neighbors=draw(st.dictionaries(IPS, st.tuples(MACS, PINNED))),
        fdb=draw(st.dictionaries(MACS, places)) if known else {},
        flood=tuple(draw(st.permutations(known))),
        routes=draw(
            st.dictionaries(SUBNETS, st.tuples(st.sampled_from([*known, None]), PINNED))  # None: our own
        ),
    )


def tables() -> Tables:
    made = Tables()
    made.add_network(LAB)
    made.add_network(OTHER)
    return made


def apply(plan: tuple[Step, ...], actual: Tables) -> None:
    for step in plan:
        actual.apply(step.delta)


def changes(plan: tuple[Step, ...]) -> list[Change]:
    return [change for step in plan for change in step.delta.changes]


def held(actual: Tables, network: NetworkId = LAB) -> DesiredNetwork:
    """What control is responsible for in the tables, as it would be wanted."""
    of_network = actual[network]
    return DesiredNetwork(
        vteps=dict(of_network.vteps),
        neighbors={
            entry.address: (entry.mac, entry.origin)
            for entry in of_network.neighbors.entries()
            if entry.origin is not Origin.LEARNED
        },
        fdb={
            entry.mac: (entry.vtep, entry.origin)
            for entry in of_network.fdb.entries()
            if entry.origin is not Origin.LEARNED
        },
        flood=of_network.flood.vteps(),
        routes={route.subnet: (route.vtep, route.origin) for route in of_network.routes.routes()},
    )


@given(
    st.lists(wanted_networks(), min_size=1, max_size=4), st.lists(st.tuples(MACS, st.sampled_from([A, B, C])))
)
def test_any_sequence_of_wanted_states_is_reached_and_then_nothing_is_left_to_do(
    sequence: list[DesiredNetwork], learned: list[tuple[Mac, VtepId]]
) -> None:
    actual = tables()
    for wanted in sequence:
        plan = reconcile({LAB: wanted}, actual, now=NOW)
        apply(plan, actual)
        assert held(actual) == wanted
        assert reconcile({LAB: wanted}, actual, now=NOW + 1) == ()
        # The data plane learns meanwhile: that is nobody's intent.
        for address, vtep in learned:
            if vtep in wanted.vteps:
                actual.apply(TableDelta((FdbReplace(LAB, address, vtep, Origin.LEARNED, NOW),)))
        assert reconcile({LAB: wanted}, actual, now=NOW + 1) == ()


@given(wanted_networks(), wanted_networks())
def test_steps_come_in_the_order_of_programming_and_then_of_withdrawing(
    first: DesiredNetwork, second: DesiredNetwork
) -> None:
    actual = tables()
    apply(reconcile({LAB: first}, actual, now=NOW), actual)
    ranks = [IN_ORDER.index(type(change)) for change in changes(reconcile({LAB: second}, actual, now=NOW))]
    assert ranks == sorted(ranks)


@given(wanted_networks(), wanted_networks())
def test_each_step_changes_something_and_again_changes_nothing(
    first: DesiredNetwork, second: DesiredNetwork
) -> None:
    actual = tables()
    for wanted in (first, second):
        for step in reconcile({LAB: wanted}, actual, now=NOW):
            assert actual.apply(step.delta), step.what
            assert not actual.apply(step.delta), step.what


@given(wanted_networks())
def test_from_nothing_and_back_to_nothing(wanted: DesiredNetwork) -> None:
    actual = tables()
    apply(reconcile({LAB: wanted}, actual, now=NOW), actual)
    apply(reconcile({LAB: DesiredNetwork()}, actual, now=NOW), actual)
    assert held(actual) == DesiredNetwork()
    assert len(actual[LAB].fdb) == 0


def test_a_network_nobody_spoke_of_is_left_alone() -> None:
    actual = tables()
    vtep = Vtep(A, 4789)
    actual.apply(TableDelta((VtepReplace(OTHER, vtep),)))
    apply(reconcile({LAB: DesiredNetwork()}, actual, now=NOW), actual)
    assert actual[OTHER].vteps == {A: vtep}


def test_what_was_learned_stays_while_its_vtep_is_wanted_and_goes_with_it() -> None:
    actual = tables()
    wanted = DesiredNetwork(vteps={A: Vtep(A, 4789), B: Vtep(B, 4789)})
    apply(reconcile({LAB: wanted}, actual, now=NOW), actual)
    for number, vtep in enumerate((A, B)):
        actual.apply(TableDelta((FdbReplace(LAB, mac(number), vtep, Origin.LEARNED, NOW),)))
    apply(reconcile({LAB: DesiredNetwork(vteps={B: Vtep(B, 4789)})}, actual, now=NOW), actual)
    assert [entry.mac for entry in actual[LAB].fdb.entries()] == [mac(1)]


def test_a_learned_mac_that_is_now_wanted_elsewhere_is_taken_over() -> None:
    actual = tables()
    vteps = {A: Vtep(A, 4789), B: Vtep(B, 4789)}
    apply(reconcile({LAB: DesiredNetwork(vteps=vteps)}, actual, now=NOW), actual)
    actual.apply(TableDelta((FdbReplace(LAB, mac(1), A, Origin.LEARNED, NOW),)))
    wanted = DesiredNetwork(vteps=vteps, fdb={mac(1): (B, Origin.CONTROL)})
    apply(reconcile({LAB: wanted}, actual, now=NOW), actual)
    entry = actual[LAB].fdb.lookup(mac(1))
    assert entry is not None
    assert (entry.vtep, entry.origin) == (B, Origin.CONTROL)


def test_a_plan_reads_like_a_log() -> None:
    vteps: dict[IpAddress, Vtep] = {A: Vtep(A, 4789)}
    wanted = DesiredNetwork(
        vteps=vteps, neighbors={IP: (mac(1), Origin.STATIC)}, fdb={mac(1): (A, Origin.STATIC)}, flood=(A,)
    )
    actual = tables()
    plan = reconcile({LAB: wanted}, actual, now=NOW)
    assert [step.what for step in plan] == [
        "lab: VTEP 192.0.2.2:4789",
        "lab: neighbor 10.9.0.1 is 02:aa:00:00:00:01",
        "lab: 02:aa:00:00:00:01 is behind 192.0.2.2",
        "lab: flood to 1 VTEPs",
    ]
    apply(plan, actual)
    undone = [step.what for step in reconcile({LAB: DesiredNetwork()}, actual, now=NOW)]
    assert undone == [
        "lab: flood to 0 VTEPs",
        "lab: forget 02:aa:00:00:00:01",
        "lab: forget neighbor 10.9.0.1",
        "lab: VTEP 192.0.2.2:4789 left",
    ]
