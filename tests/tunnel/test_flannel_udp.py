"""Flannel's UDP format: a time to live counted down as a full sum would, headers that are looked at first."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IPOption_Timestamp
from support.packets import aged, packet

from overlay.checksum import checksum
from overlay.verdict import DropReason
from tunnel.flannel_udp import ETHERNET, forward_untrusted, with_ethernet, without_ethernet
from tunnel.offload import ETHERNET_LENGTH, PLAIN, VnetHeader


def forwarded(octets: bytes) -> tuple[int | DropReason, bytes]:
    """The answer, and the packet afterwards."""
    frame = bytearray(ETHERNET + octets)
    answer = forward_untrusted(memoryview(frame))
    return answer, bytes(frame[ETHERNET_LENGTH:])


@given(
    st.integers(2, 255),
    st.integers(0, 0xFFFF),
    st.integers(0, 255),
    st.ip_addresses(v=4),
    st.ip_addresses(v=4),
)
def test_the_updated_checksum_is_the_full_one(
    ttl: int, identification: int, tos: int, source: IPv4Address, destination: IPv4Address
) -> None:
    octets = packet(source, destination, ttl=ttl, id=identification, tos=tos)
    answer, after = forwarded(octets)
    assert (answer, after) == (ETHERNET_LENGTH + len(octets), aged(octets))


def test_the_corner_where_the_older_equation_is_wrong() -> None:
    octets = bytearray(packet(ttl=64))
    for identification in range(0x10000):  # one of them brings the sum to 0xfeff
        octets[4:6], octets[10:12] = identification.to_bytes(2, "big"), bytes(2)
        sum_ = checksum(octets[:20])
        if sum_ == 0xFEFF:
            octets[10:12] = sum_.to_bytes(2, "big")
            assert forwarded(bytes(octets))[1] == aged(bytes(octets))
            assert forwarded(bytes(octets))[1][10:12] == bytes(2)
            return
    pytest.fail("no identification gives that sum")


@pytest.mark.parametrize("ttl", [0, 1])
def test_no_time_left_is_left_as_it_is(ttl: int) -> None:
    octets = packet(ttl=ttl)
    assert forwarded(octets) == (DropReason.TTL_EXPIRED, octets)


def test_options_are_carried() -> None:
    octets = packet(options=[IPOption_Timestamp()])
    assert octets[0] & 0x0F > 5
    assert forwarded(octets) == (ETHERNET_LENGTH + len(octets), aged(octets))


def test_octets_behind_the_packet_are_no_part_of_it() -> None:
    octets = packet()
    assert forwarded(octets + b"padding")[0] == ETHERNET_LENGTH + len(octets)


@pytest.mark.parametrize("at", range(20))
def test_a_header_with_one_octet_changed_goes_nowhere(at: int) -> None:
    octets = bytearray(packet())
    octets[at] ^= 0x01
    answer, after = forwarded(bytes(octets))
    assert isinstance(answer, DropReason)
    assert after == octets


def test_every_truncation_is_one() -> None:
    octets = packet()
    for length in range(len(octets)):
        assert forwarded(octets[:length]) == (DropReason.TRUNCATED, octets[:length])


@given(st.binary(max_size=80))
def test_any_octets_are_forwarded_or_have_a_reason(octets: bytes) -> None:
    answer, after = forwarded(octets)
    if isinstance(answer, DropReason):
        assert after == octets
    else:
        assert after == aged(octets)


def test_a_plain_header_stays_plain() -> None:
    assert (with_ethernet(PLAIN), without_ethernet(PLAIN)) == (PLAIN, PLAIN)


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(1, 5), st.integers(0, 9000))
def test_offsets_move_by_the_ethernet_header_and_back(
    header_length: int, start: int, gso_type: int, size: int
) -> None:
    read = VnetHeader(1, gso_type, header_length, size, start, 16)
    inside = VnetHeader(1, gso_type, header_length + 14, size, start + 14, 16)
    assert with_ethernet(read.build()) == inside.build()
    assert without_ethernet(inside.build()) == read.build()
