"""A member that means harm, and a host that does: each frame is accounted for, the honest ones get through.

    n1  weft ──┐
    n2  weft ──┼── hub        n3 is a VTEP that both were told of, and a test has its socket
    n3  ───────┘

That every daemon's ledger balances is audited when it ends (`support.weft_with`).  How fast, how much and how
late depends on the machine: it is printed, and what is asserted are bounds of counts and of memory.
"""

from __future__ import annotations

import errno
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from support.engines import ON_BOTH
from support.frames import tcp4, udp4, vxlan
from support.serving import StartLab, drops, eventually, halted, view
from support.traffic import UDP_SEGMENT, any_address, mac_of, open_in, pinging, ports, transfer, type_in

from bench.lab import checks
from bench.lab.namespaces import Daemon, Lab
from bench.lab.topology import LAB_VNI, UNDERLAY_DEVICE, VXLAN_PORT, NodeKind, segment
from overlay.addr import Mac, parse_mac
from overlay.verdict import DropReason

pytestmark = [pytest.mark.timeout(180), pytest.mark.root, pytest.mark.interop, ON_BOTH]

N1, N2 = ip_address("10.9.0.1"), ip_address("10.9.0.2")
N1_VTEP, MEMBER = ip_address("192.0.2.1"), ip_address("192.0.2.3")
FDB_MAX = 4096  # the default of `fdb_max`
FLOWS_MAX = (1 << 16) + 2 * (1 << 15)  # `tunnel.flows`: egress, and ingress of two VTEPs
MEMORY_MOST = 300 << 20  # octets a daemon may have; it starts with some 60 MB
WITHIN_S = 40.0

UDP_MAX = 65507  # octets of payload in one IPv4 datagram (RFC 791, RFC 768)
HOST = parse_mac("02:00:00:00:00:77")  # behind n1's device
HEADER = vxlan(b"", LAB_VNI)
RUN = 64  # datagrams in one send: UDP_MAX_SEGMENTS of older kernels
PIECE = 1000  # octets of each
SHORT = 60  # octets of the least Ethernet frame
SO_RCVBUFFORCE = 33
LIMITS = {
    DropReason.UPCALL_LIMIT,
    DropReason.UPCALL_OVERFLOW,
    DropReason.UPCALL_TIMEOUT,
    DropReason.BUM_LIMIT,
}
AT_THE_DOOR = {DropReason.BAD_FLAGS, DropReason.UNKNOWN_VNI, DropReason.RESERVED_BITS}
OVERRUNS = {DropReason.RECEIVE_OVERRUN, DropReason.DEVICE_OVERRUN}


@dataclass(frozen=True, slots=True)
class Scene:
    lab: Lab
    member: socket.socket

    @property
    def daemon(self) -> Daemon:
        """Who is thrown at."""
        return self.lab.daemons["n1"]

    def throw(self, datagrams: list[bytes]) -> None:
        for datagram in datagrams:
            self.member.sendto(datagram, (str(N1_VTEP), VXLAN_PORT))

    def from_member(self) -> int:
        """Octets of frames that n1 has read and found to be the member's."""
        peers = view(self.daemon, "peers")
        return sum(peer["rx_octets"] for peer in peers if peer["name"] == str(MEMBER))

    def queued(self) -> int:
        """Octets that wait to be read on n1's port."""
        lines = [line.split() for line in self.lab["n1"].run(["ss", "-Huan"]).stdout.splitlines()]
        return sum(int(octets) for _, octets, _, place, *_ in lines if place == f"{N1_VTEP}:{VXLAN_PORT}")

    def resident_octets(self) -> dict[str, int]:
        return {
            name: self.lab[name].resident_octets([daemon.process.pid])
            for name, daemon in self.lab.daemons.items()
        }


