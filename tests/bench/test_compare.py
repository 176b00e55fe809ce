"""A regression is one that is both large and sure; everything else is said and not judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from support.bench import VETH, a_machine, a_record, runs_of

from bench.compare import Change, Row, change_of, compare, render_comparison, rows_as_data
from bench.record import Record, Run

THRESHOLD = 0.1


def tcp_record(weft: Sequence[float], kernel: Sequence[float] = (10.0, 11.0, 10.5, 10.2)) -> Record:
    record = a_record()
    record.runs = [*runs_of("tcp-1", "kernel", gbit_s=kernel), *runs_of("tcp-1", "weft:python", gbit_s=weft)]
    return record


def the_row(before: Record, after: Record, title: str = "weft, python") -> Row:
    (row,) = (row for row in compare(before, after, THRESHOLD) if row.title == title)
    return row


BEFORE = tcp_record([5.0, 5.5, 5.25, 5.1])  # half of kernel VXLAN in every round


@pytest.mark.parametrize(
    ("weft", "change"),
    [
        ([5.0, 5.5, 5.25, 5.1], Change.STEADY),
        ([4.7, 5.17, 4.93, 4.79], Change.STEADY),  # 6 % less, surely: below the threshold
        ([4.0, 4.4, 4.2, 4.08], Change.REGRESSED),
        ([8.0, 2.0, 4.1, 4.0], Change.UNCLEAR),
        ([6.0, 6.6, 6.3, 6.12], Change.IMPROVED),
    ],
)
def test_what_is_both_large_and_sure_is_judged(weft: list[float], change: Change) -> None:
    assert the_row(BEFORE, tcp_record(weft)).change is change


def test_a_slower_machine_is_no_regression() -> None:
    halved = tcp_record([2.5, 2.75, 2.625, 2.55], kernel=[5.0, 5.5, 5.25, 5.1])
    row = the_row(BEFORE, halved)
    assert row.baseline == "kernel"
    assert row.worse == pytest.approx(0.0)
    assert row.change is Change.STEADY
    kernel = the_row(BEFORE, halved, "kernel VXLAN")
    assert (kernel.change, kernel.baseline) == (Change.REFERENCE, "")
    assert kernel.worse == pytest.approx(0.5)


def test_half_as_fast_is_half_worse_and_twice_as_fast_is_once_better() -> None:
    assert the_row(BEFORE, tcp_record([2.5, 2.75, 2.625, 2.55])).worse == pytest.approx(0.5)
    assert the_row(BEFORE, tcp_record([10.0, 11.0, 10.5, 10.2])).worse == pytest.approx(-1.0)


def test_without_the_baseline_the_figures_themselves_are_compared() -> None:
    alone = a_record()
    alone.runs = runs_of("tcp-1", "weft:python", gbit_s=[4.0, 4.4, 4.2, 4.08])
    row = the_row(BEFORE, alone)
    assert row.baseline == ""
    assert row.change is Change.REGRESSED


def latency_record(weft: Sequence[float]) -> Record:
    record = a_record()
    record.runs = [
        *runs_of("rr", "bare", p50_us=[60.0, 70.0, 65.0]),
        *runs_of("rr", "weft:python", p50_us=weft),
    ]
    return record


def test_of_latencies_what_is_added_is_compared() -> None:
    before = latency_record([160.0, 170.0, 165.0])
    worse = the_row(before, latency_record([210.0, 220.0, 215.0]))
    assert worse.worse == pytest.approx(50 / 165)
    assert worse.change is Change.REGRESSED
    assert the_row(before, latency_record([130.0, 140.0, 135.0])).change is Change.IMPROVED


def test_one_round_proves_nothing() -> None:
    row = the_row(BEFORE, tcp_record([1.0], kernel=[10.0]))
    assert (row.least, row.most, row.change) == (None, None, Change.UNCLEAR)


def test_a_start_that_takes_longer_has_regressed() -> None:
    def record(seconds: list[float]) -> Record:
        return replace(a_record(), runs=runs_of("daemon", "weft:python", start_s=seconds))

    row = the_row(record([0.5, 0.52, 0.51]), record([0.8, 0.82, 0.81]))
    assert row.change is Change.REGRESSED
    assert row.worse == pytest.approx(0.81 / 0.51 - 1)


def test_what_only_one_has_is_left_out() -> None:
    failed = replace(a_record(), runs=[Run(VETH, "tcp-1", "weft:python", 0, error="no iperf3")])
    assert list(compare(BEFORE, failed, THRESHOLD)) == []
    assert "There is no figure that both have." in render_comparison(BEFORE, failed, [], THRESHOLD)


def test_a_person_is_told_what_regressed_and_what_to_doubt() -> None:
    after = replace(tcp_record([4.0, 4.4, 4.2, 4.08]), partial=True)
    after.machine = replace(a_machine(), cpu="Paper 9001")
    said = render_comparison(BEFORE, after, list(compare(BEFORE, after, THRESHOLD)), THRESHOLD)
    assert "1 regressed by more than 10%." in said
    assert "is partial" in said
    assert "Two machines" in said
    assert "+20.0%" in said


def test_a_script_is_told_the_same() -> None:
    after = tcp_record([4.0, 4.4, 4.2, 4.08])
    rows = rows_as_data(list(compare(BEFORE, after, THRESHOLD)))
    (row,) = (row for row in rows if row["change"] == "regressed")
    assert (row["scenario"], row["underlay"], row["baseline"]) == ("tcp-1", VETH, "kernel")


@pytest.mark.parametrize(
    ("worse", "least", "most", "change"),
    [
        (0.1, 0.05, 0.2, Change.STEADY),  # the threshold itself is allowed
        (0.11, 0.01, 0.2, Change.REGRESSED),
        (0.11, 0.0, 0.2, Change.UNCLEAR),
        (-0.11, -0.2, -0.01, Change.IMPROVED),
        (-0.11, -0.2, 0.01, Change.STEADY),
    ],
)
def test_the_threshold_and_the_bound_decide_together(
    worse: float, least: float, most: float, change: Change
) -> None:
    assert change_of(worse, least, most, THRESHOLD) is change
