"""Packet trains: what follows its like is asked nothing, and comes to the same as if it had been.

What batches and sends come to is in `tests/tunnel/test_egress.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, IPOption_NOP
from support.doubles import VTEP_B, VTEP_C, Engine, MakeEngine, Watcher, balanced_engines, mac
from support.frames import IP4_A, IP4_B, MAC_A, MAC_B, tcp4, udp4, udp6, unfinished
from support.pace import in_bursts

from overlay.verdict import DropReason
from tunnel.carriage import FRAMES_PER_TURN
from tunnel.egress import Egress
from tunnel.flows import Flow
from tunnel.interfaces import Point
from tunnel.ladder import Feature, Ladder, Switch
from tunnel.offload import PLAIN

UDP, UDP_AT, CHECKSUM_AT = 17, 34, 40
UNFINISHED = struct.pack("=BBHHHH", 1, 0, 0, 0, UDP_AT, 6)
ADDRESSES = ip_address(IP4_A).packed + ip_address(IP4_B).packed
SEGMENTS = 63  # to a send
Given = tuple[bytes, bytes]  # a virtio header and a frame

pytestmark = [pytest.mark.usefixtures("pace"), in_bursts]


def left_to_us(frame: bytes) -> Given:
    """As the host hands a datagram over whose checksum is for us to finish."""
    return UNFINISHED, unfinished(frame, l4_at=UDP_AT, protocol=UDP, addresses=ADDRESSES)


def finished(frame: bytes) -> Given:
    return PLAIN, frame


def numbered(count: int, size: int = 64, **fields: Any) -> list[bytes]:
    """Frames of one flow, no two alike."""
    return [udp4(number.to_bytes(2, "big") * (size // 2), **fields) for number in range(count)]


def give(engine: Engine, *given: Given) -> list[bytes]:
    """The frames that are sent when the host gives these in one go."""
    engine.sent.clear()
    for header, frame in given:
        engine.device.transmit(frame, header)
    engine.settle()
    return [sent.frame for sent in engine.sent]


def knowing(make_engine: Callable[..., Engine], **others: Any) -> Engine:
    """An engine that has `MAC_B` behind VTEP B and remembers the way to it."""
    engine = make_engine(**others)
    engine.bind(MAC_B)
    engine.from_device(udp4(b"first"))
    return engine


def per_flow(frames: list[bytes]) -> dict[bytes, list[bytes]]:
    """The frames of each flow in their order: told apart by EtherType, fragment field, protocol and ports."""
    flows: dict[bytes, list[bytes]] = {}
    for each in frames:
        flows.setdefault(each[12:14] + each[20:22] + each[23:24] + each[34:38], []).append(each)
    return flows


@pytest.fixture
def met(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the frames that are asked everything."""
    lengths: list[int] = []
    meet = Egress._meet

    def noting(self: Egress, network: Any, slot: Any, octets: int, *others: Any) -> Flow | None:
        lengths.append(octets)
        return meet(self, network, slot, octets, *others)

    monkeypatch.setattr(Egress, "_meet", noting)
    return lengths


# ── A train ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [2, 64, 63 * 2, 1400])
@pytest.mark.parametrize("hand_over", [finished, left_to_us])
def test_all_but_the_first_two_are_asked_nothing_and_leave_finished(
    make_engine: MakeEngine, met: list[int], size: int, hand_over: Callable[[bytes], Given]
) -> None:
    engine, frames = knowing(make_engine), numbered(20, size)
    met.clear()
    assert give(engine, *map(hand_over, frames)) == frames
    assert len(met) == 2


def test_payloads_of_odd_length_are_summed_with_a_zero_behind_them(make_engine: MakeEngine) -> None:
    engine, frames = knowing(make_engine), [udp4(bytes([number]) * 33) for number in range(20)]
    assert give(engine, *map(left_to_us, frames)) == frames


def test_a_checksum_that_comes_to_zero_is_written_as_its_other_zero(make_engine: MakeEngine) -> None:
    """RFC 768: 0 is "no checksum"."""
    engine = knowing(make_engine)
    checksum = udp4(bytes(64))[CHECKSUM_AT:][:2]
    zeros = [left_to_us(udp4(checksum + bytes(62)))] * 8
    assert {frame[CHECKSUM_AT:][:2] for frame in give(engine, *zeros)} == {b"\xff\xff"}


