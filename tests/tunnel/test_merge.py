"""Merge: what split cut apart is one frame again, what does not belong together stays apart and in order."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from support.frames import arp_request, echo4, naive_sum, tcp4, udp4, unfinished
from support.super_frames import ECN, Burst, bursts

from overlay.verdict import DropReason
from tunnel.merge import TUNNEL_PORTS, Lost, Write, count_open_untrusted, merge_untrusted
from tunnel.offload import GSO_NONE, PLAIN, SEGMENTS_MAX, repair_untrusted
from tunnel.split import finish_untrusted, split_untrusted

MTU = 1450
LONG = 1 << 16  # an MTU that is never in the way

MERGED = Burst(octets=3000, size=1000)
KINDS = {
    "tcp4": MERGED,
    "tcp6": replace(MERGED, version=6),
    "udp4": replace(MERGED, protocol=17),
    "udp6": replace(MERGED, version=6, protocol=17),
    "tagged": replace(MERGED, tags=(100, 7)),
    "timestamps": replace(MERGED, tcp_options=1),
}


def merge(frames: list[bytes], *, mtu: int = MTU, udp: bool = True) -> list[Write | Lost]:
    views = [memoryview(frame) for frame in frames]
    return merge_untrusted(views, overlay_mtu=mtu, udp=udp)


def count_open(frames: list[bytes], *, mtu: int = MTU) -> int:
    return count_open_untrusted([memoryview(frame) for frame in frames], overlay_mtu=mtu)


def octets(write: Write | Lost) -> bytes:
    assert isinstance(write, Write)
    return b"".join(write.buffers)


def segments_of(write: Write | Lost) -> list[bytes]:
    """What the host makes of it when it has to send it on."""
    assert isinstance(write, Write)
    frame = memoryview(bytearray(octets(write)))
    if write.header[1] == GSO_NONE:
        assert finish_untrusted(write.header, frame)
        return [bytes(frame)]
    runs = split_untrusted(write.header, frame, prefix=b"", payload_max=1 << 16)
    assert isinstance(runs, list)
    buffers = [buffer for run in runs for buffer in run.buffers]
    return [bytes(head) + bytes(rest) for head, rest in zip(buffers[::2], buffers[1::2], strict=True)]


def counts(writes: list[Write | Lost]) -> list[int]:
    return [write.frames if isinstance(write, Write) else 0 for write in writes]


def changed(frame: bytes, at: int, value: bytes) -> bytes:
    return frame[:at] + value + frame[at + len(value) :]


def half(segment: bytes, burst: Burst) -> bytes:
    """The segment with its checksum left to a card."""
    addresses = segment[burst.l4_at - (8 if burst.version == 4 else 32) : burst.l4_at]
    return unfinished(segment, l4_at=burst.l4_at, protocol=burst.protocol, addresses=addresses)


# --- Merge and split ------------------------------------------------------------------------------------


@given(bursts(flags=st.sampled_from(["A", "PA"])))
def test_split_after_merge_is_the_identity(burst: Burst) -> None:
    frames = burst.segments
    written = [frame for write in merge(frames, mtu=LONG) for frame in segments_of(write)]
    assert written == frames


@given(bursts(flags=st.sampled_from(["A", "PA"]), ip_options=st.just(0), octets=st.integers(2, 64)))
def test_merge_after_split_is_the_identity(burst: Burst) -> None:
    assume(burst.headers + burst.size > 66)
    assume(burst.dport not in TUNNEL_PORTS)
    frames = burst.segments
    assume(len(frames) <= SEGMENTS_MAX)
    (write,) = merge(frames, mtu=LONG)
    assert isinstance(write, Write)
    assert (write.header, octets(write)) == (burst.header, burst.whole)
    assert write.frames == len(frames)


@pytest.mark.parametrize("name", KINDS)
def test_scapy_reads_a_merged_frame_as_one_packet(name: str) -> None:
    burst = KINDS[name]
    (write,) = merge(burst.segments)
    packet: Any = Ether(octets(write))
    transport = packet[TCP if burst.protocol == 6 else UDP]
    assert bytes(transport.payload) == burst.payload
    if burst.version == 4:
        assert packet[IP].len == len(packet[IP])
        assert naive_sum(octets(write)[burst.l4_at - 20 : burst.l4_at]) == 0xFFFF
    else:
        assert packet[IPv6].plen == len(packet[IPv6]) - 40
    if burst.protocol == 17:
        assert transport.len == len(transport)


def test_the_payload_is_not_copied() -> None:
    views = [memoryview(bytearray(frame)) for frame in MERGED.segments]
    (write,) = merge_untrusted(views, overlay_mtu=MTU, udp=True)
    assert isinstance(write, Write)
    assert [buffer.obj for buffer in write.buffers[1:] if isinstance(buffer, memoryview)] == [
        view.obj for view in views
    ]


def test_a_frame_alone_is_written_as_repair_says() -> None:
    for frame in (MERGED.segments[0], MERGED.whole, arp_request(), b"", half(MERGED.segments[0], MERGED)):
        header = repair_untrusted(frame, overlay_mtu=MTU)
        (write,) = merge([frame])
        assert isinstance(write, Write)
        assert (write.header, octets(write), write.frames) == (header, frame, 1)


def test_nothing_gives_nothing() -> None:
    assert merge([]) == []


# --- Where a run ends -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_more_than_sixty_four_segments_are_two_writes(name: str) -> None:
    burst = replace(KINDS[name], octets=100 * 50, size=50)
    writes = merge(burst.segments)
    assert counts(writes) == [64, 36]
    assert [frame for write in writes for frame in segments_of(write)] == burst.segments


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", [1400, 8000, 32000, 60000])
def test_a_write_is_never_longer_than_a_packet(name: str, size: int) -> None:
    burst = replace(KINDS[name], octets=140000, size=size)
    writes = merge(burst.segments, mtu=LONG)
    network_at = 14 + 4 * len(burst.tags)
    assert all(len(octets(write)) - network_at <= 65535 for write in writes)
    room = (65535 - (burst.headers - network_at)) // size
    assert counts(writes)[0] == min(room, len(burst.segments))


@pytest.mark.parametrize("name", KINDS)
def test_a_shorter_segment_ends_the_run(name: str) -> None:
    burst = KINDS[name]
    first, second = replace(burst, octets=1500), replace(burst, sequence=1600, identification=9, octets=2000)
    assert counts(merge(first.segments + second.segments)) == [2, 2]


@pytest.mark.parametrize("name", KINDS)
def test_a_longer_segment_starts_another_run(name: str) -> None:
    burst = KINDS[name]
    short = replace(burst, octets=500, size=500)
    long = replace(burst, sequence=600, identification=8)
    assert counts(merge(short.segments + long.segments)) == [1, 3]


def test_psh_ends_the_run_and_is_kept() -> None:
    first, second = replace(MERGED, flags="PA"), replace(MERGED, sequence=3100, identification=10)
    writes = merge(first.segments + second.segments)
    assert counts(writes) == [3, 3]
    assert [octets(write)[47] for write in writes] == [0x18, 0x10]


def test_a_pushed_segment_starts_no_run() -> None:
    frames = [*replace(MERGED, octets=1000, flags="PA").segments]
    frames += replace(MERGED, sequence=1100, identification=8).segments
    assert counts(merge(frames)) == [1, 3]


@pytest.mark.parametrize("flags", ["S", "SA", "FA", "FPA", "RA", "UA", "EA", "CA", "", "P"])
def test_other_flags_are_not_merged(flags: str) -> None:
    frames = MERGED.segments
    frames[1] = replace(MERGED, flags=flags).frame(1000, 2000, 1, flags)
    assert counts(merge(frames)) == [1, 1, 1]


def test_an_acknowledgment_without_payload_stays_in_its_place() -> None:
    frames = replace(MERGED, octets=4000).segments
    ack = MERGED.frame(0, 0, 2, "A")
    writes = merge([*frames[:2], ack, *frames[2:]])
    assert counts(writes) == [2, 1, 2]
    assert octets(writes[1]) == ack


# --- What has to be equal -------------------------------------------------------------------------------


def repaired(frame: bytes) -> bytes:
    """The frame with all of its checksums right again, by scapy."""
    packet: Any = Ether(frame)
    for layer, field in ((IP, "chksum"), (TCP, "chksum"), (UDP, "chksum")):
        if layer in packet:
            delattr(packet[layer], field)
    return bytes(packet)


DIFFERENCES4 = {  # from the IP header's first octet
    "tos": (1, b"\x02"),
    "ttl": (8, b"\x3f"),
    "df": (6, b"\x00"),
    "source": (15, b"\x09"),
    "destination": (19, b"\x09"),
}
DIFFERENCES6 = {
    "traffic class": (0, b"\x61"),
    "flow label": (3, b"\x01"),
    "hop limit": (7, b"\x3f"),
    "source": (23, b"\x09"),
    "destination": (39, b"\x09"),
}
DIFFERENCES_TCP = {  # from the transport header's first octet
    "source port": (0, b"\x11"),
    "destination port": (2, b"\x11"),
    "acknowledgment": (11, b"\x0a"),
    "window": (14, b"\x00"),
    "urgent pointer": (18, b"\x01"),
    "option": (27, b"\x63"),
    "sequence gap": (7, b"\xff"),
}


def cases() -> list[Any]:
    found = []
    for version, differences in ((4, DIFFERENCES4), (6, DIFFERENCES6)):
        for protocol in (6, 17):
            burst = Burst(version, protocol, octets=3000, tcp_options=1)
            network = {name: (14 + at, value) for name, (at, value) in differences.items()}
            transport = {name: (burst.l4_at + at, value) for name, (at, value) in DIFFERENCES_TCP.items()}
            if protocol == 17:
                transport = {name: transport[name] for name in ("source port", "destination port")}
            for name, (at, value) in {"mac": (11, b"\x77"), **network, **transport}.items():
                found.append(pytest.param(burst, at, value, id=f"{version}-{protocol}-{name}"))
    return found


@pytest.mark.parametrize(("burst", "at", "value"), cases())
@pytest.mark.parametrize("last_is_short", [False, True])
def test_a_difference_keeps_segments_apart(burst: Burst, at: int, value: bytes, last_is_short: bool) -> None:
    burst = replace(burst, octets=1500 if last_is_short else 2000)
    frames = burst.segments
    assert counts(merge(frames)) == [2]
    frames[1] = repaired(changed(frames[1], at, value))
    assert frames[1] != burst.segments[1]
    writes = merge(frames)
    assert counts(writes) == [1, 1]
    assert [octets(write) for write in writes] == frames


def test_other_options_of_the_same_length_keep_segments_apart() -> None:
    burst = replace(MERGED, tcp_options=1)
    frames = burst.segments
    frames[1] = repaired(changed(frames[1], 62, b"\x01\x02\x03\x04"))
    assert counts(merge(frames)) == [1, 1, 1]


@pytest.mark.parametrize("may_fragment", [False, True])
@pytest.mark.parametrize("steps", [(0, 0), (0, 1), (1, 0), (1, 2), (2, 2)])
def test_identifications_go_up_or_with_df_stay(may_fragment: bool, steps: tuple[int, int]) -> None:
    burst = replace(MERGED, may_fragment=may_fragment)
    starts = (0, steps[0] - 1, sum(steps) - 2)
    frames = [
        replace(burst, identification=7 + start).frame(1000 * i, 1000 * (i + 1), i, "A")
        for i, start in enumerate(starts)
    ]
    with_df = {(0, 0): [3], (0, 1): [2, 1], (1, 0): [2, 1], (1, 2): [2, 1], (2, 2): [1, 1, 1]}
    without = {(0, 0): [1, 1, 1], (0, 1): [1, 2], (1, 0): [2, 1], (1, 2): [2, 1], (2, 2): [1, 1, 1]}
    assert counts(merge(frames)) == (without if may_fragment else with_df)[steps]


def test_identifications_and_sequence_numbers_wrap_around() -> None:
    burst = replace(MERGED, identification=0xFFFF, sequence=0xFFFFFFFF)
    assert counts(merge(burst.segments)) == [3]


@pytest.mark.parametrize("overlap", [-1, 1, -1000])
def test_overlaps_and_gaps_are_not_merged(overlap: int) -> None:
    frames = MERGED.segments
    frames[1] = replace(MERGED, sequence=100 + overlap).frame(1000, 2000, 1, "A")
    writes = merge(frames)
    assert counts(writes) == [1, 1, 1]
    assert [octets(write) for write in writes] == frames


# --- What is never merged -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_wrong_checksum_is_written_as_it_came(name: str, which: int) -> None:
    burst = KINDS[name]
    frames = burst.segments
    frames[which] = changed(frames[which], -1 % len(frames[which]), bytes([frames[which][-1] ^ 1]))
    writes = merge(frames)
    assert counts(writes) == {0: [1, 2], 1: [1, 1, 1], 2: [2, 1]}[which]
    bad = writes[min(which, 1 if which == 2 else which)]
    assert (bad.header, octets(bad)) == (PLAIN, frames[which])  # type: ignore[union-attr]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_wrong_ipv4_checksum_is_written_as_it_came(which: int) -> None:
    frames = MERGED.segments
    frames[which] = changed(frames[which], 24, bytes([frames[which][24] ^ 1]))
    assert counts(merge(frames)) == {0: [1, 2], 1: [1, 1, 1], 2: [2, 1]}[which]


def test_a_wrong_checksum_far_into_a_run_ends_it_there() -> None:
    burst = replace(MERGED, octets=60 * 100, size=100)
    frames = burst.segments
    frames[40] = changed(frames[40], 60, bytes([frames[40][60] ^ 1]))
    writes = merge(frames)
    assert counts(writes) == [40, 1, 19]
    assert octets(writes[1]) == frames[40]


@given(st.integers(0, 99), st.integers(1, 255))
def test_errors_that_cancel_out_across_segments_are_seen(at: int, error: int) -> None:
    frames = replace(MERGED, octets=200, size=100).segments
    at += MERGED.headers
    assume(frames[0][at] + error <= 255 and frames[1][at] - error >= 0)
    frames[0] = changed(frames[0], at, bytes([frames[0][at] + error]))
    frames[1] = changed(frames[1], at, bytes([frames[1][at] - error]))
    assert counts(merge(frames)) == [1, 1]


def test_udp_without_a_checksum_is_not_merged() -> None:
    burst = KINDS["udp4"]
    frames = [changed(frame, 40, b"\0\0") for frame in burst.segments]
    assert counts(merge(frames)) == [1, 1, 1]


def test_udp_whose_missing_checksum_would_be_zero_is_not_merged() -> None:
    burst = KINDS["udp4"]
    frames = []
    for segment in burst.segments:
        frame = segment[:40] + b"\0\0" + segment[42:-2] + b"\0\0"
        pseudo = frame[26:34] + bytes([0, 17]) + (len(frame) - 34).to_bytes(2, "big")
        frames.append(frame[:-2] + (0xFFFF - naive_sum(pseudo + frame[34:])).to_bytes(2, "big"))
    assert counts(merge([changed(frame, 40, b"\xff\xff") for frame in frames])) == [3]
    assert counts(merge(frames)) == [1, 1, 1]


@pytest.mark.parametrize("port", sorted(TUNNEL_PORTS))
@pytest.mark.parametrize("version", [4, 6])
def test_encapsulated_frames_are_not_merged(port: int, version: int) -> None:
    burst = replace(KINDS["udp4"], version=version, dport=port)
    assert counts(merge(burst.segments)) == [1, 1, 1]
    assert counts(merge(replace(burst, dport=7, sport=port).segments)) == [3]


@pytest.mark.parametrize("name", KINDS)
def test_udp_is_merged_only_where_the_host_takes_it(name: str) -> None:
    assert counts(merge(KINDS[name].segments, udp=False)) == ([1, 1, 1] if name.startswith("udp") else [3])


@pytest.mark.parametrize("fragment", [b"\x20\x00", b"\x00\x01", b"\x1f\xff"])
def test_fragments_are_not_merged(fragment: bytes) -> None:
    frames = [repaired(changed(frame, 20, fragment)) for frame in MERGED.segments]
    writes = merge(frames)
    assert [octets(write) for write in writes] == frames


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [6, 17])
def test_options_and_extension_headers_are_not_merged(version: int, protocol: int) -> None:
    frames = Burst(version, protocol, ip_options=1).segments
    assert counts(merge(frames)) == [1, 1, 1]


@pytest.mark.parametrize("name", KINDS)
def test_a_frame_longer_than_the_mtu_is_not_merged(name: str) -> None:
    burst = KINDS[name]
    packet = len(burst.segments[0]) - 14 - 4 * len(burst.tags)
    assert counts(merge(burst.segments, mtu=packet)) == [3]
    assert counts(merge(burst.segments, mtu=packet - 1)) == [1, 1, 1]


@pytest.mark.parametrize("name", KINDS)
def test_padding_keeps_segments_apart(name: str) -> None:
    frames = [frame + b"\0\0" for frame in KINDS[name].segments]
    assert counts(merge(frames)) == [1, 1, 1]


@pytest.mark.parametrize("offset", [0, 4, 15])
def test_a_tcp_data_offset_outside_of_its_segment_is_not_merged(offset: int) -> None:
    frames = [
        changed(frame, 46, bytes([offset << 4])) for frame in replace(MERGED, octets=60, size=30).segments
    ]
    writes = merge([repaired(frame) for frame in frames])
    assert sum(counts(writes)) == 2
    assert counts(writes) == [1, 1]


def test_a_frame_repair_refuses_is_named() -> None:
    refused = changed(MERGED.whole, 46, b"\x10")
    frames = [MERGED.segments[0], refused, MERGED.segments[1]]
    writes = merge(frames)
    assert writes[1] == Lost(DropReason.INNER_MALFORMED, memoryview(refused))
    assert counts(writes) == [1, 0, 1]


# --- Unfinished checksums -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("length", [2000, 2500])
def test_unfinished_segments_are_merged_with_their_like(name: str, length: int) -> None:
    burst = replace(KINDS[name], octets=length)
    (write,) = merge([half(frame, burst) for frame in burst.segments])
    assert isinstance(write, Write)
    assert segments_of(write) == burst.segments


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("length", [2500, 3000])
def test_unfinished_segments_are_not_merged_with_finished_ones(name: str, which: int, length: int) -> None:
    burst = replace(KINDS[name], octets=length)
    frames = burst.segments
    frames[which] = half(frames[which], burst)
    writes = merge(frames)
    assert counts(writes) == {0: [1, 2], 1: [1, 1, 1], 2: [2, 1]}[which]
    mixed = [half(frame, burst) for frame in burst.segments]
    mixed[which] = burst.segments[which]
    assert counts(merge(mixed)) == {0: [1, 2], 1: [1, 1, 1], 2: [2, 1]}[which]


@pytest.mark.parametrize("name", ["tcp4", "tcp6", "tagged", "timestamps"])
@pytest.mark.parametrize("overlap", [-1, 1, -1000])
def test_unfinished_segments_overlap_no_more_than_others(name: str, overlap: int) -> None:
    burst = KINDS[name]
    frames = burst.segments
    frames[1] = replace(burst, sequence=100 + overlap).frame(1000, 2000, 1, "A")
    assert counts(merge([half(frame, burst) for frame in frames])) == [1, 1, 1]


# --- Flows ----------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from("abcd"), max_size=40))
def test_interleaved_flows_keep_their_order(order: list[str]) -> None:
    flows = {
        "a": iter(replace(MERGED, octets=40 * 50, size=50).segments),
        "b": iter(replace(MERGED, octets=40 * 50, size=50, sport=7).segments),
        "c": iter(replace(MERGED, octets=40 * 70, size=70, version=6, protocol=17).segments),
        "d": iter([arp_request(), echo4(b"x" * 60)] * 20),
    }
    frames = [next(flows[name]) for name in order]
    writes = merge(frames)
    assert sum(counts(writes)) == len(frames)
    written = [
        frame
        for write in writes
        for frame in (segments_of(write) if counts([write]) != [1] else [octets(write)])
    ]
    for name in "abcd":
        mine = [frame for frame, owner in zip(frames, order, strict=True) if owner == name]
        assert [frame for frame in written if frame in mine] == mine
    if "d" not in order:
        assert len(writes) == len(set(order))


def test_a_run_stands_where_its_first_segment_stood() -> None:
    other = replace(MERGED, sport=7)
    frames = [frame for pair in zip(MERGED.segments, other.segments, strict=True) for frame in pair]
    writes = merge(frames)
    assert counts(writes) == [3, 3]
    assert [segments_of(write) for write in writes] == [MERGED.segments, other.segments]


def test_what_has_no_flow_ends_every_run() -> None:
    frames = MERGED.segments
    for stranger in (arp_request(), echo4(b"x" * 60), b"", b"x" * 13, frames[0][:30]):
        writes = merge([*frames[:2], stranger, *frames[2:]])
        assert counts(writes) == [2, 1, 1]
        assert octets(writes[1]) == stranger


def test_runs_of_different_tags_are_apart() -> None:
    tagged, other = replace(MERGED, tags=(7,)), replace(MERGED, tags=(8,))
    frames = [tagged.segments[0], other.segments[1], tagged.segments[1]]
    assert counts(merge(frames)) == [1, 1, 1]


# --- Anything -------------------------------------------------------------------------------------------


def assert_accounted(frames: list[bytes], writes: list[Write | Lost]) -> None:
    """Every frame is in one place, and every payload octet too."""
    assert sum(1 if isinstance(write, Lost) else write.frames for write in writes) == len(frames)
    for write in writes:
        if isinstance(write, Lost):
            assert write.reason is DropReason.INNER_MALFORMED
        elif write.frames == 1:
            assert octets(write) in frames
        else:
            _, kind, headers, size, _, _ = struct.unpack("=BBHHHH", write.header)
            assert kind in (1, 4, 5)
            assert not kind & ECN
            assert (write.frames - 1) * size < len(octets(write)) - headers <= write.frames * size
            assert len(segments_of(write)) == write.frames


@given(st.lists(st.binary(max_size=120), max_size=8), st.booleans())
def test_any_octets_are_written_or_named(frames: list[bytes], udp: bool) -> None:
    assert_accounted(frames, merge(frames, mtu=60, udp=udp))


# ── What a later read may continue ──────────────────────────────────────────────────────────────────────


@given(
    bursts(protocol=st.just(6), flags=st.sampled_from(["A", "PA", "FA", "FPA"]), octets=st.integers(2, 70)),
    st.integers(1, SEGMENTS_MAX - 1),
)
def test_a_burst_that_comes_in_two_parts_is_written_as_if_it_were_one(burst: Burst, cut: int) -> None:
    assume(burst.headers + burst.size > 66)
    frames = burst.segments
    assume(cut < len(frames))
    ready = cut - count_open(frames[:cut], mtu=LONG)
    assert merge(frames[:ready], mtu=LONG) + merge(frames[ready:], mtu=LONG) == merge(frames, mtu=LONG)


SEGMENTS = replace(MERGED, octets=5000).segments
OTHERS = replace(MERGED, sport=7, flags="PA").segments


@pytest.mark.parametrize(
    ("frames", "count"),
    [
        pytest.param(SEGMENTS, 5, id="segments"),
        pytest.param(SEGMENTS[:1], 1, id="one"),
        pytest.param([udp4(b"x" * 2000), *SEGMENTS], 0, id="behind a longer one, whatever it is"),
        pytest.param([*replace(MERGED, flags="PA").segments, *SEGMENTS], 5, id="behind one that is pushed"),
        pytest.param(replace(MERGED, flags="PA").segments, 0, id="the last one pushed"),
        pytest.param(replace(MERGED, octets=2500).segments, 0, id="the last one shorter"),
        pytest.param(replace(MERGED, flags="FA").segments, 0, id="no more to come"),
        pytest.param(replace(MERGED, protocol=17).segments, 0, id="UDP"),
        pytest.param([tcp4()], 0, id="an acknowledgment"),
        pytest.param([arp_request()], 0, id="no IP"),
        pytest.param(replace(MERGED, octets=1000 * 64).segments, 0, id="what fills a write waits no longer"),
        pytest.param([*OTHERS, *SEGMENTS], 0, id="behind another connection's"),
        pytest.param([*SEGMENTS[:2], *OTHERS[:1], *SEGMENTS[2:]], 0, id="another connection's among them"),
        pytest.param(
            [*SEGMENTS[:2], tcp4(sport=7), *SEGMENTS[2:]], 0, id="another's acknowledgment among them"
        ),
        pytest.param([*SEGMENTS[:2], tcp4(), *SEGMENTS[2:]], 3, id="their own ends what was before"),
        pytest.param(replace(MERGED, octets=1000 * 66).segments, 0, id="nor what is behind that"),
        pytest.param([], 0, id="nothing"),
    ],
)
def test_segments_are_open_for_more(frames: list[bytes], count: int) -> None:
    assert count_open(frames) == count


@given(st.lists(st.sampled_from("aAbB"), min_size=2, max_size=24), st.integers(1, 23))
def test_to_wait_makes_no_more_writes(order: list[str], cut: int) -> None:
    """Two connections, of which a capital is a segment that is pushed."""
    sequences = {"a": 100, "b": 5000}
    frames = []
    for each in order:
        name, flags = each.lower(), "PA" if each.isupper() else "A"
        burst = replace(MERGED, octets=100, size=100, sport=ord(name), flags=flags, sequence=sequences[name])
        sequences[name] += 100
        frames += burst.segments
    ready = len(frames[:cut]) - count_open(frames[:cut])
    waiting = len(merge(frames[:ready])) + len(merge(frames[ready:]))
    assert waiting <= len(merge(frames[:cut])) + len(merge(frames[cut:]))


@given(st.lists(st.binary(max_size=120), max_size=8))
def test_of_any_octets_no_more_are_open_than_there_are(frames: list[bytes]) -> None:
    assert 0 <= count_open(frames, mtu=60) <= len(frames)


@given(bursts(octets=st.integers(1, 20), size=st.sampled_from([1, 60, 100])), st.data())
def test_any_changes_to_segments_are_written_or_named(burst: Burst, data: st.DataObject) -> None:
    frames = [bytearray(frame) for frame in burst.segments]
    for _ in range(data.draw(st.integers(0, 3))):
        frame = data.draw(st.sampled_from(frames))
        frame[data.draw(st.integers(0, min(len(frame), burst.headers + 4) - 1))] = data.draw(
            st.integers(0, 255)
        )
    mixed = [bytes(frame) for frame in data.draw(st.permutations(frames))]
    assert_accounted(mixed, merge(mixed, mtu=data.draw(st.sampled_from([100, MTU, LONG]))))


@given(
    bursts(octets=st.integers(1, 10), size=st.sampled_from([60, 100]), may_fragment=st.just(True)), st.data()
)
def test_what_is_merged_is_what_came(burst: Burst, data: st.DataObject) -> None:
    # Checksums are made right after the change, so nothing but the rules keeps segments apart.  The change
    # may make one of them another flow's, which the others then overtake.
    frames = burst.segments
    which = data.draw(st.integers(0, len(frames) - 1))
    at = data.draw(st.integers(0, burst.headers + 4))
    frames[which] = repaired(changed(frames[which], at, bytes([data.draw(st.integers(0, 255))])))
    written = []
    for write in merge(frames):
        written += segments_of(write) if isinstance(write, Write) and write.frames > 1 else [octets(write)]
    assert sorted(written) == sorted(frames)


def test_a_short_datagram_of_a_few_octets_is_no_reason_to_fail() -> None:
    frames = [udp4(b"x", sport=1, dport=2)] * 5 + [tcp4(b"y")] * 5
    assert sum(counts(merge(frames))) == 10
