"""A weft node and the kernel's own VXLAN on one segment, on every underlay a user may have.

    n1  weft ──── veth pair, all offloads on, or wire-like ──── n2  ip link … type vxlan

Over the veth pair the kernel hands us what no wire carries: super-packets and unfinished checksums.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address

import pytest
from support.engines import ON_BOTH
from support.lab import ROOT, leaks, skip_unless_possible
from support.serving import expect_clean_exits, start_daemons
from support.traffic import checksum_errors, echo_over_udp, send_segmented, transfer

from bench.lab import checks
from bench.lab.namespaces import Lab
from bench.lab.topology import KernelVxlan, NodeKind, Underlay, UnderlayKind, segment

pytestmark = [*ROOT, pytest.mark.interop, ON_BOTH]

PAIR = {
    "n1": (ip_address("10.9.0.1"), ip_address("fd09::1")),
    "n2": (ip_address("10.9.0.2"), ip_address("fd09::2")),
}
WAYS = [pytest.param("n1", "n2", id="weft-to-kernel"), pytest.param("n2", "n1", id="kernel-to-weft")]
OVERLAYS = [pytest.param(0, id="ipv4"), pytest.param(1, id="ipv6")]
TRANSFER_OCTETS = 4_000_000  # a hundred super-packets and more
LARGEST_IPV6_ECHO = 65527  # a payload of 65 535 octets less the echo's header (RFC 8200 section 3)


@dataclass(frozen=True, slots=True)
class World:
    """One combination of what the two nodes may meet on."""

    kind: UnderlayKind
    version: int
    udpcsum: bool
    port: int

    def __str__(self) -> str:
        checksum = "udpcsum" if self.udpcsum else "zerocsum"
        return f"{self.kind.value}-ipv{self.version}-{checksum}-{self.port}"


WORLDS = [
    World(kind, version, csum, 4789) for kind in UnderlayKind for version in (4, 6) for csum in (True, False)
]
WORLDS += [World(kind, version, udpcsum=True, port=8472) for kind in UnderlayKind for version in (4, 6)]


@pytest.fixture(scope="module", params=WORLDS, ids=str)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The pair, running; the tests of this file share one for each world."""
    world: World = request.param
    topology = segment(
        "pair",
        NodeKind.WEFT,
        NodeKind.KERNEL_VXLAN,
        underlay=Underlay(world.kind),
        underlay_version=world.version,
    )
    n1, n2 = topology.nodes
    n2 = replace(n2, vxlan=KernelVxlan(udpcsum=world.udpcsum))
    topology = replace(topology, nodes=(n1, n2), port=world.port)
    skip_unless_possible(topology)
    with Lab(topology) as lab:
        start_daemons(lab)
        yield lab
        expect_clean_exits(lab)
    assert not leaks(lab)


@pytest.fixture(autouse=True)
def no_checksum_is_wrong(lab: Lab) -> Iterator[None]:
    """Whatever a test sends, neither stack may find fault with what arrives."""
    # Before weft had the port, its stack refused n2's first datagrams where their checksum is zero on IPv6.
    before = {name: checksum_errors(lab[name]) for name in PAIR}
    yield
    assert {name: checksum_errors(lab[name]) for name in PAIR} == before


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize(("source", "sink"), WAYS)
def test_echoes_of_every_size_are_answered(lab: Lab, source: str, sink: str, overlay: int) -> None:
    address = PAIR[sink][overlay]
    largest = checks.IPV4_LARGEST_ECHO if address.version == 4 else LARGEST_IPV6_ECHO
    unfragmented = lab.topology.overlay_mtu(lab.topology.node("n1")) - (28 if address.version == 4 else 48)
    assert checks.ping(lab[source], address, count=1).complete
    assert checks.ping(lab[source], address, count=1, size=unfragmented, options=("-M", "do")).complete
    assert checks.ping(lab[source], address, count=1, size=largest).complete


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize(("source", "sink"), WAYS)
def test_tcp_carries_every_octet(lab: Lab, source: str, sink: str, overlay: int) -> None:
    carried = transfer(lab[source], lab[sink], PAIR[sink][overlay], TRANSFER_OCTETS)
    assert (carried.received, carried.is_intact) == (TRANSFER_OCTETS, True)


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize(("source", "sink"), WAYS)
def test_udp_carries_datagrams_whole_and_in_fragments(lab: Lab, source: str, sink: str, overlay: int) -> None:
    payloads = [os.urandom(octets) for octets in (0, 1, 17, 18, 19, 512, 1400, 1401, 4000, 20_000, 65_000)]
    assert echo_over_udp(lab[source], lab[sink], PAIR[sink][overlay], payloads) == payloads


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize(("source", "sink"), WAYS)
def test_a_segmented_udp_burst_arrives_as_the_datagrams_it_stands_for(
    lab: Lab, source: str, sink: str, overlay: int
) -> None:
    size, payload = 1000, os.urandom(20_300)
    arrived = send_segmented(lab[source], lab[sink], PAIR[sink][overlay], payload, size)
    assert arrived == [payload[at : at + size] for at in range(0, len(payload), size)]
