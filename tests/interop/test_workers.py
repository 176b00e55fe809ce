"""Several workers: each has a queue of every device and a socket on every port, and a flow stays on one.

n1  weft, workers = 3 ──── veth ──── n2  kernel VXLAN, or weft with 2
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from support.lab import ROOT, BuildLab
from support.serving import (
    StartLab,
    drops,
    eventually,
    refused,
    view,
)
from support.traffic import echo_over_udp, tcp_counts, transfer, type_in

from bench.lab import checks
from bench.lab.namespaces import Daemon, Lab
from bench.lab.topology import NodeKind, Topology, Underlay, UnderlayKind, segment
from control.operator.build import native_obstacle
from overlay.verdict import DropReason

pytestmark = [*ROOT, pytest.mark.interop]
ON_NATIVE = pytest.mark.skipif(native_obstacle() is not None, reason=f"no native engine: {native_obstacle()}")

N1, N2 = ip_address("10.9.0.1"), ip_address("10.9.0.2")
WORKERS = {"n1": 3, "n2": 2}
TRANSFERS = 8
OCTETS = 4_000_000


def divided(peer: NodeKind, kind: UnderlayKind) -> Topology:
    """Two nodes, those of weft with several workers."""
    made = segment("workers", NodeKind.WEFT, peer, underlay=Underlay(kind))
    nodes = tuple(
        replace(node, settings={"node.workers": WORKERS[node.name]}) if node.kind is NodeKind.WEFT else node
        for node in made.nodes
    )
    return replace(made, nodes=nodes)


def threads(daemon: Daemon) -> list[Path]:
    """Each worker's directory under /proc, in the order they were started."""
    tasks = Path(f"/proc/{daemon.process.pid}/task").iterdir()
    workers = [task for task in tasks if (task / "comm").read_text().strip() == "weft-lane"]
    return sorted(workers, key=lambda task: int(task.name))


def ran(daemon: Daemon) -> list[int]:
    """How long each worker has run, in nanoseconds."""
    return [int((worker / "schedstat").read_text().split()[0]) for worker in threads(daemon)]


@pytest.fixture(params=[NodeKind.KERNEL_VXLAN, NodeKind.WEFT], ids=lambda peer: peer.value)
def lab(request: pytest.FixtureRequest, start_lab: StartLab) -> Lab:
    """Such nodes, running; a kernel peer on a wire, where all is cut and joined here."""
    is_kernel = request.param is NodeKind.KERNEL_VXLAN
    return start_lab(divided(request.param, UnderlayKind.WIRE_LIKE if is_kernel else UnderlayKind.VETH))


@ON_NATIVE
def test_each_carries_some_flows_and_each_flow_is_carried_by_one(lab: Lab) -> None:
    n1, n2 = lab["n1"], lab["n2"]
    assert checks.ping(n1, N2, count=3).complete
    before = {place: tcp_counts(place) for place in (n1, n2)}
    ran_before = ran(lab.daemons["n1"])
    with ThreadPoolExecutor(TRANSFERS) as pool:
        out = [pool.submit(transfer, n1, n2, N2, OCTETS) for _ in range(TRANSFERS)]
        back = [pool.submit(transfer, n2, n1, N1, OCTETS) for _ in range(TRANSFERS)]
        assert all(each.result().is_intact for each in (*out, *back))
    worked = [after - before for before, after in zip(ran_before, ran(lab.daemons["n1"]), strict=True)]
    assert len(worked) == WORKERS["n1"]
    assert sum(each > sum(worked) / 20 for each in worked) > 1, worked
    # Behind a gap of lost segments others wait, too: what counts is what a sender took for overtaken.
    for place, counted in before.items():
        after = tcp_counts(place)
        overtaken = sum(after[name] - counted[name] for name in ("TCPSACKReorder", "TCPTSReorder"))
        assert overtaken < 3
    payloads = [os.urandom(octets) for octets in (0, 1, 1400, 20_000)]
    assert echo_over_udp(n1, n2, N2, payloads) == payloads


