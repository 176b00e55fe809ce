"""`Tables.apply` takes a delta whole or not at all, and names exactly the places that now read otherwise."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.doubles import mac

from overlay.addr import IpAddress, Mac, NetworkId, Vtep, VtepId
from overlay.errors import TableError
from overlay.fdb import Origin
from overlay.tables import (
    Change,
    FdbRefresh,
    FdbRefuse,
    FdbRemove,
    FdbReplace,
    FloodReplace,
    NeighborRemove,
    NeighborReplace,
    NetworkTables,
    RouteRemove,
    RouteReplace,
    TableDelta,
    Tables,
    VtepRemove,
    VtepReplace,
    fdb_key,
    flood_key,
    neighbor_key,
    route_key,
    vtep_key,
)
from overlay.verdict import TableKey

LAB, OTHER, NOWHERE = NetworkId("lab"), NetworkId("other"), NetworkId("nowhere")
A, B = ip_address("192.0.2.2"), ip_address("fe80::1%eth0")
IP = ip_address("10.9.0.1")

NETWORKS = st.sampled_from([LAB, LAB, LAB, LAB, OTHER, OTHER])
VTEPS = st.sampled_from([A, A, B, ip_address("192.0.2.3")])
MACS = st.integers(0, 3).map(mac)
IPS = st.sampled_from([IP, ip_address("fd09::1")])
ORIGINS = st.sampled_from(Origin)
SECONDS = st.integers(0, 9).map(float)
CHANGES = st.one_of(
    st.builds(VtepReplace, NETWORKS, st.builds(Vtep, VTEPS, st.sampled_from([4789, 8472]))),
    st.builds(VtepRemove, NETWORKS, VTEPS),
    st.builds(FdbReplace, NETWORKS, MACS, VTEPS, ORIGINS, SECONDS),
    st.builds(FdbRefresh, NETWORKS, MACS, VTEPS, SECONDS),
    st.builds(FdbRemove, NETWORKS, MACS),
    st.builds(FdbRefuse, NETWORKS, MACS),
    st.builds(NeighborReplace, NETWORKS, IPS, MACS, ORIGINS, SECONDS, st.booleans()),
    st.builds(NeighborRemove, NETWORKS, IPS),
    st.builds(FloodReplace, NETWORKS, st.lists(VTEPS, max_size=3).map(tuple)),
)


@dataclass
class Twin:
    """One network in dictionaries; `fdb` and `neighbors` hold what a decision sees, then `seen_at`."""

    vteps: dict[VtepId, Vtep] = field(default_factory=dict)
    fdb: dict[Mac, tuple[tuple[VtepId, Origin], float]] = field(default_factory=dict)
    neighbors: dict[IpAddress, tuple[tuple[Mac, Origin, bool], float]] = field(default_factory=dict)
    flood: tuple[VtepId, ...] = ()
    refused: int = 0

    def copy(self) -> Twin:
        # QUIRK(python<3.11.4): copy.deepcopy leaves out the scope of an IPv6 address.
        return replace(self, vteps=dict(self.vteps), fdb=dict(self.fdb), neighbors=dict(self.neighbors))

    def write(self, change: Change) -> None:  # noqa: C901, PLR0912  (one case for each kind of change)
        """Does it, the longest way round.  LookupError: it names a VTEP that is not there."""
        match change:
            case VtepReplace(_, vtep):
                self.vteps[vtep.address] = vtep
            case VtepRemove(_, address):
                self.vteps.pop(address, None)
                self.flood = tuple(other for other in self.flood if other != address)
                self.fdb = {key: entry for key, entry in self.fdb.items() if entry[0][0] != address}
            case FdbReplace(_, key, address, origin, seen_at):
                self._require(address)
                held = self.fdb.get(key)
                if not (held and origin is Origin.LEARNED and held[0][1] is not Origin.LEARNED):
                    self.fdb[key] = ((address, origin), seen_at)
            case FdbRefresh(_, key, address, seen_at):
                held = self.fdb.get(key)
                if held and held[0][0] == address:
                    self.fdb[key] = (held[0], max(held[1], seen_at))
            case FdbRemove(_, key):
                self.fdb.pop(key, None)
            case FdbRefuse():
                self.refused += 1
            case NeighborReplace(_, ip, owner, origin, seen_at, is_router):
                known = self.neighbors.get(ip)
                if not (known and origin is Origin.LEARNED and known[0][1] is not Origin.LEARNED):
                    self.neighbors[ip] = ((owner, origin, is_router), seen_at)
            case NeighborRemove(_, ip):
                self.neighbors.pop(ip, None)
            case FloodReplace(_, addresses):
                for address in addresses:
                    self._require(address)
                self.flood = tuple(dict.fromkeys(addresses))

    def _require(self, address: VtepId) -> None:
        if address not in self.vteps:
            raise LookupError(address)

    def visible(self, network: NetworkId) -> dict[TableKey, object]:
        """Each place with what a decision would read there."""
        return {
            **{vtep_key(network, address): vtep for address, vtep in self.vteps.items()},
            **{fdb_key(network, key): entry[0] for key, entry in self.fdb.items()},
            **{neighbor_key(network, ip): entry[0] for ip, entry in self.neighbors.items()},
            flood_key(network): self.flood,
        }


class TablesModel(RuleBasedStateMachine):
    """Two networks."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = Tables()
        self.twins = {LAB: Twin(), OTHER: Twin()}
        for network in self.twins:
            self.tables.add_network(network)
        self.told: list[tuple[TableDelta, frozenset[TableKey]]] = []
        self.tables.subscribe(lambda delta, touched: self.told.append((delta, touched)))

    @initialize(vteps=st.lists(VTEPS, unique=True))
    def have_vteps(self, vteps: list[VtepId]) -> None:
        for network in self.twins:
            self.apply([VtepReplace(network, Vtep(address, 4789)) for address in vteps])

    @rule(changes=st.one_of(st.lists(CHANGES, min_size=1, max_size=1), st.lists(CHANGES, max_size=5)))
    def apply(self, changes: list[Change]) -> None:
        delta = TableDelta(tuple(changes))
        after = {network: twin.copy() for network, twin in self.twins.items()}
        self.told.clear()
        try:
            for change in changes:
                after[change.network].write(change)
        except LookupError:
            with pytest.raises(TableError):
                self.tables.apply(delta)
            assert self.told == []
            return
        touched = self.tables.apply(delta)
        assert self.told == ([(delta, touched)] if touched else [])
        differing = {
            place
            for network in self.twins
            for place in self.places(network, after)
            if self.twins[network].visible(network).get(place) != after[network].visible(network).get(place)
        }
        assert touched >= differing
        if len(changes) == 1:
            assert touched == differing
        self.twins = after

    def places(self, network: NetworkId, after: dict[NetworkId, Twin]) -> set[TableKey]:
        return {*self.twins[network].visible(network), *after[network].visible(network)}

    @invariant()
    def every_table_agrees(self) -> None:
        for network, twin in self.twins.items():
            assert as_twin(self.tables[network]) == twin

    @invariant()
    def nothing_names_a_vtep_that_is_not_there(self) -> None:
        for network in self.twins:
            tables = self.tables[network]
            assert set(tables.flood.vteps()) <= set(tables.vteps)
            assert {entry.vtep for entry in tables.fdb.entries()} <= set(tables.vteps)


