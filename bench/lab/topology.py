"""A lab on paper: nodes, and the underlay that joins them.

Every node is a network namespace, or a whole node in one process; `plan` turns a topology into the commands
that build the former, `simulated` runs the latter.

    two nodes                           more, or `Underlay(hub=True)`

    ┌── n1 ──┐  eth0 ── eth0  ┌── n2 ──┐    ┌── n1 ──┐     ┌──── hub ────┐     ┌── n2 ──┐
    │ weft0  │────────────────│ vxlan0 │    │   eth0─┼─────┼─n1  br0  n2─┼─────┼─eth0   │
    └────────┘                └────────┘    └────────┘     └──────┼──────┘     └────────┘
                                                                  n3 …

Behind a node's overlay device there may be one more namespace, `<node>-host`, on an access link: routed
(the node forwards, and the link may have a smaller MTU) or bridged (the overlay device and the link are
ports of one Linux bridge, as containers are attached).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_interface

Interface = IPv4Interface | IPv6Interface
Address = IPv4Address | IPv6Address
Setting = str | int | bool | list[str] | list[int]

# From the specification
VXLAN_PORT = 4789  # RFC 7348 section 8
VXLAN_OVERHEAD = {4: 50, 6: 70}  # outer IP + UDP 8 + VXLAN 8 + inner Ethernet 14
IPV6_MINIMUM_MTU = 1280  # RFC 8200 section 5

# Ours
LAB_VNI = 42
UNDERLAY_MTU = 1500
MAX_NODES = 200
NODE_NAME = re.compile(r"[a-z][a-z0-9]{0,10}")  # also a device name on the hub, at most 15 octets
HUB = "hub"
UNDERLAY_DEVICE = "eth0"


class NodeKind(Enum):
    """What carries a node's overlay."""

    WEFT = "weft"
    KERNEL_VXLAN = "kernel vxlan"
    BARE = "bare"  # the underlay alone: the yardstick


class UnderlayKind(Enum):
    """VETH: the pair as it comes, super-packets cross unsegmented.  WIRE_LIKE: nothing above the MTU does."""

    VETH = "veth"
    WIRE_LIKE = "wire-like"


class Attachment(Enum):
    """How the namespace behind a node reaches the overlay device."""

    ROUTED = "routed"
    BRIDGED = "bridged"


@dataclass(frozen=True, slots=True)
class AccessLink:
    """One more namespace, `<node>-host`, behind a node's overlay device.

    Attributes:
        attachment: ROUTED takes a subnet of its own; BRIDGED takes addresses of the overlay's subnet.
        addresses: The namespace's own.
        gateways: ROUTED only: the node's end of the link, one for each of `addresses`.
        mtu: Of the link; a smaller one than the overlay's is what path MTU discovery must find.
    """

    attachment: Attachment
    addresses: tuple[Interface, ...]
    gateways: tuple[Interface, ...] = ()
    mtu: int = UNDERLAY_MTU


@dataclass(frozen=True, slots=True)
class KernelVxlan:
    """Options of a kernel VXLAN node's device, named as `ip link … type vxlan` names them.

    Attributes:
        udpcsum: Outer UDP checksums; off means zero on IPv4 and `udp6zerocsumtx` on IPv6.
        learning: Source addresses of what arrives enter the FDB.
        remote: The one default destination, instead of a flood list.
        flood: VTEPs with an all-zeros FDB entry; None: every other node.
    """

    udpcsum: bool = True
    learning: bool = True
    remote: Address | None = None
    flood: tuple[Address, ...] | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """One machine of the lab.

    Attributes:
        name: Also the end of its namespace's name, and the node's name in the overlay.
        underlay_addresses: On `eth0`; the first is its VTEP.
        overlay_addresses: On its overlay device, or on the bridge that holds it.
        settings: WEFT only: what differs from the defaults, as dotted keys of the configuration file
            (`offload.tap_gso`, `network.learning`).  A node with settings is started from a file.
        flags: WEFT only: more flags for `weft run`.
    """

    name: str
    kind: NodeKind
    underlay_addresses: tuple[Interface, ...]
    overlay_addresses: tuple[Interface, ...] = ()
    settings: Mapping[str, Setting] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    vxlan: KernelVxlan = KernelVxlan()
    access: AccessLink | None = None

    @property
    def device(self) -> str:
        """The overlay device; a bare node's is its underlay device."""
        return {
            NodeKind.WEFT: "weft0",
            NodeKind.KERNEL_VXLAN: "vxlan0",
            NodeKind.BARE: UNDERLAY_DEVICE,
        }[self.kind]

    @property
    def vtep(self) -> Address:
        return self.underlay_addresses[0].ip

    @property
    def host(self) -> str:
        """The name of the namespace behind the access link."""
        return f"{self.name}-host"

    @property
    def bridged(self) -> bool:
        return self.access is not None and self.access.attachment is Attachment.BRIDGED


