"""The tables of every network, and `Tables.apply`: the only way their state is written.

A decision reads them and answers a `TableDelta`; reconcile compares them with what is wanted and answers
one too.  `apply` takes it whole or not at all, then tells every subscriber which places were touched, so
that an engine forgets exactly the verdicts that rested on them.

Learning, ageing, an operator's static entry and a peer's record are all the same thing here: a change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import assert_never

from overlay.addr import IpAddress, Mac, NetworkId, Vtep, VtepId
from overlay.errors import TableError
from overlay.fdb import Fdb, FdbEntry, Origin
from overlay.flood import FloodList
from overlay.neigh import NeighborEntry, NeighborTable
from overlay.route import IpNetwork, Route, RouteTable, subnet_key
from overlay.verdict import Table, TableKey


@dataclass(frozen=True, slots=True)
class VtepReplace:
    """The network has this VTEP (a new one, or a known address with another port)."""

    network: NetworkId
    vtep: Vtep


@dataclass(frozen=True, slots=True)
class VtepRemove:
    """The network no longer has it: what is bound to it, and its place in the flood list, go with it."""

    network: NetworkId
    vtep: VtepId


@dataclass(frozen=True, slots=True)
class FdbReplace:
    """The MAC is behind that VTEP.  A LEARNED binding never displaces another origin's."""

    network: NetworkId
    mac: Mac
    vtep: VtepId
    origin: Origin
    seen_at: float


@dataclass(frozen=True, slots=True)
class FdbRefresh:
    """The MAC was seen behind that VTEP at that time.  Changes no verdict."""

    network: NetworkId
    mac: Mac
    vtep: VtepId
    seen_at: float


@dataclass(frozen=True, slots=True)
class FdbRemove:
    """The MAC is not behind the tunnel."""

    network: NetworkId
    mac: Mac


@dataclass(frozen=True, slots=True)
class FdbRefuse:
    """The MAC was seen and not learned, for the FDB is full.  Counted, and nothing else: it is no entry."""

    network: NetworkId
    mac: Mac


@dataclass(frozen=True, slots=True)
class NeighborReplace:
    """The IP is that MAC's.  A LEARNED binding never displaces another origin's."""

    network: NetworkId
    address: IpAddress
    mac: Mac
    origin: Origin
    seen_at: float
    is_router: bool = False


@dataclass(frozen=True, slots=True)
class NeighborRemove:
    """Nothing is known of that IP."""

    network: NetworkId
    address: IpAddress


@dataclass(frozen=True, slots=True)
class FloodReplace:
    """These VTEPs get the copies."""

    network: NetworkId
    vteps: tuple[VtepId, ...]


@dataclass(frozen=True, slots=True)
class RouteReplace:
    """The subnet is behind that VTEP; behind our own device where `vtep` is None."""

    network: NetworkId
    subnet: IpNetwork
    vtep: VtepId | None
    origin: Origin


@dataclass(frozen=True, slots=True)
class RouteRemove:
    """Nothing is known of that subnet."""

    network: NetworkId
    subnet: IpNetwork


Change = (
    VtepReplace
    | VtepRemove
    | FdbReplace
    | FdbRefresh
    | FdbRemove
    | FdbRefuse
    | NeighborReplace
    | NeighborRemove
    | FloodReplace
    | RouteReplace
    | RouteRemove
)


@dataclass(frozen=True, slots=True)
class TableDelta:
    """Changes, applied in their order, all or none."""

    changes: tuple[Change, ...]

    def vteps(self) -> Iterator[tuple[NetworkId, VtepId]]:
        """The VTEPs that are others afterwards, or gone, each with its network."""
        for change in self.changes:
            match change:
                case VtepReplace(network, vtep):
                    yield network, vtep.address
                case VtepRemove(network, address):
                    yield network, address
                case _:
                    pass


Subscriber = Callable[[TableDelta, frozenset[TableKey]], None]


class NetworkTables:
    """What is known of one network.  Read freely; written by `Tables.apply` alone."""

    def __init__(self) -> None:
        self.vteps: dict[VtepId, Vtep] = {}
        self.fdb = Fdb()
        self.neighbors = NeighborTable()
        self.flood = FloodList()
        self.routes = RouteTable()


