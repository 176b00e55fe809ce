"""What stands before a super-packet, dissected by scapy and a struct of our own, its sums added anew."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import ip_address
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.utils import checksum
from support.super_frames import Burst, bursts

from overlay.addr import IpAddress, Mac, Vni
from tunnel.interfaces import Hop
from tunnel.split import Place, locate_untrusted
from tunnel.super_packet import TUNNEL_HEADER_LENGTH, OuterHeader
from tunnel.vxlan import build_header

OURS, THEIRS = Mac(b"\x02\x5e\0\0\0\x01"), Mac(b"\x02\x5e\0\0\0\x02")
ADDRESSES: dict[int, tuple[IpAddress, IpAddress]] = {
    4: (ip_address("192.0.2.1"), ip_address("198.51.100.2")),
    6: (ip_address("2001:db8::1"), ip_address("2001:db8:ffff::2")),
}
PORT, SOURCE_PORT = 4789, 51234
VXLAN = build_header(Vni(42))
LONGEST = {4: 65535 - 20 - 8, 6: 65535 - 40 - 8}  # octets of datagram in one IP packet

BURSTS = {
    "tcp4": Burst(octets=20_000, size=1400, tcp_options=1),
    "tcp6": Burst(6, octets=20_000, size=1380, tcp_options=2),
    "udp4": Burst(protocol=17, octets=20_300, size=1000),
    "udp6": Burst(6, 17, octets=20_300, size=1000),
    "tcp4 with ip options": Burst(octets=5000, ip_options=2),
    "tcp6 with extensions": Burst(6, octets=5000, ip_options=2),
    "tcp with CWR": Burst(octets=5000, flags="CA"),
    "60 KB": Burst(octets=60_000, size=1400),
}
every_burst = pytest.mark.parametrize("burst", BURSTS.values(), ids=BURSTS)
every_outer = pytest.mark.parametrize("version", [4, 6])


class Vnet(NamedTuple):
    """struct virtio_net_hdr_v1_hash_tunnel, field by field as <linux/virtio_net.h> has them."""

    flags: int
    gso_type: int
    hdr_len: int
    gso_size: int
    csum_start: int
    csum_offset: int
    num_buffers: int
    hash_value_lo: int
    hash_value_hi: int
    hash_report: int
    padding: int
    outer_th_offset: int
    inner_nh_offset: int


def outer(version: int, *, has_checksum: bool = True) -> OuterHeader:
    return OuterHeader(Hop(OURS, THEIRS, has_checksum), *ADDRESSES[version], PORT)


def place_of(burst: Burst) -> Place:
    place = locate_untrusted(burst.header, memoryview(burst.whole))
    assert place is not None
    return place


def fill(header: OuterHeader, burst: Burst, *, source_port: int = SOURCE_PORT, ecn: int = 0) -> bytes:
    octets = len(VXLAN) + len(burst.whole)
    return bytes(header.fill(burst.header[1], place_of(burst), octets, source_port=source_port, ecn=ecn))


def written(before: bytes, burst: Burst) -> tuple[Vnet, Any]:
    """The super-packet as the kernel would see it: (virtio header, outer Ethernet as scapy dissects it)."""
    vnet = Vnet(*struct.unpack("=BB11H", before[:24]))
    return vnet, Ether(before[24:] + VXLAN + burst.whole)


def at(packet: Any, layer: type[Any]) -> int:
    """Where the first layer of this kind begins, in octets from the packet's first."""
    return len(packet.original) - len(packet[layer].original)


@every_outer
@given(
    wants=st.lists(
        st.tuples(
            st.sampled_from([1, 4]),
            st.sampled_from(["60 KB", "tcp4"]),
            st.sampled_from([5000, 60_000]),
            st.sampled_from([50_000, 50_001]),
            st.sampled_from([0, 2]),
        ),
        max_size=6,
    )
)
def test_what_was_filled_before_leaves_no_trace(
    version: int, wants: list[tuple[int, str, int, int, int]]
) -> None:
    again = outer(version)
    for gso_type, name, octets, port, ecn in wants:
        place = place_of(BURSTS[name])
        anew = outer(version).fill(gso_type, place, octets, source_port=port, ecn=ecn)
        assert again.fill(gso_type, place, octets, source_port=port, ecn=ecn) == anew


@every_outer
@every_burst
def test_the_outer_headers_lead_from_us_to_the_vtep_by_the_next_hop(version: int, burst: Burst) -> None:
    _, packet = written(fill(outer(version), burst, ecn=2), burst)
    assert (packet.src, packet.dst) == (OURS.hex(":"), THEIRS.hex(":"))
    ip = packet[IP] if version == 4 else packet[IPv6]
    assert (ip_address(ip.src), ip_address(ip.dst)) == ADDRESSES[version]
    assert (packet[UDP].sport, packet[UDP].dport) == (SOURCE_PORT, PORT)
    octets = 8 + len(VXLAN) + len(burst.whole)
    assert packet[UDP].len == octets
    if version == 4:
        assert (ip.version, ip.ihl, ip.len, ip.proto, ip.ttl) == (4, 5, 20 + octets, 17, 64)
        assert (str(ip.flags), ip.frag, ip.tos) == ("DF", 0, 2)
    else:
        assert (ip.version, ip.plen, ip.nh, ip.hlim, ip.tc, ip.fl) == (6, octets, 17, 64, 2, 0)
    assert bytes(packet[UDP].payload) == VXLAN + burst.whole


