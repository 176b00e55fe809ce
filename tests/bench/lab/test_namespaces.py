"""Labs are built, carry, and go without a trace: after success, failure, Ctrl-C, SIGTERM and kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest
from support.lab import ROOT, BuildLab, leaks, leaves_no_trace, skip_unless_possible

from bench.lab import checks
from bench.lab.commands import LabError, weft_environment
from bench.lab.namespaces import Lab, namespaces, sweep
from bench.lab.topology import AccessLink, Attachment, KernelVxlan, NodeKind, Underlay, UnderlayKind, segment

pytestmark = ROOT

KERNEL, BARE = NodeKind.KERNEL_VXLAN, NodeKind.BARE
PAIR = segment("pair", KERNEL, KERNEL)
N2_V4, N2_V6 = ip_address("10.9.0.2"), ip_address("fd09::2")


@pytest.mark.parametrize("kind", UnderlayKind)
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("hub", [False, True])
def test_kernel_nodes_reach_each_other(
    build_lab: BuildLab, kind: UnderlayKind, version: int, hub: bool
) -> None:
    lab = build_lab(
        segment("pair", KERNEL, KERNEL, underlay=Underlay(kind, hub=hub), underlay_version=version)
    )
    for address in (N2_V4, N2_V6):
        assert checks.ping(lab["n1"], address).complete


def test_echoes_of_64_kb_cross_in_fragments(build_lab: BuildLab) -> None:
    lab = build_lab(PAIR)
    assert checks.ping(lab["n1"], N2_V4, size=checks.IPV4_LARGEST_ECHO).complete


def test_all_ordered_pairs_are_pinged_at_once(build_lab: BuildLab) -> None:
    lab = build_lab(segment("three", KERNEL, KERNEL, BARE))
    nobody = ip_address("10.9.0.99")
    reached, unreached = checks.ping_all([(lab["n1"], N2_V4), (lab["n1"], nobody)])
    assert reached.complete
    assert unreached.received == 0


def test_a_kernel_node_without_a_flood_list_is_not_reached(build_lab: BuildLab) -> None:
    deaf = [replace(node, vxlan=KernelVxlan(flood=())) for node in PAIR.nodes]
    lab = build_lab(replace(PAIR, nodes=tuple(deaf)))
    assert checks.ping(lab["n1"], N2_V4, count=1).received == 0


def test_tcp_and_udp_are_measured(build_lab: BuildLab) -> None:
    lab = build_lab(PAIR)
    assert checks.tcp(lab["n1"], lab["n2"], N2_V4, seconds=1).gbit_s > 0
    carried = checks.udp(lab["n1"], lab["n2"], N2_V4, seconds=1, length=64, rate="1M")
    assert carried.sent_packets == pytest.approx(1e6 / 8 / 64, rel=0.1)


def test_a_smaller_link_behind_a_node_answers_with_its_mtu(build_lab: BuildLab) -> None:
    access = AccessLink(
        Attachment.ROUTED, (ip_interface("10.77.0.2/24"),), (ip_interface("10.77.0.1/24"),), mtu=1300
    )
    lab = build_lab(replace(PAIR, nodes=(PAIR.nodes[0], replace(PAIR.nodes[1], access=access))))
    host = ip_address("10.77.0.2")
    assert checks.ping(lab["n1"], host, size=1200, options=("-M", "do")).complete
    refused = lab["n1"].run(["ping", "-c1", "-W1", "-M", "do", "-s", "1400", str(host)], check=False)
    assert "mtu = 1300" in refused.stdout


def test_a_host_on_a_bridge_is_on_the_segment(build_lab: BuildLab) -> None:
    access = AccessLink(Attachment.BRIDGED, (ip_interface("10.9.0.77/24"),))
    lab = build_lab(replace(PAIR, nodes=(PAIR.nodes[0], replace(PAIR.nodes[1], access=access))))
    assert checks.ping(lab["n1"], ip_address("10.9.0.77")).complete
    assert checks.ping(lab["n2-host"], ip_address("10.9.0.1")).complete
    assert checks.ping(lab["n1"], N2_V4).complete


def test_a_wire_like_underlay_has_its_offloads_off(build_lab: BuildLab) -> None:
    lab = build_lab(segment("wire", BARE, BARE, underlay=Underlay(UnderlayKind.WIRE_LIKE)))
    for name in ("n1", "n2"):
        features = lab[name].run(["ethtool", "-k", "eth0"]).stdout
        assert "tcp-segmentation-offload: off" in features
        assert "tx-udp_tnl-segmentation: off" in features
        assert "generic-receive-offload: on" in features


def test_every_command_is_told_before_it_runs() -> None:
    skip_unless_possible(PAIR)
    told: list[tuple[str, str]] = []
    with Lab(PAIR, echo=lambda why, command: told.append((why, command))) as lab:
        assert len(told) == len(lab.plan.build)
        assert told[0] == ("n1: a network namespace of its own", f"ip netns add {lab.prefix}-n1")


def test_a_lab_is_gone_after_an_exception() -> None:
    skip_unless_possible(PAIR)
    lab = Lab(PAIR)

    def fail_inside() -> None:
        with lab:
            lab["n1"].popen(["sleep", "1000"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert leaks(lab) == []


def test_a_lab_that_could_not_be_built_is_gone_and_says_which_command_failed() -> None:
    skip_unless_possible(PAIR)
    twice = PAIR.nodes[1].overlay_addresses[:1] * 2
    lab = Lab(replace(PAIR, nodes=(PAIR.nodes[0], replace(PAIR.nodes[1], overlay_addresses=twice))))
    with pytest.raises(LabError, match=r"addr add 10\.9\.0\.2/24 dev vxlan0.*exit 2"), lab:
        pytest.fail("the lab was built all the same")
    assert leaks(lab) == []


def test_a_process_that_ignores_sigterm_does_not_keep_a_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_unless_possible(PAIR)
    monkeypatch.setattr("bench.lab.commands.STOP_TIMEOUT_S", 0.2)
    with Lab(PAIR) as lab:
        stubborn = lab["n1"].popen(["sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.05; done"])
        assert stubborn.stdout is not None
        assert stubborn.stdout.readline() == "deaf\n"
    assert stubborn.returncode == -signal.SIGKILL
    assert leaks(lab) == []


def test_a_device_left_in_a_namespace_is_seen_as_a_trace(build_lab: BuildLab) -> None:
    lab = build_lab(PAIR)
    with pytest.raises(pytest.fail.Exception, match=r"n1: left behind: .*left0"), leaves_no_trace(lab, "n1"):
        lab["n1"].run(["ip", "link", "add", "left0", "type", "bridge"])
    with leaves_no_trace(lab, "n1"):
        lab["n1"].run(["ip", "link", "add", "gone0", "type", "bridge"])
        lab["n1"].run(["ip", "link", "delete", "gone0"])


# ── labs of other processes ─────────────────────────────────────────────────────────────────────────────

MAKER = """
import signal
from bench.lab.namespaces import Lab
from bench.lab.topology import NodeKind, segment

