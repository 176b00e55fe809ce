"""Whatever anybody throws at a daemon's sockets is counted by its reason, and nothing else happens.

    n1  weft: the target ──┐
    n2  weft: a member  ───┼── hub          the member throws from its VTEP's address, the stranger from
    n3  a stranger ────────┘                one that nobody has told n1 of

Beside it all n2 pings n1, and no echo may be lost.
"""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from ipaddress import ip_address

import pytest
from support.engines import ON_BOTH
from support.frames import MAC_A, MAC_B, tcp4, udp4, vxlan
from support.lab import ROOT
from support.serving import StartLab, drops, eventually, view
from support.traffic import open_in, pinging, ports

from bench.lab.namespaces import Daemon, Lab
from bench.lab.topology import LAB_VNI, VXLAN_PORT, NodeKind, segment
from overlay.verdict import DropReason

pytestmark = [*ROOT, pytest.mark.interop, ON_BOTH]

N1, N1_VTEP = ip_address("10.9.0.1"), ip_address("192.0.2.1")
SENDERS = {"n2": ip_address("192.0.2.2"), "n3": ip_address("192.0.2.3")}
MEMBER, STRANGER = SENDERS
UDP_MAX = 65507  # octets of payload in one IPv4 datagram (RFC 791, RFC 768)
RANDOM_DATAGRAMS = 2000

PROPER = udp4(b"a proper frame")
GROUP_SOURCE = MAC_B + b"\x03" + MAC_A[1:] + PROPER[12:]
ENDS_IN_ITS_TAG = (MAC_B + MAC_A + b"\x81\x00\x00\x05")[:14]
CLAIMS_MORE_THAN_IS_THERE = MAC_B + MAC_A + b"\x08\x00\x45\x00\xff\xff" + bytes(UDP_MAX - 26)

AT_THE_DOOR = {
    DropReason.TRUNCATED: [vxlan(PROPER, LAB_VNI)[:octets] for octets in range(22)],
    DropReason.BAD_FLAGS: [vxlan(PROPER, LAB_VNI, flags=flags) for flags in (0x00, 0x04, 0x80, 0xF7)]
    + [bytes(UDP_MAX)],
    DropReason.UNKNOWN_VNI: [vxlan(PROPER, vni) for vni in (0, LAB_VNI - 1, LAB_VNI + 1, 0xFFFFFF)]
    + [vxlan(bytes(UDP_MAX - 8), 7)],
}
FROM_A_STRANGER = {
    **AT_THE_DOOR,
    DropReason.UNKNOWN_VTEP: [
        vxlan(frame, LAB_VNI) for frame in (PROPER, tcp4(b"x"), GROUP_SOURCE, bytes(14), bytes(UDP_MAX - 8))
    ],
}
FROM_A_MEMBER = {
    **AT_THE_DOOR,
    DropReason.INNER_MALFORMED: [
        vxlan(frame, LAB_VNI) for frame in (GROUP_SOURCE, ENDS_IN_ITS_TAG, CLAIMS_MORE_THAN_IS_THERE)
    ],
    DropReason.LINK_LOCAL: [vxlan(b"\x01\x80\xc2\0\0\x0e" + MAC_A + b"\x88\xcc" + bytes(46), LAB_VNI)],
}


SAID_TO_THE_API = (
    b"",
    bytes(70_000),
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    b"GET /v1/status HTTP/1.1\r\n",  # and nothing more
    b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\n\r\n",
    b"GET /v1/status HTTP/1.1\r\nHost: weft\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/fdb HTTP/1.1\r\nHost: weft\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET /v1/flows?network=%ff%00%0a HTTP/1.1\r\nHost: weft\r\n\r\n",
    b"GET /v1/watch HTTP/1.1\r\nHost: weft\r\n\r\n",  # and does not read
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    random.Random(5).randbytes(70_000),
)


@dataclass(frozen=True, slots=True)
class Target:
    lab: Lab
    daemon: Daemon

    def throw(self, thrower: str, datagrams: list[bytes], *, port: int = VXLAN_PORT) -> None:
        with open_in(self.lab[thrower], SENDERS[thrower], socket.SOCK_DGRAM) as thrown:
            for datagram in datagrams:
                thrown.sendto(datagram, (str(N1_VTEP), port))


@pytest.fixture
def target(start_lab: StartLab) -> Iterator[Target]:
    topology = segment("strangers", NodeKind.WEFT, NodeKind.WEFT, NodeKind.BARE)
    lab = start_lab(topology)
    with pinging(lab["n2"], N1):
        yield Target(lab, lab.daemons["n1"])
    assert lab.daemons["n1"].process.poll() is None


@pytest.mark.parametrize(
    ("thrower", "thrown"),
    [
        pytest.param(STRANGER, FROM_A_STRANGER, id="stranger"),
        pytest.param(MEMBER, FROM_A_MEMBER, id="member"),
    ],
)
def test_each_datagram_is_counted_by_its_reason(
    target: Target, thrower: str, thrown: dict[DropReason, list[bytes]]
) -> None:
    expected = {reason: len(datagrams) for reason, datagrams in thrown.items()}
    expected = {reason: expected.get(reason, 0) for reason in DropReason}
    before = drops(target.daemon)

    def counted() -> dict[DropReason, int]:
        return {reason: count - before[reason] for reason, count in drops(target.daemon).items()}

    for datagrams in thrown.values():
        target.throw(thrower, datagrams)
    eventually("all were counted", lambda: sum(counted().values()) >= sum(expected.values()))
    assert counted() == expected


