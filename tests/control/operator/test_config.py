"""A configuration is read as the operator meant it, or every problem is told at the place it was written."""

from __future__ import annotations

import errno
import os
import tomllib
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from control.operator.config import (
    FLAGS,
    Config,
    Encap,
    Engine,
    Mode,
    Strictness,
    as_plain,
    check_supported,
    differences,
    keys,
    load,
    reload,
)
from control.operator.fields import Endpoint
from control.operator.reference import reference
from control.operator.toml_text import as_toml
from overlay.addr import Vtep
from overlay.errors import ConfigError, Problem

ROOT = Path(__file__).parents[3]

KEYRING = '["b2xkb2xkb2xkb2xkb2xkbw=="]'
CONTRACT = """\
[node]
name      = "n1"
underlay  = ["192.0.2.1"]
engine    = "auto"
workers   = 1
socket    = "/run/weft/weft.sock"
state_dir = "/var/lib/weft"
log       = "info"

[offload]
tap_gso = "auto"
udp_gso = "auto"
udp_gro = "auto"
tunnel_gso = "auto"
rx_repair = "auto"

[gossip]
bind = "0.0.0.0:7946"
advertise = "192.0.2.1:7946"
join = ["192.0.2.2"]
keyring = "/etc/weft/keyring"

[api]
listen = "127.0.0.1:7480"

[[network]]
name    = "lab"
mode    = "bridge"
encap   = "vxlan"
vni     = 42
port    = 4789
device  = "weft0"
address = ["10.9.0.1/24"]
mtu     = "auto"
peers   = ["192.0.2.2"]
learning = true
flood    = true
suppress = true
strictness = "rfc7348"
ageing_s = 300
fdb_max  = 4096

[[network]]
name    = "pods"
mode    = "routed"
encap   = "flannel-udp"
port    = 8285
device  = "flannel0"
network = "10.5.0.0/16"
subnet  = "10.5.1.0/24"
founders = ["n1"]
subnet_file = "/run/flannel/subnet.env"
peers   = [{ vtep = "192.0.2.2", subnet = "10.5.2.0/24" }]
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "weft.toml"
    path.write_text(text)
    return path


def problems(path: Path | None, flags: dict[str, object] | None = None, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, flags or {}, environ)
    return [str(problem) for problem in caught.value.problems]


def test_the_contracts_own_example_is_read_into_rich_types(tmp_path: Path) -> None:
    config = load(written(tmp_path, CONTRACT), {}, {})
    assert config.node.underlay == (IPv4Address("192.0.2.1"),)
    assert config.node.engine is Engine.AUTO
    assert config.gossip is not None
    assert config.gossip.join == (Endpoint("192.0.2.2", 7946),)
    assert config.api.listen == Endpoint("127.0.0.1", 7480)
    lab, pods = config.networks
    assert (lab.vni, lab.device, lab.mtu, lab.strictness) == (42, "weft0", "auto", Strictness.RFC7348)
    assert lab.address == (IPv4Interface("10.9.0.1/24"),)
    assert lab.vteps == (Vtep(IPv4Address("192.0.2.2"), 4789),)
    assert (pods.mode, pods.encap, pods.vni) == (Mode.ROUTED, Encap.FLANNEL_UDP, None)
    assert pods.peers[0].vtep == Vtep(IPv4Address("192.0.2.2"), 8285)
    assert pods.peers[0].subnet == IPv4Network("10.5.2.0/24")


def test_flags_alone_make_one_network() -> None:
    flags = {
        "name": "n1",
        "underlay": ("192.0.2.1", "2001:db8::1"),
        "vni": "42",
        "port": "8472",
        "device": "weft7",
        "address": ("10.9.0.1/24", "fd00::1/64"),
        "mtu": "1400",
        "peer": ("192.0.2.2", "192.0.2.3:4789", "[2001:db8::2]:99", "2001:db8::3"),
    }
    config = load(None, flags, {})
    assert config.gossip is None
    (network,) = config.networks
    assert (network.name, network.device, network.mtu) == ("weft7", "weft7", 1400)
    assert [str(vtep) for vtep in network.vteps] == [
        "192.0.2.2:8472",
        "192.0.2.3:4789",
        "[2001:db8::2]:99",
        "[2001:db8::3]:8472",
    ]


@pytest.mark.parametrize("flags", [{"join": ("n2",)}, {"gossip_bind": "192.0.2.1"}])
def test_join_or_gossip_bind_turns_gossip_on(flags: dict[str, object]) -> None:
    config = load(None, {"vni": "1", **flags}, {})
    assert config.gossip is not None
    assert config.gossip.bind.port == 7946


def test_a_flag_beats_a_variable_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    path = written(tmp_path, '[node]\nlog = "debug"\nworkers = 2\nname = "f"\n[[network]]\nvni = 1\n')
    environ = {"WEFT_NODE_WORKERS": "3", "WEFT_NODE_NAME": "v", "WEFT_NETWORK_LEARNING": "off"}
    config = load(path, {"name": "n1"}, environ)
    assert (config.node.log, config.node.workers, config.node.name) == ("debug", 3, "n1")
    assert config.networks[0].learning is False
    origins = config.origins
    assert origins["node.log"] == f"{path}:2"
    assert origins["node.workers"] == "WEFT_NODE_WORKERS"
    assert origins["node.name"] == "--name"
    assert origins["node.engine"] == "default"
    assert origins["network[0].vni"] == f"{path}:6"
    assert origins["network[0].learning"] == "WEFT_NETWORK_LEARNING"


def test_every_key_has_variables_of_its_own() -> None:
    names = [name for key in keys() for name in key.variables]
    assert len(names) == len(set(names))
    assert {f"WEFT_{key.table}_{key.name}".upper() for key in keys()} <= set(names)
    assert {f"WEFT_{flag}".upper().replace("-", "_") for flag in FLAGS} <= set(names)


VALUES = {
    "WEFT_NODE_UNDERLAY": "192.0.2.1, eth0",
    "WEFT_NODE_ENGINE": "python",
    "WEFT_SOCKET": "/s",
    "WEFT_OFFLOAD_UDP_GRO": "off",
    "WEFT_GOSSIP_BIND": "0.0.0.0:1",
    "WEFT_API_LISTEN": "127.0.0.1",
    "WEFT_NETWORK_MODE": "routed",
    "WEFT_VNI": "7",
    "WEFT_NETWORK_NETWORK": "10.5.0.0/16",
    "WEFT_NETWORK_PEERS": '[{ vtep = "192.0.2.2", subnet = "10.5.2.0/24", mac = "02:00:00:00:00:02" }]',
    "WEFT_NETWORK_FDB_MAX": "9",
    "WEFT_NETWORK_FOUNDERS": "n1,n2",
}


def test_a_network_can_be_made_of_variables_alone() -> None:
    config = load(None, {}, VALUES)
    (network,) = config.networks
    assert config.node.underlay == (IPv4Address("192.0.2.1"), "eth0")
    assert (config.node.socket, config.offload.udp_gro) == ("/s", "off")
    assert (network.vni, network.port, network.fdb_max) == (7, 8472, 9)
    assert network.founders == ("n1", "n2")
    assert network.peers[0].mac == bytes.fromhex("020000000002")


def test_an_empty_variable_is_as_good_as_none() -> None:
    assert load(None, {"vni": "1"}, {"WEFT_NODE_NAME": "", "WEFT_LOG": ""}).node.name == os.uname().nodename


def test_a_v4_mapped_peer_is_the_ipv4_host_it_names() -> None:
    config = load(None, {"vni": "1", "peer": ("::ffff:192.0.2.2",)}, {})
    assert config.networks[0].vteps[0].address == IPv4Address("192.0.2.2")


def test_a_scoped_peer_keeps_its_scope() -> None:
    config = load(None, {"vni": "1", "peer": ("fe80::2%eth0",)}, {})
    assert config.networks[0].vteps[0].address == IPv6Address("fe80::2%eth0")


NETWORK = '[[network]]\nvni = 42\nport = 4789\ndevice = "weft0"\nname = "lab"\n'
ROUTED = '[[network]]\nmode = "routed"\nnetwork = "10.5.0.0/16"\n'

ONE_PROBLEM = [
    # text, line, path, why, suggestion
    ("[nod]\n" + NETWORK, 1, "nod", "unknown key", "node"),
    ('[node]\nnme = "n1"\n' + NETWORK, 2, "node.nme", "unknown key", "name"),
    ("[node]\nvni = 1\n" + NETWORK, 2, "node.vni", "unknown key", "network.vni"),
    ("xyzzy = 1\n" + NETWORK, 1, "xyzzy", "unknown key", None),
    ("node = 3\n" + NETWORK, 1, "node", "expected a table, found 3", None),
    ('[node]\nlog = "inf"\n' + NETWORK, 2, "node.log", "debug, info, warning, error", "info"),
    (
        '[node]\nname = "a b"\n' + NETWORK,
        2,
        "node.name",
        'letters, digits, dots, dashes and underscores, a letter or digit first, found "a b"',
        None,
    ),
    (f'[node]\nname = "{"n" * 129}"\n' + NETWORK, 2, "node.name", "a name of 1 to 128 letters", None),
    ("[node]\nworkers = 0\n" + NETWORK, 2, "node.workers", "of 1 to 64, found 0", None),
    ("[node]\nworkers = true\n" + NETWORK, 2, "node.workers", "of 1 to 64, found true", None),
    ("[node]\ncores = 1\n" + NETWORK, 2, "node.cores", "expected a list", None),
    ("[node]\ncores = [1024]\n" + NETWORK, 2, "node.cores[0]", "of 0 to 1023, found 1024", None),
    ("[node]\ncores = [0, 1]\n" + NETWORK, 2, "node.cores", "expected 1, one for each worker, found 2", None),
    ("[node]\nworkers = 2\ncores = [3, 3]\n" + NETWORK, 3, "node.cores[1]", "core 3 is listed twice", None),
    ('[node]\nsocket = ""\n' + NETWORK, 2, "node.socket", "expected a path", None),
    ('[node]\nunderlay = "eth0"\n' + NETWORK, 2, "node.underlay", "expected a list", None),
    ('[node]\nunderlay = [\n"192.0.2.300"]\n' + NETWORK, 3, "node.underlay[0]", "an address or", None),
    ('[node]\nunderlay = ["224.0.0.1"]\n' + NETWORK, 2, "node.underlay[0]", "of one host", None),
    ('[node]\nunderlay = ["eth0", "eth0"]\n' + NETWORK, 2, "node.underlay[1]", "listed twice", None),
    ("[offload]\nudp_gso = true\n" + NETWORK, 2, "offload.udp_gso", "auto, on, off, found true", None),
    ('[gossip]\nbind = "x:0"\n' + NETWORK, 2, "gossip.bind", "expected a port of 1 to 65535", None),
    ('[api]\nlisten = "1.2.3"\n' + NETWORK, 2, "api.listen", "address or address:port", None),
    ("[network]\nvni = 1\n", 1, "network", "written [[network]]", None),
    (
        '[[network]]\ndevice = "x"\n',
        1,
        "network[0].vni",
        "expected a VNI of 0 to 16777215, found nothing",
        None,
    ),
    ("[[network]]\nvni = 16777216\n", 2, "network[0].vni", "found 16777216", None),
    ('[[network]]\nvni = "42"\n', 2, "network[0].vni", 'found "42"', None),
    ("[[network]]\nvni = 42.0\n", 2, "network[0].vni", "found 42.0", None),
    (NETWORK + 'strictness = "linus"\n', 6, "network[0].strictness", "rfc7348, linux", "linux"),
    (NETWORK + "flood = 1\n", 6, "network[0].flood", "expected true or false, found 1", None),
    (NETWORK + "mtu = 67\n", 6, "network[0].mtu", 'expected "auto" or an MTU of 68 to 65535', None),
    (NETWORK + 'mtu = 1000\naddress = ["fd00::1/64"]\n', 6, "network[0].mtu", "at least 1280", None),
    (NETWORK + 'address = ["10.9.0.1"]\n', 6, "network[0].address[0]", "with its prefix", None),
    (NETWORK + 'address = ["10.9.0.0/24"]\n', 6, "network[0].address[0]", "names the subnet", None),
    (NETWORK + 'address = ["10.9.0.255/24"]\n', 6, "network[0].address[0]", "broadcast", None),
    (NETWORK + 'address = ["10.9.0.1/24", "10.9.0.1/16"]\n', 6, "network[0].address[1]", "twice", None),
    (NETWORK + 'peers = ["n2"]\n', 6, "network[0].peers[0].vtep", "an address, or address:port", None),
    (NETWORK + "peers = [\n7]\n", 7, "network[0].peers[0].vtep", "found 7", None),
    (NETWORK + 'peers = ["192.0.2.2:0"]\n', 6, "network[0].peers[0].vtep", "found '0'", None),
    (NETWORK + 'peers = ["255.255.255.255"]\n', 6, "network[0].peers[0].vtep", "of one host", None),
    (NETWORK + 'peers = ["192.0.2.2",\n"192.0.2.2:99"]\n', 7, "network[0].peers[1]", "listed twice", None),
    (NETWORK + "peers = [{}]\n", 6, "network[0].peers[0].vtep", "expected this key", None),
    (
        NETWORK + 'peers = [{ vtep = "192.0.2.2", vtp = 1 }]\n',
        6,
        "network[0].peers[0].vtp",
        "unknown",
        "vtep",
    ),
    (
        NETWORK + 'peers = [{ vtep = "192.0.2.2", subnet = "10.5.2.0/24" }]\n',
        6,
        "network[0].peers[0].subnet",
        'only with mode = "routed"',
        None,
    ),
    (NETWORK + 'subnet = "10.5.1.0/24"\n', 6, "network[0].subnet", 'only with mode = "routed"', None),
    ('[[network]]\nencap = "flannel-udp"\n', 2, "network[0].encap", 'expected mode = "routed"', None),
    ('[[network]]\nmode = "routed"\n', 1, "network[0].network", "found neither", None),
    (ROUTED + 'net_conf = "/f"\n', 4, "network[0].net_conf", "found both", None),
    (ROUTED + 'subnet = "10.6.1.0/24"\n', 4, "network[0].subnet", "outside the network", None),
    (ROUTED + 'subnet = "10.5.1.1/24"\n', 4, "network[0].subnet", "no host bits set", None),
    (ROUTED + 'address = ["10.6.0.1/32"]\n', 4, "network[0].address[0]", "outside the network", None),
    (
        ROUTED
        + 'subnet = "10.5.1.0/24"\nencap = "flannel-udp"\n'
        + 'peers = [{ vtep = "192.0.2.2", subnet = "10.5.0.0/20" }]\n',
        6,
        "network[0].peers[0].subnet",
        "10.5.0.0/20 overlaps 10.5.1.0/24",
        None,
    ),
    (ROUTED + 'encap = "flannel-udp"\nvni = 1\n', 5, "network[0].vni", "expected no VNI", None),
    (ROUTED + 'subnet_min = "10.6.1.0"\n', 4, "network[0].subnet_min", "outside the network", None),
    (ROUTED + 'subnet_max = "10.5.1.7"\n', 4, "network[0].subnet_max", "expected the base of a /24", None),
    (
        ROUTED + 'subnet_min = "10.5.9.0"\nsubnet_max = "10.5.2.0"\n',
        4,
        "network[0].subnet_min",
        "expected at most subnet_max, 10.5.2.0, found 10.5.9.0",
        None,
    ),
    (
        ROUTED + 'subnet_min = "10.5.9.0"\nsubnet_max = "10.5.9.0"\nfounders = ["n1", "n2"]\n',
        6,
        "network[0].founders",
        "range: expected a subnet for each founder, found 1 in all",
        None,
    ),
    (NETWORK + 'subnet_min = "10.5.1.0"\n', 6, "network[0].subnet_min", 'only with mode = "routed"', None),
    (
        ROUTED
        + 'encap = "flannel-udp"\n'
        + 'peers = [{ vtep = "192.0.2.2", subnet = "10.5.2.0/24" },\n'
        + '{ vtep = "192.0.2.3", subnet = "10.5.2.0/24" }]\n',
        6,
        "network[0].peers[1].subnet",
        "10.5.2.0/24 is taken",
        None,
    ),
    (
        ROUTED + 'encap = "flannel-udp"\npeers = ["192.0.2.2"]\n',
        5,
        "network[0].peers[0].subnet",
        "the subnet behind this peer",
        None,
    ),
    (
        ROUTED + 'peers = [{ vtep = "192.0.2.2", subnet = "10.5.2.0/24" }]\n',
        4,
        "network[0].peers[0].mac",
        "the MAC of this peer's tunnel device",
        None,
    ),
    (
        ROUTED
        + 'peers = [{ vtep = "192.0.2.2", subnet = "10.5.2.0/24", mac = "02:00:00:00:00:02" },\n'
        + '{ vtep = "192.0.2.3", subnet = "10.5.3.0/24", mac = "02:00:00:00:00:02" }]\n',
        5,
        "network[0].peers[1].mac",
        "02:00:00:00:00:02 is the peer 192.0.2.2's",
        None,
    ),
    (ROUTED + 'subnet = "10.5.1.0/31"\n', 4, "network[0].subnet", "room for containers", None),
    (NETWORK + "masquerade = true\n", 6, "network[0].masquerade", 'only with mode = "routed"', None),
    (
        '[[network]]\nmode = "routed"\nencap = "flannel-udp"\nnetwork = "fd00::/48"\n',
        4,
        "network[0].network",
        "expected an IPv4 network",
        None,
    ),
    (
        ROUTED + 'peers = [{ vtep = "192.0.2.2", subnet = "10.5.2.0/24", mac = "01:00:5e:00:00:01" }]\n',
        4,
        "network[0].peers[0].mac",
        "of one interface",
        None,
    ),
    (
        NETWORK + '[[network]]\nvni = 43\ndevice = "weft0"\n',
        8,
        "network[1].device",
        "taken by network[0]",
        None,
    ),
    (NETWORK + "[[network]]\nvni = 42\n", 7, "network[1].vni", "VNI 42 on port 4789 is taken", None),
    (NETWORK + '[[network]]\nvni = 43\nname = "lab"\n', 8, "network[1].name", "the name lab is taken", None),
    (
        NETWORK + ROUTED + 'encap = "flannel-udp"\nport = 4789\n',
        10,
        "network[1].port",
        "port 4789 is taken by network lab (vxlan)",
        None,
    ),
    ("[node\n", 1, None, "not TOML", None),
    ("a = 1\nb = \n", 2, None, "not TOML", None),
    ('a = """', None, None, "not TOML", None),
    ("a = 1\na = 2\n", 2, None, "not TOML", None),
    ("a = " + "[" * 5000 + "]" * 5000, None, None, "nested too deeply", None),
    ("a = " + "9" * 5000, None, None, "not TOML", None),
]


