"""The commands that make a host with stock tools, the kernel's or Flannel's, a member of one of our networks.

A kernel VTEP finds its peers in its FDB: an entry for the all-zero MAC is a line of its flood list
(head-end replication), and from there it learns (RFC 7348 section 4.2).  So it needs a device with our
VNI and port, one all-zero entry for this node and for every other peer, and an address of its own.  A
routed network has no flood list; what a node of it needs stands in `flannel_peer`.

Heads up: read ip-link(8), VXLAN Type Support, and bridge(8), bridge fdb append.
"""

from __future__ import annotations

import shlex
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_interface

from control.operator.failure import ExitCode, Failure
from control.operator.flannel_peer import (
    USUAL_UNDERLAY_MTU,
    VXLAN_OVERHEAD,
    flannel_commands,
    kernel_commands,
    per_peer,
)
from control.operator.schema import Config, Encap, Mode, NetworkConfig
from overlay.addr import IpAddress, Vtep

# Ours
FLOOD_MAC = "00:00:00:00:00:00"


@dataclass(frozen=True, slots=True)
class Membership:
    """What to run as root on one host.  `host` is its underlay address, None if it is not among the peers."""

    host: str | None
    title: str
    commands: tuple[str, ...]


def membership(
    config: Config,
    name: str | None,
    *,
    own_address: str | None = None,
    route: Callable[[IpAddress], IpAddress] | None = None,
) -> list[Membership]:
    """One for each static peer of the network, or one for any host if there are none.

    Args:
        config: Ours.
        name: The network's; may be None where there is only one.
        own_address: The overlay address the other host is to have, with its prefix.
        route: Our source address towards a host; default: the kernel's choice.

    Raises:
        Failure: No such network, not one the kernel's vxlan can join, or our address is not known.
    """
    network = _network(config, name)
    if network.encap is not Encap.VXLAN:
        raise Failure(
            f"{network.name} is {network.encap}",
            why="the kernel's vxlan does not speak it",
            advice="weft config peer --flannel …",
        )
    if own_address is not None:
        _validate(own_address)
    ours = _underlay_towards(config, route or _source_towards)
    if network.mode is Mode.ROUTED:
        return _of_routed(network, kernel_commands, ours)
    if not network.peers:
        return [Membership(None, _title("another host", network), _anybody(config, network, own_address))]
    return [
        Membership(
            str(peer.address),
            _title(f"the host {peer.address}", network),
            tuple(_commands(network, peer, _others(network, peer, ours(peer.address)), own_address)),
        )
        for peer in network.vteps
    ]


def flannel_membership(
    config: Config, name: str | None, *, route: Callable[[IpAddress], IpAddress] | None = None
) -> list[Membership]:
    """The same for hosts that run flanneld.

    Raises:
        Failure: No such network, not a routed one, no peers, or our address is not known.
    """
    network = _network(config, name)
    if network.mode is not Mode.ROUTED:
        raise Failure(
            f"{network.name} is bridged", why="Flannel only routes", advice="weft config peer --kernel …"
        )
    return _of_routed(network, flannel_commands, _underlay_towards(config, route or _source_towards))


def _of_routed(
    network: NetworkConfig,
    commands: Callable[[NetworkConfig, IpAddress, IpAddress], Iterator[str]],
    ours: Callable[[IpAddress], IpAddress],
) -> list[Membership]:
    return [
        Membership(str(host), _title(f"the host {host}", network), lines)
        for host, lines in per_peer(network, commands, ours)
    ]


def _network(config: Config, name: str | None) -> NetworkConfig:
    names = ", ".join(network.name for network in config.networks)
    if name is None and len(config.networks) > 1:
        raise Failure(
            "expected --network", why=f"there are several: {names}", advice="weft config peer --network …"
        )
    for network in config.networks:
        if name in (None, network.name):
            return network
    raise Failure(
        f"no such network: {name}",
        why=f"the configuration has {names}",
        advice="weft config show",
        code=ExitCode.NO_SUCH_OBJECT,
    )


