"""Two records side by side: what became slower, and whether the records can tell.

Machines have moods, so what is compared is what each record compares within itself: the ratio to kernel
VXLAN, or what is added to no overlay, round by round.  Where a record has no baseline the figures themselves
have to do, and that is said.

    change = one's ratio ÷ the other's       for latencies: how much more is added, as a share of the latency

Something has regressed when it is worse by more than the threshold *and* the 95 % bound agrees that it is
worse at all (Welch's form of Student's t, with the fewer degrees of freedom of the two: on the safe side).
Worse without the bound's consent is `unclear`: more rounds would tell.  Only weft is judged; the rest shows
how much the machine has moved.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from bench.record import Record
from bench.report import BARE, KERNEL, NOTHING, figure, table
from bench.scenarios import SCENARIOS, Better, Scenario
from bench.statistics import t_95

# Ours
OURS = ("weft", "nodes")


class Change(Enum):
    """What became of a figure."""

    REGRESSED = "regressed"
    UNCLEAR = "unclear"  # worse by more than the threshold, but the spread is as large
    STEADY = "steady"
    IMPROVED = "improved"
    REFERENCE = "–"  # not ours


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of both records.

    Attributes:
        worse: How much worse it became, as a share; negative: better.
        least: The same with 95 % confidence, from below; None: there is one round only.
        baseline: What it was compared with inside each record; empty: with nothing.
    """

    underlay: str
    scenario: Scenario
    title: str
    before: float
    after: float
    worse: float
    least: float | None
    most: float | None
    baseline: str
    change: Change


def compare(before: Record, after: Record, threshold: float) -> Iterator[Row]:
    """A row for each figure that both have, in the order of the second.

    Args:
        threshold: As a share: 0.1 is ten percent.
    """
    titles = after.titles()
    for underlay, name in after.measured():
        for forwarder in titles:
            row = _row(
                (before, after), (underlay, SCENARIOS[name]), (forwarder, titles[forwarder]), threshold
            )
            if row is not None:
                yield row


def render_comparison(before: Record, after: Record, rows: Sequence[Row], threshold: float) -> str:
    """Markdown for a person."""
    lines = [f"# weft bench compare: {_name(before)} → {_name(after)}", ""]
    for record in (before, after):
        lines += [f"**{_name(record)} is partial: it was interrupted.**", ""] if record.partial else []
    if _machine(before) != _machine(after):
        lines += [f"Two machines: {_machine(before)}; {_machine(after)}. Only ratios mean anything.", ""]
    if not rows:
        return "\n".join([*lines, "There is no figure that both have.", ""])
    headers = ["", "underlay", "forwarder", "before", "after", "compared with", "worse by", "95 %", ""]
    lines += table(headers, map(_cells, rows))
    regressed = sum(row.change is Change.REGRESSED for row in rows)
    lines += ["", f"{regressed} regressed by more than {threshold:.0%}."]
    if any(row.change is Change.UNCLEAR for row in rows):
        lines += ["What is unclear is worse in the median and within the spread: more rounds would tell."]
    return "\n".join([*lines, ""])


def rows_as_data(rows: Sequence[Row]) -> list[dict[str, object]]:
    """The data of weft.bench.compare/1."""
    return [
        {
            "underlay": row.underlay,
            "scenario": row.scenario.name,
            "forwarder": row.title,
            "before": row.before,
            "after": row.after,
            "baseline": row.baseline or None,
            "worse": row.worse,
            "worse_at_least": row.least,
            "worse_at_most": row.most,
            "change": row.change.name.lower(),
        }
        for row in rows
    ]