@pytest.fixture
def scene(start_lab: StartLab) -> Iterator[Scene]:
    topology = segment("hostile", NodeKind.WEFT, NodeKind.WEFT, NodeKind.BARE)
    told = [replace(node, flags=("--peer", str(MEMBER))) for node in topology.of_kind(NodeKind.WEFT)]
    lab = start_lab(replace(topology, nodes=(*told, topology.node("n3"))))
    with open_in(lab["n3"], MEMBER, socket.SOCK_DGRAM, VXLAN_PORT) as member:
        assert checks.ping(lab["n2"], N1, count=1).complete
        yield Scene(lab, member)
    memory = Scene(lab, member).resident_octets()
    print(", ".join(f"{name}: {octets / 1e6:.0f} MB" for name, octets in memory.items()))
    assert max(memory.values()) < MEMORY_MOST
    assert all(daemon.process.poll() is None for daemon in lab.daemons.values())


# ── Nonsense ────────────────────────────────────────────────────────────────────────────────────────────


def random_octets(dice: random.Random) -> list[bytes]:
    """Anything at all behind a right header, as long as a datagram can be."""
    return [HEADER + dice.randbytes(UDP_MAX - len(HEADER)) for _ in range(100)]


def lengths_that_lie(dice: random.Random) -> list[bytes]:
    """TCP and UDP whose lengths, offsets and flags are any, and 64 KB of octets behind them."""
    made = []
    for whole in (tcp4(b""), udp4(b"")) * 50:
        frame = bytearray(whole + dice.randbytes(UDP_MAX - len(HEADER) - len(whole)))
        for at in dice.sample(range(14, 54), 3):  # version and length, fragments, protocol, data offset …
            frame[at] = dice.randrange(256)
        frame[16:18] = dice.choice((frame[16:18], b"\0\0", b"\xff\xff", (UDP_MAX - 22).to_bytes(2, "big")))
        made.append(HEADER + frame)
    return made


def headers_alone_are_right(dice: random.Random) -> list[bytes]:
    """Of one flow each: an address pair that is learned at once, and nothing behind it that makes sense."""
    return [HEADER + tcp4(b"")[:14] + dice.randbytes(UDP_MAX - len(HEADER) - 14) for _ in range(100)]


def test_super_datagrams_of_nonsense_cost_honest_traffic_nothing(scene: Scene) -> None:
    dice = random.Random(11)
    datagrams = random_octets(dice) + lengths_that_lie(dice) + headers_alone_are_right(dice)
    octets = sum(map(len, datagrams)) - len(HEADER) * len(datagrams)
    before, received = drops(scene.daemon), scene.from_member()
    with pinging(scene.lab["n2"], N1):
        for start in range(0, len(datagrams), 20):  # so that the socket has room for the honest
            scene.throw(datagrams[start : start + 20])
            eventually("n1 has read them", lambda: scene.queued() == 0, within_s=WITHIN_S)
        assert transfer(scene.lab["n2"], scene.lab["n1"], N1, 1_000_000, patience_s=WITHIN_S).is_intact
    eventually("each was received", lambda: scene.from_member() - received == octets)
    fell = losses(scene.daemon, before)
    print(told(fell))
    assert fell.keys() <= LIMITS | {DropReason.INNER_MALFORMED, DropReason.LINK_LOCAL}


def runs_of_any_frames(dice: random.Random) -> list[bytes]:
    """Each datagram with a header of its own."""
    return [b"".join(HEADER + dice.randbytes(PIECE - len(HEADER)) for _ in range(RUN)) for _ in range(60)]


def runs_of_one_flow(dice: random.Random) -> list[bytes]:
    """The same, TCP segments by their looks that an engine would join."""
    segments = bytearray()
    for _ in range(RUN):
        frame = bytearray(tcp4(bytes(PIECE - len(HEADER) - 54), seq=dice.randrange(1 << 32)))
        frame[dice.randrange(14, 54)] = dice.randrange(256)
        segments += HEADER + frame
    return [bytes(segments)] * 60