@pytest.mark.parametrize(("text", "line", "path", "why", "suggestion"), ONE_PROBLEM)
def test_one_mistake_is_one_problem_at_its_place(
    tmp_path: Path, text: str, line: int | None, path: str | None, why: str, suggestion: str | None
) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(file, {}, {})
    (problem,) = caught.value.problems
    assert (problem.line, problem.path, problem.suggestion) == (line, path or str(file), suggestion)
    assert why in problem.why


@pytest.mark.parametrize("name", ["a" * 16, "é" * 8, "a b", "a/b", "a:b", "weft%d", "..", ""])
def test_a_device_name_the_kernel_would_not_take_is_a_problem(name: str) -> None:
    (problem,) = problems(None, {"vni": 1, "device": name})
    assert problem.startswith("--device: expected a device name")


@pytest.mark.parametrize("name", ["a" * 15, "weft0.42", "é" * 7])
def test_any_device_name_the_kernel_takes_will_do(name: str) -> None:
    assert load(None, {"vni": 1, "device": name}, {}).networks[0].device == name


@pytest.mark.parametrize("text", ["0,3", "0, 3", "[0, 3]"])
def test_a_list_of_numbers_may_be_a_variable(text: str) -> None:
    environ = {"WEFT_NODE_CORES": text, "WEFT_NODE_WORKERS": "2"}
    assert load(None, {"vni": "1"}, environ).node.cores == (0, 3)
    (problem,) = problems(None, {"vni": "1"}, WEFT_NODE_CORES="zero")
    assert problem == 'WEFT_NODE_CORES: expected a core of 0 to 1023, found "zero"'