def _row(
    records: tuple[Record, Record], where: tuple[str, Scenario], who: tuple[str, str], threshold: float
) -> Row | None:
    underlay, scenario = where
    forwarder, title = who
    before, after = (
        list(record.values(underlay, scenario.name, forwarder, scenario.measure).values())
        for record in records
    )
    if not before or not after:
        return None
    baseline = _baseline(records, where, forwarder)
    first, second = (_levels(record, where, forwarder, baseline) for record in records)
    if not first or not second:
        return None
    worse, least, most = _worsening(first, second)
    if scenario.by_difference:
        scale = statistics.median(before)
        worse, least, most = (
            worse / scale,
            *(None if each is None else each / scale for each in (least, most)),
        )
    elif scenario.better is Better.HIGHER:
        worse, least, most = 1 - math.exp(worse), _share_lost(most), _share_lost(least)
    else:
        worse, least, most = math.expm1(worse), _share_gained(least), _share_gained(most)
    change = change_of(worse, least, most, threshold) if forwarder.startswith(OURS) else Change.REFERENCE
    medians = statistics.median(before), statistics.median(after)
    return Row(underlay, scenario, title, *medians, worse, least, most, baseline, change)


def change_of(worse: float, least: float | None, most: float | None, threshold: float) -> Change:
    """By the median and the bounds of how much worse it became."""
    if worse > threshold:
        return Change.REGRESSED if least is not None and least > 0 else Change.UNCLEAR
    if worse < -threshold and most is not None and most < 0:
        return Change.IMPROVED
    return Change.STEADY


def _baseline(records: tuple[Record, Record], where: tuple[str, Scenario], forwarder: str) -> str:
    """What both records can compare the forwarder with; empty: nothing."""
    underlay, scenario = where
    baseline = BARE if scenario.by_difference else KERNEL
    if scenario.is_alone or forwarder == baseline:
        return ""
    has_it = (record.values(underlay, scenario.name, baseline, scenario.measure) for record in records)
    return baseline if all(has_it) else ""


def _levels(record: Record, where: tuple[str, Scenario], forwarder: str, baseline: str) -> list[float]:
    """One number a round that may be averaged: a logarithm of a ratio, or what is added."""
    underlay, scenario = where
    if baseline:
        pairs = record.paired(underlay, scenario.name, (forwarder, baseline), scenario.measure)
    else:
        values = record.values(underlay, scenario.name, forwarder, scenario.measure).values()
        pairs = [(value, 0.0 if scenario.by_difference else 1.0) for value in values]
    if scenario.by_difference:
        return [one - other for one, other in pairs]
    return [math.log(one / other) for one, other in pairs if one > 0 and other > 0]


def _worsening(first: Sequence[float], second: Sequence[float]) -> tuple[float, float | None, float | None]:
    """How much higher the second is, by the medians, and between which bounds, by the means."""
    change = statistics.median(second) - statistics.median(first)
    if min(len(first), len(second)) < 2:
        return change, None, None
    error = math.sqrt(sum(statistics.variance(each) / len(each) for each in (first, second)))
    reach = t_95(min(len(first), len(second)) - 1) * error
    mean = statistics.fmean(second) - statistics.fmean(first)
    return change, min(change, mean - reach), max(change, mean + reach)


def _share_gained(log_change: float | None) -> float | None:
    return None if log_change is None else math.expm1(log_change)


def _share_lost(log_change: float | None) -> float | None:
    return None if log_change is None else 1 - math.exp(log_change)


def _cells(row: Row) -> list[str]:
    bounds = NOTHING if row.least is None or row.most is None else f"{row.least:+.0%} … {row.most:+.0%}"
    return [
        f"{row.scenario.title}, {row.scenario.unit}",
        row.underlay,
        row.title,
        figure(row.before),
        figure(row.after),
        row.baseline or NOTHING,
        f"{row.worse:+.1%}",
        bounds,
        row.change.value,
    ]


def _name(record: Record) -> str:
    return f"{record.started_at} ({record.machine.revision or 'no revision'})"


def _machine(record: Record) -> str:
    machine = record.machine
    return f"{machine.cores} × {machine.cpu}, Linux {machine.kernel}"
