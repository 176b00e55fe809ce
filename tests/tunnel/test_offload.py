"""Repair: what is unfinished is finished, what is whole is left alone, what lies is not believed."""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.layers.inet import IP, IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from support.frames import (
    IP4_A,
    IP4_B,
    IP6_A,
    IP6_B,
    MAC_A,
    MAC_B,
    arp_request,
    echo4,
    naive_sum,
    tcp4,
    tcp6,
    udp4,
    udp6,
    unfinished,
)

from overlay.errors import TruncatedError
from overlay.verdict import DropReason
from tunnel.offload import (
    GSO_ECN,
    GSO_NONE,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    NEEDS_CSUM,
    PLAIN,
    VNET_HEADER_LENGTH,
    VnetHeader,
    is_super_frame_untrusted,
    parse_vnet_header_untrusted,
    repair_untrusted,
    syn_mss_untrusted,
)

MTU = 1450
ADDRESSES4 = ip_address(IP4_A).packed + ip_address(IP4_B).packed
ADDRESSES6 = ip_address(IP6_A).packed + ip_address(IP6_B).packed
OPTIONS4: Any = IP(src=IP4_A, dst=IP4_B, options=[IPOption_NOP()] * 8)
EXTENDED6: Any = IPv6(src=IP6_A, dst=IP6_B) / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt()

# name: maker, protocol, version, octets between the Ethernet and the transport header, its own length
SHAPES: dict[str, tuple[Callable[..., bytes], int, int, int, int]] = {
    "tcp4": (tcp4, 6, 4, 20, 20),
    "udp4": (udp4, 17, 4, 20, 8),
    "tcp4 options": (lambda payload, **f: tcp4(payload, ip=OPTIONS4, **f), 6, 4, 28, 20),
    "udp4 options": (lambda payload, **f: udp4(payload, ip=OPTIONS4, **f), 17, 4, 28, 8),
    "tcp6": (tcp6, 6, 6, 40, 20),
    "udp6": (udp6, 17, 6, 40, 8),
    "tcp6 extended": (lambda payload, **f: tcp6(payload, ip=EXTENDED6, **f), 6, 6, 56, 20),
    "udp6 extended": (lambda payload, **f: udp6(payload, ip=EXTENDED6, **f), 17, 6, 56, 8),
}
TCP_SHAPES = [name for name in SHAPES if name.startswith("tcp")]
UDP_SHAPES = [name for name in SHAPES if name.startswith("udp")]
TAGS = [(), (7,), (100, 7)]


def whole(name: str, payload: bytes, tags: tuple[int, ...] = ()) -> bytes:
    return SHAPES[name][0](payload, tags=tags)


def half(name: str, payload: bytes, tags: tuple[int, ...] = ()) -> bytes:
    """The frame as a kernel peer on a veth leaves it."""
    _, protocol, version, network_length, _ = SHAPES[name]
    l4_at = 14 + 4 * len(tags) + network_length
    addresses = ADDRESSES4 if version == 4 else ADDRESSES6
    return unfinished(whole(name, payload, tags), l4_at=l4_at, protocol=protocol, addresses=addresses)


def repair(
    frame: bytes, *, mtu: int = MTU, segment_size: int | None = None, mss: int | None = None
) -> bytes | DropReason:
    return repair_untrusted(memoryview(frame), overlay_mtu=mtu, segment_size=segment_size, mss=mss)


def header(octets: bytes | DropReason) -> VnetHeader:
    assert isinstance(octets, bytes)
    return parse_vnet_header_untrusted(octets)


def asks_for_checksum(name: str, tags: tuple[int, ...] = ()) -> VnetHeader:
    _, protocol, _, network_length, _ = SHAPES[name]
    start = 14 + 4 * len(tags) + network_length
    offset = 16 if protocol == 6 else 6
    return VnetHeader(NEEDS_CSUM, GSO_NONE, start + offset + 2, 0, start, offset)


# --- The header -----------------------------------------------------------------------------------------

u8, u16 = st.integers(0, 255), st.integers(0, 65535)


