"""A frame alone: after a pause it goes the shortest way, and all that it comes to is what a burst's comes to.

Whole scripts at both paces are in `tests/tunnel/test_pydatapath.py` and `tests/twin/test_twin.py`.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP
from support.doubles import (
    OURS,
    OURS_V6,
    VTEP_B,
    VTEP_V6,
    Engine,
    MakeEngine,
    Watcher,
    balanced_engines,
    os_error,
)
from support.frames import IP4_A, IP4_B, MAC_B, arp_request, tcp4, tcp6, udp4, udp6, unfinished
from support.pace import PACES, alone

from overlay.addr import IpAddress
from overlay.verdict import DropReason
from tunnel.egress import Egress
from tunnel.flows import IDLE_SECONDS
from tunnel.ingress import Ingress
from tunnel.offload import PLAIN
from tunnel.vxlan import HEADER_LENGTH

TCP, UDP = 6, 17
L4_AT = 34
CHECKSUM_AT = {TCP: 16, UDP: 6}
ADDRESSES = ip_address(IP4_A).packed + ip_address(IP4_B).packed
DATA = b"data" * 16  # a shorter frame goes the longer way

pytestmark = [pytest.mark.usefixtures("pace"), alone]


def left_to_us(frame: bytes, protocol: int) -> tuple[bytes, bytes]:
    """The frame as the host hands it over, and the virtio header that says what is to be done."""
    header = struct.pack("=BBHHHH", 1, 0, 0, 0, L4_AT, CHECKSUM_AT[protocol])
    return header, unfinished(frame, l4_at=L4_AT, protocol=protocol, addresses=ADDRESSES)


def knowing(make_engine: Callable[..., Engine], **others: Any) -> Engine:
    """An engine that remembers the flows between A, behind its device, and B, behind a VTEP."""
    engine = make_engine(**others)
    vtep = vtep_of(engine)
    engine.bind(MAC_B, vtep)
    for frame in (tcp4(b"first"), udp4(b"first")):  # the last one was UDP's
        engine.from_device(frame)
        engine.from_underlay(turned(frame), sender=vtep)
    engine.sent.clear()
    engine.device.written.clear()
    return engine


def vtep_of(engine: Engine) -> IpAddress:
    """The one it has, of its underlay's family."""
    return VTEP_V6 if engine.underlay.address.version == 6 else VTEP_B


def turned(frame: bytes) -> bytes:
    """The same from B to A."""
    return frame[6:12] + frame[:6] + frame[12:]


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("expected the shortest way")


# ── The shortest way ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [12, 13, 64, 999, 1390])
@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("is_finished", [True, False], ids=["finished", "unfinished"])
def test_a_frame_of_a_known_flow_goes_past_the_batches_with_its_checksum_finished(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, size: int, protocol: int, is_finished: bool
) -> None:
    engine = knowing(make_engine)
    of_its_flow = tcp4 if protocol == TCP else udp4
    engine.from_device(of_its_flow(b"the last one was of this flow"))
    engine.sent.clear()
    monkeypatch.setattr(Egress, "_meet", refuse)
    frame = of_its_flow(bytes([size % 251]) * size)
    header, given_frame = (PLAIN, frame) if is_finished else left_to_us(frame, protocol)
    engine.device.transmit(given_frame, header)
    engine.settle()
    assert [sent.frame for sent in engine.sent] == [frame]


