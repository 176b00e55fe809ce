"""A lab starts weft daemons, waits until they are ready, hears them out, and stops them."""

from __future__ import annotations

import signal
from dataclasses import replace
from ipaddress import ip_address, ip_interface

import pytest
from support.lab import ROOT, BuildLab, leaves_no_trace

from bench.lab import checks
from bench.lab.commands import LabError
from bench.lab.topology import AccessLink, Attachment, NodeKind, segment

pytestmark = ROOT

PAIR = segment("pair", NodeKind.WEFT, NodeKind.KERNEL_VXLAN)
N1, N2 = PAIR.nodes
N1_V4, N2_V4 = ip_address("10.9.0.1"), ip_address("10.9.0.2")


def test_a_weft_node_and_a_kernel_node_reach_each_other(build_lab: BuildLab) -> None:
    lab = build_lab(PAIR)
    lab.start()
    assert checks.ping(lab["n1"], N2_V4).complete
    assert checks.ping(lab["n2"], N1_V4).complete
    assert lab.daemons["n1"].ask_json("status")["node"] == "n1"


def test_a_stopped_daemon_leaves_its_node_as_it_found_it(build_lab: BuildLab) -> None:
    lab = build_lab(PAIR)
    with leaves_no_trace(lab, "n1"):
        lab.start()
        assert "weft0" in lab["n1"].run(["ip", "link"]).stdout
        assert lab.stop() == {"n1": 0}
    assert lab.daemons == {}


def test_a_node_with_settings_is_started_from_a_file(build_lab: BuildLab) -> None:
    narrow = replace(N1, settings={"network.suppress": False, "network.mtu": 1300})
    lab = build_lab(replace(PAIR, nodes=(narrow, N2)))
    lab.start()
    assert checks.ping(lab["n1"], N2_V4).complete
    assert lab.daemons["n1"].ask_json("status")["networks"][0]["mtu"] == 1300


def test_a_daemon_that_refuses_its_flags_is_quoted(build_lab: BuildLab) -> None:
    lab = build_lab(replace(PAIR, nodes=(replace(N1, flags=("--no-such-flag",)), N2)))
    with pytest.raises(LabError, match=r"weft of n1 exited with 2:\n.*no-such-flag"):
        lab.start()


def test_a_killed_daemon_is_started_again_on_what_it_left(build_lab: BuildLab) -> None:
    lab = build_lab(PAIR)
    lab.start()
    killed = lab.daemons["n1"].process
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(5) == -signal.SIGKILL
    lab.start("n1")
    assert checks.ping(lab["n2"], N1_V4).complete


def test_a_host_behind_a_bridged_weft_node_is_on_the_segment(build_lab: BuildLab) -> None:
    access = AccessLink(Attachment.BRIDGED, (ip_interface("10.9.0.77/24"),))
    lab = build_lab(replace(PAIR, nodes=(replace(N1, access=access), N2)))
    lab.start()
    assert checks.ping(lab["n2"], ip_address("10.9.0.77")).complete
    assert checks.ping(lab["n1-host"], N2_V4).complete
