"""Verdicts are values: equal where they say the same, and nobody can change one that is remembered."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from ipaddress import ip_address

import pytest

from overlay.addr import NetworkId
from overlay.verdict import (
    EVERY_VTEP,
    Decision,
    Deliver,
    Drop,
    DropReason,
    Encapsulate,
    Replicate,
    Reply,
    Table,
    TableKey,
    Verdict,
)

VTEP = ip_address("192.0.2.2")


def verdicts() -> list[Verdict]:
    return [
        Deliver(),
        Encapsulate(VTEP),
        Replicate(EVERY_VTEP),
        Reply(b"answer"),
        *(Drop(reason) for reason in DropReason),
    ]


def test_verdicts_that_say_the_same_are_equal() -> None:
    assert verdicts() == verdicts()
    assert len(set(verdicts())) == len(verdicts())


@pytest.mark.parametrize("verdict", verdicts(), ids=repr)
def test_a_verdict_cannot_be_changed(verdict: Verdict) -> None:
    with pytest.raises((FrozenInstanceError, TypeError, AttributeError)):
        verdict.reason = DropReason.NO_VTEP  # type: ignore[union-attr, misc]


def test_a_decision_rests_on_nothing_unless_it_says_so() -> None:
    decision = Decision(Deliver(), key=None)
    assert (decision.delta, decision.rests_on, decision.expires_at) == (None, (), None)


def test_a_place_is_told_from_the_same_key_in_another_table_or_network() -> None:
    places = {TableKey(table, NetworkId(network), b"key") for table in Table for network in ("one", "two")}
    assert len(places) == 2 * len(Table)