def runs_with_one_header(dice: random.Random) -> list[bytes]:
    """A header for all of them."""
    return [HEADER + dice.randbytes(RUN * PIECE - len(HEADER)) for _ in range(60)]


def test_segmented_runs_of_nonsense_cost_honest_traffic_nothing(scene: Scene) -> None:
    dice = random.Random(12)
    runs = runs_of_any_frames(dice) + runs_of_one_flow(dice) + runs_with_one_header(dice)
    scene.member.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, PIECE)
    before, received = drops(scene.daemon), scene.from_member()
    with pinging(scene.lab["n2"], N1):
        for start in range(0, len(runs), 20):
            scene.throw(runs[start : start + 20])
            eventually("n1 has read them", lambda: scene.queued() == 0, within_s=WITHIN_S)
        assert transfer(scene.lab["n2"], scene.lab["n1"], N1, 1_000_000, patience_s=WITHIN_S).is_intact

    def is_accounted_for() -> bool:
        fell = losses(scene.daemon, before)
        at_the_door = sum(count for reason, count in fell.items() if reason in AT_THE_DOOR)
        # More than a frame's octets each: what looks like a super-frame has swallowed the headers in it.
        read = (scene.from_member() - received) // (PIECE - len(HEADER))
        return read + at_the_door >= RUN * len(runs)

    eventually("each was received, or refused at the door", is_accounted_for, within_s=WITHIN_S)
    fell = losses(scene.daemon, before)
    print(told(fell))
    assert fell.keys() <= AT_THE_DOOR | LIMITS | {DropReason.INNER_MALFORMED, DropReason.LINK_LOCAL}


# ── MACs without end ────────────────────────────────────────────────────────────────────────────────────


def storm_runs(dice: random.Random, count: int) -> list[bytes]:
    """That many runs of the shortest frames, no address pair twice, no source a group."""
    made = []
    for _ in range(count):
        run = bytearray(dice.randbytes(RUN * (len(HEADER) + SHORT)))
        for at in range(0, len(run), len(HEADER) + SHORT):
            run[at : at + 8] = HEADER
            run[at + 8] &= 0xFE
            run[at + 14] &= 0xFE
        made.append(bytes(run))
    return made


@contextmanager
def numbered_datagrams(scene: Scene, count: int) -> Iterator[list[int]]:
    """A flow from n2 to n1 while the block lasts, one datagram a millisecond; the numbers that arrived."""
    arrived: list[int] = []
    with (
        open_in(scene.lab["n1"], N1, socket.SOCK_DGRAM) as server,
        open_in(scene.lab["n2"], any_address(N2), socket.SOCK_DGRAM) as client,
    ):
        server.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        place = server.getsockname()

        def send() -> None:
            for number in range(count):
                client.sendto(number.to_bytes(4, "big"), place)
                time.sleep(0.001)

        sending = threading.Thread(target=send)
        sending.start()
        try:
            yield arrived
        finally:
            sending.join()
        with pinging(scene.lab["n2"], N1):  # what is under way comes before an echo that was sent later
            server.setblocking(False)
            while (datagram := received_from(server)) is not None:
                arrived.append(int.from_bytes(datagram, "big"))


def received_from(opened: socket.socket) -> bytes | None:
    try:
        return opened.recv(2048)
    except BlockingIOError:
        return None


