"""Packets on their way out: one socket, one subnet a flow, and an answer wherever a router owes one."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.packet_engine import PODS, VTEP_B, VTEP_C, PacketEngine, balanced_packet_engine
from support.packets import AT_B, AT_C, LOCAL, B, aged, icmp_of, packet

from overlay.addr import Vtep
from overlay.fdb import Origin
from overlay.tables import RouteReplace, VtepReplace
from overlay.verdict import DropReason
from tunnel.offload import GSO_UDP_L4, NEEDS_CSUM, VnetHeader

NOWHERE = IPv4Address("10.5.99.1")


@pytest.fixture
def engine() -> Iterator[PacketEngine]:
    with balanced_packet_engine() as made:
        yield made


def test_a_packet_leaves_bare_from_the_port_it_goes_to(engine: PacketEngine) -> None:
    engine.from_device(packet(), packet())
    assert [each.payload for each in engine.sent] == [aged(packet())] * 2
    assert {(each.source_port, each.to) for each in engine.sent} == {(8285, ("192.0.2.2", 8285))}
    (vtep_b,) = (each for each in engine.statistics().vteps if each.vtep == VTEP_B)
    assert (vtep_b.sent_frames, vtep_b.sent_octets) == (2, 2 * len(packet()))


def test_subnets_go_to_their_vteps_in_order(engine: PacketEngine) -> None:
    mixed = [packet(destination=each, payload=bytes([n])) for n, each in enumerate([AT_B, AT_C, AT_B])]
    engine.from_device(*mixed)
    to_b = [each.payload for each in engine.sent if each.to[0] == str(VTEP_B)]
    assert to_b == [aged(mixed[0]), aged(mixed[2])]
    assert [each.payload for each in engine.sent if each.to[0] == str(VTEP_C)] == [aged(mixed[1])]


def test_a_scan_of_the_whole_network_leaves_one_flow_for_each_subnet(engine: PacketEngine) -> None:
    for third in range(256):
        engine.from_device(
            *(
                packet(destination=IPv4Address((10 << 24) + (5 << 16) + (third << 8) + host))
                for host in (0, 1, 200)
            )
        )
    known = 4  # ours, two others', and nowhere
    assert engine.flow_count == known
    assert engine.statistics().upcalls == known


def test_a_new_flow_that_begins_with_a_burst_loses_nothing(engine: PacketEngine) -> None:
    engine.from_device(packet(), *[packet(destination=AT_C)] * 100)
    assert (len(engine.sent), engine.drops()) == (101, {})


def test_a_known_flow_follows_its_route_and_its_vtep(engine: PacketEngine) -> None:
    engine.from_device(packet())
    engine.apply(RouteReplace(PODS, B, VTEP_C, Origin.STATIC))
    engine.from_device(packet())
    engine.apply(VtepReplace(PODS, Vtep(VTEP_C, 9999)))
    engine.from_device(packet())
    assert [each.to for each in engine.sent] == [
        ("192.0.2.2", 8285),
        ("192.0.2.3", 8285),
        ("192.0.2.3", 9999),
    ]


def test_no_route_is_told_and_counted_for_a_remembered_flow_too(engine: PacketEngine) -> None:
    engine.from_device(packet(destination=NOWHERE), packet(destination=NOWHERE))
    assert engine.drops() == {DropReason.NO_ROUTE: 2}
    told = [icmp_of(answer) for answer in engine.device.answers]
    assert told == [(3, 0, "10.5.1.0", str(LOCAL))] * 2


@pytest.mark.parametrize("ttl", [0, 1])
def test_time_exceeded_is_told_and_counted(engine: PacketEngine, ttl: int) -> None:
    engine.from_device(packet(ttl=ttl))
    assert engine.drops() == {DropReason.TTL_EXPIRED: 1}
    assert [icmp_of(answer) for answer in engine.device.answers] == [(11, 0, "10.5.1.0", str(LOCAL))]
    assert not engine.sent


def test_a_packet_longer_than_the_path_is_told_what_fits(engine: PacketEngine) -> None:
    engine.from_device(packet())
    engine.underlay.refuse(VTEP_B, errno.EMSGSIZE, 1028)
    engine.underlay.paths[str(VTEP_B)] = 1028
    engine.datapath.expire(now=engine.clock.now)
    engine.from_device(packet(payload=bytes(1200), flags="DF"))
    (answer,) = engine.device.answers
    assert icmp_of(answer) == (3, 4, "10.5.1.0", str(LOCAL))
    assert int.from_bytes(answer[26:28], "big") == 1000


def test_nothing_longer_than_the_networks_mtu_leaves_for_the_other_end_would_cut_it() -> None:
    with balanced_packet_engine(overlay_mtu=1300) as engine:
        engine.from_device(packet(payload=bytes(1272)), packet(payload=bytes(1273), flags="DF"))
        assert [len(each.payload) for each in engine.sent] == [1300]
        assert engine.drops() == {DropReason.MTU_EXCEEDED: 1}
        assert int.from_bytes(engine.device.answers[0][26:28], "big") == 1300


def test_errors_are_rate_limited_and_drops_are_counted_all_the_same(engine: PacketEngine) -> None:
    for _ in range(20):
        engine.from_device(*(packet(ttl=1) for _ in range(50)))
    assert engine.drops() == {DropReason.TTL_EXPIRED: 1000}
    assert 10 <= len(engine.device.answers) <= 100


@pytest.mark.parametrize("octets", [b"", b"\x45", packet()[:-1], b"\x44" + packet()[1:], bytes(40)])
def test_what_is_malformed_goes_no_further(engine: PacketEngine, octets: bytes) -> None:
    engine.from_device(octets)
    assert not engine.sent
    assert not engine.device.answers
    assert set(engine.drops()) <= {DropReason.TRUNCATED, DropReason.INNER_MALFORMED}


def test_ipv6_has_no_way_in_this_format(engine: PacketEngine) -> None:
    engine.from_device(b"\x60" + bytes(39))
    assert engine.drops() == {DropReason.NO_ROUTE: 1}


def test_a_host_that_takes_no_answer_costs_a_drop(engine: PacketEngine) -> None:
    engine.device.errno = errno.ENETUNREACH
    engine.from_device(packet(ttl=1))
    assert engine.drops() == {DropReason.TTL_EXPIRED: 1, DropReason.DEVICE_FULL: 1}


def test_a_super_packet_is_cut_into_packets_that_are_sound(engine: PacketEngine) -> None:
    payload = bytes(range(256)) * 12
    whole = bytearray(packet(payload=payload))
    pseudo = int.from_bytes(whole[12:20], "big") + 17 + len(whole) - 20
    whole[26:28] = (pseudo % 0xFFFF or 0xFFFF).to_bytes(2, "big")
    header = VnetHeader(NEEDS_CSUM, GSO_UDP_L4, 28, 1000, 20, 6)
    engine.from_device(packet())
    engine.underlay.sent.clear()
    engine.device.transmit(bytes(whole), header.build())
    engine.settle()
    sent = [each.payload for each in engine.sent]
    assert b"".join(each[28:] for each in sent) == payload
    for number, each in enumerate(sent):
        expected = packet(payload=payload[1000 * number : 1000 * number + 1000], ttl=63, id=1 + number)
        assert each == expected


@given(st.lists(st.binary(max_size=64), max_size=8))
def test_any_octets_are_accounted_for(octets: list[bytes]) -> None:
    with balanced_packet_engine() as engine:
        engine.from_device(*octets)
        assert not engine.sent or all(each.to[1] == 8285 for each in engine.sent)
