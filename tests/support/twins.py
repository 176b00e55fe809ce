"""Both engines on real descriptors, without root: socket pairs for devices, loopback for the underlay.

    Twin.from_device ─▶ SEQPACKET pair ─▶ engine ─▶ UDP on 127.0.0.x ─▶ Twin.vteps
    Twin.written ◀───── SEQPACKET pair ◀─ engine ◀─ UDP on 127.0.0.1 ◀─ Twin.from_vtep

A pair keeps a TAP's contract: one read is one frame behind its virtio header.  Loopback delivers before a
send returns, and nothing here has a thread: `settle` turns loop and lane until both are still, so a run is
the same run every time, but for which of several workers has a VTEP's datagrams.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from ipaddress import IPv4Address, IPv4Network, ip_address
from typing import Any, TypeVar

from overlay.addr import IpAddress, Mac, NetworkId, Vni, Vtep
from overlay.bridge import Bridge, BridgePolicy
from overlay.fdb import Origin
from overlay.router import Router, RouterPolicy
from overlay.tables import Change, FloodReplace, RouteReplace, TableDelta, Tables, VtepReplace
from overlay.verdict import DropReason
from tunnel.interfaces import Attachment, Buffer, Datapath, DatapathStatistics
from tunnel.pydatapath import PythonDatapath
from tunnel.underlay import UdpUnderlay
from tunnel.vxlan import build_header

OURS = ip_address("127.0.0.1")
VTEPS = tuple(ip_address(f"127.0.0.{host}") for host in (2, 3))
STRANGER = ip_address("127.0.0.9")
NETWORK = NetworkId("lab")
VNI = Vni(42)
OWN_MAC = Mac(b"\x02\x00\x00\x00\x00\x01")
UDP_SEGMENT = 103
PLAIN = bytes(10)
SUBNETS: dict[IPv4Network, IpAddress | None] = {
    IPv4Network("10.9.0.0/24"): None,
    IPv4Network("10.9.0.2/32"): VTEPS[0],
    IPv4Network("10.9.2.0/24"): VTEPS[0],
    IPv4Network("10.9.3.0/24"): VTEPS[1],
}


AnyTwin = TypeVar("AnyTwin", bound="Twin")


class Handle:
    """A callback that may be cancelled; nobody here does."""

    def cancel(self) -> None:
        """Too late."""


class SteppedReactor:
    """An event loop that runs when it is told to."""

    def __init__(self) -> None:
        self._soon: deque[Callable[[], object]] = deque()
        self._readers: dict[int, Callable[[], object]] = {}

    def time(self) -> float:
        return time.monotonic()

    def call_soon(self, callback: Callable[..., object], /, *args: object) -> Handle:
        self._soon.append(partial(callback, *args))
        return Handle()

    def call_later(self, delay: float, callback: Callable[..., object], /, *args: object) -> Handle:
        raise NotImplementedError("no engine waits by itself")

    def add_reader(self, fd: int, callback: Callable[..., object], /, *args: object) -> None:
        self._readers[fd] = partial(callback, *args)

    def remove_reader(self, fd: int, /) -> None:
        self._readers.pop(fd, None)

    def step(self, *, patience_s: float = 0.0) -> bool:
        """Runs what is ready; whether anything was."""
        poll = select.poll()
        for fd in self._readers:
            poll.register(fd, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(patience_s * 1000)]
        soon = [self._soon.popleft() for _ in range(len(self._soon))]
        for callback in (*soon, *(self._readers[fd] for fd in ready if fd in self._readers)):
            callback()
        return bool(ready or soon)


class PairDevice:
    """A `FrameDevice` whose other end is in the test's hands.

    Attributes:
        host: That end: one datagram is a virtio header and a frame.
    """

    def __init__(self, name: str = "weft0") -> None:
        self.name = name
        self.mac = OWN_MAC
        self._own, self.host = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._own, self.host):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.read_into: Callable[[Sequence[Buffer]], int] = partial(os.readv, self._own.fileno())
        self.write: Callable[[Sequence[Buffer]], int] = partial(os.writev, self._own.fileno())
        self.lost = 0
        self.answers: list[bytes] = []

    takes_udp_super_frames = True

    def fileno(self) -> int:
        return self._own.fileno()

    @property
    def queues(self) -> tuple[int, ...]:
        return (self.fileno(),)

    def set_carrier(self, *, up: bool) -> None:
        """It always has one."""

    def overruns(self) -> int:
        return self.lost

    def close(self) -> None:
        self._own.close()
        self.host.close()

    def answer(self, packet: bytes) -> int:
        """As a TUN: what the node itself says to the host."""
        self.answers.append(packet)
        return len(packet)

    def arrivals(self) -> Iterator[bytes]:
        """What was written to it since, header and frame."""
        with contextlib.suppress(BlockingIOError):
            while True:
                yield self.host.recv(1 << 17)


class Twin:
    """One engine that carries one network between a pair and loopback.

    Attributes:
        written: (virtio header, frame) of every write to the device, in order.
        arrived: For each VTEP the datagrams it got, in order, with the number of the sender of the pool.
    """

    def __init__(
        self, kind: str, *, lane: Any = None, workers: int = 1, starts: bool = False, **others: Any
    ) -> None:
        self.kind = kind
        self.reactor = SteppedReactor()
        self.tables = Tables()
        self.underlay = UdpUnderlay(OURS, "lo", 1500)
        self.broke: list[Exception] = []
        self.lane = lane
        self._workers = workers
        self._starts = starts
        self.datapath = self._engine()
        self.device = PairDevice()
        self.port = free_port()
        self.sockets = {address: _vtep_socket(address) for address in (*VTEPS, STRANGER)}
        self.written: list[tuple[bytes, bytes]] = []
        self.arrived: dict[IpAddress, list[tuple[int, bytes]]] = {address: [] for address in self.sockets}
        self.tables.add_network(NETWORK)
        settings = {**self._settings(), "port": self.port, **others}
        self.datapath.attach(Attachment(NETWORK, device=self.device, **settings))
        self.know(*VTEPS)

    def _settings(self) -> dict[str, Any]:
        decider = Bridge(BridgePolicy(NETWORK, OWN_MAC), self.tables)
        return {"overlay_mtu": 1450, "vni": VNI, "decider": decider}

    def _engine(self) -> Datapath:
        if self.kind == "python":
            return PythonDatapath(
                self.tables,
                [self.underlay],
                reactor=self.reactor,
                clock=time.monotonic,
                choose_underlay=lambda _: self.underlay,
            )
        # Not above: where it was not built there is nothing to import.
        from tunnel import _native  # noqa: PLC0415
        from tunnel.nativedatapath import NativeDatapath  # noqa: PLC0415

        # As much in one send, and in one write, as the Python engine.
        self.lane = self.lane or _native.Engine(63, 64, self._workers)
        made = NativeDatapath(
            self.tables,
            [self.underlay],
            reactor=self.reactor,
            choose_underlay=lambda _: self.underlay,
            on_failure=self.broke.append,
            lanes=self.lane,
        )
        if self._starts:
            self.lane.start()
        return made

    # Programming.

    def know(self, *vteps: IpAddress) -> None:
        """Knows these VTEPs, and floods to them."""
        known = (VtepReplace(NETWORK, Vtep(address, self.vtep_port(address))) for address in vteps)
        self.apply(*known, FloodReplace(NETWORK, vteps))

    def vtep_port(self, address: IpAddress) -> int:
        """Where the VTEP listens."""
        return int(self.sockets[address].getsockname()[1])

    def apply(self, *changes: Change) -> None:
        self.tables.apply(TableDelta(changes))

    # Carrying.

    def from_device(self, *frames: bytes, header: bytes = PLAIN) -> None:
        """The host sends these, in one burst."""
        for frame in frames:
            self.device.host.send(header + frame)
        self.settle()

    def from_vtep(self, *datagrams: bytes, sender: IpAddress = VTEPS[0], tos: int = 0) -> None:
        """A VTEP sends these octets to our port; equal ones, but perhaps the last, as one run."""
        self.arrive(*datagrams, sender=sender, tos=tos)
        self.settle()

    def arrive(self, *datagrams: bytes, sender: IpAddress = VTEPS[0], tos: int = 0) -> None:
        """The same, and more may arrive before it is read."""
        bound = self.sockets[sender]
        bound.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
        control = []
        size = len(datagrams[0])
        if len(datagrams) > 1 and size and all(len(each) == size for each in datagrams[:-1]):
            control = [(socket.IPPROTO_UDP, UDP_SEGMENT, size.to_bytes(2, "little"))]
        bound.sendmsg([b"".join(datagrams)], control, 0, (str(OURS), self.port))

    def settle(self) -> None:
        """Turns loop and lane until both are still."""
        while self.reactor.step() | (self.lane is not None and not self._starts and self.lane.turn()):
            self._collect()
        self._collect()

    def _collect(self) -> None:
        self.written += [(octets[:10], octets[10:]) for octets in self.device.arrivals()]
        ports = [*(sender.port for sender in self.underlay.senders), self.port]
        for address, bound in self.sockets.items():
            with contextlib.suppress(BlockingIOError):
                while True:
                    octets, (_, port) = bound.recvfrom(1 << 16)
                    self.arrived[address].append((ports.index(port), octets))

    # Looking.

    def statistics(self) -> DatapathStatistics:
        return self.datapath.statistics()

    def drops(self) -> dict[DropReason, int]:
        return self.statistics().drops.get(NETWORK, {})

    def flows(self) -> set[tuple[object, ...]]:
        """Every remembered verdict with what it carried."""
        return {
            (flow.direction, flow.vtep, flow.key, flow.verdict, flow.frames, flow.octets)
            for flow in self.datapath.flows()
        }

    def close(self) -> None:
        self.datapath.close()
        self.underlay.close()
        self.device.close()
        for bound in self.sockets.values():
            bound.close()


class PacketTwin(Twin):
    """One engine that carries one network of bare packets: `SUBNETS` are ours and those of two VTEPs.

    Attributes:
        answers: What it gave the host by the other way than its device.
    """

    def __init__(self, kind: str, **others: Any) -> None:
        super().__init__(kind, **others)
        for subnet, vtep in SUBNETS.items():
            self.apply(RouteReplace(NETWORK, subnet, vtep, Origin.STATIC))

    def _settings(self) -> dict[str, Any]:
        router = Router(RouterPolicy(NETWORK, IPv4Address("10.9.0.1")), self.tables)
        return {"overlay_mtu": 1472, "vni": None, "decider": router}

    @property
    def answers(self) -> list[bytes]:
        return self.device.answers


@contextmanager
def twin(kind: str, **settings: Any) -> Iterator[Twin]:
    """One engine; it must have accounted for every frame in the end, and after it is closed."""
    with _balanced(Twin(kind, **settings)) as made:
        yield made


@contextmanager
def packet_twin(kind: str, **settings: Any) -> Iterator[PacketTwin]:
    """The same with bare packets."""
    with _balanced(PacketTwin(kind, **settings)) as made:
        yield made


@contextmanager
def _balanced(made: AnyTwin) -> Iterator[AnyTwin]:
    try:
        yield made
        balance(made)
        made.datapath.close()
        balance(made)
        assert made.statistics().ledger.held == 0
    finally:
        made.close()


def balance(made: Twin) -> None:
    """The ledger balances, and its drops are the sum of those with a name."""
    statistics = made.statistics()
    assert statistics.ledger.balances, statistics.ledger
    assert statistics.ledger.dropped == sum(sum(each.values()) for each in statistics.drops.values())


def run_both(
    make: Callable[..., AbstractContextManager[AnyTwin]],
    assert_alike: Callable[[AnyTwin, AnyTwin], None],
    script: Sequence[Callable[[AnyTwin], None]],
    **others: object,
) -> None:
    """Has both engines go through the script, then looks whether they are alike.

    Every other script finds the native one's work divided between two workers.
    """
    workers = 1 + len(script) % 2
    with make("python", **others) as python, make("native", workers=workers, **others) as native:
        for step in script:
            step(python)
            step(native)
        assert_alike(python, native)


def assert_same_books(python: Twin, native: Twin) -> None:
    """What both have counted and remember is the same."""
    expected, found = python.statistics(), native.statistics()
    assert found.drops == {network: drops for network, drops in expected.drops.items() if drops}
    assert found.ledger == expected.ledger
    assert found.upcalls == expected.upcalls
    assert found.flows == expected.flows
    by_vtep = {each.vtep: each for each in expected.vteps}
    assert {each.vtep: each for each in found.vteps} == by_vtep
    assert native.flows() == python.flows()


def encapsulated(*frames: bytes, vni: int = VNI) -> list[bytes]:
    """Each behind its VXLAN header."""
    return [build_header(Vni(vni)) + frame for frame in frames]


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((str(OURS), 0))
        return int(probe.getsockname()[1])


def _vtep_socket(address: IpAddress) -> socket.socket:
    assert isinstance(address, IPv4Address)
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.bind((str(address), 0))
    bound.setblocking(False)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    return bound
