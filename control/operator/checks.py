"""What no single key can tell: keys that contradict each other, two networks that want the same thing.

Each check takes the typed configuration and yields findings; `config.load` reports them beside the
problems of single keys.  Two are other questions: `incomplete`, for what a file leaves out a flag may say;
and `unsupported`, for a configuration can be right and this build, or this user, unable to run it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address

from control.intent.leaseplan import default_subnet_len
from control.operator.build import native_obstacle
from control.operator.fields import IPV6_MTU_MIN, IpNetwork
from control.operator.keyring import unreadable
from control.operator.lease_plan import configured_plan
from control.operator.problems import Finding
from control.operator.schema import Config, Encap, Engine, Mode, NetworkConfig, NodeConfig
from control.operator.toml_lines import TomlPath
from overlay.addr import IpAddress, Mac, Vtep, format_mac, is_address
from overlay.errors import LeaseError

# From the specification
SUBNET_ADDRESSES_MIN = 4  # the base is the tunnel device's, the next a bridge's: Flannel takes no /31 either

# Ours
ROUTED_ONLY = (
    *("network", "net_conf", "subnet", "subnet_len", "subnet_min", "subnet_max"),
    *("founders", "subnet_file", "masquerade"),
)


def contradictions(config: Config) -> Iterator[Finding]:
    """Every way in which the keys cannot all hold."""
    yield from _duplicate_underlays(config)
    yield from _workers(config)
    yield from _cores(config)
    yield from _gossip(config)
    for index, network in enumerate(config.networks):
        at: TomlPath = ("network", index)
        yield from _format(network, at)
        yield from _own_addresses(network, at)
        yield from _peers(config, network, at)
        if network.mode is Mode.ROUTED:
            yield from _subnets(network, at)
            yield from _leases(network, at)
    yield from _twice(config, "name", _chosen_name)
    yield from _twice(config, "device", lambda network: f"device {network.device}")
    yield from _twice(config, "vni", _wire_identity)
    yield from _mixed_ports(config)


def _duplicate_underlays(config: Config) -> Iterator[Finding]:
    seen: set[object] = set()
    for index, underlay in enumerate(config.node.underlay):
        if underlay in seen:
            yield Finding(("node", "underlay", index), f"{underlay} is listed twice")
        seen.add(underlay)


def _workers(config: Config) -> Iterator[Finding]:
    """Only the native engine has threads."""
    if config.node.engine is not Engine.PYTHON:
        return
    why = "the engine in Python has one thread, the daemon's"
    if (workers := config.node.workers) > 1:
        yield Finding(("node", "workers"), f"expected 1, found {workers}: {why}", 'engine = "native"')
    if cores := config.node.cores:
        found = ", ".join(map(str, cores))
        yield Finding(("node", "cores"), f"expected none, found {found}: {why}", 'engine = "native"')


def _gossip(config: Config) -> Iterator[Finding]:
    """Sockets are bound to addresses, and members tell one another addresses; seeds may be names."""
    if config.gossip is None:
        return
    own = next((each for each in config.node.underlay if isinstance(each, IPv4Address | IPv6Address)), None)
    endpoints = (
        ("bind", config.gossip.bind, "0.0.0.0"),  # noqa: S104 - every address: that is the default
        ("advertise", config.gossip.advertise, None if own is None else str(own)),
    )
    for key, endpoint, suggestion in endpoints:
        if endpoint is not None and not is_address(endpoint.host):
            why = f"expected an address, found the name {endpoint.host}"
            yield Finding(("gossip", key), why, suggestion)


def _cores(config: Config) -> Iterator[Finding]:
    """Each worker has a core to itself, or none is told."""
    cores, workers = config.node.cores, config.node.workers
    if cores and len(cores) != workers:
        yield Finding(("node", "cores"), f"expected {workers}, one for each worker, found {len(cores)}")
    for index, core in enumerate(cores):
        if core in cores[:index]:
            yield Finding(("node", "cores", index), f"core {core} is listed twice")


def _format(network: NetworkConfig, at: TomlPath) -> Iterator[Finding]:
    """Mode, encapsulation and the keys that belong to one of them only."""
    if network.encap is Encap.FLANNEL_UDP and network.mode is Mode.BRIDGE:
        yield Finding((*at, "encap"), 'expected mode = "routed" with flannel-udp, found bridge')
    if network.encap is Encap.FLANNEL_UDP and network.vni is not None:
        yield Finding((*at, "vni"), "expected no VNI: the flannel-udp format has no field for one")
    if network.encap is Encap.VXLAN and network.vni is None:
        yield Finding((*at, "vni"), "expected a VNI of 0 to 16777215, found nothing")
    if network.mode is Mode.BRIDGE:
        for key in ROUTED_ONLY:
            if getattr(network, key):
                yield Finding((*at, key), 'expected only with mode = "routed"')
    carries_ipv6 = any(interface.version == 6 for interface in network.address)
    if carries_ipv6 and isinstance(network.mtu, int) and network.mtu < IPV6_MTU_MIN:
        yield Finding((*at, "mtu"), f"expected at least {IPV6_MTU_MIN}: the device has an IPv6 address")


def _own_addresses(network: NetworkConfig, at: TomlPath) -> Iterator[Finding]:
    """An address that is its whole subnet's cannot be one device's."""
    seen: set[object] = set()
    for index, interface in enumerate(network.address):
        subnet = interface.network
        here = (*at, "address", index)
        if interface.ip in seen:
            yield Finding(here, f"{interface.ip} is listed twice")
        seen.add(interface.ip)
        if interface.version == 4 and subnet.num_addresses > 2:  # RFC 3021: a /31 has neither
            if interface.ip == subnet.network_address:
                yield Finding(here, f"{interface.ip} names the subnet {subnet}, not a host in it")
            if interface.ip == subnet.broadcast_address:
                yield Finding(here, f"{interface.ip} is the broadcast address of {subnet}")
        whole = network.network
        if whole is not None and interface.version == whole.version and interface.ip not in whole:
            yield Finding(here, f"{interface.ip} is outside the network {whole}")


def _peers(config: Config, network: NetworkConfig, at: TomlPath) -> Iterator[Finding]:
    """A VTEP's identity is its address: two peers cannot share one, and ours is not a peer."""
    ours = [own for own in config.node.underlay if isinstance(own, IPv4Address | IPv6Address)]
    families = {own.version for own in ours} if len(ours) == len(config.node.underlay) else set()
    seen: set[object] = set()
    for index, peer in enumerate(network.peers):
        here = (*at, "peers", index)
        address = peer.vtep.address
        if address in seen:
            yield Finding(here, f"the peer {address} is listed twice")
        seen.add(address)
        if address in ours:
            yield Finding(here, f"the peer {address} is this node's own underlay address")
        elif families and address.version not in families:
            yield Finding(here, f"the peer {address} is IPv{address.version} and no underlay address is")
        if network.mode is Mode.BRIDGE and (peer.subnet or peer.mac):
            key = "subnet" if peer.subnet else "mac"
            yield Finding((*here, key), 'expected only with mode = "routed"')
        if network.encap is Encap.FLANNEL_UDP and peer.mac and network.mode is Mode.ROUTED:
            yield Finding((*here, "mac"), "expected no MAC: flannel-udp carries bare packets")


