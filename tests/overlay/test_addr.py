"""Identifiers are checked once, where they come in, and then are what they seem."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from overlay.addr import (
    BPDU_GROUP,
    BROADCAST,
    ZERO_MAC,
    Vtep,
    format_mac,
    is_group,
    parse_ip,
    parse_mac,
    parse_vtep,
    unmap,
    vni,
)

MACS = st.binary(min_size=6, max_size=6)
ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(unmap)


@given(MACS)
def test_a_mac_is_read_as_it_is_written(octets: bytes) -> None:
    assert parse_mac(format_mac(octets)) == octets
    assert parse_mac(format_mac(octets).upper().replace(":", "-")) == octets


def test_leading_zeros_of_a_mac_may_be_left_out() -> None:
    assert parse_mac("2:0:5e:10:0:1") == parse_mac("02:00:5e:10:00:01")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "02:00:5e:10:00",
        "02:00:5e:10:00:01:02",
        "02:00:5e:10:00:",
        "02:00:5e:10:00:001",
        "02:00:5e:10:00:0g",
        "+2:00:5e:10:00:01",
        " 2:00:5e:10:00:01",
        "02:00:5e:10:00:٣",
        "0200.5e10.0001",
    ],
)
def test_what_is_no_mac_is_refused_with_what_was_found(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected a MAC address") as refused:
        parse_mac(text)
    assert repr(text) in str(refused.value)


@given(MACS)
def test_a_group_has_its_first_bit_set(octets: bytes) -> None:
    # The I/G bit is the first on the wire and the least of its octet (IEEE 802-2014 section 8.2).
    assert is_group(octets) == (f"{octets[0]:08b}"[-1] == "1")


def test_broadcast_and_bpdus_are_groups_and_zero_is_none() -> None:
    assert is_group(BROADCAST)
    assert is_group(BPDU_GROUP)
    assert not is_group(ZERO_MAC)


@pytest.mark.parametrize("value", [0, 1, 0xFFFFFF])
def test_a_vni_has_24_bits(value: int) -> None:
    assert vni(value) == value


@pytest.mark.parametrize("value", [-1, 0x1000000])
def test_a_vni_of_other_bits_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match=f"found {value}"):
        vni(value)


@given(st.ip_addresses(v=4))
def test_a_v4_mapped_address_is_the_ipv4_address(address: IPv4Address) -> None:
    mapped = IPv6Address(b"\0" * 10 + b"\xff\xff" + address.packed)
    assert unmap(mapped) == address
    assert parse_ip(f"::ffff:{address}") == address


def test_a_scope_is_part_of_an_address() -> None:
    assert parse_ip("fe80::1%eth0") != parse_ip("fe80::1%eth1")
    assert str(parse_ip("fe80::1%eth0")) == "fe80::1%eth0"


@given(ADDRESSES, st.integers(1, 65535))
@example(ip_address("fe80::1%eth0"), 4789)
def test_a_vtep_is_read_as_it_is_written(address: IPv4Address | IPv6Address, port: int) -> None:
    assert parse_vtep(str(Vtep(address, port)), default_port=1) == Vtep(address, port)
    assert parse_vtep(str(address), default_port=port) == Vtep(address, port)


@pytest.mark.parametrize(
    "text",
    ["", "n2", "192.0.2.2:", "192.0.2.2:0", "192.0.2.2:65536", "192.0.2.2:-1", "[::1]:x", "1.2.3:4789"],
)
def test_what_is_no_vtep_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected a port|does not appear to be"):
        parse_vtep(text, default_port=4789)
