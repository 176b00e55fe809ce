"""From a topology to the commands that build it: a pure function, so that it can be read, tested and printed.

Nothing is ever made in the host's own namespace: veth pairs are born with each end in its place.  A plan
has two lists, because a weft node's device is there only once its daemon runs: `build` makes everything
else, `attach` joins what waits for that device.  Deleting the namespaces undoes both.

At the end of the file: what a weft daemon is told of the same topology, as flags or as a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bench.lab.topology import (
    HUB,
    UNDERLAY_DEVICE,
    AccessLink,
    Address,
    Attachment,
    Interface,
    Node,
    NodeKind,
    Setting,
    Topology,
    UnderlayKind,
)

# Ours
ACCESS_DEVICE = "acc0"
ACCESS_BRIDGE = "br0"
HUB_BRIDGE = "br0"

# No veth carries super-packets with these: every packet on the "wire" is at most one MTU, as on a NIC
# without tunnel offload.
WIRE_LIKE_FEATURES = (
    *("tx-udp_tnl-segmentation", "off"),
    *("tx-udp_tnl-csum-segmentation", "off"),
    *("tx-udp-segmentation", "off"),
    *("tso", "off"),
    *("gro", "on"),
)


@dataclass(frozen=True, slots=True)
class Step:
    """One command and its purpose; consecutive steps with one purpose are shown under it."""

    why: str
    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything to run for one topology, in order.

    Attributes:
        namespaces: Node (or `hub`, or `<node>-host`) → namespace.  Deleting them undoes every step.
        build: Once, first.
        attach: By node: what waits for the node's overlay device.
    """

    namespaces: Mapping[str, str]
    build: tuple[Step, ...]
    attach: Mapping[str, tuple[Step, ...]]


def compile_plan(topology: Topology, prefix: str) -> Plan:
    """The commands that build the topology in namespaces called `<prefix>-<node>`."""
    names = [node.name for node in topology.nodes]
    names += [node.host for node in topology.nodes if node.access is not None]
    names += [HUB] if topology.has_hub else []
    namespaces = {name: f"{prefix}-{name}" for name in names}
    compiler = _Compiler(topology, namespaces)
    return Plan(
        namespaces=namespaces,
        build=tuple(compiler.build()),
        attach={node.name: tuple(compiler.attach(node)) for node in topology.nodes},
    )


