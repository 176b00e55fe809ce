"""Rung 1 on the way in: what one read gives is taken apart, each datagram judged, neighbours written as one.

`tests/tunnel/test_pydatapath.py` has what holds on every rung, `tests/tunnel/test_merge.py` what may be
merged.  Here it is what the engine makes of a run: who is in it, what is written, what is counted.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from support.doubles import (
    LOCAL,
    NETWORK,
    OURS_V6,
    PORT,
    REMOTE,
    STRANGER,
    VNI,
    VTEP_B,
    VTEP_C,
    VTEP_V6,
    Engine,
    MakeEngine,
    Watcher,
    frame,
    os_error,
)
from support.frames import IP4_A, IP4_B, MAC_A, MAC_B, arp_request, ether, udp4, unfinished
from support.pace import in_bursts
from support.super_frames import Burst

from bench.lab.wire import Datagram
from overlay.addr import IpAddress, Mac, Vni
from overlay.bridge import BridgePolicy
from overlay.fdb import Origin
from overlay.tables import NeighborReplace
from overlay.verdict import DropReason
from tunnel import ingress
from tunnel.carriage import READS_JOINED
from tunnel.interfaces import Point, Strictness
from tunnel.offload import PLAIN
from tunnel.vxlan import HEADER_LENGTH, build_header

HEADER = build_header(VNI)
BURST = Burst(octets=9500, size=1000)
BURSTS = {
    "tcp4": BURST,
    "tcp6": Burst(version=6, octets=9500, size=1000),
    "pushed": Burst(octets=9500, size=1000, flags="PA"),
    "udp4": Burst(protocol=17, octets=9500, size=1000),
    "udp6": Burst(version=6, protocol=17, octets=9500, size=1000),
    "tagged": Burst(octets=9500, size=1000, tags=(7,)),
    "64 segments": Burst(octets=64 * 900, size=900),
    "nothing left over": Burst(octets=9000, size=1000),
}
every_burst = pytest.mark.parametrize("burst", BURSTS.values(), ids=BURSTS)
STRIDE = HEADER_LENGTH + len(BURST.segments[0])

pytestmark = pytest.mark.usefixtures("pace")


def warm(make_engine: MakeEngine, **settings_: Any) -> Engine:
    """An engine that remembers the flow of `BURST`, from VTEP B, and has written nothing."""
    engine: Engine = make_engine(**settings_)
    sender = VTEP_V6 if engine.underlay.address.version == 6 else VTEP_B
    engine.from_underlay(udp4(b"first"), sender=sender)
    engine.device.written.clear()
    return engine


def read(engine: Engine, octets: bytes, stride: int, *, sender: IpAddress = VTEP_B, tos: int = 0) -> None:
    """One read gives these octets, with this `UDP_GRO` value where they are more."""
    arrive(engine, octets, stride, sender=sender, tos=tos)
    engine.settle()


def arrive(engine: Engine, octets: bytes, stride: int, *, sender: IpAddress = VTEP_B, tos: int = 0) -> None:
    """The same, and more may arrive before it is read."""
    underlay = next(own for own in engine.underlays if own.address.version == sender.version)
    for at in range(0, len(octets), stride):
        part = Datagram(sender, 50000, underlay.address, PORT, octets[at : at + stride], tos)
        underlay.ports[PORT].enqueue(part, merge=at > 0)


def run(engine: Engine, frames: Sequence[bytes], **how: Any) -> None:
    """One read gives the datagrams of these frames, of which none but the last may be shorter."""
    octets = b"".join(HEADER + each for each in frames)
    read(engine, octets, HEADER_LENGTH + len(frames[0]), **how)


# ── One write for many ──────────────────────────────────────────────────────────────────────────────────


@every_burst
def test_a_run_of_one_flow_is_written_as_the_frame_it_was(make_engine: MakeEngine, burst: Burst) -> None:
    engine = warm(make_engine)
    before = engine.statistics()
    run(engine, burst.segments)
    assert engine.device.written == [(burst.header, burst.whole)]
    after = engine.statistics()
    count = len(burst.segments)
    assert after.ledger.received - before.ledger.received == count
    assert after.ledger.delivered - before.ledger.delivered == count
    assert after.vteps[0].received_frames - before.vteps[0].received_frames == count
    assert after.vteps[0].received_octets - before.vteps[0].received_octets == sum(map(len, burst.segments))
    flow = engine.flow(burst.whole[:12])
    assert flow is not None
    assert flow.frames == 1 + count


def test_a_run_over_ipv6_is_too(make_engine: MakeEngine) -> None:
    engine = warm(make_engine, addresses=(OURS_V6,), vteps=(VTEP_V6,))
    run(engine, BURST.segments, sender=VTEP_V6)
    assert engine.device.written == [(BURST.header, BURST.whole)]


def between(destination: Mac, source: Mac, frames: Sequence[bytes]) -> list[bytes]:
    return [destination + source + each[12:] for each in frames]


def test_a_run_of_two_mac_pairs_is_two_writes(make_engine: MakeEngine) -> None:
    engine = warm(make_engine)
    first, second = replace(BURST, octets=3000), replace(BURST, octets=4000, sequence=900)
    others = between(LOCAL, REMOTE, second.segments)
    engine.from_underlay(frame(LOCAL, REMOTE))
    engine.device.written.clear()
    run(engine, first.segments + others)
    assert engine.device.written == [
        (first.header, first.whole),
        (second.header, between(LOCAL, REMOTE, [second.whole])[0]),
    ]


def test_runs_of_two_networks_reach_their_own_devices(make_engine: MakeEngine) -> None:
    engine = warm(make_engine)
    other = engine.add_network("other", 43, VTEP_B)
    engine.from_underlay(udp4(b"first"), vni=43)
    other.written.clear()
    first = replace(BURST, octets=3000)
    mine = b"".join(HEADER + each for each in first.segments)
    theirs = b"".join(build_header(Vni(43)) + each for each in first.segments)
    read(engine, mine + theirs, STRIDE)
    assert engine.device.written == other.written == [(first.header, first.whole)]


def test_a_run_of_a_new_flow_waits_and_keeps_its_order(make_engine: MakeEngine) -> None:
    engine = make_engine()
    run(engine, BURST.segments)
    assert engine.device.frames == BURST.segments
    assert engine.statistics().upcalls == 1


def test_a_run_decided_against_is_dropped_frame_by_frame(make_engine: MakeEngine) -> None:
    engine = warm(make_engine, vteps=(VTEP_B, VTEP_C))
    banned = between(Mac(b"\x02\x77\0\0\0\1"), REMOTE, BURST.segments)
    engine.bind(Mac(banned[0][:6]), VTEP_C)  # behind another VTEP: split horizon
    run(engine, banned)
    run(engine, banned)
    assert engine.drops_of(VTEP_B) == {DropReason.SPLIT_HORIZON: 2 * len(banned)}
    assert engine.device.written == []


# ── A run over several reads ────────────────────────────────────────────────────────────────────────────


def in_reads(engine: Engine, *groups: Sequence[bytes]) -> None:
    """One turn reads the datagrams of each group of frames in one read."""
    for frames in groups:
        arrive(engine, b"".join(HEADER + each for each in frames), HEADER_LENGTH + len(frames[0]))
    engine.settle()


EVERY_TCP_BURST = {name: burst for name, burst in BURSTS.items() if burst.protocol == 6}


@in_bursts
@pytest.mark.parametrize("burst", EVERY_TCP_BURST.values(), ids=EVERY_TCP_BURST)
@pytest.mark.parametrize("cut", [2, 5, -2, -1])
def test_segments_that_two_reads_bring_are_one_write(make_engine: MakeEngine, burst: Burst, cut: int) -> None:
    engine = warm(make_engine)
    in_reads(engine, burst.segments[:cut], burst.segments[cut:])
    assert engine.device.written == [(burst.header, burst.whole)]
    assert engine.statistics().ledger.delivered == 1 + len(burst.segments)


@in_bursts
def test_so_are_those_of_as_many_reads_as_have_room(make_engine: MakeEngine) -> None:
    engine = warm(make_engine)
    burst = Burst(octets=400 * 4 * (READS_JOINED + 2), size=400)
    reads = [burst.segments[at : at + 4] for at in range(0, len(burst.segments), 4)]
    in_reads(engine, *reads)
    joined, rest = engine.device.frames
    assert joined[burst.headers :] + rest[burst.headers :] == burst.payload
    assert len(joined) - burst.headers == 400 * 4 * READS_JOINED


@in_bursts
def test_a_write_that_is_full_is_followed_by_another(make_engine: MakeEngine) -> None:
    engine = warm(make_engine)
    burst = Burst(octets=70 * 800, size=800)
    in_reads(engine, burst.segments[:34], burst.segments[34:])
    assert [len(each) - burst.headers for each in engine.device.frames] == [64 * 800, 6 * 800]


@in_bursts
def test_what_a_sender_pushed_does_not_wait(make_engine: MakeEngine) -> None:
    engine = warm(make_engine)
    first = replace(BURST, octets=9000, flags="PA")
    second = replace(BURST, sequence=9100, identification=16, flags="PA")
    in_reads(engine, first.segments + second.segments[:4], second.segments[4:])
    assert engine.device.written == [(first.header, first.whole), (second.header, second.whole)]
    engine.device.written.clear()
    in_reads(engine, first.segments, second.segments)
    assert engine.device.written == [(first.header, first.whole), (second.header, second.whole)]


@in_bursts
def test_datagrams_of_udp_are_written_read_by_read(make_engine: MakeEngine) -> None:
    engine = warm(make_engine)
    burst = BURSTS["udp4"]
    in_reads(engine, burst.segments[:5], burst.segments[5:])
    assert [len(each) - burst.headers for each in engine.device.frames] == [5000, 4500]


def test_the_core_is_given_away_after_each_run_of_datagrams(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = warm(make_engine)
    written_when_given: list[int] = []
    monkeypatch.setattr(
        "tunnel.ingress.os.sched_yield", lambda: written_when_given.append(len(engine.device.written))
    )
    run(engine, [udp4(b"alone")])
    assert written_when_given == []
    run(engine, BURSTS["udp4"].segments)
    assert written_when_given == [2]


# Octets, sender, mark, and the place of what is written of them: a flow not known waits for its verdict.
BETWEEN = {
    "another flow": (HEADER + between(LOCAL, REMOTE, [udp4(b"another")])[0], VTEP_B, 0, 1),
    "a flow not known": (HEADER + between(LOCAL, MAC_B, [udp4(b"new")])[0], VTEP_B, 0, 2),
    "the same flow, marked": (HEADER + Burst(octets=900, tos=2).whole, VTEP_B, 3, 1),
    "garbage": (b"\0" * 60, VTEP_B, 0, None),
    "a stranger's": (HEADER + Burst(octets=900).whole, STRANGER, 0, None),
    "an acknowledgment": (HEADER + Burst(octets=0).whole, VTEP_B, 0, 1),
    "a super-frame": (HEADER + Burst(protocol=17, octets=9500).whole, VTEP_B, 0, 1),
}


@in_bursts
@pytest.mark.parametrize("other", BETWEEN.values(), ids=BETWEEN)
def test_what_arrives_between_stays_between(
    make_engine: MakeEngine, other: tuple[bytes, IpAddress, int, int | None]
) -> None:
    engine = warm(make_engine)
    engine.from_underlay(frame(LOCAL, REMOTE))
    engine.device.written.clear()
    burst = replace(BURST, octets=9000)
    octets, sender, tos, place = other
    arrive(engine, b"".join(HEADER + each for each in burst.segments[:5]), STRIDE)
    arrive(engine, octets, BURST.size, sender=sender, tos=tos)
    arrive(engine, b"".join(HEADER + each for each in burst.segments[5:]), STRIDE)
    engine.settle()
    expected = [burst.headers + 5000, burst.headers + 4000]
    if place is not None:
        expected.insert(place, len(octets) - HEADER_LENGTH)
    assert [len(each) for each in engine.device.frames] == expected
    assert engine.statistics().ledger.balances


@in_bursts
def test_what_is_longer_than_the_segments_that_wait_keeps_its_limit(make_engine: MakeEngine) -> None:
    engine = warm(make_engine)
    answer = TCP(flags="SA", options=[("MSS", 900)])  # behind our device a link is narrow
    engine.from_device(ether(IP(src=IP4_B, dst=IP4_A), answer, source=MAC_B, destination=MAC_A))
    engine.device.written.clear()
    whole = replace(BURST, octets=9000, sequence=BURST.sequence + 2000)
    in_reads(engine, BURST.segments[:2], [whole.whole])
    first, second = engine.device.written
    assert len(first[1]) == BURST.headers + 2000
    assert second[0] == replace(whole, size=900).header


@in_bursts
@pytest.mark.parametrize("last", ["by the clock", "by the reads"])
def test_nothing_waits_beyond_the_turn(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    engine = warm(make_engine)
    before, after = BURST.segments[:4], BURST.segments[4:]
    if last == "by the clock":
        monkeypatch.setattr(ingress, "TURN_SECONDS", 0.0)
    else:
        monkeypatch.setattr(ingress, "READS_PER_TURN", 1)
    in_reads(engine, before, after)
    assert [len(each) - BURST.headers for each in engine.device.frames] == [4000, 5500]


@in_bursts
def test_what_waits_is_carried_when_a_turn_breaks_off(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = warm(make_engine)
    port = engine.underlay.opened[PORT]
    arrive(engine, b"".join(HEADER + each for each in BURST.segments[:4]), STRIDE)
    receive = port.receive_into
    reads = iter([receive])

    def broken(*arguments: Any) -> Any:
        for read_ in reads:
            return read_(*arguments)
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(port, "receive_into", broken)
    with pytest.raises(RuntimeError):
        engine.settle()
    assert [len(each) - BURST.headers for each in engine.device.frames] == [4000]
    assert engine.statistics().ledger.balances


@in_bursts
def test_segments_of_another_network_between_are_its_own(make_engine: MakeEngine) -> None:
    engine = warm(make_engine)
    other = engine.add_network("other", 43, VTEP_B)
    engine.from_underlay(udp4(b"first"), vni=43)
    other.written.clear()
    burst = replace(BURST, octets=4000)
    for at in (0, 2):
        for header in (HEADER, build_header(Vni(43))):
            arrive(engine, b"".join(header + each for each in burst.segments[at : at + 2]), STRIDE)
    engine.settle()
    for device in (engine.device, other):
        assert [len(each) for _, each in device.written] == [2000 + burst.headers] * 2


# ── Strangers in a run ──────────────────────────────────────────────────────────────────────────────────

SEGMENTS = replace(BURST, octets=9000).segments
NO_FLAG = b"\0" + HEADER[1:]
RESERVED = HEADER[:-1] + b"\1"


@pytest.mark.parametrize(
    ("header", "network", "reason"),
    [
        pytest.param(NO_FLAG, None, DropReason.BAD_FLAGS, id="no I flag"),
        pytest.param(build_header(Vni(43)), None, DropReason.UNKNOWN_VNI, id="unknown VNI"),
        pytest.param(RESERVED, NETWORK, DropReason.RESERVED_BITS, id="reserved bit"),
    ],
)
@pytest.mark.parametrize("at", [0, 4, 8])
def test_garbage_within_a_run_is_lost_alone(
    make_engine: MakeEngine, header: bytes, network: Any, reason: DropReason, at: int
) -> None:
    engine = warm(make_engine, strictness=Strictness.LINUX)
    headers = [header if number == at else HEADER for number in range(len(SEGMENTS))]
    octets = b"".join(each + segment for each, segment in zip(headers, SEGMENTS, strict=True))
    read(engine, octets, STRIDE)
    assert engine.drops(network) == {reason: 1}
    assert engine.statistics().ledger.delivered == 1 + len(SEGMENTS) - 1
    # What stood before it and what stood behind are written; of each, as one.
    expected = [len(part) for part in (SEGMENTS[:at], SEGMENTS[at + 1 :]) if part]
    assert len(engine.device.written) == len(expected)


@pytest.mark.parametrize(
    ("header", "network", "reason"),
    [
        pytest.param(NO_FLAG, None, DropReason.BAD_FLAGS, id="no I flag"),
        pytest.param(RESERVED, NETWORK, DropReason.RESERVED_BITS, id="reserved bit"),
    ],
)
def test_a_run_of_nothing_but_garbage_is_lost_datagram_by_datagram(
    make_engine: MakeEngine, header: bytes, network: Any, reason: DropReason
) -> None:
    engine = warm(make_engine, strictness=Strictness.LINUX)
    read(engine, b"".join(header + segment for segment in SEGMENTS), STRIDE)
    assert engine.drops(network) == {reason: len(SEGMENTS)}
    assert engine.device.written == []


def test_a_reserved_bit_the_operator_ignores_is_delivered_in_its_place(make_engine: MakeEngine) -> None:
    engine = warm(make_engine)
    headers = [RESERVED if number == 4 else HEADER for number in range(len(SEGMENTS))]
    octets = b"".join(each + segment for each, segment in zip(headers, SEGMENTS, strict=True))
    read(engine, octets, STRIDE)
    assert [len(written) > len(SEGMENTS[0]) for written in engine.device.frames] == [True, False, True]
    assert engine.device.frames[1] == SEGMENTS[4]


@pytest.mark.parametrize("length", [1, 7, 8, 21])
def test_a_last_datagram_too_short_for_a_frame_is_lost_alone(make_engine: MakeEngine, length: int) -> None:
    engine = warm(make_engine)
    octets = b"".join(HEADER + segment for segment in SEGMENTS)
    read(engine, octets + HEADER + SEGMENTS[0], STRIDE)  # leaves its octets behind the next end
    engine.device.written.clear()
    read(engine, octets + (HEADER + SEGMENTS[0])[:length], STRIDE)
    whole = replace(BURST, octets=9000)
    assert engine.device.written == [(whole.header, whole.whole)]
    torn = {**engine.drops(), **engine.drops(None)}
    assert torn == {DropReason.TRUNCATED: 1}


@pytest.mark.parametrize("stride", [22, 23, 100, STRIDE - 1])
def test_a_stride_that_is_not_the_datagrams_is_judged_piece_by_piece(
    make_engine: MakeEngine, stride: int
) -> None:
    engine = warm(make_engine)
    octets = b"".join(HEADER + segment for segment in SEGMENTS[:2])
    read(engine, octets, stride)
    pieces = -(-len(octets) // stride)
    ledger = engine.statistics().ledger
    assert ledger.received == 1 + pieces
    assert ledger.balances
    run(engine, SEGMENTS)
    assert engine.device.frames[-1] == replace(BURST, octets=9000).whole


def test_an_unknown_sender_is_counted_for_each_datagram_and_asks_nothing(make_engine: MakeEngine) -> None:
    engine = warm(make_engine)
    run(engine, SEGMENTS, sender=STRANGER)
    assert engine.drops() == {DropReason.UNKNOWN_VTEP: len(SEGMENTS)}
    assert (engine.device.written, engine.statistics().upcalls) == ([], 1)


def test_a_segment_changed_on_the_way_is_written_alone_and_merges_with_none(make_engine: MakeEngine) -> None:
    engine = warm(make_engine)
    spoilt = SEGMENTS[4][:-1] + bytes([SEGMENTS[4][-1] ^ 1])
    run(engine, [*SEGMENTS[:4], spoilt, *SEGMENTS[5:]])
    assert (PLAIN, spoilt) in engine.device.written
    assert len(engine.device.written) == 3


def test_questions_within_a_run_are_asked_one_by_one(make_engine: MakeEngine) -> None:
    engine = make_engine(policy=BridgePolicy(NETWORK, LOCAL, suppress=True), suppresses=True)
    question = arp_request()
    engine.from_underlay(frame(question[:6], question[6:12]))  # no question: its flow is remembered
    engine.device.written.clear()
    upcalls = engine.statistics().upcalls
    run(engine, [question] * 5)
    assert engine.statistics().upcalls == upcalls + 5
    assert engine.device.frames == [question] * 5


def test_a_question_between_segments_is_asked_and_harms_none(make_engine: MakeEngine) -> None:
    engine = warm(make_engine, suppresses=True)
    upcalls = engine.statistics().upcalls
    question = arp_request().ljust(len(SEGMENTS[0]), b"\0")
    run(engine, [*SEGMENTS[:2], question, *SEGMENTS[2:]])
    assert engine.statistics().upcalls == upcalls + 1
    assert [len(written) for written in engine.device.frames] == [2054, 7054, len(question)]
    assert engine.device.frames[-1] == question


# ── Super-frames and marks ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("version", [4, 6])
def test_a_udp_super_frame_with_its_segment_size_is_one_frame_and_no_run(
    make_engine: MakeEngine, version: int
) -> None:
    engine = warm(make_engine)
    burst = Burst(version=version, protocol=17, octets=9500, size=1000)
    read(engine, HEADER + burst.whole, 1000)
    assert engine.device.written == [(burst.header, burst.whole)]
    assert engine.statistics().ledger.received == 2


def test_a_super_frame_of_a_new_flow_waits_with_its_segment_size(make_engine: MakeEngine) -> None:
    engine = make_engine()
    burst = Burst(protocol=17, octets=9500, size=1000)
    read(engine, HEADER + burst.whole, 1000)
    assert engine.device.written == [(burst.header, burst.whole)]


def test_unfinished_segments_are_written_as_one_that_is_to_be_finished(make_engine: MakeEngine) -> None:
    engine = warm(make_engine)
    addresses = BURST.whole[26:34]
    lacking = [unfinished(each, l4_at=34, protocol=6, addresses=addresses) for each in SEGMENTS]
    run(engine, lacking)
    whole = replace(BURST, octets=9000)
    assert engine.device.written == [(whole.header, whole.whole)]


def test_where_nothing_is_to_be_repaired_segments_are_written_as_they_are(make_engine: MakeEngine) -> None:
    engine = warm(make_engine, repairs=False)
    lacking = [unfinished(each, l4_at=34, protocol=6, addresses=BURST.whole[26:34]) for each in SEGMENTS]
    run(engine, lacking)
    run(engine, SEGMENTS)
    assert engine.device.written == [(PLAIN, each) for each in lacking + SEGMENTS]


def test_a_marked_run_marks_every_frame(make_engine: MakeEngine) -> None:
    engine = warm(make_engine)
    burst = replace(BURST, tos=2)
    run(engine, burst.segments, tos=3)
    marked = [Ether(each)[IP] for each in engine.device.frames]
    assert [packet.tos for packet in marked] == [3] * len(burst.segments)
    assert all(IP(bytes(packet)).chksum == packet.chksum for packet in marked)
    assert b"".join(bytes(packet[TCP].payload) for packet in marked) == burst.payload


def test_a_marked_run_that_heeds_no_mark_is_lost_frame_by_frame(make_engine: MakeEngine) -> None:
    engine = warm(make_engine)
    run(engine, SEGMENTS, tos=3)
    assert engine.drops_of(VTEP_B) == {DropReason.ECN_CONGESTED: len(SEGMENTS)}


# ── Writing, and watching ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EINVAL, DropReason.INNER_MALFORMED),
        (errno.EIO, DropReason.DEVICE_FULL),
        (errno.ENOBUFS, DropReason.DEVICE_FULL),
    ],
)
def test_a_write_refused_loses_every_frame_it_stood_for_and_no_rung(
    make_engine: MakeEngine, number: int, reason: DropReason
) -> None:
    engine = warm(make_engine)
    engine.device.write_errors.append(os_error(number))
    run(engine, SEGMENTS)
    assert engine.drops() == engine.drops_of(VTEP_B) == {reason: len(SEGMENTS)}
    assert (engine.underlay.ladder.egress(), engine.underlay.ladder.ingress()) == ("batch", "batch")
    run(engine, SEGMENTS)
    assert len(engine.device.written) == 1


def test_an_observer_sees_every_frame_of_a_run(make_engine: MakeEngine) -> None:
    engine, watcher = warm(make_engine), Watcher()
    engine.datapath.watch(watcher)
    run(engine, SEGMENTS)
    for point in (Point.UNDERLAY_RECEIVE, Point.DEVICE_WRITE):
        assert [seen.frame for seen in watcher.seen if seen.point is point] == SEGMENTS
    engine.datapath.unwatch(watcher)
    engine.device.written.clear()
    run(engine, SEGMENTS)
    assert len(engine.device.written) == 1


def test_a_known_neighbor_changes_nothing_for_the_segments_beside_it(make_engine: MakeEngine) -> None:
    engine = warm(make_engine, policy=BridgePolicy(NETWORK, LOCAL, suppress=True), suppresses=True)
    engine.apply(NeighborReplace(NETWORK, ip_address(IP4_B), MAC_B, Origin.CONTROL, 0.0))
    run(engine, SEGMENTS)
    assert len(engine.device.written) == 1


# ── Whatever comes in one read ──────────────────────────────────────────────────────────────────────────

SMALL = Burst(octets=2000, size=100)
PIECES = st.one_of(
    st.sampled_from([HEADER + each for each in SMALL.segments]),
    st.sampled_from([HEADER + each for each in between(LOCAL, REMOTE, SMALL.segments)]),
    st.sampled_from([NO_FLAG, build_header(Vni(43)), RESERVED]).map(lambda head: head + SMALL.segments[0]),
    st.sampled_from([HEADER + arp_request(), HEADER + SMALL.whole, HEADER + SMALL.whole[:900]]),
    st.binary(max_size=200),
    st.binary(max_size=200).map(lambda rest: HEADER + rest),
    st.binary(max_size=200).map(lambda rest: HEADER + SMALL.whole[:54] + rest),
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    reads=st.lists(
        st.tuples(
            st.lists(PIECES, min_size=1, max_size=12).map(b"".join),
            st.one_of(st.just(HEADER_LENGTH + len(SMALL.segments[0])), st.integers(20, 400)),
            st.sampled_from([VTEP_B, VTEP_B, STRANGER]),
            st.integers(0, 3),
        ),
        max_size=4,
    ),
    together=st.booleans(),
    watched=st.booleans(),
    repairs=st.booleans(),
)
def test_whatever_reads_give_is_accounted_for_and_the_next_run_is_whole(
    make_engine: MakeEngine,
    reads: list[tuple[bytes, int, IpAddress, int]],
    together: bool,
    watched: bool,
    repairs: bool,
) -> None:
    engine = warm(make_engine, suppresses=True, repairs=repairs)
    watcher = Watcher()
    if watched:
        engine.datapath.watch(watcher)
    for octets, stride, sender, tos in reads:
        arrive(engine, octets, stride, sender=sender, tos=tos)
        if not together:
            engine.settle()
    engine.settle()
    assert engine.statistics().ledger.balances
    if watched:
        engine.datapath.unwatch(watcher)
    engine.clock.advance(60.0)  # whatever was asked too often may be asked again
    engine.from_underlay(udp4(b"first"))
    engine.device.written.clear()
    run(engine, BURST.segments)
    assert engine.device.frames == ([BURST.whole] if repairs else BURST.segments)