@ON_NATIVE
def test_what_is_told_is_the_sum_of_all(lab: Lab) -> None:
    daemon = lab.daemons["n1"]
    assert "3 workers" in view(daemon, "status")["engine_reason"]
    n1, n2 = lab["n1"], lab["n2"]
    assert checks.ping(n1, N2, count=1).complete
    before = drops(daemon)
    with ThreadPoolExecutor(TRANSFERS) as pool:
        assert all(pool.map(lambda _: transfer(n1, n2, N2, OCTETS).is_intact, range(TRANSFERS)))
    keys = [(flow["direction"], flow["src"], flow["dst"]) for flow in view(daemon, "flows")]
    assert len(keys) == len(set(keys))
    (peer,) = view(daemon, "peers")
    assert peer["tx_octets"] > TRANSFERS * OCTETS
    assert drops(daemon) == before


@ON_NATIVE
def test_a_device_deleted_comes_back_with_all_its_queues(start_lab: StartLab) -> None:
    lab = start_lab(divided(NodeKind.WEFT, UnderlayKind.VETH))
    n1 = lab["n1"]
    assert checks.ping(n1, N2, count=1).complete
    type_in(n1, "ip link delete weft0")
    eventually("it is back", lambda: checks.ping(n1, N2, count=1).complete)
    assert "multi_queue" in n1.run(["ip", "-d", "link", "show", "weft0"]).stdout
    with ThreadPoolExecutor(TRANSFERS) as pool:
        assert all(pool.map(lambda _: transfer(n1, lab["n2"], N2, OCTETS).is_intact, range(TRANSFERS)))
    assert drops(lab.daemons["n1"])[DropReason.INNER_MALFORMED] == 0


def test_the_engine_in_python_has_one(build_lab: BuildLab, tmp_path: Path) -> None:
    place = build_lab(segment("workers", NodeKind.BARE, NodeKind.BARE))["n1"]
    flags = ["--vni", "42", "--peer", "192.0.2.2", "--workers", "2", "--engine", "python"]
    status, told = refused(place, tmp_path / "n1", *flags)
    assert status == 2
    assert "--workers: expected 1, found 2: the engine in Python has one thread" in told


@ON_NATIVE
def test_each_stays_on_the_core_it_is_given(start_lab: StartLab) -> None:
    usable = sorted(os.sched_getaffinity(0))
    cores = [usable[-1], *usable[:1]][: len(usable)]
    made = segment("workers", NodeKind.WEFT, NodeKind.KERNEL_VXLAN)
    pinned = replace(made.nodes[0], settings={"node.workers": len(cores), "node.cores": cores})
    lab = start_lab(replace(made, nodes=(pinned, *made.nodes[1:])))
    assert checks.ping(lab["n1"], N2, count=1).complete
    daemon = lab.daemons["n1"]
    told = ", ".join(str(core) for core in cores)
    assert view(daemon, "status")["engine_reason"].endswith(f"pinned to {told}")
    assert [os.sched_getaffinity(int(thread.name)) for thread in threads(daemon)] == [
        {core} for core in cores
    ]
    assert os.sched_getaffinity(daemon.process.pid) == set(usable)


@pytest.mark.parametrize(
    ("engine", "why"),
    [
        pytest.param("native", "expected cores this process may use", marks=ON_NATIVE),
        ("python", "expected none, found 1023: the engine in Python has one thread"),
    ],
)
def test_a_core_that_is_not_to_be_had_is_refused(
    build_lab: BuildLab, tmp_path: Path, engine: str, why: str
) -> None:
    place = build_lab(segment("workers", NodeKind.BARE, NodeKind.BARE))["n1"]
    configuration = f'[node]\ncores = [1023]\nengine = "{engine}"\n[[network]]\nvni = 42\n'
    status, told = refused(place, tmp_path / "n1", "--peer", "192.0.2.2", configuration=configuration)
    assert status == 2
    assert f"node.cores: {why}" in told


@ON_NATIVE
def test_a_device_made_with_one_queue_is_refused_with_what_to_do(build_lab: BuildLab, tmp_path: Path) -> None:
    place = build_lab(segment("workers", NodeKind.BARE, NodeKind.BARE))["n1"]
    type_in(place, "ip tuntap add weft0 mode tap vnet_hdr")
    flags = ["--vni", "42", "--peer", "192.0.2.2", "--workers", "2", "--device", "weft0"]
    flags += ["--underlay", "192.0.2.1"]
    status, told = refused(place, tmp_path / "n1", *flags)
    assert status == 2
    assert "multi_queue" in told
