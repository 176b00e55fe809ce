"""What the tables must hold: a pure function of what the operator and the pool say.

    desired(networks, nodes, own) -> {network: its VTEPs, neighbors, FDB, flood list}

    operator    static VTEPs                                          Origin.STATIC
    nodes       who is there (`swim`) and what each says (`records`)  Origin.CONTROL
    own         what is ours, and so is behind nobody's VTEP

Only what control is responsible for stands in it.  What the data plane has learned is nobody's intent: it
is left alone as long as its VTEP is wanted.  A static VTEP and a node of the pool at one address are one
VTEP, and the operator's word about it counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from control.intent.shared import NetworkKind, Trouble, pair
from control.membership.recordwire import LocalMac, NetworkRecord
from overlay.addr import IpAddress, Mac, NetworkId, Vtep, VtepId, format_mac
from overlay.fdb import Origin


@dataclass(frozen=True, slots=True)
class DesiredNetwork:
    """What one network's tables must hold.

    Attributes:
        vteps: The VTEPs, by their id.
        neighbors: IP → MAC, and who says so.
        fdb: MAC → VTEP, and who says so.
        flood: Where copies go, in order.
    """

    vteps: Mapping[VtepId, Vtep] = field(default_factory=dict)
    neighbors: Mapping[IpAddress, tuple[Mac, Origin]] = field(default_factory=dict)
    fdb: Mapping[Mac, tuple[VtepId, Origin]] = field(default_factory=dict)
    flood: tuple[VtepId, ...] = ()


DesiredTables = Mapping[NetworkId, DesiredNetwork]


class NetworkIntent(NetworkKind, Protocol):
    """What the operator says of a network, as far as the tables are concerned."""

    @property
    def vteps(self) -> tuple[Vtep, ...]: ...


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the pool whose word counts now, and that word."""

    name: str
    networks: tuple[NetworkRecord, ...]


@dataclass(frozen=True, slots=True)
class OwnPart:
    """What is ours in one network.

    Attributes:
        macs: Behind our device, the device's own first; with what others claim decides who has them.
        ips: Ours, which nobody else answers for.
    """

    macs: tuple[LocalMac, ...] = ()
    ips: tuple[tuple[IpAddress, Mac], ...] = ()


@dataclass(frozen=True, slots=True)
class Ours:
    """What is ours in all networks.

    Attributes:
        underlays: Our own addresses: of another node we use one of a family we have, and none that is ours.
        parts: By network; one that is not in it has nothing.
    """

    underlays: tuple[IpAddress, ...] = ()
    parts: Mapping[NetworkId, OwnPart] = field(default_factory=dict)


NOTHING = Ours()


def desired(
    networks: Iterable[NetworkIntent], nodes: Sequence[Node] = (), own: Ours = NOTHING
) -> DesiredTables:
    """What the tables must hold for these networks."""
    tables, _ = survey(tuple(networks), nodes, own)
    return tables


def survey(
    networks: Sequence[NetworkIntent], nodes: Sequence[Node], own: Ours
) -> tuple[DesiredTables, list[Trouble]]:
    """What the tables must hold, and what the nodes disagree about."""
    troubles: list[Trouble] = []
    sharers: dict[NetworkId, list[tuple[str, NetworkRecord]]] = {network.id: [] for network in networks}
    for node in sorted(nodes, key=lambda node: node.name):
        shared, found = pair(networks, node.networks, node.name)
        troubles += found
        for each in shared:
            sharers[each.network].append((node.name, each.theirs))
    tables = {}
    for network in networks:
        plan = _Bridged(network, own.underlays, own.parts.get(network.id, OwnPart()))
        for name, theirs in sharers[network.id]:
            plan.join(name, theirs)
        tables[network.id] = plan.tables()
        troubles += plan.troubles
    return tables, troubles


def claimed(network: NetworkIntent, nodes: Iterable[Node]) -> dict[Mac, int]:
    """Which MACs other nodes say are behind them in this network, and the highest sequence they say it by."""
    claims: dict[Mac, int] = {}
    for node in nodes:
        shared, _ = pair([network], node.networks, node.name)
        for local in (local for each in shared for local in each.theirs.macs):
            claims[local.mac] = max(local.sequence, claims.get(local.mac, 0))
    return claims


