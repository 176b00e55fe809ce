"""The search for the highest rate finds it, in a bounded number of tries, whatever the forwarder is like."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.search import SPAN_ABOVE, SPAN_BELOW, STEPS, TRIES, RateSearch

RESOLUTION = (SPAN_ABOVE * SPAN_BELOW) ** (1 / 2**STEPS)


def search_for(limit: float, delivered: float) -> tuple[float | None, int]:
    """What is found of a forwarder that carries everything up to `limit`, and in how many tries."""
    search = RateSearch(delivered)
    tries = 0
    while (rate := search.next_rate()) is not None:
        tries += 1
        search.record(sent=rate, received=min(rate, limit), seconds=1.0)
    return search.best, tries


@given(st.floats(0.15, 3.9), st.floats(1e3, 1e6))
def test_the_limit_is_found_within_the_resolution(share: float, delivered: float) -> None:
    limit = share * delivered
    best, tries = search_for(limit, delivered)
    assert STEPS <= tries <= TRIES * STEPS
    assert best is not None
    assert limit / RESOLUTION / 1.002 <= best <= limit * 1.002


def test_what_loses_at_any_rate_has_no_best() -> None:
    assert search_for(limit=1.0, delivered=1e5) == (None, STEPS)


@pytest.mark.parametrize(("lost", "carried"), [(0, True), (1, True), (2, False), (500, False)])
def test_carried_means_almost_all_received(lost: int, carried: bool) -> None:
    search = RateSearch(100.0)
    for _ in range(TRIES):
        is_new = search.best is None
        assert search.record(sent=1000, received=1000 - lost, seconds=20.0) is (carried and is_new)
    assert (search.best is not None) is carried


def test_bad_moments_are_forgiven_but_not_every_time() -> None:
    search = RateSearch(100.0)
    rate = search.next_rate()
    for _ in range(TRIES - 1):
        search.record(sent=1000, received=990, seconds=10.0)
        assert search.next_rate() == rate
    search.record(sent=1000, received=1000, seconds=10.0)
    higher = search.next_rate()
    assert rate is not None
    assert higher is not None
    assert higher > rate
    for _ in range(TRIES):
        assert search.next_rate() == higher
        search.record(sent=1000, received=990, seconds=10.0)
    lower = search.next_rate()
    assert lower is not None
    assert rate < lower < higher


def test_a_clear_loss_needs_no_second_try() -> None:
    search = RateSearch(100.0)
    rate = search.next_rate()
    search.record(sent=1000, received=900, seconds=10.0)
    lower = search.next_rate()
    assert rate is not None
    assert lower is not None
    assert lower < rate


def test_a_sender_that_could_not_keep_its_pace_has_shown_what_it_sent() -> None:
    search = RateSearch(100.0)
    assert search.record(sent=300, received=300, seconds=10.0)
    assert search.best == 30.0
    assert not search.record(sent=200, received=200, seconds=10.0)
    assert search.best == 30.0
