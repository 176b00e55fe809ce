"""Turns alternate, failures are on record, stolen time is not measured, and Ctrl-C keeps what there is."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self, cast

import pytest
from support.bench import a_record

from bench import runner
from bench.forwarders import Forwarder
from bench.lab.commands import LabError
from bench.meter import ProcessWork, Usage
from bench.pace import Pace
from bench.record import AGAIN, Record
from bench.runner import REDO_MOST, REDO_MOST_SLOWED, Contender, Plan, contenders, measures_of, perform, turns
from bench.scenarios import SCENARIOS, Better, Outcome, Scenario, Situation
from bench.stage import Ground, Overlay, Stage

QUIET = Usage(2.0, (ProcessWork(0.5, 10, 0), ProcessWork(0.25, 0, 5)), 0.0, 1.0)
ROBBED = replace(QUIET, stolen=0.2)


class PaperStage:
    """A stage that nobody built; what is left when it is torn down is noted."""

    torn_down = 0

    def __init__(self, nodes: int) -> None:
        self.size, self.mtu = nodes, 1500

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        PaperStage.torn_down += 1

    def offloads(self) -> dict[str, str]:
        return {"tx-udp-segmentation": "on", "loopback": "off"}


class PaperOverlay:
    """Carries nothing; may refuse to start."""

    most_nodes: int | None = None
    mtu = 1450

    def __init__(self, stage: PaperStage, name: str, why_not: str | None = None) -> None:
        self.stage, self.name, self._why_not = stage, name, why_not

    def start(self) -> None:
        if self._why_not:
            raise LabError(self._why_not)

    def stop_quietly(self) -> None:
        pass

    def ensure_running(self) -> None:
        pass

    def facts(self) -> dict[str, Any]:
        return {"engine": "paper"}

    def work(self, _index: int) -> ProcessWork:
        return ProcessWork()

    def resident_octets(self, _index: int) -> int:
        return 0


@dataclass
class Said:
    """A watch that keeps what it was told."""

    total: float = 0.0
    lines: list[str] = field(default_factory=list)

    def doing(self, what: str) -> None:
        self.lines.append(what)

    def done(self, seconds: float) -> None:
        self.total += seconds


class PaperPace(Pace):
    """Cores as slow as the test says: a figure for each look, the last of them for ever."""

    looks: ClassVar[list[float]] = [0.25]

    def __init__(self) -> None:
        ticks = itertools.count()
        super().__init__(sleep=lambda _seconds: None, clock=lambda: float(next(ticks)))
        self._left = list(self.looks)

    def learn(self) -> None:
        pass

    def slowed(self) -> float:
        return self._left.pop(0) if len(self._left) > 1 else self._left[0]


PAPER = Ground("veth", lambda nodes: cast("Stage", PaperStage(nodes)))


def forwarder(name: str, why_not: str | None = None, *, fails: str | None = None) -> Forwarder:
    def build(stage: Any, _number: int) -> Overlay:
        return cast("Overlay", PaperOverlay(stage, name, fails))

    return Forwarder(name, name.upper(), build, lambda: why_not)


def scenario(run: Callable[[Situation], Outcome]) -> Scenario:
    return Scenario("tcp-1", "TCP", "gbit_s", "Gb/s", Better.HIGHER, run)


def outcome(gbit_s: float = 1.0, usage: Usage = QUIET) -> Outcome:
    return Outcome(2_000_000_000, 1_000_000, {"gbit_s": gbit_s}, usage)


def plan_of(run: Callable[[Situation], Outcome], *forwarders: Forwarder, pairs: int = 2) -> Plan:
    return Plan("quick", (PAPER,), (scenario(run),), forwarders, pairs, 1.0)


@pytest.fixture(autouse=True)
def paper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "IDLE_LOOK_S", 0.01)
    monkeypatch.setattr(runner, "SETTLE_S", 0.0)
    monkeypatch.setattr(PaperStage, "torn_down", 0)
    monkeypatch.setattr(runner, "Pace", PaperPace)


def performed(plan: Plan) -> tuple[Record, Said]:
    record, said = replace(a_record(), entries=[], partial=True), Said()
    perform(plan, record, said, lambda: None)
    return record, said


def test_two_forwarders_take_turns_as_abba() -> None:
    order: list[Contender] = [("a", cast("Overlay", None)), ("b", cast("Overlay", None))]
    assert "".join(name for _, (name, _) in turns(order, 4)) == "abbaabba"
    assert [number for number, _ in turns(order, 2)] == [0, 0, 1, 1]


def test_the_baseline_begins_and_ends_each_round() -> None:
    overlays = dict.fromkeys(("bare", "weft", "kernel", "fastd"), cast("Overlay", None))
    order = [name for name, _ in contenders(overlays, SCENARIOS["tcp-1"])]
    assert order == ["kernel", "bare", "weft", "fastd", "kernel" + AGAIN]
    assert [name for name, _ in contenders(overlays, SCENARIOS["macs"])] == [
        "kernel",
        "bare",
        "weft",
        "fastd",
    ]
    assert contenders({}, SCENARIOS["tcp-1"]) == []


def test_every_run_is_on_record_with_what_it_cost() -> None:
    record, said = performed(plan_of(lambda _: outcome(), forwarder("kernel"), forwarder("weft")))
    assert [(run.round, run.forwarder) for run in record.runs] == [
        *((0, "kernel"), (0, "weft"), (0, "kernel" + AGAIN)),
        *((1, "kernel" + AGAIN), (1, "weft"), (1, "kernel")),
    ]
    assert record.runs[0].measures == {
        "gbit_s": 1.0,
        "cpu_s": 2.0,
        "daemon_cpu_s": 0.75,
        "stolen": 0.0,
        "slowed": 0.25,
        "cpu_s_per_gb": 1.0,
        "cpu_s_per_mframe": 2.0,
        "frames_per_write": 200_000.0,
    }
    assert not record.partial
    assert PaperStage.torn_down == 1
    assert record.stages["veth, 2 nodes"]["offloads"] == {"tx-udp-segmentation": "on"}
    assert "veth: TCP, round 2 of 2, weft" in said.lines


def test_the_plans_seconds_are_all_used_up_whoever_takes_part() -> None:
    absent = forwarder("ovs", "not installed: ovs-vswitchd")
    plan = plan_of(lambda _: outcome(), forwarder("kernel"), forwarder("weft"), absent, pairs=3)
    _, said = performed(plan)
    assert said.total == pytest.approx(plan.cost())


def test_who_cannot_run_or_start_is_named_with_the_reason() -> None:
    absent = forwarder("ovs", "not installed: ovs-vswitchd")
    broken = forwarder("fastd", fails="fastd exited with 1")
    record, _ = performed(plan_of(lambda _: outcome(), forwarder("kernel"), absent, broken))
    assert {entry.name: entry.why for entry in record.entries} == {
        "kernel": None,
        "ovs": "not installed: ovs-vswitchd",
        "fastd": "fastd exited with 1",
    }
    assert record.entries[0].facts["engine"] == "paper"
    assert {run.forwarder for run in record.runs} == {"kernel", "kernel" + AGAIN}


def test_a_run_that_fails_does_not_end_the_others() -> None:
    def run(situation: Situation) -> Outcome:
        if cast("Any", situation.overlay).name == "weft":
            raise LabError("iperf3: connection refused")
        return outcome()

    record, _ = performed(plan_of(run, forwarder("kernel"), forwarder("weft"), pairs=1))
    assert [run.error for run in record.runs] == [None, "iperf3: connection refused", None]
    assert record.runs[1].measures == {}


def test_a_run_with_stolen_time_is_done_anew() -> None:
    outcomes = iter([outcome(1.0, ROBBED), outcome(2.0, ROBBED), outcome(3.0)])
    plan = plan_of(lambda _: next(outcomes), forwarder("kernel"), pairs=1)
    plan = replace(plan, scenarios=(replace(plan.scenarios[0], is_alone=True),))
    record, _ = performed(plan)
    assert [(run.measures["gbit_s"], run.redone) for run in record.runs] == [(3.0, 2)]


def test_where_time_is_stolen_again_and_again_nothing_is_claimed() -> None:
    record, _ = performed(plan_of(lambda _: outcome(1.0, ROBBED), forwarder("kernel"), pairs=1))
    for run in record.runs:
        assert (run.measures, run.redone) == ({}, REDO_MOST)
        assert run.error is not None
        assert "stolen" in run.error


def test_how_much_may_be_stolen_is_the_operators_to_say() -> None:
    plan = plan_of(lambda _: outcome(1.0, ROBBED), forwarder("kernel"), pairs=1)
    record, _ = performed(replace(plan, steal_most=ROBBED.stolen))
    assert [(run.measures["gbit_s"], run.redone) for run in record.runs] == [(1.0, 0)] * 2


def test_a_run_that_fails_when_done_anew_says_both() -> None:
    outcomes = iter([outcome(1.0, ROBBED)])

    def run(_situation: Situation) -> Outcome:
        for again in outcomes:
            return again
        raise LabError("iperf3: connection refused")

    record, _ = performed(plan_of(run, forwarder("kernel"), pairs=1))
    assert [(run.redone, run.error) for run in record.runs] == [
        (1, "iperf3: connection refused"),
        (0, "iperf3: connection refused"),
    ]


def test_at_full_pace_only_means_before_and_after_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    # Waits for a quiet core twice; the first run ends on a slow one.
    monkeypatch.setattr(PaperPace, "looks", [0.9, 0.1, 0.8, 0.7, 0.6, 0.2, 0.3])
    outcomes = iter([outcome(1.0), outcome(2.0)])
    plan = plan_of(lambda _: next(outcomes), forwarder("kernel"), pairs=1)
    plan = replace(plan, scenarios=(replace(plan.scenarios[0], is_alone=True),), slowed_most=0.3)
    (run,) = performed(plan)[0].runs
    assert (run.measures["gbit_s"], run.measures["slowed"], run.redone) == (2.0, 0.3, 1)


def test_where_the_cores_are_never_fast_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PaperPace, "looks", [0.5])
    plan = plan_of(lambda _: outcome(), forwarder("kernel"), pairs=1)
    for run in performed(replace(plan, slowed_most=0.4))[0].runs:
        assert (run.measures, run.redone) == ({}, REDO_MOST_SLOWED)
        assert run.error is not None
        assert run.error.startswith("the cores were slow: 50%")


def test_how_slow_the_cores_are_is_on_record_and_no_matter_unless_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PaperPace, "looks", [0.5, 0.75, 0.9, 0.4])
    record, _ = performed(plan_of(lambda _: outcome(), forwarder("kernel"), pairs=1))
    assert [(run.measures["slowed"], run.redone) for run in record.runs] == [(0.75, 0), (0.9, 0)]


def test_every_other_round_is_odd() -> None:
    seen = []

    def run(situation: Situation) -> Outcome:
        seen.append(situation.is_odd)
        return outcome()

    performed(plan_of(run, forwarder("kernel"), pairs=3))
    assert seen == [False, False, True, True, False, False]


def test_interrupted_it_tears_down_and_keeps_what_there_is() -> None:
    turns_taken = []

    def run(_situation: Situation) -> Outcome:
        turns_taken.append(1)
        if len(turns_taken) == 3:
            raise KeyboardInterrupt
        return outcome()

    record = replace(a_record(), entries=[], partial=True)
    saved: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        perform(plan_of(run, forwarder("kernel")), record, Said(), lambda: saved.append(len(record.runs)))
    assert record.partial
    assert saved[-1] == 2
    assert PaperStage.torn_down == 1


def test_what_carried_nothing_has_no_cost_by_octet() -> None:
    measures = measures_of(Outcome(0, 0, {"start_s": 0.5}, QUIET), slowed=0.0)
    assert "cpu_s_per_gb" not in measures
    assert measures["start_s"] == 0.5


def test_a_scenario_with_few_rounds_takes_no_more() -> None:
    plan = Plan("full", (PAPER,), (SCENARIOS["daemon"],), (), pairs=10, seconds=1.0)
    assert plan.rounds(SCENARIOS["daemon"]) == 5
    assert plan.rounds(SCENARIOS["tcp-1"]) == 10