def test_every_problem_is_reported_together_in_the_files_order(tmp_path: Path) -> None:
    text = (
        '[node]\nnme = "n1"\nunderlay = ["192.0.2.1"]\n'
        "[[network]]\nvni = 99999999\nport = 0\n"
        '[[network]]\nvni = 4\ndevice = "weft0"\npeers = ["192.0.2.1"]\n'
    )
    found = problems(written(tmp_path, text), {"log": "loud"}, WEFT_NODE_WORKERS="many")
    assert found == [
        'WEFT_NODE_WORKERS: expected a number of workers of 1 to 64, found "many"',
        '--log: expected one of debug, info, warning, error, found "loud"',
        "line 2: node.nme: unknown key (did you mean name?)",
        "line 5: network[0].vni: expected a VNI of 0 to 16777215, found 99999999",
        "line 6: network[0].port: expected a port of 1 to 65535, found 0",
        "line 9: network[1].device: device weft0 is taken by network[0]",
        "line 10: network[1].peers[0]: the peer 192.0.2.1 is this node's own underlay address",
    ]


def test_a_key_with_a_problem_of_its_own_is_not_missed_as_well(tmp_path: Path) -> None:
    found = problems(written(tmp_path, "[[network]]\nvni = -1\n"))
    assert found == ["line 2: network[0].vni: expected a VNI of 0 to 16777215, found -1"]


