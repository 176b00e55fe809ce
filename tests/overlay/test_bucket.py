"""A bucket never gives more than its burst and its rate; one source never takes another's share."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from overlay.bucket import SOURCES_MAX, FairBuckets, TokenBucket

STEPS = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 30)), max_size=60)


@given(STEPS, st.integers(1, 50), st.integers(1, 100))
def test_a_bucket_is_its_naive_twin(steps: list[tuple[int, int]], rate: int, burst: int) -> None:
    # In 1/64 seconds, which a float holds exactly: the twin counts in fractions.
    bucket = TokenBucket.full(rate, burst, now=0.0)
    level, now = Fraction(burst), 0
    for wait, tokens in steps:
        now += wait
        level = min(Fraction(burst), level + Fraction(wait * rate, 64))
        admitted = level >= tokens
        level -= tokens if admitted else 0
        assert bucket.take(tokens, now=now / 64) == admitted


@given(STEPS, st.integers(1, 50), st.integers(1, 100))
def test_nobody_gets_more_than_burst_and_rate(steps: list[tuple[int, int]], rate: int, burst: int) -> None:
    bucket = TokenBucket.full(rate, burst, now=0.0)
    now, given_out = 0.0, 0
    for wait, tokens in steps:
        now += wait / 64
        given_out += tokens * bucket.take(tokens, now=now)
        assert given_out <= burst + rate * now


def test_a_clock_that_went_back_refills_nothing() -> None:
    bucket = TokenBucket.full(10, 5, now=100.0)
    assert bucket.take(5, now=100.0)
    assert not bucket.take(1, now=50.0)


def test_a_clock_that_went_back_takes_nothing_away() -> None:
    bucket = TokenBucket.full(10, 5, now=100.0)
    assert bucket.take(5, now=50.0)


def test_a_source_that_floods_leaves_the_others_their_share() -> None:
    buckets = FairBuckets(rate=10, burst=100, share=0.5, now=0.0)
    assert sum(buckets.take("flood", now=0.0) for _ in range(1000)) == 50
    assert sum(buckets.take("quiet", now=0.0) for _ in range(10)) == 10


def test_all_sources_together_get_no_more_than_all() -> None:
    buckets = FairBuckets(rate=10, burst=100, share=0.5, now=0.0)
    assert sum(buckets.take(source, now=0.0) for source in range(10) for _ in range(50)) == 100


def test_a_source_gets_its_share_of_the_rate() -> None:
    buckets = FairBuckets(rate=8, burst=100, share=0.5, now=0.0)
    while buckets.take("flood", now=0.0):
        pass
    taken = sum(buckets.take("flood", now=eighth / 8) for eighth in range(1, 81) for _ in range(5))
    assert taken == 40  # ten seconds of half the rate


def test_only_so_many_sources_are_remembered_and_the_longest_idle_goes_first() -> None:
    buckets = FairBuckets(rate=0.001, burst=10 * SOURCES_MAX, share=1 / (10 * SOURCES_MAX), now=0.0)
    assert buckets.take("early", now=0.0)
    assert not buckets.take("early", now=0.0)  # its one token is gone
    for source in range(SOURCES_MAX - 1):
        buckets.take(source, now=0.0)
    assert not buckets.take("early", now=0.0)  # still remembered, and now the last to go
    for source in range(SOURCES_MAX - 1):
        buckets.take(f"more {source}", now=0.0)
    assert not buckets.take("early", now=0.0)
    for source in range(SOURCES_MAX):
        buckets.take(f"many more {source}", now=0.0)
    assert buckets.take("early", now=0.0)  # forgotten, and new again
