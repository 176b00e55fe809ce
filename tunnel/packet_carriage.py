"""What the Python engine keeps of a network of bare packets, where that differs from one of frames.

A slot has the same shape as a frame's, so that everything behind the first look is shared:

    frames     [ VXLAN header 8 ][ Ethernet 14  packet … ]          all of it is sent
    packets    [ 8 unused       ][ `ETHERNET`  ][ packet … ]        the packet is sent

One socket both receives and sends, for others expect the source port to be the port
(`Underlay.open_exchange`): there is no pool, and a VTEP has one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from overlay.addr import Mac, Vtep
from tunnel.carriage import NetworkCarriage, VtepCarriage
from tunnel.flannel_udp import ETHERNET, without_ethernet
from tunnel.flows import Dependents
from tunnel.interfaces import (
    Attachment,
    Buffer,
    FrameDevice,
    PacketDecider,
    PacketDevice,
    Sender,
    Underlay,
    UnderlayExchange,
)
from tunnel.mtu import Encap
from tunnel.offload import ETHERNET_LENGTH
from tunnel.vxlan import HEADER_LENGTH

LEAD = bytes(HEADER_LENGTH) + ETHERNET
"""What stands before a packet in its slot."""

WIRE_ID = -1  # nothing in a datagram names the network: the port carries one, and no VNI is this
SOURCE = slice(ETHERNET_LENGTH + 12, ETHERNET_LENGTH + 16)  # of a packet behind `ETHERNET`


class PacketCarriage(NetworkCarriage):
    """One network of bare packets as it is carried.

    Attributes:
        exchanges: The socket of each underlay address.
        router: Its decider.
    """

    def __init__(self, attachment: Attachment, dependents: Dependents, *, now: float) -> None:
        if not isinstance(attachment.decider, PacketDecider):
            raise TypeError(f"expected a PacketDecider for {attachment.network}, found {attachment.decider}")
        self.router: PacketDecider = attachment.decider
        self.exchanges: dict[Underlay, UnderlayExchange] = {}
        super().__init__(attachment, dependents, now=now)
        self.suppresses = False  # nobody asks for MAC addresses here

    def _set_format(self, attachment: Attachment) -> None:
        self.header, self.lead, self.prefix = bytes(HEADER_LENGTH), LEAD, b""
        self.hidden = ETHERNET_LENGTH
        self.wire_id = WIRE_ID

    def use_device(self, device: FrameDevice, overlay_mtu: int) -> None:
        """Goes on with this device, a TUN which is open."""
        if not isinstance(device, PacketDevice):
            raise TypeError(f"expected a PacketDevice for {self.id}, found {device}")
        super().use_device(Dressed(device), overlay_mtu)

    def payload_max(self, vtep: VtepCarriage) -> int:
        """Octets of packet that reach this VTEP.

        Its proxy reads into a buffer of its MTU and cuts off the rest, so the path is not all that counts:
        the network has one MTU, and we have it too.
        """
        return min(vtep.frame_max - ETHERNET_LENGTH, self.overlay_mtu)

    def packet_max(self, vtep: VtepCarriage) -> int:
        """The same."""
        return self.payload_max(vtep)

    def source_of(self, frame: bytes) -> bytes:
        """Who sent it, for a fair share of what is metered."""
        return frame[SOURCE]

    def _new_vtep(self, vtep: Vtep, underlay: Underlay | None, dependents: Dependents) -> VtepCarriage:
        return PacketVtep(vtep, underlay, dependents, self.exchanges)


class PacketVtep(VtepCarriage):
    """How one VTEP is reached: through the socket that also receives."""

    __slots__ = ("_exchanges",)

    def __init__(
        self,
        vtep: Vtep,
        underlay: Underlay | None,
        dependents: Dependents,
        exchanges: dict[Underlay, UnderlayExchange],
    ) -> None:
        self._exchanges = exchanges
        super().__init__(vtep, underlay, dependents, encap=Encap.FLANNEL_UDP)

    def route(self, vtep: Vtep, underlay: Underlay | None) -> None:
        """Sets where and through which underlay it is reached."""
        super().route(vtep, underlay)
        exchange = None if underlay is None else self._exchanges.get(underlay)
        senders: tuple[Sender, ...] = () if exchange is None else (exchange,)
        self.senders, self.mask = senders, 0


class Dressed:
    """A TUN as a `FrameDevice`: what is written to it takes its Ethernet header off first.

    What is read stands behind `ETHERNET` already, for slots are laid out so.
    """

    def __init__(self, device: PacketDevice) -> None:
        self._write = device.write
        self.device = device
        self.read_into: Callable[[Sequence[Buffer]], int] = device.read_into
        self.fileno = device.fileno
        self.set_carrier = device.set_carrier
        self.overruns = device.overruns
        self.close = device.close

    @property
    def name(self) -> str:
        return self.device.name

    @property
    def mac(self) -> Mac:
        return self.device.mac

    @property
    def queues(self) -> Sequence[int]:
        return self.device.queues

    @property
    def takes_udp_super_frames(self) -> bool:
        return self.device.takes_udp_super_frames

    def write(self, buffers: Sequence[Buffer]) -> int:
        """Virtio header and frame, the first buffer of which holds all headers."""
        header, first, *rest = buffers
        return self._write((without_ethernet(bytes(header)), memoryview(first)[ETHERNET_LENGTH:], *rest))
