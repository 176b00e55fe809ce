"""One daemon on two underlays at once: each VTEP is reached over the family it has.

n1  weft: 192.0.2.1 and 2001:db8::1 ──┬── n2  kernel vxlan on 192.0.2.2
                                      └── n3  kernel vxlan on 2001:db8::3
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest
from support.engines import ON_BOTH
from support.lab import ROOT, BuildLab
from support.serving import drops, serve, view
from support.traffic import pinging, transfer, type_in

from bench.lab import checks
from bench.lab.namespaces import Daemon, Lab, Place
from bench.lab.topology import NodeKind, segment

pytestmark = [*ROOT, pytest.mark.interop, ON_BOTH]

OVERLAY_MTU = 1430  # RFC 7348 section 4.3: what the narrower underlay leaves, 1500 - 70
N1, N2, N3 = (ip_address(f"10.9.0.{number}") for number in (1, 2, 3))
FLAGS = ("--underlay", "192.0.2.1", "--underlay", "2001:db8::1", "--vni", "42", "--device", "weft0")
PEERS = ("--peer", "192.0.2.2", "--peer", "2001:db8::3", "--address", "10.9.0.1/24")


@dataclass(frozen=True, slots=True)
class Both:
    """What runs."""

    lab: Lab
    daemon: Daemon


@pytest.fixture
def both(build_lab: BuildLab, tmp_path: Path) -> Iterator[Both]:
    """The three nodes, running."""
    topology = segment("underlays", NodeKind.BARE, NodeKind.BARE, NodeKind.BARE)
    n1, n2, n3 = topology.nodes
    six = tuple(ip_interface(f"2001:db8::{number}/64") for number in (1, 2, 3))
    nodes = [
        replace(node, underlay_addresses=(*node.underlay_addresses, address))
        for node, address in zip((n1, n2, n3), six, strict=True)
    ]
    lab = build_lab(replace(topology, nodes=tuple(nodes)))
    member(lab["n2"], "local 192.0.2.2 remote 192.0.2.1", "10.9.0.2/24")
    member(lab["n3"], "local 2001:db8::3 remote 2001:db8::1", "10.9.0.3/24")
    with serve(lab["n1"], tmp_path / "n1", *FLAGS, *PEERS) as daemon:
        yield Both(lab, daemon)


def member(place: Place, ends: str, address: str) -> None:
    type_in(
        place,
        f"ip link add vxlan0 mtu {OVERLAY_MTU} type vxlan id 42 dstport 4789 {ends}",
        f"ip address add {address} dev vxlan0",
        "ip link set vxlan0 up",
    )


def test_members_of_both_families_are_reached_over_their_own(both: Both) -> None:
    lab = both.lab
    status = view(both.daemon, "status")
    assert [each["address"] for each in status["underlays"]] == ["192.0.2.1", "2001:db8::1"]
    assert status["networks"][0]["mtu"] == OVERLAY_MTU
    for name, address in (("n2", N2), ("n3", N3)):
        whole = OVERLAY_MTU - 28
        assert checks.ping(lab["n1"], address, count=1, size=whole, options=("-M", "do")).complete
        assert transfer(lab[name], lab["n1"], N1, 1_000_000).is_intact
        assert transfer(lab["n1"], lab[name], address, 1_000_000).is_intact
    assert {peer["name"] for peer in view(both.daemon, "peers")} == {"192.0.2.2", "2001:db8::3"}
    assert not any(drops(both.daemon).values())


def test_an_underlay_that_goes_takes_its_own_members_alone(both: Both) -> None:
    lab = both.lab
    assert checks.ping(lab["n1"], N3, count=1).complete
    with pinging(lab["n2"], N1):
        type_in(lab["n1"], "ip address delete 2001:db8::1/64 dev eth0")
        assert not checks.ping(lab["n1"], N3, count=1).complete
    assert checks.ping(lab["n1"], N2, count=1).complete
