"""One Ethernet segment over three weft nodes: what a bridge promises, seen in raw frames.

    n1 ──┐
    n2 ──┼── hub       each node's weft0 is in the test's hands
    n3 ──┘

That something does not arrive is known by what was sent after it and does: one flow keeps its order.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address

import pytest
from support.engines import ON_BOTH
from support.frames import vxlan
from support.lab import ROOT
from support.serving import StartLab, drops, eventually, view
from support.traffic import Port, open_in, ports, type_in

from bench.lab import checks
from bench.lab.namespaces import Lab
from bench.lab.topology import LAB_VNI, VXLAN_PORT, Address, NodeKind, segment
from overlay.addr import BPDU_GROUP, BROADCAST, Mac, format_mac, parse_mac
from overlay.verdict import DropReason

pytestmark = [*ROOT, pytest.mark.interop, ON_BOTH]

THREE = segment("segment", NodeKind.WEFT, NodeKind.WEFT, NodeKind.WEFT)
TYPE = b"\x88\xb5"  # IEEE 802: local experimental 1
MOVER = parse_mac("02:00:00:00:00:99")
OTHER = parse_mac("02:00:00:00:00:98")
LLDP_GROUP = parse_mac("01:80:c2:00:00:0e")


@dataclass(frozen=True, slots=True)
class Segment:
    lab: Lab
    ports: list[Port]


@pytest.fixture
def three(start_lab: StartLab) -> Iterator[Segment]:
    lab = start_lab(THREE)
    with ports(*((lab[node.name], "weft0") for node in THREE.nodes)) as opened:
        yield Segment(lab, opened)


def frame(text: bytes, *, source: Mac = OTHER, destination: Mac = BROADCAST, kind: bytes = TYPE) -> bytes:
    return destination + source + kind + text


def texts(frames: list[bytes]) -> list[bytes]:
    """What the test's own frames say, in order; the host's are passed over."""
    return [each[14:].rstrip(b"\0") for each in frames if each[12:14] == TYPE]


def vtep_of(lab: Lab, node: str, mac: Mac) -> str | None:
    """Behind which VTEP this node has the MAC."""
    entries = view(lab.daemons[node], "fdb")
    return next((entry["dst"] for entry in entries if entry["mac"] == format_mac(mac)), None)


def test_unknown_unicast_reaches_everybody_once(three: Segment) -> None:
    n1, *others = three.ports
    n1.send(frame(b"unknown", destination=MOVER))
    n1.send(frame(b"end"))
    for other in others:
        assert texts(other.arrivals_until(b"end")) == [b"unknown", b"end"]


def test_a_mac_that_moves_is_followed_after_one_frame(three: Segment) -> None:
    n1, n2, n3 = three.ports
    n2.send(frame(b"i am at n2", source=MOVER))
    for other in (n1, n3):
        other.arrivals_until(b"i am at n2")
    n1.send(frame(b"to n2 alone", destination=MOVER))
    n2.arrivals_until(b"to n2 alone")

    n3.send(frame(b"i am at n3", source=MOVER))
    for other in (n1, n2):
        other.arrivals_until(b"i am at n3")
    n1.send(frame(b"to n3 alone", destination=MOVER))
    n2.send(frame(b"where it was", destination=MOVER))
    n1.send(frame(b"n1 ends"))
    n2.send(frame(b"n2 ends"))
    n3.arrivals_until(b"to n3 alone", b"where it was")
    assert texts(n2.arrivals_until(b"n1 ends")) == [b"n1 ends"]
    assert texts(n1.arrivals_until(b"n2 ends")) == [b"n2 ends"]


def test_a_mac_that_comes_home_is_followed_too(three: Segment) -> None:
    n1, n2, _ = three.ports
    n2.send(frame(b"i am at n2", source=MOVER))
    n1.arrivals_until(b"i am at n2")
    assert vtep_of(three.lab, "n1", MOVER) == "192.0.2.2"
    n1.send(frame(b"i am here now", source=MOVER))
    n2.arrivals_until(b"i am here now")
    assert vtep_of(three.lab, "n1", MOVER) is None
    assert vtep_of(three.lab, "n2", MOVER) == "192.0.2.1"


def test_bpdus_are_carried_and_lldp_is_not(three: Segment) -> None:
    n1, *others = three.ports
    before = drops(three.lab.daemons["n1"])[DropReason.LINK_LOCAL]
    n1.send(frame(b"lldp", destination=LLDP_GROUP))
    n1.send(frame(b"bpdu", destination=BPDU_GROUP))
    n1.send(frame(b"end"))
    for other in others:
        assert texts(other.arrivals_until(b"end")) == [b"bpdu", b"end"]
    assert drops(three.lab.daemons["n1"])[DropReason.LINK_LOCAL] == before + 1


def test_a_tagged_frame_crosses_with_its_tags(three: Segment) -> None:
    n1, n2, _ = three.ports
    tagged = frame(b"\x60\x05\x81\x00\x00\x2a" + TYPE + b"tagged", kind=b"\x88\xa8").ljust(60, b"\0")
    with ports((three.lab["n1"], "eth0")) as (wire,):
        n1.send(tagged)
        assert wire.departures_until(b"tagged")[-1].endswith(tagged)
    # The stack takes the outer tag off what it shows us (packet(7), PACKET_AUXDATA).
    assert n2.arrivals_until(b"tagged")[-1] == tagged[:12] + tagged[16:]


def test_a_frame_from_the_tunnel_never_returns_to_it(three: Segment) -> None:
    n1, n2, n3 = three.ports
    n3.send(frame(b"i am at n3", source=MOVER))
    n1.arrivals_until(b"i am at n3")
    # n2's VTEP sends n1 what is for n3: a confused or a malicious member.
    confused = vxlan(frame(b"pass it on", destination=MOVER).ljust(60, b"\0"), LAB_VNI)
    with open_in(three.lab["n2"], ip_address("192.0.2.2"), socket.SOCK_DGRAM) as sender:
        sender.sendto(confused, ("192.0.2.1", VXLAN_PORT))
    daemon = three.lab.daemons["n1"]
    eventually("n1 drops it", lambda: drops(daemon)[DropReason.SPLIT_HORIZON] == 1)
    n1.send(frame(b"n1 ends"))
    n2.send(frame(b"n2 ends"))
    assert texts(n3.arrivals_until(b"n1 ends", b"n2 ends")).count(b"pass it on") == 0
    assert texts(n1.arrivals_until(b"n2 ends")) == [b"n2 ends"]


# ── Neighbor suppression ────────────────────────────────────────────────────────────────────────────────

ARP_REQUEST = b"\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01"  # EtherType, then RFC 826: Ethernet, IPv4, request
SOLICITED_NODE = b"\x33\x33\xff"  # RFC 4291 section 2.7.1, RFC 2464 section 7


@pytest.mark.parametrize("address", [ip_address("10.9.0.2"), ip_address("fd09::2")], ids=["arp", "nd"])
@pytest.mark.parametrize("suppresses", [True, False], ids=["suppressed", "carried"])
def test_a_known_neighbor_is_asked_for_on_the_wire_only_without_suppression(
    start_lab: StartLab, suppresses: bool, address: Address
) -> None:
    n1, *others = THREE.nodes
    settings = {"network.suppress": suppresses}
    lab = start_lab(replace(THREE, nodes=(replace(n1, settings=settings), *others)))
    assert checks.ping(lab["n1"], address, count=1).complete
    known = {neighbor["ip"] for neighbor in view(lab.daemons["n1"], "neigh")}
    assert (str(address) in known) is suppresses

    with ports((lab["n1"], "eth0"), (lab["n1"], "weft0")) as (wire, weft0):
        type_in(lab["n1"], "ip neigh flush dev weft0")
        assert checks.ping(lab["n1"], address, count=1).complete
        weft0.send(frame(b"end"))
        inner = [datagram[50:] for datagram in wire.departures_until(b"end")]
    questions = [
        each
        for each in inner
        if each[6:12] == weft0.mac and (each[12:22] == ARP_REQUEST or each[:3] == SOLICITED_NODE)
    ]
    assert (not questions) is suppresses