def _subnets(network: NetworkConfig, at: TomlPath) -> Iterator[Finding]:
    """Each node's subnet lies in the network and overlaps no other."""
    if network.network is None and network.net_conf is None:
        yield Finding((*at, "network"), "expected the whole overlay's subnet, or net_conf, found neither")
    if network.network is not None and network.network.version == 6 and network.encap is Encap.FLANNEL_UDP:
        yield Finding((*at, "network"), "expected an IPv4 network: flannel-udp carries nothing else")
    if network.subnet is not None and network.subnet.num_addresses < SUBNET_ADDRESSES_MIN:
        yield Finding(
            (*at, "subnet"), f"expected room for containers beside the base, found {network.subnet}"
        )
    yield from _nodes(network, at)
    taken = [((*at, "subnet"), network.subnet)]
    taken += [((*at, "peers", index, "subnet"), peer.subnet) for index, peer in enumerate(network.peers)]
    for number, (here, subnet) in enumerate(taken):
        if subnet is None:
            continue
        whole = network.network
        if whole is not None and (
            whole.version != subnet.version
            or subnet.network_address not in whole
            or subnet.prefixlen < whole.prefixlen
        ):
            yield Finding(here, f"{subnet} is outside the network {whole}")
        for _, earlier in taken[:number]:
            if earlier is not None and earlier.version == subnet.version and earlier.overlaps(subnet):
                yield Finding(
                    here, f"{subnet} overlaps {earlier}" if subnet != earlier else f"{subnet} is taken"
                )


def _leases(network: NetworkConfig, at: TomlPath) -> Iterator[Finding]:
    """The range that is leased is one of subnets of the network, and each founder has one to grant."""
    whole = network.network
    if whole is None:
        return
    length = network.subnet_len or default_subnet_len(whole)
    bounds = [("subnet_min", network.subnet_min), ("subnet_max", network.subnet_max)]
    wrong = [Finding((*at, key), why) for key, bound in bounds if (why := _no_base(bound, whole, length))]
    yield from wrong
    low, high = network.subnet_min, network.subnet_max
    if not wrong and low is not None and high is not None and int(low) > int(high):
        yield Finding((*at, "subnet_min"), f"expected at most subnet_max, {high}, found {low}")
    elif not wrong:
        try:
            configured_plan(network)
        except LeaseError as error:
            yield Finding((*at, "founders"), str(error))


