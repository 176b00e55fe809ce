"""The directory of one bench: what is known while it runs, and what is made of it at the end.

    results/2026-11-25T155600Z-21abe75c3ed0/
      env.json       the record without its runs (weft.bench/1): machine, entries, stages; partial at first
      runs.jsonl     a run a line, written as it ends: whatever stops a bench, these are kept
      summary.md     the report
      summary.csv    a row for each figure, for a spreadsheet
      plots/*.svg    bars with their spread, distributions of latency, loss over rate

The last three are made from the first two, by `weft bench report` again at any time.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from bench.record import AGAIN, Record, as_document, read_record, record_of
from bench.report import baseline_estimate, render
from bench.scenarios import SCENARIOS

# Ours
ENVIRONMENT, RUNS = "env.json", "runs.jsonl"
SUMMARY, SHEET, PLOTS = "summary.md", "summary.csv", "plots"
SHEET_COLUMNS = (
    *("underlay", "scenario", "forwarder", "title", "measure", "unit", "n"),
    *("median", "q1", "q3", "min", "max", "baseline", "compared", "lower_95", "upper_95"),
)


class Results:
    """A directory that a bench writes while it runs.

    Raises:
        OSError: It cannot be made, or the disk is full.
    """

    def __init__(self, parent: Path, record: Record) -> None:
        stamp = f"{record.started_at.replace(':', '')}-{record.machine.revision or 'weft'}"
        self.directory = parent / stamp
        self._record = record
        self._runs_written = 0
        self.directory.mkdir(parents=True, exist_ok=True)
        self.checkpoint()

    def checkpoint(self) -> None:
        """Writes what is new since the last time."""
        document = as_document(self._record)
        del document["data"]["runs"]
        _replace(self.directory / ENVIRONMENT, json.dumps(document, indent=1) + "\n")
        with (self.directory / RUNS).open("a") as lines:
            for run in self._record.runs[self._runs_written :]:
                lines.write(json.dumps(asdict(run)) + "\n")
        self._runs_written = len(self._record.runs)

    def conclude(self) -> None:
        """Writes what is made of it, but for the plots."""
        _replace(self.directory / SUMMARY, render(self._record))
        _replace(self.directory / SHEET, sheet(self._record))


def read_results(path: Path) -> Record:
    """The record in a directory of this layout, or in a file of one JSON document.

    A last line that was cut off as the machine went down is passed over: the record is partial then.

    Raises:
        ValueError: It is none.
        OSError: It cannot be read.
    """
    if not path.is_dir():
        return read_record(path.read_text())
    if not (path / ENVIRONMENT).exists():
        raise ValueError(f"expected {ENVIRONMENT} and {RUNS}, found no {ENVIRONMENT}")
    try:
        document = json.loads((path / ENVIRONMENT).read_text())
        document["data"]["runs"] = list(_whole_lines(path / RUNS))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"expected a record in {ENVIRONMENT}, found something else: {error}") from error
    return record_of(document)


def sheet(record: Record) -> str:
    """summary.csv: every measure of every forwarder, and for the one that is compared what came out."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(SHEET_COLUMNS)
    for underlay, name in record.measured():
        here = [run for run in record.runs if (run.underlay, run.scenario) == (underlay, name)]
        for forwarder in dict.fromkeys(run.forwarder for run in here):
            own = [run for run in here if run.forwarder == forwarder]
            measures = dict.fromkeys(key for run in own for key in run.measures)
            for measure in measures:
                writer.writerow(_sheet_row(record, (underlay, name, forwarder), measure))
    return text.getvalue()


def _sheet_row(record: Record, what: tuple[str, str, str], measure: str) -> list[str]:
    underlay, name, forwarder = what
    scenario = SCENARIOS[name]
    values = sorted(record.values(underlay, name, forwarder, measure).values())
    lower, _, upper = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    title = record.titles().get(forwarder.removesuffix(AGAIN), forwarder)
    is_main = measure == scenario.measure
    row = [underlay, name, forwarder, title, measure, scenario.unit if is_main else "", str(len(values))]
    row += [f"{value:.6g}" for value in (median(values), lower, upper, values[0], values[-1])]
    compared = baseline_estimate(record, underlay, scenario, forwarder) if is_main else None
    if compared is None:
        return [*row, "", "", "", ""]
    baseline, found = compared
    bounds = ["" if bound is None else f"{bound:.6g}" for bound in (found.lower, found.upper)]
    return [*row, baseline, f"{found.median:.6g}", *bounds]


def _whole_lines(path: Path) -> Iterator[Any]:
    """The runs; a last line without its end is no run."""
    for line in path.read_text().splitlines(keepends=True) if path.exists() else ():
        if line.endswith("\n"):
            yield json.loads(line)


def _replace(path: Path, text: str) -> None:
    """At once: who reads it sees the old or the new."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text)
    fresh.replace(path)
