"""The doors of the data plane: what carries frames, what carries datagrams, who decides, who watches.

    device ──read──▶ Datapath ──send──▶ Underlay          egress
    device ◀─write── Datapath ◀─receive── Underlay        ingress
                        │ ▲
                 Upcall ▼ │ Decision
                      Decider

Every door is a Protocol with its contract written down: who owns a buffer and until when, and what is
raised.  Real ones stand in `tap` and `underlay`; simulated ones in the lab.  A datapath cannot tell
them apart, which is why a whole node runs in a test without a descriptor or a clock.

The callables below are attributes, not methods, so that a real door can hand out the C function itself
(`functools.partial(os.readv, fd)`, `socket.sendto`): one Python call less per frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, runtime_checkable

from overlay.addr import IpAddress, Mac, NetworkId, Vni, VtepId
from overlay.verdict import Decision, Direction, DropReason, Verdict
from tunnel.ladder import Ladder

Buffer = bytes | bytearray | memoryview

SockAddr = tuple[str, int] | tuple[str, int, int, int]
"""An address as the `socket` module gives and takes it: (host, port) or (host, port, flow, scope)."""


class Cancellable(Protocol):
    """A callback that has been scheduled."""

    def cancel(self) -> None: ...


class Reactor(Protocol):
    """What of an asyncio event loop a datapath uses.  Every asyncio loop is one; so is the virtual one."""

    def time(self) -> float: ...
    def call_soon(self, callback: Callable[..., object], /, *args: object) -> Cancellable: ...
    def call_later(self, delay: float, callback: Callable[..., object], /, *args: object) -> Cancellable: ...
    def add_reader(self, fd: int, callback: Callable[..., object], /, *args: object) -> object: ...
    def remove_reader(self, fd: int, /) -> object: ...


class FrameDevice(Protocol):
    """A TAP, or something like one: whole Ethernet frames, each behind a 10-octet `virtio_net_hdr`.

    Attributes:
        read_into: Scatters one frame into the buffers, header first, and returns the octets read,
            header included.  The buffers are the caller's.  BlockingIOError: nothing there.  OSError
            EBADFD or ENODEV: the device is gone; EIO: it is down.
        queues: A descriptor for each queue, `fileno()` first; the kernel keeps a flow in one of them.
        takes_udp_super_frames: Whether a write may hold UDP segments joined into one frame (Linux >= 6.2).
        write: Gathers header and frame from the buffers, which may be reused on return.
            BlockingIOError: no room.  OSError EINVAL: the header contradicts the frame (its contents can
            cause this: never a reason to distrust the device).  OSError EIO: the device is down.
    """

    @property
    def name(self) -> str: ...
    @property
    def mac(self) -> Mac: ...
    def fileno(self) -> int: ...
    @property
    def queues(self) -> Sequence[int]: ...
    @property
    def takes_udp_super_frames(self) -> bool: ...
    @property
    def read_into(self) -> Callable[[Sequence[Buffer]], int]: ...
    @property
    def write(self) -> Callable[[Sequence[Buffer]], int]: ...
    def set_carrier(self, *, up: bool) -> None:
        """Tells the host whether the network behind the device is ready."""

    def overruns(self) -> int:
        """Frames the kernel has dropped because its queue towards us was full; cumulative."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class PacketDevice(FrameDevice, Protocol):
    """A TUN: as a `FrameDevice`, but behind the header is an IP packet, from which its offsets count.

    Attributes:
        answer: Hands the host one packet of this node's own making, as if the node itself had sent it: a
            packet *from* the device with the host's own source address is a martian to the kernel.  OSError:
            the host has no way to its destination.
    """

    @property
    def answer(self) -> Callable[[bytes], int]: ...


Ancillary = list[tuple[int, int, bytes]]


