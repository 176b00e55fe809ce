"""`weft bench`: measures overlays side by side; what is done with records afterwards is in `recordcommands`.

    weft bench                                  the quick suite: three minutes
    weft bench --suite full                     everything, both underlays: hours
    weft bench --scenario tcp-1 --forwarder kernel --forwarder weft:python --pairs 10
    weft bench --underlay compose --far SOCKET  between containers; `weft bench serve SOCKET` is the far end

Interrupted, it takes everything down, and keeps and prints what it has, marked as partial.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.forwarders import RUNGS, parse_forwarder
from bench.lab.abilities import why_no_namespaces
from bench.lab.commands import LabError
from bench.lab.topology import IPV6_MINIMUM_MTU, UNDERLAY_MTU, UnderlayKind
from bench.machine import describe_machine
from bench.meter import STEAL_MOST
from bench.plots import draw, why_no_plots
from bench.record import SCHEMA, Record, as_document
from bench.recordcommands import compare, report, serve, writing
from bench.report import render
from bench.results import PLOTS, Results
from bench.runner import Plan, Watch, perform, utc_now
from bench.scenarios import PEERS, SCENARIOS, parse_scenario
from bench.stage import Ground, lab_ground
from bench.station.stage import COMPOSE, compose_ground, why_no_stations
from control.operator.cli.output import duration
from control.operator.failure import ExitCode, Failure

# Ours
BOTH = "both"
LARGEST_MTU = 65535
REASONS_SHOWN = 5
RESULTS = "results"
LINE_EVERY_S = 15.0

Parsed = TypeVar("Parsed")


@dataclass(frozen=True, slots=True)
class Suite:
    """What is run where nothing else is asked for."""

    scenarios: tuple[str, ...]
    forwarders: tuple[str, ...]
    pairs: int
    seconds: float
    kinds: tuple[UnderlayKind, ...] = (UnderlayKind.VETH,)
    mtus: tuple[int, ...] = (UNDERLAY_MTU,)


EVERY_PAIR = (
    "tcp-1",
    "tcp-1-reverse",
    "tcp-4",
    "tcp-both-ways",
    "udp-64",
    "udp-512",
    "udp-1400",
    "rate-64",
    "rr",
)
SUITES = {
    "quick": Suite(
        ("tcp-1", "udp-64", "rr"),
        ("bare", "kernel", "weft:python", "weft:native", "fastd"),
        pairs=3,
        seconds=1.5,
    ),
    "smoke": Suite(("tcp-1", "udp-64", "rr"), ("bare", "kernel", "weft"), pairs=1, seconds=1),
    "rungs": Suite(
        ("tcp-1", "udp-64", "rr"),
        ("kernel", *(f"weft:{engine}:{rung}" for engine in ("python", "native") for rung in RUNGS)),
        pairs=3,
        seconds=1.5,
    ),
    "scaling": Suite(
        (
            *("tcp-1", "tcp-4", "tcp-16", "udp-64", "udp-512", "udp-1400", "churn", "macs"),
            *(f"{kind}-{count}" for kind in ("peers", "broadcast") for count in PEERS),
        ),
        ("kernel", "weft:python", "weft:native"),
        pairs=3,
        seconds=1,
    ),
    "mtu": Suite(
        ("tcp-1", "udp-64"),
        ("kernel", "weft:python", "weft:native"),
        pairs=3,
        seconds=1,
        mtus=(1280, 1500, 9000),
    ),
    "release": Suite(
        ("tcp-1", "udp-64", "udp-1400", "rate-64", "rr", "tcp-4", "tcp-both-ways"),
        ("bare", "kernel", "weft:python", "weft:python:rung1", "weft:native", "fastd"),
        pairs=10,
        seconds=1,
        kinds=tuple(UnderlayKind),
    ),
    "full": Suite(
        (*EVERY_PAIR, "churn", "macs", "daemon"),
        (
            *("bare", "kernel", "kernel:noudpcsum"),
            *("weft:python", "weft:python:rung0", "weft:python:rung1", "weft:python:rung2"),
            *("weft:native", "weft:native:rung0", "weft:native:rung1", "weft:native:rung2"),
            *("fastd", "ovs"),
        ),
        pairs=10,
        seconds=3,
        kinds=tuple(UnderlayKind),
    ),
}


@click.group(invoke_without_command=True)
@click.option("--suite", type=click.Choice(list(SUITES)), default="quick", show_default=True)
@click.option(
    "--underlay",
    type=click.Choice([*(kind.value for kind in UnderlayKind), BOTH, COMPOSE]),
    help="veth: super-packets cross unsegmented; wire-like: nothing above the MTU does; "
    "compose: between containers.",
)
@click.option(
    "--mtu",
    "mtus",
    multiple=True,
    type=click.IntRange(IPV6_MINIMUM_MTU, LARGEST_MTU),
    help=f"Of the underlay; repeatable.  [default: {UNDERLAY_MTU}]",
)
@click.option(
    "--far",
    "stations",
    multiple=True,
    type=click.Path(path_type=Path),
    help="compose only: the socket of `weft bench serve` in another container; repeatable.",
)
@click.option("--scenario", "scenarios", multiple=True, metavar="NAME", help=f"{', '.join(SCENARIOS)}.")
@click.option(
    "--forwarder",
    "forwarders",
    multiple=True,
    metavar="NAME",
    help="bare, kernel[:noudpcsum], weft[:python|:native][:rung0|:rung1|:rung2|:SWITCH=off,…][:vteps=1000]"
    "[:workers=2], fastd, ovs, nodes.",
)
@click.option("--pairs", type=click.IntRange(1, 1000), help="Rounds; 10 for a figure to publish.")
@click.option("--seconds", type=click.FloatRange(1, 600), help="Length of one run.")
@click.option(
    "--steal",
    type=click.FloatRange(0, 100),
    default=100 * STEAL_MOST,
    show_default=True,
    metavar="PERCENT",
    help="Runs count from which the hypervisor took no more of the time.",
)
@click.option(
    "--slowed",
    type=click.FloatRange(0, 1000),
    metavar="PERCENT",
    help="Runs count before and after which no core was slower than this, by its own best: for hosts whose "
    "neighbours come and go. A bench waits for it; 30 finds the quiet moments.  [default: any]",
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=Path(RESULTS), show_default=True
)
@click.option("--json", "as_json", is_flag=True, help=f"Print the record as JSON ({SCHEMA}).")
@click.pass_context
def bench(  # noqa: PLR0913, PLR0917 - one parameter for each flag
    context: click.Context,
    suite: str,
    underlay: str | None,
    mtus: tuple[int, ...],
    stations: tuple[Path, ...],
    scenarios: tuple[str, ...],
    forwarders: tuple[str, ...],
    pairs: int | None,
    seconds: float | None,
    steal: float,
    slowed: float | None,
    out: Path,
    as_json: bool,
) -> None:
    """Measure overlays side by side in one run: no overlay, kernel VXLAN, weft, fastd, Open vSwitch.

    Repeat --scenario and --forwarder to choose; what is left out comes from the suite.  Needs root.
    """
    if context.invoked_subcommand is not None:
        return
    chosen = SUITES[suite]
    names = forwarders or (*chosen.forwarders, *(["nodes"] if underlay == COMPOSE else []))
    plan = Plan(
        suite=suite,
        underlays=_grounds(chosen, underlay, mtus, stations),
        scenarios=_parse_all(parse_scenario, scenarios or chosen.scenarios, "--scenario"),
        forwarders=_parse_all(parse_forwarder, names, "--forwarder"),
        pairs=pairs or chosen.pairs,
        seconds=seconds or chosen.seconds,
        steal_most=steal / 100,
        slowed_most=None if slowed is None else slowed / 100,
    )
    _require_a_stage(underlay, stations)
    _measure(plan, out, as_json=as_json)


for each in (report, compare, serve):
    bench.add_command(each)


def _grounds(
    suite: Suite, underlay: str | None, mtus: Sequence[int], stations: Sequence[Path]
) -> tuple[Ground, ...]:
    if underlay == COMPOSE:
        if mtus:
            raise click.UsageError("--mtu is for namespaces: the MTU of containers is their network's")
        return (compose_ground(stations),)
    if stations:
        raise click.UsageError("--far goes with --underlay compose")
    kinds = suite.kinds if underlay is None else tuple(UnderlayKind)
    if underlay not in (None, BOTH):
        kinds = (UnderlayKind(underlay),)
    return tuple(lab_ground(kind, mtu) for kind in kinds for mtu in dict.fromkeys(mtus or suite.mtus))


def _require_a_stage(underlay: str | None, stations: Sequence[Path]) -> None:
    """Raises Failure, with what is missing, where there is nowhere to measure."""
    if underlay == COMPOSE:
        if (why_not := why_no_stations(stations)) is not None:
            advice = (
                "docker-compose --profile bench up --build --abort-on-container-exit --exit-code-from bench"
            )
            raise Failure("cannot measure between containers", why=why_not, advice=advice)
    elif (why_not := why_no_namespaces()) is not None:
        code = ExitCode.PERMISSION if os.geteuid() else ExitCode.USAGE
        raise Failure("cannot build a lab to measure in", why=why_not, advice="sudo weft bench", code=code)


def _parse_all(parse: Callable[[str], Parsed], texts: Sequence[str], option: str) -> tuple[Parsed, ...]:
    try:
        return tuple(parse(text) for text in dict.fromkeys(texts))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from error


def _measure(plan: Plan, out: Path, *, as_json: bool) -> None:
    """Runs the plan; whatever ends it, what there is by then is written and printed."""
    messages = Console(stderr=True, highlight=False, emoji=False)
    record = Record(
        utc_now(),
        plan.suite,
        plan.pairs,
        plan.seconds,
        describe_machine(),
        steal_most=plan.steal_most,
        slowed_most=plan.slowed_most,
    )
    with writing(out):
        results = Results(out, record)
    try:
        with _watching(messages, plan.cost()) as watch:
            perform(plan, record, watch, partial(_checkpoint, results))
    except LabError as error:
        advice = "weft demo --verbose shows a lab being built"
        raise Failure(
            "the bench's lab did not work", why=str(error), advice=advice, code=ExitCode.CHECK_FAILED
        ) from error
    finally:
        _print(record, as_json=as_json)
        with writing(out):
            _conclude(results, record, messages)
    _require_figures(record)


def _require_figures(record: Record) -> None:
    """Raises Failure where every run failed or nobody could run: a table without a figure is no success."""
    if any(run.measures for run in record.runs):
        return
    reasons = [f"{entry.title}: {entry.why}" for entry in record.entries if entry.why]
    reasons += [f"{run.forwarder}, {run.scenario}: {run.error}" for run in record.runs if run.error]
    raise Failure(
        "nothing was measured",
        why=list(dict.fromkeys(reasons))[:REASONS_SHOWN],
        advice="mend one of these, or choose others with --forwarder",
        code=ExitCode.CHECK_FAILED,
    )


def _checkpoint(results: Results) -> None:
    with writing(results.directory):
        results.checkpoint()


def _conclude(results: Results, record: Record, messages: Console) -> None:
    results.conclude()
    why_not = why_no_plots()
    if why_not is None:
        draw(record, results.directory / PLOTS)
    else:
        advice = f"pip install 'weft[bench]' && weft bench report {results.directory} --plots DIRECTORY"
        messages.print(f"plots: left out: {why_not}; {advice}", soft_wrap=True, markup=False)
    messages.print(f"results: {results.directory}", soft_wrap=True, markup=False)


def _print(record: Record, *, as_json: bool) -> None:
    click.echo(json.dumps(as_document(record)) if as_json else render(record), nl=as_json)


# ── progress ────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _watching(console: Console, total_s: float) -> Iterator[Watch]:
    """A bar with the time left on a terminal; elsewhere a line now and then."""
    if not console.is_terminal:
        yield Lines(total_s, lambda line: console.print(line, soft_wrap=True), time.monotonic)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    # Redrawing takes from the cores that are measured: once a second is enough.
    with Progress(*columns, console=console, transient=True, refresh_per_second=1) as progress:
        yield _Bar(progress, progress.add_task("", total=total_s))


@dataclass(frozen=True, slots=True)
class _Bar:
    progress: Progress
    task: TaskID

    def doing(self, what: str) -> None:
        self.progress.update(self.task, description=what)

    def done(self, seconds: float) -> None:
        self.progress.advance(self.task, seconds)


class Lines:
    """Says what is being done and how long it will still take, at most once in LINE_EVERY_S.

    Args:
        total_s: The plan's own estimate; the time left is that, at the pace seen so far.
    """

    def __init__(self, total_s: float, say: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._total_s = total_s
        self._done_s = 0.0
        self._say = say
        self._clock = clock
        self._began = clock()
        self._said_at: float | None = None

    def doing(self, what: str) -> None:
        now = self._clock()
        if self._said_at is None or now - self._said_at >= LINE_EVERY_S:
            self._said_at = now
            self._say(f"{what} (about {self._left(now)} left)")

    def done(self, seconds: float) -> None:
        self._done_s += seconds

    def _left(self, now: float) -> str:
        pace = (now - self._began) / self._done_s if self._done_s else 1.0
        return duration(max(0.0, self._total_s - self._done_s) * pace)
