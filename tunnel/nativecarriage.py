"""What the loop keeps of the native engine's networks, VTEPs and ports, and how words become numbers.

    Network, Route, Port    beside each its number in the lane; numbers are never used twice
    REASONS, numbered       drop reasons and verdicts as the lane knows them

Heads up: read tunnel/native/core/src/lane.rs beside this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf

from overlay.addr import NetworkId, Vtep, VtepId
from overlay.route import KEY_LENGTH
from overlay.verdict import (
    Decision,
    Deliver,
    Direction,
    Drop,
    DropReason,
    Encapsulate,
    Replicate,
    Reply,
    TableKey,
    Verdict,
)
from tunnel import _native
from tunnel.carriage import DATAGRAM_MAX
from tunnel.interfaces import (
    Attachment,
    FrameDevice,
    PacketDecider,
    Point,
    SockAddr,
    SuperDoor,
    SuperDoors,
    UnderlayPort,
)
from tunnel.mtu import Encap, overhead
from tunnel.offload import ETHERNET_LENGTH
from tunnel.underlay import UdpUnderlay

# From the specification: tunnel/native/py/src/lib.rs
DELIVER, ENCAPSULATE, REPLICATE, DROP = range(4)

_OTHERS = [reason for reason in DropReason if reason.name not in _native.REASONS]
REASONS: tuple[DropReason, ...] = (*(DropReason[name] for name in _native.REASONS), *_OTHERS)
"""Every reason, at the number it has in Rust: those an engine gives itself first."""
NUMBERS = {reason: number for number, reason in enumerate(REASONS)}
POINTS = tuple(Point)
KEY_ROOM = 12  # octets of a key in the lane: two MAC addresses
WIRE_ID = 1 << 24  # bare packets name no network: their port carries one, and no VNI is this


class Route:
    """How one VTEP of one network is reached: what the lane was told, and what it was told from."""

    def __init__(self, number: int, vtep: VtepId, network: Network) -> None:
        self.number = number
        self.id = vtep
        self.network = network
        self.underlay: UdpUnderlay | None = None
        self.sockaddr: SockAddr = ("", 0)
        self.frame_max = 0
        self.door: SuperDoor | None = None

    def use(self, vtep: Vtep, underlay: UdpUnderlay | None) -> None:
        """Sets where and through which underlay it is reached; None: no underlay of its family here."""
        self.underlay = underlay
        self.sockaddr = (str(vtep.address), vtep.port)
        if underlay is not None:
            # Its scope's device may be gone just now: sends fail, and are counted, until it is back.
            with suppress(OSError):
                self.sockaddr = underlay.sockaddr(vtep.address, vtep.port)
        self.frame_max = self._frame_max(underlay.mtu if underlay is not None else DATAGRAM_MAX)

    def recheck(self) -> None:
        """Asks the kernel how wide the path is now."""
        if self.underlay is None:
            return
        path_mtu = self.underlay.mtu
        with suppress(OSError):  # no path at all just now: the next send says so by itself
            path_mtu = min(path_mtu, self.underlay.path_mtu(self.sockaddr))
        self.frame_max = self._frame_max(path_mtu)

    @property
    def doors(self) -> SuperDoors | None:
        """Where super-frames may leave whole; of all that is carried, the kernel cuts VXLAN alone."""
        is_vxlan = self.network.encap is Encap.VXLAN
        return self.underlay.super_doors if self.underlay is not None and is_vxlan else None

    def hop(self, door: SuperDoor) -> _native.HopRow | None:
        """The way through that door in the lane's terms; None: no underlay."""
        if self.underlay is None:
            return None
        ports = [sender.port for sender in self.underlay.senders]
        hop, own = door.hop, self.underlay.address.packed
        return (
            hop.source,
            hop.destination,
            hop.has_checksum,
            own,
            self.id.packed,
            self.sockaddr[1],
            ports,
        )

    @property
    def is_limited(self) -> bool:
        """Whether the path was found narrower than the underlay device."""
        return self.underlay is not None and self.frame_max < self._frame_max(self.underlay.mtu)

    def _frame_max(self, path_mtu: int) -> int:
        """Octets of frame that reach the VTEP over such a path.

        Flannel's proxy reads into a buffer of its MTU and cuts off the rest, so for bare packets the path is
        not all that counts: the network has one MTU, and the VTEP has it too.
        """
        packet_max = path_mtu - overhead(self.network.encap, self.id.version)
        if self.network.router is not None:
            packet_max = min(packet_max, self.network.overlay_mtu)
        return packet_max + ETHERNET_LENGTH


@dataclass(slots=True, eq=False)
class Network:
    """One network as it is carried.

    Attributes:
        router: Who decides, in a network of bare packets; None: it carries frames.
        exchanges: The number of the socket that sends such packets, for each underlay.
    """

    number: int
    attachment: Attachment
    device: FrameDevice
    overlay_mtu: int
    overruns_seen: int
    router: PacketDecider | None = None
    routes: dict[VtepId, Route] = field(default_factory=dict)
    exchanges: dict[UdpUnderlay, int] = field(default_factory=dict)

    @property
    def encap(self) -> Encap:
        return Encap.VXLAN if self.router is None else Encap.FLANNEL_UDP

    @property
    def hidden(self) -> int:
        """How many of a frame's first octets a decision is not about."""
        return 0 if self.router is None else ETHERNET_LENGTH

    def key_of(self, row: bytes, direction: Direction) -> bytes:
        """A flow's key from the lane's, all of which are of one length."""
        if self.router is None:
            return row
        return row[: KEY_LENGTH if direction is Direction.EGRESS else 2 * KEY_LENGTH]

    @property
    def id(self) -> NetworkId:
        return self.attachment.network

    @property
    def wire_id(self) -> int:
        """What a datagram's VNI field says of it."""
        return WIRE_ID if self.attachment.vni is None else int(self.attachment.vni)


@dataclass(slots=True)
class Port:
    """A socket for each worker on one receiving port, and the networks that share it, by VNI."""

    number: int
    sockets: Sequence[UnderlayPort]
    overruns_seen: int = 0
    networks: dict[int, Network] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.overruns_seen = self.overruns()

    def overruns(self) -> int:
        """Of all of them together."""
        return sum(socket.overruns() for socket in self.sockets)

    def close(self) -> None:
        """Nobody receives there any more."""
        for socket in self.sockets:
            socket.close()


def numbered(network: Network, verdict: Verdict) -> tuple[int, int]:
    """The verdict as the lane has it.  A reply is none: it holds for one frame."""
    match verdict:
        case Deliver():
            return DELIVER, 0
        case Encapsulate(vtep):
            return ENCAPSULATE, network.routes[vtep].number
        case Replicate():
            return REPLICATE, 0
        case Drop(reason):
            return DROP, NUMBERS[reason]
        case Reply():
            raise AssertionError("expected a verdict a flow can have, found Reply")


def octets_of(place: TableKey) -> bytes:
    """A table place as octets; no two are alike, for a name has no zero octet."""
    return b"\0".join((place.table.value.encode(), place.network.encode(), place.key))


def memory_of(decision: Decision) -> tuple[bytes, float, list[bytes]] | None:
    """What the lane needs to remember a decision; None: it is true of one frame alone."""
    if decision.key is None:
        return None
    expires_at = inf if decision.expires_at is None else decision.expires_at
    return decision.key.ljust(KEY_ROOM, b"\0"), expires_at, [octets_of(place) for place in decision.rests_on]