BAD_PEERS = """\
peers = [
  { vtep = "192.0.2.2", subnet = "10.5.2.0/24", mac = "nonsense" },
  { vtep = "192.0.2", mac = "02:00:00:00:00:03" },
  { vtep = "192.0.2.4", mac = "02:00:00:00:00:04" },
  { vtep = "192.0.2.5", subnet = "10.5.5.0/24" },
  { vtep = "192.0.2.5", subnet = "10.5.2.0/24", mac = "02:00:00:00:00:03" },
]
"""
HIDING = [  # what is wrong, and which keys are named
    (
        (
            '[[network]]\nvni = 1\nmode = "bridg"\n'
            '[[network]]\nencap = "flannel-udp"\nmode = "bridge"\nsubnet = "10.5.1.0/24"\n'
        ),
        {"network[0].mode", "network[1].encap", "network[1].subnet"},
    ),
    (
        (
            '[[network]]\nvni = 1\nencap = "vlan"\naddress = ["10.9.0.0/24"]\nfounders = ["n1"]\n'
            '[[network]]\ndevice = "weft7"\n[[network]]\nvni = 3\ndevice = "weft7"\n'
        ),
        {
            "network[0].encap",
            "network[0].address[0]",
            "network[0].founders",
            "network[1].vni",
            "network[2].device",
        },
    ),
    ('[[network]]\nencap = "vlan"\nmode = "rooted"\nvni = 1\n', {"network[0].encap", "network[0].mode"}),
    (
        ROUTED + BAD_PEERS,
        {
            "network[0].peers[0].mac",
            "network[0].peers[1].vtep",
            "network[0].peers[1].subnet",
            "network[0].peers[2].subnet",
            "network[0].peers[3].mac",
            "network[0].peers[4]",
            "network[0].peers[4].subnet",
        },
    ),
    (
        '[[network]]\nvni = 1\naddress = ["10.9.0.1", "10.9.0.0/24"]\n',
        {"network[0].address[0]", "network[0].address[1]"},
    ),
    ("network = [3, { }]\n", {"network[0]", "network[1].vni"}),
]