@given(st.builds(VnetHeader, u8, u8, u16, u16, u16, u16))
def test_the_header_round_trips(vnet: VnetHeader) -> None:
    assert len(vnet.build()) == VNET_HEADER_LENGTH
    assert parse_vnet_header_untrusted(vnet.build() + b"frame") == vnet
    assert vnet.build()[2:4] == struct.pack("=H", vnet.header_length)


def test_the_plain_header_asks_for_nothing() -> None:
    assert VnetHeader().build() == PLAIN


@pytest.mark.parametrize("length", range(VNET_HEADER_LENGTH))
def test_every_truncated_header_is_a_wire_error(length: int) -> None:
    with pytest.raises(TruncatedError, match=f"expected at least 10 octets, found {length}"):
        parse_vnet_header_untrusted(PLAIN[:length])


# --- Checksums ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tags", TAGS)
@pytest.mark.parametrize("length", [0, 1, 11, 12, 100, 1300])
@pytest.mark.parametrize("name", SHAPES)
def test_a_finished_frame_is_plain(name: str, length: int, tags: tuple[int, ...]) -> None:
    assert repair(whole(name, b"x" * length, tags)) == PLAIN


@pytest.mark.parametrize("tags", TAGS)
@pytest.mark.parametrize("length", [0, 1, 11, 12, 100, 1300])
@pytest.mark.parametrize("name", SHAPES)
def test_an_unfinished_frame_asks_for_its_checksum(name: str, length: int, tags: tuple[int, ...]) -> None:
    assert header(repair(half(name, b"x" * length, tags))) == asks_for_checksum(name, tags)


@pytest.mark.parametrize("name", SHAPES)
def test_what_the_host_then_computes_is_the_checksum_scapy_computed(name: str) -> None:
    finished, frame = whole(name, b"payload"), half(name, b"payload")
    vnet = header(repair(frame))
    sum_ = 0xFFFF - naive_sum(frame[vnet.checksum_start :])
    field_at = vnet.checksum_start + vnet.checksum_offset
    assert finished == frame[:field_at] + sum_.to_bytes(2, "big") + frame[field_at + 2 :]


@pytest.mark.parametrize("name", SHAPES)
@given(difference=st.integers(1, 0xFFFE))
def test_any_other_field_is_a_finished_checksum(name: str, difference: int) -> None:
    _, protocol, _, network_length, _ = SHAPES[name]
    frame = half(name, b"x" * 40)
    field_at = 14 + network_length + (16 if protocol == 6 else 6)
    field = (int.from_bytes(frame[field_at : field_at + 2], "big") + difference) & 0xFFFF
    assert repair(frame[:field_at] + field.to_bytes(2, "big") + frame[field_at + 2 :]) == PLAIN


@pytest.mark.parametrize("name", ["udp4", "tcp4", "udp6", "tcp6"])
def test_a_pseudo_header_sum_of_ffff_is_no_missing_checksum(name: str) -> None:
    # The source is chosen so that the folded sum is 0xffff, which modulo 65535 is the zero that in UDP
    # says "no checksum": the first is to be finished, the second is not ours to add.
    make, protocol, version, network_length, transport_length = SHAPES[name]
    l4_length, payload = transport_length + 40, b"x" * 40
    destination = IP4_B if version == 4 else IP6_B
    rest = naive_sum(ip_address(destination).packed + bytes([0, protocol]) + l4_length.to_bytes(2, "big"))
    low = 0xFFFF - rest
    source = str(ip_address(low if version == 4 else 1 << 112 | (low - 1)))
    ip = IP(src=source, dst=destination) if version == 4 else IPv6(src=source, dst=destination)
    frame = bytearray(make(payload, ip=ip))
    field_at = 14 + network_length + (16 if protocol == 6 else 6)
    frame[field_at : field_at + 2] = b"\xff\xff"
    assert header(repair(bytes(frame))) == asks_for_checksum(name)
    frame[field_at : field_at + 2] = b"\0\0"
    assert repair(bytes(frame)) == PLAIN


