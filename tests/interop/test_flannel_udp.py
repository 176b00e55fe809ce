"""weft beside a node of Flannel's udp backend that was written from the format alone.

n1  weft, 10.5.1.0/24 ──── n2  flannel_node, 10.5.2.0/24
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest
from support import flannel_node
from support.engines import ON_BOTH
from support.lab import ROOT, BuildLab
from support.netns import kernel_state
from support.packets import packet
from support.rungs import RUNGS, injected, offload_table
from support.serving import PATIENCE_S, drops, eventually, serve, view
from support.traffic import checksum_errors, open_in, transfer, type_in

from bench.lab import checks
from bench.lab.commands import ends_with_us, run_command, wait_until, weft_command
from bench.lab.namespaces import Daemon, Lab, Place
from bench.lab.topology import NodeKind, Underlay, UnderlayKind, segment
from overlay.verdict import DropReason

pytestmark = [*ROOT, pytest.mark.interop, ON_BOTH]

OURS, THEIRS = IPv4Address("10.5.1.0"), IPv4Address("10.5.2.0")
LEASES = ["--lease", "10.5.1.0/24=192.0.2.1", "--lease", "10.5.2.0/24=192.0.2.2"]
BACK_WITHIN_S = 2.0


def configuration(tmp_path: Path, more: str = "", *, workers: int = 1) -> str:
    return f"""
[node]
name = "n1"
underlay = ["192.0.2.1"]
workers = {workers}

[[network]]
name = "pods"
mode = "routed"
encap = "flannel-udp"
device = "flannel0"
network = "10.5.0.0/16"
subnet = "10.5.1.0/24"
subnet_file = "{tmp_path}/subnet.env"
peers = [{{ vtep = "192.0.2.2", subnet = "10.5.2.0/24" }}]
{more}
"""


def start_node(place: Place, *argv: str) -> None:
    """A node of Flannel's, ready."""
    command = [*ends_with_us(), sys.executable, flannel_node.__file__, *argv]
    process = place.popen(command)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


@dataclass(frozen=True, slots=True)
class Pair:
    lab: Lab
    daemon: Daemon

    @property
    def n1(self) -> Place:
        return self.lab["n1"]

    @property
    def n2(self) -> Place:
        return self.lab["n2"]


@pytest.fixture
def pair(build_lab: BuildLab, tmp_path: Path) -> Iterator[Pair]:
    with running(build_lab, tmp_path) as pair:
        yield pair


@contextmanager
def running(
    build_lab: BuildLab,
    tmp_path: Path,
    more: str = "",
    kind: UnderlayKind = UnderlayKind.VETH,
    *,
    workers: int = 1,
) -> Iterator[Pair]:
    """Both nodes; `more` is added to weft's configuration."""
    lab = build_lab(segment("flannel", NodeKind.BARE, NodeKind.BARE, underlay=Underlay(kind)))
    start_node(lab["n2"], "--public-ip", "192.0.2.2", "--network", "10.5.0.0/16", *LEASES)
    told = configuration(tmp_path, more, workers=workers)
    with serve(lab["n1"], tmp_path / "n1", configuration=told) as daemon:
        yield Pair(lab, daemon)


def reaches(place: Place, address: IPv4Address) -> bool:
    return checks.ping(place, address, count=1).complete


def test_ping_and_tcp_both_ways(pair: Pair) -> None:
    assert reaches(pair.n1, THEIRS)
    assert reaches(pair.n2, OURS)
    assert transfer(pair.n1, pair.n2, THEIRS, 2_000_000).is_intact
    assert transfer(pair.n2, pair.n1, OURS, 2_000_000).is_intact
    assert not {reason: count for reason, count in drops(pair.daemon).items() if count}


def test_several_workers_share_tun_and_port(build_lab: BuildLab, tmp_path: Path, engine: str) -> None:
    if engine == "python":
        pytest.skip("the engine in Python has one thread")
    with running(build_lab, tmp_path, workers=3) as pair:
        assert "3 workers" in view(pair.daemon, "status")["engine_reason"]
        assert "multi_queue" in pair.n1.run(["ip", "-d", "link", "show", "flannel0"]).stdout
        with ThreadPoolExecutor(8) as pool:
            out = [pool.submit(transfer, pair.n1, pair.n2, THEIRS, 2_000_000) for _ in range(4)]
            back = [pool.submit(transfer, pair.n2, pair.n1, OURS, 2_000_000) for _ in range(4)]
            assert all(each.result().is_intact for each in (*out, *back))
        assert not {reason: count for reason, count in drops(pair.daemon).items() if count}


