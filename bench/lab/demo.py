"""`weft demo`: a small overlay, built before one's eyes, measured, shown, and taken away again.

    n1 weft ─┐
    n2 weft ─┼─ underlay ─ n4 kernel VXLAN        one segment, VNI 42
    n3 weft ─┘

For real in network namespaces: as root, or else in a user namespace.  Where neither is to be had, the same
topology runs simulated in one process; that is said, with the reason, in one line.

The order of this file is the order of what happens: choose a stage, perform, report.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Address

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table

from bench.lab import checks
from bench.lab.abilities import why_no_kernel_vxlan, why_no_namespaces, why_no_tap
from bench.lab.checks import Ping
from bench.lab.commands import Echo, LabError
from bench.lab.namespaces import Lab
from bench.lab.simulated import SimulatedLab
from bench.lab.topology import Node, NodeKind, Topology, segment
from bench.lab.unprivileged import continue_in_user_namespace, prepare_inside, why_no_user_namespace
from control.operator.failure import ExitCode, Failure
from overlay.addr import format_mac
from overlay.verdict import DropReason

# Ours
SCHEMA = "weft.demo/1"
WEFT_NODES = 3
DEFAULT_SECONDS = 2
PING_COUNT = 5
PING_INTERVAL_S = 0.02  # only root may ping this often, and we are: here, or in a user namespace
INSIDE_FLAG = "--inside-user-namespace"

Tell = Callable[[str], None]
Pair = tuple[Node, Node]


@dataclass(frozen=True, slots=True)
class PairPing:
    """What came of pinging from one node to another."""

    source: str
    destination: str
    sent: int
    received: int
    rtt_avg_ms: float | None


@dataclass(frozen=True, slots=True)
class TcpLine:
    """What TCP carried from one node to another."""

    source: str
    destination: str
    kinds: str
    gbit_s: float


@dataclass(frozen=True, slots=True)
class Report:
    """All the demo saw, and the data of weft.demo/1.

    Attributes:
        stage: `namespaces`, `user namespace` or `simulated`.
        notes: What could not be shown here, each with its reason.
        fdb: Of the first node, with the keys of weft.fdb/1.
        drops: Node → reason → count, where there were any.
    """

    stage: str
    nodes: dict[str, str]
    pings: list[PairPing]
    notes: list[str] = field(default_factory=list)
    tcp: list[TcpLine] = field(default_factory=list)
    fdb: list[dict[str, object]] = field(default_factory=list)
    drops: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def all_reached(self) -> bool:
        return bool(self.pings) and all(0 < ping.sent == ping.received for ping in self.pings)


@click.command()
@click.option(
    "--seconds",
    type=click.IntRange(1, 60),
    default=DEFAULT_SECONDS,
    show_default=True,
    help="Length of each TCP measurement.",
)
@click.option("--json", "as_json", is_flag=True, help=f"Print the report as JSON ({SCHEMA}).")
@click.option("--verbose", is_flag=True, help="Show every command that builds the lab.")
@click.option("--simulated", is_flag=True, help="In one process and virtual time: no root, no devices.")
@click.option(INSIDE_FLAG, "inside", is_flag=True, hidden=True)
def demo(seconds: int, as_json: bool, verbose: bool, simulated: bool, inside: bool) -> None:
    """Build a small overlay, show that it carries, and take it away again.

    Three weft nodes and a kernel VXLAN node share one segment.  Exits 0 only if every node reaches every
    other.
    """
    why_simulated = "as asked" if simulated else _why_not_for_real(inside)
    if why_simulated is not None and not simulated and not inside and _is_a_privilege(why_simulated):
        why_not_inside = why_no_tap() or why_no_user_namespace()
        if why_not_inside is None:
            flags = [flag for flag, is_set in (("--json", as_json), ("--verbose", verbose)) if is_set]
            continue_in_user_namespace(["demo", "--seconds", str(seconds), *flags, INSIDE_FLAG])
        why_simulated = "; ".join(dict.fromkeys((why_simulated, why_not_inside)))
    messages = Console(stderr=True, highlight=False, emoji=False)
    with _telling(messages, quiet=as_json or verbose) as tell:
        if why_simulated is not None:
            report = perform_simulated(why_simulated, tell)
        else:
            stage = "user namespace" if inside else "namespaces"
            report = _perform_or_fail(stage, seconds, tell, _echo_to(messages) if verbose else None)
    if as_json:
        click.echo(
            json.dumps({"schema": SCHEMA, "data": {**asdict(report), "all_reached": report.all_reached}})
        )
    else:
        show(report, Console(highlight=False, emoji=False))  # a MAC may have :cd: in it
    sys.exit(ExitCode.OK if report.all_reached else ExitCode.CHECK_FAILED)


# ── choosing the stage ──────────────────────────────────────────────────────────────────────────────────


def _why_not_for_real(inside: bool) -> str | None:
    if inside:
        try:
            prepare_inside()
        except LabError as error:
            return str(error)
    return why_no_namespaces() or why_no_tap()


def _is_a_privilege(why_not_here: str) -> bool:
    """Whether a user namespace might help: it gives privileges, and no tools."""
    return not why_not_here.startswith("not installed")


# ── performing ──────────────────────────────────────────────────────────────────────────────────────────


def demo_topology(*, has_kernel_vxlan: bool) -> Topology:
    """Three weft nodes, and a fourth that is the kernel's where it can be."""
    fourth = NodeKind.KERNEL_VXLAN if has_kernel_vxlan else NodeKind.WEFT
    return segment("demo", *[NodeKind.WEFT] * WEFT_NODES, fourth)


