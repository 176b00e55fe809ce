"""What every parser of overlay.frame owes: a value or a WireError, whatever the octets."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from support.frames import (
    IP4_A,
    IP4_B,
    IP6_A,
    IP6_B,
    arp_request,
    echo4,
    neighbor_advertisement,
    neighbor_solicitation,
    tcp4,
    tcp6,
    udp4,
    udp6,
)

from overlay import frame as frames
from overlay.errors import TruncatedError, WireError

Parser = Callable[[bytes], object]


def parse_icmpv6(octets: bytes) -> object:
    return frames.parse_icmpv6_untrusted(octets, IPv6Address(IP6_A), IPv6Address(IP6_B))


def parse_neighbor(octets: bytes) -> object:
    return frames.parse_neighbor_untrusted(octets, IPv6Address(IP6_B), IPv6Address(IP6_A), 255)


PARSERS: dict[str, Parser] = {
    "ethernet": frames.parse_ethernet_untrusted,
    "arp": frames.parse_arp_untrusted,
    "ipv4": frames.parse_ipv4_untrusted,
    "ipv4 unverified": lambda octets: frames.parse_ipv4_untrusted(octets, verify=False),
    "ipv6": frames.parse_ipv6_untrusted,
    "icmp": frames.parse_icmp_untrusted,
    "icmp unverified": lambda octets: frames.parse_icmp_untrusted(octets, verify=False),
    "icmpv6": parse_icmpv6,
    "neighbor": parse_neighbor,
    "tcp": frames.parse_tcp_untrusted,
    "udp": frames.parse_udp_untrusted,
}

WITH_EXTENSIONS = IPv6(src=IP6_A, dst=IP6_B) / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt()
FRAGMENT = IPv6(src=IP6_A, dst=IP6_B) / IPv6ExtHdrFragment(offset=3, m=1, id=5)
GOLDEN: dict[str, tuple[str, bytes]] = {
    "ethernet untagged": ("ethernet", udp4()[:14]),
    "ethernet tagged twice": ("ethernet", udp4(tags=(7, 8))[:22]),
    "arp": ("arp", arp_request()[14:]),
    "ipv4": ("ipv4", udp4(b"payload")[14:]),
    "ipv4 options": ("ipv4", udp4(ip=IP(src=IP4_A, dst=IP4_B, options=[IPOption_NOP()] * 4))[14:]),
    "ipv6": ("ipv6", udp6(b"payload")[14:]),
    "ipv6 extensions": ("ipv6", udp6(b"payload", ip=WITH_EXTENSIONS)[14:]),
    "ipv6 fragment": ("ipv6", udp6(b"payload", ip=FRAGMENT)[14:]),
    "icmp": ("icmp", echo4()[34:]),
    "neighbor": ("neighbor", neighbor_advertisement()[54:]),
    "tcp": ("tcp", tcp4(flags="S", options=[("MSS", 1300), ("NOP", None), ("WScale", 7)])[34:]),
    "tcp over ipv6": ("tcp", tcp6(b"", flags="S", options=[("MSS", 1300)])[54:]),
    "udp": ("udp", udp4(b"payload")[34:]),
}


@pytest.mark.parametrize("name", PARSERS)
@given(octets=st.binary(max_size=120))
def test_any_octets_are_a_value_or_a_wire_error(name: str, octets: bytes) -> None:
    with suppress(WireError):
        assert PARSERS[name](octets) == PARSERS[name](octets)


@pytest.mark.parametrize("name", GOLDEN)
@given(data=st.data())
def test_any_spoiled_golden_header_is_a_value_or_a_wire_error(name: str, data: st.DataObject) -> None:
    parser, golden = GOLDEN[name]
    spoiled = bytearray(golden)
    for _ in range(data.draw(st.integers(1, 3))):
        spoiled[data.draw(st.integers(0, len(golden) - 1))] = data.draw(st.integers(0, 255))
    with suppress(WireError):
        PARSERS[parser](bytes(spoiled))


@pytest.mark.parametrize("name", GOLDEN)
def test_every_truncation_of_a_golden_header_is_truncated(name: str) -> None:
    parser, golden = GOLDEN[name]
    PARSERS[parser](golden)
    unchecked = {"icmp": "icmp unverified"}.get(parser, parser)
    expected: Any = TruncatedError if parser != "neighbor" else WireError  # there the checksum speaks first
    shortest = {"icmp": 8}.get(parser, len(golden))  # an ICMP message has no length of its own
    for length in range(shortest):
        with pytest.raises(expected):
            PARSERS[unchecked](golden[:length])


@pytest.mark.parametrize("name", GOLDEN)
def test_a_memoryview_reads_like_bytes(name: str) -> None:
    parser, golden = GOLDEN[name]
    assert PARSERS[parser](memoryview(golden)) == PARSERS[parser](golden)  # type: ignore[arg-type]


def test_truncation_names_what_was_expected_and_found() -> None:
    with pytest.raises(TruncatedError, match="Ethernet header: expected at least 14 octets, found 13"):
        frames.parse_ethernet_untrusted(bytes(13))


def test_a_solicitation_is_a_value_too() -> None:
    message = neighbor_solicitation()
    ip = frames.parse_ipv6_untrusted(message[14:])
    value = frames.parse_neighbor_untrusted(message[54:], ip.source, ip.destination, ip.hop_limit)
    assert isinstance(value, frames.NeighborSolicitation)
