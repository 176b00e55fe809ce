"""What the tables must hold is a pure function of what the operator and the pool say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.doubles import mac

from control.intent.desired import (
    DesiredNetwork,
    Node,
    NodeSubnet,
    Ours,
    OwnPart,
    claimed,
    desired,
    is_within,
    survey,
)
from control.membership.recordbody import LeaseWord, LocalMac, NetworkRecord
from overlay.addr import IpAddress, Mac, NetworkId, Vni, Vtep
from overlay.fdb import Origin
from overlay.route import IpNetwork

A, B = Vtep(ip_address("192.0.2.2"), 4789), Vtep(ip_address("2001:db8::3"), 8472)


@dataclass(frozen=True)
class Intent:
    id: NetworkId
    vteps: tuple[Vtep, ...] = ()
    subnet: IpNetwork | None = None
    nodes: tuple[NodeSubnet, ...] = ()
    network: IpNetwork | None = None
    encap: str = "vxlan"
    vni: int | None = 42
    port: int = 4789

    @property
    def mode(self) -> str:
        return "bridge" if self.subnet is None and self.network is None else "routed"


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
    node = NodeSubnet(A, theirs, mac)
    wanted = desired([Intent(LAB, (A,), own, (node,))])[LAB]
    assert wanted == DesiredNetwork(
        vteps={A.address: A},
        neighbors={ip_address("10.5.2.0"): (mac, Origin.STATIC)},
        fdb={mac: (A.address, Origin.STATIC)},
        flood=(),
        routes={own: (None, Origin.STATIC), theirs: (A.address, Origin.STATIC)},
        nodes=(node,),
    )


def test_where_packets_are_carried_bare_there_are_routes_and_no_macs() -> None:
    own, theirs = ip_network("10.5.1.0/24"), ip_network("10.5.2.0/24")
    wanted = desired([Intent(LAB, (A,), own, (NodeSubnet(A, theirs, None),))])[LAB]
    assert (wanted.neighbors, wanted.fdb, wanted.flood) == ({}, {}, ())
    assert wanted.routes[theirs] == (A.address, Origin.STATIC)


# ── With a pool ─────────────────────────────────────────────────────────────────────────────────────────

OURS = Ours((ip_address("192.0.2.1"),))
OWN_MAC, STATION = mac(0), mac(50)


def says(number: int, *macs: LocalMac, **changes: object) -> NetworkRecord:
    """What node n<number> says of the network `lab`: its device, and these MACs behind it."""
    own = mac(number)
    record = NetworkRecord(
        LAB,
        "bridge",
        "vxlan",
        Vni(42),
        4789,
        vteps=(vtep(number),),
        mac=own,
        macs=(LocalMac(own), *macs),
        ips=((ip_address(f"10.9.0.{number}"), own),),
    )
    return replace(record, **changes)  # type: ignore[arg-type]


def vtep(number: int) -> IpAddress:
    return ip_address(f"192.0.2.{number}")


def node(number: int, *macs: LocalMac, **changes: object) -> Node:
    return Node(f"n{number}", (says(number, *macs, **changes),))


def troubles(nodes: list[Node], intent: Intent = Intent(LAB), own: Ours = OURS) -> list[str]:
    _, found = survey([intent], nodes, own)
    assert all(each.fix for each in found)
    return [each.problem for each in found]


def test_a_nodes_record_becomes_vtep_flood_fdb_and_neighbor() -> None:
    wanted = desired([Intent(LAB)], [node(2, LocalMac(STATION))], OURS)[LAB]
    assert wanted == DesiredNetwork(
        vteps={vtep(2): Vtep(vtep(2), 4789)},
        neighbors={ip_address("10.9.0.2"): (mac(2), Origin.CONTROL)},
        fdb={mac(2): (vtep(2), Origin.CONTROL), STATION: (vtep(2), Origin.CONTROL)},
        flood=(vtep(2),),
    )


@given(st.permutations(range(2, 8)))
def test_in_whatever_order_nodes_are_known_the_tables_are_the_same(order: list[int]) -> None:
    shared = [LocalMac(mac(60), 3), LocalMac(mac(61), 1)]
    nodes = [node(number, *shared) for number in order]
    straight = [node(number, *shared) for number in range(2, 8)]
    assert survey([Intent(LAB)], nodes, OURS) == survey([Intent(LAB)], straight, OURS)


def test_a_static_vtep_and_a_node_there_are_one_and_the_operators_port_counts() -> None:
    static = Vtep(vtep(2), 8472)
    wanted = desired([Intent(LAB, (B, static))], [node(2), node(3)], OURS)[LAB]
    assert wanted.vteps[vtep(2)] == static
    assert wanted.flood == (B.address, vtep(2), vtep(3))
    assert wanted.fdb[mac(2)] == (vtep(2), Origin.CONTROL)


def test_a_network_nobody_shares_is_left_to_the_operator() -> None:
    wanted = desired([Intent(LAB, (B,))], [node(2, vni=Vni(7), name=NetworkId("other"))], OURS)[LAB]
    assert wanted == DesiredNetwork(vteps={B.address: B}, flood=(B.address,))


def test_of_two_that_say_a_mac_is_theirs_the_later_move_is_right() -> None:
    nodes = [node(2, LocalMac(STATION, 4)), node(3, LocalMac(STATION, 5)), node(4, LocalMac(STATION, 5))]
    assert desired([Intent(LAB)], nodes, OURS)[LAB].fdb[STATION] == (vtep(3), Origin.CONTROL)
    assert claimed(Intent(LAB), nodes)[STATION] == 5


@pytest.mark.parametrize(("ours", "theirs", "is_behind_them"), [(1, 0, False), (1, 1, False), (1, 2, True)])
def test_a_mac_of_ours_is_behind_nobody_until_it_has_moved(
    ours: int, theirs: int, *, is_behind_them: bool
) -> None:
    own = Ours(OURS.underlays, {LAB: OwnPart((LocalMac(OWN_MAC), LocalMac(STATION, ours)))})
    wanted = desired([Intent(LAB)], [node(2, LocalMac(STATION, theirs))], own)[LAB]
    assert (STATION in wanted.fdb) is is_behind_them


def test_our_own_device_is_behind_nobody_whatever_is_said() -> None:
    own = Ours(OURS.underlays, {LAB: OwnPart((LocalMac(OWN_MAC),))})
    nodes = [node(2, mac=OWN_MAC, macs=(LocalMac(OWN_MAC, 9),), ips=())]
    assert OWN_MAC not in desired([Intent(LAB)], nodes, own)[LAB].fdb
    assert any("both have the device MAC" in text for text in troubles(nodes, own=own))


def test_an_address_two_have_is_the_firsts_and_named() -> None:
    address = ip_address("10.9.0.9")
    nodes = [node(2, ips=((address, mac(2)),)), node(3, ips=((address, mac(3)),))]
    assert desired([Intent(LAB)], nodes, OURS)[LAB].neighbors == {address: (mac(2), Origin.CONTROL)}
    assert troubles(nodes) == ["n3 and n2 both have the address 10.9.0.9 in network lab"]


def test_our_own_address_is_answered_for_by_nobody() -> None:
    address = ip_address("10.9.0.2")
    own = Ours(OURS.underlays, {LAB: OwnPart((LocalMac(OWN_MAC),), ((address, OWN_MAC),))})
    assert desired([Intent(LAB)], [node(2)], own)[LAB].neighbors == {}
    assert troubles([node(2)], own=own) == ["n2 and this node both have the address 10.9.0.2 in network lab"]


def test_an_address_of_a_mac_that_is_elsewhere_is_not_answered_for() -> None:
    nodes = [
        node(2, LocalMac(STATION), ips=((ip_address("10.9.0.9"), STATION),)),
        node(3, LocalMac(STATION, 1)),
    ]
    assert ip_address("10.9.0.9") not in desired([Intent(LAB)], nodes, OURS)[LAB].neighbors


def test_of_a_nodes_addresses_the_first_we_can_reach_is_used() -> None:
    both = (ip_address("2001:db8::2"), vtep(2), ip_address("192.0.2.22"))
    assert list(desired([Intent(LAB)], [node(2, vteps=both)], OURS)[LAB].vteps) == [vtep(2)]
    nodes = [node(2, vteps=(ip_address("2001:db8::2"),))]
    assert desired([Intent(LAB)], nodes, OURS)[LAB] == DesiredNetwork()
    assert troubles(nodes) == ["n2 has no VTEP address we can reach for network lab: we have IPv4"]


def test_a_vtep_two_have_is_the_firsts_and_ours_is_nobodys() -> None:
    nodes = [node(2), node(3, vteps=(vtep(2),)), node(4, vteps=(vtep(1),))]
    assert list(desired([Intent(LAB)], nodes, OURS)[LAB].vteps) == [vtep(2)]
    assert [text.rpartition(", ")[2] for text in troubles(nodes)] == ["which is n2's", "which is this node's"]


# ── Routed, with a pool ─────────────────────────────────────────────────────────────────────────────────

WHOLE, OWN_SUBNET = ip_network("10.5.0.0/16"), ip_network("10.5.1.0/24")
PODS = Intent(LAB, subnet=OWN_SUBNET, network=WHOLE)


def routed(number: int, *subnets: str, **changes: object) -> Node:
    told = says(number, mode="routed", ips=(), subnets=tuple(ip_network(subnet) for subnet in subnets))
    return Node(f"n{number}", (replace(told, **changes),))  # type: ignore[arg-type]


def test_a_nodes_subnet_becomes_route_neighbor_and_fdb() -> None:
    subnet = ip_network("10.5.2.0/24")
    wanted = desired([PODS], [routed(2, "10.5.2.0/24")], OURS)[LAB]
    assert wanted.routes == {OWN_SUBNET: (None, Origin.STATIC), subnet: (vtep(2), Origin.CONTROL)}
    assert wanted.neighbors == {ip_address("10.5.2.0"): (mac(2), Origin.CONTROL)}
    assert wanted.fdb == {mac(2): (vtep(2), Origin.CONTROL)}
    assert wanted.flood == ()
    assert wanted.nodes == (NodeSubnet(Vtep(vtep(2), 4789), subnet, mac(2)),)


@pytest.mark.parametrize(
    ("subnet", "words"),
    [
        ("10.5.1.0/24", "n2 and this node both have the subnet"),
        ("10.5.0.0/16", "n2 and this node both have the subnet"),
        ("10.5.1.128/25", "n2 and this node both have the subnet"),
        ("10.6.2.0/24", "outside network lab, which is 10.5.0.0/16"),
        ("fd00::/64", "outside network lab"),
    ],
)
def test_a_subnet_that_cannot_be_a_nodes_is_not_routed_and_named(subnet: str, words: str) -> None:
    assert desired([PODS], [routed(2, subnet)], OURS)[LAB].nodes == ()
    (text,) = troubles([routed(2, subnet)], PODS)
    assert words in text


def test_a_subnet_two_nodes_have_is_the_firsts() -> None:
    nodes = [routed(3, "10.5.9.0/24"), routed(2, "10.5.9.0/24")]
    (found,) = desired([PODS], nodes, OURS)[LAB].nodes
    assert found.vtep.address == vtep(2)
    assert troubles(nodes, PODS) == ["n3 and n2 both have the subnet 10.5.9.0/24 of network lab"]


def test_of_a_subnet_the_operator_has_placed_nobody_else_is_asked() -> None:
    placed = NodeSubnet(A, ip_network("10.5.2.0/24"), mac(9))
    intent = replace(PODS, nodes=(placed,), vteps=(A,))
    assert desired([intent], [routed(3, "10.5.2.0/24")], OURS)[LAB].nodes == (placed,)


def test_who_goes_by_other_leases_is_not_routed_to() -> None:
    own = Ours(OURS.underlays, {LAB: OwnPart(pool_id=bytes(16))})
    stranger = routed(2, "10.5.2.0/24", leases=LeaseWord(bytes(15) + b"x"))
    assert desired([PODS], [stranger], own)[LAB].nodes == ()
    friend = routed(2, "10.5.2.0/24", leases=LeaseWord(bytes(16)))
    assert len(desired([PODS], [friend], own)[LAB].nodes) == 1


def test_where_packets_are_bare_a_node_is_told_by_its_port_and_needs_no_mac() -> None:
    intent = replace(PODS, encap="flannel-udp", vni=None, port=8285)
    udp = routed(2, "10.5.2.0/24", encap="flannel-udp", vni=None, port=8285, mac=None)
    (found,) = desired([intent], [udp], OURS)[LAB].nodes
    assert found == NodeSubnet(Vtep(vtep(2), 8285), ip_network("10.5.2.0/24"), None)


@given(st.integers(0, 1 << 32))
def test_whatever_nodes_say_nobody_is_given_ours_and_nothing_hangs_in_the_air(seed: int) -> None:
    rng = Random(seed)
    own = Ours(OURS.underlays, {LAB: OwnPart((LocalMac(OWN_MAC), LocalMac(STATION, 1)))})
    nodes = [
        node(
            number,
            *(LocalMac(mac(rng.randrange(8)), rng.randrange(3)) for _ in range(rng.randrange(4))),
            vteps=tuple(vtep(rng.randrange(1, 6)) for _ in range(rng.randrange(3))),
            mac=mac(rng.randrange(8)),
            vni=Vni(rng.choice([42, 43])),
            port=rng.choice([4789, 4790]),
        )
        for number in range(2, 7)
    ]
    wanted = desired([Intent(LAB)], nodes, own)[LAB]
    assert OWN_MAC not in wanted.fdb
    assert vtep(1) not in wanted.vteps
    assert {where for where, _ in wanted.fdb.values()} <= set(wanted.vteps)
    assert set(wanted.flood) == set(wanted.vteps)
    assert {each for each, _ in wanted.neighbors.values()} <= set(wanted.fdb)


def test_a_subnet_is_within_itself_and_never_in_another_family() -> None:
    assert is_within(WHOLE, WHOLE)
    assert not is_within(WHOLE, OWN_SUBNET)
    assert not is_within(ip_network("::/0"), ip_network("0.0.0.0/0"))