def test_a_member_with_ever_new_macs_is_limited_and_bounded(scene: Scene) -> None:
    dice = random.Random(13)
    runs = storm_runs(dice, 1500)
    scene.member.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, len(HEADER) + SHORT)
    before = {name: drops(daemon) for name, daemon in scene.lab.daemons.items()}
    backlog = backlog_drops()
    sent = 500
    with numbered_datagrams(scene, sent) as arrived:
        started_at = time.monotonic()
        scene.throw(runs)
        seconds = time.monotonic() - started_at

        eventually("n1 has read them", lambda: scene.queued() == 0, within_s=WITHIN_S)

        def is_full() -> bool:
            scene.throw(dice.sample(runs, 50))  # of all at once a busy machine may answer little in time
            return learned(scene.daemon) == FDB_MAX

        eventually("n1 has learned all it may", is_full, within_s=WITHIN_S)
    assert len(set(arrived)) == len(arrived) > 0

    def is_explained() -> bool:
        named = sum(
            count
            for name, daemon in scene.lab.daemons.items()
            for reason, count in losses(daemon, before[name]).items()
            if reason not in LIMITS  # an established flow asks nothing
        )
        return sent - len(arrived) <= named + backlog_drops() - backlog

    eventually("each loss of the established flow has a name", is_explained, within_s=WITHIN_S)
    assert_bounded(scene)
    fell = losses(scene.daemon, before["n1"])
    print(f"{len(runs) * RUN / seconds:.0f} frames/s; {len(arrived)} of {sent} arrived; {told(fell)}")
    assert fell.keys() <= LIMITS | OVERRUNS | {DropReason.LINK_LOCAL}
    assert transfer(scene.lab["n2"], scene.lab["n1"], N1, 1_000_000, patience_s=WITHIN_S).is_intact


def test_a_host_with_ever_new_macs_is_limited_and_bounded(scene: Scene) -> None:
    dice = random.Random(14)
    before = {name: drops(daemon) for name, daemon in scene.lab.daemons.items()}
    with ports((scene.lab["n1"], "weft0")) as (weft0,):

        def is_limited() -> bool:
            for _ in range(5000):
                frame = bytearray(dice.randbytes(SHORT))
                frame[0] &= 0xFE
                frame[6] &= 0xFE
                send_or_lose(weft0.send, bytes(frame))
            fell = losses(scene.daemon, before["n1"])
            return learned(scene.lab.daemons["n2"]) == FDB_MAX and bool(fell)

        eventually("n1 is limited, and n2 has learned all it may", is_limited, within_s=WITHIN_S)
    with pinging(scene.lab["n2"], N1):
        assert transfer(scene.lab["n1"], scene.lab["n2"], N2, 1_000_000, patience_s=WITHIN_S).is_intact
    assert_bounded(scene)
    for name, daemon in scene.lab.daemons.items():
        fell = losses(daemon, before[name])
        print(f"{name}: {told(fell)}")
        # What n1 floods reaches the member as well, whose socket here takes what it can.
        assert fell.keys() <= LIMITS | OVERRUNS | {DropReason.LINK_LOCAL, DropReason.UNDERLAY_FULL}


def send_or_lose(send: Callable[[bytes], object], frame: bytes) -> bool:
    """Whether it went; a full device is told to a packet socket as ENOBUFS, and counted by its owner."""
    try:
        send(frame)
    except OSError as error:
        if error.errno != errno.ENOBUFS:
            raise
        return False
    return True


def assert_bounded(scene: Scene) -> None:
    for daemon in scene.lab.daemons.values():
        assert learned(daemon) <= FDB_MAX
        assert len(view(daemon, "flows")) <= FLOWS_MAX


# ── Full queues ─────────────────────────────────────────────────────────────────────────────────────────