def test_a_super_frame_whose_checksum_field_is_zero_is_finished() -> None:
    payload = b"x" * 4000
    tcp_length = (len(payload) + 20).to_bytes(2, "big")
    rest = naive_sum(ip_address(IP4_B).packed + bytes([0, 6]) + tcp_length)
    ip = IP(src=str(ip_address(0xFFFF - rest)), dst=IP4_B)  # as above: the sum is zero modulo 65535
    frame = bytearray(tcp4(payload, ip=ip))
    field_at = 14 + 20 + 16
    frame[field_at : field_at + 2] = b"\xff\xff"
    assert header(repair(bytes(frame))).gso_size
    frame[field_at : field_at + 2] = b"\0\0"
    assert repair(bytes(frame)) == PLAIN


@pytest.mark.parametrize("name", ["tcp4", "udp4", "tcp4 options", "udp4 options"])
def test_an_ipv4_fragment_is_never_repaired(name: str) -> None:
    frame = bytearray(half(name, b"x" * 40))
    for flags in (b"\x20\x00", b"\x00\x01", b"\x1f\xff"):
        frame[20:22] = flags
        assert repair(bytes(frame)) == PLAIN
    frame[20:22] = b"\x40\x00"  # DF alone makes no fragment
    assert header(repair(bytes(frame))) == asks_for_checksum(name)


@pytest.mark.parametrize(("make", "protocol"), [(tcp6, 6), (udp6, 17)])
def test_an_ipv6_fragment_is_never_repaired(make: Callable[..., bytes], protocol: int) -> None:
    frame = make(b"x" * 40, ip=IPv6(src=IP6_A, dst=IP6_B) / IPv6ExtHdrFragment(m=1, id=1))
    assert repair(unfinished(frame, l4_at=62, protocol=protocol, addresses=ADDRESSES6)) == PLAIN


@pytest.mark.parametrize("tags", TAGS)
@pytest.mark.parametrize("name", ["udp4", "tcp4"])
def test_the_padding_of_a_short_frame_is_tolerated(name: str, tags: tuple[int, ...]) -> None:
    frame = half(name, b"x", tags)
    padding = bytes(60 + 4 * len(tags) - len(frame))
    assert padding
    assert header(repair(frame + padding)) == asks_for_checksum(name, tags)
    assert repair(frame + padding + b"\0") == PLAIN


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("extra", [-1, 1])
def test_a_frame_whose_lengths_are_not_exact_is_not_repaired(name: str, extra: int) -> None:
    frame = half(name, b"x" * 100)
    assert repair(frame[:-1] if extra < 0 else frame + b"\0") == PLAIN


@pytest.mark.parametrize("name", UDP_SHAPES)
def test_a_udp_length_that_is_not_the_packets_is_not_repaired(name: str) -> None:
    length_at = 14 + SHAPES[name][3] + 4
    frame = bytearray(half(name, b"x" * 100))
    frame[length_at + 1] -= 1
    assert repair(bytes(frame)) == PLAIN
    frame = bytearray(half(name, b"x" * 3000))
    frame[length_at + 1] ^= 1
    assert repair(bytes(frame)) is DropReason.INNER_MALFORMED


@pytest.mark.parametrize("name", TCP_SHAPES)
@pytest.mark.parametrize("offset", [0, 4, 15])
def test_a_tcp_data_offset_outside_its_segment_is_not_repaired(name: str, offset: int) -> None:
    offset_at = 14 + SHAPES[name][3] + 12
    frame = bytearray(half(name, b"x" * 8))
    frame[offset_at] = offset << 4
    assert repair(bytes(frame)) == PLAIN
    frame = bytearray(half(name, b"x" * 3000))
    frame[offset_at] = min(offset, 4) << 4
    assert repair(bytes(frame)) is DropReason.INNER_MALFORMED


@pytest.mark.parametrize("offset", [0, 4])
def test_a_finished_super_frame_with_such_an_offset_is_malformed_all_the_same(offset: int) -> None:
    frame = bytearray(whole("tcp4", b"x" * 4000))
    frame[14 + 20 + 12] = offset << 4
    assert repair(bytes(frame)) is DropReason.INNER_MALFORMED


@pytest.mark.parametrize(
    "frame", [arp_request(), echo4(b"x" * 100), MAC_A + MAC_B + b"\x88\xcc" + bytes(100)]
)
def test_what_is_neither_tcp_nor_udp_is_plain(frame: bytes) -> None:
    assert repair(frame) == PLAIN