TestTables = TablesModel.TestCase
TestTables.settings = settings(stateful_step_count=20)


def as_twin(tables: NetworkTables) -> Twin:
    return Twin(
        vteps=dict(tables.vteps),
        fdb={entry.mac: ((entry.vtep, entry.origin), entry.seen_at) for entry in tables.fdb.entries()},
        neighbors={
            entry.address: ((entry.mac, entry.origin, entry.is_router), entry.seen_at)
            for entry in tables.neighbors.entries()
        },
        flood=tables.flood.vteps(),
        refused=tables.fdb.refused,
    )


def tables_with(*vteps: VtepId) -> Tables:
    tables = Tables()
    tables.add_network(LAB)
    tables.apply(TableDelta(tuple(VtepReplace(LAB, Vtep(address, 4789)) for address in vteps)))
    return tables


@pytest.mark.parametrize("origin", [Origin.STATIC, Origin.CONTROL])
def test_learning_never_displaces_what_the_operator_or_control_has_set(origin: Origin) -> None:
    tables = tables_with(A, B)
    pinned = (
        FdbReplace(LAB, mac(1), A, origin, 0.0),
        NeighborReplace(LAB, IP, mac(1), origin, 0.0),
    )
    tables.apply(TableDelta(pinned))
    seen = (
        FdbReplace(LAB, mac(1), B, Origin.LEARNED, 1.0),
        NeighborReplace(LAB, IP, mac(2), Origin.LEARNED, 1.0),
    )
    assert tables.apply(TableDelta(seen)) == frozenset()
    entry, neighbor = tables[LAB].fdb.lookup(mac(1)), tables[LAB].neighbors.lookup(IP)
    assert entry is not None
    assert neighbor is not None
    assert (entry.vtep, entry.origin, neighbor.mac, neighbor.origin) == (A, origin, mac(1), origin)


def test_a_mac_there_was_no_room_for_is_counted_and_nobody_is_told() -> None:
    tables, told = tables_with(A), []
    tables.subscribe(lambda delta, _: told.append(delta))
    assert tables.apply(TableDelta((FdbRefuse(LAB, mac(1)), FdbRefuse(LAB, mac(1))))) == frozenset()
    assert (tables[LAB].fdb.refused, len(tables[LAB].fdb), told) == (2, 0, [])


