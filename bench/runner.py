"""Runs a plan: underlay by underlay, scenario by scenario, round by round.

In a round every forwarder has one turn, and every other round goes backwards: A B C, C B A, A B C, …  So any
two of them form the pairs A B, B A, A B, … that cancel a machine's slow drift, and all share one baseline.
With two forwarders these are ABBA pairs, side by side in time.  The baseline has a second turn at the far end
of each round: its ratio to itself is the noise that every other ratio has too.

A run that fails is put on record with its reason, and the rest goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Protocol

from bench.forwarders import Forwarder
from bench.lab.commands import LabError
from bench.meter import STEAL_MOST, Meter
from bench.pace import Pace
from bench.record import AGAIN, Entry, Record, Run
from bench.scenarios import SETTLE_S, Outcome, Scenario, Situation
from bench.stage import Ground, Overlay, Stage

# Ours
REDO_MOST = 3  # runs with stolen time, before giving up on one
REDO_MOST_SLOWED = 100  # the same where runs count at full pace only: who asks for that has the time
WAIT_FOR_PACE_S = 60.0
IDLE_LOOK_S = 2.0
STAGE_COST_S = 5.0
BASELINES = ("kernel", "bare")
OFFLOADS_KEPT = (
    *("tcp-segmentation-offload", "generic-receive-offload", "tx-udp-segmentation"),
    *("tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation", "rx-udp-gro-forwarding"),
)

Contender = tuple[str, Overlay]
"""The name its runs bear, and what runs."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run.

    Attributes:
        steal_most: The share of all cores' time (0 … 1) that may be stolen from a run that counts.
        slowed_most: How much slower than at their best (0.3: by 30 %) the cores may be before and after a
            run that counts; None: they may be as they are.
    """

    suite: str
    underlays: tuple[Ground, ...]
    scenarios: tuple[Scenario, ...]
    forwarders: tuple[Forwarder, ...]
    pairs: int
    seconds: float
    steal_most: float = STEAL_MOST
    slowed_most: float | None = None

    @property
    def redo_most(self) -> int:
        return REDO_MOST if self.slowed_most is None else REDO_MOST_SLOWED

    def disturbance(self, stolen: float, slowed: float) -> str | None:
        """Why a run is no measurement; None: it is one."""
        if stolen > self.steal_most:
            return f"time was stolen: {stolen:.1%}"
        if self.slowed_most is not None and slowed > self.slowed_most:
            return f"the cores were slow: {slowed:.0%} slower than at their best"
        return None

    def rounds(self, scenario: Scenario) -> int:
        return min(self.pairs, scenario.most_rounds or self.pairs)

    def cost(self) -> float:
        """Seconds it takes if every forwarder is there."""
        turns = len(self.forwarders) + 1
        runs = sum(self.rounds(each) * turns * each.cost(self.seconds) for each in self.scenarios)
        return len(self.underlays) * (runs + STAGE_COST_S)


class Watch(Protocol):
    """Is told how it goes."""

    def doing(self, what: str) -> None:
        """What begins now."""
        ...

    def done(self, seconds: float) -> None:
        """So many of the plan's seconds are behind us, however long they took."""
        ...


def perform(plan: Plan, record: Record, watch: Watch, checkpoint: Callable[[], None]) -> None:
    """Fills the record; what is interrupted stays marked as partial.

    Args:
        checkpoint: Called after every run, and at the end whatever happened.

    Raises:
        LabError: A stage could not be built.
    """
    try:
        watch.doing("how fast are the cores")
        performance = _Performance(plan, record, watch, checkpoint, Pace())
        performance.pace.learn()
        for ground in plan.underlays:
            for nodes in sorted({scenario.nodes for scenario in plan.scenarios}):
                performance.on(ground, nodes)
        record.partial = False
    finally:
        record.ended_at = utc_now()
        checkpoint()