class UnderlayPort(Protocol):
    """A UDP socket that receives: one underlay address, one port.

    Attributes:
        receive_into: Reads one datagram into the buffers (65 535 octets at least, or its end is lost) and
            returns (octets, control messages, flags, sender).  The second argument is the room for
            control messages.  BlockingIOError: nothing there.  Any other OSError is an old send's
            misfortune reported here; the next call goes on.
    """

    @property
    def port(self) -> int: ...
    def fileno(self) -> int: ...
    @property
    def receive_into(self) -> Callable[[Sequence[Buffer], int], tuple[int, Ancillary, int, SockAddr]]: ...
    def overruns(self) -> int:
        """Datagrams the kernel has dropped because the receive buffer was full; cumulative."""
        ...

    def close(self) -> None: ...


class UnderlayExchange(UnderlayPort, Protocol):
    """A receiving socket that also sends, from its own port: what `UnderlayPort` and `Sender` are."""

    @property
    def send(self) -> Callable[[Buffer, SockAddr], int]: ...
    @property
    def send_marked(
        self,
    ) -> Callable[[Iterable[Buffer], Iterable[tuple[int, int, Buffer]], int, SockAddr], int]: ...


@dataclass(frozen=True, slots=True)
class Refusal:
    """The network reported a datagram of ours undeliverable (an ICMP error), after it was sent.

    Attributes:
        towards: The host it was for, as `SockAddr[0]`.
        errno: ECONNREFUSED, EHOSTUNREACH, EMSGSIZE, …
        mtu: With EMSGSIZE, what the path carries, in octets of IP packet; else 0.
    """

    towards: str
    errno: int
    mtu: int = 0


class Sender(Protocol):
    """One bound socket of the source-port pool.

    Attributes:
        port: The source port of what it sends.
        send: Sends one datagram and returns its octets.  BlockingIOError or ENOBUFS: full.  EMSGSIZE:
            longer than the path carries (the DF bit is set).  Other OSErrors: refused.  An ICMP error that
            waits on the socket fails one send to whomever, which was then not sent: it is to be repeated.
        send_marked: The same with `(payload buffers, control messages, flags, address)`, as `sendmsg`.
    """

    @property
    def port(self) -> int: ...
    @property
    def send(self) -> Callable[[Buffer, SockAddr], int]: ...
    @property
    def send_marked(
        self,
    ) -> Callable[[Iterable[Buffer], Iterable[tuple[int, int, Buffer]], int, SockAddr], int]: ...


@dataclass(frozen=True, slots=True)
class Hop:
    """Where super-packets to one VTEP go first.

    Attributes:
        source, destination: The outer Ethernet addresses: our egress device's, and the next hop's.
        has_checksum: Whether the egress device segments datagrams that bear an outer UDP checksum.
    """

    source: Mac
    destination: Mac
    has_checksum: bool


class SuperDoor(Protocol):
    """The way by which super-frames reach one VTEP whole: through an inject TAP to its egress device.

    Attributes:
        hop: Which Ethernet addresses the outer header bears.
        write: Gathers (outer header, VXLAN datagram), which may be reused on return; see `super_packet`.
            BlockingIOError: as much is under way as may be.  OSError EINVAL: the frame contradicts its
            header (its contents can cause this); EIO, EBADFD: the TAP is down, or gone.
    """

    @property
    def hop(self) -> Hop: ...
    @property
    def write(self) -> Callable[[Sequence[Buffer]], int]: ...
    def fileno(self) -> int:
        """The TAP's descriptor, for an engine that writes by itself; it may be closed at any time."""
        ...

    def is_open(self, *, now: float) -> bool:
        """Whether this frame may take it.  Once a second it may not: what forbids sockets must be seen."""
        ...


class SuperDoors(Protocol):
    """The super doors of one underlay, by VTEP: opened, watched and closed by somebody else.

    Attributes:
        is_suspended: Something may have changed: no door may be used now.
    """

    @property
    def is_suspended(self) -> bool: ...
    def heed(self, suspended: Callable[[], object]) -> None:
        """Has it called whenever all doors are suspended, for an engine that does not ask each time."""
        ...

    def note_use(self, *, now: float) -> None:
        """A door is in use, says an engine that does not ask `is_open`."""
        ...

    def door(self, vtep: VtepId) -> SuperDoor | None:
        """The door to this VTEP, or None: there is none now."""
        ...

    def want(self, vtep: VtepId) -> None:
        """There are super-frames for this VTEP: where it can have a door, it shall."""
        ...

    def shut(self, vtep: VtepId, why: str, *, now: float) -> None:
        """Closes the door to this VTEP, for a minute: a socket or the door itself has failed."""
        ...

    def losses(self) -> int:
        """Super-packets the kernel took and did not bring to the egress device; cumulative."""
        ...


