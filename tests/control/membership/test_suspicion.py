"""More accusers, less time; the same accuser twice is one."""

from __future__ import annotations

from control.membership.suspicion import Suspicion


def suspicion() -> Suspicion:
    return Suspicion("a", started_at=100.0, wanted=2, minimum=4.0, maximum=24.0)


def test_each_further_accuser_shortens_the_wait() -> None:
    doubted = suspicion()
    assert doubted.deadline == 124.0
    assert doubted.confirm("b")
    first = doubted.deadline
    assert doubted.confirm("c")
    assert 104.0 == doubted.deadline < first < 124.0


def test_nobody_confirms_twice_and_no_more_than_wanted() -> None:
    doubted = suspicion()
    assert not doubted.confirm("a")
    assert doubted.confirm("b")
    assert not doubted.confirm("b")
    assert doubted.is_doubtful
    assert doubted.confirm("c")
    assert not doubted.is_doubtful
    assert not doubted.confirm("d")


def test_where_nobody_can_confirm_nothing_is_doubtful() -> None:
    assert not Suspicion("a", started_at=0.0, wanted=0, minimum=5.0, maximum=30.0).is_doubtful
