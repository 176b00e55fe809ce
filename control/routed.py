"""Routed networks as they are served: a subnet for each node, in the two ways Flannel's backends do it.

    vxlan         the host's kernel routes.  For each node, in this order and undone in the reverse:
                      neighbor   <subnet's base> is <its MAC>, permanent: nobody asks
                      FDB        <its MAC> is behind <its VTEP>                         (our tables)
                      route      <subnet> via <subnet's base> onlink
    flannel-udp   we route.  The device is a TUN, and the whole network is behind it.

In both the device has the base address of our own subnet, alone (/32, /128): what a container gets comes
from the rest.  When the device was lost all of it is said again, from the start.

Everything here blocks for netlink, as in `control.network`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, ip_interface

from control.network import ServedNetwork
from control.operator.schema import Encap, Mode, NetworkConfig
from control.subnet_file import kept_subnet_file, subnet_env
from overlay.addr import IpAddress, Mac
from overlay.bridge import Bridge, BridgePolicy
from overlay.errors import DeviceError
from overlay.route import IpNetwork
from overlay.router import Router, RouterPolicy
from overlay.tables import Tables
from tunnel import netlink, netroutes
from tunnel.interfaces import Decider
from tunnel.masquerade import ensure_masquerade, remove_masquerade, sweep_masquerade
from tunnel.netlink import IpInterface, LinkFacts
from tunnel.netroutes import KernelRoute
from tunnel.tap import Tap, open_tun
from tunnel.underlay import UdpUnderlay

log = logging.getLogger("weft")


def serve(
    config: NetworkConfig,
    tables: Tables,
    underlays: Sequence[UdpUnderlay],
    mac: Mac | None = None,
    queues: int = 1,
) -> ServedNetwork:
    """The network with its device open, of the kind its mode and encapsulation ask for.

    Raises:
        DeviceError: As `ServedNetwork`.
    """
    if config.mode is Mode.BRIDGE:
        return ServedNetwork(config, tables, underlays, mac, queues)
    if config.encap is Encap.VXLAN:
        return RoutedNetwork(config, tables, underlays, mac, queues)
    return PacketNetwork(config, tables, underlays, mac, queues)


def sweep(networks: Iterable[NetworkConfig]) -> None:
    """Removes what a daemon that was killed could not; the rest went with its devices, or is found on them.

    The networks' devices are about to be ours.
    """
    sweep_masquerade({network.device for network in networks})


class RoutedNetwork(ServedNetwork):
    """Over VXLAN, between kernels that route."""

    programs_kernel = True

    def __init__(
        self,
        config: NetworkConfig,
        tables: Tables,
        underlays: Sequence[UdpUnderlay],
        mac: Mac | None = None,
        queues: int = 1,
    ) -> None:
        """Opens the device as `ServedNetwork` does.

        Raises:
            DeviceError: The device or one of its properties was refused; nothing is left behind.
        """
        if config.subnet is None or config.network is None:
            raise ValueError(f"expected network and subnet of {config.name}, found none")
        self.subnet: IpNetwork = config.subnet
        self.whole: IpNetwork = config.network
        file = config.subnet_file
        self._file = kept_subnet_file(file) if file is not None else None
        self._masquerades = False
        super().__init__(config, tables, underlays, mac, queues)

    @property
    def addresses(self) -> tuple[IpInterface, ...]:
        """The base of our subnet, alone, before whatever else the operator wants."""
        base = self.subnet.network_address
        return (ip_interface(f"{base}/{self.subnet.max_prefixlen}"), *self.config.address)

    def prepare(self) -> None:
        """Before the tables change: neighbors come, routes go.  Idempotent.

        Raises:
            DeviceError: The device is gone, or a neighbor was refused.
        """
        netroutes.ensure_quiet(self.config.device)
        netroutes.remove_other_routes(self.config.device, self._routes())
        netroutes.ensure_neighbors(self.config.device, self._neighbors())

    def announce(self) -> None:
        """After the tables: carrier, address, routes come, neighbors go; then who asks may know.  Idempotent.

        Raises:
            DeviceError: Something of it was refused.
            OSError: EBADFD, the device is gone again.
        """
        super().announce()
        netroutes.ensure_routes(self.config.device, self._routes())
        netroutes.remove_other_neighbors(self.config.device, self._neighbors())
        if self.config.masquerade and not self._masquerades:
            ensure_masquerade(self.config.device, self.whole, self.subnet)
            self._masquerades = True
        self.tell()

    def close(self) -> None:
        """Takes away what the device does not take with it, then the device.  Idempotent."""
        if self._masquerades:
            remove_masquerade(self.config.device)
            self._masquerades = False
        if self._is_found:
            netroutes.remove_other_routes(self.config.device, ())
            netroutes.remove_other_neighbors(self.config.device, ())
            self._added |= set(self.addresses)  # one of ours may have been left behind by a crash
        super().close()

    def _neighbors(self) -> dict[IpAddress, Mac]:
        return {node.subnet.network_address: node.mac for node in self.nodes if node.mac is not None}

    def _routes(self) -> list[KernelRoute]:
        return [KernelRoute(node.subnet, node.subnet.network_address) for node in self.nodes]

    def _new_decider(self, tables: Tables) -> Decider:
        """A bridge that is told everything: it never learns, and never floods."""
        policy = BridgePolicy(
            self.id, own_mac=self.own_mac, learning=False, flood=False, suppress=self.config.suppress
        )
        return Bridge(policy, tables)

    def tell(self) -> None:
        """Writes subnet.env, where it is wanted and would say something new."""
        if self._file is not None:
            self._file.keep(
                subnet_env(self.whole, self.subnet, mtu=self.mtu, masquerade=self.config.masquerade)
            )

    @property
    def unwritten(self) -> DeviceError | None:
        return self._file.problem if self._file is not None else None


class PacketNetwork(RoutedNetwork):
    """In Flannel's UDP format: packets, which our own router routes."""

    _index: int | None = None

    def _neighbors(self) -> dict[IpAddress, Mac]:
        return {}

    def _routes(self) -> list[KernelRoute]:
        """The whole network; a bridge with our own subnet has the longer prefix."""
        return [KernelRoute(self.whole)]

    def _new_decider(self, tables: Tables) -> Decider:
        address = self.subnet.network_address
        if not isinstance(address, IPv4Address):
            raise ValueError(f"expected an IPv4 subnet of {self.id}, found {self.subnet}")
        return Router(RouterPolicy(self.id, address), tables)

    def _open_device(self) -> Tap:
        device = open_tun(self.config.device, super_frames=self._super_frames, queues=self._queues)
        link = netlink.link(self.config.device)
        self._index = None if link is None else link.index
        return device

    def _is_ours(self, found: LinkFacts) -> bool:
        """By its number: a TUN has no MAC."""
        return found.index == self._index

    def _ensure_link(self, *, mac: Mac | None) -> None:
        super()._ensure_link(mac=None)
