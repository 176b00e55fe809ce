"""The plan of a topology is a pure function of it: everything here runs without root."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from ipaddress import ip_address, ip_interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.lab.plan import compile_plan, configuration, run_flags
from bench.lab.topology import (
    AccessLink,
    Attachment,
    KernelVxlan,
    Node,
    NodeKind,
    Topology,
    Underlay,
    UnderlayKind,
    numbered_node,
    segment,
)

WEFT, KERNEL, BARE = NodeKind.WEFT, NodeKind.KERNEL_VXLAN, NodeKind.BARE
ROUTED_HOST = AccessLink(
    Attachment.ROUTED, (ip_interface("10.77.0.2/24"),), (ip_interface("10.77.0.1/24"),), mtu=1300
)
BRIDGED_HOST = AccessLink(Attachment.BRIDGED, (ip_interface("10.9.0.77/24"),))


def commands(topology: Topology) -> list[str]:
    return [" ".join(step.argv) for step in compile_plan(topology, "t").build]


def attached(topology: Topology, node: str) -> list[str]:
    return [" ".join(step.argv) for step in compile_plan(topology, "t").attach[node]]


def with_node(topology: Topology, node: Node) -> Topology:
    return replace(
        topology, nodes=tuple(node if other.name == node.name else other for other in topology.nodes)
    )


def test_two_nodes_share_one_veth_pair_and_no_hub() -> None:
    plan = compile_plan(segment("pair", WEFT, KERNEL), "t")
    assert plan.namespaces == {"n1": "t-n1", "n2": "t-n2"}
    pairs = [step.argv for step in plan.build if "veth" in step.argv]
    assert [" ".join(pair) for pair in pairs] == [
        "ip -n t-n1 link add eth0 mtu 1500 type veth peer name eth0 mtu 1500 netns t-n2"
    ]


@pytest.mark.parametrize(
    "topology",
    [segment("three", WEFT, WEFT, WEFT), segment("two", WEFT, WEFT, underlay=Underlay(hub=True))],
    ids=lambda topology: topology.name,
)
def test_nodes_meet_at_a_bridge_in_the_hub(topology: Topology) -> None:
    said = commands(topology)
    for node in topology.nodes:
        name = node.name
        assert (
            f"ip -n t-hub link add {name} mtu 1500 type veth peer name eth0 mtu 1500 netns t-{name}" in said
        )
        assert f"ip -n t-hub link set {name} master br0 up" in said


@given(kinds=st.lists(st.sampled_from(NodeKind), min_size=1, max_size=12), v6=st.booleans())
def test_nothing_is_made_outside_the_labs_namespaces(kinds: list[NodeKind], v6: bool) -> None:
    plan = compile_plan(segment("any", *kinds, underlay_version=6 if v6 else 4), "t")
    ours = set(plan.namespaces.values())
    added: set[str] = set()
    for step in plan.build:
        match step.argv:
            case ("ip", "netns", "add", name):
                assert name in ours
                assert name not in added
                added.add(name)
            case ("ip", "netns", "exec", name, *_) | ("ip" | "bridge", "-n", name, *_):
                assert name in added
            case other:
                pytest.fail(f"runs in the host's own namespace: {other}")
        if "veth" in step.argv:
            assert step.argv[step.argv.index("netns") + 1] in added
    assert added == ours


def test_a_wire_like_underlay_switches_offloads_off_at_both_ends_of_every_pair() -> None:
    underlay = Underlay(UnderlayKind.WIRE_LIKE)
    features = (
        "tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off tx-udp-segmentation off tso off gro on"
    )
    pair = [said for said in commands(segment("pair", WEFT, WEFT, underlay=underlay)) if "ethtool" in said]
    assert pair == [f"ip netns exec t-{name} ethtool -K eth0 {features}" for name in ("n1", "n2")]
    hub = [
        said for said in commands(segment("hub", WEFT, WEFT, WEFT, underlay=underlay)) if "ethtool" in said
    ]
    assert len(hub) == 6
    assert f"ip netns exec t-hub ethtool -K n3 {features}" in hub
    assert not [said for said in commands(segment("veth", WEFT, WEFT)) if "ethtool" in said]


def test_a_kernel_node_floods_to_every_other_vtep() -> None:
    said = commands(segment("three", WEFT, KERNEL, WEFT))
    assert [line for line in said if "fdb" in line] == [
        f"bridge -n t-n2 fdb append 00:00:00:00:00:00 dev vxlan0 dst 192.0.2.{k}" for k in (1, 3)
    ]


def test_a_bare_node_is_no_ones_vtep() -> None:
    topology = segment("mixed", WEFT, KERNEL, BARE)
    assert topology.vteps_seen_by(topology.node("n1")) == (ip_address("192.0.2.2"),)


@pytest.mark.parametrize(
    ("version", "options", "expected"),
    [
        (4, KernelVxlan(), "id 42 dstport 4789 local 192.0.2.2 udpcsum"),
        (4, KernelVxlan(udpcsum=False), "id 42 dstport 4789 local 192.0.2.2 noudpcsum"),
        (4, KernelVxlan(learning=False), "id 42 dstport 4789 local 192.0.2.2 nolearning udpcsum"),
        (
            4,
            KernelVxlan(remote=ip_address("192.0.2.1")),
            "id 42 dstport 4789 local 192.0.2.2 remote 192.0.2.1 udpcsum",
        ),
        (6, KernelVxlan(), "id 42 dstport 4789 local 2001:db8::2"),
        (
            6,
            KernelVxlan(udpcsum=False),
            "id 42 dstport 4789 local 2001:db8::2 udp6zerocsumtx udp6zerocsumrx",
        ),
    ],
)
def test_kernel_vxlan_options_become_ip_link_words(version: int, options: KernelVxlan, expected: str) -> None:
    topology = segment("pair", WEFT, KERNEL, underlay_version=version)
    topology = with_node(topology, replace(topology.node("n2"), vxlan=options))
    mtu = {4: 1450, 6: 1430}[version]
    assert f"ip -n t-n2 link add vxlan0 mtu {mtu} type vxlan {expected}" in commands(topology)


def test_a_default_remote_takes_the_place_of_the_flood_list() -> None:
    topology = segment("pair", WEFT, KERNEL)
    remote = replace(topology.node("n2"), vxlan=KernelVxlan(remote=ip_address("192.0.2.1")))
    assert not [line for line in commands(with_node(topology, remote)) if "fdb" in line]


def test_others_route_to_a_routed_host_through_its_node() -> None:
    topology = segment("routed", WEFT, WEFT, KERNEL)
    topology = with_node(topology, replace(topology.node("n2"), access=ROUTED_HOST))
    assert attached(topology, "n1") == ["ip -n t-n1 route add 10.77.0.0/24 via 10.9.0.2"]
    assert attached(topology, "n3") == ["ip -n t-n3 route add 10.77.0.0/24 via 10.9.0.2"]
    assert attached(topology, "n2") == []
    said = commands(topology)
    assert "ip -n t-n2-host link add eth0 mtu 1300 type veth peer name acc0 mtu 1300 netns t-n2" in said
    assert "ip -n t-n2-host route add default via 10.77.0.1" in said


def test_a_bridged_nodes_overlay_address_is_on_the_bridge_not_the_device() -> None:
    topology = segment("bridged", WEFT, KERNEL)
    for name in ("n1", "n2"):
        topology = with_node(topology, replace(topology.node(name), access=BRIDGED_HOST))
    said = commands(topology)
    assert "ip -n t-n2 addr add 10.9.0.2/24 dev br0" in said
    assert "ip -n t-n2 addr add 10.9.0.2/24 dev vxlan0" not in said
    assert attached(topology, "n2") == ["ip -n t-n2 link set vxlan0 master br0"]
    assert "--address" not in run_flags(topology, topology.node("n1"))


def test_every_problem_is_reported_together() -> None:
    bad = replace(numbered_node(1, BARE), name="Bad Name", access=ROUTED_HOST)
    with pytest.raises(ValueError, match=r"Bad Name.*no overlay device.*MTU of at least 1280, found 600"):
        Topology("bad", (bad,), Underlay(mtu=600))


def test_vteps_of_two_families_cannot_share_a_segment() -> None:
    nodes = (numbered_node(1, WEFT), numbered_node(2, WEFT, underlay_version=6))
    with pytest.raises(ValueError, match="n1 has no underlay address in a family"):
        Topology("mixed", nodes)


@pytest.mark.parametrize("count", [1, 2, 3, 200])
def test_device_names_fit_the_kernels_fifteen_octets(count: int) -> None:
    for step in compile_plan(segment("many", *[KERNEL] * count), "t").build:
        for position, word in enumerate(step.argv):
            if step.argv[position - 1] in ("add", "dev", "name") and step.argv[3] == "link":
                assert len(word) <= 15


def test_run_flags_say_what_the_topology_says() -> None:
    topology = segment("pair", WEFT, KERNEL)
    assert " ".join(run_flags(topology, topology.node("n1"))) == (
        "--name n1 --underlay 192.0.2.1 --vni 42 --port 4789 --device weft0"
        " --address 10.9.0.1/24 --address fd09::1/64 --peer 192.0.2.2"
    )


def test_settings_lie_over_the_generated_configuration() -> None:
    topology = segment("pair", WEFT, KERNEL)
    node = replace(
        topology.node("n1"),
        settings={"offload.tap_gso": "off", "network.learning": False, "network.ageing_s": 5},
    )
    written = tomllib.loads(configuration(topology, node))
    assert written["offload"] == {"tap_gso": "off"}
    (network,) = written["network"]
    assert network["learning"] is False
    assert network["ageing_s"] == 5
    assert network["address"] == ["10.9.0.1/24", "fd09::1/64"]
    assert network["peers"] == ["192.0.2.2"]
    assert written["node"] == {"name": "n1", "underlay": ["192.0.2.1"]}
