"""Whole nodes in one process: they carry, they account for every frame, and a seed is a run."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest

from bench.lab.host import NO_OFFLOAD, SimulatedDevice
from bench.lab.simulated import SimulatedLab, SimulatedNode
from bench.lab.topology import Address, NodeKind, Topology, Underlay, segment
from bench.lab.virtual import VirtualReactor
from bench.lab.wire import Impairment
from overlay.addr import Mac, NetworkId
from overlay.verdict import DropReason

WEFT = NodeKind.WEFT
PAIR = segment("pair", WEFT, WEFT)
THREE = segment("three", WEFT, WEFT, WEFT)
N2_V4, N2_V6 = ip_address("10.9.0.2"), ip_address("fd09::2")


def pairs(lab: SimulatedLab) -> Iterator[tuple[SimulatedNode, Address]]:
    for node in lab.nodes.values():
        for other in lab.nodes.values():
            if other is not node:
                yield from ((node, address.ip) for address in other.node.overlay_addresses)


@pytest.fixture
def ledgers() -> Iterator[list[SimulatedLab]]:
    """Labs to look after: when the test ends, every node of theirs has accounted for every frame."""
    labs: list[SimulatedLab] = []
    yield labs
    for lab in labs:
        lab.settle()
        assert lab.unbalanced() == []
        lab.close()


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("kinds", [2, 5])
def test_everybody_reaches_everybody(ledgers: list[SimulatedLab], version: int, kinds: int) -> None:
    lab = SimulatedLab(segment("s", *[WEFT] * kinds, underlay_version=version))
    ledgers.append(lab)
    assert all(ping.complete for ping in lab.ping_all(pairs(lab)))
    assert lab["n1"].drops() == {}


def test_after_learning_unicast_is_sent_to_one_vtep_only(ledgers: list[SimulatedLab]) -> None:
    lab = SimulatedLab(THREE)
    ledgers.append(lab)
    list(lab.ping_all([(lab["n1"], N2_V4)]))
    before = lab["n3"].datapath.statistics().ledger.received
    list(lab.ping_all([(lab["n1"], N2_V4)]))
    assert lab["n3"].datapath.statistics().ledger.received == before
    assert dict(lab["n1"].fdb())[lab["n2"].device.mac] == ip_address("192.0.2.2")


def test_one_seed_is_one_run() -> None:
    rough = Impairment(loss=0.2, duplication=0.1, jitter_s=0.01)

    def run(seed: int) -> tuple[object, ...]:
        with SimulatedLab(THREE, seed=seed, impairment=rough) as lab:
            pings = tuple(lab.ping_all(pairs(lab), count=10))
            return pings, dict(lab.wire.fates)

    assert run(5) == run(5)
    assert run(5) != run(6)


@pytest.mark.parametrize("seed", range(10))
def test_every_frame_is_accounted_for_on_a_rough_wire(ledgers: list[SimulatedLab], seed: int) -> None:
    rough = Impairment(loss=0.3, duplication=0.3, jitter_s=0.05, gro=seed % 2 == 1)
    lab = SimulatedLab(THREE, seed=seed, impairment=rough)
    ledgers.append(lab)
    arrived = sum(ping.received for ping in lab.ping_all(pairs(lab), count=20))
    assert arrived > 0
    assert lab["n1"].host.received["malformed"] == 0


def test_a_partition_parts_and_heals(ledgers: list[SimulatedLab]) -> None:
    lab = SimulatedLab(PAIR)
    ledgers.append(lab)
    lab.wire.partition([lab["n1"].node.vtep], [lab["n2"].node.vtep])
    (cut,) = lab.ping_all([(lab["n1"], N2_V4)])
    assert cut.received == 0
    lab.wire.heal()
    lab.settle()
    (healed,) = lab.ping_all([(lab["n1"], N2_V4)])
    assert healed.complete


def test_a_narrow_path_is_told_to_the_host(ledgers: list[SimulatedLab]) -> None:
    lab = SimulatedLab(PAIR, impairment=Impairment(mtu=1400))
    ledgers.append(lab)
    list(lab.ping_all([(lab["n1"], N2_V4), (lab["n1"], N2_V6)]))
    lab["n1"].ping(N2_V4, size=1390)  # finds out, and is lost
    lab.settle()
    assert lab["n1"].host.path_mtus == {}
    for destination in (N2_V4, N2_V6):
        lab["n1"].ping(destination, size=1390)
        lab.settle()
    assert lab["n1"].host.path_mtus == {N2_V4: 1350, N2_V6: 1350}
    assert lab["n1"].drops() == {DropReason.MTU_EXCEEDED: 3}
    with pytest.raises(OSError, match="too long"):
        lab["n1"].ping(N2_V4, size=1390)


def test_udp_arrives_as_it_was_sent(ledgers: list[SimulatedLab]) -> None:
    lab = SimulatedLab(PAIR)
    ledgers.append(lab)
    payloads = [bytes([number]) * (number + 1) for number in range(100)]
    for payload in payloads:
        lab["n1"].host.send_udp(N2_V6, 7, payload)
    lab.settle()
    assert lab["n2"].host.datagrams[7] == payloads


def test_a_crashed_node_is_not_heard_of_again(ledgers: list[SimulatedLab]) -> None:
    lab = SimulatedLab(THREE)
    ledgers.append(lab)
    list(lab.ping_all(pairs(lab)))
    lab["n2"].crash()
    lost, kept = lab.ping_all([(lab["n1"], N2_V4), (lab["n1"], ip_address("10.9.0.3"))])
    assert (lost.received, kept.complete) == (0, True)
    lab.settle()
    assert lab["n1"].drops()[DropReason.UNDERLAY_ERROR] > 0


def test_a_spoilt_octet_is_found_out(ledgers: list[SimulatedLab]) -> None:
    lab = SimulatedLab(PAIR)
    ledgers.append(lab)
    take = lab["n2"].device.receiver

    def spoil(frame: bytes) -> None:
        take(frame[:-1] + bytes([frame[-1] ^ 1]))

    lab["n2"].device.receiver = spoil
    (spoilt,) = lab.ping_all([(lab["n1"], N2_V4)])
    assert spoilt.received == 0
    assert lab["n2"].host.received["malformed"] + lab["n2"].host.received["arp"] > 0


def test_an_hour_passes_in_a_moment(ledgers: list[SimulatedLab]) -> None:
    lab = SimulatedLab(PAIR)
    ledgers.append(lab)
    list(lab.ping_all(pairs(lab)))
    assert lab["n1"].datapath.statistics().flows[NetworkId("lab")] > 0
    lab.reactor.run_for(3600)
    assert lab["n1"].datapath.statistics().flows[NetworkId("lab")] == 0
    assert all(ping.complete for ping in lab.ping_all(pairs(lab)))


def test_jumbo_underlays_carry_jumbo_overlays(ledgers: list[SimulatedLab]) -> None:
    jumbo: Topology = replace(PAIR, underlay=Underlay(mtu=9000))
    lab = SimulatedLab(jumbo)
    ledgers.append(lab)
    echo = lab["n1"].ping(N2_V4, size=8950 - 28)
    lab.settle()
    assert echo.answered_at is not None


# ── the device ──────────────────────────────────────────────────────────────────────────────────────────


def device() -> SimulatedDevice:
    made = SimulatedDevice(VirtualReactor(), "tap0", Mac(b"\x02" * 6), mtu=1450)
    made.set_carrier(up=True)
    return made


def test_a_device_says_what_a_tap_says() -> None:
    tap = device()
    with pytest.raises(BlockingIOError):
        tap.read_into([bytearray(100)])
    tap.is_up = False
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        tap.read_into([bytearray(9)])
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        tap.write([NO_OFFLOAD, bytes(60)])
    tap.close()
    with pytest.raises(OSError, match=os.strerror(errno.EBADFD)):
        tap.read_into([bytearray(9)])


def test_a_device_without_carrier_takes_nothing_from_its_host() -> None:
    tap = device()
    tap.set_carrier(up=False)
    assert not tap.transmit(bytes(60))
    tap.set_carrier(up=True)
    assert tap.transmit(bytes(60))


def test_a_full_device_counts_what_it_loses() -> None:
    tap = device()
    taken = sum(tap.transmit(bytes(60)) for _ in range(1500))
    assert taken + tap.overruns() == 1500
    assert tap.overruns() > 0


def test_a_checksum_left_open_is_finished_as_the_header_says() -> None:
    tap = device()
    taken: list[bytes] = []
    tap.receiver = taken.append
    segment_octets = bytes.fromhex("9c40 0007 000b 0018 616263")  # UDP, its checksum the pseudo-header's sum
    needs_csum = b"\x01\x00" + bytes(4) + (34).to_bytes(2, "little") + (6).to_bytes(2, "little")
    tap.write([needs_csum, bytes(34) + segment_octets])
    tap.reactor.run_for(0)
    # RFC 1071 by hand: 9c40 + 0007 + 000b + 0018 + 6162 + 6300 = 160cc, folded 60cd, inverted 9f32.
    assert taken == [bytes(34) + bytes.fromhex("9c40 0007 000b 9f32 616263")]


def test_a_header_that_points_past_the_frame_is_invalid() -> None:
    tap = device()
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        tap.write([b"\x01\x00" + bytes(4) + (59).to_bytes(2, "little") + bytes(2), bytes(60)])
