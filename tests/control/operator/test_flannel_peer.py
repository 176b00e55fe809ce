"""What makes the other host a node: every other node in it, in Flannel's order; leases in Flannel's words."""

from __future__ import annotations

import json
import shlex
from ipaddress import ip_address
from pathlib import Path

import pytest

from control.operator.config import load
from control.operator.failure import Failure
from control.operator.kernel_peer import flannel_membership, membership
from control.operator.schema import Config
from control.operator.vtep_mac import stable_mac
from overlay.addr import format_mac

PEERS = """peers = [
{ vtep = "192.0.2.2", subnet = "10.5.2.0/24", mac = "02:00:00:00:00:02" },
{ vtep = "192.0.2.3:9999", subnet = "10.5.3.0/24", mac = "02:00:00:00:00:03" }]
"""


def configured(tmp_path: Path, more: str) -> Config:
    file = tmp_path / "weft.toml"
    file.write_text(
        '[node]\nunderlay = ["192.0.2.1"]\n[[network]]\nname = "pods"\nmode = "routed"\n'
        f'network = "10.5.0.0/16"\nsubnet = "10.5.1.0/24"\n{more}'
    )
    return load(file, {}, {})


def test_the_kernel_is_told_neighbor_fdb_route_of_every_other_node(tmp_path: Path) -> None:
    config = configured(tmp_path, PEERS)
    first, second = membership(config, None)
    mac = format_mac(stable_mac(config.networks[0], ip_address("192.0.2.1")))
    assert first.host == "192.0.2.2"
    assert list(first.commands[-6:]) == [
        f"ip neighbor replace 10.5.1.0 lladdr {mac} dev flannel.1 nud permanent",
        f"bridge fdb replace {mac} dev flannel.1 dst 192.0.2.1",
        "ip -4 route replace 10.5.1.0/24 via 10.5.1.0 dev flannel.1 onlink",
        "ip neighbor replace 10.5.3.0 lladdr 02:00:00:00:00:03 dev flannel.1 nud permanent",
        "bridge fdb replace 02:00:00:00:00:03 dev flannel.1 dst 192.0.2.3 port 9999",
        "ip -4 route replace 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink",
    ]
    assert "dstport 9999 local 192.0.2.3 nolearning udpcsum" in second.commands[0]
    assert second.commands[2] == "ip address add 10.5.3.0/32 dev flannel.1"


@pytest.mark.parametrize(
    ("encap", "lease"),
    [
        ("flannel-udp", {"PublicIP": "192.0.2.2", "PublicIPv6": None}),
        (
            "vxlan",
            {
                "PublicIP": "192.0.2.2",
                "PublicIPv6": None,
                "BackendType": "vxlan",
                "BackendData": {"VNI": 1, "VtepMAC": "02:00:00:00:00:02"},
            },
        ),
    ],
)
def test_a_lease_is_worded_as_flannel_words_it(tmp_path: Path, encap: str, lease: object) -> None:
    bare = 'peers = [{ vtep = "192.0.2.2", subnet = "10.5.2.0/24" }]\n'
    peers = PEERS if encap == "vxlan" else bare
    config = configured(tmp_path, f'encap = "{encap}"\n{peers}')
    commands = flannel_membership(config, None)[0].commands
    puts = {words[2]: json.loads(words[3]) for words in map(shlex.split, commands) if words[0] == "etcdctl"}
    assert puts["/coreos.com/network/subnets/10.5.2.0-24"] == lease
    assert puts["/coreos.com/network/config"]["Network"] == "10.5.0.0/16"
    assert puts["/coreos.com/network/config"]["Backend"]["Type"] == encap.removeprefix("flannel-")
    assert commands[-1].startswith("exec flanneld ")
    assert commands[-1].endswith("--public-ip=192.0.2.2")


def test_without_peers_nobody_knows_the_other_hosts_subnet(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="pods has no peers"):
        membership(configured(tmp_path, ""), None)


def test_flannel_does_not_bridge(tmp_path: Path) -> None:
    file = tmp_path / "weft.toml"
    file.write_text('[node]\nunderlay = ["192.0.2.1"]\n[[network]]\nname = "lab"\nvni = 42\n')
    with pytest.raises(Failure, match="lab is bridged"):
        flannel_membership(load(file, {}, {}), None)


def test_the_kernel_does_not_speak_flannels_udp(tmp_path: Path) -> None:
    peers = 'peers = [{ vtep = "192.0.2.2", subnet = "10.5.2.0/24" }]\n'
    with pytest.raises(Failure, match="pods is flannel-udp"):
        membership(configured(tmp_path, f'encap = "flannel-udp"\n{peers}'), None)