def test_a_frame_of_a_class_goes_the_shortest_way_too(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = knowing(make_engine)
    monkeypatch.setattr(Egress, "_meet", refuse)
    engine.from_device(FRAMES["of a class"])
    assert [(sent.frame, sent.tos) for sent in engine.sent] == [(FRAMES["of a class"], 0)]


def test_a_checksum_that_comes_to_zero_is_written_as_its_other_zero(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 768: 0 is "no checksum"."""
    engine = knowing(make_engine)
    monkeypatch.setattr(Egress, "_meet", refuse)
    checksum = udp4(bytes(64))[L4_AT + CHECKSUM_AT[UDP] :][:2]
    header, given_frame = left_to_us(udp4(checksum + bytes(62)), UDP)
    engine.device.transmit(given_frame, header)
    engine.settle()
    assert engine.sent[0].frame[L4_AT + CHECKSUM_AT[UDP] :][:2] == b"\xff\xff"


@pytest.mark.parametrize("address", [OURS, OURS_V6], ids=["IPv4", "IPv6"])
def test_a_datagram_of_a_known_flow_is_asked_nothing_more(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, address: IpAddress
) -> None:
    engine = knowing(make_engine, addresses=(address,), vteps=(VTEP_V6 if address is OURS_V6 else VTEP_B,))
    monkeypatch.setattr(Ingress, "_receive_read", refuse)
    frame = turned(udp4(DATA))
    engine.from_underlay(frame, sender=vtep_of(engine))
    assert engine.device.frames == [frame]


# ── What it comes to ────────────────────────────────────────────────────────────────────────────────────

FRAMES = {
    "udp": udp4(DATA),
    "tcp": tcp4(DATA),
    "syn": tcp4(flags="S", options=[("MSS", 700)]),
    "marked": udp4(DATA, ip=IP(src=IP4_A, dst=IP4_B, tos=2)),
    "of a class": udp4(DATA, ip=IP(src=IP4_A, dst=IP4_B, tos=0x10)),
    "marked, of a class": udp4(DATA, ip=IP(src=IP4_A, dst=IP4_B, tos=0x12)),
    "fragment": udp4(DATA, ip=IP(src=IP4_A, dst=IP4_B, flags="MF")),
    "other ports": udp4(DATA, dport=54),
    "options": udp4(DATA, ip=IP(src=IP4_A, dst=IP4_B, options=b"\x01\x01\x01\x00")),
    "tagged": udp4(DATA, tags=(7,)),
    "udp6": udp6(b"data"),
    "tcp6": tcp6(b"data"),
    "arp": arp_request(),
    "short": udp4(DATA)[:20],
    "no frame": b"data",
    "too long": udp4(bytes(1600)),
    "just fits": udp4(bytes(1408)),
}
# Frames that differ from the one before by a single thing: most find its addresses and ports, or all but.
ALIKE = ("udp", "marked", "of a class", "fragment", "other ports", "just fits")
ERRORS = (errno.EAGAIN, errno.ENOBUFS, errno.EPERM, errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EMSGSIZE)
Carry = Callable[[Engine], None]


@st.composite
def steps(draw: st.DrawFn) -> Carry:
    """One frame, one way or the other, and what may befall it."""
    frame = FRAMES[draw(st.sampled_from(ALIKE) | st.sampled_from(sorted(FRAMES)))]
    header = draw(st.sampled_from([PLAIN, left_to_us(udp4(), UDP)[0], left_to_us(tcp4(), TCP)[0]]))
    errors = draw(st.just([]) | st.lists(st.sampled_from(ERRORS), max_size=2))
    tos, is_egress = draw(st.sampled_from([0, 0, 2, 3])), draw(st.booleans())
    write_errors = draw(st.lists(st.sampled_from([errno.EINVAL, errno.EAGAIN, errno.EIO]), max_size=1))

    def carry(engine: Engine) -> None:
        engine.underlay.send_errors.extend(map(os_error, errors))
        engine.device.write_errors.extend(map(os_error, write_errors))
        if is_egress:
            engine.device.transmit(frame, header)
            engine.settle()
        else:
            engine.from_underlay(turned(frame), tos=tos, sender=vtep_of(engine))
        engine.underlay.send_errors.clear()
        engine.device.write_errors.clear()

    return carry


def outcome(script: list[Carry], pace: float, watched_from: int, **others: Any) -> tuple[object, ...]:
    """What went out, what was written, what was counted and, from that step on, what was seen."""
    with pytest.MonkeyPatch.context() as patch, balanced_engines() as make_engine:
        for module in ("tunnel.egress", "tunnel.ingress"):
            patch.setattr(f"{module}.QUIET_SECONDS", pace)
        engine = knowing(make_engine, **others)
        watcher = Watcher()
        for number, step in enumerate(script):
            if number == watched_from:
                engine.datapath.watch(watcher)
            step(engine)
        flows = [(flow.key, flow.verdict, flow.frames, flow.octets) for flow in engine.datapath.flows()]
        return engine.sent, engine.device.written, engine.statistics(), flows, watcher.seen


@settings(max_examples=300)
@given(
    script=st.lists(steps(), min_size=1, max_size=12),
    watched_from=st.integers(0, 20),
    repairs=st.booleans(),
    address=st.sampled_from([OURS, OURS_V6]),
)
def test_whatever_comes_it_is_the_same_alone_as_in_a_burst(
    script: list[Carry], watched_from: int, repairs: bool, address: IpAddress
) -> None:
    vtep = VTEP_V6 if address is OURS_V6 else VTEP_B
    in_a_burst, by_itself = (
        outcome(script, pace, watched_from, repairs=repairs, addresses=(address,), vteps=(vtep,))
        for pace in PACES
    )
    assert by_itself == in_a_burst


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EAGAIN, DropReason.UNDERLAY_FULL),
        (errno.EPERM, DropReason.UNDERLAY_ERROR),
        (errno.EMSGSIZE, DropReason.MTU_EXCEEDED),
    ],
)
def test_a_send_refused_is_a_drop_with_its_reason(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, number: int, reason: DropReason
) -> None:
    engine = knowing(make_engine)
    monkeypatch.setattr(Egress, "_meet", refuse)
    engine.underlay.send_errors.extend(os_error(number) for _ in range(8))
    engine.from_device(udp4(DATA))
    assert engine.drops() == engine.drops_of(VTEP_B) == {reason: 1}


def test_a_report_of_an_earlier_datagram_loses_nothing(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = knowing(make_engine)
    monkeypatch.setattr(Egress, "_meet", refuse)
    engine.underlay.send_errors.append(os_error(errno.ECONNREFUSED))
    engine.from_device(udp4(DATA))
    assert [sent.payload[HEADER_LENGTH:] for sent in engine.sent] == [udp4(DATA)]


def test_a_syn_of_a_known_flow_tells_how_long_its_segments_may_be(make_engine: MakeEngine) -> None:
    engine = knowing(make_engine)
    engine.from_device(tcp4(b"its flow"))
    engine.from_device(tcp4(flags="SA", options=[("MSS", 700)]))
    _, super_frame = left_to_us(tcp4(bytes(20_000)), TCP)
    engine.from_underlay(turned(super_frame))
    ((header, _),) = engine.device.written
    assert int.from_bytes(header[4:6], "little") == 700


def test_where_no_underlay_is_of_the_vteps_family_it_is_an_underlay_error(make_engine: MakeEngine) -> None:
    engine = make_engine(vteps=(VTEP_V6,))
    engine.bind(MAC_B, VTEP_V6)
    for _ in range(3):
        engine.from_device(udp4(DATA))
    assert engine.drops_of(VTEP_V6) == {DropReason.UNDERLAY_ERROR: 3}


def test_a_flow_in_use_is_remembered_however_long(make_engine: MakeEngine) -> None:
    engine = knowing(make_engine)
    before = engine.statistics().upcalls
    for _ in range(4):
        engine.clock.advance(IDLE_SECONDS * 0.9)
        engine.from_device(udp4(DATA))
        engine.from_underlay(turned(udp4(DATA)))
        for _ in range(2):  # one begins a round, the next ends it
            engine.pass_a_second()
    assert engine.statistics().upcalls == before
