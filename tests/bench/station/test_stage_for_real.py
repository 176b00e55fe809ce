"""Between two places that only share a directory, as containers do: measured, and left as they were found."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.lab import ROOT

from bench.lab.abilities import why_no_kernel_vxlan, why_no_namespaces, why_no_tap
from bench.lab.commands import wait_until, weft_command, weft_environment
from bench.lab.namespaces import Lab
from bench.lab.topology import NodeKind, segment

pytestmark = ROOT

END_WITHIN_S = 50
FORWARDERS = ("kernel", "weft:python", "nodes", "ovs")


@pytest.fixture
def lab() -> Iterator[Lab]:
    for why in (why_no_namespaces(), why_no_tap(), why_no_kernel_vxlan()):
        if why is not None:
            pytest.skip(why)
    with Lab(segment("stations", NodeKind.BARE, NodeKind.BARE)) as built:
        yield built


def start(lab: Lab, shared: Path, *arguments: str) -> subprocess.Popen[str]:
    """A bench in the first place, with a station serving in the second."""
    far = shared / "far2.sock"
    lab["n2"].popen([*weft_command(), "bench", "serve", str(far)], env=weft_environment())
    deadline = time.monotonic() + END_WITHIN_S
    wait_until(far.exists, "the station serves", deadline=deadline)
    argv = [*weft_command(), "bench", "--underlay", "compose", "--far", str(far), "--steal", "100"]
    argv += ["--out", str(shared / "results"), *arguments]
    return lab["n1"].popen(argv, env=weft_environment(), stderr=subprocess.PIPE)


def devices(lab: Lab) -> list[set[str]]:
    """What each place has besides its underlay."""
    listed = (json.loads(lab[name].run(["ip", "-j", "link"]).stdout) for name in ("n1", "n2"))
    return [{link["ifname"] for link in links} - {"lo", "eth0"} for links in listed]


def test_every_forwarder_is_measured_or_says_why_not(lab: Lab, tmp_path: Path) -> None:
    forwarders = [word for name in FORWARDERS for word in ("--forwarder", name)]
    scenarios = ["--scenario", "udp-64", "--scenario", "daemon"]
    process = start(lab, tmp_path, *forwarders, *scenarios, "--pairs", "1", "--seconds", "1", "--json")
    said, complained = process.communicate(timeout=END_WITHIN_S)
    assert process.returncode == 0, complained
    data = json.loads(said)["data"]
    why = {entry["name"]: entry["why"] for entry in data["entries"]}
    assert why["kernel"] is why["weft:python"] is None
    assert "weft0" in why["nodes"]
    assert why["ovs"]
    (weft,) = (run["measures"] for run in data["runs"] if run["forwarder"] == "weft:python")
    assert weft["kpps"] > 0
    assert weft["daemon_cpu_s"] > 0  # of both sides: the far one's is asked for at the station
    assert "needs 3 nodes" in data["stages"]["compose, 3 nodes"]["why"]
    assert devices(lab) == [set(), set()]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("bench-")] == []


def test_interrupted_it_takes_down_what_it_made_in_both_places(lab: Lab, tmp_path: Path) -> None:
    arguments = ["--forwarder", "kernel", "--forwarder", "weft:python", "--scenario", "udp-64"]
    process = start(lab, tmp_path, *arguments, "--pairs", "1", "--seconds", "40")
    deadline = time.monotonic() + END_WITHIN_S
    wait_until(lambda: all(len(found) >= 2 for found in devices(lab)), "overlays are up", deadline=deadline)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=END_WITHIN_S)
    assert process.returncode == 128 + signal.SIGTERM
    assert "**Partial" in said
    assert devices(lab) == [set(), set()]