def test_the_command_tells_what_was_dropped_and_why(target: Target) -> None:
    target.throw(STRANGER, FROM_A_STRANGER[DropReason.UNKNOWN_VTEP])
    eventually("they were counted", lambda: drops(target.daemon)[DropReason.UNKNOWN_VTEP] > 0)
    told = json.loads(target.daemon.ask("drops", "--json"))
    assert (told["schema"], told["data"]["UNKNOWN_VTEP"]) == ("weft.drops/1", 5)
    assert "UNKNOWN_VTEP" in target.daemon.ask("drops")
    [fix] = [each["fix"] for each in view(target.daemon, "status")["health"]]
    assert "peers" in fix


def test_a_strangers_frame_is_not_delivered_and_teaches_nothing(target: Target) -> None:
    marked = b"from a stranger"
    with ports((target.lab["n1"], "weft0")) as (weft0,):
        target.throw(STRANGER, [vxlan(udp4(marked), LAB_VNI)])
        target.throw(MEMBER, [vxlan(udp4(b"from a member"), LAB_VNI)])
        seen = weft0.arrivals_until(b"from a member")
    assert not [frame for frame in seen if marked in frame]
    assert [entry["dst"] for entry in view(target.daemon, "fdb") if entry["mac"] == MAC_A.hex(":")] == [
        str(SENDERS[MEMBER])
    ]


def test_every_random_datagram_of_a_stranger_is_dropped(target: Target) -> None:
    before = sum(drops(target.daemon).values())
    target.throw(STRANGER, random_datagrams(seed=1))
    eventually("all were dropped", lambda: sum(drops(target.daemon).values()) - before >= RANDOM_DATAGRAMS)
    assert sum(drops(target.daemon).values()) - before == RANDOM_DATAGRAMS


def test_random_frames_of_a_member_do_not_disturb_the_others(target: Target) -> None:
    received = octets_from_member(target)
    target.throw(MEMBER, [vxlan(frame, LAB_VNI) for frame in random_datagrams(seed=2) if len(frame) >= 14])
    target.throw(MEMBER, [vxlan(broken, LAB_VNI) for broken in corrupted(tcp4(b"x" * 64), seed=3)])
    eventually("they were read", lambda: octets_from_member(target) - received > 100 * RANDOM_DATAGRAMS)
    assert view(target.daemon, "status")["node"] == "n1"


def test_what_is_thrown_at_the_source_ports_wakes_nobody(target: Target) -> None:
    pool = set(queues(target)) - {VXLAN_PORT}
    assert len(pool) >= 8
    before = drops(target.daemon)
    marked = b"through the back door"
    with ports((target.lab["n1"], "weft0")) as (weft0,):
        for port in sorted(pool):
            for thrower in SENDERS:
                target.throw(thrower, [b"", vxlan(udp4(marked), LAB_VNI), bytes(UDP_MAX)], port=port)
        target.throw(MEMBER, [vxlan(udp4(b"through the front door"), LAB_VNI)])
        seen = weft0.arrivals_until(b"through the front door")
    assert not [frame for frame in seen if marked in frame]
    assert drops(target.daemon) == before
    assert {port: octets for port, octets in queues(target).items() if octets} == {}


def test_garbage_at_the_api_leaves_it_answering(target: Target) -> None:
    with ExitStack() as doors:
        for said in SAID_TO_THE_API:
            for _ in range(5):  # all stay open, and say no more
                door = doors.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                door.settimeout(5)
                door.connect(str(target.daemon.socket))
                with suppress(BrokenPipeError, ConnectionResetError):
                    door.sendall(said)
            assert view(target.daemon, "status")["node"] == "n1", said[:32]
    assert view(target.daemon, "status")["node"] == "n1"


def queues(target: Target) -> dict[int, int]:
    """What waits to be read on each UDP port of n1's underlay address, in octets."""
    lines = [line.split() for line in target.lab["n1"].run(["ss", "-Huan"]).stdout.splitlines()]
    places = {place: int(octets) for _, octets, _, place, *_ in lines}
    return {
        int(place.rpartition(":")[2]): octets for place, octets in places.items() if str(N1_VTEP) in place
    }


def octets_from_member(target: Target) -> int:
    peers = view(target.daemon, "peers")
    return sum(peer["rx_octets"] for peer in peers if peer["name"] == str(SENDERS[MEMBER]))


def random_datagrams(*, seed: int) -> list[bytes]:
    dice = random.Random(seed)
    return [
        dice.randbytes(dice.choice((0, 7, 8, 14, 21, 22, 60, 300, 1400))) for _ in range(RANDOM_DATAGRAMS)
    ]


def corrupted(frame: bytes, *, seed: int) -> Iterator[bytes]:
    """The frame with one octet changed, each in turn; and cut short, everywhere."""
    dice = random.Random(seed)
    for at in range(len(frame)):
        yield frame[:at] + bytes([dice.randrange(256)]) + frame[at + 1 :]
        if at >= 14:
            yield frame[:at]
