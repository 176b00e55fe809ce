"""IPv4, IPv6 and ICMP, against scapy's."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.ipsec import AH
from scapy.packet import Raw
from scapy.utils import checksum as scapy_checksum
from support.frames import IP4_A, IP4_B, IP6_A, IP6_B

from overlay.errors import MalformedError, TruncatedError, UnsupportedError
from overlay.frame import (
    Icmp,
    Ipv4,
    Ipv6,
    build_icmp,
    build_icmpv6,
    parse_icmp_untrusted,
    parse_icmpv6_untrusted,
    parse_ipv4_untrusted,
    parse_ipv6_untrusted,
)

V6: Any = IPv6(src=IP6_A, dst=IP6_B)
UPPER: Any = UDP(sport=1000, dport=2000) / Raw(b"payload")
UPPER_LENGTH = 8 + len(b"payload")


ipv4s = st.builds(
    Ipv4,
    source=st.ip_addresses(v=4),
    destination=st.ip_addresses(v=4),
    protocol=st.integers(0, 255),
    ttl=st.integers(0, 255),
    tos=st.integers(0, 255),
    identification=st.integers(0, 0xFFFF),
    dont_fragment=st.booleans(),
    more_fragments=st.booleans(),
    fragment_offset=st.integers(0, 0x1FFF).map(lambda eights: eights * 8),
    header_length=st.just(20),
    total_length=st.integers(20, 2000),
)


@given(ipv4s)
def test_ipv4_round_trips_and_scapy_agrees(ip: Ipv4) -> None:
    packet = ip.build() + bytes(ip.total_length - 20)
    assert parse_ipv4_untrusted(packet) == ip
    read = IP(packet)
    assert (read.src, read.dst, read.proto, read.ttl, read.tos, read.id, read.len, read.frag * 8) == (
        str(ip.source),
        str(ip.destination),
        ip.protocol,
        ip.ttl,
        ip.tos,
        ip.identification,
        ip.total_length,
        ip.fragment_offset,
    )
    assert ("DF" in str(read.flags), "MF" in str(read.flags)) == (ip.dont_fragment, ip.more_fragments)
    filled = read.chksum
    del read.chksum
    assert IP(bytes(read)).chksum == filled


@given(st.binary(max_size=60), st.integers(0, 10))
def test_scapys_ipv4_is_read_with_its_options(payload: bytes, words: int) -> None:
    packet = bytes(IP(src=IP4_A, dst=IP4_B, options=[IPOption_NOP()] * 4 * words) / Raw(payload))
    ip = parse_ipv4_untrusted(packet)
    assert (ip.header_length, ip.total_length) == (20 + 4 * words, len(packet))
    assert (ip.source, ip.destination) == (IPv4Address(IP4_A), IPv4Address(IP4_B))


def test_a_header_with_options_is_not_built_without_them() -> None:
    ip = parse_ipv4_untrusted(bytes(IP(src=IP4_A, dst=IP4_B, options=[IPOption_NOP()] * 4)))
    with pytest.raises(ValueError, match="expected an IPv4 header of 20 octets, found 24"):
        ip.build()


@pytest.mark.parametrize(
    ("at", "value", "match"),
    [
        (0, 0x65, "expected version 4"),
        (0, 0x44, "at least 5 words"),
        (3, 19, "expected at least 20 octets, found 19"),
        (8, 1, "header checksum"),
    ],
)
def test_an_ipv4_header_that_contradicts_itself_is_malformed(at: int, value: int, match: str) -> None:
    packet = bytearray(bytes(IP(src=IP4_A, dst=IP4_B)))
    packet[at] = value
    with pytest.raises(MalformedError, match=match):
        parse_ipv4_untrusted(packet)


def test_a_wrong_header_checksum_may_be_overlooked_on_request() -> None:
    packet = bytearray(bytes(IP(src=IP4_A, dst=IP4_B)))
    packet[8] ^= 1
    assert parse_ipv4_untrusted(packet, verify=False).ttl == 65


def test_padding_is_no_part_of_either_packet() -> None:
    v4 = bytes(IP(src=IP4_A, dst=IP4_B) / UPPER)
    v6 = bytes(V6 / UPPER)
    assert parse_ipv4_untrusted(v4 + bytes(9)).total_length == len(v4)
    assert parse_ipv6_untrusted(v6 + bytes(9)).total_length == len(v6)


@given(
    st.builds(
        Ipv6,
        source=st.ip_addresses(v=6),
        destination=st.ip_addresses(v=6),
        traffic_class=st.integers(0, 255),
        flow_label=st.integers(0, 0xFFFFF),
        hop_limit=st.integers(0, 255),
        payload_length=st.integers(0, 2000),
        upper_protocol=st.sampled_from([6, 17, 58, 59, 50, 132]),
    )
)
def test_ipv6_round_trips_and_scapy_agrees(ip: Ipv6) -> None:
    packet = ip.build() + bytes(ip.payload_length)
    assert parse_ipv6_untrusted(packet) == ip
    read = IPv6(packet)
    assert (
        IPv6Address(read.src),
        IPv6Address(read.dst),
        read.nh,
        read.hlim,
        read.tc,
        read.fl,
        read.plen,
    ) == (
        ip.source,
        ip.destination,
        ip.upper_protocol,
        ip.hop_limit,
        ip.traffic_class,
        ip.flow_label,
        ip.payload_length,
    )


@pytest.mark.parametrize(
    "extensions",
    [
        IPv6ExtHdrHopByHop(),
        IPv6ExtHdrDestOpt(),
        IPv6ExtHdrRouting(addresses=["fd00::9"]),
        IPv6ExtHdrHopByHop(nh=51) / AH(nh=17, spi=1, seq=1, payloadlen=4, icv=bytes(12)),
        IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrRouting(addresses=["fd00::9"]),
        IPv6ExtHdrHopByHop() / IPv6ExtHdrFragment(offset=0, m=1),
    ],
)
def test_the_upper_layer_is_found_behind_extension_headers(extensions: Any) -> None:
    packet = bytes(V6 / extensions / UPPER)
    ip = parse_ipv6_untrusted(packet)
    assert ip.upper_protocol == 17
    assert ip.upper_at == len(packet) - UPPER_LENGTH


@pytest.mark.parametrize(("offset", "more"), [(0, True), (5, True), (5, False), (0x1FFF, False)])
def test_a_fragment_is_known_in_both_versions(offset: int, more: bool) -> None:
    v6 = parse_ipv6_untrusted(bytes(V6 / IPv6ExtHdrFragment(offset=offset, m=more) / Raw(bytes(16))))
    v4 = parse_ipv4_untrusted(bytes(IP(src=IP4_A, dst=IP4_B, frag=offset, flags=int(more)) / Raw(bytes(16))))
    for ip in (v4, v6):
        assert ip.is_fragment
        assert (ip.fragment_offset, ip.more_fragments) == (offset * 8, more)


def test_behind_a_later_fragments_header_nothing_is_read() -> None:
    # The middle of a packet whose first octets would read as an endless destination option.
    fragment = IPv6ExtHdrFragment(nh=60, offset=5, m=0)
    ip = parse_ipv6_untrusted(bytes(V6 / fragment / Raw(b"\x3c\xff" + bytes(14))))
    assert (ip.upper_protocol, ip.upper_at) == (60, 48)


def test_an_atomic_fragment_is_no_fragment() -> None:
    ip = parse_ipv6_untrusted(bytes(V6 / IPv6ExtHdrFragment(offset=0, m=0) / UPPER))
    assert not ip.is_fragment
    assert ip.upper_protocol == 17


def test_eight_extension_headers_are_walked_and_nine_are_malformed() -> None:
    def packet(count: int) -> bytes:
        chain = b"".join(bytes([60 if i < count - 1 else 59, 0]) + bytes(6) for i in range(count))
        return bytes(IPv6(src=IP6_A, dst=IP6_B, nh=60, plen=len(chain))) + chain

    assert parse_ipv6_untrusted(packet(8)).upper_at == 40 + 64
    with pytest.raises(MalformedError, match="expected at most 8, found more"):
        parse_ipv6_untrusted(packet(9))


def test_an_extension_header_must_end_inside_the_payload() -> None:
    packet = bytearray(bytes(V6 / IPv6ExtHdrDestOpt() / UPPER))
    packet[41] = 9  # eighty octets, of which the frame has some: the padding behind it is not the packet's
    with pytest.raises(TruncatedError, match="expected at least 120 octets, found 63"):
        parse_ipv6_untrusted(bytes(packet) + bytes(200))


def test_a_jumbogram_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="jumbo"):
        parse_ipv6_untrusted(bytes(IPv6(src=IP6_A, dst=IP6_B, nh=0, plen=0)) + bytes(8))


def test_another_version_is_malformed() -> None:
    with pytest.raises(MalformedError, match="expected version 6, found 4"):
        parse_ipv6_untrusted(b"\x45" + bytes(39))


def test_extension_headers_are_not_built() -> None:
    ip = parse_ipv6_untrusted(bytes(V6 / IPv6ExtHdrDestOpt() / UPPER))
    with pytest.raises(ValueError, match="found 8 octets"):
        ip.build()


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 2**32 - 1), st.binary(max_size=60))
def test_icmp_round_trips_and_scapy_accepts_its_checksum(
    kind: int, code: int, rest: int, body: bytes
) -> None:
    message = build_icmp(kind, code, rest, body)
    assert parse_icmp_untrusted(message) == Icmp(kind, code, rest)
    assert scapy_checksum(message) == 0


@given(st.ip_addresses(v=6), st.ip_addresses(v=6), st.binary(max_size=60))
def test_icmpv6_round_trips_and_scapy_agrees(
    source: IPv6Address, destination: IPv6Address, body: bytes
) -> None:
    message = build_icmpv6(Icmp(128, 0, 7 << 16 | 9), body, source=source, destination=destination)
    assert parse_icmpv6_untrusted(message, source, destination) == Icmp(128, 0, 7 << 16 | 9)
    echo = IPv6(src=str(source), dst=str(destination)) / ICMPv6EchoRequest(id=7, seq=9, data=body)
    assert bytes(echo)[40:] == message


def test_a_wrong_icmp_checksum_is_malformed_in_both_versions() -> None:
    message = bytearray(build_icmp(8, 0, 0, b"weft"))
    message[-1] ^= 1
    with pytest.raises(MalformedError, match="ICMP checksum"):
        parse_icmp_untrusted(message)
    assert parse_icmp_untrusted(message, verify=False).kind == 8
    with pytest.raises(MalformedError, match="ICMPv6 checksum"):
        parse_icmpv6_untrusted(message, IPv6Address(IP6_A), IPv6Address(IP6_B))
