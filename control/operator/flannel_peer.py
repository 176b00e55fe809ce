"""The commands that make another host a node of one of our routed networks: Flannel's own, or the kernel's.

    as the kernel    ip and bridge, typed as Flannel's vxlan backend programs them: device, address, and for
                     each other node neighbor → FDB → route
    as Flannel       etcdctl writes the network and a reservation for every node, and flanneld reads them

A reservation is a lease without an end.  Flannel's udp backend writes none of `BackendType`; its vxlan
backend passes over leases that do not have it.

Heads up: read Flannel's Documentation/reservations.md and pkg/lease/lease.go before changing this file.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from control.intent.desired import NodeSubnet
from control.operator.failure import Failure
from control.operator.schema import Encap, NetworkConfig
from control.operator.vtep_mac import stable_mac
from overlay.addr import IpAddress, Vtep, format_mac
from overlay.route import IpNetwork

# From the specification
ETCD_PREFIX = "/coreos.com/network"  # flanneld --etcd-prefix
BACKEND_TYPES = {Encap.VXLAN: "vxlan", Encap.FLANNEL_UDP: "udp"}

# Ours
USUAL_UNDERLAY_MTU = 1500  # octets; the other host's underlay is not ours to ask
VXLAN_OVERHEAD = {4: 50, 6: 70}  # octets: outer IP, UDP, VXLAN and inner Ethernet headers
ETCD = "http://127.0.0.1:2379"


@dataclass(frozen=True, slots=True)
class Node:
    """One node of the network, this one or a peer."""

    vtep: Vtep
    subnet: IpNetwork
    mac: str | None


def nodes(network: NetworkConfig, ours: IpAddress) -> list[Node]:
    """Everybody: us first, then the peers.

    Raises:
        Failure: We have no subnet.
    """
    if network.subnet is None or network.network is None:
        raise Failure(
            f"{network.name} has no subnet for this node",
            why="the other host routes to it, and a leased one only the pool knows",
            advice='subnet = "…" under [[network]]',
        )
    is_vxlan = network.encap is Encap.VXLAN
    own = Node(
        Vtep(ours, network.port),
        network.subnet,
        format_mac(stable_mac(network, ours)) if is_vxlan else None,
    )
    return [own, *(_node(peer) for peer in network.nodes)]


def _node(peer: NodeSubnet) -> Node:
    return Node(peer.vtep, peer.subnet, None if peer.mac is None else format_mac(peer.mac))


def kernel_commands(network: NetworkConfig, host: IpAddress, ours: IpAddress) -> Iterator[str]:
    """What makes the peer with this underlay address a node, with ip and bridge alone."""
    everybody = nodes(network, ours)
    own = _of(everybody, host)
    device = f"flannel.{network.vni}"
    version = own.subnet.version
    mtu = network.mtu
    if mtu == "auto":
        mtu = USUAL_UNDERLAY_MTU - VXLAN_OVERHEAD[host.version]
    # udpcsum: datagrams without a checksum are never merged on our side, and IPv6 forbids them.
    checksum = "udpcsum" if host.version == 4 else "noudp6zerocsumtx"
    options = f"id {network.vni} dstport {own.vtep.port} local {host} nolearning {checksum}"
    yield f"ip link add {device} address {own.mac} mtu {mtu} type vxlan {options}"
    yield f"ip link set {device} addrgenmode none"
    nodad = " nodad" if version == 6 else ""
    base = own.subnet.network_address
    yield f"ip address add {base}/{own.subnet.max_prefixlen} dev {device}{nodad}"
    yield f"ip link set {device} up"
    for node in everybody:
        if node is own:
            continue
        base = node.subnet.network_address
        port = "" if node.vtep.port == own.vtep.port else f" port {node.vtep.port}"
        yield f"ip neighbor replace {base} lladdr {node.mac} dev {device} nud permanent"
        yield f"bridge fdb replace {node.mac} dev {device} dst {node.vtep.address}{port}"
        yield f"ip -{version} route replace {node.subnet} via {base} dev {device} onlink"


def flannel_commands(network: NetworkConfig, host: IpAddress, ours: IpAddress) -> Iterator[str]:
    """What has flanneld on the peer with this underlay address be a node."""
    everybody = nodes(network, ours)
    yield f"export ETCDCTL_API=3 ETCDCTL_ENDPOINTS={ETCD}"
    yield _put("config", _config(network))
    for node in everybody:
        subnet = f"{node.subnet.network_address}-{node.subnet.prefixlen}"
        yield _put(f"subnets/{subnet}", _lease(network, node))
    if network.encap is Encap.VXLAN:
        yield f"# flanneld chooses a MAC: once flannel.{network.vni} is there, it belongs into our `peers`"
    own = _of(everybody, host)
    yield f"exec flanneld --etcd-endpoints={ETCD} --etcd-prefix={ETCD_PREFIX} --public-ip={own.vtep.address}"


def per_peer(
    network: NetworkConfig,
    commands: Callable[[NetworkConfig, IpAddress, IpAddress], Iterator[str]],
    ours: Callable[[IpAddress], IpAddress],
) -> list[tuple[IpAddress, tuple[str, ...]]]:
    """The commands for each peer.

    Raises:
        Failure: There is none: what a node's subnet is, only `peers` can say.
    """
    if not network.nodes:
        raise Failure(
            f"{network.name} has no peers",
            why="another host's subnet stands with the peer",
            advice='peers = [{ vtep = "192.0.2.2", subnet = "10.5.2.0/24" }]',
        )
    hosts = [node.vtep.address for node in network.nodes]
    return [(host, tuple(commands(network, host, ours(host)))) for host in hosts]


def _of(everybody: list[Node], host: IpAddress) -> Node:
    return next(node for node in everybody if node.vtep.address == host)


def _config(network: NetworkConfig) -> dict[str, object]:
    """The network as Flannel's net-conf.json has it."""
    if network.network is None or network.subnet is None:
        raise ValueError(f"expected network and subnet of {network.name}, found none")
    backend: dict[str, object] = {"Type": BACKEND_TYPES[network.encap], "Port": network.port}
    if network.vni is not None:
        backend["VNI"] = network.vni
    length = network.subnet.prefixlen
    if network.network.version == 6:
        whole = {"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": str(network.network)}
        return {**whole, "IPv6SubnetLen": length, "Backend": backend}
    return {"Network": str(network.network), "SubnetLen": length, "Backend": backend}


def _lease(network: NetworkConfig, node: Node) -> dict[str, object]:
    is_ipv6 = node.vtep.address.version == 6
    lease: dict[str, object] = {
        "PublicIP": "0.0.0.0" if is_ipv6 else str(node.vtep.address),  # noqa: S104 - Flannel's "none"
        "PublicIPv6": str(node.vtep.address) if is_ipv6 else None,
    }
    if network.encap is Encap.VXLAN:
        lease |= {"BackendType": "vxlan", "BackendData": {"VNI": network.vni, "VtepMAC": node.mac}}
    return lease


def _put(key: str, value: dict[str, object]) -> str:
    return f"etcdctl put {ETCD_PREFIX}/{key} {shlex.quote(json.dumps(value, separators=(',', ':')))}"
