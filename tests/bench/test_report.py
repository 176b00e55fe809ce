"""A report is what the record says: held against one checked by hand, and part by part."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.bench import a_machine, a_record, runs_of
from support.source import ROOT

from bench.record import Record, Run, read_record
from bench.report import BEGIN, END, embed, figure, render, summary, table

DATA = ROOT / "tests" / "data" / "bench"


@pytest.fixture
def record() -> Record:
    return read_record((DATA / "record.json").read_text())


def test_the_report_of_the_golden_record_is_the_golden_report(record: Record) -> None:
    assert render(record) == (DATA / "report.md").read_text()


def test_an_interrupted_bench_says_so_first(record: Record) -> None:
    record.partial = True
    assert render(record).splitlines()[2].startswith("**Partial")
    assert "Partial" not in render(replace(record, partial=False))


def test_a_bench_interrupted_at_once_has_a_report_too() -> None:
    assert "Nothing was measured." in render(a_record())


def test_who_is_not_there_has_no_column(record: Record) -> None:
    assert not any("Open vSwitch" in line for line in summary(record))
    assert "not installed: ovs-vswitchd" in render(record)


def test_where_waking_is_dear_other_floors_hold_and_that_is_said(record: Record) -> None:
    record.machine = replace(a_machine(), wake_us=50.0)
    assert "where waking another core is dear" in render(record)
    assert "where waking another core is dear" not in render(replace(record, machine=a_machine()))


def test_without_the_kernels_vxlan_there_is_no_ratio() -> None:
    record = a_record()
    record.runs = runs_of("tcp-1", "weft:python", gbit_s=[5.0, 6.0])
    assert any("5.50 |" in line for line in summary(record))
    assert "≥" not in summary(record)[2]


def test_one_round_has_a_ratio_and_no_bound() -> None:
    record = a_record()
    record.runs = [*runs_of("tcp-1", "kernel", gbit_s=[10.0]), *runs_of("tcp-1", "weft:python", gbit_s=[5.0])]
    assert any("5.00 (0.50)" in line for line in summary(record))
    assert "not shown" in render(record)


def test_what_a_stranger_said_cannot_break_a_line(record: Record) -> None:
    record.runs = [Run("veth", "tcp-1", "kernel", 0, error="one\n\n# two")]
    assert "- tcp-1, veth, kernel, round 1: one # two" in render(record).splitlines()


def test_the_summary_stands_between_the_markers_and_nowhere_else(record: Record) -> None:
    document = f"# weft\n\n{BEGIN}\nold figures\n{END}\n\nThe end.\n"
    embedded = embed(document, record)
    assert embedded.startswith(f"# weft\n\n{BEGIN}\n| ")
    assert embedded.endswith(f"\n{END}\n\nThe end.\n")
    assert "old figures" not in embedded
    assert embed(embedded, record) == embedded


@pytest.mark.parametrize("document", ["# weft\n", f"# weft\n{BEGIN}\n", f"{END}\n{BEGIN}\n"])
def test_a_document_without_markers_is_left_alone(document: str, record: Record) -> None:
    with pytest.raises(ValueError, match="expected <!-- bench: begin -->"):
        embed(document, record)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.0532, "0.053"),
        (0.52, "0.52"),
        (9.994, "9.99"),
        (9.996, "10.0"),
        (99.94, "99.9"),
        (99.96, "100"),
        (1234.5, "1234"),
        (-5.07, "-5.07"),
    ],
)
def test_figures_have_three_digits(value: float, shown: str) -> None:
    assert figure(value) == shown


def test_a_table_is_as_wide_as_its_widest_cell() -> None:
    assert table(["name", "n"], [["a", "1000"], ["long name", "1"]]) == [
        "| name      |    n |",
        "| --------- | ---: |",
        "| a         | 1000 |",
        "| long name |    1 |",
    ]


def test_a_bench_that_let_time_be_stolen_says_so() -> None:
    assert "was stolen" not in render(a_record())
    assert "up to 25% of the time was stolen" in render(replace(a_record(), steal_most=0.25))


def test_how_slow_the_cores_were_is_told_where_it_is_known() -> None:
    runs = runs_of("tcp-1", "kernel", gbit_s=[10.0, 11.0, 12.0])
    assert "its own best" not in render(replace(a_record(), runs=runs))
    runs = runs_of("tcp-1", "kernel", gbit_s=[10.0, 11.0, 12.0], slowed=[0.1, 0.25, 0.05])
    told = render(replace(a_record(), runs=runs, slowed_most=0.3))
    assert "median 10%, at most 25% slower" in told
    assert "no core was slower than 30%" in told
