"""What must hold: the floors and aims of weft's speed, as ratios within one run, and whether they are met.

A floor is met when the 95 % bound reaches it, not when the median does.  Where waking another core is dear
(`Machine.wakes_dearly`) some floors are lower; the aims are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from bench.lab.topology import UnderlayKind
from bench.record import Record
from bench.statistics import Estimate, estimate_difference, estimate_level, estimate_ratio

# Ours
PAIRS_TO_PUBLISH = 10
VETH, WIRE = UnderlayKind.VETH.value, UnderlayKind.WIRE_LIKE.value
BOTH = (VETH, WIRE)
KERNEL, FASTD, BARE = "kernel", "fastd", "bare"
PYTHON, PYTHON_RUNG1, PYTHON_RUNG2 = "weft:python", "weft:python:rung1", "weft:python:rung2"
PYTHON_VTEPS = "weft:python:vteps=1000"
NATIVE = "weft:native"
ENGINES = (PYTHON, NATIVE)


class Verdict(Enum):
    """How a figure stands to its floor."""

    AIM_MET = "aim met"
    MET = "met"
    NOT_SHOWN = "not shown"  # the median is there, the bound is not: more pairs would tell
    NOT_MET = "not met"


@dataclass(frozen=True, slots=True)
class Floor:
    """One requirement.

    Attributes:
        over: The forwarder it is compared with; None: the figure stands for itself.
        adds: Compared by difference instead of ratio.
        at_most: The figure must not be above the floor; otherwise not below it.
        dear: The floor where waking another core is dear; None: the same.
    """

    scenario: str
    measure: str
    forwarders: tuple[str, ...]
    over: str | None
    floor: float
    underlays: tuple[str, ...] = BOTH
    adds: bool = False
    at_most: bool = False
    dear: float | None = None
    aim: float | None = None
    title: str = ""


FLOORS = (
    # The engine written in Python
    Floor("tcp-1", "gbit_s", (PYTHON, PYTHON_RUNG2), KERNEL, 0.35, (VETH,), aim=0.5),
    Floor("tcp-1", "gbit_s", (PYTHON_RUNG1,), FASTD, 0.8, (VETH,), aim=1.0),
    Floor("tcp-1", "gbit_s", (PYTHON,), FASTD, 0.6, (WIRE,), aim=0.8),
    Floor("udp-64", "kpps", (PYTHON,), FASTD, 1.0, aim=1.2),
    Floor("rate-64", "kpps", (PYTHON,), FASTD, 0.9),
    Floor("udp-1400", "kpps", (PYTHON,), FASTD, 0.8),
    Floor("udp-64", "kpps", (PYTHON_VTEPS,), PYTHON, 0.8),
    Floor("rr", "p50_us", (PYTHON,), BARE, 40, adds=True, at_most=True, dear=120),
    # The native engine
    Floor("tcp-1", "gbit_s", (NATIVE,), KERNEL, 0.6, (VETH,), aim=0.8),
    Floor("tcp-1", "gbit_s", (NATIVE,), KERNEL, 1.0, (WIRE,), dear=0.8, aim=1.2),
    Floor("tcp-1", "gbit_s", (NATIVE,), FASTD, 6, (VETH,), aim=15),
    Floor("udp-64", "kpps", (NATIVE,), KERNEL, 1.3, dear=0.8, aim=2.0),
    Floor("udp-64", "kpps", (NATIVE,), FASTD, 3.5, aim=6),
    Floor("rate-64", "kpps", (NATIVE,), KERNEL, 1.0, dear=0.6, aim=1.5),
    Floor("udp-1400", "kpps", (NATIVE,), KERNEL, 1.1, dear=0.65, aim=1.5),
    Floor(
        *("tcp-1", "cpu_s_per_gb", (NATIVE,), KERNEL, 2.2, (VETH,)),
        at_most=True,
        aim=1.5,
        title="TCP, 1 stream, CPU-seconds per GB",
    ),
    Floor("rr", "p50_us", (NATIVE,), BARE, 20, adds=True, at_most=True, dear=70, aim=8),
    # Both
    Floor("macs", "ratio", (PYTHON,), None, 0.8),
    Floor("macs", "ratio", (NATIVE,), None, 0.8, aim=0.95),
    Floor("daemon", "start_s", ENGINES, None, 1.0, at_most=True),
    Floor("daemon", "idle_percent", ENGINES, None, 0.5, at_most=True, title="idle CPU, 3 nodes, % of a core"),
    Floor("daemon", "resident_mb", ENGINES, None, 90, at_most=True, title="resident memory, MB"),
)


@dataclass(frozen=True, slots=True)
class Judgement:
    """One floor, held against one forwarder's runs over one underlay."""

    floor: Floor
    forwarder: str
    underlay: str
    needed: float
    estimate: Estimate
    verdict: Verdict

    @property
    def bound(self) -> float | None:
        """The one that counts: the upper where the figure must be small."""
        return self.estimate.upper if self.floor.at_most else self.estimate.lower

    @property
    def may_be_published(self) -> bool:
        return self.floor.over is None or self.estimate.count >= PAIRS_TO_PUBLISH


def judge(record: Record) -> Iterator[Judgement]:
    """Every floor there are runs for."""
    for floor in FLOORS:
        needed = floor.dear if record.machine.wakes_dearly and floor.dear is not None else floor.floor
        for underlay in floor.underlays:
            for forwarder in floor.forwarders:
                estimate = _estimate(record, floor, underlay, forwarder)
                if estimate is not None:
                    verdict = verdict_of(estimate, needed, floor.aim, at_most=floor.at_most)
                    yield Judgement(floor, forwarder, underlay, needed, estimate, verdict)


def verdict_of(estimate: Estimate, needed: float, aim: float | None, *, at_most: bool) -> Verdict:
    """By the bound on the side that matters; without a bound nothing is shown."""
    sign = -1 if at_most else 1
    bound = estimate.upper if at_most else estimate.lower
    if sign * estimate.median < sign * needed:
        return Verdict.NOT_MET
    if bound is None or sign * bound < sign * needed:
        return Verdict.NOT_SHOWN
    if aim is not None and sign * bound >= sign * aim:
        return Verdict.AIM_MET
    return Verdict.MET


def _estimate(record: Record, floor: Floor, underlay: str, forwarder: str) -> Estimate | None:
    if floor.over is None:
        return estimate_level(
            list(record.values(underlay, floor.scenario, forwarder, floor.measure).values())
        )
    pairs = record.paired(underlay, floor.scenario, (forwarder, floor.over), floor.measure)
    return estimate_difference(pairs) if floor.adds else estimate_ratio(pairs)
