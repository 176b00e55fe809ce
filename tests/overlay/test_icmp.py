"""The frames a bridge makes itself, read by scapy and judged by their RFCs."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_Redirect,
    ICMPv6NDOptDstLLAddr,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw
from support.frames import (
    IP4_A,
    IP4_B,
    IP6_A,
    IP6_B,
    MAC_A,
    MAC_B,
    arp_request,
    ether,
    neighbor_solicitation,
    tcp4,
    tcp6,
    udp4,
    udp6,
)

from overlay.addr import Mac
from overlay.frame import (
    NeighborSolicitation,
    parse_arp_untrusted,
    parse_ethernet_untrusted,
    parse_ipv6_untrusted,
    parse_neighbor_untrusted,
)
from overlay.icmp import build_arp_reply, build_neighbor_advertisement, build_too_big

MAC_C = Mac(b"\x02\x00\x00\x00\x00\x0c")
DF: Any = IP(src=IP4_A, dst=IP4_B, flags="DF")


def recomputed(packet: Packet, *layers: type[Packet]) -> bytes:
    """The packet with these layers' checksums worked out anew by scapy."""
    copy = packet.copy()
    for layer in layers:
        delattr(copy[layer], "chksum" if "chksum" in copy[layer].fields else "cksum")
    return bytes(copy)


# --- Neighbor replies ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tags", [(), (7,), (100, 7)])
def test_an_arp_reply_speaks_for_the_owner(tags: tuple[int, ...]) -> None:
    asked = arp_request(tags=tags)
    ethernet = parse_ethernet_untrusted(asked)
    frame = build_arp_reply(ethernet, parse_arp_untrusted(asked[ethernet.payload_at :]), MAC_C)
    read = Ether(frame)
    assert (read.src, read.dst) == (MAC_C.hex(":"), MAC_A.hex(":"))
    arp = read[ARP]
    assert (arp.op, arp.hwsrc, arp.psrc, arp.hwdst, arp.pdst) == (
        2,
        MAC_C.hex(":"),
        IP4_B,
        MAC_A.hex(":"),
        IP4_A,
    )
    assert frame[12 : ethernet.payload_at] == asked[12 : ethernet.payload_at]


@pytest.mark.parametrize("tags", [(), (7,), (100, 7)])
@pytest.mark.parametrize("router", [False, True])
def test_a_neighbor_advertisement_speaks_for_the_owner(tags: tuple[int, ...], router: bool) -> None:
    asked = neighbor_solicitation(tags=tags)
    frame = advertise(asked, router=router)
    read = Ether(frame)
    assert (read.src, read.dst) == (MAC_C.hex(":"), MAC_A.hex(":"))
    assert (read[IPv6].src, read[IPv6].dst, read[IPv6].hlim) == (IP6_B, IP6_A, 255)
    told = read[ICMPv6ND_NA]
    assert (told.tgt, told.R, told.S, told.O) == (IP6_B, router, 1, 1)
    assert read[ICMPv6NDOptDstLLAddr].lladdr == MAC_C.hex(":")
    assert recomputed(read, ICMPv6ND_NA) == frame
    assert [layer.vlan for layer in iter_tags(read)] == list(tags)


def test_a_probe_is_answered_in_everybodys_hearing() -> None:
    frame = advertise(neighbor_solicitation(asker="::", with_mac=False))
    read = Ether(frame)
    assert (read.dst, read[IPv6].dst) == ("33:33:00:00:00:01", "ff02::1")
    assert (read[ICMPv6ND_NA].S, read[ICMPv6ND_NA].O) == (0, 1)
    ip = parse_ipv6_untrusted(frame[14:])
    told = parse_neighbor_untrusted(frame[54:], ip.source, ip.destination, ip.hop_limit)
    assert told.target == IPv6Address(IP6_B)


def test_an_asker_who_names_no_mac_is_answered_where_its_frame_came_from() -> None:
    assert advertise(neighbor_solicitation(with_mac=False))[:6] == MAC_A


def advertise(asked: bytes, *, router: bool = False) -> bytes:
    ethernet = parse_ethernet_untrusted(asked)
    packet = asked[ethernet.payload_at :]
    ip = parse_ipv6_untrusted(packet)
    question = parse_neighbor_untrusted(packet[40:], ip.source, ip.destination, ip.hop_limit)
    assert isinstance(question, NeighborSolicitation)
    return build_neighbor_advertisement(ethernet, question, ip.source, MAC_C, router=router)