def test_what_an_idle_readers_queues_cannot_hold_is_counted_to_the_frame(scene: Scene) -> None:
    datagram = HEADER + udp4(bytes(60_000))
    mac_of_n2 = parse_mac(mac_of(scene.lab["n2"], "weft0"))
    frame = mac_of_n2 + HOST + udp4(bytes(1000))[12:]
    with ports((scene.lab["n1"], "weft0")) as (weft0,):
        weft0.send(frame)  # its verdict is remembered from now on
        scene.throw([datagram])
        eventually("both are known", lambda: carried(scene.daemon, mac_of_n2, HOST) == 1)
        eventually("both were read", lambda: scene.from_member() > 0)
        before, received = drops(scene.daemon), scene.from_member()
        with halted(scene.daemon):
            for _ in range(400):  # 24 MB, where the socket has room for 14
                scene.throw([datagram])
            for _ in range(3000):  # where the device has room for 1000
                send_or_lose(weft0.send, frame)
        eventually("the socket lost some", lambda: losses_of(scene, before, DropReason.RECEIVE_OVERRUN) > 0)
        eventually("the device lost some", lambda: losses_of(scene, before, DropReason.DEVICE_OVERRUN) > 0)
    length = len(datagram) - len(HEADER)

    def is_settled() -> bool:
        read = (scene.from_member() - received) // length
        return read + losses_of(scene, before, DropReason.RECEIVE_OVERRUN) == 400

    eventually("each datagram was read or counted", is_settled, within_s=WITHIN_S)
    frames = carried(scene.daemon, mac_of_n2, HOST) - 1
    assert 0 < frames < 3000 <= frames + losses_of(scene, before, DropReason.DEVICE_OVERRUN)
    with pinging(scene.lab["n2"], N1):
        assert transfer(scene.lab["n2"], scene.lab["n1"], N1, 1_000_000, patience_s=WITHIN_S).is_intact


def test_sockets_that_are_full_are_counted_and_recover(start_lab: StartLab) -> None:
    lab = start_lab(
        segment("full", NodeKind.WEFT, NodeKind.WEFT), constants=("tunnel.underlay.BUFFER_OCTETS=8192",)
    )
    n1, daemon = lab["n1"], lab.daemons["n1"]
    assert checks.ping(n1, N2, count=1).complete
    type_in(n1, f"tc qdisc add dev {UNDERLAY_DEVICE} root tbf rate 1mbit burst 4kb limit 1mb")

    def is_full() -> bool:
        with open_in(n1, any_address(N2), socket.SOCK_DGRAM) as flood:
            for _ in range(200):
                flood.sendto(bytes(1000), (str(N2), 9))
        return drops(daemon)[DropReason.UNDERLAY_FULL] > 0

    eventually("the loss has a name", is_full, within_s=WITHIN_S)
    type_in(n1, f"tc qdisc delete dev {UNDERLAY_DEVICE} root")
    eventually("n1 reaches n2", lambda: checks.ping(n1, N2, count=1).complete)
    assert transfer(n1, lab["n2"], N2, 100_000, patience_s=WITHIN_S).is_intact


# ── Looks ───────────────────────────────────────────────────────────────────────────────────────────────


def losses(daemon: Daemon, before: dict[DropReason, int]) -> dict[DropReason, int]:
    """What was dropped since, by reason; without those that did not occur."""
    after = drops(daemon)
    return {reason: after[reason] - before[reason] for reason in after if after[reason] > before[reason]}


def losses_of(scene: Scene, before: dict[DropReason, int], reason: DropReason) -> int:
    return losses(scene.daemon, before).get(reason, 0)


def told(fell: dict[DropReason, int]) -> str:
    return ", ".join(f"{reason.name} {count}" for reason, count in fell.items()) or "nothing dropped"


def learned(daemon: Daemon) -> int:
    """How many MACs its table holds, the flood list aside."""
    return sum(entry["mac"] != "00:00:00:00:00:00" for entry in view(daemon, "fdb"))


def carried(daemon: Daemon, destination: Mac, source: Mac) -> int:
    """The frames that an egress flow has carried."""
    pair = (source.hex(":"), destination.hex(":"))
    flows = view(daemon, "flows")
    return sum(
        flow["frames"]
        for flow in flows
        if flow["direction"] == "egress" and (flow["src"], flow["dst"]) == pair
    )


def backlog_drops() -> int:
    """What the queues between this machine's namespaces have lost (softnet_data.dropped), of all cores."""
    lines = Path("/proc/net/softnet_stat").read_text().splitlines()
    return sum(int(line.split()[1], 16) for line in lines)
