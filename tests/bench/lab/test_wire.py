"""The simulated wire impairs by its seed, and its sockets say what a kernel's would."""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import replace
from ipaddress import ip_address
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.lab.virtual import VirtualReactor
from bench.lab.wire import (
    HOST_UNREACHABLE_S,
    UDP_GRO,
    UDP_SEGMENT,
    Impairment,
    SimulatedPort,
    SimulatedUnderlay,
    SimulatedWire,
)
from overlay.errors import DeviceError
from tunnel.interfaces import Refusal

A, B, C = (ip_address(f"192.0.2.{k}") for k in (1, 2, 3))
PORT = 4789


class Net:
    """Two underlays on a wire, `b` listening."""

    def __init__(self, impairment: Impairment | None = None, seed: int = 7) -> None:
        self.reactor = VirtualReactor(seed)
        self.wire = SimulatedWire(self.reactor, Random(seed), impairment)
        self.a = SimulatedUnderlay(self.wire, A)
        self.b = SimulatedUnderlay(self.wire, B)
        self.port = self.b.open_port(PORT)

    def send(self, payload: bytes) -> int:
        return self.a.senders[0].send(payload, (str(B), PORT))

    def received(self, seconds: float = 1.0) -> list[bytes]:
        self.reactor.run_for(seconds)
        return [payload for payload, _ in drain(self.port)]


def drain(port: SimulatedPort) -> list[tuple[bytes, list[tuple[int, int, bytes]]]]:
    reads: list[tuple[bytes, list[tuple[int, int, bytes]]]] = []
    while True:
        buffer = bytearray(65535)
        try:
            octets, control, _, _ = port.receive_into([buffer], 64)
        except BlockingIOError:
            return reads
        reads.append((bytes(buffer[:octets]), control))


def test_a_datagram_arrives_after_its_delay_from_its_senders_port() -> None:
    net = Net(Impairment(delay_s=0.25))
    assert net.send(b"hello") == 5
    assert net.received(0.2) == []
    net.reactor.run_for(0.06)
    buffer = bytearray(100)
    octets, _, flags, sender = net.port.receive_into([buffer], 64)
    assert bytes(buffer[:octets]) == b"hello"
    assert (flags, sender) == (0, (str(A), net.a.senders[0].port))


def test_a_datagram_longer_than_the_buffers_is_cut_and_says_so() -> None:
    net = Net()
    net.send(b"0123456789")
    net.reactor.run_for(1)
    first, second = bytearray(4), bytearray(4)
    octets, _, flags, _ = net.port.receive_into([first, second], 64)
    assert (octets, flags) == (8, int(socket.MSG_TRUNC))
    assert first + second == b"01234567"


def test_loss_is_drawn_from_the_seed() -> None:
    def arrived(seed: int) -> list[bytes]:
        net = Net(Impairment(loss=0.5), seed)
        for number in range(200):
            net.send(bytes([number]))
        return net.received()

    assert arrived(1) == arrived(1) != arrived(2)
    assert 70 < len(arrived(1)) < 130


def test_duplication_and_jitter_double_and_reorder() -> None:
    net = Net(Impairment(duplication=1.0, jitter_s=0.1))
    sent = [bytes([number]) for number in range(50)]
    for payload in sent:
        net.send(payload)
    arrived = net.received()
    assert sorted(arrived) == sorted(sent * 2)
    assert arrived != sorted(arrived)


def test_a_partition_cuts_off_until_it_heals() -> None:
    net = Net()
    net.wire.partition([A], [B])
    net.send(b"lost")
    assert net.received() == []
    net.wire.heal()
    net.send(b"found")
    assert net.received() == [b"found"]
    assert net.wire.fates["cut off"] == 1


def test_one_direction_can_be_impaired_alone() -> None:
    net = Net()
    net.wire.impair(Impairment(loss=1.0), A, B)
    back = net.a.open_port(PORT)
    net.send(b"there")
    net.b.senders[0].send(b"back", (str(A), PORT))
    assert net.received() == []
    assert [payload for payload, _ in drain(back)] == [b"back"]


