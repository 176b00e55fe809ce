"""`weft bench`: measures overlays side by side; `weft bench report` reads an old record again.

    weft bench                                  the quick suite: some minutes
    weft bench --suite full                     everything, both underlays: hours
    weft bench --scenario tcp-1 --forwarder kernel --forwarder weft:python --pairs 10
    weft bench report results/….json --readme README.md

Interrupted, it takes everything down, and keeps and prints what it has, marked as partial.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.forwarders import parse_forwarder
from bench.lab.abilities import why_no_namespaces
from bench.lab.commands import LabError
from bench.lab.topology import UnderlayKind
from bench.machine import describe_machine
from bench.meter import STEAL_MOST
from bench.record import SCHEMA, Record, as_data, read_record, write_record
from bench.report import embed, render
from bench.runner import Plan, Watch, perform, utc_now
from bench.scenarios import SCENARIOS, parse_scenario
from control.operator.cli.output import duration
from control.operator.failure import ExitCode, Failure

# Ours
BOTH = "both"
RESULTS = "results"
LINE_EVERY_S = 15.0

Parsed = TypeVar("Parsed")


@dataclass(frozen=True, slots=True)
class Suite:
    """What is run where nothing else is asked for."""

    underlays: tuple[UnderlayKind, ...]
    scenarios: tuple[str, ...]
    forwarders: tuple[str, ...]
    pairs: int
    seconds: float


SUITES = {
    "quick": Suite(
        (UnderlayKind.VETH,),
        ("tcp-1", "udp-64", "rr"),
        ("bare", "kernel", "weft:python", "weft:native", "fastd"),
        pairs=3,
        seconds=2,
    ),
    "full": Suite(
        (UnderlayKind.VETH, UnderlayKind.WIRE_LIKE),
        tuple(SCENARIOS),
        (
            *("bare", "kernel", "kernel:noudpcsum"),
            *("weft:python", "weft:python:rung0", "weft:python:rung1", "weft:python:rung2"),
            *("weft:native", "weft:native:rung0", "weft:native:rung1", "weft:native:rung2"),
            *("fastd", "ovs"),
        ),
        pairs=10,
        seconds=3,
    ),
}


@click.group(invoke_without_command=True)
@click.option("--suite", type=click.Choice(list(SUITES)), default="quick", show_default=True)
@click.option(
    "--underlay",
    type=click.Choice([*(kind.value for kind in UnderlayKind), BOTH]),
    help="veth: super-packets cross unsegmented; wire-like: nothing above the MTU does.",
)
@click.option("--scenario", "scenarios", multiple=True, metavar="NAME", help=f"{', '.join(SCENARIOS)}.")
@click.option(
    "--forwarder",
    "forwarders",
    multiple=True,
    metavar="NAME",
    help="bare, kernel[:noudpcsum], weft[:python|:native][:rung0|:rung1|:rung2|:SWITCH=off,…][:vteps=1000], "
    "fastd, ovs.",
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
    "--out", type=click.Path(file_okay=False, path_type=Path), default=Path(RESULTS), show_default=True
)
@click.option("--json", "as_json", is_flag=True, help=f"Print the record as JSON ({SCHEMA}).")
@click.pass_context
def bench(  # noqa: PLR0913, PLR0917 - one parameter for each flag
    context: click.Context,
    suite: str,
    underlay: str | None,
    scenarios: tuple[str, ...],
    forwarders: tuple[str, ...],
    pairs: int | None,
    seconds: float | None,
    steal: float,
    out: Path,
    as_json: bool,
) -> None:
    """Measure overlays side by side in one run: no overlay, kernel VXLAN, weft, fastd, Open vSwitch.

    Repeat --scenario and --forwarder to choose; what is left out comes from the suite.  Needs root.
    """
    if context.invoked_subcommand is not None:
        return
    chosen = SUITES[suite]
    plan = Plan(
        suite=suite,
        underlays=_underlays(underlay) or chosen.underlays,
        scenarios=_parse_all(parse_scenario, scenarios or chosen.scenarios, "--scenario"),
        forwarders=_parse_all(parse_forwarder, forwarders or chosen.forwarders, "--forwarder"),
        pairs=pairs or chosen.pairs,
        seconds=seconds or chosen.seconds,
        steal_most=steal / 100,
    )
    if (why_not := why_no_namespaces()) is not None:
        code = ExitCode.PERMISSION if os.geteuid() else ExitCode.USAGE
        raise Failure("cannot build a lab to measure in", why=why_not, advice="sudo weft bench", code=code)
    _measure(plan, out, as_json=as_json)


@bench.command()
@click.argument("record", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--readme",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Write the summary between this document's markers instead of printing the report.",
)
def report(record: Path, readme: Path | None) -> None:
    """Print the report of RECORD, a JSON file of an earlier bench."""
    try:
        found = read_record(record.read_text())
        if readme is None:
            click.echo(render(found), nl=False)
        else:
            readme.write_text(embed(readme.read_text(), found))
    except ValueError as error:
        raise Failure(f"no report of {record}", why=str(error), advice="weft bench") from error


def _underlays(name: str | None) -> tuple[UnderlayKind, ...]:
    if name is None:
        return ()
    return tuple(UnderlayKind) if name == BOTH else (UnderlayKind(name),)


def _parse_all(parse: Callable[[str], Parsed], texts: Sequence[str], option: str) -> tuple[Parsed, ...]:
    try:
        return tuple(parse(text) for text in dict.fromkeys(texts))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from error


def _measure(plan: Plan, out: Path, *, as_json: bool) -> None:
    """Runs the plan; whatever ends it, what there is by then is written and printed."""
    messages = Console(stderr=True, highlight=False, emoji=False)
    record = Record(utc_now(), plan.suite, plan.pairs, plan.seconds, describe_machine(), plan.steal_most)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{record.started_at.replace(':', '')}-{record.machine.revision or 'weft'}.json"
    try:
        with _watching(messages, plan.cost()) as watch:
            perform(plan, record, watch, lambda: _save(record, path))
    except LabError as error:
        advice = "weft demo --verbose shows a lab being built"
        raise Failure(
            "the bench's lab did not work", why=str(error), advice=advice, code=ExitCode.CHECK_FAILED
        ) from error
    finally:
        _print(record, as_json=as_json)
        messages.print(f"record: {path}, report: {path.with_suffix('.md')}", soft_wrap=True)


def _save(record: Record, path: Path) -> None:
    write_record(record, path)
    path.with_suffix(".md").write_text(render(record))


def _print(record: Record, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "data": as_data(record)}))
    else:
        click.echo(render(record), nl=False)


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
