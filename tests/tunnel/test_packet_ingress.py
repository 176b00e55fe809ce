"""Packets on their way in: from a VTEP of ours, sound, from whom they say, and not back into the tunnel."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, IPOption_Timestamp
from scapy.packet import Raw
from support.doubles import Watcher
from support.packet_engine import (
    PODS,
    STRANGER,
    VTEP_B,
    VTEP_C,
    PacketEngine,
    balanced_packet_engine,
)
from support.packets import AT_B, AT_C, LOCAL, C, aged, icmp_of, packet

from overlay.fdb import Origin
from overlay.tables import RouteReplace
from overlay.verdict import DropReason
from tunnel.flannel_udp import ETHERNET
from tunnel.interfaces import Point
from tunnel.offload import GSO_TCPV4, NEEDS_CSUM, PLAIN, VnetHeader, parse_vnet_header_untrusted


@pytest.fixture
def engine() -> Iterator[PacketEngine]:
    with balanced_packet_engine() as made:
        yield made


def incoming(source: IPv4Address = AT_B, destination: IPv4Address = LOCAL, **fields: Any) -> bytes:
    return packet(source, destination, **fields)


def test_a_packet_is_delivered_one_hop_older(engine: PacketEngine) -> None:
    engine.from_underlay(incoming(), incoming())
    assert engine.device.written == [(PLAIN, aged(incoming()))] * 2
    (vtep_b,) = (each for each in engine.statistics().vteps if each.vtep == VTEP_B)
    assert (vtep_b.received_frames, vtep_b.received_octets) == (2, 2 * len(incoming()))


def test_options_are_carried_and_trailing_octets_are_not(engine: PacketEngine) -> None:
    with_options = incoming(options=[IPOption_Timestamp()])
    engine.from_underlay(with_options, incoming() + bytes(9))
    assert engine.device.packets == [aged(with_options), aged(incoming())]


def test_a_stranger_is_counted(engine: PacketEngine) -> None:
    engine.from_underlay(incoming(), sender=STRANGER)
    assert engine.drops() == {DropReason.UNKNOWN_VTEP: 1}


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (b"", DropReason.TRUNCATED),
        (incoming()[:19], DropReason.TRUNCATED),
        (incoming()[:-1], DropReason.TRUNCATED),  # what a proxy with a smaller buffer leaves of it
        (b"\x65" + incoming()[1:], DropReason.INNER_MALFORMED),
        (b"\x44" + incoming()[1:], DropReason.INNER_MALFORMED),
        (incoming()[:10] + b"\xba\xad" + incoming()[12:], DropReason.INNER_MALFORMED),
        (incoming(source=LOCAL), DropReason.SPOOFED_SOURCE),
        (incoming(source=IPv4Address("10.5.1.0")), DropReason.SPOOFED_SOURCE),
        (incoming(source=AT_C), DropReason.SPOOFED_SOURCE),
        (incoming(destination=AT_C), DropReason.SPLIT_HORIZON),
    ],
)
def test_what_must_not_come_in_has_a_name_the_second_time_too(
    engine: PacketEngine, octets: bytes, reason: DropReason
) -> None:
    engine.from_underlay(octets, octets)
    assert engine.drops() == {reason: 2}
    assert not engine.device.written


@pytest.mark.parametrize("ttl", [0, 1])
def test_time_exceeded_goes_back_to_the_vtep_that_brought_it(engine: PacketEngine, ttl: int) -> None:
    engine.from_underlay(incoming(ttl=ttl))
    assert engine.drops() == {DropReason.TTL_EXPIRED: 1}
    (sent,) = engine.sent
    assert (icmp_of(sent.payload), sent.to) == ((11, 0, "10.5.1.0", str(AT_B)), ("192.0.2.2", 8285))
    assert not engine.device.answers


def test_a_route_that_moves_takes_its_sources_along(engine: PacketEngine) -> None:
    engine.from_underlay(incoming(AT_C), sender=VTEP_B)
    engine.apply(RouteReplace(PODS, C, VTEP_B, Origin.STATIC))
    engine.from_underlay(incoming(AT_C), sender=VTEP_B)
    engine.from_underlay(incoming(AT_C), sender=VTEP_C)
    assert engine.device.packets == [aged(incoming(AT_C))]
    assert engine.drops() == {DropReason.SPOOFED_SOURCE: 2}


def segments(count: int, size: int = 1000) -> list[bytes]:
    """Neighbours of one TCP flow, as they cross."""
    return [
        bytes(
            IP(src=str(AT_B), dst=str(LOCAL), id=number, flags="DF")
            / TCP(sport=1, dport=2, seq=number * size, ack=7, flags="A")
            / Raw(bytes([number]) * size)
        )
        for number in range(count)
    ]


def test_neighbours_of_a_flow_are_written_as_the_one_packet_they_were(engine: PacketEngine) -> None:
    engine.from_underlay(incoming())
    engine.device.written.clear()
    engine.from_underlay(*segments(4), merge=True)
    ((header, whole),) = engine.device.written
    assert parse_vnet_header_untrusted(header) == VnetHeader(NEEDS_CSUM, GSO_TCPV4, 40, 1000, 20, 16)
    read = IP(whole)
    assert (read.len, read.ttl, len(whole)) == (4040, 63, 4040)
    assert bytes(read[Raw].load) == b"".join(bytes([number]) * 1000 for number in range(4))
    assert bytes(IP(bytes(read))) == whole


def test_a_run_with_a_bad_packet_in_it_is_delivered_around_it(engine: PacketEngine) -> None:
    engine.from_underlay(incoming())
    engine.device.written.clear()
    run = segments(3)
    run[1] = run[1][:10] + b"\0\0" + run[1][12:]
    engine.from_underlay(*run, merge=True)
    assert engine.device.packets == [aged(run[0]), aged(run[2])]
    assert engine.drops() == {DropReason.INNER_MALFORMED: 1}


def test_congestion_is_passed_on_to_who_heeds_it(engine: PacketEngine) -> None:
    engine.from_underlay(incoming(tos=2), incoming(tos=0), tos=3)
    (delivered,) = engine.device.packets
    assert delivered == aged(incoming(tos=3))
    assert engine.drops() == {DropReason.ECN_CONGESTED: 1}


def test_a_device_that_is_full_costs_a_drop(engine: PacketEngine) -> None:
    engine.device.errno = errno.EIO
    engine.from_underlay(incoming())
    assert engine.drops() == {DropReason.DEVICE_FULL: 1}


def test_an_observer_sees_packets_behind_ethernet_headers(engine: PacketEngine) -> None:
    watcher = Watcher()
    engine.datapath.watch(watcher)
    engine.from_underlay(incoming(), incoming(ttl=1))
    engine.from_device(packet())
    assert all(seen.frame.startswith(ETHERNET) for seen in watcher.seen)
    assert {Point.UNDERLAY_RECEIVE, Point.DEVICE_WRITE, Point.DROP} <= set(watcher.points())
    assert {Point.DEVICE_READ, Point.UNDERLAY_SEND} <= set(watcher.points())


@given(st.lists(st.binary(max_size=64), max_size=8), st.booleans())
def test_any_octets_are_accounted_for(octets: list[bytes], merge: bool) -> None:
    with balanced_packet_engine() as engine:
        engine.from_underlay(*octets, merge=merge)
        engine.from_underlay(*octets, merge=merge)
