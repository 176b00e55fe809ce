"""`weft config` answers without a daemon."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Run = Callable[..., Result]

GOOD = """\
[[network]]
name = "lab"
vni = 42
device = "weft0"
address = ["10.9.0.1/24"]
peers = ["192.0.2.2"]
"""


@pytest.fixture
def good(tmp_path: Path) -> str:
    path = tmp_path / "weft.toml"
    path.write_text(GOOD)
    return str(path)


def test_check_of_a_good_file_is_exit_0(run: Run, good: str) -> None:
    result = run("config", "check", good)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{good}: ok, 1 network\n", "")
    answer = json.loads(run("config", "check", good, "--json").stdout)
    assert answer == {
        "schema": "weft.config-check/1",
        "data": {"file": good, "networks": 1, "not_yet": [], "notes": []},
    }


def test_check_tells_every_problem_and_is_exit_2(run: Run, tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("[[network]]\nvin = 42\nport = 0\n")
    result = run("config", "check", str(bad))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "weft: error: the configuration has 3 problems",
        "  why: line 1: network[0].vni: expected a VNI of 0 to 16777215, found nothing",
        "  why: line 2: network[0].vin: unknown key (did you mean vni?)",
        "  why: line 3: network[0].port: expected a port of 1 to 65535, found 0",
        "  try: mend each line above; `weft config schema` lists every key",
    ]
    answer = json.loads(run("config", "check", "--config", str(bad), "--json").stdout)
    assert answer["schema"] == "weft.error/1"
    assert len(answer["data"]["why"].splitlines()) == 3


def test_check_of_what_this_build_cannot_run_yet_is_ok_with_a_note(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control.operator.checks.native_obstacle", lambda: "it was not built")
    path = tmp_path / "later.toml"
    path.write_text('[node]\nengine = "native"\n' + GOOD)
    result = run("config", "check", str(path))
    assert result.exit_code == 0
    assert result.stderr.startswith("note: node.engine: this build has no native engine: it was not built")


def test_check_of_what_is_left_for_a_flag_to_say_is_exit_2_until_it_is_said(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "routed.toml"
    path.write_text('[[network]]\nmode = "routed"\nnetwork = "10.5.0.0/16"\n')
    result = run("config", "check", str(path))
    assert result.exit_code == 2
    assert "network[0].subnet: expected this node's subnet, or [gossip] to lease one" in result.stderr
    assert run("config", "check", str(path), "--join", "192.0.2.2").exit_code == 0
    assert run("config", "show", "--config", str(path)).exit_code == 0


def test_check_notes_what_of_a_net_conf_is_not_used(run: Run, tmp_path: Path) -> None:
    conf, path = tmp_path / "net-conf.json", tmp_path / "flannel.toml"
    conf.write_text('{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00::/48"}')
    path.write_text(f'[[network]]\nnet_conf = "{conf}"\nsubnet = "10.5.1.0/24"\n')
    result = run("config", "check", str(path))
    assert (result.exit_code, len(result.stderr.splitlines())) == (0, 1)
    assert result.stderr.startswith(f"note: network[0].net_conf: {conf}:1: EnableIPv6 beside IPv4")


def test_show_lays_flags_over_variables_over_the_file(
    run: Run, good: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEFT_CONFIG", good)
    monkeypatch.setenv("WEFT_PORT", "8472")
    shown = run("config", "show", "--name", "n1").stdout
    network = tomllib.loads(shown)["network"][0]
    assert (network["vni"], network["port"], network["peers"]) == (42, 8472, [{"vtep": "192.0.2.2:8472"}])
    lines = [line.split() for line in shown.splitlines()]
    assert ["name", "=", '"n1"', "#", "--name"] in lines
    assert ["port", "=", "8472", "#", "WEFT_PORT"] in lines
    assert ["vni", "=", "42", "#", f"{good}:3"] in lines
    answer = json.loads(run("config", "show", "--json").stdout)
    assert answer["schema"] == "weft.config/1"
    assert answer["data"]["origins"]["network[0].vni"] == f"{good}:3"


@pytest.mark.usefixtures("api")
def test_show_running_asks_the_daemon(run: Run) -> None:
    assert 'name = "n1"' in run("config", "show", "--running").stdout


def test_schema_is_json_schema(run: Run) -> None:
    document = json.loads(run("config", "schema").stdout)
    assert document["$defs"]["NetworkConfig"]["properties"]["mtu"]["anyOf"][0] == {"const": "auto"}
    bind = document["$defs"]["GossipConfig"]["properties"]["bind"]
    assert (bind["type"], bind["default"]) == ("string", "0.0.0.0:7946")
    wrapped = json.loads(run("config", "schema", "--json").stdout)
    assert wrapped == {"schema": "weft.config-schema/1", "data": document}


def test_peer_kernel_prints_what_makes_the_other_host_a_member(run: Run, good: str) -> None:
    result = run("config", "peer", "--kernel", "--config", good, "--underlay", "192.0.2.1")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "# On the host 192.0.2.2, as root: a member of lab (VNI 42, UDP port 4789)",
        "ip link add vxlan42 mtu 1450 type vxlan id 42 dstport 4789 local 192.0.2.2 udpcsum",
        "bridge fdb append 00:00:00:00:00:00 dev vxlan42 dst 192.0.2.1",
        "ip link set vxlan42 up",
        "# and an address of its own in 10.9.0.0/24:  ip address add … dev vxlan42",
    ]


def test_peer_kernel_with_several_peers_replicates_to_all_the_others(run: Run) -> None:
    flags = ["--vni", "5", "--underlay", "2001:db8::1", "--mtu", "1380"]
    peers = ["--peer", "2001:db8::2", "--peer", "[fd00::3]:99"]
    flags += ["--for", "fd00::3", "--member-address", "fd00::3/64"]
    result = run("config", "peer", "--kernel", *flags, *peers)
    assert result.stdout.splitlines()[1:] == [
        # A learned address would be sent to port 99, the device's own: so it does not learn.
        "ip link add vxlan5 mtu 1380 type vxlan id 5 dstport 99 local fd00::3 nolearning noudp6zerocsumtx",
        "bridge fdb append 00:00:00:00:00:00 dev vxlan5 dst 2001:db8::1 port 4789",
        "bridge fdb append 00:00:00:00:00:00 dev vxlan5 dst 2001:db8::2 port 4789",
        "ip address add fd00::3/64 dev vxlan5",
        "ip link set vxlan5 up",
    ]


ROUTED = (
    *("--mode", "routed", "--network", "10.5.0.0/16", "--subnet", "10.5.1.0/24", "--underlay", "192.0.2.1"),
    *("--peer", '{vtep = "192.0.2.2", subnet = "10.5.2.0/24", mac = "02:00:00:00:00:02"}'),
)


def test_peer_of_a_routed_network_takes_the_flags_that_run_takes(run: Run) -> None:
    kernel, flannel = (run("config", "peer", tools, *ROUTED) for tools in ("--kernel", "--flannel"))
    assert (kernel.exit_code, flannel.exit_code) == (0, 0)
    assert "ip -4 route replace 10.5.1.0/24 via 10.5.1.0 dev flannel.1 onlink" in kernel.stdout.splitlines()
    assert '"Network":"10.5.0.0/16"' in flannel.stdout


def test_the_network_of_peer_is_a_name_where_it_has_no_slash(run: Run, good: str) -> None:
    assert run("config", "peer", "--kernel", "--config", good, "--network", "lab").exit_code == 0
    missing = run("config", "peer", "--kernel", "--config", good, "--network", "pods")
    assert (missing.exit_code, missing.stderr.splitlines()[0]) == (5, "weft: error: no such network: pods")
    wrong = run("config", "peer", "--kernel", "--mode", "routed", "--network", "10.5.0.1/16")
    assert wrong.exit_code == 2
    assert "--network: expected a subnet like 10.5.0.0/16" in wrong.stderr


def test_peer_kernel_without_peers_is_for_any_host(run: Run) -> None:
    result = run("config", "peer", "--kernel", "--json", "--vni", "5", "--underlay", "192.0.2.1")
    (member,) = json.loads(result.stdout)["data"]
    assert member["host"] is None
    assert member["commands"][0] == "ip link add vxlan5 mtu 1450 type vxlan id 5 dstport 4789 udpcsum"


def test_peer_kernel_finds_our_address_by_the_route_to_the_peer(run: Run) -> None:
    result = run("config", "peer", "--kernel", "--vni", "5", "--peer", "127.0.0.2")
    assert "bridge fdb append 00:00:00:00:00:00 dev vxlan5 dst 127.0.0.1" in result.stdout.splitlines()


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["--vni", "5"], 2, "expected --kernel"),
        (["--kernel", "--vni", "5"], 2, "this node's underlay address is not known"),
        (["--kernel", "--vni", "5", "--peer", "192.0.2.2", "--network", "x"], 5, "no such network: x"),
        (
            ["--kernel", "--vni", "5", "--peer", "127.0.0.2", "--for", "192.0.2.9"],
            5,
            "no such peer: 192.0.2.9",
        ),
        (["--kernel", "--vni", "5", "--member-address", "here"], 2, "--member-address: expected an address"),
    ],
)
def test_peer_kernel_says_what_it_misses(run: Run, arguments: list[str], code: int, error: str) -> None:
    result = run("config", "peer", *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith(f"weft: error: {error}")


def test_peer_kernel_of_two_networks_wants_to_know_which(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "two.toml"
    path.write_text(GOOD + '[[network]]\nname = "other"\nvni = 43\npeers = ["127.0.0.2"]\n')
    result = run("config", "peer", "--kernel", "--config", str(path))
    assert (result.exit_code, result.stderr.splitlines()[1]) == (2, "  why: there are several: lab, other")
    assert "vxlan43" in run("config", "peer", "--kernel", "--config", str(path), "--network", "other").stdout