with Lab(segment("pair", NodeKind.KERNEL_VXLAN, NodeKind.BARE)) as lab:
    sleeper = lab["n1"].popen(["sleep", "1000"])
    print(sleeper.pid, flush=True)
    signal.pause()
"""


@contextmanager
def another_process_with_a_lab() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that has built a lab and waits, and the process it started in it."""
    maker = subprocess.Popen(
        [sys.executable, "-c", MAKER],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=weft_environment(),
    )
    try:
        assert maker.stdout is not None
        yield maker, int(maker.stdout.readline())
    finally:
        maker.kill()
        maker.communicate()


def traces_of(maker: subprocess.Popen[str]) -> list[str]:
    directories = [path.name for path in Path(tempfile.gettempdir()).glob(f"weft-{maker.pid}-*")]
    return namespaces(f"weft-{maker.pid}-") + directories


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 128 + 15)])
def test_a_lab_is_gone_after_a_signal(number: signal.Signals, status: int) -> None:
    skip_unless_possible(PAIR)
    with another_process_with_a_lab() as (maker, sleeper):
        assert len(traces_of(maker)) == 3
        maker.send_signal(number)
        assert maker.wait(timeout=20) == status
        assert traces_of(maker) == []
        assert not Path(f"/proc/{sleeper}").exists()


def test_a_lab_whose_maker_was_killed_is_swept_away_by_the_next() -> None:
    skip_unless_possible(PAIR)
    with another_process_with_a_lab() as (maker, sleeper):
        maker.kill()
        maker.wait()
        assert len(traces_of(maker)) == 3
        with Lab(PAIR):
            assert traces_of(maker) == []
        assert _is_no_longer_running(sleeper)


def test_a_sweep_spares_the_labs_of_the_living() -> None:
    skip_unless_possible(PAIR)
    with another_process_with_a_lab() as (maker, sleeper):
        sweep()
        assert len(traces_of(maker)) == 3
        os.kill(sleeper, 0)


def _is_no_longer_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