@pytest.mark.parametrize(("text", "named"), HIDING)
def test_one_mistake_hides_no_other(tmp_path: Path, text: str, named: set[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, text), {}, {})
    assert {each.path for each in caught.value.problems} == named


TAKEN_OUT = [  # each with one mistake; what would follow from a default in its place does not
    '[[network]]\nvni = 42\nport = "x"\n[[network]]\nvni = 42\n',
    '[[network]]\nmode = "routed"\nnetwork = "10.5.0.0/16"\nvni = "x"\n[[network]]\nvni = 1\nport = 8472\n',
    '[[network]]\nvni = 1\ndevice = "a b"\n[[network]]\nvni = 2\ndevice = "weft0"\n',
    '[[network]]\nvni = 1\nmode = "rooted"\n[[network]]\nvni = 1\n',
    '[[network]]\nvni = 1\nport = 8285\nmode = "routed"\nnetwork = "10.5.0.0/16"\nencap = "vlan"\n',
    '[node]\nworkers = "x"\ncores = [0, 1]\n[[network]]\nvni = 1\n',
    '[[network]]\nmode = "routed"\nnet_conf = 3\n',
    '[[network]]\nnet_conf = "/nowhere"\npeers = [{ vtep = "192.0.2.2", subnet = "10.5.2.0/24" }]\n',
    '[node]\nunderlay = ["192.0.2.1", ""]\n[[network]]\nvni = 1\npeers = ["2001:db8::2"]\n',
    '[node]\nunderlay = ["2001:db8::1"]\n[[network]]\nvni = 1\npeers = ["192.0.2"]\n',
]