def _no_base(address: IpAddress | None, whole: IpNetwork, length: int) -> str | None:
    """Why no subnet of that length begins there; None: one does."""
    if address is None:
        return None
    if address not in whole:
        return f"{address} is outside the network {whole}"
    is_base = length <= whole.max_prefixlen and int(address) % (1 << (whole.max_prefixlen - length)) == 0
    return None if is_base else f"expected the base of a /{length}, found {address}"


def _nodes(network: NetworkConfig, at: TomlPath) -> Iterator[Finding]:
    """Each peer of a routed network says what is behind it, and over VXLAN which MAC its device has."""
    seen: dict[Mac, Vtep] = {}
    for index, peer in enumerate(network.peers):
        here = (*at, "peers", index)
        if peer.subnet is None:
            yield Finding((*here, "subnet"), "expected the subnet behind this peer, found nothing")
        if network.encap is not Encap.VXLAN:
            continue
        if peer.mac is None:
            yield Finding((*here, "mac"), "expected the MAC of this peer's tunnel device, found nothing")
        elif seen.setdefault(peer.mac, peer.vtep) is not peer.vtep:
            yield Finding((*here, "mac"), f"{format_mac(peer.mac)} is the peer {seen[peer.mac].address}'s")


def _twice(config: Config, key: str, identity: Callable[[NetworkConfig], str | None]) -> Iterator[Finding]:
    """Two networks that claim one identity, which is the words it is told in."""
    first: dict[str, int] = {}
    for index, network in enumerate(config.networks):
        claimed = identity(network)
        if claimed is not None and first.setdefault(claimed, index) != index:
            yield Finding(("network", index, key), f"{claimed} is taken by network[{first[claimed]}]")


def _chosen_name(network: NetworkConfig) -> str | None:
    """A name that only follows the device clashes when the device does; that is said there."""
    return f"the name {network.name}" if network.name != network.device else None


def _wire_identity(network: NetworkConfig) -> str | None:
    """What a received datagram tells the network by: the port it came to, and the VNI in it."""
    if network.encap is Encap.FLANNEL_UDP or network.vni is None:
        return None
    return f"VNI {network.vni} on port {network.port}"


def _mixed_ports(config: Config) -> Iterator[Finding]:
    """A port carries one format, and a flannel-udp port one network: nothing in a datagram says more."""
    first: dict[int, NetworkConfig] = {}
    for index, network in enumerate(config.networks):
        other = first.setdefault(network.port, network)
        if other is not network and Encap.FLANNEL_UDP in {other.encap, network.encap}:
            why = f"port {network.port} is taken by network {other.name} ({other.encap})"
            yield Finding(("network", index, "port"), why)


def incomplete(config: Config) -> Iterator[Finding]:
    """What a daemon would have to be told besides."""
    for index, network in enumerate(config.networks):
        if network.mode is Mode.ROUTED and config.gossip is None:
            yield from _without_a_pool(network, ("network", index))


def _without_a_pool(network: NetworkConfig, at: TomlPath) -> Iterator[Finding]:
    """A subnet is leased in a pool: which one, a flag may have to say (`--join`)."""
    if network.founders:
        yield Finding((*at, "founders"), "expected a pool to grant leases in, found no [gossip]")
    if network.subnet is None:
        yield Finding((*at, "subnet"), "expected this node's subnet, or [gossip] to lease one, found neither")


def unsupported(config: Config) -> Iterator[Finding]:
    """What this build, or this user, cannot run, though it is written correctly."""
    if config.node.engine is not Engine.PYTHON and (obstacle := native_obstacle()) is not None:
        yield from _without_native_engine(config.node, f"this build has no native engine: {obstacle}")
    keyring = config.gossip.keyring if config.gossip is not None else None
    if keyring is not None and (why_not := unreadable(keyring)) is not None:
        yield Finding(("gossip", "keyring"), *why_not)


def _without_native_engine(node: NodeConfig, why: str) -> Iterator[Finding]:
    if node.engine is Engine.NATIVE:
        yield Finding(("node", "engine"), why, '"auto"')
        return
    if node.workers > 1:
        yield Finding(("node", "workers"), f"expected 1, found {node.workers}: {why}")
    if node.cores:
        yield Finding(("node", "cores"), f"expected none: {why}")
