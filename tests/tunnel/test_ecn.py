"""RFC 6040, cell by cell: what congestion marks become across the tunnel, and that no octets break it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from support.frames import IP4_A, IP4_B, IP6_A, IP6_B, arp_request, ether, naive_sum, udp4, udp6

from overlay.verdict import DropReason
from tunnel.ecn import CE, ECT_0, ECT_1, NOT_ECT, inner_ecn_untrusted, mark_congested_untrusted

FIELDS = {"Not-ECT": NOT_ECT, "ECT(0)": ECT_0, "ECT(1)": ECT_1, "CE": CE}
every_field = pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
every_tagging = pytest.mark.parametrize("tags", [(), (7,), (5, 7)], ids=["untagged", "C-tag", "S-tag"])
every_dscp = pytest.mark.parametrize("dscp", [0, 0b101110, 0b111111])


def v4(field: int, dscp: int = 0, tags: tuple[int, ...] = ()) -> bytes:
    return udp4(b"payload", ip=IP(src=IP4_A, dst=IP4_B, tos=dscp << 2 | field), tags=tags)


def v6(field: int, dscp: int = 0, tags: tuple[int, ...] = ()) -> bytes:
    return udp6(b"payload", ip=IPv6(src=IP6_A, dst=IP6_B, tc=dscp << 2 | field, fl=0xFFFFF), tags=tags)


@every_field
@every_dscp
@every_tagging
def test_the_inner_field_is_read(field: int, dscp: int, tags: tuple[int, ...]) -> None:
    assert inner_ecn_untrusted(v4(field, dscp, tags)) == field
    assert inner_ecn_untrusted(v6(field, dscp, tags)) == field


@every_dscp
@every_tagging
@pytest.mark.parametrize("field", [ECT_0, ECT_1, CE])
def test_a_frame_that_heeds_marks_is_marked_and_nothing_else_of_it_changes(
    field: int, dscp: int, tags: tuple[int, ...]
) -> None:
    # RFC 6040 section 4.2, figure 4, the column of outer CE.
    for before, expected in (
        (v4(field, dscp, tags), v4(CE, dscp, tags)),
        (v6(field, dscp, tags), v6(CE, dscp, tags)),
    ):
        frame = bytearray(before)
        assert mark_congested_untrusted(frame) is None
        assert bytes(frame) == expected


@every_tagging
def test_a_frame_that_does_not_heed_marks_is_dropped(tags: tuple[int, ...]) -> None:
    for frame in (v4(NOT_ECT, tags=tags), v6(NOT_ECT, tags=tags)):
        octets = bytearray(frame)
        assert mark_congested_untrusted(octets) is DropReason.ECN_CONGESTED
        assert octets == frame


def test_a_frame_without_ip_goes_on_unmarked() -> None:
    frame = bytearray(arp_request())
    assert inner_ecn_untrusted(frame) == NOT_ECT
    assert mark_congested_untrusted(frame) is None
    assert frame == arp_request()


@pytest.mark.parametrize("whole", [v4(ECT_0), v6(ECT_0), v4(ECT_0, tags=(7,))], ids=["v4", "v6", "tagged"])
def test_a_torn_header_has_no_field(whole: bytes) -> None:
    header_end = whole.index(b"payload") - 8
    for end in range(header_end):
        assert inner_ecn_untrusted(whole[:end]) == NOT_ECT
        assert mark_congested_untrusted(bytearray(whole[:end])) is None
    assert inner_ecn_untrusted(whole[:header_end]) == ECT_0


def test_the_version_must_be_what_the_ethertype_says() -> None:
    frame = bytearray(v4(ECT_0))
    frame[14] = 0x65
    assert inner_ecn_untrusted(frame) == NOT_ECT


IDENTIFICATIONS = st.integers(0, 0xFFFF)


@given(IDENTIFICATIONS, st.integers(0, 63), st.sampled_from([ECT_0, ECT_1]))
def test_the_header_checksum_stays_right_whatever_it_was(identification: int, dscp: int, field: int) -> None:
    packet = IP(src=IP4_A, dst=IP4_B, tos=dscp << 2 | field, id=identification)
    frame = bytearray(ether(packet))
    assert mark_congested_untrusted(frame) is None
    assert naive_sum(bytes(frame[14:34])) == 0xFFFF
    assert Ether(bytes(frame))[IP].tos == dscp << 2 | CE


@given(st.one_of(st.binary(max_size=80), st.binary(max_size=60).map(lambda rest: v6(ECT_0)[:14] + rest)))
def test_any_octets_have_a_field_and_a_fate(octets: bytes) -> None:
    field = inner_ecn_untrusted(octets)
    assert field in FIELDS.values()
    frame = bytearray(octets)
    fate = mark_congested_untrusted(frame)
    if field == NOT_ECT:
        is_ip = any(
            octets[12:14] == ethertype and len(octets) >= 14 + length and octets[14] >> 4 == version
            for ethertype, version, length in ((b"\x08\x00", 4, 20), (b"\x86\xdd", 6, 40))
        )
        if octets[12:14] not in (b"\x81\x00", b"\x88\xa8"):  # behind tags either may be
            assert fate is (DropReason.ECN_CONGESTED if is_ip else None)
        assert frame == octets
    else:
        assert fate is None
        assert inner_ecn_untrusted(frame) == CE
        assert len(frame) == len(octets)
