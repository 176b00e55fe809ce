"""An engine between doubles: a device and an underlay in memory that do what a test tells them.

    Engine.from_device ─▶ DeviceDouble ─▶ PythonDatapath ─▶ UnderlayDouble.sent
    DeviceDouble.written ◀─ PythonDatapath ◀─ UnderlayDouble ◀─ Engine.from_underlay

The doubles are the simulated lab's device and sockets with the world cut off: what the engine sends is
kept, what arrives is the test's own, and any call may be refused with any errno.  Tables and decisions
are the real ones.  `balanced_engines` looks at the ledger of every engine it made when the test ends.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from random import Random
from typing import Any

from support.clock import Clock

from bench.lab.host import NO_OFFLOAD, SimulatedDevice
from bench.lab.virtual import VirtualReactor
from bench.lab.wire import Datagram, SimulatedPort, SimulatedUnderlay, SimulatedWire
from overlay.addr import IpAddress, Mac, NetworkId, Vni, Vtep, VtepId
from overlay.bridge import Bridge, BridgePolicy
from overlay.errors import DeviceError
from overlay.fdb import Origin
from overlay.tables import Change, FdbReplace, FloodReplace, TableDelta, Tables, VtepReplace
from overlay.verdict import DropReason, Verdict
from tunnel.interfaces import (
    Ancillary,
    Attachment,
    Buffer,
    DatapathStatistics,
    Decider,
    FlowStatistics,
    Hop,
    Point,
    SockAddr,
)
from tunnel.pydatapath import PythonDatapath
from tunnel.vxlan import build_header

NETWORK = NetworkId("lab")
VNI = Vni(42)
PORT = 4789
OURS = ip_address("192.0.2.1")
OURS_V6 = ip_address("2001:db8::1")
VTEP_B, VTEP_C, STRANGER = (ip_address(f"192.0.2.{host}") for host in (2, 3, 99))
VTEP_V6 = ip_address("2001:db8::2")

OWN_MAC = Mac(b"\x02\x00\x00\x00\x00\x01")
LOCAL = Mac(b"\x02\x0a\x00\x00\x00\x01")  # a host behind our device
REMOTE = Mac(b"\x02\x0b\x00\x00\x00\x01")  # one behind VTEP_B
UNKNOWN = Mac(b"\x02\x0f\x00\x00\x00\x01")
EXPERIMENTAL = 0x88B5  # an EtherType for local experiments (IEEE 802-2014 section 9.2.4)


def frame(destination: bytes, source: bytes, payload: bytes = b"", ethertype: int = EXPERIMENTAL) -> bytes:
    """A frame nobody looks into."""
    return destination + source + ethertype.to_bytes(2, "big") + payload.ljust(46, b"\0")


def mac(number: int) -> Mac:
    """One of many unicast MACs."""
    return Mac(b"\x02\xaa" + number.to_bytes(4, "big"))


def os_error(number: int) -> OSError:
    """What a system call raises with that errno (`BlockingIOError` where Python has a class for it)."""
    return OSError(number, os.strerror(number))


class DeviceDouble(SimulatedDevice):
    """A device that keeps what is written to it.

    Attributes:
        written: (virtio header, frame) of every write that went through.
        write_errors: What the next writes raise instead.
        read_errors: What the next reads raise instead.
        lost: What `overruns` answers.
    """

    def __init__(self, reactor: VirtualReactor, name: str = "weft0", mac: Mac = OWN_MAC) -> None:
        super().__init__(reactor, name, mac, mtu=1450)
        self.written: list[tuple[bytes, bytes]] = []
        self.write_errors: deque[OSError] = deque()
        self.read_errors: deque[OSError] = deque()
        self.lost = 0
        self.set_carrier(up=True)

    @property
    def frames(self) -> list[bytes]:
        """What the host behind it got."""
        return [frame for _, frame in self.written]

    def read_into(self, buffers: Sequence[Buffer]) -> int:
        if self.read_errors:
            raise self.read_errors.popleft()
        return super().read_into(buffers)

    def write(self, buffers: Sequence[Buffer]) -> int:
        if self.write_errors:
            raise self.write_errors.popleft()
        octets = b"".join(bytes(buffer) for buffer in buffers)
        self.written.append((octets[: len(NO_OFFLOAD)], octets[len(NO_OFFLOAD) :]))
        return len(octets)

    def overruns(self) -> int:
        return self.lost


@dataclass(frozen=True)
class Sent:
    """One datagram the engine sent, and the socket it chose."""

    payload: bytes
    to: SockAddr
    source_port: int
    tos: int

    @property
    def frame(self) -> bytes:
        return self.payload[8:]


class PortDouble(SimulatedPort):
    """A receiving socket: `lost` is what `overruns` answers, `read_errors` what the next reads raise."""

    def __init__(self, underlay: SimulatedUnderlay, port: int) -> None:
        super().__init__(underlay, port)
        self.lost = 0
        self.read_errors: deque[OSError] = deque()

    def receive_into(self, buffers: Sequence[Buffer], room: int) -> tuple[int, Ancillary, int, SockAddr]:
        if self.read_errors:
            raise self.read_errors.popleft()
        return super().receive_into(buffers, room)

    def overruns(self) -> int:
        return self.lost


class UnderlayDouble(SimulatedUnderlay):
    """An underlay address without a wire.

    Attributes:
        sent: What went out.
        send_errors: What the next sends raise instead.
        paths: Host → path MTU, where it is not the underlay's; 0: no path.
        scopeless: Hosts whose scope names a device that is not there.
        taken_ports: What cannot be bound.
        opened: The receiving sockets, by port.
    """

    def __init__(self, reactor: VirtualReactor, address: IpAddress, *, mtu: int = 1500) -> None:
        super().__init__(SimulatedWire(reactor, Random(0)), address, mtu=mtu)
        self.sent: list[Sent] = []
        self.send_errors: deque[OSError] = deque()
        self.paths: dict[str, int] = {}
        self.scopeless: set[IpAddress] = set()
        self.taken_ports: set[int] = set()
        self.opened: dict[int, PortDouble] = {}

    def open_port(self, port: int) -> SimulatedPort:
        if port in self.ports or port in self.taken_ports:
            raise DeviceError(f"udp {self.address}:{port}", errno.EADDRINUSE)
        self.ports[port] = self.opened[port] = PortDouble(self, port)
        return self.opened[port]

    def sockaddr(self, address: IpAddress, port: int) -> SockAddr:
        if address in self.scopeless:
            raise os_error(errno.ENODEV)
        return super().sockaddr(address, port)

    def path_mtu(self, destination: SockAddr) -> int:
        mtu = self.paths.get(destination[0], self.mtu)
        if mtu == 0:
            raise os_error(errno.ENETUNREACH)
        return mtu

    def refuse(self, towards: IpAddress, number: int, mtu: int = 0) -> None:
        """An ICMP error comes back for what was sent there."""
        self.learn_refusal(towards, number, mtu)

    def transmit(self, payload: bytes, address: SockAddr, source_port: int, tos: int) -> None:
        self.raise_error()
        if self.send_errors:
            raise self.send_errors.popleft()
        self.sent.append(Sent(payload, address, source_port, tos))


HOP = Hop(OWN_MAC, Mac(b"\x02\x5e\x00\x00\x00\xfe"), has_checksum=True)


@dataclass(frozen=True)
class SuperSent:
    """One super-packet: what stood before the datagram, and the super-frame."""

    before: bytes
    frame: bytes


class InjectTapDouble:
    """An inject TAP that leads nowhere, and the ways one may fail.

    Attributes:
        written: What went through.
        log: The same, where the test has it beside what else was sent.
        write_errors: What the next writes raise instead.
        lost: What `new_losses` answers next.
    """

    def __init__(self, device: str = "sim0", log: list[Any] | None = None) -> None:
        self.device = device
        self.written: list[SuperSent] = []
        self.log = log if log is not None else []
        self.write_errors: deque[OSError] = deque()
        self.lost = 0

    def write(self, buffers: Sequence[Buffer]) -> int:
        if self.write_errors:
            raise self.write_errors.popleft()
        before, datagram = (bytes(buffer) for buffer in buffers)
        sent = SuperSent(before, datagram[8:])
        self.written.append(sent)
        self.log.append(sent)
        return len(before) + len(datagram)

    def look(self) -> None:
        """Nobody changes it."""

    def new_losses(self) -> int:
        lost, self.lost = self.lost, 0
        return lost


class SuperDoorDouble(InjectTapDouble):
    """A super door that is open until a test closes it."""

    def __init__(self, hop: Hop = HOP, log: list[Any] | None = None) -> None:
        super().__init__(log=log)
        self.hop = hop
        self.opened = True

    def fileno(self) -> int:
        raise NotImplementedError("no engine that writes by itself is doubled")

    def is_open(self, *, now: float) -> bool:
        return self.opened


class SuperDoorsDouble:
    """The super doors a test has made, and what the engine asked of them.

    Attributes:
        wanted: VTEPs for which a door was wanted, each time.
        shuts: (VTEP, why) of each door that was shut; it is gone then, unless `insists`.
        lost: What `losses` answers.
    """

    is_suspended = False

    def __init__(self, doors: dict[VtepId, SuperDoorDouble] | None = None) -> None:
        self.doors = doors or {}
        self.wanted: list[VtepId] = []
        self.shuts: list[tuple[VtepId, str]] = []
        self.insists = False
        self.lost = 0

    def door(self, vtep: VtepId) -> SuperDoorDouble | None:
        return self.doors.get(vtep)

    def want(self, vtep: VtepId) -> None:
        self.wanted.append(vtep)

    def shut(self, vtep: VtepId, why: str, *, now: float) -> None:
        self.shuts.append((vtep, why))
        if not self.insists:
            del self.doors[vtep]

    def losses(self) -> int:
        return self.lost

    def heed(self, suspended: Callable[[], object]) -> None:
        """It is never suspended."""

    def note_use(self, *, now: float) -> None:
        """Whoever asks `is_open` need not say."""


@dataclass(frozen=True)
class Seen:
    """One call of an observer."""

    point: Point
    network: NetworkId | None
    frame: bytes
    verdict: Verdict | None


class Watcher:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []

    def observe(
        self, point: Point, network: NetworkId | None, frame: Buffer, verdict: Verdict | None
    ) -> None:
        self.seen.append(Seen(point, network, bytes(frame), verdict))

    def points(self) -> list[Point]:
        return [seen.point for seen in self.seen]


class Engine:
    """A `PythonDatapath` that carries one network, its doubles, its clock and its tables.

    Args:
        vteps: Known and flooded to.
        addresses: Of the underlays.
        decider: Instead of a bridge with `policy`.
        others: What else the `Attachment` says.
    """

    def __init__(
        self,
        *,
        vteps: Sequence[IpAddress] = (VTEP_B,),
        addresses: Sequence[IpAddress] = (OURS,),
        policy: BridgePolicy | None = None,
        decider: Decider | None = None,
        **others: Any,
    ) -> None:
        self.reactor = VirtualReactor()
        self.clock = Clock()
        self.tables = Tables()
        self.underlays = [UnderlayDouble(self.reactor, address) for address in addresses]
        self.datapath = PythonDatapath(
            self.tables,
            self.underlays,
            reactor=self.reactor,
            clock=self.clock,
            choose_underlay=self._choose_underlay,
        )
        self.device = DeviceDouble(self.reactor)
        self.policy = policy or BridgePolicy(NETWORK, OWN_MAC)
        self.tables.add_network(NETWORK)
        self.attach(NETWORK, self.device, decider or Bridge(self.policy, self.tables), **others)
        self.add_vteps(*vteps)

    @property
    def underlay(self) -> UnderlayDouble:
        return self.underlays[0]

    @property
    def port(self) -> PortDouble:
        return self.underlay.opened[PORT]

    @property
    def sent(self) -> list[Sent]:
        return self.underlay.sent

    # Programming.

    def attach(
        self, network: NetworkId, device: DeviceDouble, decider: Decider, *, vni: Vni = VNI, **others: Any
    ) -> None:
        """Carries one more network; `others` are fields of `Attachment`."""
        self.datapath.attach(
            Attachment(
                network=network,
                vni=vni,
                device=device,
                decider=decider,
                **{"port": PORT, "overlay_mtu": device.mtu, **others},
            )
        )

    def add_network(self, name: str, vni: int, *vteps: IpAddress, **others: Any) -> DeviceDouble:
        """One more bridged network; its device."""
        network = NetworkId(name)
        self.tables.add_network(network)
        device = DeviceDouble(self.reactor, f"weft-{name}")
        decider = Bridge(BridgePolicy(network, OWN_MAC), self.tables)
        self.attach(network, device, decider, vni=Vni(vni), **others)
        self.add_vteps(*vteps, network=network)
        return device

    def add_vteps(self, *vteps: IpAddress, network: NetworkId = NETWORK, port: int = PORT) -> None:
        """Knows these, and floods to them too."""
        flood = FloodReplace(network, (*self.tables[network].flood.vteps(), *vteps))
        self.apply(*(VtepReplace(network, Vtep(address, port)) for address in vteps), flood)

    def apply(self, *changes: Change) -> None:
        self.tables.apply(TableDelta(changes))

    def bind(self, address: Mac, vtep: IpAddress = VTEP_B, origin: Origin = Origin.CONTROL) -> None:
        """The MAC is behind the VTEP."""
        self.apply(FdbReplace(NETWORK, address, vtep, origin, self.clock.now))

    # Carrying.

    def from_device(self, *frames: bytes, device: DeviceDouble | None = None) -> None:
        """The host sends these, in one burst, and all that follows from it happens."""
        for sent in frames:
            (device or self.device).transmit(sent)
        self.settle()

    def from_underlay(self, *frames: bytes, sender: IpAddress = VTEP_B, vni: int = VNI, tos: int = 0) -> None:
        """A VTEP sends these, encapsulated."""
        header = build_header(Vni(vni))
        self.datagrams(*(header + sent for sent in frames), sender=sender, tos=tos)

    def datagrams(self, *payloads: bytes, sender: IpAddress = VTEP_B, port: int = PORT, tos: int = 0) -> None:
        """Somebody sends these octets to our port."""
        underlay = next(own for own in self.underlays if own.address.version == sender.version)
        for payload in payloads:
            arriving = Datagram(sender, 50000, underlay.address, port, payload, tos)
            underlay.ports[port].enqueue(arriving, merge=False)
        self.settle()

    def settle(self) -> None:
        """Lets everything happen that is due now."""
        self.reactor.run_for(0.0)

    def pass_a_second(self) -> None:
        """Has the engine do what it does once a second."""
        self.datapath.expire(now=self.clock.now)

    # Looking.

    def statistics(self) -> DatapathStatistics:
        return self.datapath.statistics()

    @property
    def flow_count(self) -> int:
        """Remembered verdicts, of all networks."""
        return sum(self.statistics().flows.values())

    def drops(self, network: NetworkId | None = NETWORK) -> dict[DropReason, int]:
        """What was dropped, by reason: of one network, or (None) of what belongs to none."""
        return dict(self.statistics().drops.get(network, {}))

    def drops_of(self, vtep: IpAddress) -> dict[DropReason, int]:
        """What was dropped of what this VTEP sent or should have got."""
        return next(each.drops for each in self.statistics().vteps if each.vtep == vtep)

    def flow(self, key: bytes) -> FlowStatistics | None:
        """The flow with this key (destination and source MAC), if it is remembered."""
        return next((flow for flow in self.datapath.flows() if flow.key == key), None)

    def _choose_underlay(self, address: IpAddress) -> UnderlayDouble | None:
        return next((own for own in self.underlays if own.address.version == address.version), None)


MakeEngine = Callable[..., Engine]


@contextmanager
def balanced_engines() -> Iterator[MakeEngine]:
    """Makes engines; each must have accounted for every frame in the end, and after it is closed."""
    engines: list[Engine] = []

    def make(**settings: Any) -> Engine:
        engines.append(Engine(**settings))
        return engines[-1]

    yield make
    for engine in engines:
        assert_balanced(engine)
        engine.datapath.close()
        assert_balanced(engine)
        assert engine.statistics().ledger.held == 0


def assert_balanced(engine: Engine) -> None:
    """The ledger balances, and its drops are the sum of those with a name."""
    statistics = engine.statistics()
    assert statistics.ledger.balances, statistics.ledger
    assert statistics.ledger.dropped == sum(sum(each.values()) for each in statistics.drops.values())
