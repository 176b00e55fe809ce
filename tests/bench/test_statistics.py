"""Estimates against values worked out by hand, and bounds against how often they should hold."""

from __future__ import annotations

import math
import random

import pytest

from bench.statistics import (
    T_95,
    estimate_difference,
    estimate_level,
    estimate_ratio,
    percentile,
    t_95,
)


def test_a_ratio_and_its_bounds_are_those_worked_out_by_hand() -> None:
    # Logarithms 0, ln 2, 2 ln 2: mean ln 2, deviation ln 2, so the reach is 2.920 ln 2 / √3.
    found = estimate_ratio([(3, 3), (4, 2), (20, 5)])
    assert found is not None
    reach = 2.920 * math.log(2) / math.sqrt(3)
    assert found.count == 3
    assert found.median == pytest.approx(2)
    assert found.lower == pytest.approx(2 / math.exp(reach))
    assert found.upper == pytest.approx(2 * math.exp(reach))


def test_a_difference_and_its_bounds_are_those_worked_out_by_hand() -> None:
    found = estimate_difference([(10, 9), (20, 17), (30, 25)])  # 1, 3, 5
    assert found is not None
    assert (found.median, found.count) == (3, 3)
    assert found.lower == pytest.approx(3 - 2.920 * 2 / math.sqrt(3))


def test_a_half_and_a_double_are_equally_far_from_one() -> None:
    found = estimate_ratio([(1, 2), (2, 1)])
    assert found is not None
    assert found.median == pytest.approx(1)
    assert found.lower is not None
    assert found.upper is not None
    assert found.lower * found.upper == pytest.approx(1)


def test_one_round_has_no_bounds() -> None:
    found = estimate_ratio([(3, 2)])
    assert found is not None
    assert found.median == pytest.approx(1.5)
    assert (found.lower, found.upper) == (None, None)


def test_nothing_measured_is_no_estimate() -> None:
    assert estimate_level([]) is None
    assert estimate_ratio([]) is None
    assert estimate_ratio([(1, 0), (0, 1)]) is None


def test_a_bound_never_claims_more_than_the_median() -> None:
    found = estimate_level([1.0] * 20 + [2.0] * 15)  # the mean is 1.43, and its bound 1.29
    assert found is not None
    assert found.lower is not None
    assert found.lower == found.median == 1.0


def test_the_lower_bound_holds_in_19_of_20_benches() -> None:
    chance = random.Random(20)
    trials, held = 3000, 0
    for _ in range(trials):
        found = estimate_ratio([(chance.lognormvariate(0.5, 0.3), 1.0) for _ in range(10)])
        assert found is not None
        assert found.lower is not None
        held += found.lower <= math.exp(0.5)
    assert held / trials == pytest.approx(0.95, abs=0.02)


def test_student_needs_less_the_more_there_is() -> None:
    assert list(T_95) == sorted(T_95, reverse=True)
    assert (t_95(1), t_95(9), t_95(30)) == (6.314, 1.833, 1.697)
    assert t_95(1000) == 1.697


@pytest.mark.parametrize(("percent", "expected"), [(0, 1), (1, 1), (50, 50), (90, 90), (99, 99), (100, 100)])
def test_percentiles_are_values_that_occurred(percent: float, expected: float) -> None:
    values = list(range(100, 0, -1))
    assert percentile(values, percent) == expected


def test_a_percentile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected values"):
        percentile([], 50)
