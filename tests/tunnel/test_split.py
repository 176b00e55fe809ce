"""Split: every segment is the one scapy would have built, every lie a drop, and no payload is copied."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.frames import arp_request, naive_sum, tcp4
from support.super_frames import ECN, TCPV4, TCPV6, UDP_L4, Burst, bursts

from overlay.verdict import DropReason
from tunnel.offload import PLAIN
from tunnel.split import (
    RUN_OCTETS_MAX,
    SEGMENTS_MAX,
    SUPER_SEGMENTS_MAX,
    Run,
    finish_untrusted,
    split_untrusted,
)
from tunnel.vxlan import build_header

PREFIX = build_header(42)  # type: ignore[arg-type]
AMPLE = 65507


def split(
    header: bytes, frame: bytes, *, payload_max: int = AMPLE, prefix: bytes = PREFIX
) -> list[Run] | DropReason:
    return split_untrusted(header, memoryview(bytearray(frame)), prefix=prefix, payload_max=payload_max)


def segments_of(runs: list[Run] | DropReason) -> list[bytes]:
    """The frames a `sendmsg` with UDP_SEGMENT makes of the runs, behind their prefix."""
    assert isinstance(runs, list)
    found = []
    for run in runs:
        octets = b"".join(run.buffers)
        pieces = [octets[at : at + run.segment_size] for at in range(0, len(octets), run.segment_size)]
        assert len(pieces) == run.segments
        assert all(piece.startswith(PREFIX) for piece in pieces)
        found += [piece[len(PREFIX) :] for piece in pieces]
    return found


# --- Segments -------------------------------------------------------------------------------------------


@given(bursts())
def test_the_segments_are_those_scapy_builds(burst: Burst) -> None:
    assert segments_of(split(burst.header, burst.whole)) == burst.segments


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [6, 17])
def test_a_full_burst_of_a_host_is_two_runs(version: int, protocol: int) -> None:
    burst = Burst(version, protocol, octets=46 * 1398, size=1398)
    runs = split(burst.header, burst.whole)
    assert isinstance(runs, list)
    assert segments_of(runs) == burst.segments
    assert sum(run.segments for run in runs) == 46
    assert len(runs) == 2


def test_a_run_is_never_longer_than_a_datagram() -> None:
    burst = Burst(octets=46 * 1394, size=1394)  # 45 of its segments are between 65507 and 65535 octets
    runs = split(burst.header, burst.whole)
    assert isinstance(runs, list)
    assert [(run.segment_size, run.segments) for run in runs] == [(1456, 44), (1456, 2)]


@given(bursts(octets=st.integers(0, 200), size=st.sampled_from([60, 300, 700])))
def test_no_run_is_more_than_a_socket_takes(burst: Burst) -> None:
    runs = split(burst.header, burst.whole)
    assert isinstance(runs, list)
    for run in runs:
        assert 1 <= run.segments <= SEGMENTS_MAX
        assert sum(map(len, run.buffers)) <= RUN_OCTETS_MAX
        assert len(run.buffers) == 2 * run.segments
    assert all(sum(map(len, run.buffers)) == run.segments * run.segment_size for run in runs[:-1])


def test_the_payload_is_not_copied() -> None:
    burst = Burst(octets=5000)
    frame = bytearray(burst.whole)
    runs = split_untrusted(burst.header, memoryview(frame), prefix=PREFIX, payload_max=AMPLE)
    assert isinstance(runs, list)
    payloads = runs[0].buffers[1::2]
    assert [payload.obj is frame for payload in payloads if isinstance(payload, memoryview)] == [True] * 5


@pytest.mark.parametrize("flags", ["A", "PA", "FPA", "CA", "CFPA"])
def test_fin_and_psh_are_the_lasts_and_cwr_the_firsts(flags: str) -> None:
    burst = Burst(octets=3000, flags=flags)
    seen = [frame[burst.l4_at + 13] for frame in segments_of(split(burst.header, burst.whole))]
    fin_psh = (0x01 if "F" in flags else 0) | (0x08 if "P" in flags else 0)
    cwr = 0x80 if "C" in flags else 0
    assert seen == [0x10 | cwr, 0x10, 0x10 | fin_psh]


def test_sequence_numbers_and_identifications_wrap_around() -> None:
    burst = Burst(sequence=0xFFFFFFFF, identification=0xFFFF, octets=3000)
    frames = segments_of(split(burst.header, burst.whole))
    assert [int.from_bytes(frame[38:42], "big") for frame in frames] == [0xFFFFFFFF, 999, 1999]
    assert [int.from_bytes(frame[18:20], "big") for frame in frames] == [0xFFFF, 0, 1]


@pytest.mark.parametrize("version", [4, 6])
@given(low=st.integers(0, 0xFFFF))
def test_a_udp_checksum_is_never_the_zero_that_means_none(version: int, low: int) -> None:
    # The last two octets of the first datagram are chosen so that its sum is 0xffff, or near it.
    burst = Burst(version, 17, octets=20, size=10)
    frame = bytearray(burst.whole)
    first = bytearray(burst.segments[0])
    first[burst.l4_at + 6 : burst.l4_at + 8] = first[-2:] = b"\0\0"
    pseudo = first[26:34] if version == 4 else first[22:54]
    rest = naive_sum(bytes(pseudo) + bytes([0, 17]) + (18).to_bytes(2, "big") + bytes(first[burst.l4_at :]))
    for word in (0xFFFF - rest, low):
        frame[burst.headers + 8 : burst.headers + 10] = word.to_bytes(2, "big")
        made = segments_of(split(burst.header, bytes(frame)))[0]
        field = int.from_bytes(made[burst.l4_at + 6 : burst.l4_at + 8], "big")
        assert field == (0xFFFF - naive_sum(rest.to_bytes(2, "big") + word.to_bytes(2, "big")) or 0xFFFF)


@given(bursts())
def test_hidden_octets_are_in_no_segment(burst: Burst) -> None:
    runs = split_untrusted(
        burst.header, memoryview(bytearray(burst.whole)), prefix=b"", payload_max=AMPLE, hidden=14
    )
    assert isinstance(runs, list)
    sent = b"".join(b"".join(run.buffers) for run in runs)
    assert sent == b"".join(frame[14:] for frame in burst.segments)
    assert {run.segment_size for run in runs} == {len(burst.segments[0]) - 14}


def test_hidden_octets_do_not_count_for_what_the_path_carries() -> None:
    burst = Burst(octets=3000, size=1000)
    length = len(burst.segments[0])
    for payload_max, fits in ((length - 14, True), (length - 15, False)):
        runs = split_untrusted(
            burst.header,
            memoryview(bytearray(burst.whole)),
            prefix=b"",
            payload_max=payload_max,
            hidden=14,
        )
        assert (runs is not DropReason.MTU_EXCEEDED) is fits


# --- Frames that stay whole -----------------------------------------------------------------------------


@pytest.mark.parametrize("frame", [arp_request(), tcp4(b"x" * 999), b"", b"x"])
def test_a_plain_frame_is_finished_and_no_super_frame(frame: bytes) -> None:
    for header in (PLAIN, b"\x02" + PLAIN[1:]):  # DATA_VALID says the checksum is right
        left = bytearray(frame)
        assert finish_untrusted(header, memoryview(left))
        assert left == frame
        assert split(header, frame) is DropReason.INNER_MALFORMED


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [6, 17])
@pytest.mark.parametrize("octets", [0, 1, 2, 479, 480, 481, 482, 1397, 1398])
def test_a_missing_checksum_is_the_one_scapy_computes(version: int, protocol: int, octets: int) -> None:
    burst = Burst(version, protocol, octets=octets, size=2000)
    frame = bytearray(burst.whole)
    assert finish_untrusted(burst.header[:1] + bytes(5) + burst.header[6:], memoryview(frame))
    assert [frame] == burst.segments


def test_a_missing_checksum_that_is_zero_is_sent_as_its_other_face() -> None:
    frame = bytearray(bytes(14) + b"\xff\xff" + bytes(20))
    assert finish_untrusted(struct.pack("=BBHHHH", 1, 0, 0, 0, 14, 4), memoryview(frame))
    assert frame[18:20] == b"\xff\xff"


@given(st.integers(0, 700), st.integers(0, 65535) | st.integers(0, 700), st.binary(max_size=600))
def test_a_checksum_is_finished_where_it_has_a_place_and_nothing_else_changes(
    start: int, offset: int, octets: bytes
) -> None:
    frame, at = bytearray(octets), start + offset
    is_finished = finish_untrusted(struct.pack("=BBHHHH", 1, 0, 0, 0, start, offset), memoryview(frame))
    assert is_finished == (at + 2 <= len(frame))
    expected = (0xFFFF - naive_sum(octets[start:]) or 0xFFFF).to_bytes(2, "big")
    assert frame == (octets[:at] + expected + octets[at + 2 :] if is_finished else octets)


@given(header=st.binary(max_size=9))
def test_a_truncated_virtio_header_finishes_nothing(header: bytes) -> None:
    frame = bytearray(range(100))
    assert not finish_untrusted(header, memoryview(frame))
    assert frame == bytes(range(100))


# --- The path's MTU -------------------------------------------------------------------------------------


@given(bursts(octets=st.integers(1, 5)))
def test_segments_too_long_for_the_path_are_named_so(burst: Burst) -> None:
    longest = len(PREFIX) + max(map(len, burst.segments))
    assert isinstance(split(burst.header, burst.whole, payload_max=longest), list)
    assert split(burst.header, burst.whole, payload_max=longest - 1) is DropReason.MTU_EXCEEDED


# --- Lies -----------------------------------------------------------------------------------------------

KINDS = [Burst(), Burst(6), Burst(4, 17), Burst(6, 17), Burst(tags=(7,)), Burst(6, ip_options=2)]


def changed(octets: bytes, at: int, value: bytes) -> bytes:
    return octets[:at] + value + octets[at + len(value) :]


@pytest.mark.parametrize("burst", KINDS)
@pytest.mark.parametrize("extra", [-1, 1])
def test_a_length_that_is_not_the_frames_is_malformed(burst: Burst, extra: int) -> None:
    frame = burst.whole[:-1] if extra < 0 else burst.whole + b"\0"
    assert split(burst.header, frame) is DropReason.INNER_MALFORMED


@pytest.mark.parametrize("burst", KINDS)
def test_every_truncated_super_frame_is_malformed(burst: Burst) -> None:
    for length in range(burst.headers + 1):
        assert split(burst.header, burst.whole[:length]) is DropReason.INNER_MALFORMED


@pytest.mark.parametrize("burst", KINDS)
def test_a_checksum_start_that_is_not_the_transport_header_is_malformed(burst: Burst) -> None:
    for start in {*range(100), 65535} - {burst.l4_at}:
        header = changed(burst.header, 6, struct.pack("=H", start))
        assert split(header, burst.whole) is DropReason.INNER_MALFORMED, start


def test_an_ipv4_header_longer_than_there_is_one_is_malformed() -> None:
    burst = Burst()
    start = 14 + 0x45 * 4  # whose length in words has the bits of version 4 and five words
    frame = changed(burst.whole, start + 12, b"\x50")
    header = changed(burst.header, 6, struct.pack("=H", start))
    assert split(header, frame) is DropReason.INNER_MALFORMED


@pytest.mark.parametrize("burst", KINDS)
def test_a_header_that_contradicts_itself_is_malformed(burst: Burst) -> None:
    flags, kind, hdr_len, size, start, offset = struct.unpack("=BBHHHH", burst.header)
    right = {kind} if burst.protocol == 17 else {kind, kind | ECN}
    lies = [(flags, other, hdr_len, size, start, offset) for other in {*range(1, 256)} - right]
    lies += [(0, kind, hdr_len, size, start, offset), (2, kind, hdr_len, size, start, offset)]
    lies += [(flags, kind, hdr_len, 0, start, offset), (flags, kind, hdr_len, size, start, offset ^ 2)]
    for lie in lies:
        assert split(struct.pack("=BBHHHH", *lie), burst.whole) is DropReason.INNER_MALFORMED, lie
    for length in range(10):
        assert split(burst.header[:length], burst.whole) is DropReason.INNER_MALFORMED


@pytest.mark.parametrize("burst", KINDS)
@given(hdr_len=st.integers(0, 65535))
def test_the_kernels_header_length_is_not_believed(burst: Burst, hdr_len: int) -> None:
    header = changed(burst.header, 2, struct.pack("=H", hdr_len))
    assert segments_of(split(header, burst.whole)) == burst.segments


@pytest.mark.parametrize("burst", [Burst(octets=30), Burst(6, octets=30)])
@pytest.mark.parametrize("offset", [*range(5), 15])
def test_a_tcp_data_offset_outside_of_its_segment_is_malformed(burst: Burst, offset: int) -> None:
    frame = changed(burst.whole, burst.l4_at + 12, bytes([offset << 4]))
    assert split(burst.header, frame) is DropReason.INNER_MALFORMED


@pytest.mark.parametrize("fragment", [b"\x20\x00", b"\x00\x01", b"\x1f\xff"])
@pytest.mark.parametrize("burst", [Burst(), Burst(4, 17)])
def test_a_fragment_is_no_super_frame(burst: Burst, fragment: bytes) -> None:
    assert split(burst.header, changed(burst.whole, 20, fragment)) is DropReason.INNER_MALFORMED


def test_an_ipv6_fragment_is_no_super_frame() -> None:
    burst = Burst(6, ip_options=1)
    assert isinstance(split(burst.header, burst.whole), list)
    assert split(burst.header, changed(burst.whole, 20, b"\x2c")) is DropReason.INNER_MALFORMED


@pytest.mark.parametrize("burst", KINDS)
def test_another_protocol_is_no_super_frame(burst: Burst) -> None:
    at = 14 + 4 * len(burst.tags) + (9 if burst.version == 4 else 6)
    assert split(burst.header, changed(burst.whole, at, b"\x84")) is DropReason.INNER_MALFORMED
    version_at = 14 + 4 * len(burst.tags)
    assert split(burst.header, changed(burst.whole, version_at, b"\x55")) is DropReason.INNER_MALFORMED
    assert (
        split(burst.header, changed(burst.whole, version_at - 2, b"\x88\xcc")) is DropReason.INNER_MALFORMED
    )


def test_segments_of_one_octet_are_carried_while_they_are_few() -> None:
    burst = Burst(octets=SUPER_SEGMENTS_MAX, size=1)
    assert len(segments_of(split(burst.header, burst.whole))) == SUPER_SEGMENTS_MAX
    burst = replace(burst, octets=SUPER_SEGMENTS_MAX + 1)
    assert split(burst.header, burst.whole) is DropReason.INNER_MALFORMED


def test_a_stack_of_tags_without_end_is_malformed() -> None:
    burst = Burst()
    frame = burst.whole[:12] + b"\x81\x00\x00\x07" * 20 + burst.whole[12:]
    header = changed(burst.header, 6, struct.pack("=H", burst.l4_at + 80))
    assert split(header, frame) is DropReason.INNER_MALFORMED


kinds = st.sampled_from([0, TCPV4, TCPV6, UDP_L4, TCPV4 | ECN, TCPV6 | ECN]) | st.integers(0, 255)
headers = st.builds(
    lambda *fields: struct.pack("=BBHHHH", *fields),
    st.integers(0, 3),
    kinds,
    st.integers(0, 65535),
    st.integers(0, 2000),
    st.integers(0, 120),
    st.sampled_from([6, 16]),
)


@given(headers | st.binary(max_size=12), st.binary(max_size=300), st.integers(0, 2000))
def test_any_octets_are_runs_or_a_named_drop(header: bytes, frame: bytes, payload_max: int) -> None:
    assert_carried_or_named(split(header, frame, payload_max=payload_max), payload_max)


@given(bursts(), st.data(), st.integers(0, 2000))
def test_any_change_to_a_super_frame_gives_runs_or_a_named_drop(
    burst: Burst, data: st.DataObject, payload_max: int
) -> None:
    frame, header = bytearray(burst.whole), bytearray(burst.header)
    for _ in range(data.draw(st.integers(1, 3))):
        which = data.draw(st.sampled_from([frame, header]))
        at = data.draw(st.integers(0, min(len(which), burst.headers + 2) - 1))
        which[at] = data.draw(st.integers(0, 255))
    assert_carried_or_named(split(bytes(header), bytes(frame), payload_max=payload_max), payload_max)


def assert_carried_or_named(runs: list[Run] | DropReason, payload_max: int) -> None:
    if isinstance(runs, DropReason):
        assert runs in (DropReason.INNER_MALFORMED, DropReason.MTU_EXCEEDED)
    else:
        assert all(run.segment_size <= payload_max for run in runs)
        segments_of(runs)
