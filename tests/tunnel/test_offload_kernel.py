"""Repair, judged by the kernel that has to finish and cut what is written to the TAP."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest
from scapy.layers.inet import TCP
from scapy.layers.l2 import Ether
from support.frames import IP4_A, IP4_B, IP6_A, IP6_B, MAC_A, MAC_B, tcp4, tcp6, udp4, udp6, unfinished
from support.namespace import Namespace, needs_namespaces

from tunnel.offload import PLAIN, repair_untrusted
from tunnel.tap import Tap

pytestmark = [pytest.mark.root, pytest.mark.timeout(30), needs_namespaces]

PORT = 7000
PAYLOAD = bytes(range(250)) * 20
VERSIONS = {
    4: (socket.AF_INET, IP4_A, IP4_B, tcp4, udp4, 34),
    6: (socket.AF_INET6, IP6_A, IP6_B, tcp6, udp6, 54),
}


@pytest.fixture
def tap() -> Iterator[Tap]:
    """A TAP whose host is B, and who knows A."""
    namespace = Namespace()
    with namespace:
        tap = Tap("weft0")
        namespace.run(
            f"ip link set weft0 address {MAC_B.hex(':')} addrgenmode none",
            "ip link set weft0 up",
            f"ip address add {IP4_B}/24 dev weft0",
            f"ip address add {IP6_B}/64 dev weft0",
            f"ip neighbor add {IP4_A} lladdr {MAC_A.hex(':')} dev weft0",
            f"ip neighbor add {IP6_A} lladdr {MAC_A.hex(':')} dev weft0",
        )
        tap.set_carrier(up=True)
        yield tap
        tap.close()
    namespace.close()


def half(frame: bytes, version: int, protocol: int) -> bytes:
    _, source, destination, _, _, l4_at = VERSIONS[version]
    addresses = ip_address(source).packed + ip_address(destination).packed
    return unfinished(frame, l4_at=l4_at, protocol=protocol, addresses=addresses)


def write_repaired(tap: Tap, frame: bytes, *, segment_size: int | None = None) -> None:
    header = repair_untrusted(memoryview(frame), overlay_mtu=1450, segment_size=segment_size, mss=None)
    assert isinstance(header, bytes)
    tap.write([header, frame])


def read_segment(tap: Tap) -> Any:
    """The next TCP segment the host sends."""
    header, buffer = bytearray(10), bytearray(65535)
    while select.select([tap.fileno()], [], [], 5)[0]:
        frame = Ether(bytes(buffer[: tap.read_into([header, buffer]) - len(header)]))
        if TCP in frame:
            return frame[TCP]
    pytest.fail("the host has sent no TCP segment")


@pytest.mark.parametrize("version", VERSIONS)
def test_messages_of_a_super_frame_arrive_one_by_one(tap: Tap, version: int) -> None:
    family, _, destination, _, udp, _ = VERSIONS[version]
    with socket.socket(family, socket.SOCK_DGRAM) as receiver:
        receiver.bind((destination, PORT))
        receiver.settimeout(5)
        frame = half(udp(PAYLOAD, sport=1, dport=PORT), version, 17)
        write_repaired(tap, frame, segment_size=1200)
        messages = [receiver.recv(65535) for _ in range(5)]
    assert [len(message) for message in messages] == [1200, 1200, 1200, 1200, 200]
    assert b"".join(messages) == PAYLOAD


@pytest.mark.parametrize("version", VERSIONS)
def test_an_unfinished_datagram_arrives_repaired_and_not_plain(tap: Tap, version: int) -> None:
    family, _, destination, _, udp, _ = VERSIONS[version]
    with socket.socket(family, socket.SOCK_DGRAM) as receiver:
        receiver.bind((destination, PORT))
        receiver.settimeout(5)
        tap.write([PLAIN, half(udp(b"plain", sport=1, dport=PORT), version, 17)])
        write_repaired(tap, half(udp(b"repaired", sport=1, dport=PORT), version, 17))
        assert receiver.recv(65535) == b"repaired"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_tcp_connection_lives_on_nothing_but_repaired_frames(tap: Tap, version: int) -> None:
    family, _, destination, tcp, _, _ = VERSIONS[version]
    ports: dict[str, Any] = {"sport": 1234, "dport": PORT}
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind((destination, PORT))
        listener.listen()
        listener.settimeout(5)
        syn = tcp(b"", **ports, seq=100, flags="S", options=[("MSS", 1400)])
        write_repaired(tap, half(syn, version, 6))
        answer = read_segment(tap)
        assert str(answer.flags) == "SA"
        ack = answer.seq + 1
        write_repaired(tap, half(tcp(b"", **ports, seq=101, ack=ack, flags="A"), version, 6))
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(5)
            super_frame = tcp(PAYLOAD, **ports, seq=101, ack=ack, flags="PA")
            write_repaired(tap, half(super_frame, version, 6))
            received = b""
            while len(received) < len(PAYLOAD):
                received += connection.recv(65535)
            assert received == PAYLOAD