@pytest.mark.parametrize("kind", UnderlayKind, ids=lambda kind: kind.value)
@pytest.mark.parametrize("rung", RUNGS)
def test_every_rung_carries_bare_packets(
    build_lab: BuildLab, tmp_path: Path, rung: str, kind: UnderlayKind
) -> None:
    with running(build_lab, tmp_path, offload_table(RUNGS[rung]), kind) as pair:
        there, back = (pair.n1, pair.n2, THEIRS), (pair.n2, pair.n1, OURS)
        for source, sink, address in (there, back, there):  # a door that was asked for would be open by then
            assert transfer(source, sink, address, 3_000_000).is_intact
        assert injected(pair.n1) == 0  # no kernel cuts bare packets in a tunnel: they keep to the sockets
        assert [checksum_errors(place) for place in (pair.n1, pair.n2)] == [{}, {}]
        assert not {reason: count for reason, count in drops(pair.daemon).items() if count}


def test_a_crossing_costs_two_of_the_time_to_live_each_way(pair: Pair) -> None:
    assert " ttl=62 " in pair.n1.run(["ping", "-c1", "-t64", str(THEIRS)]).stdout


def hops(place: Place, address: IPv4Address) -> list[str]:
    told = place.run(["traceroute", "-n", "-q1", "-w1", "-m6", str(address)]).stdout
    return [line.split()[1] for line in told.splitlines()[1:]]


def test_traceroute_shows_the_hops_and_where_flannel_is_silent(pair: Pair) -> None:
    assert hops(pair.n1, THEIRS) == ["10.5.1.0", "*", "10.5.2.0"]
    assert hops(pair.n2, OURS) == ["*", "10.5.1.0", "10.5.1.0"]
    assert drops(pair.daemon)[DropReason.TTL_EXPIRED] == 2


def test_the_three_icmp_errors_come_back(pair: Pair) -> None:
    def told(*options: str) -> str:
        return pair.n1.run(["ping", "-c1", "-W1", *options], check=False).stdout

    assert "From 10.5.1.0 icmp_seq=1 Destination Net Unreachable" in told("10.5.99.1")
    assert "From 10.5.1.0 icmp_seq=1 Time to live exceeded" in told("-t1", str(THEIRS))
    assert reaches(pair.n1, THEIRS)
    type_in(pair.n1, "ip route add 192.0.2.2/32 dev eth0 mtu 1300")
    assert "(mtu = 1272)" in told("-Mdo", "-s1400", str(THEIRS))
    counted = drops(pair.daemon)
    reasons = (DropReason.NO_ROUTE, DropReason.TTL_EXPIRED, DropReason.MTU_EXCEEDED)
    assert [counted[reason] for reason in reasons] == [1, 1, 1]
    assert transfer(pair.n1, pair.n2, THEIRS, 500_000).is_intact


def test_an_answer_of_ours_reaches_a_container_behind_us(pair: Pair) -> None:
    type_in(
        pair.n1,
        "ip link add pod type veth peer name eth1",
        "ip address add 10.5.1.1/24 dev pod",
        "ip link set pod up",
        "sysctl -qw net.ipv4.ip_forward=1",
    )
    pod = f"{pair.n1.namespace}-pod"
    try:
        run_command(["ip", "netns", "add", pod], why="a container")
        type_in(pair.n1, f"ip link set eth1 netns {pod}")
        for line in (
            "address add 10.5.1.7/24 dev eth1",
            "link set eth1 up",
            "route add default via 10.5.1.1",
        ):
            run_command(["ip", "-n", pod, *line.split()], why="its network")
        inside = ["ip", "netns", "exec", pod]
        run_command([*inside, "ping", "-c1", "-W2", str(THEIRS)], why="across")
        traced = run_command([*inside, "traceroute", "-n", "-q1", "-w1", str(THEIRS)], why="traced").stdout
        assert [line.split()[1] for line in traced.splitlines()[1:]] == [
            "10.5.1.1",
            "10.5.1.0",
            "*",
            "10.5.2.0",
        ]
        lost = run_command([*inside, "ping", "-c1", "-W1", "10.5.99.1"], why="nowhere", check=False).stdout
        assert "Destination Net Unreachable" in lost
    finally:
        run_command(["ip", "netns", "delete", pod], why="the container goes", check=False)