def test_a_full_batch_ends_it_and_another_begins(make_engine: MakeEngine, met: list[int]) -> None:
    engine, frames = knowing(make_engine), numbered(2 * SEGMENTS - 1)
    met.clear()
    assert give(engine, *map(left_to_us, frames)) == frames
    assert len(met) == 3, "the first two, and the first of the second batch"


def test_its_flow_and_its_vtep_have_carried_every_frame(make_engine: MakeEngine) -> None:
    engine, frames = knowing(make_engine), numbered(20)
    flow = engine.flow(MAC_B + MAC_A)
    assert flow is not None
    before, before_sent = (flow.frames, flow.octets), engine.statistics().ledger.sent
    (before_vtep,) = engine.statistics().vteps
    give(engine, *map(left_to_us, frames))
    flow = engine.flow(MAC_B + MAC_A)
    assert flow is not None
    assert (flow.frames, flow.octets) == (before[0] + 20, before[1] + 20 * len(frames[0]))
    (vtep,) = engine.statistics().vteps
    assert engine.statistics().ledger.sent == before_sent + 20
    assert (vtep.sent_frames, vtep.sent_octets) == (
        before_vtep.sent_frames + 20,
        before_vtep.sent_octets + 20 * len(frames[0]),
    )


def test_a_send_of_long_ones_is_no_longer_than_a_packet(make_engine: MakeEngine, met: list[int]) -> None:
    engine, frames = knowing(make_engine), numbered(100, 1400)
    met.clear()
    assert give(engine, *map(left_to_us, frames)) == frames
    assert len(met) == 2 + (100 - 1) // 45, "45 datagrams of 1450 octets and 46 would be 66700"


def test_what_comes_after_the_last_read_of_a_turn_leaves_in_the_next(make_engine: MakeEngine) -> None:
    engine, frames = knowing(make_engine), numbered(2 * FRAMES_PER_TURN + 5)
    assert give(engine, *map(left_to_us, frames)) == frames


# ── What ends it, or never begins one ───────────────────────────────────────────────────────────────────