@pytest.mark.parametrize("text", TAKEN_OUT)
def test_what_stands_in_for_a_mistake_is_no_mistake(tmp_path: Path, text: str) -> None:
    assert len(problems(written(tmp_path, text))) == 1


def test_a_peer_of_a_family_no_underlay_has_is_a_problem() -> None:
    flags = {"vni": 1, "underlay": ("192.0.2.1",), "peer": ("192.0.2.2", "2001:db8::2")}
    assert problems(None, flags) == ["--peer: the peer 2001:db8::2 is IPv6 and no underlay address is"]


def test_an_underlay_given_by_device_may_have_any_family() -> None:
    load(None, {"vni": 1, "underlay": ("192.0.2.1", "eth0"), "peer": ("2001:db8::2",)}, {})


def test_a_problem_of_a_flag_names_the_flag_and_not_the_line_it_overrides(tmp_path: Path) -> None:
    path = written(tmp_path, NETWORK + 'peers = ["192.0.2.2"]\n')
    assert problems(path, {"peer": ("nobody",)}) == [
        '--peer: expected an address, or address:port, found "nobody"'
    ]


def test_a_flag_cannot_choose_between_two_networks(tmp_path: Path) -> None:
    path = written(tmp_path, NETWORK + "[[network]]\nvni = 43\n")
    (problem,) = problems(path, {"vni": "3"})
    assert problem.startswith("--vni: expected one network, found 2")


@pytest.mark.parametrize(
    ("underlay", "bind"),
    [
        (("2001:db8::1",), "[::]:7946"),
        (("2001:db8::1", "192.0.2.1"), "0.0.0.0:7946"),
        (("2001:db8::1", "eth0"), "0.0.0.0:7946"),  # which addresses it has, only the daemon can see
        ((), "0.0.0.0:7946"),
    ],
)
def test_gossip_is_received_over_ipv6_where_no_underlay_address_is_ipv4(
    underlay: tuple[str, ...], bind: str
) -> None:
    flags = {"vni": 1, "underlay": underlay, "join": ("n2.example",)}
    config = load(None, flags, {})
    assert config.gossip is not None
    assert str(config.gossip.bind) == bind
    assert config.origins["gossip.bind"] == "default"
    told = load(None, {**flags, "gossip-bind": "0.0.0.0"}, {})
    assert told.gossip is not None
    assert str(told.gossip.bind) == "0.0.0.0:7946"


def test_a_keyring_without_gossip_is_a_problem() -> None:
    (problem,) = problems(None, {"vni": 1, "keyring": "/k"})
    assert problem.startswith("--keyring: gossip is off")


