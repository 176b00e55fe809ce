"""The files beside docker-compose.yml say what the daemon says, and ask for no more than it needs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
from support.introspection import FakeDaemon, FakePool
from support.source import ROOT

from bench.forwarders import NODES_DEVICE, NODES_NETWORK
from control.operator.config import load
from control.operator.metrics import exposition

COMPOSE = ROOT / "docker-compose.yml"
HERE = ROOT / "bench" / "compose"
NODE_ADDRESSES = ("198.19.250.11", "198.19.250.12", "198.19.250.13")
METRIC = re.compile(r"\bweft_\w+")


def text() -> str:
    """Without its comments."""
    return re.sub(r"#.*", "", COMPOSE.read_text())


def test_nothing_is_privileged_and_no_more_than_two_capabilities_are_added() -> None:
    assert "privileged" not in text()
    assert "network_mode: host" not in text()
    added = set(re.findall(r"[A-Z_]+", " ".join(re.findall(r"cap_add: \[(.*)\]", text()))))
    assert added == {"NET_ADMIN", "NET_RAW"}
    assert set(re.findall(r"devices: (.*)", text())) == {'["/dev/net/tun:/dev/net/tun"]'}


def test_the_file_is_valid_for_old_and_new_compose() -> None:
    assert not re.search(r"^(version|name|include):", text(), re.MULTILINE)
    if shutil.which("docker-compose") is None:
        pytest.skip("not installed: docker-compose")
    for profile in ("bench", "interop", "observe"):
        argv = ["docker-compose", "--profile", profile, "config", "--quiet"]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_bench_measures_the_nodes_where_they_are() -> None:
    for number, address in enumerate(NODE_ADDRESSES, start=1):
        assert f"--underlay {address} --vni 42 --device {NODES_DEVICE}" in text()
        assert f"--address {NODES_NETWORK + number}/24" in text()


def test_prometheus_asks_every_node_where_its_api_listens() -> None:
    targets = re.findall(r'"([\d.]+:\d+)"', (HERE / "prometheus.yml").read_text())
    listening = re.findall(r'WEFT_API_LISTEN: "([\d.]+:\d+)"', text())
    assert targets == listening == [f"{address}:7480" for address in NODE_ADDRESSES]


def test_the_dashboard_shows_metrics_there_are() -> None:
    found = json.loads((HERE / "dashboard.json").read_text())
    asked = [each["expr"] for panel in found["panels"] for each in panel["targets"]]
    shown = {name for expression in asked for name in METRIC.findall(expression)}
    exposed, _ = exposition(FakeDaemon(pool=FakePool()), "")
    offered = set(re.findall(r"^(weft_\w+)", exposed.decode(), re.MULTILINE))
    assert shown <= offered
    assert len(shown) > 8


def test_the_mixed_nodes_configuration_is_one() -> None:
    config = load(HERE / "mixed.toml", {}, {})
    assert [network.encap for network in config.networks] == ["vxlan", "flannel-udp"]
    segment = config.networks[0]
    assert (segment.vni, segment.port) == (43, 4790)
    assert "id 43 dstport 4790" in (HERE / "kernel-node").read_text()


def test_the_bench_images_pins_are_the_nodes_and_more() -> None:
    def pins(name: str) -> set[str]:
        listed = (ROOT / "requirements" / name).read_text()
        return set(re.findall(r"^[\w.-]+==[\w.]+", listed, re.MULTILINE))

    assert pins("runtime.txt") < pins("bench.txt"), "make requirements"