def _validate(own_address: str) -> None:
    try:
        ip_interface(own_address)
    except ValueError:
        raise Failure(
            f"--member-address: expected an address with its prefix, found {own_address}",
            why="the other host's device gets it with `ip address add`",
            advice="--member-address 10.9.0.2/24",
        ) from None


def _underlay_towards(
    config: Config, route: Callable[[IpAddress], IpAddress]
) -> Callable[[IpAddress], IpAddress]:
    """Ours as that host sees it: the configured address of its family, else what the kernel would use."""

    def towards(host: IpAddress) -> IpAddress:
        for own in config.node.underlay:
            if isinstance(own, IPv4Address | IPv6Address) and own.version == host.version:
                return own
        return route(host)

    return towards


def _source_towards(host: IpAddress) -> IpAddress:
    """The kernel's choice.  Connecting a datagram socket looks the route up and sends nothing."""
    family = socket.AF_INET if host.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(host), 9))
        except OSError as error:
            raise Failure(
                f"this node's address towards {host} is not known: {error.strerror}",
                why="node.underlay names no address, and there is no route",
                advice="weft config peer --kernel --underlay ADDRESS …",
            ) from None
        text: str = probe.getsockname()[0]
    return IPv4Address(text) if host.version == 4 else IPv6Address(text)


def _others(network: NetworkConfig, peer: Vtep, own: IpAddress) -> list[Vtep]:
    """Everybody the peer replicates to: us first, then the other static peers."""
    return [Vtep(own, network.port), *(vtep for vtep in network.vteps if vtep != peer)]


def _anybody(config: Config, network: NetworkConfig, own_address: str | None) -> tuple[str, ...]:
    own = [each for each in config.node.underlay if isinstance(each, IPv4Address | IPv6Address)]
    if not own:
        raise Failure(
            "this node's underlay address is not known",
            why="node.underlay names no address, and the network has no peer to look towards",
            advice="weft config peer --kernel --underlay ADDRESS …",
        )
    others = [Vtep(own[0], network.port)]
    return tuple(_commands(network, None, others, own_address))


def _title(host: str, network: NetworkConfig) -> str:
    vni = "" if network.vni is None else f"VNI {network.vni}, "
    return f"On {host}, as root: a member of {network.name} ({vni}UDP port {network.port})"


def _commands(
    network: NetworkConfig, peer: Vtep | None, others: list[Vtep], own_address: str | None
) -> Iterator[str]:
    device = f"vxlan{network.vni}"
    port = peer.port if peer is not None else network.port
    local = f" local {peer.address}" if peer is not None else ""
    # QUIRK(linux): what the kernel learns it sends to the device's own port, whatever port its flood list
    # names.  Where ports differ it must not learn, and sends everything along the list, which is right.
    learning = "" if all(vtep.port == port for vtep in others) else " nolearning"
    # udpcsum: datagrams without a checksum are never merged on our side, and IPv6 forbids them.
    checksum = "udpcsum" if others[0].address.version == 4 else "noudp6zerocsumtx"
    mtu = network.mtu
    if mtu == "auto":
        mtu = USUAL_UNDERLAY_MTU - VXLAN_OVERHEAD[others[0].address.version]
    options = f"id {network.vni} dstport {port}{local}{learning} {checksum}"
    yield f"ip link add {device} mtu {mtu} type vxlan {options}"
    for vtep in others:
        its_port = "" if vtep.port == port else f" port {vtep.port}"
        yield f"bridge fdb append {FLOOD_MAC} dev {device} dst {vtep.address}{its_port}"
    if own_address is not None:
        yield f"ip address add {shlex.quote(own_address)} dev {device}"
    yield f"ip link set {device} up"
    if own_address is None and network.address:
        subnet = network.address[0].network
        yield f"# and an address of its own in {subnet}:  ip address add … dev {device}"
