"""What the tables must hold: a pure function of what the operator and the pool say.

    desired(networks, nodes, own) -> {network: its VTEPs, neighbors, FDB, flood list, routes}

    operator    static VTEPs, and the subnets behind them             Origin.STATIC
    nodes       who is there (`swim`) and what each says (`records`)  Origin.CONTROL
    own         what is ours, and so is behind nobody's VTEP

Only what control is responsible for stands in it.  What the data plane has learned is nobody's intent: it
is left alone as long as its VTEP is wanted.  A static VTEP and a node of the pool at one address are one
VTEP, and the operator's word about it counts.

A network is put together node by node in the order of their names, so that everybody who knows the same
nodes comes to the same end; where two contradict each other the first is believed, and the operator told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from control.intent.shared import NetworkKind, Trouble, pair
from control.membership.recordbody import LocalMac, NetworkRecord
from overlay.addr import IpAddress, Mac, NetworkId, Vtep, VtepId, format_mac
from overlay.fdb import Origin
from overlay.route import IpNetwork


@dataclass(frozen=True, slots=True)
class NodeSubnet:
    """A node of a routed network.  `mac` is its tunnel device's, None where packets are carried bare."""

    vtep: Vtep
    subnet: IpNetwork
    mac: Mac | None


@dataclass(frozen=True, slots=True)
class DesiredNetwork:
    """What one network's tables must hold.

    Attributes:
        vteps: The VTEPs, by their id.
        neighbors: IP → MAC, and who says so.
        fdb: MAC → VTEP, and who says so.
        flood: Where copies go, in order.
        routes: Subnet → VTEP, None for our own, and who says so.
        nodes: The nodes of a routed network, as the host's kernel must know them.
    """

    vteps: Mapping[VtepId, Vtep] = field(default_factory=dict)
    neighbors: Mapping[IpAddress, tuple[Mac, Origin]] = field(default_factory=dict)
    fdb: Mapping[Mac, tuple[VtepId, Origin]] = field(default_factory=dict)
    flood: tuple[VtepId, ...] = ()
    routes: Mapping[IpNetwork, tuple[VtepId | None, Origin]] = field(default_factory=dict)
    nodes: tuple[NodeSubnet, ...] = ()


DesiredTables = Mapping[NetworkId, DesiredNetwork]


class NetworkIntent(NetworkKind, Protocol):
    """What the operator says of a network, as far as the tables are concerned.

    `subnet` is None in a bridged network, and in a routed one that has not leased its own yet.
    """

    @property
    def vteps(self) -> tuple[Vtep, ...]: ...
    @property
    def subnet(self) -> IpNetwork | None: ...
    @property
    def nodes(self) -> tuple[NodeSubnet, ...]: ...


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
        pool_id: Whose leases we go by; empty: nobody's.
    """

    macs: tuple[LocalMac, ...] = ()
    ips: tuple[tuple[IpAddress, Mac], ...] = ()
    pool_id: bytes = b""


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
        kind = _Bridged if network.mode == BRIDGE else _Routed
        plan = kind(network, own.underlays, own.parts.get(network.id, OwnPart()))
        for name, theirs in sharers[network.id]:
            plan.join(name, theirs)
        tables[network.id] = plan.tables()
        troubles += plan.troubles
    return tables, troubles


def claimed(network: NetworkIntent, nodes: Iterable[Node]) -> dict[Mac, int]:
    """Which MACs others say are behind them in this network, and the highest sequence they say it by."""
    claims: dict[Mac, int] = {}
    for node in nodes:
        shared, _ = pair([network], node.networks, node.name)
        for local in (local for each in shared for local in each.theirs.macs):
            claims[local.mac] = max(local.sequence, claims.get(local.mac, 0))
    return claims


BRIDGE = "bridge"


class _Plan:
    """One network, as it grows: which nodes have it, and where each of them receives."""

    def __init__(self, network: NetworkIntent, underlays: Sequence[IpAddress], own: OwnPart) -> None:
        self.troubles: list[Trouble] = []
        self._network = network
        self._id = network.id
        self._underlays = underlays
        self._vteps = {vtep.address: vtep for vtep in network.vteps}
        self._node_at: dict[VtepId, str] = {}
        self._own = own
        self._own_device = own.macs[0].mac if own.macs else None
        self._devices: dict[Mac, str] = {}

    def join(self, name: str, theirs: NetworkRecord) -> None:
        """Another node has this network too."""
        vtep = self._usable(name, theirs)
        if vtep is None:
            return
        self._node_at[vtep.address] = name
        if theirs.mac is not None:
            self._note_device(name, theirs.mac)
        self._take(name, self._vteps.get(vtep.address, vtep), theirs)

    def _take(self, name: str, vtep: Vtep, theirs: NetworkRecord) -> None:
        raise NotImplementedError

    def tables(self) -> DesiredNetwork:
        """What this network's tables must hold."""
        raise NotImplementedError

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

    def _complain(self, problem: str, fix: str) -> None:
        self.troubles.append(Trouble(problem, fix))


