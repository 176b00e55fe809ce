"""What the tables must hold is a pure function of what the operator says."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from control.intent.desired import DesiredNetwork, NodeSubnet, desired
from overlay.addr import Mac, NetworkId, Vtep
from overlay.fdb import Origin
from overlay.route import IpNetwork

A, B = Vtep(ip_address("192.0.2.2"), 4789), Vtep(ip_address("2001:db8::3"), 8472)


@dataclass(frozen=True)
class Intent:
    id: NetworkId
    vteps: tuple[Vtep, ...] = ()
    subnet: IpNetwork | None = None
    nodes: tuple[NodeSubnet, ...] = ()


LAB, OTHER = NetworkId("lab"), NetworkId("other")


def test_every_static_vtep_is_known_and_flooded_to_in_the_operators_order() -> None:
    wanted = desired([Intent(LAB, (B, A))])
    assert wanted == {LAB: DesiredNetwork(vteps={B.address: B, A.address: A}, flood=(B.address, A.address))}
    assert list(wanted[LAB].vteps) == [B.address, A.address]


def test_of_a_vtep_named_twice_the_last_port_counts_and_one_copy_is_sent() -> None:
    moved = Vtep(A.address, 8472)
    wanted = desired([Intent(LAB, (A, B, moved))])[LAB]
    assert wanted.vteps[A.address] == moved
    assert wanted.flood == (A.address, B.address)


def test_networks_are_wanted_apart() -> None:
    wanted = desired([Intent(LAB, (A,)), Intent(OTHER, (B,))])
    assert (set(wanted[LAB].vteps), set(wanted[OTHER].vteps)) == ({A.address}, {B.address})


def test_a_network_without_peers_wants_nothing_and_is_still_wanted() -> None:
    assert desired([Intent(LAB)]) == {LAB: DesiredNetwork()}
    assert desired([]) == {}


def test_a_routed_network_wants_neighbor_fdb_and_route_of_each_node_and_floods_to_none() -> None:
    own, theirs, mac = ip_network("10.5.1.0/24"), ip_network("10.5.2.0/24"), Mac(b"\x02\0\0\0\0\2")
    wanted = desired([Intent(LAB, (A,), own, (NodeSubnet(A, theirs, mac),))])[LAB]
    assert wanted == DesiredNetwork(
        vteps={A.address: A},
        neighbors={ip_address("10.5.2.0"): (mac, Origin.STATIC)},
        fdb={mac: (A.address, Origin.STATIC)},
        flood=(),
        routes={own: (None, Origin.STATIC), theirs: (A.address, Origin.STATIC)},
    )


def test_where_packets_are_carried_bare_there_are_routes_and_no_macs() -> None:
    own, theirs = ip_network("10.5.1.0/24"), ip_network("10.5.2.0/24")
    wanted = desired([Intent(LAB, (A,), own, (NodeSubnet(A, theirs, None),))])[LAB]
    assert (wanted.neighbors, wanted.fdb, wanted.flood) == ({}, {}, ())
    assert wanted.routes[theirs] == (A.address, Origin.STATIC)