class Underlay(Protocol):
    """One underlay address of ours: the source-port pool that sends, and the ports that receive.

    Attributes:
        senders: The pool; its size is a power of two.  A flow keeps to one of them.
        ladder: Which offloads it has, probed; an engine lowers what fails at run time.
        super_doors: Where super-frames leave whole; None: nowhere.
    """

    @property
    def address(self) -> IpAddress: ...
    @property
    def device(self) -> str: ...
    @property
    def mtu(self) -> int: ...
    @property
    def senders(self) -> Sequence[Sender]: ...
    @property
    def ladder(self) -> Ladder: ...
    @property
    def super_doors(self) -> SuperDoors | None: ...
    def open_port(self, port: int) -> UnderlayPort:
        """Binds (address, port) for receiving.

        Raises:
            DeviceError: The port is taken, or the address is not ours.
        """
        ...

    def open_exchange(self, port: int) -> UnderlayExchange:
        """Binds (address, port) for both ways; what comes of its sends is among the `refusals` too.

        Raises:
            DeviceError: As `open_port`.
        """
        ...

    def sockaddr(self, address: IpAddress, port: int) -> SockAddr:
        """Where to send for this address; element 0 is also how a datagram from there names its sender.

        Raises:
            OSError: ENODEV, the address has a scope and its device is not there.
        """
        ...

    def path_mtu(self, destination: SockAddr) -> int:
        """What the path to the destination carries now, in octets of IP packet.

        Raises:
            OSError: There is no path.
        """
        ...

    def refusals(self) -> list[Refusal]:
        """The ICMP errors that came back since the last call.  A send that fails may tell of them."""
        ...

    def close(self) -> None: ...


class Strictness(Enum):
    """What a set reserved bit in a VXLAN header means."""

    RFC7348 = "rfc7348"  # ignored on receipt, section 5
    LINUX = "linux"  # dropped, as the kernel's vxlan module does


class Decider(Protocol):
    """Who answers upcalls: pure, changes nothing, knows one network.  `overlay.bridge.Bridge` is one."""

    def egress(self, frame: bytes, *, now: float) -> Decision: ...
    def ingress(self, frame: bytes, vtep: VtepId, *, now: float) -> Decision: ...
    def too_big(self, frame: bytes, mtu: int) -> bytes | None:
        """The frame to send back to the source of one longer than `mtu` octets of packet, if any."""
        ...


@runtime_checkable
class PacketDecider(Decider, Protocol):
    """Who answers upcalls of a network of bare packets.  `overlay.router.Router` is one.

    `key_of` is how an engine finds the flow of a packet: the subnet of an IPv4 address, as a number.  On
    egress the key is the destination's, on ingress the source's and then the destination's.
    """

    @property
    def key_of(self) -> Callable[[int], bytes]: ...
    def unreachable(self, packet: bytes) -> bytes | None:
        """The packet to send back to the source of one dropped for NO_ROUTE, if any."""
        ...

    def expired(self, packet: bytes) -> bytes | None:
        """The packet to send back to the source of one dropped for TTL_EXPIRED, if any."""
        ...


@dataclass(frozen=True, slots=True)
class Attachment:
    """One network as a datapath carries it.

    Attributes:
        vni: None: the format is Flannel's UDP, the device a `PacketDevice`, the decider a `PacketDecider`.
        overlay_mtu: Octets of packet the device carries.
        suppresses: Whether neighbor discovery must be asked about frame by frame.
        repairs: Whether unfinished checksums and super-frames from the underlay are completed.
    """

    network: NetworkId
    vni: Vni | None
    port: int
    device: FrameDevice
    decider: Decider
    overlay_mtu: int
    strictness: Strictness = Strictness.RFC7348
    suppresses: bool = True
    repairs: bool = True


