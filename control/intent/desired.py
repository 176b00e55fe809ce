"""What the tables must hold: a pure function of what the operator and the pool say.

    desired(networks) -> {network: its VTEPs, neighbors, FDB, flood list, routes}

Only what control is responsible for stands in it.  What the data plane has learned is nobody's intent: it
is left alone as long as its VTEP is wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from overlay.addr import IpAddress, Mac, NetworkId, Vtep, VtepId
from overlay.fdb import Origin
from overlay.route import IpNetwork


@dataclass(frozen=True, slots=True)
class DesiredNetwork:
    """What one network's tables must hold.

    Attributes:
        vteps: The VTEPs, by their id.
        neighbors: IP → MAC, and who says so.
        fdb: MAC → VTEP, and who says so.
        flood: Where copies go, in order.
        routes: Subnet → VTEP, None for our own, and who says so.
    """

    vteps: Mapping[VtepId, Vtep] = field(default_factory=dict)
    neighbors: Mapping[IpAddress, tuple[Mac, Origin]] = field(default_factory=dict)
    fdb: Mapping[Mac, tuple[VtepId, Origin]] = field(default_factory=dict)
    flood: tuple[VtepId, ...] = ()
    routes: Mapping[IpNetwork, tuple[VtepId | None, Origin]] = field(default_factory=dict)


DesiredTables = Mapping[NetworkId, DesiredNetwork]


@dataclass(frozen=True, slots=True)
class NodeSubnet:
    """A node of a routed network.  `mac` is its tunnel device's, None where packets are carried bare."""

    vtep: Vtep
    subnet: IpNetwork
    mac: Mac | None


class NetworkIntent(Protocol):
    """What the operator says of a network, as far as the tables are concerned.

    `subnet` is None in a bridged network.
    """

    @property
    def id(self) -> NetworkId: ...
    @property
    def vteps(self) -> tuple[Vtep, ...]: ...
    @property
    def subnet(self) -> IpNetwork | None: ...
    @property
    def nodes(self) -> tuple[NodeSubnet, ...]: ...


def desired(networks: Iterable[NetworkIntent]) -> DesiredTables:
    """What the tables must hold for these networks, of which only static VTEPs are known."""
    return {
        network.id: _bridged(network.vteps)
        if network.subnet is None
        else _routed(network.subnet, network.nodes)
        for network in networks
    }


def _bridged(vteps: tuple[Vtep, ...]) -> DesiredNetwork:
    """Every VTEP gets a copy of what is replicated: the underlay is taken to carry no multicast."""
    by_id = {vtep.address: vtep for vtep in vteps}
    return DesiredNetwork(vteps=by_id, flood=tuple(by_id))


def _routed(own: IpNetwork, nodes: tuple[NodeSubnet, ...]) -> DesiredNetwork:
    """As Flannel has it: a subnet's base address is the node's own, and nothing is ever flooded."""
    with_mac = [(node, node.mac) for node in nodes if node.mac is not None]
    return DesiredNetwork(
        vteps={node.vtep.address: node.vtep for node in nodes},
        neighbors={node.subnet.network_address: (mac, Origin.STATIC) for node, mac in with_mac},
        fdb={mac: (node.vtep.address, Origin.STATIC) for node, mac in with_mac},
        routes={own: (None, Origin.STATIC)}
        | {node.subnet: (node.vtep.address, Origin.STATIC) for node in nodes},
    )