OTHERS = {
    "shorter": left_to_us(udp4(bytes(63))),
    "longer": left_to_us(udp4(bytes(65))),
    "finished": finished(udp4(bytes(64))),
    "of another port": left_to_us(udp4(bytes(64), sport=40001)),
    "of another class": left_to_us(udp4(bytes(64), ip=IP(src=IP4_A, dst=IP4_B, tos=0xB8))),
    "marked by ECN": left_to_us(udp4(bytes(64), ip=IP(src=IP4_A, dst=IP4_B, tos=2))),
    "a fragment": finished(udp4(bytes(64), ip=IP(src=IP4_A, dst=IP4_B, flags="MF"))),
    "with options": finished(udp4(bytes(60), ip=IP(src=IP4_A, dst=IP4_B, options=[IPOption_NOP()] * 4))),
    "tagged": finished(udp4(bytes(60), tags=[7])),
    "of TCP": finished(tcp4(bytes(52), sport=40000, dport=53)),
    "of IPv6": finished(udp6(bytes(44))),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_frame_that_differs_is_asked_everything_and_leaves_in_its_place(
    make_engine: MakeEngine, met: list[int], other: Given
) -> None:
    engine, frames = knowing(make_engine), numbered(20)
    given = [*map(left_to_us, frames[:10]), other, *map(left_to_us, frames[10:])]
    (whole,) = give(engine, other)
    met.clear()
    sent = give(engine, *given)
    assert per_flow(sent) == per_flow([*frames[:10], whole, *frames[10:]])
    assert met[2] == len(other[1])
    assert len(met) in {4, 5}, "the first two, the one between, one or two of the rest"


def test_one_vtep_s_frames_join_no_other_s(make_engine: MakeEngine) -> None:
    engine = knowing(make_engine, vteps=(VTEP_B, VTEP_C))
    elsewhere = mac(99)
    engine.bind(elsewhere, VTEP_C)
    to_b, to_c = numbered(9), [elsewhere + each[6:] for each in numbered(9)]
    give(engine, finished(to_c[0]))
    give(engine, *map(left_to_us, [*to_b, *to_c]))
    for vtep, frames in ((VTEP_B, to_b), (VTEP_C, to_c)):
        assert [sent.frame for sent in engine.sent if sent.to[0] == str(vtep)] == frames


def test_datagrams_too_long_for_the_path_are_dropped_by_name(make_engine: MakeEngine) -> None:
    engine = knowing(make_engine)
    assert give(engine, *map(finished, numbered(10, 1460))) == []
    assert engine.drops()[DropReason.MTU_EXCEEDED] == 10


@pytest.mark.parametrize("kind", ["with options", "tagged", "of TCP", "of IPv6"])
def test_of_others_every_frame_is_asked_everything(
    make_engine: MakeEngine, met: list[int], kind: str
) -> None:
    """A SYN tells something, and what tells other flows apart stands elsewhere."""
    engine = knowing(make_engine)
    (whole,) = give(engine, OTHERS[kind])
    met.clear()
    assert give(engine, *[OTHERS[kind]] * 10) == [whole] * 10
    assert len(met) == 10


def test_a_tag_that_looks_like_the_start_of_a_packet_hides_no_mark(make_engine: MakeEngine) -> None:
    """Class 2 and VLAN 0x507 are 0x4507; the identification and the checksum are chosen to look the same."""
    engine = knowing(make_engine)
    ips = [IP(src=IP4_A, dst=IP4_B, id=UDP, chksum=0, tos=mark) for mark in (0, 0, 0, 2, 2)]
    tagged = [udp4(bytes(64), tags=[0x507], ip=ip) for ip in ips]
    give(engine, *[finished(frame[:14] + b"\x45" + frame[15:]) for frame in tagged])
    assert [sent.tos for sent in engine.sent] == [0, 0, 0, 2, 2]


@pytest.mark.parametrize("octets", [34, 37, 38, 41])
def test_frames_that_end_before_their_checksum_are_no_train(make_engine: MakeEngine, octets: int) -> None:
    """What lies behind them in memory is an earlier frame's, and would be written to."""
    engine = knowing(make_engine)
    runt = numbered(1)[0][:octets]
    assert give(engine, finished(runt), *[(UNFINISHED, runt)] * 9) == [runt]
    assert engine.drops()[DropReason.INNER_MALFORMED] == 9


def test_frames_to_be_cut_are_no_train(make_engine: MakeEngine) -> None:
    """Nor where they leave behind one of their length, their headers being wrong."""
    engine, (frame,) = knowing(make_engine), numbered(1)
    to_be_cut = struct.pack("=BBHHHH", 1, 5, 0, 20, UDP_AT, 16)  # at TCP's checksum
    assert give(engine, finished(frame), *[(to_be_cut, frame)] * 9) == [frame]
    assert engine.drops()[DropReason.INNER_MALFORMED] == 9


def test_where_sends_carry_one_datagram_there_is_none(make_engine: MakeEngine, met: list[int]) -> None:
    engine, frames = knowing(make_engine), numbered(20)
    engine.underlay.ladder = Ladder({Feature.UDP_GSO: Switch.OFF})
    met.clear()
    assert give(engine, *map(left_to_us, frames)) == frames
    assert len(met) == 20


def test_who_watches_sees_every_frame(make_engine: MakeEngine) -> None:
    engine, frames, watcher = knowing(make_engine), numbered(20), Watcher()
    engine.datapath.watch(watcher)
    give(engine, *map(left_to_us, frames))
    points = watcher.points()
    assert points.count(Point.DEVICE_READ) == points.count(Point.UNDERLAY_SEND) == 20


# ── Whatever comes ──────────────────────────────────────────────────────────────────────────────────────

KINDS = [left_to_us(frame) for frame in (*numbered(3), *numbered(2, sport=40001), *numbered(2, 40))]
GIVEN = st.lists(st.sampled_from([*KINDS, *OTHERS.values()]), max_size=6).flatmap(
    lambda kinds: st.lists(st.sampled_from(kinds), max_size=80) if kinds else st.just([])
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(given_frames=GIVEN)
def test_a_burst_comes_to_what_its_frames_come_to_one_by_one(given_frames: list[Given]) -> None:
    with balanced_engines() as make_engine:
        together, singly = knowing(make_engine), knowing(make_engine)
        sent = give(together, *given_frames)
        one_by_one = [frame for each in given_frames for frame in give(singly, each)]
        assert per_flow(sent) == per_flow(one_by_one)
        assert together.statistics().ledger == singly.statistics().ledger
        assert together.statistics().vteps == singly.statistics().vteps
        ours, theirs = together.flow(MAC_B + MAC_A), singly.flow(MAC_B + MAC_A)
        assert ours is not None
        assert theirs is not None
        assert (ours.frames, ours.octets) == (theirs.frames, theirs.octets)
