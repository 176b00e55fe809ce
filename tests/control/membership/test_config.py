"""The formulas, against the tables of memberlist's own tests and of its documentation."""

from __future__ import annotations

import pytest

from control.membership.config import (
    GossipConfig,
    confirmations_wanted,
    push_pull_interval,
    query_timeout,
    retransmit_limit,
    suspicion_min,
    suspicion_timeout,
)
from control.membership.member import Endpoint

CONFIG = GossipConfig("n", Endpoint("192.0.2.1", 7946))


@pytest.mark.parametrize(
    ("confirmations", "elapsed", "remaining"),
    [(0, 0, 30.0), (1, 2, 14.0), (2, 3, 4.81), (3, 4, -2.0), (4, 5, -3.0), (5, 10, -8.0)],
)
def test_the_suspicion_table_of_a_peer(confirmations: int, elapsed: float, remaining: float) -> None:
    assert suspicion_timeout(confirmations, 3, 2.0, 30.0) - elapsed == pytest.approx(remaining, abs=0.005)


@pytest.mark.parametrize(
    ("members", "minimum", "retransmits", "push_pull"),
    [
        (10, 4.0, 8, 30),
        (50, 6.8, 8, 60),
        (100, 8.0, 12, 90),
        (500, 10.8, 12, 150),
        (1000, 12.0, 16, 180),
        (10000, 16.0, 20, 300),
    ],
)
def test_the_lan_profile_at_size(members: int, minimum: float, retransmits: int, push_pull: float) -> None:
    assert suspicion_min(CONFIG.suspicion_mult_at(members), members, 1.0) == pytest.approx(minimum, abs=0.05)
    assert retransmit_limit(members, extra=0) == retransmits
    assert push_pull_interval(members, 30.0) == push_pull


def test_the_timer_decays_towards_its_minimum() -> None:
    two = [suspicion_timeout(count, 2, 1.0, 6.0) for count in range(3)]
    four = [suspicion_timeout(count, 4, 1.0, 6.0) for count in range(5)]
    assert two == pytest.approx([6, 2.85, 1], abs=0.01)
    assert four == pytest.approx([6, 3.85, 2.59, 1.69, 1], abs=0.01)


def test_a_tiny_pool_has_nobody_to_confirm_and_waits_longer() -> None:
    # memberlist's four seconds leave a node no time for a pause of that length.
    assert [confirmations_wanted(CONFIG.suspicion_mult_at(members), members) for members in (2, 3, 4, 5)] == [
        0,
        0,
        2,
        2,
    ]
    assert suspicion_min(CONFIG.suspicion_mult_at(3), 3, 1.0) == 5.0
    assert suspicion_timeout(0, 0, 5.0, 30.0) == 5.0


def test_queries_wait_as_serf_does() -> None:
    assert query_timeout(9, 0.2) == pytest.approx(3.2)
    assert query_timeout(10, 0.2) == pytest.approx(6.4)
