"""Neighbor discovery: each rule of RFC 4861 sections 7.1.1 and 7.1.2 broken once."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS
from support.frames import IP6_A, IP6_B, MAC_A, MAC_B, neighbor_advertisement, neighbor_solicitation

from overlay.addr import Mac
from overlay.errors import MalformedError, TruncatedError, UnsupportedError
from overlay.frame import (
    Icmp,
    NeighborAdvertisement,
    NeighborSolicitation,
    build_icmpv6,
    parse_ipv6_untrusted,
    parse_neighbor_untrusted,
)

A, B, ANY = IPv6Address(IP6_A), IPv6Address(IP6_B), IPv6Address("::")
GROUP_OF_B = IPv6Address("ff02::1:ff00:2")
SOURCE_OPTION = b"\x01\x01" + MAC_A
TARGET_OPTION = b"\x02\x01" + MAC_B


def solicit(
    body: bytes,
    *,
    kind: int = 135,
    code: int = 0,
    rest: int = 0,
    source: IPv6Address = A,
    hop_limit: int = 255,
) -> object:
    """Parses a hand-made message whose checksum is right, to the target's group."""
    message = build_icmpv6(Icmp(kind, code, rest), body, source=source, destination=GROUP_OF_B)
    return parse_neighbor_untrusted(message, source, GROUP_OF_B, hop_limit)


def read(frame: bytes) -> object:
    ip = parse_ipv6_untrusted(frame[14:])
    return parse_neighbor_untrusted(frame[54:], ip.source, ip.destination, ip.hop_limit)


def test_scapys_solicitation_is_read() -> None:
    assert read(neighbor_solicitation()) == NeighborSolicitation(B, MAC_A)


def test_scapys_probe_is_read() -> None:
    assert read(neighbor_solicitation(asker="::", with_mac=False)) == NeighborSolicitation(B, None)


@pytest.mark.parametrize("router", [False, True])
@pytest.mark.parametrize("solicited", [False, True])
@pytest.mark.parametrize("override", [False, True])
def test_scapys_advertisement_is_read(router: bool, solicited: bool, override: bool) -> None:
    frame = neighbor_advertisement(router=router, solicited=solicited, override=override)
    assert read(frame) == NeighborAdvertisement(B, MAC_B, router, solicited, override)


unicast6 = st.ip_addresses(v=6, network="2000::/3")
macs = st.none() | st.binary(min_size=6, max_size=6).map(Mac)


@given(unicast6, unicast6, unicast6, macs)
def test_a_solicitation_round_trips(
    target: IPv6Address, source: IPv6Address, destination: IPv6Address, mac: Mac | None
) -> None:
    solicitation = NeighborSolicitation(target, mac)
    message = solicitation.build(source=source, destination=destination)
    assert parse_neighbor_untrusted(message, source, destination, 255) == solicitation
    assert ICMPv6ND_NS(message).tgt == str(target)


@given(unicast6, unicast6, macs, st.booleans(), st.booleans(), st.booleans())
def test_an_advertisement_round_trips(
    target: IPv6Address, asker: IPv6Address, mac: Mac | None, router: bool, solicited: bool, override: bool
) -> None:
    told = NeighborAdvertisement(target, mac, router, solicited, override)
    message = told.build(source=target, destination=asker)
    assert parse_neighbor_untrusted(message, target, asker, 255) == told
    dissected = ICMPv6ND_NA(message)
    flags = (dissected.R, dissected.S, dissected.O)
    assert flags == (router, solicited, override)


def test_reserved_bits_and_unknown_options_are_ignored() -> None:
    body = B.packed + b"\x0e\x02" + bytes(14) + SOURCE_OPTION
    assert solicit(body, rest=0xFFFFFFFF) == NeighborSolicitation(B, MAC_A)


def test_the_other_messages_address_option_is_not_taken() -> None:
    assert solicit(B.packed + TARGET_OPTION) == NeighborSolicitation(B, None)


def test_the_first_of_two_addresses_counts() -> None:
    assert solicit(B.packed + SOURCE_OPTION + b"\x01\x01" + MAC_B) == NeighborSolicitation(B, MAC_A)


@pytest.mark.parametrize("hop_limit", [0, 1, 254])
def test_a_message_that_a_router_passed_on_is_malformed(hop_limit: int) -> None:
    with pytest.raises(MalformedError, match=f"expected 255, found {hop_limit}"):
        solicit(B.packed, hop_limit=hop_limit)


def test_a_wrong_checksum_is_malformed() -> None:
    message = NeighborSolicitation(B, MAC_A).build(source=A, destination=GROUP_OF_B)
    with pytest.raises(MalformedError, match="checksum"):
        parse_neighbor_untrusted(message, B, GROUP_OF_B, 255)


def test_a_code_is_malformed() -> None:
    with pytest.raises(MalformedError, match="expected 0, found 1"):
        solicit(B.packed, code=1)


@pytest.mark.parametrize("length", range(16))
def test_a_message_without_its_whole_target_is_truncated(length: int) -> None:
    with pytest.raises(TruncatedError, match="expected at least 24 octets"):
        solicit(B.packed[:length])


def test_a_multicast_target_is_malformed() -> None:
    with pytest.raises(MalformedError, match="expected unicast"):
        solicit(GROUP_OF_B.packed)


def test_an_option_of_length_zero_is_malformed() -> None:
    with pytest.raises(MalformedError, match="expected a length above 0"):
        solicit(B.packed + b"\x0e\x00" + bytes(6))


@pytest.mark.parametrize("octets", [b"\x01", b"\x01\x01" + bytes(5), b"\x0e\x02" + bytes(6)])
def test_an_option_that_does_not_fit_is_truncated(octets: bytes) -> None:
    with pytest.raises(TruncatedError, match="option"):
        solicit(B.packed + octets)


def test_an_address_longer_than_ethernets_is_malformed() -> None:
    with pytest.raises(MalformedError, match="expected a length of 1, found 2"):
        solicit(B.packed + b"\x01\x02" + bytes(14))


def test_a_probe_that_brings_a_mac_is_malformed() -> None:
    with pytest.raises(MalformedError, match="no source link-layer address"):
        solicit(B.packed + SOURCE_OPTION, source=ANY)


def test_a_probe_to_anything_but_a_solicited_node_group_is_malformed() -> None:
    message = NeighborSolicitation(B, None).build(source=ANY, destination=B)
    with pytest.raises(MalformedError, match="solicited-node group"):
        parse_neighbor_untrusted(message, ANY, B, 255)


def test_a_solicited_advertisement_to_a_group_is_malformed() -> None:
    with pytest.raises(MalformedError, match="unicast destination"):
        solicit(B.packed, kind=136, rest=0x40000000)


def test_other_messages_are_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="found 134"):
        solicit(B.packed, kind=134)