def test_a_long_frame_that_is_not_ip_is_plain() -> None:
    assert repair(MAC_A + MAC_B + b"\x88\xcc" + bytes(9000)) == PLAIN
    assert repair(MAC_A + MAC_B + b"\x81\x00\x00\x07" * 20 + bytes(9000)) == PLAIN
    assert repair(echo4(bytes(9000))) == PLAIN


# --- Super-frames ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("tags", TAGS)
def test_a_super_frame_with_a_finished_checksum_is_plain(name: str, tags: tuple[int, ...]) -> None:
    assert repair(whole(name, b"x" * 5000, tags)) == PLAIN
    assert repair(whole(name, b"x" * 5000, tags), segment_size=1000) == PLAIN


@pytest.mark.parametrize("tags", TAGS)
@pytest.mark.parametrize("name", TCP_SHAPES)
def test_a_tcp_super_frame_is_cut_by_a_safe_guess(name: str, tags: tuple[int, ...]) -> None:
    _, _, version, network_length, _ = SHAPES[name]
    start = 14 + 4 * len(tags) + network_length
    gso_type = GSO_TCPV4 if version == 4 else GSO_TCPV6
    expected = VnetHeader(NEEDS_CSUM, gso_type, start + 20, 1280 - network_length - 20, start, 16)
    assert header(repair(half(name, b"x" * 5000, tags))) == expected
    narrow = header(repair(half(name, b"x" * 5000, tags), mtu=900))
    assert narrow.gso_size == 900 - network_length - 20


@pytest.mark.parametrize("tags", TAGS)
@pytest.mark.parametrize("name", TCP_SHAPES)
def test_a_frame_that_fills_the_mtu_is_not_cut(name: str, tags: tuple[int, ...]) -> None:
    network_length = SHAPES[name][3]
    fitting = half(name, b"x" * (MTU - network_length - 20), tags)
    assert len(fitting) == MTU + 14 + 4 * len(tags)
    assert header(repair(fitting)).gso_type == GSO_NONE
    assert header(repair(half(name, b"x" * (MTU - network_length - 19), tags))).gso_type != GSO_NONE


