"""The VXLAN header: what we send, what we accept, and what others sent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.vxlan import VXLAN
from support.frames import arp_request, captured_datagrams, udp4, vxlan

from overlay.addr import Vni
from overlay.errors import TruncatedError, WireError
from overlay.frame import parse_ethernet_untrusted
from overlay.verdict import DropReason
from tunnel.vxlan import (
    HEADER_LENGTH,
    I_FLAG,
    Dialect,
    VxlanHeader,
    build_header,
    classify_untrusted,
    parse_header_untrusted,
)

FRAME = udp4(b"inner")
VNI = Vni(0x123456)
GOLDEN = vxlan(FRAME, VNI)
I_BIT = 59  # of 64, counted from the last
VNI_BITS = range(8, 32)
RESERVED = [bit for bit in range(64) if bit != I_BIT and bit not in VNI_BITS]
CAPTURES = {
    "vxlan.pcap": 100,
    "vxlan_port_8472.pcap": 100,
    "zeek-vxlan.pcap": 123,
    "zeek-vxlan-encapsulated-igmp-v2.pcap": 4242,
}

headers = st.builds(
    VxlanHeader,
    vni=st.integers(0, 2**24 - 1).map(Vni),
    flags=st.integers(0, 255),
    reserved1=st.integers(0, 2**24 - 1),
    reserved2=st.integers(0, 255),
)


def with_bit(datagram: bytes, bit: int) -> bytes:
    word = int.from_bytes(datagram[:HEADER_LENGTH], "big") ^ 1 << bit
    return word.to_bytes(HEADER_LENGTH, "big") + datagram[HEADER_LENGTH:]


@given(st.integers(0, 2**24 - 1))
def test_the_header_we_send_is_scapys(vni: int) -> None:
    assert build_header(Vni(vni)) == bytes(VXLAN(vni=vni, flags=8))
    assert build_header(Vni(vni)) == VxlanHeader(Vni(vni)).build()


@pytest.mark.parametrize("strict", [False, True])
def test_a_plain_datagram_names_its_vni(strict: bool) -> None:
    assert classify_untrusted(GOLDEN, strict=strict) == VNI
    assert classify_untrusted(memoryview(GOLDEN), strict=strict) == VNI


@given(headers)
def test_every_header_is_encoded_again_bit_for_bit(header: VxlanHeader) -> None:
    assert parse_header_untrusted(header.build() + FRAME) == header


@given(st.binary(min_size=8, max_size=8))
def test_every_eight_octets_are_encoded_again(octets: bytes) -> None:
    assert parse_header_untrusted(octets).build() == octets


@given(st.binary(max_size=40), st.booleans())
def test_any_octets_are_a_vni_or_a_reason(octets: bytes, strict: bool) -> None:
    verdict = classify_untrusted(octets, strict=strict)
    if isinstance(verdict, DropReason):
        assert verdict in {DropReason.TRUNCATED, DropReason.BAD_FLAGS, DropReason.RESERVED_BITS}
    else:
        assert parse_header_untrusted(octets).vni == verdict


@pytest.mark.parametrize("length", range(HEADER_LENGTH + 14))
@pytest.mark.parametrize("strict", [False, True])
def test_every_datagram_without_an_inner_header_is_truncated(length: int, strict: bool) -> None:
    assert classify_untrusted(GOLDEN[:length], strict=strict) is DropReason.TRUNCATED


def test_a_bare_ethernet_header_is_enough() -> None:
    assert classify_untrusted(GOLDEN[: HEADER_LENGTH + 14], strict=True) == VNI


@pytest.mark.parametrize("length", range(HEADER_LENGTH))
def test_every_truncated_header_is_a_wire_error(length: int) -> None:
    with pytest.raises(TruncatedError, match=f"expected at least 8 octets, found {length}"):
        parse_header_untrusted(GOLDEN[:length])


def test_there_are_39_reserved_bits() -> None:
    assert len(RESERVED) == 39


@pytest.mark.parametrize("bit", RESERVED)
def test_a_reserved_bit_is_ignored_by_the_rfc_and_dropped_by_linux(bit: int) -> None:
    datagram = with_bit(GOLDEN, bit)
    assert classify_untrusted(datagram, strict=False) == VNI
    assert classify_untrusted(datagram, strict=True) is DropReason.RESERVED_BITS
    assert parse_header_untrusted(datagram).build() == datagram[:HEADER_LENGTH]
    assert parse_header_untrusted(datagram).dialect is not Dialect.PLAIN


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("others", [0, *RESERVED])
def test_without_the_i_flag_there_is_no_vni(strict: bool, others: int) -> None:
    datagram = with_bit(GOLDEN, I_BIT)
    if others:
        datagram = with_bit(datagram, others)
    assert classify_untrusted(datagram, strict=strict) is DropReason.BAD_FLAGS
    assert not parse_header_untrusted(datagram).has_vni


@pytest.mark.parametrize(
    ("octets", "dialect"),
    [
        ("0800000012345600", Dialect.PLAIN),
        ("8840003412345600", Dialect.GBP),
        ("8800000012345600", Dialect.GBP),
        ("0c00000312345600", Dialect.GPE),
        ("0820000012345691", Dialect.RCO),
        ("0800000012345601", Dialect.UNKNOWN),
        ("0000000012345600", Dialect.PLAIN),
    ],
)
def test_dialects_are_recognised(octets: str, dialect: Dialect) -> None:
    assert parse_header_untrusted(bytes.fromhex(octets)).dialect is dialect


def test_a_gpe_header_is_a_vni_to_the_rfc_and_reserved_bits_to_linux() -> None:
    gpe = bytes.fromhex("0c00000312345600") + FRAME
    assert classify_untrusted(gpe, strict=False) == VNI
    assert classify_untrusted(gpe, strict=True) is DropReason.RESERVED_BITS


@pytest.mark.parametrize(("name", "vni"), CAPTURES.items())
def test_captures_by_others_are_read_and_encoded_again(name: str, vni: int) -> None:
    datagrams = captured_datagrams(name)
    assert len(datagrams) >= 2
    for datagram in datagrams:
        assert classify_untrusted(datagram, strict=True) == vni
        assert parse_header_untrusted(datagram) == VxlanHeader(Vni(vni), flags=I_FLAG)
        assert build_header(Vni(vni)) == datagram[:HEADER_LENGTH]
        assert parse_ethernet_untrusted(datagram[HEADER_LENGTH:]).payload_at == 14


@pytest.mark.parametrize(("name", "vni"), CAPTURES.items())
def test_every_truncation_of_a_captured_datagram_is_a_vni_or_truncated(name: str, vni: int) -> None:
    datagram = captured_datagrams(name)[0]
    for length in range(len(datagram)):
        expected = DropReason.TRUNCATED if length < HEADER_LENGTH + 14 else vni
        assert classify_untrusted(datagram[:length], strict=False) == expected


def test_scapy_finds_the_frame_we_put_behind_our_header() -> None:
    frame = arp_request()
    read = VXLAN(build_header(VNI) + frame)
    assert read.vni == VNI
    assert bytes(read.payload) == frame


def test_the_error_belongs_to_the_tree() -> None:
    with pytest.raises(WireError):
        parse_header_untrusted(b"")