@dataclass(frozen=True, slots=True)
class _Compiler:
    topology: Topology
    namespaces: Mapping[str, str]

    def build(self) -> Iterator[Step]:
        for name in self.namespaces:
            yield from self._namespace(name)
        yield from self._hub() if self.topology.has_hub else self._pair()
        for node in self.topology.nodes:
            yield from self._underlay(node)
            if node.access is not None:
                yield from self._access(node, node.access)
            if node.kind is NodeKind.KERNEL_VXLAN:
                yield from self._kernel_vxlan(node)

    def attach(self, node: Node) -> Iterator[Step]:
        yield from self._bridge_in(node) if node.bridged else ()
        yield from self._routes_to_hosts(node)

    def _namespace(self, name: str) -> Iterator[Step]:
        why = f"{name}: a network namespace of its own"
        namespace = self.namespaces[name]
        yield Step(why, ("ip", "netns", "add", namespace))
        # Duplicate address detection would hold every IPv6 address back for a second.
        no_dad = [f"net.ipv6.conf.{which}.accept_dad=0" for which in ("all", "default")]
        yield Step(why, ("ip", "netns", "exec", namespace, "sysctl", "-qw", *no_dad))
        yield Step(why, self._ip(name, "link", "set", "lo", "up"))

    def _pair(self) -> Iterator[Step]:
        first, *rest = (node.name for node in self.topology.nodes)
        for second in rest:
            why = f"underlay: a veth pair, {first} to {second}"
            yield Step(why, self._veth(first, UNDERLAY_DEVICE, second, self.topology.underlay.mtu))

    def _hub(self) -> Iterator[Step]:
        why = "underlay: a bridge in the hub, a veth pair to each node"
        mtu = self.topology.underlay.mtu
        yield Step(
            why,
            self._ip(
                HUB, "link", "add", HUB_BRIDGE, "mtu", str(mtu), "type", "bridge", "mcast_snooping", "0"
            ),
        )
        yield Step(why, self._ip(HUB, "link", "set", HUB_BRIDGE, "up"))
        for node in self.topology.nodes:
            yield Step(why, self._veth(HUB, node.name, node.name, mtu))
            yield Step(why, self._ip(HUB, "link", "set", node.name, "master", HUB_BRIDGE, "up"))
            yield from self._wire_like(why, HUB, node.name)

    def _underlay(self, node: Node) -> Iterator[Step]:
        if len(self.namespaces) == 1:  # a node alone has no underlay device: its addresses go on lo
            device = "lo"
        else:
            device = UNDERLAY_DEVICE
            yield from self._wire_like(f"{node.name}: its underlay addresses", node.name, device)
        yield from self._addresses(
            f"{node.name}: its underlay addresses", node.name, device, node.underlay_addresses
        )

    def _wire_like(self, why: str, name: str, device: str) -> Iterator[Step]:
        if self.topology.underlay.kind is UnderlayKind.WIRE_LIKE:
            yield Step(
                why,
                ("ip", "netns", "exec", self.namespaces[name], "ethtool", "-K", device, *WIRE_LIKE_FEATURES),
            )

    def _kernel_vxlan(self, node: Node) -> Iterator[Step]:
        why = f"{node.name}: the kernel's own VXLAN device"
        options = node.vxlan
        argv = ["link", "add", node.device, "mtu", str(self.topology.overlay_mtu(node)), "type", "vxlan"]
        argv += ["id", str(self.topology.vni), "dstport", str(self.topology.port), "local", str(node.vtep)]
        argv += ["remote", str(options.remote)] if options.remote is not None else []
        argv += [] if options.learning else ["nolearning"]
        argv += _checksum_options(node)
        yield Step(why, self._ip(node.name, *argv))
        addresses = () if node.bridged else node.overlay_addresses
        yield from self._addresses(why, node.name, node.device, addresses)
        for vtep in self._flood_list(node):
            entry = ("fdb", "append", "00:00:00:00:00:00", "dev", node.device, "dst", str(vtep))
            why = f"{node.name}: its flood list, one all-zeros FDB entry for each VTEP"
            yield Step(why, ("bridge", "-n", self.namespaces[node.name], *entry))

    def _flood_list(self, node: Node) -> tuple[Address, ...]:
        if node.vxlan.flood is not None:
            return node.vxlan.flood
        return () if node.vxlan.remote is not None else self.topology.vteps_seen_by(node)

    def _access(self, node: Node, access: AccessLink) -> Iterator[Step]:
        why = f"{node.host}: behind {node.name}, {access.attachment.value}"
        pair = (
            "link",
            "add",
            UNDERLAY_DEVICE,
            "mtu",
            str(access.mtu),
            "type",
            "veth",
            "peer",
            "name",
            ACCESS_DEVICE,
        )
        peer = ("mtu", str(access.mtu), "netns", self.namespaces[node.name])
        yield Step(why, self._ip(node.host, *pair, *peer))
        yield from self._addresses(why, node.host, UNDERLAY_DEVICE, access.addresses)
        if access.attachment is Attachment.BRIDGED:
            mtu = str(self.topology.overlay_mtu(node))
            bridge = ("link", "add", ACCESS_BRIDGE, "mtu", mtu, "type", "bridge", "mcast_snooping", "0")
            yield Step(why, self._ip(node.name, *bridge))
            yield Step(why, self._ip(node.name, "link", "set", ACCESS_DEVICE, "master", ACCESS_BRIDGE, "up"))
            yield from self._addresses(why, node.name, ACCESS_BRIDGE, node.overlay_addresses)
            return
        yield from self._addresses(why, node.name, ACCESS_DEVICE, access.gateways)
        forward = ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        yield Step(why, ("ip", "netns", "exec", self.namespaces[node.name], "sysctl", "-qw", *forward))
        for gateway in access.gateways:
            yield Step(why, self._ip(node.host, "route", "add", "default", "via", str(gateway.ip)))

    def _bridge_in(self, node: Node) -> Iterator[Step]:
        why = f"{node.name}: its overlay device becomes a port of the bridge"
        yield Step(why, self._ip(node.name, "link", "set", node.device, "master", ACCESS_BRIDGE))

    def _routes_to_hosts(self, node: Node) -> Iterator[Step]:
        for other in self.topology.nodes:
            if other.name == node.name or other.access is None or other.bridged:
                continue
            for subnet in (address.network for address in other.access.addresses):
                via = next((a.ip for a in other.overlay_addresses if a.version == subnet.version), None)
                if via is not None and node.kind is not NodeKind.BARE:
                    why = f"{node.name}: {other.host} is reached through {other.name}"
                    yield Step(why, self._ip(node.name, "route", "add", str(subnet), "via", str(via)))

    def _addresses(
        self, why: str, name: str, device: str, addresses: tuple[Interface, ...]
    ) -> Iterator[Step]:
        for address in addresses:
            nodad = ("nodad",) if address.version == 6 else ()
            yield Step(why, self._ip(name, "addr", "add", str(address), "dev", device, *nodad))
        yield Step(why, self._ip(name, "link", "set", device, "up"))

    def _veth(self, name: str, device: str, other: str, mtu: int) -> tuple[str, ...]:
        far_end = ("peer", "name", UNDERLAY_DEVICE, "mtu", str(mtu), "netns", self.namespaces[other])
        return self._ip(name, "link", "add", device, "mtu", str(mtu), "type", "veth", *far_end)

    def _ip(self, name: str, *argv: str) -> tuple[str, ...]:
        return ("ip", "-n", self.namespaces[name], *argv)


