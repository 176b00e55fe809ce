"""The underlay, simulated: one wire for everybody, and each node's sockets on it.

    Sender.send ─▶ SimulatedWire: lost? cut off? twice? how late? ─▶ UnderlayPort queue ─▶ receive_into

Loss, duplication, delay and jitter are drawn from the seed; jitter larger than the gap between two
datagrams reorders them.  What a kernel would say is said: EMSGSIZE for a datagram longer than the path
carries (DF is set on all of ours), port and host unreachable as refusals, overruns where a queue is full.

The sockets speak what the data plane asks of real ones: UDP_SEGMENT on sending, UDP_GRO on receiving where
`Impairment.gro` is set, and the TOS octet both ways, so that offload and ECN run in virtual time too.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random

from bench.lab.virtual import VirtualReactor
from overlay.addr import IpAddress, parse_ip
from overlay.errors import DeviceError
from tunnel.interfaces import Ancillary, Buffer, Refusal, SockAddr, SuperDoors
from tunnel.ladder import Feature, Ladder

# From the specification
IP_UDP_OVERHEAD = {4: 28, 6: 48}  # octets of IP and UDP header around a datagram
UDP_SEGMENT = 103  # include/uapi/linux/udp.h, as the next
UDP_GRO = 104
UDP_GRO_COUNT_MAX = 64  # include/linux/skbuff.h: datagrams merged into one
DATAGRAM_MAX = 65507
SEGMENTS_MAX = 64  # include/linux/udp.h: UDP_MAX_SEGMENTS of the kernels weft meets

# Ours
POOL_SIZE = 4  # senders of one underlay
FIRST_SOURCE_PORT = 49152  # RFC 7348 section 5: source ports from the dynamic range
RECEIVE_QUEUE_OCTETS = 4 << 20
HOST_UNREACHABLE_S = 3.0  # three unanswered ARP requests, a second apart


@dataclass(frozen=True, slots=True)
class Impairment:
    """What a path does to datagrams.  Probabilities 0 … 1.

    Attributes:
        delay_s: Before delivery; `jitter_s` more at most, evenly spread.
        mtu: Octets of IP packet the path carries.
        gro: Whether the receiver's kernel merges a run of equal datagrams into one read.
    """

    loss: float = 0.0
    duplication: float = 0.0
    delay_s: float = 0.0001
    jitter_s: float = 0.0
    mtu: int = 1500
    gro: bool = False


@dataclass(frozen=True, slots=True)
class Datagram:
    """One UDP datagram on its way."""

    source: IpAddress
    source_port: int
    destination: IpAddress
    destination_port: int
    payload: bytes
    tos: int = 0

    @property
    def packet_length(self) -> int:
        """Octets with its IP and UDP headers."""
        return len(self.payload) + IP_UDP_OVERHEAD[self.destination.version]


class SimulatedWire:
    """The network between all simulated underlays.

    Attributes:
        fates: How many datagrams were sent, lost, duplicated, cut off, delivered, refused.
        congested: Whether routers mark instead of queueing: ECN-capable datagrams arrive as CE.
    """

    def __init__(self, reactor: VirtualReactor, random: Random, impairment: Impairment | None = None) -> None:
        self.reactor = reactor
        self.fates: Counter[str] = Counter()
        self.congested = False
        self._random = random
        self._everywhere = impairment or Impairment()
        self._paths: dict[tuple[IpAddress, IpAddress], Impairment] = {}
        self._underlays: dict[IpAddress, SimulatedUnderlay] = {}
        self._side: dict[IpAddress, int] = {}
        self._watchers: list[Callable[[float, Datagram, str], object]] = []

    def impair(
        self, impairment: Impairment, source: IpAddress | None = None, destination: IpAddress | None = None
    ) -> None:
        """Changes one direction of one path, or everything."""
        if source is None or destination is None:
            self._everywhere = impairment
            self._paths.clear()
        else:
            self._paths[source, destination] = impairment

    def partition(self, *sides: Iterable[IpAddress]) -> None:
        """Only addresses of one side reach each other; those not named are a side of their own."""
        self._side = {address: number for number, side in enumerate(sides, start=1) for address in side}

    def heal(self) -> None:
        """Ends the partition."""
        self._side.clear()

    def watch(self, watcher: Callable[[float, Datagram, str], object]) -> None:
        """Tells the watcher each datagram's fate: (now, datagram, fate)."""
        self._watchers.append(watcher)

    def attach(self, underlay: SimulatedUnderlay) -> None:
        self._underlays[underlay.address] = underlay

    def detach(self, underlay: SimulatedUnderlay) -> None:
        self._underlays.pop(underlay.address, None)

    def path(self, source: IpAddress, destination: IpAddress) -> Impairment:
        return self._paths.get((source, destination), self._everywhere)

    def carry(self, datagram: Datagram) -> None:
        """Takes the datagram; what becomes of it is drawn now and happens later."""
        path = self.path(datagram.source, datagram.destination)
        self._note(datagram, "sent")
        if self._side.get(datagram.source, 0) != self._side.get(datagram.destination, 0):
            self._note(datagram, "cut off")
        elif datagram.packet_length > path.mtu:
            # RFC 1191: the router in between drops what has DF set, and says what it could carry.
            self._note(datagram, "too big")
            self._refuse(datagram, errno.EMSGSIZE, path.delay_s, mtu=path.mtu)
        elif self._random.random() < path.loss:
            self._note(datagram, "lost")
        else:
            self._schedule(datagram, path)
            if self._random.random() < path.duplication:
                self._note(datagram, "duplicated")
                self._schedule(datagram, path)

    def _schedule(self, datagram: Datagram, path: Impairment) -> None:
        if self.congested and datagram.tos & 0b11:
            datagram = replace(datagram, tos=datagram.tos | 0b11)
        delay = path.delay_s + self._random.random() * path.jitter_s
        self.reactor.call_later(delay, self._deliver, datagram, path)

    def _deliver(self, datagram: Datagram, path: Impairment) -> None:
        underlay = self._underlays.get(datagram.destination)
        if underlay is None:
            self._note(datagram, "no such host")
            self._refuse(datagram, errno.EHOSTUNREACH, HOST_UNREACHABLE_S)
        elif (port := underlay.ports.get(datagram.destination_port)) is None:
            self._note(datagram, "no such port")
            self._refuse(datagram, errno.ECONNREFUSED, path.delay_s)
        else:
            self._note(datagram, "delivered" if port.enqueue(datagram, merge=path.gro) else "overrun")

    def _refuse(self, datagram: Datagram, number: int, delay: float, *, mtu: int = 0) -> None:
        self.reactor.call_later(delay, self._report, datagram, number, mtu)

    def _report(self, datagram: Datagram, number: int, mtu: int) -> None:
        sender = self._underlays.get(datagram.source)
        if sender is not None:
            sender.learn_refusal(datagram.destination, number, mtu)

    def _note(self, datagram: Datagram, fate: str) -> None:
        self.fates[fate] += 1
        for watcher in self._watchers:
            watcher(self.reactor.time(), datagram, fate)


