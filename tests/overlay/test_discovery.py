"""ARP and ND are read as one: who asks for whom, who tells what, and what answer is given in their name."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.layers.inet6 import ICMPv6MLReport, ICMPv6ND_RS, IPv6, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw
from support.frames import (
    IP4_A,
    IP4_B,
    IP6_A,
    IP6_B,
    MAC_A,
    MAC_B,
    arp_request,
    ether,
    neighbor_advertisement,
    neighbor_solicitation,
    udp4,
    udp6,
)

from overlay.addr import BROADCAST
from overlay.discovery import Discovery, answer, may_be_discovery_untrusted, read_discovery_untrusted
from overlay.errors import WireError
from overlay.fdb import Origin
from overlay.frame import parse_ethernet_untrusted
from overlay.neigh import NeighborEntry


def read(frame: bytes) -> Discovery | None:
    return read_discovery_untrusted(parse_ethernet_untrusted(frame), frame)


def told(frame: bytes) -> Discovery:
    discovery = read(frame)
    assert discovery is not None
    return discovery


def arp(**fields: Any) -> bytes:
    message = ARP(**{"op": "who-has", "hwsrc": MAC_A.hex(":"), "psrc": IP4_A, "pdst": IP4_B, **fields})
    return ether(message, destination=BROADCAST)


def owner(address: str, *, is_router: bool = False) -> NeighborEntry:
    return NeighborEntry(ip_address(address), MAC_B, Origin.LEARNED, 0.0, is_router)


@pytest.mark.parametrize(
    ("question", "asked_for"), [(arp_request, IP4_B), (neighbor_solicitation, IP6_B)], ids=["arp", "nd"]
)
def test_a_question_is_for_its_target(question: Callable[..., bytes], asked_for: str) -> None:
    discovery = told(question())
    assert discovery.asks_for == ip_address(asked_for)
    assert not discovery.is_probe


@pytest.mark.parametrize("tags", [(7,), (5, 7)])
@pytest.mark.parametrize("question", [arp_request, neighbor_solicitation])
def test_what_a_vlan_asks_is_its_own_affair(question: Callable[..., bytes], tags: tuple[int, ...]) -> None:
    """Another VLAN may have the same address at another MAC."""
    assert read(question(tags=tags)) is None
    assert not may_be_discovery_untrusted(question(tags=tags))


@pytest.mark.parametrize(
    "probe",
    [
        arp_request(asker="0.0.0.0"),  # RFC 5227 section 2.1.1
        neighbor_solicitation(asker="::", with_mac=False),  # RFC 4862 section 5.4.2
    ],
    ids=["arp", "nd"],
)
def test_a_probe_asks_and_tells_nothing(probe: bytes) -> None:
    discovery = told(probe)
    assert discovery.is_probe
    assert discovery.asks_for is not None
    assert discovery.tells is None


@pytest.mark.parametrize(
    ("message", "address"),
    [
        (arp(), IP4_A),
        (arp(op="is-at"), IP4_A),
        (arp(pdst=IP4_A), IP4_A),  # RFC 5227 section 2.3: an announcement
    ],
    ids=["request", "reply", "announcement"],
)
def test_an_arp_message_tells_its_senders_binding(message: bytes, address: str) -> None:
    assert told(message).tells == (ip_address(address), MAC_A)


@pytest.mark.parametrize("message", [arp(op="is-at"), arp(pdst=IP4_A), neighbor_advertisement()])
def test_what_only_tells_asks_nobody(message: bytes) -> None:
    assert told(message).asks_for is None


@pytest.mark.parametrize("is_router", [False, True])
def test_an_advertisement_tells_its_target_and_whether_it_is_a_router(is_router: bool) -> None:
    discovery = told(neighbor_advertisement(router=is_router))
    assert discovery.tells == (ip_address(IP6_B), MAC_B)
    assert discovery.is_router == is_router


def test_a_solicitation_tells_nothing() -> None:
    assert told(neighbor_solicitation()).tells is None


@pytest.mark.parametrize(
    "fields",
    [
        {"psrc": "0.0.0.0"},
        {"psrc": "224.0.0.1"},
        {"hwsrc": "00:00:00:00:00:00"},
        {"hwsrc": "ff:ff:ff:ff:ff:ff"},
        {"hwsrc": "01:00:5e:00:00:01"},
    ],
    ids=lambda fields: next(iter(fields.values())),
)
def test_what_can_be_no_hosts_binding_is_not_told(fields: dict[str, str]) -> None:
    assert told(arp(**fields)).tells is None


ROUTER_SOLICITATION = ether(IPv6(src=IP6_A, dst="ff02::2", hlim=255), ICMPv6ND_RS())
MLD_REPORT = ether(IPv6(src=IP6_A, dst="ff02::16", hlim=1), IPv6ExtHdrHopByHop(), ICMPv6MLReport())


@pytest.mark.parametrize(
    "frame",
    [udp4(b"x"), udp6(b"x"), ROUTER_SOLICITATION, MLD_REPORT, ether(IPv6(src=IP6_A, dst=IP6_B, nh=58))],
    ids=["udp4", "udp6", "router solicitation", "mld", "icmpv6 of no octets"],
)
def test_what_is_neither_arp_nor_nd_is_no_discovery(frame: bytes) -> None:
    assert read(frame) is None


def test_a_fragmented_nd_message_is_none() -> None:
    # RFC 6980 section 5.
    whole = neighbor_solicitation()
    fragment = ether(
        IPv6(src=IP6_A, dst="ff02::1:ff00:2", hlim=255), IPv6ExtHdrFragment(nh=58, m=1), Raw(whole[54:])
    )
    assert read(whole) is not None
    assert read(fragment) is None


def test_a_solicitation_from_beyond_a_router_is_refused() -> None:
    frame = bytearray(neighbor_solicitation())
    frame[14 + 7] = 254  # RFC 4861 section 7.1.1: a hop limit of 255 or nothing
    with pytest.raises(WireError):
        read(bytes(frame))


@pytest.mark.parametrize("frame", [arp_request(), neighbor_solicitation(), neighbor_advertisement()])
def test_every_truncation_is_nothing_or_refused(frame: bytes) -> None:
    for end in range(14, len(frame)):
        try:
            discovery = read(frame[:end])
        except WireError:
            continue
        assert discovery is None, f"{end} of {len(frame)} octets were read as {discovery}"


MACS = b"\x02" * 12


FRAMES = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda kind, rest: MACS + kind + rest, st.sampled_from([b"\x08\x06", b"\x86\xdd"]), st.binary()
    ),
    st.builds(
        lambda at, octet, frame: frame[:at] + bytes([octet]) + frame[at + 1 :],
        st.integers(12, 90),
        st.integers(0, 255),
        st.sampled_from([arp_request(), neighbor_solicitation(), neighbor_advertisement()]),
    ),
)


@given(FRAMES)
@example(arp_request(asker="0.0.0.0"))
def test_any_octets_are_discovery_or_none_or_a_wire_error(frame: bytes) -> None:
    try:
        discovery = read(frame)
    except WireError:
        return
    if discovery is not None and discovery.asks_for is not None:
        answer(
            discovery,
            parse_ethernet_untrusted(frame),
            NeighborEntry(discovery.asks_for, MAC_B, Origin.LEARNED, 0),
        )


@pytest.mark.parametrize("frame", [arp_request(), neighbor_solicitation()], ids=["arp", "nd"])
def test_a_question_is_recognised_before_it_is_read(frame: bytes) -> None:
    assert may_be_discovery_untrusted(frame)
    assert may_be_discovery_untrusted(memoryview(bytearray(frame)))


@pytest.mark.parametrize("frame", [udp4(b"x"), udp6(b"x"), ROUTER_SOLICITATION, MLD_REPORT])
def test_what_is_no_discovery_is_not_taken_for_it(frame: bytes) -> None:
    assert not may_be_discovery_untrusted(frame)


@given(FRAMES)
def test_what_reads_as_discovery_is_recognised_by_any_octets(frame: bytes) -> None:
    try:
        discovery = read(frame)
    except WireError:
        discovery = None
    is_recognised = may_be_discovery_untrusted(frame)
    at = parse_ethernet_untrusted(frame).payload_at if discovery is not None else 0
    # ND behind extension headers is left out on purpose.
    assert is_recognised or discovery is None or frame[at + 6] != 58


def test_the_answer_to_arp_is_the_owners_own() -> None:
    reply = answered(arp_request(), IP4_B)
    read_back = Ether(reply)
    assert (read_back.dst, read_back.src) == (MAC_A.hex(":"), MAC_B.hex(":"))
    message = read_back[ARP]
    assert (message.op, message.hwsrc, message.psrc, message.hwdst, message.pdst) == (
        2,
        MAC_B.hex(":"),
        IP4_B,
        MAC_A.hex(":"),
        IP4_A,
    )


@pytest.mark.parametrize("is_router", [False, True])
def test_the_answer_to_nd_is_the_owners_own(is_router: bool) -> None:
    reply = answered(neighbor_solicitation(), IP6_B, is_router=is_router)
    advertisement = told(reply)
    assert advertisement.tells == (ip_address(IP6_B), MAC_B)
    assert advertisement.is_router == is_router
    assert Ether(reply)[IPv6].dst == IP6_A


def test_the_answer_to_a_probe_goes_to_all_nodes() -> None:
    # RFC 4861 section 7.2.4: whoever probes has no address yet to be answered at.
    reply = Ether(answered(neighbor_solicitation(asker="::", with_mac=False), IP6_B))
    assert IPv6Address(reply[IPv6].dst) == IPv6Address("ff02::1")
    assert reply.dst == "33:33:00:00:00:01"


def test_an_advertisement_cannot_be_answered() -> None:
    frame = neighbor_advertisement()
    with pytest.raises(ValueError, match="expected a question"):
        answer(told(frame), parse_ethernet_untrusted(frame), owner(IP6_B))


def answered(question: bytes, address: str, *, is_router: bool = False) -> bytes:
    return answer(told(question), parse_ethernet_untrusted(question), owner(address, is_router=is_router))