def _checksum_options(node: Node) -> list[str]:
    if node.vtep.version == 4:
        return ["udpcsum" if node.vxlan.udpcsum else "noudpcsum"]
    # RFC 6936: zero checksums on IPv6 are an agreement, so a node that sends them also takes them.
    return [] if node.vxlan.udpcsum else ["udp6zerocsumtx", "udp6zerocsumrx"]


# ── what a weft node is told ────────────────────────────────────────────────────────────────────────────


def run_flags(topology: Topology, node: Node) -> list[str]:
    """What follows `weft run` for a node without settings."""
    flags = ["--name", node.name, "--underlay", str(node.vtep), "--vni", str(topology.vni)]
    flags += ["--port", str(topology.port), "--device", node.device]
    for address in () if node.bridged else node.overlay_addresses:
        flags += ["--address", str(address)]
    for vtep in topology.vteps_seen_by(node):
        flags += ["--peer", str(vtep)]
    return flags


def configuration(topology: Topology, node: Node) -> str:
    """The configuration file of a node with settings: what `run_flags` says, and its settings over it."""
    tables: dict[str, dict[str, Setting]] = {
        "node": {"name": node.name, "underlay": [str(node.vtep)]},
        "network": {
            "name": "lab",
            "vni": topology.vni,
            "port": topology.port,
            "device": node.device,
            "address": [] if node.bridged else [str(address) for address in node.overlay_addresses],
            "peers": [str(vtep) for vtep in topology.vteps_seen_by(node)],
        },
    }
    for key, value in node.settings.items():
        table, _, name = key.partition(".")
        tables.setdefault(table, {})[name] = value
    return "\n".join(_toml_table(table, values) for table, values in tables.items())


def _toml_table(table: str, values: Mapping[str, Setting]) -> str:
    header = "[[network]]" if table == "network" else f"[{table}]"
    # Strings, integers, booleans and lists of strings are written alike in JSON and in TOML.
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join([header, *lines, ""])