def iter_tags(frame: Packet) -> list[Packet]:
    return [frame[layer] for layer in frame.layers() if issubclass(layer, Dot1Q)]


# --- Packet too big, IPv4 -----------------------------------------------------------------------------


@pytest.mark.parametrize("tags", [(), (7,), (100, 7)])
def test_fragmentation_needed_goes_back_to_the_sender(tags: tuple[int, ...]) -> None:
    frame = udp4(bytes(1500), ip=DF, tags=tags)
    error = build_too_big(frame, mtu=1400)
    assert error is not None
    read = Ether(error)
    assert (read.src, read.dst) == (MAC_B.hex(":"), MAC_A.hex(":"))
    assert [layer.vlan for layer in iter_tags(read)] == list(tags)
    ip = read[IP]
    assert (ip.src, ip.dst, ip.proto, ip.len, ip.ttl, str(ip.flags)) == (IP4_B, IP4_A, 1, 576, 64, "DF")
    icmp = read[ICMP]
    assert (icmp.type, icmp.code, icmp.nexthopmtu) == (3, 4, 1400)
    network_at = 14 + 4 * len(tags)
    assert error.endswith(frame[network_at : network_at + 548])
    assert recomputed(read, IP, ICMP) == error


@pytest.mark.parametrize(("payload", "expected"), [(100, 28 + 128), (519, 575), (520, 576), (521, 576)])
def test_an_error_quotes_as_much_as_fits_576_octets(payload: int, expected: int) -> None:
    error = build_too_big(udp4(bytes(payload), ip=DF), mtu=100)
    assert error is not None
    assert len(error) - 14 == expected


def test_an_address_of_our_own_speaks_where_there_is_one() -> None:
    v4 = build_too_big(
        udp4(bytes(1500), ip=DF), mtu=1400, source_mac=MAC_C, source_ip=IPv4Address("10.9.0.254")
    )
    v6 = build_too_big(udp6(bytes(1500)), mtu=1400, source_mac=MAC_C, source_ip=IPv6Address("fd00::fe"))
    assert v4 is not None
    assert v6 is not None
    assert (Ether(v4).src, Ether(v4)[IP].src) == (MAC_C.hex(":"), "10.9.0.254")
    assert (Ether(v6).src, Ether(v6)[IPv6].src) == (MAC_C.hex(":"), "fd00::fe")


def test_an_address_of_the_other_version_stays_silent() -> None:
    error = build_too_big(udp4(bytes(1500), ip=DF), mtu=1400, source_ip=IPv6Address("fd00::fe"))
    assert error is not None
    assert Ether(error)[IP].src == IP4_B


def icmp4(kind: int) -> bytes:
    return ether(DF, ICMP(type=kind), Raw(bytes(1500)))


def from4(source: str) -> bytes:
    return udp4(bytes(1500), ip=IP(src=source, dst=IP4_B, flags="DF"))


SILENT4 = {
    "without DF": udp4(bytes(1500), ip=IP(src=IP4_A, dst=IP4_B)),
    "a packet that fits": udp4(bytes(1372), ip=DF),
    "a later fragment": ether(IP(src=IP4_A, dst=IP4_B, flags="DF", frag=9, proto=17), Raw(bytes(1500))),
    "an unreachable": icmp4(3),
    "a quench": icmp4(4),
    "a redirect": icmp4(5),
    "a time exceeded": icmp4(11),
    "a parameter problem": icmp4(12),
    "to a multicast group": udp4(bytes(1500), ip=IP(src=IP4_A, dst="224.0.0.5", flags="DF")),
    "to a group MAC": ether(DF, UDP(sport=1, dport=2), Raw(bytes(1500)), destination=Mac(b"\xff" * 6)),
    "from no address": from4("0.0.0.0"),
    "from multicast": from4("224.0.0.1"),
    "from loopback": from4("127.0.0.1"),
    "from broadcast": from4("255.255.255.255"),
    "a wrong header checksum": udp4(bytes(1500), ip=IP(src=IP4_A, dst=IP4_B, flags="DF", chksum=1)),
    "no packet": ether(DF, UDP(sport=1, dport=2), Raw(bytes(1500)))[:33],
    "no IP": arp_request() + bytes(1500),
    "no frame": bytes(13),
}


@pytest.mark.parametrize("name", SILENT4)
def test_no_ipv4_error_is_made_for(name: str) -> None:
    assert build_too_big(SILENT4[name], mtu=1400) is None