@dataclass(frozen=True, slots=True)
class _Performance:
    """A plan being carried out; see `perform`."""

    plan: Plan
    record: Record
    watch: Watch
    checkpoint: Callable[[], None]
    pace: Pace

    def on(self, ground: Ground, nodes: int) -> None:
        """Everything of the plan that needs a stage of so many nodes on this underlay."""
        plan, record, watch = self.plan, self.record, self.watch
        scenarios = [scenario for scenario in plan.scenarios if scenario.nodes == nodes]
        watch.doing(f"{ground.name}: {nodes} nodes")
        if ground.most_nodes is not None and nodes > ground.most_nodes:
            named = ", ".join(each.name for each in scenarios)
            why = f"{named}: needs {nodes} nodes, {ground.name} has fewer"
            record.stages[stage_name(ground.name, nodes)] = {"why": why}
            watch.done(sum(_left_out(plan, scenario, {}) for scenario in scenarios))
            return
        with ground.build(nodes) as stage:
            overlays = _set_up(plan, record, watch, (ground.name, stage))
            offloads = {name: state for name, state in stage.offloads().items() if name in OFFLOADS_KEPT}
            record.stages[stage_name(ground.name, nodes)] = {
                "mtu": stage.mtu,
                "offloads": offloads,
                "idle_daemons_percent": _idle_percent(list(overlays.values())),
            }
            watch.done(STAGE_COST_S)
            for scenario in scenarios:
                for run in self._runs(scenario, contenders(overlays, scenario), ground.name):
                    record.runs.append(run)
                    self.checkpoint()
                watch.done(_left_out(plan, scenario, overlays))
            _note_growth(record, (ground.name, nodes), overlays)

    def _runs(self, scenario: Scenario, order: Sequence[Contender], underlay: str) -> Iterator[Run]:
        rounds = self.plan.rounds(scenario)
        for number, (name, overlay) in turns(order, rounds):
            self.watch.doing(f"{underlay}: {scenario.title}, round {number + 1} of {rounds}, {name}")
            situation = Situation(overlay, self.plan.seconds, is_odd=bool(number % 2))
            run = Run(underlay, scenario.name, name, number)
            yield self._measured(run, overlay, partial(scenario.run, situation))
            self.watch.done(scenario.cost(self.plan.seconds))

    def _measured(self, run: Run, overlay: Overlay, attempt: Callable[[], Outcome]) -> Run:
        """The run with its figures, done anew while something disturbs it; or why it has none."""
        redone = 0
        try:
            overlay.ensure_running()
            while True:
                slowed_before = self._pace_before()
                outcome = attempt()
                slowed = max(slowed_before, self.pace.slowed())
                disturbance = self.plan.disturbance(outcome.usage.stolen, slowed)
                if disturbance is None:
                    measures = measures_of(outcome, slowed)
                    return replace(run, measures=measures, redone=redone, curves=curves_of(outcome))
                if redone == self.plan.redo_most:
                    return replace(run, redone=redone, error=f"{disturbance}, in each of {redone + 1} runs")
                redone += 1
        except LabError as error:
            return replace(run, redone=redone, error=str(error))

    def _pace_before(self) -> float:
        """How slow the cores are as a run begins; where that matters, after a while in which they are not."""
        most = self.plan.slowed_most
        return self.pace.slowed() if most is None else self.pace.wait(most, WAIT_FOR_PACE_S)


def stage_name(underlay: str, nodes: int) -> str:
    """The stage's key in a record."""
    return f"{underlay}, {nodes} nodes"


def _set_up(plan: Plan, record: Record, watch: Watch, where: tuple[str, Stage]) -> dict[str, Overlay]:
    """The forwarders that carry on this stage, by name; an entry for each that does not, saying why."""
    underlay, stage = where
    overlays: dict[str, Overlay] = {}
    for number, forwarder in enumerate(plan.forwarders, start=1):
        watch.doing(f"{underlay}: starting {forwarder.title}")
        why: str | None = None
        facts: dict[str, object] = {}
        try:
            overlay = _start(forwarder, stage, number)
            facts = dict(overlay.facts()) | {"mtu": overlay.mtu, "resident_mb": _resident_mb(overlay)}
            overlays[forwarder.name] = overlay
        except LabError as error:
            why = str(error)
        record.entries.append(Entry(underlay, stage.size, forwarder.name, forwarder.title, why, facts))
    return overlays