@dataclass(frozen=True, slots=True)
class Underlay:
    """What joins the nodes.  Two nodes share a veth pair unless `hub`; more always meet at a hub."""

    kind: UnderlayKind = UnderlayKind.VETH
    mtu: int = UNDERLAY_MTU
    hub: bool = False


@dataclass(frozen=True, slots=True)
class Topology:
    """One overlay segment: its nodes, its VNI and port, and the underlay below."""

    name: str
    nodes: tuple[Node, ...]
    underlay: Underlay = Underlay()
    vni: int = LAB_VNI
    port: int = VXLAN_PORT

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise ValueError(f"topology {self.name}: {'; '.join(problems)}")

    def node(self, name: str) -> Node:
        """The node of that name.

        Raises:
            KeyError: There is none.
        """
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(f"topology {self.name} has no node {name}")

    def of_kind(self, kind: NodeKind) -> tuple[Node, ...]:
        return tuple(node for node in self.nodes if node.kind is kind)

    def vteps_seen_by(self, node: Node) -> tuple[Address, ...]:
        """The other overlay nodes' VTEPs, in the family of the node's own."""
        others = (o for o in self.nodes if o.name != node.name and o.kind is not NodeKind.BARE)
        version = node.vtep.version
        return tuple(
            next(address.ip for address in other.underlay_addresses if address.version == version)
            for other in others
        )

    def overlay_mtu(self, node: Node) -> int:
        """RFC 7348 section 4.3: VTEPs must not fragment, so the overlay is smaller by the headers added."""
        if node.kind is NodeKind.BARE:
            return self.underlay.mtu
        return self.underlay.mtu - VXLAN_OVERHEAD[node.vtep.version]

    @property
    def has_hub(self) -> bool:
        return self.underlay.hub or len(self.nodes) > 2


def segment(
    name: str,
    *kinds: NodeKind,
    underlay: Underlay | None = None,
    underlay_version: int = 4,
) -> Topology:
    """The ordinary topology: nodes `n1`, `n2`, … of these kinds on one segment, numbered alike everywhere.

    Node k is 192.0.2.k (or 2001:db8::k) on the underlay, and 10.9.0.k and fd09::k on the overlay.
    """
    return Topology(
        name=name,
        nodes=tuple(
            numbered_node(number, kind, underlay_version=underlay_version)
            for number, kind in enumerate(kinds, start=1)
        ),
        underlay=underlay or Underlay(),
    )


def numbered_node(number: int, kind: NodeKind, *, underlay_version: int = 4) -> Node:
    """Node `n<number>` of a `segment`, to be varied with `dataclasses.replace`."""
    # RFC 5737 and RFC 3849 set these prefixes aside for documentation: no lab can meet a real network.
    prefix = {4: f"192.0.2.{number}/24", 6: f"2001:db8::{number:x}/64"}
    overlay = (ip_interface(f"10.9.0.{number}/24"), ip_interface(f"fd09::{number:x}/64"))
    return Node(
        name=f"n{number}",
        kind=kind,
        underlay_addresses=(ip_interface(prefix[underlay_version]),),
        overlay_addresses=() if kind is NodeKind.BARE else overlay,
    )


def _problems(topology: Topology) -> Iterator[str]:
    names = [node.name for node in topology.nodes]
    if not 1 <= len(names) <= MAX_NODES:
        yield f"expected 1 to {MAX_NODES} nodes, found {len(names)}"
    if len(set(names)) != len(names):
        yield f"node names repeat: {', '.join(sorted(names))}"
    versions = {node.vtep.version for node in topology.nodes if node.underlay_addresses}
    for node in topology.nodes:
        if not NODE_NAME.fullmatch(node.name) or node.name == HUB:
            yield f"expected a node name like n1 (not {HUB!r}), found {node.name!r}"
        if not node.underlay_addresses:
            yield f"{node.name} has no underlay address"
        elif node.kind is not NodeKind.BARE and not versions <= {a.version for a in node.underlay_addresses}:
            yield f"{node.name} has no underlay address in a family that another node's VTEP uses"
        if node.access is not None:
            yield from _access_problems(node, node.access)
    if topology.underlay.mtu < IPV6_MINIMUM_MTU:
        yield f"expected an underlay MTU of at least {IPV6_MINIMUM_MTU}, found {topology.underlay.mtu}"


def _access_problems(node: Node, access: AccessLink) -> Iterator[str]:
    if node.kind is NodeKind.BARE:
        yield f"{node.name} is bare and has an access link, but no overlay device to put it behind"
    routed = access.attachment is Attachment.ROUTED
    if routed and [a.network for a in access.addresses] != [g.network for g in access.gateways]:
        yield f"{node.name}: a routed access link needs one gateway in the subnet of each address"
