"""Separate limits for three kinds of upcall, none of which one source can take for itself."""

from __future__ import annotations

import pytest

from tunnel.meter import SHARE, Meter, UpcallKind


def admitted(meter: Meter, kind: UpcallKind, source: str, *, now: float = 0.0) -> int:
    """How many more this source is given."""
    count = 0
    while meter.admits(kind, source, now=now):
        count += 1
    return count


@pytest.mark.parametrize("kind", UpcallKind)
def test_one_source_gets_its_share_of_the_burst(kind: UpcallKind) -> None:
    _, burst = kind.value
    assert admitted(Meter(now=0.0), kind, "flood") == burst * SHARE


@pytest.mark.parametrize("kind", UpcallKind)
def test_a_flood_of_one_source_leaves_another_its_share(kind: UpcallKind) -> None:
    meter = Meter(now=0.0)
    _, burst = kind.value
    admitted(meter, kind, "flood")
    assert admitted(meter, kind, "quiet") == burst * SHARE


@pytest.mark.parametrize("kind", UpcallKind)
def test_a_flood_of_one_kind_leaves_the_others_alone(kind: UpcallKind) -> None:
    meter = Meter(now=0.0)
    for source in ("one", "two", "three"):
        admitted(meter, kind, source)
    others = [other for other in UpcallKind if other is not kind]
    assert all(meter.admits(other, "one", now=0.0) for other in others)
    assert not meter.admits(kind, "one", now=0.0)


@pytest.mark.parametrize("kind", UpcallKind)
def test_a_second_later_there_is_a_second_of_the_rate_more(kind: UpcallKind) -> None:
    meter = Meter(now=0.0)
    rate, burst = kind.value
    admitted(meter, kind, "flood")
    assert admitted(meter, kind, "flood", now=1.0) == min(rate, burst) * SHARE
