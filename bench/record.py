"""What a bench leaves behind: every run, and all that one must know to believe it; JSON, `weft.bench/1`.

The record keeps runs and no conclusions: medians, ratios and verdicts are drawn by `report` and `floors`, so
that an old record can be read with today's understanding.  A record is one JSON document here, as `--json`
prints it and `bench/history` keeps it; while a bench runs it is a directory: `bench.results`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.machine import Machine
from bench.meter import STEAL_MOST

# Ours
SCHEMA = "weft.bench/1"
AGAIN = "#again"
"""Follows the name of the forwarder that has two turns in every round: its ratio to itself is noise."""


@dataclass(frozen=True, slots=True)
class Run:
    """One forwarder's turn in one round of one scenario.

    Attributes:
        forwarder: Its name, with AGAIN where it is the second turn of the same round.
        round: From 0; in odd rounds the order of forwarders is reversed.
        measures: Figures by name; empty where the run failed.
        redone: How many times it was done anew because time was stolen or cores were slow.
        error: Why there are no figures.
        curves: Points [x, y] by name, for what one figure does not tell: `cdf_us`, `loss_at_kpps`.
    """

    underlay: str
    scenario: str
    forwarder: str
    round: int
    measures: Mapping[str, float] = field(default_factory=dict)
    redone: int = 0
    error: str | None = None
    curves: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entry:
    """A forwarder on one stage.

    Attributes:
        why: Why it did not take part; None: it did.
        facts: What it says of itself: engine, rungs with reasons, memory.
    """

    underlay: str
    nodes: int
    name: str
    title: str
    why: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Record:
    """One bench, under way or ended.

    Attributes:
        pairs: Rounds that were asked for.
        steal_most: Runs from which a larger share of the time was stolen were not counted.
        slowed_most: Nor runs before or after which a core was slower by a larger share than at its best;
            None: all were counted.
        partial: It was interrupted, or is still going on.
        stages: For each underlay: MTU, offloads, and what all daemons together take while they are idle.
    """

    started_at: str
    suite: str
    pairs: int
    seconds: float
    machine: Machine
    steal_most: float = STEAL_MOST
    slowed_most: float | None = None
    ended_at: str = ""
    partial: bool = True
    stages: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    def titles(self) -> dict[str, str]:
        """Name → title of every forwarder, in the order they were asked for."""
        return {entry.name: entry.title for entry in self.entries}

    def measured(self) -> Iterator[tuple[str, str]]:
        """Every (underlay, scenario) there are runs of, in the order they came."""
        yield from dict.fromkeys((run.underlay, run.scenario) for run in self.runs)

    def values(self, underlay: str, scenario: str, forwarder: str, measure: str) -> dict[int, float]:
        """Round → the figure, where there is one."""
        return {
            run.round: run.measures[measure]
            for run in self.runs
            if (run.underlay, run.scenario, run.forwarder) == (underlay, scenario, forwarder)
            and measure in run.measures
        }

    def paired(
        self, underlay: str, scenario: str, names: tuple[str, str], measure: str
    ) -> list[tuple[float, float]]:
        """The figures of two forwarders, of the rounds that have both."""
        first, second = (self.values(underlay, scenario, name, measure) for name in names)
        return [(first[number], second[number]) for number in sorted(first.keys() & second.keys())]


def as_data(record: Record) -> dict[str, Any]:
    """The data of weft.bench/1."""
    return asdict(record)


def as_document(record: Record) -> dict[str, Any]:
    """The whole record as one JSON object."""
    return {"schema": SCHEMA, "data": as_data(record)}


def read_record(text: str) -> Record:
    """A record as `--json` prints it.

    Raises:
        ValueError: It is none.
    """
    try:
        return record_of(json.loads(text))
    except json.JSONDecodeError as error:
        raise ValueError(f"expected a record of {SCHEMA}, found something else: {error}") from error


def record_of(document: Any) -> Record:
    """The record in a JSON document.

    Raises:
        ValueError: It is none.
    """
    try:
        found = document["schema"]
        if found != SCHEMA:
            raise ValueError(f"expected a record of {SCHEMA}, found {found!r}")
        data = dict(document["data"])
        machine = Machine(**data.pop("machine"))
        entries = [Entry(**entry) for entry in data.pop("entries")]
        runs = [Run(**run) for run in data.pop("runs")]
        return Record(machine=machine, entries=entries, runs=runs, **data)
    except (KeyError, TypeError) as error:
        raise ValueError(f"expected a record of {SCHEMA}, found something else: {error}") from error
