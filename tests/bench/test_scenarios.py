"""Scenarios are found by name, and complete."""

from __future__ import annotations

import pytest

from bench.meter import ProcessWork, Usage
from bench.scenarios import ALL, SCENARIOS, UdpRun, _added_cpu_s, parse_scenario

USAGE = Usage(1.0, (ProcessWork(), ProcessWork()), 0.0, 1.0)


def test_a_scenario_is_found_by_its_name() -> None:
    assert parse_scenario("tcp-1").title == "TCP, 1 stream"
    assert [parse_scenario(name) for name in SCENARIOS] == list(ALL)


def test_what_there_is_not_is_named_beside_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"expected one of tcp-1, .*daemon, .*found 'udp-65'"):
        parse_scenario("udp-65")


def test_names_are_unique_and_costs_grow_with_the_seconds() -> None:
    assert len(SCENARIOS) == len(ALL)
    for scenario in ALL:
        assert scenario.cost(10) >= scenario.cost(1) > 0


def test_all_that_was_asked_for_is_there() -> None:
    assert set(SCENARIOS) == {
        *("tcp-1", "tcp-1-reverse", "tcp-1-cubic", "tcp-4", "tcp-16", "tcp-both-ways"),
        *("peers-1", "peers-4", "peers-16", "broadcast-1", "broadcast-4", "broadcast-16"),
        *("udp-64", "udp-512", "udp-1400", "rate-64", "rr", "churn", "macs", "daemon"),
    }


@pytest.mark.parametrize(
    ("sent", "received", "loss"), [(100, 75, 0.25), (100, 100, 0.0), (100, 101, 0.0), (0, 0, 1.0)]
)
def test_loss_is_a_share_of_what_was_sent(sent: int, received: int, loss: float) -> None:
    assert UdpRun(sent, received, 1.0, 1.0, USAGE).loss == pytest.approx(loss)


def test_what_the_machine_does_anyway_is_not_the_traffics_cost() -> None:
    before = Usage(0.4, (), 0.0, 0.5)
    assert _added_cpu_s(before, Usage(2.0, (), 0.0, 1.5)) == pytest.approx(0.8)