def _start(forwarder: Forwarder, stage: Stage, number: int) -> Overlay:
    """The overlay, carrying.

    Raises:
        LabError: It cannot run here, or did not start; nothing of it is left then.
    """
    if (why_not := forwarder.why_not()) is not None:
        raise LabError(why_not)
    overlay = forwarder.build(stage, number)
    if overlay.most_nodes is not None and stage.size > overlay.most_nodes:
        raise LabError(f"not measured with {stage.size} nodes")
    try:
        overlay.start()
    except LabError:
        overlay.stop_quietly()
        raise
    return overlay


def contenders(overlays: dict[str, Overlay], scenario: Scenario) -> list[Contender]:
    """Who has a turn in a round, in the order of even rounds: the baseline is first, and last once more."""
    order = sorted(overlays.items(), key=lambda item: BASELINES.index(item[0]) if item[0] in BASELINES else 9)
    if order and not scenario.is_alone:
        name, overlay = order[0]
        order.append((name + AGAIN, overlay))
    return order


def turns(order: Sequence[Contender], rounds: int) -> Iterator[tuple[int, Contender]]:
    """Round after round, every other one backwards."""
    for number in range(rounds):
        for contender in reversed(order) if number % 2 else order:
            yield number, contender


def measures_of(outcome: Outcome, slowed: float) -> dict[str, float]:
    """The scenario's own figures, what the run cost by octet and by frame, and what may have disturbed it."""
    usage = outcome.usage
    measures = dict(outcome.measures)
    measures |= {"cpu_s": usage.cpu_s, "daemon_cpu_s": usage.daemon_cpu_s}
    measures |= {"stolen": usage.stolen, "slowed": slowed}
    if outcome.octets and outcome.frames:
        measures["cpu_s_per_gb"] = usage.cpu_s / (outcome.octets / 1e9)
        measures["cpu_s_per_mframe"] = usage.cpu_s / (outcome.frames / 1e6)
    writes = sum(work.writes for work in usage.daemons)
    if outcome.frames and writes:
        measures["frames_per_write"] = outcome.frames / writes
    return {name: float(f"{value:.6g}") for name, value in measures.items()}


def curves_of(outcome: Outcome) -> dict[str, list[list[float]]]:
    """Its curves, with no more digits than mean something."""
    return {
        name: [[float(f"{x:.6g}"), float(f"{y:.6g}")] for x, y in points]
        for name, points in outcome.curves.items()
    }


def _left_out(plan: Plan, scenario: Scenario, overlays: dict[str, Overlay]) -> float:
    """The plan's seconds for turns that nobody takes."""
    turns_planned = len(plan.forwarders) + 1
    turns_taken = len(contenders(overlays, scenario))
    return plan.rounds(scenario) * (turns_planned - turns_taken) * scenario.cost(plan.seconds)


def _idle_percent(overlays: Sequence[Overlay]) -> float:
    """Of one core, for all daemons of the stage together."""
    meter = Meter([partial(each.work, index) for each in overlays for index in range(each.stage.size)])
    time.sleep(SETTLE_S)
    meter.start()
    time.sleep(IDLE_LOOK_S)
    meter.stop()
    return round(100 * meter.usage.daemon_cpu_s / meter.usage.seconds, 2)


def _note_growth(record: Record, where: tuple[str, int], overlays: dict[str, Overlay]) -> None:
    """Puts each daemon's memory after all the traffic beside what it was before."""
    for position, entry in enumerate(record.entries):
        is_here = (entry.underlay, entry.nodes) == where
        if is_here and entry.name in overlays:
            after = {"resident_mb_after": _resident_mb(overlays[entry.name])}
            facts = {**entry.facts, **after}
            record.entries[position] = Entry(
                entry.underlay, entry.nodes, entry.name, entry.title, entry.why, facts
            )


def _resident_mb(overlay: Overlay) -> float:
    return round(overlay.resident_octets(0) / 1e6, 1)


def utc_now() -> str:
    """To the second, as ISO 8601 writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