@pytest.mark.parametrize(
    ("gossip", "expected"),
    [
        ('bind = "x"', "gossip.bind: expected an address, found the name x (did you mean 0.0.0.0?)"),
        (
            'advertise = "n1.example"',
            "gossip.advertise: expected an address, found the name n1.example (did you mean 192.0.2.1?)",
        ),
    ],
)
def test_a_name_cannot_be_bound_nor_advertised(tmp_path: Path, gossip: str, expected: str) -> None:
    node = '[node]\nunderlay = ["192.0.2.1"]\n'
    path = written(tmp_path, f"{node}[gossip]\n{gossip}\n{NETWORK}")
    assert problems(path) == [f"line 4: {expected}"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "{}: expected a JSON list of base64 keys, found nothing in it"),
        ("not JSON", "{}: expected a JSON list of base64 keys, found no JSON"),
        ("{}", "{}: expected a JSON list of base64 keys, found other JSON"),
        ("[]", "{}: expected a JSON list of base64 keys, found an empty one"),
        (
            "b2xkb2xkb2xkb2xkb2xkbw==\n",
            '{}: expected a JSON list of base64 keys, found a key without its list (did you mean ["…"]?)',
        ),
        ('["b2xkb2xkb2xkb2xkb2xkbw==", 7]', "{}: key: expected base64, in the list's item 2"),
        ('["c2VjcmV0"]', "{}: key: expected 16, 24 or 32 octets, found 6, in the list's item 1"),
    ],
)
def test_a_keyring_that_is_none_is_told_with_everything_else(
    tmp_path: Path, text: str, expected: str
) -> None:
    ring = tmp_path / "ring"
    ring.write_text(text)
    path = written(tmp_path, f'[gossip]\nkeyring = "{ring}"\n[[network]]\nvni = -1\n')
    told = expected.replace("{}", str(ring), 1)
    assert problems(path) == [
        f"line 2: gossip.keyring: {told}",
        "line 4: network[0].vni: expected a VNI of 0 to 16777215, found -1",
    ]


def test_a_keyring_that_is_not_here_is_no_mistake_but_cannot_be_run(tmp_path: Path) -> None:
    (tmp_path / "keyring.json").write_text(KEYRING)
    config = load(None, {"vni": 1, "join": ("n2",), "keyring": str(tmp_path / "keyring")}, {})
    with pytest.raises(ConfigError) as caught:
        check_supported(config)
    (problem,) = map(str, caught.value.problems)
    assert problem.startswith("gossip.keyring: expected a file")
    assert problem.endswith(f"(did you mean {tmp_path}/keyring.json?)")


def test_a_keyring_that_only_its_user_may_read_is_no_mistake_but_cannot_be_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = tmp_path / "ring"

    def refused(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "read_bytes", refused)
    config = load(None, {"vni": 1, "join": ("n2",), "keyring": str(ring)}, {})
    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(ConfigError, match=f"gossip.keyring: {ring}: cannot be read: Permission denied"):
        check_supported(config)


def test_the_engine_in_python_has_one_worker(tmp_path: Path) -> None:
    node = '[node]\nengine = "python"\nworkers = 3\ncores = [0, 1, 2]\n'
    told = problems(written(tmp_path, node + NETWORK))
    why = 'the engine in Python has one thread, the daemon\'s (did you mean engine = "native"?)'
    assert told == [
        f"line 3: node.workers: expected 1, found 3: {why}",
        f"line 4: node.cores: expected none, found 0, 1, 2: {why}",
    ]


@pytest.mark.parametrize("flags", [{}, {"name": "n1"}])
def test_no_network_at_all_is_a_problem(flags: dict[str, object]) -> None:
    assert problems(None, flags) == ["network: expected a [[network]] table or --vni, found none"]


def test_a_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    assert problems(tmp_path / "none.toml") == [
        f"{tmp_path}/none.toml: cannot be read: No such file or directory"
    ]
    assert problems(tmp_path) == [f"{tmp_path}: cannot be read: Is a directory"]
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"# one\n# \xe9\n")
    assert problems(latin) == [f"line 2: {latin}: expected UTF-8 text, as TOML is"]


def test_two_flannel_udp_networks_need_two_ports(tmp_path: Path) -> None:
    one = ROUTED + 'encap = "flannel-udp"\n'
    text = one + one.replace("10.5", "10.6")
    (problem,) = problems(written(tmp_path, text))
    assert problem == "line 5: network[1].port: port 8285 is taken by network flannel0 (flannel-udp)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ('[node]\nengine = "native"\n', ["node.engine"]),
        ("[node]\nworkers = 2\ncores = [0, 1]\n", ["node.workers", "node.cores"]),
        ("[gossip]\n", []),
        (ROUTED, ["network[1].subnet"]),
        (ROUTED + 'founders = ["n1"]\n', ["network[1].founders", "network[1].subnet"]),
        (ROUTED + "[gossip]\n", []),
        (ROUTED + 'founders = ["n1"]\n[gossip]\n', []),
        (ROUTED + 'subnet = "10.5.1.0/24"\n', []),
        (ROUTED + 'subnet = "10.5.1.0/24"\nencap = "flannel-udp"\n', []),
    ],
)
def test_what_this_build_cannot_run_yet_is_valid_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: list[str]
) -> None:
    monkeypatch.setattr("control.operator.checks.native_obstacle", lambda: "it was not built")
    top, tables = (text, "") if "network" not in text else ("", text)
    config = load(written(tmp_path, top + NETWORK + tables), {}, {})
    if not expected:
        check_supported(config)
        return
    with pytest.raises(ConfigError) as caught:
        check_supported(config)
    assert [problem.path for problem in caught.value.problems] == expected