class _Bridged(_Plan):
    """One Ethernet segment."""

    def __init__(self, network: NetworkIntent, underlays: Sequence[IpAddress], own: OwnPart) -> None:
        super().__init__(network, underlays, own)
        self._vtep_of: dict[str, VtepId] = {}
        self._own_macs = {each.mac: each.sequence for each in own.macs}
        self._own_ips = dict(own.ips)
        self._claims: dict[Mac, list[tuple[int, str]]] = {}
        self._ips: dict[IpAddress, tuple[Mac, str]] = {}

    def _take(self, name: str, vtep: Vtep, theirs: NetworkRecord) -> None:
        self._vtep_of[name] = vtep.address
        self._vteps.setdefault(vtep.address, vtep)
        for local in theirs.macs:
            self._claims.setdefault(local.mac, []).append((local.sequence, name))
        for address, mac in theirs.ips:
            self._note_ip(name, address, mac)

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
        """Every VTEP gets a copy of what is replicated: the underlay is taken to carry no multicast."""
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


class _Routed(_Plan):
    """A subnet for each node.  As Flannel has it, its base address is the node's own; nothing is flooded."""

    def __init__(self, network: NetworkIntent, underlays: Sequence[IpAddress], own: OwnPart) -> None:
        super().__init__(network, underlays, own)
        self._nodes = [(node, Origin.STATIC) for node in network.nodes]
        self._taken = {node.subnet: str(node.vtep.address) for node in network.nodes}
        self._static = {node.subnet for node in network.nodes}
        if network.subnet is not None:
            self._taken[network.subnet] = "this node"

    def _take(self, name: str, vtep: Vtep, theirs: NetworkRecord) -> None:
        pool_id = theirs.leases.pool_id if theirs.leases is not None else b""
        if pool_id and self._own.pool_id and pool_id != self._own.pool_id:
            return  # two pools do not merge: `leases` says so
        if self._network.vni is not None and theirs.mac is None:
            return  # not open yet, over there
        for subnet in theirs.subnets:
            if self._may_have(name, subnet):
                self._taken[subnet] = name
                mac = theirs.mac if self._network.vni is not None else None
                self._nodes.append((NodeSubnet(vtep, subnet, mac), Origin.CONTROL))

    def _may_have(self, name: str, subnet: IpNetwork) -> bool:
        """Whether a node's subnet is of this network, and nobody else's."""
        if subnet in self._static:
            return False  # the operator has said whose it is
        whole = self._network.network
        if whole is None or not is_within(subnet, whole):
            self._complain(
                f"{name} says it has {subnet}, outside network {self._id}, which is {whole}",
                f"make `network` of [[network]] {self._id} the same on both",
            )
            return False
        for other, holder in self._taken.items():
            if other.version == subnet.version and other.overlaps(subnet):
                self._complain(
                    f"{name} and {holder} both have the subnet {subnet} of network {self._id}",
                    "give one of them another `subnet`, or have it leased again: move its leases.json away",
                )
                return False
        return True

    def tables(self) -> DesiredNetwork:
        """What this network's tables must hold."""
        with_mac = [(node, node.mac, origin) for node, origin in self._nodes if node.mac is not None]
        own = self._network.subnet
        routes: dict[IpNetwork, tuple[VtepId | None, Origin]] = {}
        if own is not None:
            routes[own] = None, Origin.STATIC
        routes |= {node.subnet: (node.vtep.address, origin) for node, origin in self._nodes}
        return DesiredNetwork(
            vteps={node.vtep.address: node.vtep for node, _ in self._nodes},
            neighbors={node.subnet.network_address: (mac, origin) for node, mac, origin in with_mac},
            fdb={mac: (node.vtep.address, origin) for node, mac, origin in with_mac},
            routes=routes,
            nodes=tuple(node for node, _ in self._nodes),
        )


def is_within(subnet: IpNetwork, network: IpNetwork) -> bool:
    """Whether the subnet is the network, or a part of it."""
    return (
        subnet.version == network.version
        and subnet.prefixlen >= network.prefixlen
        and int(network.network_address) <= int(subnet.network_address) <= int(network.broadcast_address)
    )
