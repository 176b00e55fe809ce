"""Labs of weft nodes that know of one another through gossip alone, and can be cut in two."""

from __future__ import annotations

from dataclasses import replace

from support.traffic import type_in

from bench.lab.namespaces import Lab
from bench.lab.topology import Node, NodeKind, Setting, Topology, segment

SEED = "192.0.2.1"


def pool_of(name: str, *kinds: NodeKind, **settings: Setting) -> Topology:
    """Weft nodes without static peers, told of n1 alone; settings are `[gossip]`'s."""
    topology = segment(name, *kinds)
    return replace(topology, nodes=tuple(in_pool(node, **settings) for node in topology.nodes))


def in_pool(node: Node, **settings: Setting) -> Node:
    if node.kind is not NodeKind.WEFT:
        return node
    told: dict[str, Setting] = {f"gossip.{key}": value for key, value in settings.items()}
    flags = ("--gossip-bind", "0.0.0.0") if node.name == "n1" else ("--join", SEED)
    return replace(node, settings={"network.peers": [], **told}, flags=flags)


def part(lab: Lab, *names: str) -> None:
    """Moves these to a bridge of their own."""
    type_in(lab["hub"], "ip link add br1 type bridge", "ip link set br1 up")
    type_in(lab["hub"], *(f"ip link set {name} master br1" for name in names))


def heal(lab: Lab, *names: str) -> None:
    """Moves them back."""
    type_in(lab["hub"], *(f"ip link set {name} master br0" for name in names), "ip link delete br1")
