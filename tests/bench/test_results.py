"""A directory of results is whole at any moment, comes back as it was, and says where the disk was full."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.bench import VETH, a_machine, a_record, runs_of
from support.source import ROOT

from bench.record import Run, as_document
from bench.report import render
from bench.results import ENVIRONMENT, RUNS, SHEET, SHEET_COLUMNS, SUMMARY, Results, read_results, sheet

GOLDEN = ROOT / "tests" / "data" / "bench" / "record.json"


def test_what_is_written_run_by_run_comes_back(tmp_path: Path) -> None:
    record = a_record()
    results = Results(tmp_path, record)
    curves = {"cdf_us": [[50.0, 80.5], [100.0, 900.0]]}
    for run in [*runs_of("tcp-1", "kernel", gbit_s=[1.5, 1.6]), Run(VETH, "rr", "bare", 0, curves=curves)]:
        record.runs.append(run)
        results.checkpoint()
        assert read_results(results.directory) == record
    assert len((results.directory / RUNS).read_text().splitlines()) == 3


def test_the_directory_is_named_by_when_and_what(tmp_path: Path) -> None:
    assert Results(tmp_path, a_record()).directory == tmp_path / "2026-01-02T030405Z-0123456789ab"
    unknown = replace(a_record(), machine=replace(a_machine(), revision=""))
    assert Results(tmp_path, unknown).directory.name.endswith("Z-weft")


def test_it_is_partial_until_it_says_otherwise(tmp_path: Path) -> None:
    record = replace(a_record(), partial=True)
    results = Results(tmp_path, record)
    assert read_results(results.directory).partial
    record.partial = False
    results.checkpoint()
    assert not read_results(results.directory).partial


def test_a_line_that_was_cut_off_costs_itself_and_nothing_else(tmp_path: Path) -> None:
    record = replace(a_record(), runs=runs_of("tcp-1", "kernel", gbit_s=[1.5, 1.6]))
    directory = Results(tmp_path, record).directory
    whole = (directory / RUNS).read_text()
    for length in range(whole.index("\n") + 1, len(whole)):
        (directory / RUNS).write_text(whole[:length])
        assert read_results(directory).runs == record.runs[:1]


def test_at_the_end_there_are_a_report_and_a_sheet(tmp_path: Path) -> None:
    record = read_results(GOLDEN)
    results = Results(tmp_path, record)
    results.conclude()
    assert (results.directory / SUMMARY).read_text() == render(record)
    assert (results.directory / SHEET).read_text() == sheet(record)


def test_a_file_of_one_document_is_a_record_too(tmp_path: Path) -> None:
    record = replace(a_record(), runs=runs_of("tcp-1", "kernel", gbit_s=[1.5]))
    path = tmp_path / "0.1.0.json"
    path.write_text(json.dumps(as_document(record)))
    assert read_results(path) == record


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (None, "found no env.json"),
        ("", "something else"),
        ("[]", "something else"),
        ('{"schema": "weft.peers/1", "data": {}}', "found 'weft.peers/1'"),
        ('{"schema": "weft.bench/1", "data": {}}', "something else"),
    ],
)
def test_what_is_no_record_is_refused(environment: str | None, said: str, tmp_path: Path) -> None:
    if environment is not None:
        (tmp_path / ENVIRONMENT).write_text(environment)
    with pytest.raises(ValueError, match=said):
        read_results(tmp_path)


def test_a_line_that_is_no_run_is_refused(tmp_path: Path) -> None:
    directory = Results(tmp_path, a_record()).directory
    for line in ("{", "7", '{"colour": "grey"}'):
        (directory / RUNS).write_text(line + "\n")
        with pytest.raises(ValueError, match="expected a record"):
            read_results(directory)


def test_the_sheet_has_a_row_for_every_figure_and_the_comparison_for_the_one_that_is_compared() -> None:
    rows = list(csv.DictReader(io.StringIO(sheet(read_results(GOLDEN)))))
    assert tuple(rows[0]) == SHEET_COLUMNS
    (bare,) = (
        row
        for row in rows
        if (row["scenario"], row["forwarder"], row["measure"]) == ("tcp-1", "bare", "gbit_s")
    )
    assert (bare["baseline"], bare["n"], bare["unit"]) == ("kernel", "3", "Gb/s")
    assert float(bare["lower_95"]) == pytest.approx(1.84, abs=0.005)
    assert float(bare["min"]) <= float(bare["q1"]) <= float(bare["median"]) <= float(bare["q3"])
    assert all(row["compared"] == "" for row in rows if row["unit"] == "")


def test_a_full_disk_is_an_error_of_the_disks(tmp_path: Path) -> None:
    record = a_record()
    results = Results(tmp_path, record)
    (results.directory / RUNS).unlink()
    (results.directory / RUNS).symlink_to("/dev/full")
    record.runs = runs_of("tcp-1", "kernel", gbit_s=[1.5])
    with pytest.raises(OSError, match="No space left"):
        results.checkpoint()