def perform(stage: str, topology: Topology, seconds: int, *, tell: Tell, echo: Echo | None = None) -> Report:
    """The demo in network namespaces.

    Raises:
        LabError: A command failed, a daemon did not start.
    """
    notes: list[str] = []
    tell("building the lab")
    with Lab(topology, echo=echo) as lab:
        tell("starting weft on " + ", ".join(node.name for node in topology.of_kind(NodeKind.WEFT)))
        lab.start()
        pairs = list(_ordered_pairs(topology))
        pings: list[Ping] = []
        for source, to in pairs:  # one after the other: at once they would time each other's scheduling
            tell(f"pinging {source.name} → {to.name}")
            place, address = lab[source.name], _overlay_address(to)
            pings.append(checks.ping(place, address, count=PING_COUNT, interval_s=PING_INTERVAL_S))
        tcp: list[TcpLine] = []
        if shutil.which("iperf3") is None:
            notes.append("no TCP measurement: iperf3 is not installed")
        else:
            for source, to in _one_pair_of_each_kind(topology):
                tell(f"TCP for {seconds} s, {_kinds(source, to)}")
                result = checks.tcp(lab[source.name], lab[to.name], _overlay_address(to), seconds=seconds)
                tcp.append(TcpLine(source.name, to.name, _kinds(source, to), result.gbit_s))
        tell("reading the tables")
        fdb = lab.daemons[topology.nodes[0].name].ask_json("fdb")
        drops = {name: daemon.ask_json("drops") for name, daemon in lab.daemons.items()}
        tell("taking it all away again")
    return Report(stage, _nodes(topology), _pair_pings(pairs, pings), notes, tcp, fdb, _occurred(drops))


def perform_simulated(why: str, tell: Tell) -> Report:
    """The demo in one process and virtual time."""
    tell("simulating")
    topology = demo_topology(has_kernel_vxlan=False)
    with SimulatedLab(topology) as lab:
        pairs = list(_ordered_pairs(topology))
        pings = list(lab.ping_all((lab[source.name], _overlay_address(to)) for source, to in pairs))
        first = topology.nodes[0]
        fdb = [
            {
                "mac": format_mac(mac),
                "dst": str(vtep),
                "vni": topology.vni,
                "ifname": first.device,
                "state": "",
                "flags": ["self"],
            }
            for mac, vtep in lab[first.name].fdb()
        ]
        drops = {
            name: {reason.name: count for reason, count in node.drops().items()}
            for name, node in lab.nodes.items()
        }
    notes = [f"simulated in one process, in virtual time: {why}"]
    return Report("simulated", _nodes(topology), _pair_pings(pairs, pings), notes, [], fdb, _occurred(drops))


def _perform_or_fail(stage: str, seconds: int, tell: Tell, echo: Echo | None) -> Report:
    why_no_kernel_node = why_no_kernel_vxlan()
    topology = demo_topology(has_kernel_vxlan=why_no_kernel_node is None)
    try:
        report = perform(stage, topology, seconds, tell=tell, echo=echo)
    except LabError as error:
        raise Failure(
            "the demo's lab did not work",
            why=str(error),
            advice="weft demo --verbose, or weft demo --simulated",
            code=ExitCode.CHECK_FAILED,
        ) from error
    if why_no_kernel_node is not None:
        report.notes.append(f"the fourth node is weft's too: {why_no_kernel_node}")
    return report


