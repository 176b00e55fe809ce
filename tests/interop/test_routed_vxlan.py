"""weft as a routed node beside kernels that were told by hand what Flannel's vxlan backend would tell them.

n1  weft, 10.5.1.0/24 ──┬── n2  ip and bridge, 10.5.2.0/24
                        └── n3  the same, 10.5.3.0/26: a Calico node, by its computed MAC
"""

from __future__ import annotations

import hashlib
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from support.engines import ON_BOTH
from support.lab import ROOT, BuildLab, leaves_no_trace
from support.rungs import RUNGS, injected, offload_table
from support.serving import drops, eventually, serve, view
from support.traffic import checksum_errors, mac_of, transfer, type_in

from bench.lab import checks
from bench.lab.commands import run_command, wait_until, weft_command
from bench.lab.namespaces import Daemon, Lab, Place
from bench.lab.topology import NodeKind, segment
from overlay.addr import format_mac
from overlay.verdict import DropReason

pytestmark = [*ROOT, pytest.mark.interop, ON_BOTH]

BACK_WITHIN_S = 2.0


def calico_mac(node: str) -> str:
    """How Felix computes a node's VTEP MAC: "f", then five octets of the name's hash."""
    return format_mac(b"f" + hashlib.sha1(node.encode(), usedforsecurity=False).digest()[:5])


MACS = {2: "c6:d2:32:6f:8f:44", 3: calico_mac("n3")}


@dataclass(frozen=True, slots=True)
class Plan:
    """Addresses of one IP version, underlay and overlay."""

    version: int

    @property
    def network(self) -> str:
        return "10.5.0.0/16" if self.version == 4 else "fd05::/48"

    def subnet(self, number: int) -> str:
        length = 26 if number == 3 else 24
        return f"10.5.{number}.0/{length}" if self.version == 4 else f"fd05:0:0:{number}::/64"

    def base(self, number: int) -> str:
        return str(ip_network(self.subnet(number)).network_address)

    def underlay(self, number: int) -> str:
        return f"192.0.2.{number}" if self.version == 4 else f"2001:db8::{number}"

    def configuration(self, more: str = "", vteps: dict[int, str] | None = None) -> str:
        peers = [
            f'{{ vtep = "{(vteps or {}).get(number) or self.underlay(number)}", '
            f'subnet = "{self.subnet(number)}", mac = "{MACS[number]}" }}'
            for number in (2, 3)
        ]
        return f"""
[node]
name = "n1"
underlay = ["{self.underlay(1)}"]

[[network]]
name = "pods"
mode = "routed"
device = "flannel.1"
network = "{self.network}"
subnet = "{self.subnet(1)}"
peers = [{", ".join(peers)}]
{more}
"""


@dataclass(frozen=True, slots=True)
class Nodes:
    lab: Lab
    daemon: Daemon
    plan: Plan
    home: Path

    def place(self, number: int) -> Place:
        return self.lab[f"n{number}"]

    def reaches(self, number: int, other: int) -> bool:
        address = ip_address(self.plan.base(other))
        return checks.ping(self.place(number), address, count=1).complete


@pytest.fixture(params=[4, 6])
def nodes(request: pytest.FixtureRequest, build_lab: BuildLab, tmp_path: Path) -> Iterator[Nodes]:
    with running(Plan(request.param), build_lab, tmp_path) as nodes:
        yield nodes


@contextmanager
def running(
    plan: Plan, build_lab: BuildLab, tmp_path: Path, switches: Mapping[str, str] | None = None
) -> Iterator[Nodes]:
    """The three nodes; `switches` are n1's, under `[offload]`."""
    kinds = (NodeKind.BARE, NodeKind.BARE, NodeKind.BARE)
    lab = build_lab(segment("routed", *kinds, underlay_version=plan.version))
    configuration = plan.configuration(offload_table(switches or {}))
    file = tmp_path / "weft.toml"
    file.write_text(configuration)
    for number in (2, 3):
        lab[f"n{number}"].run(["sh", "-euc", printed_for(plan.underlay(number), file)])
    with serve(lab["n1"], tmp_path / "n1", configuration=configuration) as daemon:
        yield Nodes(lab, daemon, plan, tmp_path / "n1")


