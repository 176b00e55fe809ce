"""A node's opinion of itself is bounded, and stretches its patience."""

from __future__ import annotations

from control.membership.awareness import Awareness


def test_the_score_stays_within_its_bounds() -> None:
    awareness = Awareness()
    awareness.apply(-1)
    assert awareness.stretch(1.0) == 1.0
    awareness.apply(100)
    assert (awareness.score, awareness.stretch(1.0)) == (7, 8.0)