def test_the_own_devices_mtu_is_refused_at_once() -> None:
    net = Net()
    assert net.send(bytes(1472)) == 1472
    with pytest.raises(OSError, match="too long") as refused:
        net.send(bytes(1473))
    assert refused.value.errno == errno.EMSGSIZE


def test_a_narrower_path_is_reported_and_remembered() -> None:
    net = Net(Impairment(mtu=1400))
    net.send(bytes(1400))
    assert net.received() == []
    assert net.a.refusals() == [Refusal(str(B), errno.EMSGSIZE, 1400)]
    assert net.a.path_mtu((str(B), PORT)) == 1400
    with pytest.raises(OSError, match="too long"):
        net.send(bytes(1400))
    net.send(bytes(1372))
    assert net.received() == [bytes(1372)]


def test_a_refusal_fails_the_next_send_once_unless_it_was_taken() -> None:
    net = Net()
    to, nowhere = (str(B), PORT), (str(C), PORT)
    net.a.senders[0].send(b"x", (str(B), PORT + 1))
    net.a.senders[0].send(b"x", nowhere)
    net.reactor.run_for(HOST_UNREACHABLE_S + 1)
    with pytest.raises(OSError, match="No route"):
        net.a.senders[0].send(b"x", to)
    net.a.senders[0].send(b"x", to)
    assert net.a.refusals() == [
        Refusal(str(B), errno.ECONNREFUSED),
        Refusal(str(C), errno.EHOSTUNREACH),
    ]
    net.a.senders[0].send(b"x", nowhere)
    net.reactor.run_for(HOST_UNREACHABLE_S + 1)
    assert net.a.refusals() == [Refusal(str(C), errno.EHOSTUNREACH)]
    net.a.senders[0].send(b"x", to)


def test_a_full_receive_queue_counts_what_it_loses() -> None:
    net = Net()
    for _ in range(3000):
        net.send(bytes(1472))
    assert len(net.received()) + net.port.overruns() == 3000
    assert net.port.overruns() > 0
    net.send(b"room again")
    assert net.received() == [b"room again"]


def test_a_port_is_bound_once() -> None:
    net = Net()
    with pytest.raises(DeviceError, match=r"192\.0\.2\.2:4789"):
        net.b.open_port(PORT)
    net.port.close()
    net.b.open_port(PORT)


@given(length=st.integers(1, 9000), stride=st.integers(500, 1400), gro=st.booleans())
def test_what_udp_segment_cuts_udp_gro_joins(length: int, stride: int, gro: bool) -> None:
    net = Net(Impairment(gro=gro))
    payload = Random(length).randbytes(length)
    control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", stride))]
    parts = [payload[:7], payload[7:]]
    assert net.a.senders[1].send_marked(parts, control, 0, (str(B), PORT)) == len(payload)
    net.reactor.run_for(1)
    reads = drain(net.port)
    assert b"".join(part for part, _ in reads) == payload
    segments = -(-len(payload) // stride)
    assert len(reads) == (1 if gro else segments)
    strides = [data for _, messages in reads for _, kind, data in messages if kind == UDP_GRO]
    assert strides == ([struct.pack("=i", stride)] if gro and segments > 1 else [])


def test_the_tos_octet_crosses_and_congestion_marks_it() -> None:
    net = Net()
    ect_0 = [(socket.IPPROTO_IP, socket.IP_TOS, bytes([0b10]))]
    for net.wire.congested in (False, True):
        net.a.senders[0].send_marked([b"x"], ect_0, 0, (str(B), PORT))
        net.send(b"not capable")
        net.reactor.run_for(1)
    tos = [data[0] for _, control in drain(net.port) for _, kind, data in control if kind == socket.IP_TOS]
    assert tos == [0b10, 0, 0b11, 0]


def test_watchers_see_every_fate() -> None:
    net = Net(Impairment(loss=1.0))
    seen: list[tuple[float, bytes, str]] = []
    net.wire.watch(lambda now, datagram, fate: seen.append((now, datagram.payload, fate)))
    net.send(b"x")
    net.wire.impair(replace(Impairment(), delay_s=1.0))
    net.send(b"y")
    net.reactor.run_for(2)
    assert seen == [(0, b"x", "sent"), (0, b"x", "lost"), (0, b"y", "sent"), (1.0, b"y", "delivered")]
