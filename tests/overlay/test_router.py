"""Where a packet goes: the longest prefix out, pinned source and split horizon in, an error in words."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.packets import AT_B, AT_C, LOCAL, OURS, B, C, icmp_of, packet

from overlay.addr import NetworkId, Vtep
from overlay.fdb import Origin
from overlay.route import NOWHERE, subnet_key
from overlay.router import Router, RouterPolicy
from overlay.tables import (
    Change,
    RouteRemove,
    RouteReplace,
    TableDelta,
    Tables,
    VtepRemove,
    VtepReplace,
    route_key,
)
from overlay.verdict import Deliver, Drop, DropReason, Encapsulate, TableKey, Verdict

PODS = NetworkId("pods")
VTEP_B, VTEP_C = ip_address("192.0.2.2"), ip_address("192.0.2.3")
OUR_ADDRESS = IPv4Address("10.5.1.0")
STRANGER = IPv4Address("198.51.100.9")


class World:
    """A router with its tables."""

    def __init__(self) -> None:
        self.tables = Tables()
        self.tables.add_network(PODS)
        self.apply(VtepReplace(PODS, Vtep(VTEP_B, 8285)), VtepReplace(PODS, Vtep(VTEP_C, 8285)))
        for subnet, vtep in ((OURS, None), (B, VTEP_B), (C, VTEP_C)):
            self.apply(RouteReplace(PODS, subnet, vtep, Origin.STATIC))
        self.router = Router(RouterPolicy(PODS, OUR_ADDRESS), self.tables)

    def apply(self, *changes: Change) -> frozenset[TableKey]:
        return self.tables.apply(TableDelta(changes))

    def egress(self, destination: IPv4Address) -> Verdict:
        return self.router.egress(packet(destination=destination), now=0.0).verdict


@pytest.fixture
def world() -> World:
    return World()


def test_a_packet_goes_to_the_vtep_of_its_destinations_subnet(world: World) -> None:
    decision = world.router.egress(packet(destination=AT_B), now=0.0)
    assert decision.verdict == Encapsulate(VTEP_B)
    assert decision.key == subnet_key(B)
    assert decision.rests_on == (route_key(PODS, B),)
    assert decision.delta is None


def test_the_base_of_a_subnet_is_its_nodes_own_address_and_is_routed(world: World) -> None:
    assert world.egress(IPv4Address("10.5.2.0")) == Encapsulate(VTEP_B)


def test_what_is_in_no_subnet_or_in_ours_has_no_route(world: World) -> None:
    for destination in (STRANGER, IPv4Address("10.5.0.0"), IPv4Address("10.5.255.255")):
        decision = world.router.egress(packet(destination=destination), now=0.0)
        assert (decision.verdict, decision.key, decision.rests_on) == (Drop(DropReason.NO_ROUTE), NOWHERE, ())
    assert world.egress(LOCAL) == Drop(DropReason.NO_ROUTE)


def test_a_longer_prefix_takes_over_and_gives_back(world: World) -> None:
    half = ip_network("10.5.2.0/25")
    assert world.apply(RouteReplace(PODS, half, VTEP_C, Origin.CONTROL)) == {route_key(PODS, half)}
    assert world.egress(AT_B) == Encapsulate(VTEP_C)
    assert world.egress(AT_B + 128) == Encapsulate(VTEP_B)
    assert world.apply(RouteRemove(PODS, half)) == {route_key(PODS, half)}
    assert world.egress(AT_B) == Encapsulate(VTEP_B)


def test_with_a_vtep_go_its_routes(world: World) -> None:
    assert route_key(PODS, B) in world.apply(VtepRemove(PODS, VTEP_B))
    assert world.egress(AT_B) == Drop(DropReason.NO_ROUTE)


def test_what_comes_for_us_from_its_own_subnet_is_delivered(world: World) -> None:
    decision = world.router.ingress(packet(AT_B, LOCAL), VTEP_B, now=0.0)
    assert decision.verdict == Deliver()
    assert decision.key == subnet_key(B) + subnet_key(OURS)
    assert decision.rests_on == (route_key(PODS, B), route_key(PODS, OURS))


def test_what_comes_from_no_subnet_or_for_none_is_the_hosts_to_route(world: World) -> None:
    assert world.router.ingress(packet(STRANGER, LOCAL), VTEP_B, now=0.0).verdict == Deliver()
    assert world.router.ingress(packet(AT_B, STRANGER), VTEP_B, now=0.0).verdict == Deliver()


@pytest.mark.parametrize("source", [LOCAL, OUR_ADDRESS, AT_C])
def test_a_source_pinned_elsewhere_ours_included_is_spoofed(world: World, source: IPv4Address) -> None:
    decision = world.router.ingress(packet(source, LOCAL), VTEP_B, now=0.0)
    assert decision.verdict == Drop(DropReason.SPOOFED_SOURCE)


def test_nothing_goes_from_the_tunnel_back_into_it(world: World) -> None:
    verdict = world.router.ingress(packet(AT_B, AT_C), VTEP_B, now=0.0).verdict
    assert verdict == Drop(DropReason.SPLIT_HORIZON)


def test_the_three_errors_come_from_our_own_address(world: World) -> None:
    big = packet(payload=bytes(1400), flags="DF")
    errors = [world.router.expired(big), world.router.unreachable(big), world.router.too_big(big, 1000)]
    told = [icmp_of(error) for error in errors if error is not None]
    ends = (str(OUR_ADDRESS), str(LOCAL))
    assert told == [(11, 0, *ends), (3, 0, *ends), (3, 4, *ends)]


def test_nobody_is_told_about_an_error_a_group_or_a_later_fragment(world: World) -> None:
    error = world.router.expired(packet())
    assert error is not None
    for quiet in (
        error,
        packet(destination=IPv4Address("224.0.0.5")),
        packet(destination=IPv4Address("255.255.255.255")),
        packet(frag=10),
        packet(source=IPv4Address("0.0.0.0")),
        b"",
    ):
        assert world.router.expired(quiet) is None
        assert world.router.unreachable(quiet) is None
        assert world.router.too_big(quiet, 68) is None


@given(st.binary(max_size=60))
def test_any_octets_have_a_verdict(octets: bytes) -> None:
    world = World()
    for decision in (world.router.egress(octets, now=0.0), world.router.ingress(octets, VTEP_B, now=0.0)):
        assert isinstance(decision.verdict, Drop | Deliver | Encapsulate)