@pytest.mark.parametrize("kind", [0, 8, 13])
def test_other_icmp_is_answered_like_anything_else(kind: int) -> None:
    assert build_too_big(icmp4(kind), mtu=1400) is not None


def test_the_first_fragment_is_answered() -> None:
    first = ether(IP(src=IP4_A, dst=IP4_B, flags="DF+MF", proto=17), Raw(bytes(1500)))
    assert build_too_big(first, mtu=1400) is not None


def test_no_mtu_below_the_minimum_is_told() -> None:
    assert build_too_big(tcp4(bytes(1500), ip=DF), mtu=68) is not None
    assert build_too_big(tcp4(bytes(1500), ip=DF), mtu=67) is None
    assert build_too_big(tcp6(bytes(1500)), mtu=1280) is not None
    assert build_too_big(tcp6(bytes(1500)), mtu=1279) is None


# --- Packet too big, IPv6 -----------------------------------------------------------------------------


@pytest.mark.parametrize("tags", [(), (7,)])
def test_packet_too_big_goes_back_to_the_sender(tags: tuple[int, ...]) -> None:
    frame = udp6(bytes(1500), tags=tags)
    error = build_too_big(frame, mtu=1400)
    assert error is not None
    read = Ether(error)
    assert (read.src, read.dst) == (MAC_B.hex(":"), MAC_A.hex(":"))
    assert (read[IPv6].src, read[IPv6].dst, read[IPv6].plen + 40) == (IP6_B, IP6_A, 1280)
    assert (read[ICMPv6PacketTooBig].code, read[ICMPv6PacketTooBig].mtu) == (0, 1400)
    network_at = 14 + 4 * len(tags)
    assert error.endswith(frame[network_at : network_at + 1232])
    assert recomputed(read, ICMPv6PacketTooBig) == error


def v6(*layers: Any, source: str = IP6_A, destination: str = IP6_B) -> bytes:
    return ether(IPv6(src=source, dst=destination), *layers, Raw(bytes(1500)))


SILENT6 = {
    "a packet that fits": udp6(bytes(1352)),
    "an unreachable": v6(ICMPv6DestUnreach()),
    "a packet too big": v6(ICMPv6PacketTooBig()),
    "a redirect": v6(ICMPv6ND_Redirect()),
    "ICMPv6 in a later fragment": v6(IPv6ExtHdrFragment(nh=58, offset=2)),
    "from no address": v6(UDP(sport=1, dport=2), source="::"),
    "from multicast": v6(UDP(sport=1, dport=2), source="ff02::1"),
    "to multicast, with no address of ours": v6(UDP(sport=1, dport=2), destination="ff02::1"),
}


@pytest.mark.parametrize("name", SILENT6)
def test_no_ipv6_error_is_made_for(name: str) -> None:
    assert build_too_big(SILENT6[name], mtu=1400) is None


def test_a_multicast_packet_may_have_this_one_error() -> None:
    ours = IPv6Address("fd00::fe")
    frame = v6(UDP(sport=1, dport=2), destination="ff02::1")
    assert build_too_big(frame, mtu=1400, source_mac=MAC_C, source_ip=ours) is not None


def test_an_echo_is_answered() -> None:
    assert build_too_big(v6(ICMPv6EchoRequest()), mtu=1400) is not None


def test_a_group_mac_never_speaks() -> None:
    frame = ether(
        IPv6(src=IP6_A, dst=IP6_B),
        UDP(sport=1, dport=2),
        Raw(bytes(1500)),
        destination=Mac(b"\x33\x33" + bytes(4)),
    )
    assert build_too_big(frame, mtu=1400) is None
    assert build_too_big(frame, mtu=1400, source_mac=MAC_C) is not None


@given(st.binary(max_size=100), st.integers(0, 70000))
def test_any_octets_are_answered_or_not(octets: bytes, mtu: int) -> None:
    frame = MAC_B + MAC_A + octets
    error = build_too_big(frame, mtu=mtu)
    assert error is None or error[:12] == MAC_A + MAC_B


@given(st.data())
def test_an_error_is_never_made_about_an_error(data: st.DataObject) -> None:
    frame = data.draw(st.sampled_from([udp4(bytes(1500), ip=DF), udp6(bytes(1500)), tcp4(bytes(99), ip=DF)]))
    error = build_too_big(frame, mtu=data.draw(st.integers(1280, 1400)))
    if error is not None:
        assert build_too_big(error, mtu=100) is None