def test_the_configuration_in_force_cannot_be_changed() -> None:
    config = load(None, {"vni": 1}, {})
    with pytest.raises(ValidationError):
        config.node.name = "other"


def test_a_reload_reads_the_file_again_and_tells_what_differs(tmp_path: Path) -> None:
    path = written(tmp_path, NETWORK)
    before = load(path, {"log": "debug"}, {})
    assert differences(before, reload(before)) == ()
    written(tmp_path, NETWORK.replace("42", "43") + 'peers = ["192.0.2.2"]\n[gossip]\n')
    after = reload(before)
    assert after.node.log == "debug"
    assert set(differences(before, after)) == {
        "network[0].vni",
        "network[0].peers",
        "gossip.bind",
        "gossip.join",
    }


def test_what_show_prints_is_read_as_the_same_configuration(tmp_path: Path) -> None:
    first = load(written(tmp_path, CONTRACT), {}, {})
    shown = as_toml(as_plain(first), first.origins)
    again = load(written(tmp_path, shown), {}, {})
    assert differences(first, again) == ()
    assert as_plain(again) == as_plain(first)
    line = CONTRACT.splitlines().index("vni     = 42") + 1
    assert f"{'vni = 42':<44} # {tmp_path}/weft.toml:{line}\n" in shown


def test_what_show_prints_is_toml_whatever_a_path_is_made_of(tmp_path: Path) -> None:
    awkward = '/a"b\\c\x7f\té'
    config = load(None, {"vni": 1, "state_dir": awkward}, {})
    path = written(tmp_path, as_toml(as_plain(config), config.origins))
    assert load(path, {}, {}).node.state_dir == awkward


def test_the_schema_knows_every_key_of_the_contract() -> None:
    schema = Config.model_json_schema(by_alias=True)
    assert set(schema["properties"]) == {"node", "offload", "gossip", "api", "network"}
    for table, content in tomllib.loads(CONTRACT).items():
        model = schema["$defs"][f"{table.capitalize()}Config"]["properties"]
        for each in content if isinstance(content, list) else [content]:
            assert each.keys() <= model.keys()


def test_the_reference_is_what_the_types_say() -> None:
    assert (ROOT / "docs" / "config.md").read_text() == reference(), "stale: make docs"


toml_values = st.recursive(
    st.one_of(
        st.integers(-1, 2**25),
        st.booleans(),
        st.sampled_from(["auto", "192.0.2.1", "10.0.0.1/24", "", "\x7f"]),
        st.floats(),
        st.text(max_size=3),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["vtep", "subnet", "mac", "vni", "x"]), inner, max_size=2),
    ),
    max_leaves=4,
)
network_keys = st.sampled_from([key.name for key in keys() if key.table == "network"])
documents = st.fixed_dictionaries(
    {},
    optional={
        "node": st.one_of(
            toml_values, st.dictionaries(st.sampled_from(["name", "underlay", "log"]), toml_values)
        ),
        "gossip": st.one_of(toml_values, st.dictionaries(st.sampled_from(["bind", "join"]), toml_values)),
        "network": st.one_of(
            toml_values, st.lists(st.dictionaries(network_keys, toml_values, max_size=4), max_size=3)
        ),
        "api": toml_values,
        "junk": toml_values,
    },
)


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(character):08x}" for character in value) + '"'
    return str(value)


@given(
    document=documents, flags=st.dictionaries(st.sampled_from(list(FLAGS)), st.text(max_size=6), max_size=3)
)
def test_any_document_is_a_configuration_or_a_list_of_problems(
    tmp_path_factory: pytest.TempPathFactory, document: dict[str, object], flags: dict[str, object]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text("".join(f"{key} = {toml(value)}\n" for key, value in document.items()))
    config, told = _loaded(path, flags)
    if config is not None:
        assert as_plain(reload(config)) == as_plain(config)
    else:
        assert told
        assert all(problem.path and problem.why for problem in told)


def _loaded(path: Path, flags: dict[str, object]) -> tuple[Config | None, tuple[Problem, ...]]:
    try:
        return load(path, flags, {}), ()
    except ConfigError as error:
        return None, error.problems


@given(st.binary(max_size=60))
def test_any_octets_are_a_configuration_or_a_list_of_problems(
    tmp_path_factory: pytest.TempPathFactory, octets: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "octets.toml"
    path.write_bytes(octets)
    with pytest.raises(ConfigError):
        load(path, {}, {})


@given(
    st.dictionaries(st.sampled_from([name for key in keys() for name in key.variables]), st.text(max_size=8))
)
def test_any_environment_is_a_configuration_or_a_list_of_problems(environ: dict[str, str]) -> None:
    with suppress(ConfigError):
        load(None, {}, environ)