class Tables:
    """The tables of every network of the daemon."""

    def __init__(self) -> None:
        self._networks: dict[NetworkId, NetworkTables] = {}
        self._subscribers: list[Subscriber] = []

    def __getitem__(self, network: NetworkId) -> NetworkTables:
        """The network's tables; TableError if there is no such network."""
        try:
            return self._networks[network]
        except KeyError:
            known = ", ".join(self._networks) or "none"
            raise TableError(f"expected a network among {known}, found {network}") from None

    def __contains__(self, network: object) -> bool:
        return network in self._networks

    def networks(self) -> tuple[NetworkId, ...]:
        """Every network, in the order they came."""
        return tuple(self._networks)

    def add_network(self, network: NetworkId) -> NetworkTables:
        """Empty tables for a network that is new (its own tables if it is not)."""
        return self._networks.setdefault(network, NetworkTables())

    def remove_network(self, network: NetworkId) -> None:
        """Forgets a network.  Detach it from the engines first: nobody is told."""
        self._networks.pop(network, None)

    def subscribe(self, subscriber: Subscriber) -> None:
        """Calls it after every `apply` that touched something, in the order of subscription."""
        self._subscribers.append(subscriber)

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Calls it no more."""
        self._subscribers.remove(subscriber)

    def apply(self, delta: TableDelta) -> frozenset[TableKey]:
        """Writes the changes and answers the places touched: those a decision would now read otherwise.

        Raises:
            TableError: A change names a network or a VTEP that is not there.  Nothing is written then.
        """
        self._check(delta)
        touched: set[TableKey] = set()
        for change in delta.changes:
            touched.update(self._write(change))
        keys = frozenset(touched)
        if keys:
            for subscriber in tuple(self._subscribers):
                subscriber(delta, keys)
        return keys

    def _check(self, delta: TableDelta) -> None:
        """Finds what `_write` could stumble over, the changes before it in the same delta considered."""
        added: set[tuple[NetworkId, VtepId]] = set()
        removed: set[tuple[NetworkId, VtepId]] = set()
        for change in delta.changes:
            tables = self[change.network]
            match change:
                case VtepReplace(network, vtep):
                    added.add((network, vtep.address))
                    removed.discard((network, vtep.address))
                case VtepRemove(network, address):
                    removed.add((network, address))
                    added.discard((network, address))
                case FdbReplace(network, _, address):
                    self._check_vtep(network, address, tables, added, removed)
                case FloodReplace(network, addresses):
                    for address in addresses:
                        self._check_vtep(network, address, tables, added, removed)
                case RouteReplace(network, _, address) if address is not None:
                    self._check_vtep(network, address, tables, added, removed)
                case FdbRefresh() | FdbRemove() | FdbRefuse() | NeighborReplace() | NeighborRemove():
                    pass
                case RouteReplace() | RouteRemove():
                    pass
                case _:
                    assert_never(change)

    @staticmethod
    def _check_vtep(
        network: NetworkId,
        address: VtepId,
        tables: NetworkTables,
        added: set[tuple[NetworkId, VtepId]],
        removed: set[tuple[NetworkId, VtepId]],
    ) -> None:
        place = (network, address)
        if place not in added and (address not in tables.vteps or place in removed):
            raise TableError(f"expected a VTEP of network {network}, found {address}")

    def _write(self, change: Change) -> list[TableKey]:
        tables = self[change.network]
        match change:
            case VtepReplace(network, vtep):
                if tables.vteps.get(vtep.address) == vtep:
                    return []
                tables.vteps[vtep.address] = vtep
                return [vtep_key(network, vtep.address)]
            case VtepRemove(network, address):
                return self._remove_vtep(tables, network, address)
            case FdbReplace(network, mac, vtep_id, origin, seen_at):
                held = tables.fdb.lookup(mac)
                if held is not None and origin is Origin.LEARNED and held.origin is not Origin.LEARNED:
                    return []
                changed = tables.fdb.replace(FdbEntry(mac, vtep_id, origin, seen_at))
                return [fdb_key(network, mac)] if changed else []
            case FdbRefresh(_, mac, vtep_id, seen_at):
                tables.fdb.refresh(mac, vtep_id, seen_at)
                return []
            case FdbRemove(network, mac):
                return [fdb_key(network, mac)] if tables.fdb.remove(mac) else []
            case FdbRefuse():
                tables.fdb.refuse()
                return []
            case NeighborReplace() | NeighborRemove():
                return _write_neighbor(tables, change)
            case FloodReplace(network, vteps):
                return [flood_key(network)] if tables.flood.replace(vteps) else []
            case RouteReplace() | RouteRemove():
                return _write_route(tables, change)
            case _:
                assert_never(change)

    @staticmethod
    def _remove_vtep(tables: NetworkTables, network: NetworkId, address: VtepId) -> list[TableKey]:
        """Takes the VTEP out in the reverse of the order it was programmed: routes → flood → FDB → itself."""
        if address not in tables.vteps:
            return []
        touched = []
        for subnet in tables.routes.behind(address):
            tables.routes.remove(subnet)
            touched.append(route_key(network, subnet))
        if tables.flood.remove(address):
            touched.append(flood_key(network))
        for mac in tables.fdb.behind(address):
            tables.fdb.remove(mac)
            touched.append(fdb_key(network, mac))
        del tables.vteps[address]
        return [*touched, vtep_key(network, address)]


def _write_neighbor(tables: NetworkTables, change: NeighborReplace | NeighborRemove) -> list[TableKey]:
    neighbors = tables.neighbors
    if isinstance(change, NeighborRemove):
        changed = neighbors.remove(change.address)
    else:
        known = neighbors.lookup(change.address)
        if known is not None and change.origin is Origin.LEARNED and known.origin is not Origin.LEARNED:
            return []
        changed = neighbors.replace(
            NeighborEntry(change.address, change.mac, change.origin, change.seen_at, change.is_router)
        )
    return [neighbor_key(change.network, change.address)] if changed else []


def _write_route(tables: NetworkTables, change: RouteReplace | RouteRemove) -> list[TableKey]:
    if isinstance(change, RouteReplace):
        changed = tables.routes.replace(Route(change.subnet, change.vtep, change.origin))
    else:
        changed = tables.routes.remove(change.subnet)
    return [route_key(change.network, change.subnet)] if changed else []


def fdb_key(network: NetworkId, mac: Mac) -> TableKey:
    """The place of a MAC in the FDB."""
    return TableKey(Table.FDB, network, mac)


def neighbor_key(network: NetworkId, address: IpAddress) -> TableKey:
    """The place of an IP in the neighbor table."""
    return TableKey(Table.NEIGHBOR, network, address.packed)


def vtep_key(network: NetworkId, vtep: VtepId) -> TableKey:
    """The place of a VTEP: its address as text, for a scope (`fe80::1%eth0`) is part of it."""
    return TableKey(Table.VTEP, network, str(vtep).encode())


def flood_key(network: NetworkId) -> TableKey:
    """The place of the network's flood list."""
    return TableKey(Table.FLOOD, network, b"")


def route_key(network: NetworkId, subnet: IpNetwork) -> TableKey:
    """The place of a subnet among the routes."""
    return TableKey(Table.ROUTE, network, subnet_key(subnet))