def printed_for(host: str, file: Path) -> str:
    command = [*weft_command(), "config", "peer", "--kernel", "--config", str(file), "--for", host]
    return run_command(command, why="what the other host must do").stdout


def test_all_pairs_both_directions_with_offloads_on(nodes: Nodes) -> None:
    pairs = [(a, b) for a in (1, 2, 3) for b in (1, 2, 3) if a != b]
    assert all(nodes.reaches(a, b) for a, b in pairs)
    for a, b in pairs:
        sent = transfer(nodes.place(a), nodes.place(b), ip_address(nodes.plan.base(b)), 2_000_000)
        assert sent.is_intact
    lost = {reason: count for reason, count in drops(nodes.daemon).items() if count}
    # Nothing was asked by ARP or solicited, and nothing was flooded: IPv6 tests its own address and tells its
    # groups once, to nobody.
    assert set(lost) <= ({DropReason.NO_VTEP} if nodes.plan.version == 6 else set())
    assert not any(entry["mac"] == "00:00:00:00:00:00" for entry in view(nodes.daemon, "fdb"))


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("version", [4, 6])
def test_every_rung_carries_what_is_routed(
    build_lab: BuildLab, tmp_path: Path, version: int, rung: str
) -> None:
    with running(Plan(version), build_lab, tmp_path, RUNGS[rung]) as nodes:
        n1, n2 = nodes.place(1), nodes.place(2)
        bases = [ip_address(nodes.plan.base(number)) for number in (1, 2)]

        def is_on_the_rung() -> bool:
            before = injected(n1)
            assert transfer(n1, n2, bases[1], 8_000_000).is_intact
            return (injected(n1) > before) is (rung == "super")

        eventually(f"it leaves as {rung}", is_on_the_rung)
        assert transfer(n2, n1, bases[0], 2_000_000).is_intact
        (underlay,) = view(nodes.daemon, "status")["underlays"]
        assert underlay["rungs"]["egress"] == rung
        assert [checksum_errors(place) for place in (n1, n2)] == [{}, {}]


def test_the_routes_are_shown_as_the_kernel_has_them(nodes: Nodes) -> None:
    shown = {route["subnet"]: (route["via"], route["mac"]) for route in view(nodes.daemon, "routes")}
    plan = nodes.plan
    assert shown == {
        plan.subnet(1): (None, None),
        plan.subnet(2): (plan.base(2), MACS[2]),
        plan.subnet(3): (plan.base(3), MACS[3]),
    }
    kernel = nodes.place(1).run(["ip", f"-{plan.version}", "route", "show", "dev", "flannel.1"]).stdout
    for number in (2, 3):
        assert f"{plan.subnet(number)} via {plan.base(number)} proto 119" in kernel
    assert "onlink" in kernel


def test_a_peer_that_moves_and_changes_its_mac_is_followed(nodes: Nodes) -> None:
    plan, mac = nodes.plan, "c6:d2:32:6f:8f:55"
    moved = "192.0.2.22" if plan.version == 4 else "2001:db8::22"
    length, nodad = (24, "") if plan.version == 4 else (64, " nodad")
    told = plan.configuration(vteps={2: moved}).replace(MACS[2], mac)
    file = nodes.home / "weft.toml"
    file.write_text(told)
    type_in(
        nodes.place(2),
        f"ip address add {moved}/{length} dev eth0{nodad}",
        "ip link delete flannel.1",
    )
    nodes.place(2).run(["sh", "-euc", printed_for(moved, file)])
    nodes.daemon.process.send_signal(signal.SIGHUP)
    eventually("n1 reaches n2 where it is now", lambda: nodes.reaches(1, 2))
    assert nodes.reaches(2, 1)
    neighbors = nodes.place(1).run(["ip", "neigh", "show", "dev", "flannel.1"]).stdout
    assert mac in neighbors
    assert MACS[2] not in neighbors
    macs = {entry["mac"]: entry["dst"] for entry in view(nodes.daemon, "fdb")}
    assert macs == {mac: moved, MACS[3]: plan.underlay(3)}


