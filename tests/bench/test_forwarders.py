"""Forwarders are named, refused with what was expected, and configured as their names say."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from bench.forwarders import Fastd, Weft, parse_forwarder
from bench.lab.topology import NodeKind, segment
from bench.stage import Overlay, Stage


def paper_stage(directory: Path, nodes: int = 2) -> Stage:
    """As much of a stage as a configuration needs."""
    topology = segment("bench", *[NodeKind.BARE] * nodes)

    def others(index: int) -> list[int]:
        return [other for other in range(nodes) if other != index]

    found = SimpleNamespace(
        topology=topology,
        size=nodes,
        mtu=1500,
        directory=directory,
        vtep=lambda index: topology.nodes[index].vtep,
        others=others,
        place=lambda index: SimpleNamespace(name=f"n{index + 1}", namespace=f"x-n{index + 1}"),
    )
    return cast("Stage", found)


def weft_configuration(name: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What the first node's daemon would be told."""
    overlay = parse_forwarder(name).build(paper_stage(directory), 7)
    assert isinstance(overlay, Weft)
    monkeypatch.setattr(Overlay, "_start_service", lambda *_: None)
    overlay.start_node(0)
    return tomllib.loads((overlay.home(0) / "weft.toml").read_text())


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("bare", "no overlay"),
        ("kernel", "kernel VXLAN"),
        ("kernel:noudpcsum", "kernel VXLAN, no outer checksum"),
        ("weft", "weft"),
        ("weft:python:rung1", "weft, python, rung 1"),
        ("weft:native:udp_gso=off,tap_gso=on", "weft, native, udp_gso=off, tap_gso=on"),
        ("weft:python:vteps=1000", "weft, python, 1000 more VTEPs"),
        ("weft:native:workers=2", "weft, native, 2 workers"),
        ("fastd", "fastd, method null"),
        ("ovs", "Open vSwitch, userspace datapath"),
    ],
)
def test_a_forwarder_has_a_name_and_a_title(name: str, title: str) -> None:
    found = parse_forwarder(name)
    assert (found.name, found.title) == (name, title)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("wireguard", "expected bare, kernel"),
        ("kernel:fast", "expected bare, kernel"),
        ("weft:ruby", "'ruby'"),
        ("weft:rung3", "'rung3'"),
        ("weft:udp_gso=perhaps", "'udp_gso=perhaps'"),
        ("weft:mtu=9000", "'mtu=9000'"),
        ("weft:vteps=0", "'vteps=0'"),
        ("", "found ''"),
    ],
)
def test_what_there_is_not_is_named_beside_what_there_is(name: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        parse_forwarder(name)


def test_a_forced_rung_is_forced_in_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = weft_configuration("weft:python:rung1", tmp_path, monkeypatch)
    assert told["offload"] == {"tap_gso": "on", "udp_gso": "on", "udp_gro": "on", "tunnel_gso": "off"}
    assert told["node"] == {"name": "n1", "underlay": ["192.0.2.1"], "engine": "python"}


def test_a_switch_overrides_the_rung_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = weft_configuration("weft:rung2:udp_gro=off", tmp_path, monkeypatch)
    assert told["offload"] == {"tap_gso": "on", "udp_gso": "on", "udp_gro": "off", "tunnel_gso": "on"}


def test_silent_vteps_stand_beside_the_real_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = weft_configuration("weft:vteps=300", tmp_path, monkeypatch)
    (network,) = cast("list[dict[str, list[str]]]", told["network"])
    peers = network["peers"]
    assert (len(set(peers)), peers[0], peers[-1]) == (301, "192.0.2.2", "198.18.1.44")


def test_overlays_side_by_side_share_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = paper_stage(tmp_path)
    first, second = (parse_forwarder("weft").build(stage, number) for number in (1, 2))
    assert first.device != second.device
    assert first.port != second.port
    assert first.vni != second.vni
    assert first.address(0) != second.address(0)
    assert first.home(0) != second.home(0)
    told = weft_configuration("weft", tmp_path, monkeypatch)
    assert told["network"] == [
        {
            "name": "lab",
            "vni": 107,
            "port": 14796,
            "device": "weft7",
            "address": ["10.20.7.1/24"],
            "peers": ["192.0.2.2"],
            "fdb_max": 32768,
        }
    ]


def test_every_overlay_has_the_mtu_of_the_kernels(tmp_path: Path) -> None:
    stage = paper_stage(tmp_path)
    overlays = [parse_forwarder(name).build(stage, 1) for name in ("kernel", "weft", "ovs")]
    assert {overlay.mtu for overlay in overlays} == {1450}
    assert parse_forwarder("bare").build(stage, 1).mtu == 1500


@pytest.mark.skipif(shutil.which("fastd") is None, reason="not installed: fastd")
def test_each_node_of_fastd_knows_the_others_keys_and_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlay = Fastd(paper_stage(tmp_path, nodes=3), 1)
    monkeypatch.setattr(Overlay, "_start_service", lambda *_: None)
    overlay.start_node(0)
    told = (overlay.home(0) / "fastd.conf").read_text()
    assert 'method "null";' in told
    assert "mode tap;" in told
    assert "mtu 1450;" in told
    assert [f'peer "n{number}"' in told for number in (1, 2, 3)] == [False, True, True]
    secret = next(line for line in told.splitlines() if line.startswith("secret")).split('"')[1]
    assert len(secret) == 64
    assert told.count(secret) == 1


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None if program == "ovs-vsctl" else "/bin/true")
    assert parse_forwarder("ovs").why_not() == "not installed: ovs-vsctl"