class SimulatedUnderlay:
    """One node's address on the wire: `tunnel.interfaces.Underlay`."""

    def __init__(self, wire: SimulatedWire, address: IpAddress, *, mtu: int = 1500) -> None:
        self.wire = wire
        self.address = address
        self.device = "sim0"
        self.mtu = mtu
        self.ladder = Ladder()
        self.super_doors: SuperDoors | None = None
        for feature in (Feature.UDP_GSO, Feature.UDP_GRO):
            self.ladder.probed(feature, None)
        self.senders = [SimulatedSender(self, FIRST_SOURCE_PORT + number) for number in range(POOL_SIZE)]
        self.ports: dict[int, SimulatedPort] = {}
        self._path_mtus: dict[IpAddress, int] = {}
        self._refusals: list[Refusal] = []
        self._error = 0  # errno that the next send fails with
        wire.attach(self)

    def open_port(self, port: int) -> SimulatedPort:
        if port in self.ports:
            raise DeviceError(f"udp {self.address}:{port}", errno.EADDRINUSE)
        self.ports[port] = SimulatedPort(self, port)
        return self.ports[port]

    def open_exchange(self, port: int) -> SimulatedExchange:
        if port in self.ports:
            raise DeviceError(f"udp {self.address}:{port}", errno.EADDRINUSE)
        exchange = self.ports[port] = SimulatedExchange(self, port)
        return exchange

    def sockaddr(self, address: IpAddress, port: int) -> SockAddr:
        return (str(address), port) if address.version == 4 else (str(address), port, 0, 0)

    def path_mtu(self, destination: SockAddr) -> int:
        address = parse_ip(destination[0])
        if address.version != self.address.version:
            raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
        return self._path_mtus.get(address, self.mtu)

    def refusals(self) -> list[Refusal]:
        taken, self._refusals, self._error = self._refusals, [], 0
        return taken

    def learn_refusal(self, towards: IpAddress, number: int, mtu: int) -> None:
        """An ICMP error came back; the kernel's memory of path MTUs is part of what it does."""
        if number == errno.EMSGSIZE:
            self._path_mtus[towards] = mtu
        self._refusals.append(Refusal(str(towards), number, mtu))
        self._error = number

    def raise_error(self) -> None:
        """Fails a send for what befell an earlier one, once, as the kernel does; here whichever socket's."""
        number, self._error = self._error, 0
        if number:
            raise OSError(number, os.strerror(number))

    def close(self) -> None:
        self.wire.detach(self)
        for port in tuple(self.ports.values()):
            port.close()

    def transmit(self, payload: bytes, address: SockAddr, source_port: int, tos: int) -> None:
        """Puts one datagram on the wire; EMSGSIZE where it is known that the path does not carry it."""
        self.raise_error()
        destination = parse_ip(address[0])
        datagram = Datagram(self.address, source_port, destination, address[1], payload, tos)
        if datagram.packet_length > self.path_mtu(address):
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        self.wire.carry(datagram)