def test_a_peer_that_is_taken_out_leaves_nothing_behind(nodes: Nodes) -> None:
    plan = nodes.plan
    told = plan.configuration()
    cut = told.index(", {")
    (nodes.home / "weft.toml").write_text(told[:cut] + told[told.index("}]", cut) + 1 :])
    nodes.daemon.process.send_signal(signal.SIGHUP)

    def is_gone() -> bool:
        kernel = nodes.place(1).run(["ip", f"-{plan.version}", "route", "show"]).stdout
        neighbors = nodes.place(1).run(["ip", "neigh", "show", "dev", "flannel.1"]).stdout
        return plan.subnet(3) not in kernel and MACS[3] not in neighbors

    eventually("n3 is gone from the kernel", is_gone)
    assert len(view(nodes.daemon, "routes")) == 2
    assert nodes.reaches(1, 2)


@pytest.mark.parametrize(
    "disturbance",
    [
        "ip link delete flannel.1",
        "ip link set flannel.1 down",
        "ip route delete {subnet}",
        "ip neighbor delete {base} dev flannel.1",
    ],
)
def test_what_is_disturbed_is_all_back_within_two_seconds(nodes: Nodes, disturbance: str) -> None:
    n1, plan = nodes.place(1), nodes.plan
    assert nodes.reaches(1, 2)
    mac, before = mac_of(n1, "flannel.1"), kernel_view(nodes)
    for _ in range(2):  # what was restored once must be restorable again
        line = disturbance.format(subnet=plan.subnet(2), base=plan.base(2))
        type_in(n1, line.replace("ip route", f"ip -{plan.version} route"))
        deadline = time.monotonic() + BACK_WITHIN_S
        wait_until(lambda: kernel_view(nodes) == before, "the kernel is told again", deadline=deadline)
        wait_until(lambda: nodes.reaches(2, 1), "n2 reaches n1 again", deadline=deadline)
        assert nodes.reaches(1, 3)
    assert mac_of(n1, "flannel.1") == mac


def kernel_view(nodes: Nodes) -> set[str]:
    """Routes and neighbors through the device, and its address."""
    version = f"-{nodes.plan.version}"
    asked = (
        ["ip", version, "route", "show", "dev", "flannel.1", "proto", "119"],
        ["ip", version, "neigh", "show", "dev", "flannel.1", "nud", "permanent"],
        ["ip", version, "-o", "address", "show", "dev", "flannel.1", "scope", "global"],
    )
    lines = [nodes.place(1).run(each, check=False).stdout.splitlines() for each in asked]
    return {line.split(":", 1)[-1].split("valid_lft")[0] for each in lines for line in each}


def test_a_daemon_at_rest_is_not_woken_by_what_it_programs_itself(nodes: Nodes) -> None:
    assert nodes.reaches(1, 2)
    with nodes.place(1).popen(["timeout", "2", "ip", "monitor", "link", "route"]) as monitor:
        told = monitor.communicate()[0]
    assert "flannel.1" not in told


def test_masquerade_hides_the_overlay_from_elsewhere_and_nothing_is_left(
    build_lab: BuildLab, tmp_path: Path
) -> None:
    plan = Plan(4)
    lab = build_lab(segment("masked", NodeKind.BARE, NodeKind.BARE, NodeKind.BARE))
    n1, n2, n3 = (lab[f"n{number}"] for number in (1, 2, 3))
    file = tmp_path / "weft.toml"
    file.write_text(plan.configuration())
    n2.run(["sh", "-euc", printed_for(plan.underlay(2), file)])
    type_in(n1, "sysctl -qw net.ipv4.ip_forward=1")
    type_in(n2, "ip route add 192.0.2.3/32 via 10.5.1.0 dev flannel.1 onlink src 10.5.2.0")
    with (
        leaves_no_trace(lab, "n1"),
        serve(n1, tmp_path / "n1", configuration=plan.configuration("masquerade = true")),
    ):
        assert checks.ping(n2, ip_address("10.5.1.0"), count=1).complete
        # n3 knows no way into the overlay: what reaches it must come from n1's own address.
        assert checks.ping(n2, ip_address("192.0.2.3"), count=1).complete
        assert n3.run(["ip", "route", "get", "10.5.2.0"], check=False).returncode
