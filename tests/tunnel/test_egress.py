"""Rung 1 on the way out: many datagrams a send, super-frames cut, and the rung kept or lowered for a reason.

`tests/tunnel/test_pydatapath.py` has what holds on every rung.  The order here is the frame's: into a batch,
out of it, what a send may come to; then super-frames and unfinished checksums.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether
from support.doubles import (
    HOP,
    LOCAL,
    OURS,
    OURS_V6,
    UNKNOWN,
    VNI,
    VTEP_B,
    VTEP_C,
    VTEP_V6,
    Engine,
    MakeEngine,
    SuperDoorDouble,
    SuperDoorsDouble,
    SuperSent,
    UnderlayDouble,
    Watcher,
    frame,
    os_error,
)
from support.frames import (
    IP4_A,
    IP4_B,
    IP6_A,
    IP6_B,
    MAC_A,
    MAC_B,
    echo4,
    tcp4,
    tcp6,
    udp4,
    udp6,
    unfinished,
)
from support.pace import in_bursts
from support.super_frames import Burst

from bench.lab.wire import SimulatedSender
from overlay.addr import BROADCAST, IpAddress
from overlay.verdict import DropReason
from tunnel import upcalls
from tunnel.egress import SEND_TRIES
from tunnel.interfaces import Buffer, Point, SockAddr
from tunnel.ladder import RETRY_SECONDS, Feature, Ladder, Switch
from tunnel.vxlan import HEADER_LENGTH, build_header

HEADER = build_header(VNI)
VTEP_D = ip_address("192.0.2.4")
SEND_MAX = 65507  # octets of UDP payload in one IPv4 packet
SEGMENTS_MAX = 64  # the most any kernel before Linux 6.9 takes
ECT_0 = 2

pytestmark = pytest.mark.usefixtures("pace")


@dataclass(frozen=True)
class Send:
    """One system call: what it carried, cut as it told the kernel to."""

    frames: tuple[bytes, ...]
    segment_size: int | None
    to: str
    tos: int


class SenderDouble(SimulatedSender):
    """A socket that remembers its sends; while `refusal` is set, those of several datagrams fail with it."""

    def __init__(self, underlay: UnderlayDouble, port: int, sends: list[Send]) -> None:
        super().__init__(underlay, port)
        self.sends = sends
        self.refusal: int | None = None

    def send(self, payload: Buffer, address: SockAddr) -> int:
        sent = super().send(payload, address)
        self.sends.append(Send((bytes(payload)[HEADER_LENGTH:],), None, address[0], 0))
        return sent

    def send_marked(
        self,
        buffers: Iterable[Buffer],
        control: Iterable[tuple[int, int, Buffer]],
        flags: int,
        address: SockAddr,
    ) -> int:
        gathered, told = list(buffers), {(level, kind): bytes(data) for level, kind, data in control}
        size = told.get((17, 103))
        if size is not None and self.refusal is not None:
            raise os_error(self.refusal)
        sent = super().send_marked(gathered, [(*key, data) for key, data in told.items()], flags, address)
        octets = b"".join(bytes(buffer) for buffer in gathered)
        stride = len(octets) if size is None else struct.unpack("=H", size)[0]
        datagrams = (octets[at : at + stride] for at in range(0, len(octets), stride))
        tos = told.get((0, 1)) or told.get((41, 67)) or b"\0"
        frames = tuple(datagram[HEADER_LENGTH:] for datagram in datagrams)
        self.sends.append(Send(frames, None if size is None else stride, address[0], tos[0]))
        return sent


class Door:
    """An engine whose sends are seen one by one, `MAC_B` behind VTEP B, and its flows remembered."""

    def __init__(self, make_engine: MakeEngine, *, vtep: IpAddress = VTEP_B, **others: Any) -> None:
        self.engine: Engine = make_engine(**others)
        self.engine.bind(MAC_B, vtep)
        self.sends: list[Any] = []  # of Send, and of SuperSent where there is a super door
        self.senders: list[SenderDouble] = []
        for underlay in self.engine.underlays:
            mine = [SenderDouble(underlay, sender.port, self.sends) for sender in underlay.senders]
            underlay.senders = mine  # type: ignore[assignment]
            self.senders += mine
        self.engine.datapath.reroute()
        self.engine.from_device(udp4(b"first"))
        self.sends.clear()

    @property
    def ladder(self) -> Ladder:
        return self.engine.underlay.ladder

    def refuse_batches(self, number: int | None) -> None:
        for sender in self.senders:
            sender.refusal = number

    def burst(self, *frames: bytes) -> list[Send]:
        """The sends that come of frames the host gives in one go."""
        before = len(self.sends)
        self.engine.from_device(*frames)
        return self.sends[before:]

    def super_frame(self, whole: bytes, header: bytes) -> list[Send]:
        """The sends that come of a frame that is behind this virtio header."""
        before = len(self.sends)
        self.engine.device.transmit(whole, header)
        self.engine.settle()
        return self.sends[before:]


def counts(sends: list[Send]) -> list[int]:
    return [len(send.frames) for send in sends]


def frames_of(sends: list[Send], to: IpAddress | None = None) -> list[bytes]:
    return [each for send in sends if to is None or send.to == str(to) for each in send.frames]


def datagrams(*sizes: int, **fields: Any) -> list[bytes]:
    """Frames of one UDP flow with payloads of these sizes, no two alike."""
    return [udp4(bytes([number % 256]) * size, **fields) for number, size in enumerate(sizes)]


# ── Batches ─────────────────────────────────────────────────────────────────────────────────────────────


@in_bursts
def test_equal_frames_of_a_burst_leave_in_one_send_in_their_order(make_engine: MakeEngine) -> None:
    frames = datagrams(*[100] * 10)
    (send,) = Door(make_engine).burst(*frames)
    assert list(send.frames) == frames
    assert send.segment_size == HEADER_LENGTH + len(frames[0])


def test_a_frame_alone_asks_for_no_segmentation(make_engine: MakeEngine) -> None:
    (send,) = Door(make_engine).burst(*datagrams(100))
    assert send.segment_size is None


@in_bursts
@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((100, 100, 60), [3]),
        ((100, 100, 60, 100, 100), [3, 2]),
        ((100, 60, 60), [2, 1]),  # behind a shorter one the kernel would cut elsewhere
        ((60, 60, 100, 100), [2, 2]),
        ((60, 61, 62), [1, 1, 1]),
    ],
)
def test_a_shorter_frame_ends_a_batch_and_a_longer_one_begins_the_next(
    make_engine: MakeEngine, sizes: tuple[int, ...], expected: list[int]
) -> None:
    frames = datagrams(*sizes)
    sends = Door(make_engine).burst(*frames)
    assert counts(sends) == expected
    assert frames_of(sends) == frames


@in_bursts
@pytest.mark.parametrize("size", [18, 500, 1000, 1022, 1400])
def test_no_send_is_more_than_a_kernel_takes(make_engine: MakeEngine, size: int) -> None:
    frames = datagrams(*[size] * 200)
    sends = Door(make_engine).burst(*frames)
    assert frames_of(sends) == frames
    for send in sends:
        octets = sum(map(len, send.frames)) + HEADER_LENGTH * len(send.frames)
        # Many kernels count their UDP header among the octets of the segments, and 64 full ones are too many.
        assert octets + 8 <= SEGMENTS_MAX * (send.segment_size or SEND_MAX)
        assert octets <= SEND_MAX
    assert len(sends) <= 200 // min(63, SEND_MAX // (size + 50)) + 4  # one more for each drain's end


@in_bursts
def test_flows_to_two_vteps_leave_apart_each_in_its_order(make_engine: MakeEngine) -> None:
    door = Door(make_engine, vteps=(VTEP_B, VTEP_C))
    door.engine.bind(UNKNOWN, VTEP_C)
    to_b = datagrams(*[100] * 8)
    to_c = [UNKNOWN + each[6:] for each in datagrams(*[100] * 8, dport=54)]
    door.burst(to_c[0])
    sends = door.burst(*(each for pair in zip(to_b, to_c, strict=True) for each in pair))
    assert sorted((send.to, len(send.frames)) for send in sends) == [(str(VTEP_B), 8), (str(VTEP_C), 8)]
    assert frames_of(sends, VTEP_B) == to_b
    assert frames_of(sends, VTEP_C) == to_c


@in_bursts
def test_two_networks_share_no_send(make_engine: MakeEngine) -> None:
    door = Door(make_engine)
    other = door.engine.add_network("other", 43, VTEP_B)
    door.engine.from_device(*[frame(BROADCAST, LOCAL)] * 3, device=other)
    door.burst(*datagrams(*[100] * 3))
    assert {sent.payload[:8] for sent in door.engine.sent} == {HEADER, build_header(43)}  # type: ignore[arg-type]
    assert max(counts(door.sends)) == 3


@in_bursts
@pytest.mark.parametrize("version", [4, 6])
def test_ecn_fields_share_no_send_and_a_flow_keeps_its_order(make_engine: MakeEngine, version: int) -> None:
    vtep, ours = (VTEP_B, OURS) if version == 4 else (VTEP_V6, OURS_V6)
    door = Door(make_engine, vtep=vtep, vteps=(vtep,), addresses=(ours,))
    marks = (2, 2, 0, 2, 2, 3, 3, 0, 0)
    ips = [IP(src=IP4_A, dst=IP4_B, tos=mark) for mark in marks]
    frames = [udp4(bytes([number]) * 50, ip=ip) for number, ip in enumerate(ips)]
    sends = door.burst(*frames)
    assert frames_of(sends) == frames
    assert [(send.tos, len(send.frames)) for send in sends] == [(2, 2), (0, 1), (2, 2), (3, 2), (0, 2)]


def test_where_sends_carry_one_datagram_every_frame_leaves_alone(make_engine: MakeEngine) -> None:
    door = Door(make_engine)
    door.engine.underlay.ladder = Ladder({Feature.UDP_GSO: Switch.OFF})
    door.ladder.probed(Feature.UDP_GSO, None)
    frames = datagrams(*[100] * 10)
    sends = door.burst(*frames)
    assert (counts(sends), frames_of(sends)) == ([1] * 10, frames)


FRAMES = st.lists(
    st.builds(
        lambda size, sport, mark, number: udp4(
            bytes([number]) * size, ip=IP(src=IP4_A, dst=IP4_B, tos=mark), sport=sport
        ),
        st.sampled_from([20, 20, 20, 60, 61, 1400]),
        st.sampled_from([1000, 1001, 1002]),
        st.sampled_from([0, 0, 2, 3]),
        st.integers(0, 255),
    ),
    max_size=40,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=FRAMES, is_refused=st.booleans())
def test_whatever_a_burst_is_every_flow_leaves_whole_and_in_order(
    make_engine: MakeEngine, frames: list[bytes], is_refused: bool
) -> None:
    door = Door(make_engine)
    door.refuse_batches(errno.EIO if is_refused else None)
    sent = frames_of(door.burst(*frames))
    ports = {each[34:36] for each in frames}
    for port in ports:
        assert [each for each in sent if each[34:36] == port] == [
            each for each in frames if each[34:36] == port
        ]
    assert len(sent) == len(frames)


# ── What a send may come to ─────────────────────────────────────────────────────────────────────────────


@in_bursts
@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL])
def test_a_batch_refused_leaves_singly_and_lowers_the_rung_for_a_minute(
    make_engine: MakeEngine, number: int
) -> None:
    door = Door(make_engine)
    frames = datagrams(*[100] * 5, 40)
    door.refuse_batches(number)
    sends = door.burst(*frames)
    assert (counts(sends), frames_of(sends)) == ([1] * 6, frames)
    assert door.ladder.egress() == "plain"
    assert os.strerror(number) in door.ladder.reason(Feature.UDP_GSO)
    assert door.engine.drops() == {}

    door.refuse_batches(None)
    assert counts(door.burst(*frames)) == [1] * 6, "a lowered rung was used"
    now = door.engine.clock.now
    assert door.ladder.due(now=now + RETRY_SECONDS - 1) == ()
    assert door.ladder.due(now=now + RETRY_SECONDS) == (Feature.UDP_GSO,)
    door.ladder.probed(Feature.UDP_GSO, None)
    assert counts(door.burst(*frames)) == [6]


def test_a_rung_insisted_on_is_tried_again_and_loses_nothing(make_engine: MakeEngine) -> None:
    door = Door(make_engine)
    door.engine.underlay.ladder = Ladder({Feature.UDP_GSO: Switch.ON})
    door.ladder.probed(Feature.UDP_GSO, None)
    door.refuse_batches(errno.EIO)
    frames = datagrams(*[100] * 5)
    assert frames_of(door.burst(*frames)) == frames
    assert door.ladder.egress() == "batch"


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL])
def test_where_single_sends_fail_too_it_was_not_segmentation(make_engine: MakeEngine, number: int) -> None:
    door = Door(make_engine)
    door.refuse_batches(number)
    door.engine.underlay.send_errors.extend([os_error(number)] * SEND_TRIES * 3)
    assert door.burst(*datagrams(*[100] * 3)) == []
    assert door.engine.drops_of(VTEP_B) == {DropReason.UNDERLAY_ERROR: 3}
    assert door.ladder.egress() == "batch"


@in_bursts
def test_a_path_that_carries_only_the_shorter_last_lowers_nothing(make_engine: MakeEngine) -> None:
    # QUIRK(linux): to many kernels a segment longer than the path is EINVAL, where a datagram is EMSGSIZE.
    door = Door(make_engine)
    door.engine.underlay.paths[str(VTEP_B)] = 1000
    door.refuse_batches(errno.EINVAL)
    door.engine.underlay.send_errors.extend([os_error(errno.EMSGSIZE)] * 2 * 2)
    frames = datagrams(1200, 1200, 40)
    assert frames_of(door.burst(*frames)) == frames[2:]
    assert door.engine.drops_of(VTEP_B) == {DropReason.MTU_EXCEEDED: 2}
    assert door.ladder.egress() == "batch"


def test_a_batch_too_long_for_the_path_is_answered_frame_by_frame(make_engine: MakeEngine) -> None:
    door = Door(make_engine)
    frames = [echo4(bytes([number]) * 1200, flags="DF") for number in range(3)]
    door.burst(frames[0])
    door.engine.underlay.paths[str(VTEP_B)] = 1000
    door.refuse_batches(errno.EMSGSIZE)
    door.engine.underlay.send_errors.extend([os_error(errno.EMSGSIZE)] * 2 * 3)
    assert door.burst(*frames) == []
    assert door.engine.drops_of(VTEP_B) == {DropReason.MTU_EXCEEDED: 3}
    assert [Ether(answer)["ICMP"].nexthopmtu for answer in door.engine.device.frames] == [950] * 3
    assert door.ladder.egress() == "batch"


@in_bursts
@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM])
def test_a_full_queue_loses_every_frame_of_the_batch_by_name(make_engine: MakeEngine, number: int) -> None:
    door = Door(make_engine)
    door.refuse_batches(number)
    assert door.burst(*datagrams(*[100] * 7)) == []
    assert door.engine.drops() == door.engine.drops_of(VTEP_B) == {DropReason.UNDERLAY_FULL: 7}
    assert door.ladder.egress() == "batch"


@in_bursts
def test_a_report_of_an_earlier_datagram_loses_no_batch(make_engine: MakeEngine) -> None:
    door = Door(make_engine)
    door.engine.underlay.send_errors.append(os_error(errno.ECONNREFUSED))
    frames = datagrams(*[100] * 7)
    sends = door.burst(*frames)
    assert (counts(sends), frames_of(sends)) == ([7], frames)


def test_a_batch_counts_each_of_its_frames(make_engine: MakeEngine) -> None:
    door = Door(make_engine)
    before = door.engine.statistics().vteps[0]
    frames = datagrams(*[100] * 7, 50)
    door.burst(*frames)
    after = door.engine.statistics().vteps[0]
    assert after.sent_frames - before.sent_frames == 8
    assert after.sent_octets - before.sent_octets == sum(map(len, frames))


# ── Super-frames ────────────────────────────────────────────────────────────────────────────────────────

BURSTS = {
    "tcp4": Burst(octets=20_000, size=1400, flags="PA"),
    "tcp6": Burst(version=6, octets=20_000, size=1380),
    "udp4": Burst(protocol=17, octets=20_300, size=1000),
    "udp6": Burst(version=6, protocol=17, octets=20_300, size=1000),
    "tagged": Burst(octets=5_000, size=1000, tags=(7,)),
    "60 KB": Burst(octets=60_000, size=1400),
    "tiny segments": Burst(octets=1000, size=8),
    "one segment": Burst(octets=700, size=1400),
}
every_burst = pytest.mark.parametrize("burst", BURSTS.values(), ids=BURSTS)


@every_burst
def test_a_super_frame_leaves_as_the_segments_it_stands_for(make_engine: MakeEngine, burst: Burst) -> None:
    door = Door(make_engine)
    before = door.engine.statistics().ledger
    sends = door.super_frame(burst.whole, burst.header)
    segments = burst.segments
    assert frames_of(sends) == segments
    assert len(sends) == -(-len(segments) // min(63, SEND_MAX // (HEADER_LENGTH + len(segments[0]))))
    after = door.engine.statistics().ledger
    assert after.received - before.received == 1
    assert after.generated - before.generated == len(segments) - 1
    assert after.sent - before.sent == len(segments)


@every_burst
def test_where_sends_carry_one_datagram_its_segments_leave_alone(
    make_engine: MakeEngine, burst: Burst
) -> None:
    door = Door(make_engine)
    door.ladder.lower(Feature.UDP_GSO, "for the test", now=0.0)
    sends = door.super_frame(burst.whole, burst.header)
    assert (frames_of(sends), set(counts(sends))) == (burst.segments, {1})


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL])
def test_a_super_frame_refused_leaves_singly_and_lowers_the_rung(
    make_engine: MakeEngine, number: int
) -> None:
    door, burst = Door(make_engine), BURSTS["60 KB"]
    door.refuse_batches(number)
    sends = door.super_frame(burst.whole, burst.header)
    assert (frames_of(sends), set(counts(sends))) == (burst.segments, {1})
    assert door.ladder.egress() == "plain"


def test_small_frames_of_the_flow_stay_before_and_behind_their_super_frame(make_engine: MakeEngine) -> None:
    door, burst = Door(make_engine), Burst(octets=5000, size=1000)
    small = [replace(burst, octets=20, sequence=number).segments[0] for number in range(6)]
    for each in small[:3]:
        door.engine.device.transmit(each)
    door.engine.device.transmit(burst.whole, burst.header)
    for each in small[3:]:
        door.engine.device.transmit(each)
    door.engine.settle()
    assert frames_of(door.sends) == [*small[:3], *burst.segments, *small[3:]]


def test_two_super_frames_leave_in_their_order(make_engine: MakeEngine) -> None:
    door = Door(make_engine)
    first = Burst(octets=5000, size=1000)
    second = replace(first, octets=5500, sequence=first.sequence + 5000)
    for burst in (first, second):
        door.engine.device.transmit(burst.whole, burst.header)
    door.engine.settle()
    assert frames_of(door.sends) == first.segments + second.segments


def test_segments_take_the_ecn_field_of_their_super_frame(make_engine: MakeEngine) -> None:
    burst = Burst(octets=5000, size=1000, tos=ECT_0)
    (send,) = Door(make_engine).super_frame(burst.whole, burst.header)
    assert (send.tos, list(send.frames)) == (ECT_0, burst.segments)


@in_bursts
def test_a_super_frame_that_waits_for_its_verdict_is_cut_when_that_comes(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upcalls, "UPCALLS_PER_TURN", 1)
    engine = make_engine()
    engine.bind(MAC_B)
    burst = Burst(octets=5000, size=1000)
    engine.device.transmit(frame(UNKNOWN, LOCAL))
    engine.device.transmit(burst.whole, burst.header)
    engine.device.transmit(burst.segments[0])
    engine.reactor.run_until(lambda: engine.statistics().ledger.held == 2, within=0.0)
    assert engine.statistics().ledger.held == 2
    assert engine.statistics().ledger.balances
    engine.settle()
    assert [sent.frame for sent in engine.sent[1:]] == [*burst.segments, burst.segments[0]]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_super_frame_for_everybody_is_cut_for_each_vtep(make_engine: MakeEngine, count: int) -> None:
    vteps = (VTEP_B, VTEP_C, VTEP_D, ip_address("192.0.2.5"))[:count]
    door = Door(make_engine, vteps=vteps)
    burst = Burst(protocol=17, octets=5300, size=1000)
    segments = [BROADCAST + each[6:] for each in burst.segments]
    for _ in range(2):  # decided, then remembered
        before = door.engine.statistics().ledger
        sends = door.super_frame(BROADCAST + burst.whole[6:], burst.header)
        assert [frames_of(sends, vtep) for vtep in vteps] == [segments] * count
        after = door.engine.statistics().ledger
        assert after.generated - before.generated == count * len(segments) - 1


def test_segments_a_path_does_not_carry_are_answered_once(make_engine: MakeEngine) -> None:
    door, burst = Door(make_engine), Burst(octets=5000, size=1400)
    door.super_frame(burst.whole, burst.header)
    door.engine.underlay.paths[str(VTEP_B)] = 1000
    door.engine.underlay.refuse(VTEP_B, errno.EMSGSIZE, 1000)
    door.engine.pass_a_second()
    before = door.engine.drops_of(VTEP_B)[DropReason.MTU_EXCEEDED]
    assert door.super_frame(burst.whole, burst.header) == []
    assert door.engine.drops_of(VTEP_B) == {DropReason.MTU_EXCEEDED: before + 1}
    (answer,) = door.engine.device.frames
    assert Ether(answer)["ICMP"].nexthopmtu == 950
    assert answer[:6] == MAC_A
    fitting = replace(burst, size=900)
    assert frames_of(door.super_frame(fitting.whole, fitting.header)) == fitting.segments


def test_an_observer_sees_the_super_frame_and_each_segment(make_engine: MakeEngine) -> None:
    door, burst, watcher = Door(make_engine), Burst(octets=5000, size=1000), Watcher()
    door.engine.datapath.watch(watcher)
    door.super_frame(burst.whole, burst.header)
    assert [seen.frame for seen in watcher.seen if seen.point is Point.DEVICE_READ] == [burst.whole]
    assert [seen.frame for seen in watcher.seen if seen.point is Point.UNDERLAY_SEND] == burst.segments


HOSTILE = Burst(octets=5000, size=1000)
LYING = {
    "cut off": (HOSTILE.whole[:-1], HOSTILE.header),
    "longer than it says": (HOSTILE.whole + b"x", HOSTILE.header),
    "a TCP header past its end": (HOSTILE.whole[:46] + b"\xf0" + HOSTILE.whole[47:60], HOSTILE.header),
    "a TCP header too short": (HOSTILE.whole[:46] + b"\x40" + HOSTILE.whole[47:], HOSTILE.header),
    "a fragment": (HOSTILE.whole[:20] + b"\x20\x00" + HOSTILE.whole[22:], HOSTILE.header),
    "UDP said to be TCP": (BURSTS["udp4"].whole, HOSTILE.header),
    "IPv6 said to be IPv4": (BURSTS["tcp6"].whole, HOSTILE.header),
    "segments of nothing": (HOSTILE.whole, HOSTILE.header[:4] + b"\0\0" + HOSTILE.header[6:]),
    "sixty thousand segments": (BURSTS["60 KB"].whole, HOSTILE.header[:4] + b"\1\0" + HOSTILE.header[6:]),
    "a checksum past its end": (udp4(b"x"), struct.pack("=BBHHHH", 1, 0, 0, 0, 65000, 6)),
    "a kind nobody knows": (HOSTILE.whole, b"\1\x07" + HOSTILE.header[2:]),
}


@pytest.mark.parametrize(("whole", "header"), LYING.values(), ids=LYING)
def test_a_super_frame_that_lies_is_malformed_and_lowers_nothing(
    make_engine: MakeEngine, whole: bytes, header: bytes
) -> None:
    door = Door(make_engine)
    assert door.super_frame(whole, header) == []
    assert door.engine.drops_of(VTEP_B) == {DropReason.INNER_MALFORMED: 1}
    assert (door.ladder.egress(), door.ladder.explain().count("udp_gso")) == ("batch", 0)
    assert frames_of(door.super_frame(HOSTILE.whole, HOSTILE.header)) == HOSTILE.segments


# ── The super door ──────────────────────────────────────────────────────────────────────────────────────


class SuperDoor(Door):
    """The same with a super door to VTEP B, whose writes stand among the sends."""

    def __init__(self, make_engine: MakeEngine, *, vtep: IpAddress = VTEP_B, **others: Any) -> None:
        super().__init__(make_engine, vtep=vtep, **others)
        self.door = SuperDoorDouble(log=self.sends)
        self.doors = SuperDoorsDouble({vtep: self.door})
        underlay = next(each for each in self.engine.underlays if each.address.version == vtep.version)
        underlay.super_doors = self.doors
        self.engine.datapath.reroute()

    @property
    def ways(self) -> list[str]:
        """By which door each thing left."""
        return ["super" if isinstance(each, SuperSent) else "lower" for each in self.sends]


@every_burst
def test_a_super_frame_leaves_by_an_open_door_in_one_write_and_is_one_sent(
    make_engine: MakeEngine, burst: Burst
) -> None:
    door = SuperDoor(make_engine)
    before, of_vtep = door.engine.statistics().ledger, door.engine.statistics().vteps[0]
    door.super_frame(burst.whole, burst.header)
    if burst.tags:
        assert (door.ways, frames_of(door.sends)) == (["lower"] * len(door.sends), burst.segments)
        return
    assert [sent.frame for sent in door.door.written] == [burst.whole]
    assert door.ways == ["super"]
    after, now_of_vtep = door.engine.statistics().ledger, door.engine.statistics().vteps[0]
    assert (after.received - before.received, after.sent - before.sent) == (1, 1)
    assert after.generated == before.generated
    assert now_of_vtep.sent_frames - of_vtep.sent_frames == 1
    assert now_of_vtep.sent_octets - of_vtep.sent_octets == len(burst.whole)


@pytest.mark.parametrize("vtep", [VTEP_B, VTEP_V6])
@pytest.mark.parametrize("tos", [0, 1, 2, 3, 0xB8, 0xBA])
def test_its_outer_headers_are_those_of_the_flows_socket(
    make_engine: MakeEngine, vtep: IpAddress, tos: int
) -> None:
    door = SuperDoor(make_engine, vtep=vtep, vteps=(vtep,), addresses=(OURS if vtep is VTEP_B else OURS_V6,))
    burst = Burst(octets=5000, size=1000, tos=tos)
    door.door.opened = False
    door.super_frame(burst.whole, burst.header)
    lower = door.engine.sent[-1]
    door.door.opened = True
    door.super_frame(burst.whole, burst.header)
    (sent,) = door.door.written
    packet = Ether(sent.before[24:] + HEADER + sent.frame)
    ip = packet.payload
    assert (packet.src, packet.dst) == (HOP.source.hex(":"), HOP.destination.hex(":"))
    assert (ip_address(ip.src), ip_address(ip.dst)) == (door.engine.underlay.address, vtep)
    assert (packet["UDP"].sport, packet["UDP"].dport) == (lower.source_port, lower.to[1])
    assert (ip.tos if vtep.version == 4 else ip.tc) == lower.tos == tos & 3


def test_flows_spread_over_the_pools_ports_by_either_door(make_engine: MakeEngine) -> None:
    door = SuperDoor(make_engine)
    for sport in range(40_000, 40_100):
        burst = Burst(octets=3000, size=1000, sport=sport)
        door.super_frame(burst.whole, burst.header)
    ports = {int.from_bytes(sent.before[-8:-6], "big") for sent in door.door.written}
    assert ports == {sender.port for sender in door.senders}


def test_while_the_door_is_closed_the_lower_one_is_taken(make_engine: MakeEngine) -> None:
    door, burst = SuperDoor(make_engine), BURSTS["tcp4"]
    for is_open in (True, False, True):
        door.door.opened = is_open
        door.super_frame(burst.whole, burst.header)
    ways = door.ways
    assert (ways[0], ways[-1], set(ways[1:-1])) == ("super", "super", {"lower"})
    assert frames_of(door.sends[1:-1]) == burst.segments
    assert door.doors.shuts == []


@in_bursts
def test_what_the_flow_batched_before_leaves_before_and_what_follows_follows(make_engine: MakeEngine) -> None:
    door, burst = SuperDoor(make_engine), Burst(octets=5000, size=1000)
    small = [replace(burst, octets=20, sequence=number).segments[0] for number in range(6)]
    for each in small[:3]:
        door.engine.device.transmit(each)
    door.engine.device.transmit(burst.whole, burst.header)
    for each in small[3:]:
        door.engine.device.transmit(each)
    door.engine.settle()
    before, super_sent, after = door.sends
    assert (before.frames, after.frames) == (tuple(small[:3]), tuple(small[3:]))
    assert super_sent is door.door.written[0]


TOO_LONG = Burst(octets=65_500 - 54, size=1398)  # 65500 octets of frame, 65508 with the VXLAN header
OVERSIZED = Burst(octets=5000, size=1400)  # for a path of 1000
BY_THE_LOWER_DOOR = {
    "tagged": (BURSTS["tagged"].whole, BURSTS["tagged"].header),
    "too long": (TOO_LONG.whole, TOO_LONG.header),
    "an unfinished frame": (
        unfinished(
            udp4(b"x" * 99),
            l4_at=34,
            protocol=17,
            addresses=ip_address(IP4_A).packed + ip_address(IP4_B).packed,
        ),
        struct.pack("=BBHHHH", 1, 0, 0, 0, 34, 6),
    ),
    "a plain frame": (udp4(b"x" * 99), bytes(10)),
    "oversized": (OVERSIZED.whole, OVERSIZED.header),
    **LYING,
}


@pytest.mark.parametrize("name", BY_THE_LOWER_DOOR)
def test_what_cannot_go_whole_comes_to_what_it_would_without_a_door(
    make_engine: MakeEngine, name: str
) -> None:
    whole, header = BY_THE_LOWER_DOOR[name]
    outcomes = []
    for kind in (SuperDoor, Door):
        door = kind(make_engine)
        if name == "oversized":
            door.engine.underlay.paths[str(VTEP_B)] = 1000
            door.engine.underlay.refuse(VTEP_B, errno.EMSGSIZE, 1000)
            door.engine.pass_a_second()
        sends = door.super_frame(whole, header)
        outcomes.append(
            (sends, door.engine.drops(), door.engine.device.written, door.engine.statistics().ledger)
        )
        if isinstance(door, SuperDoor):
            assert (door.door.written, door.doors.shuts) == ([], [])
    assert outcomes[0] == outcomes[1]


def test_a_super_frame_that_just_fits_its_path_goes_whole_and_one_octet_more_does_not(
    make_engine: MakeEngine,
) -> None:
    door = SuperDoor(make_engine)
    fitting = Burst(octets=5000, size=1450 - 40)
    for burst in (fitting, replace(fitting, size=fitting.size + 1)):
        door.super_frame(burst.whole, burst.header)
    assert [sent.frame for sent in door.door.written] == [fitting.whole]
    assert door.engine.drops() == {DropReason.MTU_EXCEEDED: 1}


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM])
def test_a_door_with_as_much_under_way_as_may_be_drops_by_name_and_stays_open(
    make_engine: MakeEngine, number: int
) -> None:
    door, burst = SuperDoor(make_engine), BURSTS["tcp4"]
    door.door.write_errors.append(os_error(number))
    assert door.super_frame(burst.whole, burst.header) == []
    assert door.engine.drops() == door.engine.drops_of(VTEP_B) == {DropReason.UNDERLAY_FULL: 1}
    assert door.doors.shuts == []
    door.super_frame(burst.whole, burst.header)
    assert door.ways == ["super"]


def test_what_its_contents_may_cause_takes_the_lower_door_and_changes_no_rung(
    make_engine: MakeEngine,
) -> None:
    door, burst = SuperDoor(make_engine), BURSTS["tcp4"]
    door.door.write_errors.append(os_error(errno.EINVAL))
    assert frames_of(door.super_frame(burst.whole, burst.header)) == burst.segments
    assert (door.doors.shuts, door.engine.drops()) == ([], {})
    door.super_frame(burst.whole, burst.header)
    assert door.ways[-1] == "super"


@pytest.mark.parametrize("number", [errno.EIO, errno.EBADFD, errno.EBADF, errno.EPERM])
def test_a_door_that_fails_is_shut_with_the_reason_and_loses_nothing(
    make_engine: MakeEngine, number: int
) -> None:
    door, burst = SuperDoor(make_engine), BURSTS["tcp4"]
    door.door.write_errors.append(os_error(number))
    for _ in range(2):
        assert frames_of(door.super_frame(burst.whole, burst.header)) == burst.segments
    ((vtep, why),) = door.doors.shuts
    assert vtep == VTEP_B
    assert os.strerror(number) in why
    assert "inject TAP" in why
    assert door.engine.drops() == {}


def test_a_door_insisted_on_is_tried_again_after_it_failed(make_engine: MakeEngine) -> None:
    door, burst = SuperDoor(make_engine), BURSTS["tcp4"]
    door.doors.insists = True
    door.door.write_errors.append(os_error(errno.EIO))
    assert frames_of(door.super_frame(burst.whole, burst.header)) == burst.segments
    door.super_frame(burst.whole, burst.header)
    assert door.ways[-1] == "super"


@pytest.mark.parametrize("number", [errno.EPERM, errno.EHOSTUNREACH, errno.ECONNREFUSED, errno.ENETUNREACH])
def test_what_a_socket_is_refused_the_door_is_not_used_for(make_engine: MakeEngine, number: int) -> None:
    door, burst = SuperDoor(make_engine), BURSTS["tcp4"]
    tries = 1 if number == errno.EPERM else SEND_TRIES
    door.engine.underlay.send_errors.extend([os_error(number)] * tries)
    assert door.burst(*datagrams(100)) == []
    assert door.engine.drops_of(VTEP_B) == {DropReason.UNDERLAY_ERROR: 1}
    ((vtep, why),) = door.doors.shuts
    assert (vtep, os.strerror(number) in why) == (VTEP_B, True)
    door.super_frame(burst.whole, burst.header)
    assert set(door.ways) == {"lower"}


def test_a_report_of_an_earlier_datagram_shuts_no_door(make_engine: MakeEngine) -> None:
    door = SuperDoor(make_engine)
    door.engine.underlay.send_errors.append(os_error(errno.ECONNREFUSED))
    assert counts(door.burst(*datagrams(100))) == [1]
    assert door.doors.shuts == []


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOBUFS])
def test_a_full_socket_shuts_no_door(make_engine: MakeEngine, number: int) -> None:
    door = SuperDoor(make_engine)
    door.engine.underlay.send_errors.append(os_error(number))
    door.burst(*datagrams(100))
    assert door.engine.drops() == {DropReason.UNDERLAY_FULL: 1}
    assert door.doors.shuts == []


@pytest.mark.parametrize("number", [errno.ECONNREFUSED, errno.EHOSTUNREACH])
def test_an_icmp_error_shuts_the_door_and_what_was_sent_is_lost(make_engine: MakeEngine, number: int) -> None:
    door, burst = SuperDoor(make_engine), BURSTS["tcp4"]
    door.super_frame(burst.whole, burst.header)
    door.engine.underlay.refuse(VTEP_B, number)
    door.engine.pass_a_second()
    ((vtep, why),) = door.doors.shuts
    assert (vtep, os.strerror(number) in why) == (VTEP_B, True)
    assert door.engine.drops() == {DropReason.UNDERLAY_ERROR: 1}
    door.super_frame(burst.whole, burst.header)
    assert door.ways[-1] == "lower"


def test_an_icmp_packet_too_big_narrows_the_path_and_shuts_no_door(make_engine: MakeEngine) -> None:
    door, burst = SuperDoor(make_engine), BURSTS["tcp4"]
    door.engine.underlay.paths[str(VTEP_B)] = 1400
    door.engine.underlay.refuse(VTEP_B, errno.EMSGSIZE, 1400)
    door.engine.pass_a_second()
    assert door.doors.shuts == []
    door.super_frame(burst.whole, burst.header)
    fitting = replace(burst, size=1400 - 50 - 40)
    door.super_frame(fitting.whole, fitting.header)
    assert [sent.frame for sent in door.door.written] == [fitting.whole]


def test_a_door_is_wanted_once_and_only_for_super_frames(make_engine: MakeEngine) -> None:
    door, burst = SuperDoor(make_engine, vteps=(VTEP_B, VTEP_C)), BURSTS["tcp4"]
    door.doors.doors.clear()
    door.engine.datapath.reroute()
    door.burst(*datagrams(100, 100))
    assert door.doors.wanted == []
    for _ in range(3):
        door.super_frame(burst.whole, burst.header)
    assert door.doors.wanted == [VTEP_B]
    door.engine.datapath.reroute()
    door.super_frame(burst.whole, burst.header)
    assert door.doors.wanted == [VTEP_B]
    assert set(door.ways) == {"lower"}


def test_without_anybody_who_opens_doors_the_lower_one_is_taken(make_engine: MakeEngine) -> None:
    door, burst = Door(make_engine), BURSTS["tcp4"]
    assert door.engine.underlay.super_doors is None
    assert frames_of(door.super_frame(burst.whole, burst.header)) == burst.segments


def test_rerouting_picks_up_a_door_its_new_hop_and_its_end(make_engine: MakeEngine) -> None:
    door, burst = SuperDoor(make_engine), BURSTS["tcp4"]
    other = SuperDoorDouble(replace(HOP, destination=MAC_A), log=door.sends)

    def way_of_next() -> str:
        door.super_frame(burst.whole, burst.header)
        return door.ways[-1]

    assert way_of_next() == "super"
    door.doors.doors[VTEP_B] = other
    door.engine.datapath.reroute()
    assert way_of_next() == "super"
    assert (len(door.door.written), len(other.written)) == (1, 1)
    assert other.written[0].before[24:30] == MAC_A
    door.doors.doors.clear()
    door.engine.datapath.reroute()
    assert way_of_next() == "lower"
    door.doors.doors[VTEP_B] = door.door
    door.engine.datapath.reroute()
    assert way_of_next() == "super"


def test_a_vtep_at_another_port_is_written_to_at_that_port(make_engine: MakeEngine) -> None:
    door, burst = SuperDoor(make_engine), BURSTS["tcp4"]
    door.engine.add_vteps(VTEP_B, port=8472)
    door.super_frame(burst.whole, burst.header)
    assert [Ether(sent.before[24:])["UDP"].dport for sent in door.door.written] == [8472]


def test_of_a_super_frame_for_everybody_each_vtep_gets_it_by_its_own_door(make_engine: MakeEngine) -> None:
    door = SuperDoor(make_engine, vteps=(VTEP_B, VTEP_C))
    burst = Burst(protocol=17, octets=5300, size=1000)
    whole = BROADCAST + burst.whole[6:]
    for _ in range(2):  # decided, then remembered
        del door.sends[:], door.door.written[:]
        door.super_frame(whole, burst.header)
        assert [sent.frame for sent in door.door.written] == [whole]
        lower = [each for each in door.sends if isinstance(each, Send)]
        assert frames_of(lower) == [BROADCAST + each[6:] for each in burst.segments]
        assert {send.to for send in lower} == {str(VTEP_C)}


def test_observers_see_the_super_frame_whole_where_it_leaves(make_engine: MakeEngine) -> None:
    door, burst, watcher = SuperDoor(make_engine), BURSTS["tcp4"], Watcher()
    door.engine.datapath.watch(watcher)
    door.super_frame(burst.whole, burst.header)
    assert watcher.points() == [Point.DEVICE_READ, Point.UNDERLAY_SEND]
    assert {seen.frame for seen in watcher.seen} == {burst.whole}


WAYS_TO_FAIL = st.sampled_from([None, None, errno.EAGAIN, errno.EINVAL, errno.EIO])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=st.lists(st.tuples(st.booleans(), st.booleans(), WAYS_TO_FAIL), max_size=12))
def test_whatever_befalls_a_door_a_flow_leaves_in_order_or_is_dropped_by_name(
    make_engine: MakeEngine, frames: list[tuple[bool, bool, int | None]]
) -> None:
    """Frames are (super?, door open?, how the door fails)."""
    door = SuperDoor(make_engine)
    sequence = 100
    offered: list[bytes] = []
    for is_super, is_open, number in frames:
        burst = Burst(octets=3000 if is_super else 10, size=1000, sequence=sequence)
        sequence += burst.octets
        door.door.opened = is_open
        if number is not None:
            door.door.write_errors.append(os_error(number))
        if is_super:
            door.super_frame(burst.whole, burst.header)
        else:
            door.burst(burst.whole)
        offered += burst.segments
        door.door.write_errors.clear()
    numbers = [
        int.from_bytes(each[38:42], "big")
        for sent in door.sends
        for each in ([sent.frame] if isinstance(sent, SuperSent) else sent.frames)
    ]
    assert numbers == sorted(set(numbers))
    full = door.engine.drops().get(DropReason.UNDERLAY_FULL, 0)
    wholes = sum(isinstance(sent, SuperSent) for sent in door.sends)
    assert len(numbers) + 2 * wholes + 3 * full == len(offered)
    assert len(door.doors.shuts) <= 1


# ── Unfinished checksums ────────────────────────────────────────────────────────────────────────────────

WHOLE = {
    "udp4": (udp4(b"hello" * 21), 34, 17, 6),
    "tcp4": (tcp4(b"hello" * 21), 34, 6, 16),
    "udp6": (udp6(b"hello" * 21), 54, 17, 6),
    "tcp6": (tcp6(b"hello" * 21), 54, 6, 16),
}
ADDRESSES = {
    at: b"".join(ip_address(each).packed for each in pair)
    for at, pair in ((34, (IP4_A, IP4_B)), (54, (IP6_A, IP6_B)))
}


@pytest.mark.parametrize(("whole", "l4_at", "protocol", "field_at"), WHOLE.values(), ids=WHOLE)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_an_unfinished_checksum_is_finished_once_however_many_get_a_copy(
    make_engine: MakeEngine, whole: bytes, l4_at: int, protocol: int, field_at: int, count: int
) -> None:
    vteps = (VTEP_B, VTEP_C, VTEP_D, ip_address("192.0.2.5"))[:count]
    door = Door(make_engine, vteps=vteps)
    lacking = unfinished(whole, l4_at=l4_at, protocol=protocol, addresses=ADDRESSES[l4_at])
    header = struct.pack("=BBHHHH", 1, 0, 0, 0, l4_at, field_at)
    assert frames_of(door.super_frame(lacking, header)) == [whole]
    for _ in range(2):  # decided, then remembered
        sends = door.super_frame(BROADCAST + lacking[6:], header)
        assert frames_of(sends) == [BROADCAST + whole[6:]] * count
        assert {send.to for send in sends} == {str(vtep) for vtep in vteps}


def test_an_unfinished_frame_one_path_does_not_carry_reaches_the_others(make_engine: MakeEngine) -> None:
    door = Door(make_engine, vteps=(VTEP_B, VTEP_C))
    door.engine.underlay.paths[str(VTEP_B)] = 1000
    door.engine.underlay.refuse(VTEP_B, errno.EMSGSIZE, 1000)
    door.engine.pass_a_second()
    whole = udp4(b"x" * 1200)
    lacking = unfinished(whole, l4_at=34, protocol=17, addresses=ADDRESSES[34])
    sends = door.super_frame(BROADCAST + lacking[6:], struct.pack("=BBHHHH", 1, 0, 0, 0, 34, 6))
    assert [(send.to, send.frames) for send in sends] == [(str(VTEP_C), (BROADCAST + whole[6:],))]


@in_bursts
def test_unfinished_frames_of_one_size_share_a_send(make_engine: MakeEngine) -> None:
    door = Door(make_engine)
    frames = datagrams(*[100] * 5)
    for each in frames:
        lacking = unfinished(each, l4_at=34, protocol=17, addresses=ADDRESSES[34])
        door.engine.device.transmit(lacking, struct.pack("=BBHHHH", 1, 0, 0, 0, 34, 6))
    door.engine.settle()
    assert (counts(door.sends), frames_of(door.sends)) == ([5], frames)
