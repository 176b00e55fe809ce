"""Split and merge against the kernel's own segmentation, octet for octet.

    written ──▶ TAP `whole` ─ tc ingress, mirred redirect ─▶ TAP `cut`, which takes no offloads ──▶ read

The second device can neither segment nor checksum, so the kernel does both in software on the way to it.
"""

from __future__ import annotations

import select
from collections.abc import Iterator
from dataclasses import replace

import pytest
from support.namespace import Namespace, needs_namespaces
from support.super_frames import Burst

from tunnel.merge import Write, merge_untrusted
from tunnel.split import finish_untrusted, split_untrusted
from tunnel.tap import Tap

pytestmark = [pytest.mark.root, pytest.mark.timeout(30), needs_namespaces]

TCP_TIMES, UDP = Burst(tcp_options=1), Burst(protocol=17)
BURSTS = {
    "tcp4": Burst(octets=46 * 1398, size=1398, tcp_options=1, flags="PA"),
    "tcp6": Burst(6, octets=46 * 1398, size=1398, tcp_options=1, flags="PA"),
    "udp4": Burst(4, 17, octets=46 * 1398, size=1398),
    "udp6": Burst(6, 17, octets=46 * 1398, size=1398),
    "a short tail": replace(TCP_TIMES, octets=2001),
    "a short udp tail": replace(UDP, octets=2001),
    "odd segments": replace(TCP_TIMES, octets=5000, size=999),
    "odd udp segments": replace(UDP, octets=5000, size=999),
    "small segments": replace(TCP_TIMES, octets=600, size=10),
    "segments of one octet": replace(TCP_TIMES, octets=60, size=1),
    "fin and psh": replace(TCP_TIMES, flags="FPA"),
    "cwr": replace(TCP_TIMES, flags="CA"),
    "cwr, fin and psh": replace(TCP_TIMES, flags="CFPA"),
    "ece": replace(TCP_TIMES, flags="EA"),
    "selective acknowledgments": replace(TCP_TIMES, tcp_options=2),
    "a sequence number that wraps": replace(TCP_TIMES, sequence=0xFFFFFC00),
    "an identification that wraps": replace(TCP_TIMES, identification=0xFFFF),
    "ipv4 options": replace(TCP_TIMES, ip_options=2),
    "udp and ipv4 options": replace(UDP, ip_options=2),
    "no df": replace(TCP_TIMES, may_fragment=True),
    "ipv6 hop by hop": Burst(6, ip_options=1, tcp_options=1),
    "ipv6 extensions": Burst(6, ip_options=2, tcp_options=1),
    "udp and ipv6 extensions": Burst(6, 17, ip_options=2),
    "a vlan": replace(TCP_TIMES, tags=(7,)),
    "a vlan, udp, ipv6": Burst(6, 17, tags=(7,)),
    "ecn and dscp": replace(TCP_TIMES, tos=0xBA),
    "three hundred frames' worth of small mss": replace(TCP_TIMES, octets=30000, size=100),
}


@pytest.fixture(scope="module")
def taps() -> Iterator[tuple[Tap, Tap]]:
    """(whole, cut)."""
    namespace = Namespace()
    with namespace:
        whole, cut = Tap("whole"), Tap("cut")
        for name in ("whole", "cut"):
            namespace.run(
                f"ip link set {name} addrgenmode none mtu 9000 txqueuelen 2000", f"ip link set {name} up"
            )
        namespace.run(
            "tc qdisc add dev whole clsact",
            "tc filter add dev whole ingress protocol all "
            "u32 match u32 0 0 action mirred egress redirect dev cut",
        )
        for tap in (whole, cut):
            tap.set_carrier(up=True)
        yield whole, cut
        whole.close()
        cut.close()
    namespace.close()


def read_frames(tap: Tap, count: int) -> list[bytes]:
    header, buffer = bytearray(10), bytearray(70000)
    frames: list[bytes] = []
    while len(frames) < count and select.select([tap.fileno()], [], [], 5)[0]:
        octets = tap.read_into([header, buffer]) - len(header)
        assert header == bytes(10), "the kernel has left something undone"
        frames.append(bytes(buffer[:octets]))
    return frames


def assert_nothing_more(tap: Tap) -> None:
    with pytest.raises(BlockingIOError):
        tap.read_into([bytearray(10), bytearray(70000)])


@pytest.mark.parametrize("name", BURSTS)
def test_the_segments_are_the_kernels(taps: tuple[Tap, Tap], name: str) -> None:
    whole, cut = taps
    burst = BURSTS[name]
    runs = split_untrusted(burst.header, memoryview(bytearray(burst.whole)), prefix=b"", payload_max=65507)
    assert isinstance(runs, list)
    ours = [bytes(head) + bytes(rest) for run in runs for head, rest in pairs(run.buffers)]
    whole.write([burst.header, burst.whole])
    theirs = read_frames(cut, len(ours))
    assert_nothing_more(cut)
    assert ours == theirs


@pytest.mark.parametrize("name", BURSTS)
def test_the_kernel_cuts_what_was_merged_into_what_came(taps: tuple[Tap, Tap], name: str) -> None:
    whole, cut = taps
    came = BURSTS[name].segments
    writes = merge_untrusted([memoryview(frame) for frame in came], overlay_mtu=1500, udp=True)
    for write in writes:
        assert isinstance(write, Write)
        whole.write([write.header, *write.buffers])
    assert read_frames(cut, len(came)) == came
    assert_nothing_more(cut)
    is_plain = BURSTS[name].ip_options or {*"FCE"} & {*BURSTS[name].flags}
    assert is_plain or len(writes) <= len(came) // 2


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [6, 17])
def test_a_finished_checksum_is_the_kernels(taps: tuple[Tap, Tap], version: int, protocol: int) -> None:
    whole, cut = taps
    burst = Burst(version, protocol, octets=777, size=1000)
    header = burst.header[:1] + bytes(5) + burst.header[6:]
    frame = bytearray(burst.whole)
    assert finish_untrusted(header, memoryview(frame))
    whole.write([header, burst.whole])
    assert read_frames(cut, 1) == [frame]


def pairs(buffers: list[bytes | bytearray | memoryview]) -> zip[tuple[bytes | bytearray | memoryview, ...]]:
    return zip(buffers[::2], buffers[1::2], strict=True)