class Point(Enum):
    """Where on its way an Observer sees a frame."""

    DEVICE_READ = "device-read"
    UNDERLAY_SEND = "underlay-send"
    UNDERLAY_RECEIVE = "underlay-receive"
    DEVICE_WRITE = "device-write"
    DROP = "drop"


class Observer(Protocol):
    """Capture, live trace and the flight recorder.  Free when nobody watches.

    A bare packet is shown behind an Ethernet header of zeros, as the engine holds it.
    """

    def observe(
        self, point: Point, network: NetworkId | None, frame: Buffer, verdict: Verdict | None
    ) -> None:
        """Sees one frame.  The buffer is BORROWED: valid until this call returns.

        `verdict` is None where none has been reached yet.  Raising is a bug of the observer's.
        """
        ...


@dataclass(frozen=True, slots=True)
class Ledger:
    """Where every frame went, in frames: at any quiet moment `balances` holds.

    received   read from a device, or a datagram from the underlay; also what the kernel lost on our behalf
    generated  made here: the further copies of a replicated frame, ICMP errors
    held       waiting for their flow's verdict
    """

    received: int
    generated: int
    sent: int
    delivered: int
    dropped: int
    held: int

    @property
    def balances(self) -> bool:
        return self.received + self.generated == self.sent + self.delivered + self.dropped + self.held


@dataclass(frozen=True, slots=True)
class FlowStatistics:
    """One remembered verdict, or what one of several workers remembers of it.

    Attributes:
        key: Destination and source MAC as in the frame, 12 octets; of packets the destination's subnet, on
            ingress the source's before it, 5 octets each (`overlay.route`).
    """

    network: NetworkId
    direction: Direction
    vtep: VtepId | None
    key: bytes
    verdict: Verdict
    frames: int
    octets: int
    used_at: float


@dataclass(frozen=True, slots=True)
class VtepStatistics:
    """What went to and came from one VTEP of one network: octets of frame, encapsulation not counted."""

    network: NetworkId
    vtep: VtepId
    sent_frames: int
    sent_octets: int
    received_frames: int
    received_octets: int
    drops: dict[DropReason, int]


@dataclass(frozen=True, slots=True)
class DatapathStatistics:
    """A snapshot.  `drops` has the key None for what belongs to no network (an unknown VNI).

    Attributes:
        flows: Verdicts remembered, by network.
    """

    ledger: Ledger
    drops: dict[NetworkId | None, dict[DropReason, int]]
    vteps: tuple[VtepStatistics, ...]
    flows: dict[NetworkId, int]
    upcalls: int


@dataclass(frozen=True, slots=True)
class Activity:
    """A source MAC seen behind a VTEP by remembered flows, and when last: what keeps it from ageing out."""

    network: NetworkId
    mac: Mac
    vtep: VtepId
    used_at: float


class Datapath(Protocol):
    """An engine: reads, looks up, carries, counts, and asks when it does not know.  It never decides.

    It subscribes to the `Tables` it was given: a change to a place a verdict rests on forgets that
    verdict before `Tables.apply` returns.
    """

    @property
    def kind(self) -> str: ...
    def attach(self, attachment: Attachment) -> None:
        """Starts carrying a network; raises DeviceError where its port cannot be bound."""

    def detach(self, network: NetworkId) -> None:
        """Stops carrying it and forgets its flows.  Its device stays the caller's to close."""

    def replace_device(self, network: NetworkId, device: FrameDevice, overlay_mtu: int) -> None:
        """Goes on with another device (the old one is gone), or another MTU of the same; flows kept."""

    def reroute(self) -> None:
        """The underlay changed: asks again how each VTEP is reached.  Forgets no flow."""

    def flows(self) -> Iterable[FlowStatistics]: ...
    def activity(self, *, since: float) -> Iterable[Activity]:
        """What ingress flows have carried at or after `since`, absolute seconds."""
        ...

    def expire(self, *, now: float) -> None:
        """Forgets idle flows and verdicts whose time is over; times out pending ones.  Call every second."""

    def watch(self, observer: Observer) -> None: ...
    def unwatch(self, observer: Observer) -> None: ...
    def statistics(self) -> DatapathStatistics: ...
    def close(self) -> None: ...