def test_a_node_with_a_smaller_mtu_gets_nothing_it_would_cut(build_lab: BuildLab, tmp_path: Path) -> None:
    lab = build_lab(segment("narrow", NodeKind.BARE, NodeKind.BARE))
    start_node(lab["n2"], "--public-ip", "192.0.2.2", "--network", "10.5.0.0/16", "--mtu", "1372", *LEASES)
    told = configuration(tmp_path, "mtu = 1372")
    with serve(lab["n1"], tmp_path / "n1", configuration=told) as daemon:
        assert checks.ping(lab["n1"], THEIRS, count=1, size=1344, options=("-M", "do")).complete
        assert checks.ping(lab["n1"], THEIRS, count=1, size=4000).complete  # the kernel fragments it
        assert transfer(lab["n1"], lab["n2"], THEIRS, 1_000_000).is_intact
        assert transfer(lab["n2"], lab["n1"], OURS, 1_000_000).is_intact
        assert "FLANNEL_MTU=1372\n" in (tmp_path / "subnet.env").read_text()
        assert not {reason: count for reason, count in drops(daemon).items() if count}


def test_the_mtu_follows_the_underlays_and_subnet_env_follows_it(pair: Pair, tmp_path: Path) -> None:
    file = tmp_path / "subnet.env"
    assert "FLANNEL_MTU=1472\n" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o644
    type_in(pair.n1, "ip link set eth0 mtu 1400")
    eventually("subnet.env says so", lambda: "FLANNEL_MTU=1372\n" in file.read_text())
    told = f'. {file}; echo "--bip=$FLANNEL_SUBNET --mtu=$FLANNEL_MTU"'
    assert pair.n1.run(["sh", "-euc", told]).stdout == "--bip=10.5.1.1/24 --mtu=1372\n"
    assert checks.ping(pair.n1, THEIRS, count=1, size=1344, options=("-M", "do")).complete


def test_what_comes_cut_off_spoofed_or_malformed_has_a_name(pair: Pair) -> None:
    sound = packet(IPv4Address("10.5.2.7"), IPv4Address("10.5.1.0"))
    bad = {
        DropReason.TRUNCATED: sound[:-1],
        DropReason.INNER_MALFORMED: sound[:10] + b"\0\0" + sound[12:],
        DropReason.SPOOFED_SOURCE: packet(IPv4Address("10.5.1.0"), IPv4Address("10.5.1.7")),
        DropReason.SPLIT_HORIZON: packet(IPv4Address("10.5.2.7"), IPv4Address("10.5.2.9")),
        DropReason.TTL_EXPIRED: packet(IPv4Address("10.5.2.7"), IPv4Address("10.5.1.7"), ttl=0),
    }
    with open_in(pair.n2, ip_address("192.0.2.2"), socket.SOCK_DGRAM) as stranger:
        for octets in bad.values():
            stranger.sendto(octets, ("192.0.2.1", 8285))
    eventually("each is counted", lambda: all(drops(pair.daemon)[reason] == 1 for reason in bad))


def test_a_scan_of_the_network_leaves_a_flow_for_each_subnet(pair: Pair) -> None:
    with open_in(pair.n1, OURS, socket.SOCK_DGRAM) as scanner:
        scanner.setblocking(False)

        def is_over() -> bool:
            """One more scan: of the first, what waits for the first verdict has little room."""
            for third in range(256):
                for last in (1, 99, 254):
                    with contextlib.suppress(OSError):  # what is unreachable was said so before
                        scanner.sendto(b"?", (f"10.5.{third}.{last}", 9))
            return drops(pair.daemon)[DropReason.NO_ROUTE] > 200

        eventually("the scan is over", is_over)
    egress = [flow for flow in view(pair.daemon, "flows") if flow["direction"] == "egress"]
    assert {flow["dst"] for flow in egress} <= {"10.5.1.0/24", "10.5.2.0/24", ""}
    assert len(egress) <= 3