def test_the_largest_tcp_super_frame_is_cut_into_at_most_64() -> None:
    payload = 65535 - 40
    vnet = header(repair(half("tcp4", b"x" * payload)))
    assert vnet.gso_size == 1240
    assert -(-payload // vnet.gso_size) <= 64


@pytest.mark.parametrize(
    ("mss", "expected"), [(1460, 1240), (1241, 1240), (1200, 1200), (536, 536), (100, 100), (1, 79), (0, 79)]
)
def test_the_guess_is_lowered_by_the_mss_but_to_no_more_than_64_segments(mss: int, expected: int) -> None:
    assert header(repair(half("tcp4", b"x" * 5000), mss=mss)).gso_size == expected


def test_an_mss_does_not_count_options_but_a_segment_does() -> None:
    options = [("NOP", None), ("NOP", None), ("Timestamp", (1, 2))]
    frame = unfinished(tcp4(b"x" * 5000, options=options), l4_at=34, protocol=6, addresses=ADDRESSES4)
    assert header(repair(frame)) == VnetHeader(NEEDS_CSUM, GSO_TCPV4, 66, 1280 - 52, 34, 16)
    assert header(repair(frame, mss=1000)).gso_size == 1000 - 12


def test_congestion_window_reduced_is_marked() -> None:
    frame = unfinished(tcp4(b"x" * 5000, flags="CA"), l4_at=34, protocol=6, addresses=ADDRESSES4)
    assert header(repair(frame)).gso_type == GSO_TCPV4 | GSO_ECN


def test_the_sockets_segment_size_beats_a_guess() -> None:
    assert header(repair(half("tcp4", b"x" * 5000), segment_size=1410, mss=500)).gso_size == 1410


@pytest.mark.parametrize("tags", TAGS)
@pytest.mark.parametrize("name", UDP_SHAPES)
def test_a_udp_super_frame_is_cut_where_its_sender_would_have(name: str, tags: tuple[int, ...]) -> None:
    start = 14 + 4 * len(tags) + SHAPES[name][3]
    expected = VnetHeader(NEEDS_CSUM, GSO_UDP_L4, start + 8, 1000, start, 6)
    assert header(repair(half(name, b"x" * 5000, tags), segment_size=1000)) == expected


@pytest.mark.parametrize("name", UDP_SHAPES)
def test_udp_is_never_cut_by_guessing(name: str) -> None:
    assert header(repair(half(name, b"x" * 5000))) == asks_for_checksum(name)
    assert header(repair(half(name, b"x" * 5000), mss=500)) == asks_for_checksum(name)


@pytest.mark.parametrize("name", UDP_SHAPES)
def test_a_short_run_of_messages_is_cut_as_well(name: str) -> None:
    assert header(repair(half(name, b"x" * 300), segment_size=100)).gso_size == 100
    assert header(repair(half(name, b"x" * 300), segment_size=300)) == asks_for_checksum(name)


@pytest.mark.parametrize("segment_size", [-1, 0, 5000, 2**31])
def test_a_segment_size_that_cuts_nothing_is_ignored(segment_size: int) -> None:
    assert header(repair(half("udp4", b"x" * 5000), segment_size=segment_size)) == asks_for_checksum("udp4")


def test_64_messages_are_written_and_65_are_not_believed() -> None:
    assert header(repair(half("udp4", b"x" * 6400), segment_size=100)).gso_size == 100
    assert repair(half("udp4", b"x" * 6401), segment_size=100) is DropReason.INNER_MALFORMED


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("change", [-1, 1, 100])
def test_a_super_frame_whose_inner_length_is_not_its_own_is_malformed(name: str, change: int) -> None:
    frame = half(name, b"x" * 5000)
    changed = frame[:change] if change < 0 else frame + bytes(change)
    assert repair(changed) is DropReason.INNER_MALFORMED
    assert repair(changed, segment_size=1000) is DropReason.INNER_MALFORMED


def test_a_run_of_datagrams_is_not_one_super_frame() -> None:
    stride = whole("udp4", b"x" * 958)
    assert repair(stride + bytes(8) + stride, segment_size=len(stride) + 8) is DropReason.INNER_MALFORMED


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("mtu", [MTU, 20])
def test_every_truncation_is_plain_or_malformed(name: str, mtu: int) -> None:
    frame = half(name, b"payload", tags=(7,))
    for length in range(len(frame)):
        verdict = repair(frame[:length], mtu=mtu)
        assert verdict == PLAIN or verdict is DropReason.INNER_MALFORMED
        assert verdict == PLAIN or length > mtu + 14


@given(st.data())
def test_any_spoiled_frame_gets_a_header_that_stays_inside_it(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(list(SHAPES)))
    frame = bytearray(
        half(name, bytes(data.draw(st.sampled_from([0, 9, 200, 3000]))), data.draw(st.sampled_from(TAGS)))
    )
    for _ in range(data.draw(st.integers(0, 4))):
        frame[data.draw(st.integers(0, min(len(frame), 90) - 1))] = data.draw(u8)
    check_stays_inside(
        bytes(frame),
        data.draw(st.none() | st.integers(-1, 70000)),
        data.draw(st.none() | u16),
        data.draw(st.integers(0, 3000)),
    )


@given(st.binary(max_size=120), st.none() | u16, st.none() | u16, st.integers(0, 3000))
@example(b"", None, None, 0)
def test_any_octets_get_a_header_that_stays_inside_them(
    octets: bytes, segment_size: int | None, mss: int | None, mtu: int
) -> None:
    check_stays_inside(octets, segment_size, mss, mtu)
    check_stays_inside(MAC_A + MAC_B + b"\x08\x00\x45" + octets, segment_size, mss, mtu)
    check_stays_inside(MAC_A + MAC_B + b"\x86\xdd\x60" + octets, segment_size, mss, mtu)


def check_stays_inside(frame: bytes, segment_size: int | None, mss: int | None, mtu: int) -> None:
    verdict = repair(frame, mtu=mtu, segment_size=segment_size, mss=mss)
    if isinstance(verdict, DropReason):
        assert verdict is DropReason.INNER_MALFORMED
        return
    vnet = header(verdict)
    if verdict == PLAIN:
        return
    assert vnet.flags == NEEDS_CSUM
    assert vnet.checksum_start + vnet.checksum_offset + 2 <= vnet.header_length <= len(frame)
    if vnet.gso_type != GSO_NONE:
        payload = len(frame) - vnet.header_length
        assert 1 <= -(-payload // vnet.gso_size) <= 64
        assert payload > vnet.gso_size


# --- MSS ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tags", TAGS)
@pytest.mark.parametrize("name", TCP_SHAPES)
def test_a_syns_mss_is_read(name: str, tags: tuple[int, ...]) -> None:
    options = [("NOP", None), ("SAckOK", b""), ("Timestamp", (1, 0)), ("MSS", 1360), ("WScale", 7)]
    make = SHAPES[name][0]
    assert syn_mss_untrusted(make(b"", tags=tags, flags="S", options=options)) == 1360
    assert syn_mss_untrusted(memoryview(make(b"", tags=tags, flags="SA", options=options))) == 1360


@pytest.mark.parametrize("name", TCP_SHAPES)
def test_only_a_syn_announces_an_mss(name: str) -> None:
    make = SHAPES[name][0]
    assert syn_mss_untrusted(make(b"", flags="A", options=[("MSS", 1360)])) is None
    assert syn_mss_untrusted(make(b"", flags="S", options=[("EOL", None), ("MSS", 1360)])) is None
    assert syn_mss_untrusted(make(b"", flags="S")) is None


@pytest.mark.parametrize("name", UDP_SHAPES)
def test_a_datagram_announces_none(name: str) -> None:
    assert syn_mss_untrusted(whole(name, b"\x02" * 100)) is None


@pytest.mark.parametrize("name", TCP_SHAPES)
def test_every_truncated_or_spoiled_syn_has_an_mss_or_none(name: str) -> None:
    frame = SHAPES[name][0](b"", flags="S", options=[("MSS", 1360), ("WScale", 7)])
    for length in range(len(frame)):
        assert syn_mss_untrusted(frame[:length]) is None
    for at in range(len(frame)):
        for octet in (0, 1, 2, 255):
            mss = syn_mss_untrusted(frame[:at] + bytes([octet]) + frame[at + 1 :])
            assert mss is None or 0 <= mss <= 0xFFFF


@pytest.mark.parametrize("make", [udp4, udp6])
@pytest.mark.parametrize("tags", [(), (7,), (5, 7)])
def test_a_super_frame_reaches_its_end_and_the_first_of_a_run_does_not(
    make: Callable[..., bytes], tags: tuple[int, ...]
) -> None:
    frame = make(bytes(3000), tags=tags)
    assert is_super_frame_untrusted(frame)
    run = make(bytes(1000), tags=tags) * 3
    assert not is_super_frame_untrusted(run)


@pytest.mark.parametrize("frame", [arp_request(), MAC_A + MAC_B + b"\x88\xb5" + bytes(3000)])
def test_what_is_no_ip_is_no_super_frame(frame: bytes) -> None:
    assert not is_super_frame_untrusted(frame)


@given(st.binary(max_size=120), st.binary(max_size=40))
def test_any_octets_are_a_super_frame_or_not(octets: bytes, rest: bytes) -> None:
    assert is_super_frame_untrusted(octets) in (True, False)
    assert not is_super_frame_untrusted(udp4(octets) + rest + b"one more")


@given(st.binary(max_size=120))
def test_any_octets_have_an_mss_or_none(octets: bytes) -> None:
    for frame in (octets, MAC_A + MAC_B + b"\x08\x00\x45" + octets, MAC_A + MAC_B + b"\x86\xdd\x60" + octets):
        mss = syn_mss_untrusted(frame)
        assert mss is None or 0 <= mss <= 0xFFFF


@given(st.binary(max_size=40).map(lambda options: options[: len(options) // 4 * 4]))
def test_any_options_have_an_mss_or_none(options: bytes) -> None:
    segment = bytes(12) + bytes([(20 + len(options)) // 4 << 4, 2]) + bytes(6) + options
    total = (20 + len(segment)).to_bytes(2, "big")
    ip = b"\x45\0" + total + bytes(5) + b"\x06" + bytes(2) + ADDRESSES4
    mss = syn_mss_untrusted(MAC_A + MAC_B + b"\x08\x00" + ip + segment)
    assert mss is None or mss.to_bytes(2, "big") in options
