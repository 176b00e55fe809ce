"""The flow hash: one value for a flow, another for another, ports never read where there are none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP, IPOption_NOP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, fragment6
from scapy.layers.ipsec import AH
from scapy.packet import Raw
from support.frames import (
    IP4_A,
    IP4_B,
    IP6_A,
    IP6_B,
    MAC_A,
    MAC_B,
    arp_request,
    echo4,
    ether,
    tcp4,
    tcp6,
    udp4,
    udp6,
)

from tunnel.entropy import flow_hash_untrusted

OPTIONS = IP(src=IP4_A, dst=IP4_B, options=[IPOption_NOP()] * 4)
V6: Any = IPv6(src=IP6_A, dst=IP6_B)
FRAMES: dict[str, Callable[..., bytes]] = {
    "tcp4": tcp4,
    "udp4": udp4,
    "tcp6": tcp6,
    "udp6": udp6,
}


@pytest.mark.parametrize("name", FRAMES)
def test_payload_sequence_and_ttl_change_nothing(name: str) -> None:
    make = FRAMES[name]
    assert flow_hash_untrusted(make(b"one")) == flow_hash_untrusted(make(b"another" * 20))
    if name.startswith("tcp"):
        assert flow_hash_untrusted(make(seq=1, ack=2, flags="S")) == flow_hash_untrusted(
            make(seq=9, flags="F")
        )


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("field", ["sport", "dport"])
def test_each_port_counts(name: str, field: str) -> None:
    make = FRAMES[name]
    assert flow_hash_untrusted(make(b"x" * 20, **{field: 1})) != flow_hash_untrusted(
        make(b"x" * 20, **{field: 2})
    )


def test_each_address_and_the_protocol_count() -> None:
    ips = [IP(src=src, dst=dst) for src in (IP4_A, "10.9.0.7") for dst in (IP4_B, "10.9.0.8")]
    ip6s = [IPv6(src=src, dst=dst) for src in (IP6_A, "fd00::7") for dst in (IP6_B, "fd00::8")]
    frames = [make(dport=53, ip=ip) for make in (tcp4, udp4) for ip in ips]
    frames += [make(dport=53, ip=ip) for make in (tcp6, udp6) for ip in ip6s]
    assert len({flow_hash_untrusted(frame) for frame in frames}) == 16


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("tags", [(7,), (100, 7)])
def test_tags_shift_the_offsets_and_change_nothing(name: str, tags: tuple[int, ...]) -> None:
    assert flow_hash_untrusted(FRAMES[name](b"x", tags=tags)) == flow_hash_untrusted(FRAMES[name](b"x"))


def test_options_and_extension_headers_change_nothing() -> None:
    assert flow_hash_untrusted(udp4(ip=OPTIONS)) == flow_hash_untrusted(udp4())
    for extensions in (
        IPv6ExtHdrDestOpt(),
        IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt(),
        IPv6ExtHdrHopByHop(nh=51) / AH(nh=17, spi=1, seq=1, payloadlen=4, icv=bytes(12)),
    ):
        assert flow_hash_untrusted(udp6(ip=V6 / extensions)) == flow_hash_untrusted(udp6())


def test_every_ipv4_fragment_goes_one_way() -> None:
    whole = IP(src=IP4_A, dst=IP4_B, id=9) / UDP(sport=1, dport=2) / Raw(bytes(range(256)) * 12)
    frames = [ether(part) for part in fragment(whole, fragsize=800)]  # type: ignore[no-untyped-call]
    assert len(frames) == 4
    hashes = {flow_hash_untrusted(frame) for frame in frames}
    assert len(hashes) == 1
    assert hashes != {flow_hash_untrusted(ether(whole))}


@pytest.mark.parametrize("before", [None, IPv6ExtHdrHopByHop()])
def test_every_ipv6_fragment_goes_one_way(before: Any) -> None:
    head = V6 if before is None else V6 / before
    whole = head / IPv6ExtHdrFragment(id=9) / UDP(sport=1, dport=2) / Raw(bytes(range(256)) * 12)
    frames = [ether(part) for part in fragment6(whole, 1280)]  # type: ignore[no-untyped-call]
    assert len(frames) >= 3
    assert {flow_hash_untrusted(frame) for frame in frames} == {crc32(frames[0][22:54], 17)}


def test_options_do_not_hide_a_fragment() -> None:
    first, second = (
        udp4(b"x" * 20, ip=IP(src=IP4_A, dst=IP4_B, options=[IPOption_NOP()] * 4, flags="MF"), dport=port)
        for port in (1, 2)
    )
    assert flow_hash_untrusted(first) == flow_hash_untrusted(second)


def test_what_has_no_ports_is_spread_by_address() -> None:
    assert flow_hash_untrusted(echo4(b"one")) == flow_hash_untrusted(echo4(b"two"))
    assert flow_hash_untrusted(echo4()) != flow_hash_untrusted(echo4(dst="10.9.0.3"))
    other = ether(IP(src=IP4_A, dst=IP4_B), ICMP(type=13), Raw(b"x" * 20))
    assert flow_hash_untrusted(other) == flow_hash_untrusted(echo4())


def test_what_is_not_ip_is_spread_by_mac_and_type() -> None:
    assert flow_hash_untrusted(arp_request(asked_for="10.9.0.3")) == flow_hash_untrusted(arp_request())
    assert flow_hash_untrusted(MAC_A + MAC_B + b"\x88\xcc") != flow_hash_untrusted(
        MAC_B + MAC_A + b"\x88\xcc"
    )
    assert flow_hash_untrusted(MAC_A + MAC_B + b"\x88\xcc") != flow_hash_untrusted(
        MAC_A + MAC_B + b"\x88\xcd"
    )


def test_the_hash_is_the_crc_it_says_it_is() -> None:
    frame = udp4(b"x", sport=1000, dport=2000)
    assert flow_hash_untrusted(frame) == crc32(frame[26:38], 17)
    assert flow_hash_untrusted(udp6(b"x")) == crc32(udp6(b"x")[22:58], 17)


@given(st.binary(max_size=120), st.booleans())
def test_any_octets_have_a_hash(octets: bytes, tagged: bool) -> None:
    frame = MAC_A + MAC_B + (b"\x81\x00\x00\x07" if tagged else b"") + octets
    for candidate in (octets, frame, frame[:12] + b"\x08\x00" + octets, frame[:12] + b"\x86\xdd" + octets):
        value = flow_hash_untrusted(candidate)
        assert 0 <= value < 2**32
        assert (
            value == flow_hash_untrusted(memoryview(candidate)) == flow_hash_untrusted(bytearray(candidate))
        )


@pytest.mark.parametrize("name", FRAMES)
def test_every_truncation_has_a_hash(name: str) -> None:
    frame = FRAMES[name](b"payload", tags=(7,))
    for length in range(len(frame)):
        assert 0 <= flow_hash_untrusted(frame[:length]) < 2**32


def test_flows_spread_over_a_pool_of_sockets() -> None:
    taken = Counter(flow_hash_untrusted(tcp4(sport=32768 + n)) % 16 for n in range(1600))
    assert len(taken) == 16
    assert max(taken.values()) < 200