@pytest.mark.parametrize("disturbance", ["ip link delete flannel0", "ip link set flannel0 down"])
def test_a_device_that_goes_is_back_with_everything_within_two_seconds(pair: Pair, disturbance: str) -> None:
    assert reaches(pair.n1, THEIRS)
    before = route_lines(pair.n1)
    type_in(pair.n1, disturbance)
    deadline = time.monotonic() + BACK_WITHIN_S
    wait_until(lambda: reaches(pair.n2, OURS), "n2 reaches n1 again", deadline=deadline)
    assert reaches(pair.n1, THEIRS)
    assert route_lines(pair.n1) == before


def route_lines(place: Place) -> set[str]:
    return set(place.run(["ip", "-4", "route", "show"]).stdout.splitlines())


def test_nothing_is_left_after_an_exit_nor_after_a_kill_and_a_restart(
    build_lab: BuildLab, tmp_path: Path
) -> None:
    lab = build_lab(segment("trace", NodeKind.BARE, NodeKind.BARE))
    n1 = lab["n1"]
    told = configuration(tmp_path, "masquerade = true")
    type_in(n1, "ip tuntap add flannel0 mode tun vnet_hdr", "ip link set flannel0 up")  # it outlives its user
    type_in(n1, "ip link set flannel0 mtu 1472", "ip link set flannel0 addrgenmode none")
    before = programmed(n1)
    with serve(n1, tmp_path / "n1", configuration=told) as daemon:
        assert any("weft-masquerade-flannel0" in line for line in kernel_state(n1))
        daemon.process.send_signal(signal.SIGKILL)
        daemon.process.wait(PATIENCE_S)
    assert programmed(n1) - before  # the address, the route and the rules of who was killed
    with serve(n1, tmp_path / "n1", configuration=configuration(tmp_path)):
        assert not any("masquerade" in line for line in programmed(n1))
    assert programmed(n1) == before


def programmed(place: Place) -> frozenset[str]:
    """Addresses, routes and rules: not what the kernel makes of a link by itself."""
    kinds = ("ip -o addr", "ip -4 route", "ip neigh", "nft")
    return frozenset(line for line in kernel_state(place) if line.startswith(kinds))


def test_what_is_printed_for_flanneld_makes_it_a_node(build_lab: BuildLab, tmp_path: Path) -> None:
    lab = build_lab(segment("printed", NodeKind.BARE, NodeKind.BARE))
    tools = stock_tools(tmp_path)
    file = tmp_path / "weft.toml"
    file.write_text(configuration(tmp_path))
    command = [*weft_command(), "config", "peer", "--flannel", "--config", str(file), "--for", "192.0.2.2"]
    script = run_command(command, why="what the other host must do").stdout
    with serve(lab["n1"], tmp_path / "n1", configuration=configuration(tmp_path)):
        env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
        process = lab["n2"].popen([*ends_with_us(), "sh", "-euc", script], env=env)
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(4)] == ["OK\n"] * 3 + ["ready\n"]
        assert reaches(lab["n1"], THEIRS)
        assert reaches(lab["n2"], OURS)


def stock_tools(tmp_path: Path) -> Path:
    """What stands for etcd and flanneld: keys are files, and the daemon is our node."""
    tools, store = tmp_path / "bin", tmp_path / "etcd"
    tools.mkdir()
    etcdctl = '#!/bin/sh\n[ "$1" = put ] || exit 2\nmkdir -p "$(dirname "{0}$2")"\n'
    etcdctl += 'printf %s "$3" > "{0}$2"\necho OK\n'
    (tools / "etcdctl").write_text(etcdctl.format(store))
    flanneld = f'#!/bin/sh\nexec {sys.executable} {flannel_node.__file__} --store {store} "$@"\n'
    (tools / "flanneld").write_text(flanneld)
    for tool in tools.iterdir():
        tool.chmod(0o755)
    return tools