def _ordered_pairs(topology: Topology) -> Iterator[Pair]:
    return ((source, to) for source in topology.nodes for to in topology.nodes if source is not to)


def _one_pair_of_each_kind(topology: Topology) -> list[Pair]:
    """The first pair of each: between weft nodes, and both ways between weft and the kernel."""
    found: dict[tuple[NodeKind, NodeKind], Pair] = {}
    for source, to in _ordered_pairs(topology):
        found.setdefault((source.kind, to.kind), (source, to))
    return list(found.values())


def _kinds(source: Node, to: Node) -> str:
    return f"{source.kind.value} → {to.kind.value}"


def _overlay_address(node: Node) -> IPv4Address:
    return next(address.ip for address in node.overlay_addresses if isinstance(address.ip, IPv4Address))


def _nodes(topology: Topology) -> dict[str, str]:
    return {node.name: node.kind.value for node in topology.nodes}


def _pair_pings(pairs: Iterable[Pair], pings: Iterable[Ping]) -> list[PairPing]:
    return [
        PairPing(source.name, to.name, ping.sent, ping.received, ping.rtt_avg_ms)
        for (source, to), ping in zip(pairs, pings, strict=True)
    ]


def _occurred(drops: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    counted = {name: {reason: n for reason, n in reasons.items() if n} for name, reasons in drops.items()}
    return {name: reasons for name, reasons in counted.items() if reasons}


# ── reporting ───────────────────────────────────────────────────────────────────────────────────────────


def show(report: Report, console: Console) -> None:
    """The report for a person."""

    def line(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    for note in report.notes:
        console.print(note, style="yellow", markup=False, soft_wrap=True)
    console.print(_ping_table(report))
    for tcp in report.tcp:
        line(f"TCP  {tcp.kinds:<22} {tcp.source} → {tcp.destination}  {tcp.gbit_s:6.2f} Gb/s")
    line(f"\nFDB of {next(iter(report.nodes))} (weft fdb):")
    for entry in report.fdb:
        line(f"  {entry['mac']} dev {entry['ifname']} dst {entry['dst']} self {entry['state']}".rstrip())
    line("Drops (weft drops):" + ("" if report.drops else " none"))
    for name, reasons in report.drops.items():
        for reason, count in reasons.items():
            line(f"  {name} {reason} {count}: {DropReason[reason].value}")
    reached = sum(0 < ping.sent == ping.received for ping in report.pings)
    style = "green" if report.all_reached else "bold red"
    console.print(f"\n{reached} of {len(report.pings)} pairs reach each other.", style=style)


def _ping_table(report: Report) -> Table:
    table = Table(title="ping: average round trip in ms", title_justify="left")
    table.add_column("from \\ to")
    for name, kind in report.nodes.items():
        table.add_column(f"{name}\n{kind}", justify="right")
    by_pair = {(ping.source, ping.destination): ping for ping in report.pings}
    for source, kind in report.nodes.items():
        cells = [_ping_cell(by_pair.get((source, to))) for to in report.nodes]
        table.add_row(f"{source} {kind}", *cells)
    return table


def _ping_cell(ping: PairPing | None) -> str:
    if ping is None:
        return "·"
    if ping.rtt_avg_ms is None:
        return "[red]lost[/red]"
    loss = "" if ping.sent == ping.received else f" [red]{ping.received}/{ping.sent}[/red]"
    return f"{ping.rtt_avg_ms:.2f}{loss}"


@contextlib.contextmanager
def _telling(console: Console, *, quiet: bool) -> Iterator[Tell]:
    """Shows what is being done while it is done, on a terminal; it is gone afterwards."""
    if quiet or not console.is_terminal:
        yield lambda _what: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("")
        yield lambda what: progress.update(task, description=what)


def _echo_to(console: Console) -> Echo:
    last = ""

    def echo(why: str, command: str) -> None:
        nonlocal last
        if why != last:
            console.print(f"# {why}", style="dim", markup=False)
            last = why
        console.print(command, markup=False, soft_wrap=True)

    return echo