def test_a_delta_with_one_impossible_change_writes_nothing() -> None:
    tables = tables_with(A)
    before = as_twin(tables[LAB])
    changes = (FloodReplace(LAB, (A,)), FdbReplace(LAB, mac(1), B, Origin.LEARNED, 0.0))
    with pytest.raises(TableError, match="expected a VTEP of network lab"):
        tables.apply(TableDelta(changes))
    assert as_twin(tables[LAB]) == before


def test_a_delta_may_use_the_vtep_it_brings() -> None:
    tables = tables_with()
    tables.apply(TableDelta((VtepReplace(LAB, Vtep(A, 4789)), FloodReplace(LAB, (A,)))))
    assert tables[LAB].flood.vteps() == (A,)


def test_a_delta_may_not_use_the_vtep_it_takes_away() -> None:
    tables = tables_with(A)
    with pytest.raises(TableError):
        tables.apply(TableDelta((VtepRemove(LAB, A), FloodReplace(LAB, (A,)))))
    assert A in tables[LAB].vteps


def test_another_port_of_a_vtep_touches_the_vtep_alone() -> None:
    tables = tables_with(A)
    tables.apply(TableDelta((FloodReplace(LAB, (A,)), FdbReplace(LAB, mac(1), A, Origin.LEARNED, 0.0))))
    touched = tables.apply(TableDelta((VtepReplace(LAB, Vtep(A, 8472)),)))
    assert touched == {vtep_key(LAB, A)}


def test_a_vtep_that_leaves_touches_all_that_was_bound_to_it() -> None:
    tables = tables_with(A, B)
    changes = (FloodReplace(LAB, (A, B)), FdbReplace(LAB, mac(1), A, Origin.STATIC, 0.0))
    tables.apply(TableDelta((*changes, FdbReplace(LAB, mac(2), B, Origin.LEARNED, 0.0))))
    touched = tables.apply(TableDelta((VtepRemove(LAB, A),)))
    assert touched == {vtep_key(LAB, A), flood_key(LAB), fdb_key(LAB, mac(1))}
    assert tables.apply(TableDelta((VtepRemove(LAB, A),))) == frozenset()


def test_a_delta_for_a_network_that_is_not_there_writes_nothing() -> None:
    tables = tables_with(A)
    with pytest.raises(TableError, match="nowhere"):
        tables.apply(TableDelta((FloodReplace(LAB, (A,)), FdbRemove(NOWHERE, mac(1)))))
    assert tables[LAB].flood.vteps() == ()


def test_a_network_that_is_not_there_is_named_beside_those_that_are() -> None:
    with pytest.raises(TableError, match="expected a network among lab, found nowhere"):
        tables_with()[NOWHERE]
    assert NOWHERE not in tables_with()


def test_a_network_added_twice_keeps_its_tables() -> None:
    tables = tables_with(A)
    assert tables.add_network(LAB) is tables[LAB]
    assert A in tables[LAB].vteps
    tables.remove_network(LAB)
    assert tables.networks() == ()


def test_who_unsubscribed_is_told_no_more() -> None:
    tables = tables_with()
    told: list[TableDelta] = []

    def note(delta: TableDelta, _: frozenset[TableKey]) -> None:
        told.append(delta)

    tables.subscribe(note)
    tables.apply(TableDelta((VtepReplace(LAB, Vtep(A, 4789)),)))
    tables.unsubscribe(note)
    tables.apply(TableDelta((VtepReplace(LAB, Vtep(B, 4789)),)))
    assert len(told) == 1


def test_a_route_is_a_place_of_its_own_and_goes_with_its_vtep() -> None:
    tables = Tables()
    tables.add_network(LAB)
    subnet, own = ip_network("10.5.2.0/24"), ip_network("10.5.1.0/24")
    with pytest.raises(TableError):
        tables.apply(TableDelta((RouteReplace(LAB, subnet, A, Origin.STATIC),)))
    route = RouteReplace(LAB, subnet, A, Origin.STATIC)
    assert tables.apply(TableDelta((VtepReplace(LAB, Vtep(A, 8472)), route))) >= {route_key(LAB, subnet)}
    assert tables.apply(TableDelta((route,))) == frozenset()
    assert tables.apply(TableDelta((RouteReplace(LAB, own, None, Origin.STATIC),))) == {route_key(LAB, own)}
    assert tables.apply(TableDelta((VtepRemove(LAB, A),))) == {vtep_key(LAB, A), route_key(LAB, subnet)}
    assert [each.subnet for each in tables[LAB].routes.routes()] == [own]
    assert tables.apply(TableDelta((RouteRemove(LAB, own),))) == {route_key(LAB, own)}
    assert tables.apply(TableDelta((RouteRemove(LAB, own),))) == frozenset()


def test_a_delta_names_the_vteps_it_is_about_in_order_with_their_networks() -> None:
    flood = FloodReplace(LAB, (A,))
    delta = TableDelta((VtepReplace(LAB, Vtep(A, 8472)), flood, VtepRemove(NOWHERE, B), VtepRemove(LAB, A)))
    assert list(delta.vteps()) == [(LAB, A), (NOWHERE, B), (LAB, A)]
