"""Both engines on the same bare packets: same octets out, same answers, counters, drop reasons and flows.

The Python engine is the specification.  What goes in is generated: packets of every kind and garbage from
the TUN, packets and runs of them from VTEPs and strangers, changes to the routes in between.
"""

from __future__ import annotations

import select
import struct
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IPOption_NOP
from support.packets import packet
from support.super_frames import Burst, bursts
from support.twins import (
    NETWORK,
    PLAIN,
    STRANGER,
    VTEPS,
    PacketTwin,
    assert_same_books,
    packet_twin,
    run_both,
)

from overlay.fdb import Origin
from overlay.tables import RouteRemove, RouteReplace
from overlay.verdict import DropReason
from tunnel.ladder import Feature

pytestmark = pytest.mark.timeout(300)  # two engines, 120 scripts, on a machine that may be busy

pytest.importorskip("tunnel._native", reason="the native engine is not built: see `weft version`")

Step = Callable[[PacketTwin], None]
HOSTS = [IPv4Address(f"10.9.{host}") for host in ("0.1", "0.2", "0.9", "2.7", "2.8", "3.7", "4.1")]
ETHERNET_LENGTH = 14


# ── What goes in ────────────────────────────────────────────────────────────────────────────────────────

packets = st.builds(
    lambda source, destination, octets, ttl, tos, options: packet(
        source, destination, bytes(octets), ttl=ttl, tos=tos, options=[IPOption_NOP()] * options
    ),
    st.sampled_from(HOSTS),
    st.sampled_from(HOSTS),
    st.sampled_from([0, 1, 64, 900, 1444, 1445, 1600]),
    st.sampled_from([64, 64, 64, 2, 1, 0]),
    st.sampled_from([0, 0, 1, 2, 3]),
    st.sampled_from([0, 0, 4]),
)
some_bursts = bursts(
    version=st.just(4), tags=st.just(()), octets=st.integers(1, 30), size=st.sampled_from([100, 480, 1200])
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A packet with a few octets of it changed, or its end cut off, or something behind it."""
    octets = bytearray(draw(packets))
    for _ in range(draw(st.integers(0, 2))):
        octets[draw(st.integers(0, min(len(octets), 40) - 1))] = draw(st.integers(0, 255))
    end = draw(st.integers(1, len(octets)) | st.just(len(octets)))
    return bytes(octets[:end]) + bytes(draw(st.sampled_from([0, 0, 9])))


def bare(burst: Burst) -> tuple[bytes, bytes]:
    """A super-frame as a TUN gives it: virtio header, packet."""
    flags, kind, headers, size, start, offset = struct.unpack("=BBHHHH", burst.header)
    header = struct.pack(
        "=BBHHHH", flags, kind, headers - ETHERNET_LENGTH, size, start - ETHERNET_LENGTH, offset
    )
    return header, burst.whole[ETHERNET_LENGTH:]


def super_packet(burst: Burst) -> Step:
    header, octets = bare(burst)
    return lambda engine: engine.from_device(octets, header=header)


def odd_header(burst: Burst, header: bytes) -> Step:
    return lambda engine: engine.from_device(bare(burst)[1], header=header)


def from_device(burst: list[bytes]) -> Step:
    return lambda engine: engine.from_device(*burst, header=PLAIN)


def from_vtep(datagrams: list[bytes], sender: int, tos: int = 0) -> Step:
    address = (*VTEPS, STRANGER)[sender]
    return lambda engine: engine.from_vtep(*datagrams, sender=address, tos=tos)


def run_of(burst: Burst, sender: int, tos: int, spoilt: int) -> Step:
    """Its segments in one run, turned round; one of them spoilt now and then."""
    segments = [turned(each[ETHERNET_LENGTH:]) for each in burst.segments][:40]
    if spoilt < len(segments):
        segments[spoilt] = segments[spoilt][:-1] + bytes([segments[spoilt][-1] ^ 1])
    return from_vtep(segments, sender, tos)


def turned(octets: bytes) -> bytes:
    """The packet of the other direction: every sum stays."""
    return octets[:12] + octets[16:20] + octets[12:16] + octets[20:]


@st.composite
def route_changes(draw: st.DrawFn) -> Step:
    """A subnet moves to another VTEP, comes, or goes."""
    subnet = IPv4Network(draw(st.sampled_from(["10.9.2.0/24", "10.9.2.7/32", "10.9.0.0/16", "0.0.0.0/0"])))
    vtep = draw(st.sampled_from([None, *VTEPS]))
    if draw(st.booleans()):
        return lambda engine: engine.apply(RouteRemove(NETWORK, subnet))
    return lambda engine: engine.apply(RouteReplace(NETWORK, subnet, vtep, Origin.CONTROL))


senders = st.sampled_from([0, 0, 0, 1, 2])
marks = st.sampled_from([0, 0, 1, 2, 3])
headers = st.builds(
    lambda flags, kind, numbers: struct.pack("=BBHHHH", flags, kind, *numbers),
    st.sampled_from([0, 1]),
    st.sampled_from([0, 1, 3, 5]),
    st.lists(st.sampled_from([0, 1, 6, 16, 20, 40, 1000, 65535]), min_size=4, max_size=4),
)
steps = st.one_of(
    st.lists(packets | mutated(), min_size=1, max_size=4).map(from_device),
    st.binary(min_size=1, max_size=80).map(lambda octets: from_device([octets])),
    some_bursts.map(super_packet),
    st.builds(odd_header, some_bursts, headers),
    st.builds(lambda octets, sender, tos: from_vtep([octets], sender, tos), mutated(), senders, marks),
    st.builds(lambda octets, sender: from_vtep([octets], sender), st.binary(max_size=60), senders),
    st.builds(lambda octets, count: from_vtep([octets] * count, 0), mutated(), st.integers(2, 20)),
    st.builds(run_of, some_bursts, senders, marks, st.integers(0, 60)),
    route_changes(),
)


# ── What comes out ──────────────────────────────────────────────────────────────────────────────────────


def by_flow(told: list[tuple[object, bytes]]) -> dict[bytes, list[tuple[object, bytes]]]:
    """Each pair's packets in their order."""
    flows: dict[bytes, list[tuple[object, bytes]]] = {}
    for beside, octets in told:
        flows.setdefault(octets[12:20], []).append((beside, octets))
    return flows


def assert_alike(python: PacketTwin, native: PacketTwin) -> None:
    """All that can be seen of two engines is the same."""
    assert by_flow([*native.written]) == by_flow([*python.written])
    assert sorted(native.answers) == sorted(python.answers)
    for vtep, arrived in python.arrived.items():
        assert by_flow([*native.arrived[vtep]]) == by_flow([*arrived])
    assert_same_books(python, native)


@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(script=st.lists(steps, min_size=1, max_size=12))
def test_whatever_comes_both_engines_do_the_same(script: list[Step]) -> None:
    run_both(packet_twin, assert_alike, script)


@pytest.mark.parametrize("others", [{"repairs": False}, {"overlay_mtu": 600}], ids=str)
@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(script=st.lists(steps, min_size=1, max_size=12))
def test_however_the_network_is_set_both_engines_do_the_same(
    others: dict[str, object], script: list[Step]
) -> None:
    run_both(packet_twin, assert_alike, script, **others)


def test_without_segmentation_both_send_one_by_one() -> None:
    def lower(engine: PacketTwin) -> None:
        engine.underlay.ladder.lower(Feature.UDP_GSO, "a test", now=0.0)
        engine.datapath.expire(now=engine.reactor.time())

    run_both(
        packet_twin,
        assert_alike,
        [lower, super_packet(Burst(octets=20_000)), from_device([packet(HOSTS[0], HOSTS[3])] * 5)],
    )


@pytest.mark.parametrize("kind", ["python", "native"])
def test_an_icmp_error_is_taken_at_once_where_the_socket_is_heard(kind: str) -> None:
    with packet_twin(kind) as engine:
        (exchange,) = engine.underlay._exchanges
        engine.sockets.pop(VTEPS[0]).close()  # loopback answers that the port is closed
        engine.from_device(packet(HOSTS[0], HOSTS[3]))
        deadline = time.monotonic() + 5
        while engine.drops() != {DropReason.UNDERLAY_ERROR: 1} and time.monotonic() < deadline:
            engine.settle()
        assert engine.drops() == {DropReason.UNDERLAY_ERROR: 1}
        assert not select.select([exchange], [], [], 0)[0], "an error that waits keeps the socket readable"


def test_what_both_do_is_to_carry_and_to_answer() -> None:
    """That the engines agree says nothing where both do nothing."""
    with packet_twin("native") as engine:
        engine.from_device(packet(HOSTS[0], HOSTS[3]), packet(HOSTS[0], HOSTS[5], bytes(1500), flags="DF"))
        engine.from_device(packet(HOSTS[0], HOSTS[3], ttl=1), packet(HOSTS[0], HOSTS[6]))
        super_packet(Burst(octets=20_000))(engine)
        for _ in range(2):  # the first time they wait for their verdict one by one
            run_of(Burst(octets=20_000), 0, 0, 99)(engine)
        engine.from_vtep(packet(HOSTS[3], HOSTS[0], ttl=1))
        assert len(engine.answers) == 3
        assert engine.drops() == {
            DropReason.MTU_EXCEEDED: 1,
            DropReason.TTL_EXPIRED: 2,
            DropReason.NO_ROUTE: 1,
        }
        assert [len(octets) for _, octets in engine.arrived[VTEPS[0]]].count(1040) == 20
        assert max(len(octets) for _, octets in engine.written) == 20_040
        assert len(engine.arrived[VTEPS[0]]) == 22  # one packet, twenty segments, one error