class _Bridged:
    """One Ethernet segment, as it grows node by node, in the order of their names."""

    def __init__(self, network: NetworkIntent, underlays: Sequence[IpAddress], own: OwnPart) -> None:
        self.troubles: list[Trouble] = []
        self._id = network.id
        self._underlays = underlays
        self._vteps = {vtep.address: vtep for vtep in network.vteps}
        self._node_at: dict[VtepId, str] = {}
        self._vtep_of: dict[str, VtepId] = {}
        self._own_macs = {each.mac: each.sequence for each in own.macs}
        self._own_device = own.macs[0].mac if own.macs else None
        self._own_ips = dict(own.ips)
        self._claims: dict[Mac, list[tuple[int, str]]] = {}
        self._devices: dict[Mac, str] = {}
        self._ips: dict[IpAddress, tuple[Mac, str]] = {}

    def join(self, name: str, theirs: NetworkRecord) -> None:
        """Another node has this network too."""
        vtep = self._usable(name, theirs)
        if vtep is None:
            return
        self._node_at[vtep.address] = name
        self._vtep_of[name] = vtep.address
        self._vteps.setdefault(vtep.address, vtep)
        if theirs.mac is not None:
            self._note_device(name, theirs.mac)
        for local in theirs.macs:
            self._claims.setdefault(local.mac, []).append((local.sequence, name))
        for address, mac in theirs.ips:
            self._note_ip(name, address, mac)

    def _usable(self, name: str, theirs: NetworkRecord) -> Vtep | None:
        """The first of its addresses that we can send to; a node is one VTEP to us."""
        families = {address.version for address in self._underlays}
        for address in theirs.vteps:
            if address.version not in families:
                continue
            holder = "this node" if address in self._underlays else self._node_at.get(address)
            if holder is None:
                return Vtep(address, theirs.port)
            self._complain(
                f"{name} says that its VTEP of network {self._id} is {address}, which is {holder}'s",
                f"give {name} its own `underlay` address",
            )
            return None
        if theirs.vteps:
            versions = " and ".join(f"IPv{version}" for version in sorted(families)) or "no address"
            self._complain(
                f"{name} has no VTEP address we can reach for network {self._id}: we have {versions}",
                f"add an `underlay` address of the same family here or on {name}",
            )
        return None

    def _note_device(self, name: str, mac: Mac) -> None:
        other = "this node" if mac == self._own_device else self._devices.setdefault(mac, name)
        if other != name:
            self._complain(
                f"{name} and {other} both have the device MAC {format_mac(mac)} in network {self._id}",
                "one is a copy of the other: give it another MAC (ip link set dev … address …)",
            )

    def _note_ip(self, name: str, address: IpAddress, mac: Mac) -> None:
        if address in self._own_ips:
            known, holder = self._own_ips[address], "this node"
        else:
            known, holder = self._ips.setdefault(address, (mac, name))
        if holder != name and known != mac:
            self._complain(
                f"{name} and {holder} both have the address {address} in network {self._id}",
                f"change `address` on one of them; {holder} is answered for",
            )

    def tables(self) -> DesiredNetwork:
        """What this network's tables must hold."""
        fdb = dict(self._fdb())
        neighbors = {
            address: (mac, Origin.CONTROL)
            for address, (mac, name) in self._ips.items()
            if fdb.get(mac) == (self._vtep_of[name], Origin.CONTROL)
        }
        return DesiredNetwork(vteps=self._vteps, neighbors=neighbors, fdb=fdb, flood=tuple(self._vteps))

    def _fdb(self) -> Iterator[tuple[Mac, tuple[VtepId, Origin]]]:
        """Who says it last is right; where two say it at once, the lower VTEP (RFC 7432 section 7.7)."""
        for mac, claims in self._claims.items():
            sequence, name = max(claims, key=lambda claim: (claim[0], -int(self._vtep_of[claim[1]])))
            is_ours = mac in self._own_macs and self._own_macs[mac] >= sequence
            if not is_ours and mac != self._own_device:
                yield mac, (self._vtep_of[name], Origin.CONTROL)

    def _complain(self, problem: str, fix: str) -> None:
        self.troubles.append(Trouble(problem, fix))
