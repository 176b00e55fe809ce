"""One network as it is served: its device, its decisions, and their upkeep against the kernel.

Everything here blocks for netlink: the daemon calls it before its loop turns, or from a thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from control.intent.desired import NodeSubnet
from control.operator.schema import NetworkConfig
from control.operator.schema import Strictness as ConfiguredStrictness
from control.operator.vtep_mac import stable_mac
from overlay.addr import IpAddress, Mac, NetworkId
from overlay.bridge import Bridge, BridgePolicy
from overlay.errors import DeviceError
from overlay.tables import Tables
from tunnel import netlink
from tunnel.interfaces import Attachment, Decider, Strictness
from tunnel.ladder import Feature
from tunnel.mtu import Encap, overlay_mtu
from tunnel.netlink import IpInterface, LinkFacts
from tunnel.tap import Tap, open_tap
from tunnel.underlay import UdpUnderlay

# Ours
QUEUE_FRAMES = 1000  # txqueuelen of the TAP: bounds what the host may have waiting for us


class ServedNetwork:
    """A bridged network with its device open.  The device goes when this is closed.

    `control.routed` has the other kinds; `serve` makes whichever a network is.

    Attributes:
        programs_kernel: Whether peers are known to the host's kernel too, and not to our tables alone.
        nodes: Those peers, each with what is behind it.
        mtu: Octets of packet the device carries now.
        problem: Why the device is not there, while it is not.
    """

    programs_kernel = False

    def __init__(
        self,
        config: NetworkConfig,
        tables: Tables,
        underlays: Sequence[UdpUnderlay],
        mac: Mac | None = None,
        queues: int = 1,
    ) -> None:
        """Opens the device, up, its carrier still down and without addresses: see `announce`.

        `mac` is what the device had when it was ours last; None: as its VTEP's address has it.  It has so
        many `queues`, one for each worker.

        It is asked for super-frames where an underlay would carry what they are cut into.

        Raises:
            DeviceError: The device or one of its properties was refused; nothing is left behind.
        """
        self.config = config
        self.nodes: tuple[NodeSubnet, ...] = config.nodes
        self.mtu = device_mtu(config, underlays)
        self.problem: DeviceError | None = None
        self._queues = queues
        self._super_frames = any(underlay.ladder.wants(Feature.TAP_GSO) for underlay in underlays) and any(
            underlay.ladder.is_on(Feature.UDP_GSO) for underlay in underlays
        )
        # A persistent TAP is its maker's: it keeps its MAC, and after us has no address of ours.
        self._is_found = netlink.link(config.device) is not None
        self._added: set[IpInterface] = set()
        mac = mac or stable_mac(config, underlays[0].address)
        self.device = self._open(mac=None if self._is_found else mac)
        for underlay in underlays:
            underlay.ladder.probed(Feature.TAP_GSO, self._tap_obstacle())
        tables.add_network(config.id)
        self.own_mac = self.device.mac
        self.decider = self._new_decider(tables)

    @property
    def id(self) -> NetworkId:
        return self.config.id

    def attachment(self, *, repairs: bool) -> Attachment:
        """What an engine needs to carry it."""
        return Attachment(
            network=self.id,
            vni=self.config.vni,
            port=self.config.port,
            device=self.device,
            decider=self.decider,
            overlay_mtu=self.mtu,
            strictness=(
                Strictness.LINUX
                if self.config.strictness is ConfiguredStrictness.LINUX
                else Strictness.RFC7348
            ),
            suppresses=self.config.suppress,
            repairs=repairs,
        )

    def restore(self, underlays: Sequence[UdpUnderlay]) -> Tap | None:
        """Makes the device be as it must be again; the one it replaces, if it had to be another.

        Idempotent.  A device that was deleted, renamed or moved away is made anew with its old address; one
        that was set down, or lost its MAC, addresses or MTU, gets them back.  The one replaced is the
        caller's to close, once nobody listens to it: a number closed before that is soon another's.

        Raises:
            DeviceError: It cannot be; the next call tries again.
        """
        self.mtu = device_mtu(self.config, underlays)
        found = netlink.link(self.config.device)
        if found is not None and self._is_ours(found):
            self._ensure_link(mac=self.own_mac)
            return None
        replaced, self.device = self.device, self._open(mac=self.own_mac)
        return replaced

    def prepare(self) -> None:
        """Before the tables change: what must be in the kernel first, or leave it first.  Idempotent."""

    def announce(self) -> None:
        """Gives the device its carrier, then its addresses.  Idempotent.

        In this order: a host that has the address sends at once, and what it sends to a device without
        carrier is gone.  A lost ARP request is repeated after a second.

        Raises:
            DeviceError: An address was refused.
            OSError: EBADFD, the device is gone again.
        """
        self.device.set_carrier(up=True)
        self._added |= set(netlink.ensure_addresses(self.config.device, self.addresses))

    def tell(self) -> None:
        """Writes down what others read of the network.  Idempotent; `unwritten` has what came in its way."""

    @property
    def unwritten(self) -> DeviceError | None:
        """Why the disk does not hold that."""
        return None

    def close(self) -> None:
        """Takes the device down, its addresses and routes with it.  Idempotent."""
        self.device.close()
        if self._is_found:
            netlink.remove_addresses(self.config.device, self._added)
            self._added.clear()

    @property
    def addresses(self) -> tuple[IpInterface, ...]:
        """What the device is called on the overlay."""
        return self.config.address

    def _new_decider(self, tables: Tables) -> Decider:
        return Bridge(
            BridgePolicy(
                self.id,
                own_mac=self.own_mac,
                learning=self.config.learning,
                flood=self.config.flood,
                suppress=self.config.suppress,
                fdb_max=self.config.fdb_max,
            ),
            tables,
        )

    def _is_ours(self, found: LinkFacts) -> bool:
        """Whether the device of our name is the one we hold."""
        return found.mac == self.device.mac

    def _tap_obstacle(self) -> str | None:
        """What is in the way of super-frames at the device, or None."""
        if self.device.offload_mask:
            return None
        return "this kernel" if self._super_frames else "no underlay sends segments"

    def _open(self, *, mac: Mac | None) -> Tap:
        device = self._open_device()
        try:
            self._ensure_link(mac=mac)
        except DeviceError:
            device.close()
            raise
        return device

    def _open_device(self) -> Tap:
        return open_tap(self.config.device, super_frames=self._super_frames, queues=self._queues)

    def _ensure_link(self, *, mac: Mac | None) -> None:
        netlink.ensure_link(self.config.device, mtu=self.mtu, up=True, mac=mac, txqueuelen=QUEUE_FRAMES)


@dataclass(frozen=True, slots=True)
class UnderlaySurvey:
    """What the kernel says of an underlay address now; `mtu` None: the address is not there."""

    underlay: UdpUnderlay
    device: str | None
    mtu: int | None


def survey(underlays: Sequence[UdpUnderlay]) -> tuple[UnderlaySurvey, ...]:
    """Looks for each underlay address: which device has it, and that device's MTU."""
    own = {facts.address: facts.device for facts in netlink.addresses()}
    found = []
    for underlay in underlays:
        device = own.get(underlay.address)
        link = netlink.link(device) if device is not None else None
        found.append(UnderlaySurvey(underlay, device, link.mtu if link is not None else None))
    return tuple(found)


def device_addresses(devices: Sequence[str]) -> dict[str, tuple[IpAddress, ...]]:
    """The addresses each of these devices has now, without their scope; blocks for netlink."""
    found: dict[str, list[IpAddress]] = {device: [] for device in devices}
    for facts in netlink.addresses():
        if facts.device in found and not facts.tentative:
            found[facts.device].append(ip_address(str(facts.address).partition("%")[0]))
    return {device: tuple(addresses) for device, addresses in found.items()}


def device_mtu(config: NetworkConfig, underlays: Sequence[UdpUnderlay]) -> int:
    """What the operator says, or what the narrowest underlay leaves after encapsulation."""
    if config.mtu != "auto":
        return config.mtu
    encap = Encap(config.encap.value)
    return min(overlay_mtu(underlay.mtu, encap, underlay.address.version) for underlay in underlays)