@every_outer
@every_burst
def test_every_offset_of_the_virtio_header_points_where_it_must(version: int, burst: Burst) -> None:
    vnet, packet = written(fill(outer(version), burst), burst)
    whole = Ether(burst.whole)
    before = len(packet.original) - len(burst.whole)
    l4 = TCP if burst.protocol == 6 else UDP
    l4_at = before + at(whole, l4)
    assert vnet.outer_th_offset == at(packet, UDP)
    assert vnet.inner_nh_offset == before + at(whole, IP if burst.version == 4 else IPv6)
    assert vnet.csum_start == l4_at
    assert vnet.csum_offset == {6: 16, 17: 6}[burst.protocol]
    assert vnet.hdr_len == l4_at + (whole[TCP].dataofs * 4 if burst.protocol == 6 else 8)
    assert vnet.gso_size == burst.size
    assert (vnet.num_buffers, vnet.hash_value_lo, vnet.hash_value_hi, vnet.hash_report) == (0, 0, 0, 0)
    assert vnet.padding == 0


@every_outer
@every_burst
def test_the_gso_type_is_the_inner_one_and_the_tunnels(version: int, burst: Burst) -> None:
    vnet, _ = written(fill(outer(version), burst), burst)
    inner = {(4, 6): 1, (6, 6): 4, (4, 17): 5, (6, 17): 5}[burst.version, burst.protocol]
    assert vnet.gso_type == inner | (0x80 if "C" in burst.flags else 0) | {4: 0x20, 6: 0x40}[version]


@pytest.mark.parametrize("has_checksum", [True, False])
def test_only_with_a_checksum_the_flags_say_that_the_outer_one_is_unfinished(has_checksum: bool) -> None:
    vnet, _ = written(fill(outer(4, has_checksum=has_checksum), BURSTS["tcp4"]), BURSTS["tcp4"])
    assert vnet.flags == 0x01 | (0x08 if has_checksum else 0)


def test_without_a_checksum_the_outer_field_says_none() -> None:
    _, packet = written(fill(outer(4, has_checksum=False), BURSTS["tcp4"]), BURSTS["tcp4"])
    assert packet[UDP].chksum == 0


def folded(octets: bytes) -> int:
    """The sum of 16-bit words with end-around carry, one by one (RFC 1071 section 1), not complemented."""
    total = 0
    for word in struct.unpack(f"!{len(octets) // 2}H", octets):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return total


@every_outer
@given(burst=bursts(tags=st.just(())), ecn=st.integers(0, 3), source_port=st.integers(1, 65535))
def test_whatever_the_burst_both_outer_sums_are_right(
    version: int, burst: Burst, ecn: int, source_port: int
) -> None:
    _, packet = written(fill(outer(version), burst, source_port=source_port, ecn=ecn), burst)
    if version == 4:
        assert checksum(packet[IP].original[:20]) == 0
    length = len(packet[UDP].original)
    pseudo = b"".join(each.packed for each in ADDRESSES[version]) + struct.pack("!IHBB", length, 0, 0, 17)
    assert packet[UDP].chksum == folded(pseudo)
    assert packet[UDP].sport == source_port


@pytest.mark.parametrize("octets", range(20_000, 20_600))
def test_no_length_has_a_seed_that_says_none(octets: int) -> None:
    # The words of these addresses, 17 and a length of 20302 make 65535: there the remainder is zero.
    source, destination = ip_address("10.0.0.1"), ip_address("166.159.0.0")
    header = OuterHeader(Hop(OURS, THEIRS, has_checksum=True), source, destination, PORT)
    filled = bytes(header.fill(1, place_of(BURSTS["tcp4"]), octets - 8, source_port=SOURCE_PORT, ecn=0))
    pseudo = source.packed + destination.packed + struct.pack("!BBH", 0, 17, octets)
    assert struct.unpack("!H", filled[-2:])[0] == folded(pseudo) != 0


@every_outer
@given(filled=st.lists(st.tuples(bursts(tags=st.just(())), st.integers(0, 3)), min_size=1, max_size=4))
def test_nothing_of_an_earlier_frame_is_left_over(version: int, filled: list[tuple[Burst, int]]) -> None:
    used = outer(version)
    for number, (burst, ecn) in enumerate(filled):
        again = fill(used, burst, source_port=number + 1, ecn=ecn)
        assert again == fill(outer(version), burst, source_port=number + 1, ecn=ecn)


@every_outer
def test_its_buffer_is_lent_and_of_the_length_it_says(version: int) -> None:
    header, burst = outer(version), BURSTS["udp4"]
    first, second = (
        header.fill(burst.header[1], place_of(burst), octets, source_port=1, ecn=0) for octets in (100, 200)
    )
    assert first is second
    assert len(first) == header.length == TUNNEL_HEADER_LENGTH + 14 + {4: 20, 6: 40}[version] + 8


@every_outer
@given(octets=st.integers(0, 70_000))
def test_a_datagram_is_taken_up_to_the_longest_an_ip_packet_holds(version: int, octets: int) -> None:
    assert outer(version).takes(place_of(BURSTS["tcp4"]), octets) == (octets <= LONGEST[version])


@every_outer
def test_the_longest_datagram_is_taken_and_one_octet_more_is_not(version: int) -> None:
    place = place_of(BURSTS["tcp4"])
    assert outer(version).takes(place, LONGEST[version])
    assert not outer(version).takes(place, LONGEST[version] + 1)


@every_outer
@pytest.mark.parametrize("tags", [(7,), (100, 7)])
def test_a_tagged_frame_is_not_taken(version: int, tags: tuple[int, ...]) -> None:
    # The kernel looks for the inner IP header behind 14 octets of Ethernet.
    assert not outer(version).takes(place_of(replace(BURSTS["tcp4"], tags=tags)), 1000)
