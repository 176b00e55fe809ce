"""Floors are judged by the bound on the side that matters, by the machine's kind, and only where measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.bench import a_machine, a_record, runs_of

from bench.floors import FLOORS, Verdict, judge, verdict_of
from bench.forwarders import parse_forwarder
from bench.scenarios import SCENARIOS
from bench.statistics import Estimate


@pytest.mark.parametrize(
    ("median", "lower", "verdict"),
    [
        (0.6, 0.55, Verdict.AIM_MET),
        (0.6, 0.45, Verdict.MET),
        (0.6, 0.35, Verdict.MET),
        (0.6, 0.34, Verdict.NOT_SHOWN),
        (0.6, None, Verdict.NOT_SHOWN),
        (0.34, 0.30, Verdict.NOT_MET),
    ],
)
def test_a_floor_below(median: float, lower: float | None, verdict: Verdict) -> None:
    assert verdict_of(Estimate(median, lower, 9.9, 10), 0.35, 0.5, at_most=False) is verdict


@pytest.mark.parametrize(
    ("median", "upper", "verdict"),
    [
        (7.0, 8.0, Verdict.AIM_MET),
        (15.0, 20.0, Verdict.MET),
        (15.0, 20.1, Verdict.NOT_SHOWN),
        (20.1, 25.0, Verdict.NOT_MET),
    ],
)
def test_a_ceiling(median: float, upper: float, verdict: Verdict) -> None:
    assert verdict_of(Estimate(median, 0.0, upper, 10), 20, 8, at_most=True) is verdict


def test_a_floor_is_held_against_the_runs_of_its_pair() -> None:
    record = a_record()
    record.runs = [
        *runs_of("tcp-1", "kernel", gbit_s=[10.0, 11.0, 9.0]),
        *runs_of("tcp-1", "weft:python", gbit_s=[4.0, 4.5, 3.7]),
    ]
    (judgement,) = judge(record)
    assert judgement.estimate.median == pytest.approx(0.409, abs=0.001)
    assert (judgement.needed, judgement.verdict) == (0.35, Verdict.MET)
    assert not judgement.may_be_published


def test_where_waking_is_dear_the_floor_is_lower() -> None:
    record = a_record()
    record.runs = [
        *runs_of("rr", "bare", p50_us=[10.0, 11.0]),
        *runs_of("rr", "weft:python", p50_us=[80.0, 82.0]),
    ]
    for wake_us, needed, verdict in ((2.0, 40, Verdict.NOT_MET), (50.0, 120, Verdict.MET)):
        record.machine = replace(a_machine(), wake_us=wake_us)
        (judgement,) = judge(record)
        assert (judgement.needed, judgement.verdict) == (needed, verdict)
        assert judgement.bound == judgement.estimate.upper


def test_nothing_measured_is_nothing_judged() -> None:
    assert list(judge(a_record())) == []


def test_every_floor_is_of_something_there_is() -> None:
    for floor in FLOORS:
        assert floor.scenario in SCENARIOS
        for name in (*floor.forwarders, *filter(None, [floor.over])):
            assert parse_forwarder(name).name == name
