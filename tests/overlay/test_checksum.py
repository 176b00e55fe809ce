"""The Internet checksum against a naive sum and against scapy."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.utils import checksum as scapy_checksum
from support.frames import naive_sum

from overlay.addr import IpAddress
from overlay.checksum import (
    checksum,
    fold,
    ones_complement_sum,
    pseudo_header_sum,
    transport_checksum,
    update,
)

words = st.integers(0, 0xFFFF)
pairs = st.tuples(st.ip_addresses(v=4), st.ip_addresses(v=4)) | st.tuples(
    st.ip_addresses(v=6), st.ip_addresses(v=6)
)


@given(st.binary(max_size=300))
def test_the_sum_is_that_of_a_loop_over_words(octets: bytes) -> None:
    assert ones_complement_sum(octets) == naive_sum(octets)
    assert ones_complement_sum(memoryview(octets)) == naive_sum(octets)


@given(st.binary(max_size=300))
def test_scapy_agrees_on_the_checksum(octets: bytes) -> None:
    assert checksum(octets) == scapy_checksum(octets)


def test_the_example_of_rfc_1071_section_3() -> None:
    assert ones_complement_sum(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2


@pytest.mark.parametrize(
    ("octets", "expected"),
    [(b"", 0), (bytes(7), 0), (b"\xff\xff", 0xFFFF), (b"\xff\xfe\x00\x01", 0xFFFF), (b"\xff" * 64, 0xFFFF)],
)
def test_only_zeros_sum_to_zero(octets: bytes, expected: int) -> None:
    assert ones_complement_sum(octets) == expected


@given(st.integers(0, 2**80))
def test_fold_adds_the_carries_back(total: int) -> None:
    expected = total
    while expected >> 16:
        expected = (expected & 0xFFFF) + (expected >> 16)
    assert fold(total) == expected


@given(pairs, st.integers(1, 255), st.integers(0, 65535))
def test_the_pseudo_header_is_summed_as_rfc_8200_draws_it(
    addresses: tuple[IpAddress, IpAddress], protocol: int, length: int
) -> None:
    source, destination = addresses
    drawn = source.packed + destination.packed + length.to_bytes(4, "big") + protocol.to_bytes(4, "big")
    assert pseudo_header_sum(source, destination, protocol, length) == naive_sum(drawn)


@given(pairs, st.binary(min_size=8, max_size=200))
def test_a_filled_checksum_is_verified_as_zero(
    addresses: tuple[IpAddress, IpAddress], segment: bytes
) -> None:
    unsummed = segment[:6] + b"\0\0" + segment[8:]
    sum_ = transport_checksum(*addresses, 17, unsummed)
    filled = segment[:6] + sum_.to_bytes(2, "big") + segment[8:]
    assert transport_checksum(*addresses, 17, filled) == 0


def test_a_flipped_bit_is_noticed() -> None:
    source, destination = ip_address("10.0.0.1"), ip_address("10.0.0.2")
    sum_ = transport_checksum(source, destination, 17, b"weft\0\0\0\0")
    assert transport_checksum(source, destination, 17, b"wefu\0\0" + sum_.to_bytes(2, "big")) != 0


@given(st.lists(words, min_size=2, max_size=20), st.data())
def test_an_update_equals_a_full_sum(buffer: list[int], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(buffer) - 1))
    new = data.draw(words)
    before = checksum(b"".join(word.to_bytes(2, "big") for word in buffer))
    changed = [*buffer[:at], new, *buffer[at + 1 :]]
    after = checksum(b"".join(word.to_bytes(2, "big") for word in changed))
    if any(changed):  # no header is all zeros: the one buffer in which the two zeros differ
        assert update(before, buffer[at], new) == after


def test_the_example_of_rfc_1624_section_4() -> None:
    assert update(0xDD2F, 0x5555, 0x3285) == 0x0000


def test_both_versions_are_addresses() -> None:
    assert pseudo_header_sum(IPv4Address(1), IPv4Address(2), 6, 20) == 29
    assert pseudo_header_sum(IPv6Address(1), IPv6Address(2), 6, 20) == 29
