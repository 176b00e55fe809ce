"""From runs to statements: medians, percentiles, and how sure one may be of a ratio.

Two forwarders are compared round by round, because two runs a few seconds apart share the mood of the
machine and two runs an hour apart do not.  Ratios are skewed (a half and a double are equally far from one),
so their logarithms are averaged: the bounds are those of Student's t on the paired log-ratios, 95 % on the
side that is asked for.  Differences are treated the same without the logarithm.

What is shown as the ratio is the median, which one spoilt round does not move.  A bound never claims more
than the median does: where skew would put it on the other side, it is the median.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# From the specification
# Student's t, 95 % one-sided, for 1, 2, … 30 degrees of freedom (NIST/SEMATECH e-Handbook, 1.3.6.7.2).
T_95 = (
    *(6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812),
    *(1.796, 1.782, 1.771, 1.761, 1.753, 1.746, 1.740, 1.734, 1.729, 1.725),
    *(1.721, 1.717, 1.714, 1.711, 1.708, 1.706, 1.703, 1.701, 1.699, 1.697),
)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median, and where the truth is at least and at most, each with 95 % confidence.

    The bounds are None where there is one round only: nothing is known of the spread then.
    """

    median: float
    lower: float | None
    upper: float | None
    count: int


def estimate_ratio(pairs: Sequence[tuple[float, float]]) -> Estimate | None:
    """Of the first of each pair to the second; pairs without a positive value on both sides do not count."""
    logs = [math.log(one / other) for one, other in pairs if one > 0 and other > 0]
    found = estimate_level(logs)
    if found is None:
        return None
    lower, upper = (None if bound is None else math.exp(bound) for bound in (found.lower, found.upper))
    return Estimate(math.exp(found.median), lower, upper, found.count)


def estimate_difference(pairs: Sequence[tuple[float, float]]) -> Estimate | None:
    """Of the first of each pair less the second."""
    return estimate_level([one - other for one, other in pairs])


def estimate_level(values: Sequence[float]) -> Estimate | None:
    """Of what is not compared with anything; None: there are no values."""
    if not values:
        return None
    median = statistics.median(values)
    if len(values) == 1:
        return Estimate(median, None, None, 1)
    reach = t_95(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return Estimate(median, min(median, mean - reach), max(median, mean + reach), len(values))


def t_95(degrees: int) -> float:
    """Student's t, 95 % one-sided; beyond the table its last value, which is on the safe side."""
    return T_95[min(degrees, len(T_95)) - 1]


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all are not above (the nearest rank).

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("expected values, found none")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]