class SimulatedSender:
    """One socket of the pool: `tunnel.interfaces.Sender`."""

    def __init__(self, underlay: SimulatedUnderlay, port: int) -> None:
        self.port = port
        self._underlay = underlay

    def send(self, payload: Buffer, address: SockAddr) -> int:
        self._underlay.transmit(bytes(payload), address, self.port, 0)
        return len(payload)

    def send_marked(
        self,
        buffers: Iterable[Buffer],
        control: Iterable[tuple[int, int, Buffer]],
        _flags: int,
        address: SockAddr,
    ) -> int:
        payload = b"".join(bytes(buffer) for buffer in buffers)
        stride, tos = len(payload) or 1, 0
        for level, kind, data in control:
            if (level, kind) == (socket.IPPROTO_UDP, UDP_SEGMENT):
                (stride,) = struct.unpack("=H", data)
            elif (level, kind) in (
                (socket.IPPROTO_IP, socket.IP_TOS),
                (socket.IPPROTO_IPV6, socket.IPV6_TCLASS),
            ):
                tos = bytes(data)[0]
            else:
                raise OSError(errno.EINVAL, f"control message {level}, {kind} is not simulated")
        if len(payload) > DATAGRAM_MAX or len(payload) > stride * SEGMENTS_MAX:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        for at in range(0, max(1, len(payload)), stride):
            self._underlay.transmit(payload[at : at + stride], address, self.port, tos)
        return len(payload)


@dataclass(slots=True)
class _Queued:
    """One read's worth: a datagram, or a run of them merged, `stride` octets each but the last."""

    datagram: Datagram
    payload: bytes
    count: int = 1

    @property
    def stride(self) -> int:
        return len(self.datagram.payload)

    def takes(self, other: Datagram) -> bool:
        """Whether GRO would put that one behind: the same flow, no longer, and no shorter one before."""
        first = self.datagram
        same_flow = (first.source, first.source_port, first.tos) == (
            other.source,
            other.source_port,
            other.tos,
        )
        fits = self.count < UDP_GRO_COUNT_MAX and len(self.payload) + len(other.payload) <= DATAGRAM_MAX
        is_regular = len(self.payload) == self.count * self.stride and len(other.payload) <= self.stride
        return same_flow and fits and is_regular


class SimulatedPort:
    """One receiving socket: `tunnel.interfaces.UnderlayPort`."""

    def __init__(self, underlay: SimulatedUnderlay, port: int) -> None:
        self.port = port
        self._underlay = underlay
        self._queue: deque[_Queued] = deque()
        self._octets = 0
        self._overruns = 0
        self._descriptor = underlay.wire.reactor.open_descriptor(lambda: bool(self._queue))

    def fileno(self) -> int:
        return self._descriptor

    def enqueue(self, datagram: Datagram, *, merge: bool) -> bool:
        """Takes what arrives; False where the queue is full, which is counted."""
        if self._octets + len(datagram.payload) > RECEIVE_QUEUE_OCTETS:
            self._overruns += 1
            return False
        self._octets += len(datagram.payload)
        if merge and self._queue and self._queue[-1].takes(datagram):
            self._queue[-1].payload += datagram.payload
            self._queue[-1].count += 1
        else:
            self._queue.append(_Queued(datagram, datagram.payload))
        return True

    def receive_into(self, buffers: Sequence[Buffer], _room: int) -> tuple[int, Ancillary, int, SockAddr]:
        if not self._queue:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        queued = self._queue.popleft()
        self._octets -= len(queued.payload)
        length = scatter(queued.payload, buffers)
        datagram = queued.datagram
        control: Ancillary = []
        if queued.count > 1:
            control.append((socket.IPPROTO_UDP, UDP_GRO, struct.pack("=i", queued.stride)))
        if datagram.source.version == 4:
            control.append((socket.IPPROTO_IP, socket.IP_TOS, bytes([datagram.tos])))
        else:
            control.append((socket.IPPROTO_IPV6, socket.IPV6_TCLASS, struct.pack("=i", datagram.tos)))
        flags = int(socket.MSG_TRUNC) if length < len(queued.payload) else 0
        return length, control, flags, self._underlay.sockaddr(datagram.source, datagram.source_port)

    def overruns(self) -> int:
        return self._overruns

    def close(self) -> None:
        self._underlay.ports.pop(self.port, None)
        self._underlay.wire.reactor.close_descriptor(self._descriptor)


class SimulatedExchange(SimulatedPort):
    """A receiving socket that also sends: `tunnel.interfaces.UnderlayExchange`."""

    def __init__(self, underlay: SimulatedUnderlay, port: int) -> None:
        super().__init__(underlay, port)
        sender = SimulatedSender(underlay, port)
        self.send, self.send_marked = sender.send, sender.send_marked


def scatter(octets: bytes, buffers: Sequence[Buffer]) -> int:
    """Fills the buffers in turn, as readv does; how many octets went in."""
    at = 0
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        part = octets[at : at + len(view)]
        view[: len(part)] = part
        at += len(part)
    return at
