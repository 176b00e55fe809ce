"""How fast a pool becomes one, and stays one: joining, losing half the network, healing."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

import pytest
from support.gossip_world import Actor, World, believes, world
from support.seeds import many_seeds
from support.snapshots import assert_snapshot, table

from control.membership.member import MemberState

JOIN_WITHIN = 3.0  # seconds: five nodes by one --join
HEAL_WITHIN = 35.0  # seconds after a partition ends


def join_by_one_seed(made: World, count: int) -> list[Actor]:
    first = made.add("n0")
    return [first, *(made.add(f"n{number}", seeds=(first.endpoint,)) for number in range(1, count))]


@pytest.mark.parametrize("seed", range(10))
def test_five_nodes_see_each_other_by_one_join(seed: int) -> None:
    with world(seed, "five-join") as made:
        join_by_one_seed(made, 5)
        made.run_until(made.is_one_pool, within=JOIN_WITHIN)


def test_a_joiner_that_was_first_finds_the_seed_once_it_is_there() -> None:
    with world(1, "seed-comes-late") as made:
        joiner = made.add("n1", seeds=(made.endpoint_of(2),))
        made.run(5.0)
        made.add("n0", endpoint=made.endpoint_of(2))
        made.run_until(made.is_one_pool, within=10.0)
        assert believes(joiner, "n0", MemberState.ALIVE)


def convergence(counts: Iterable[int], losses: Iterable[float], seeds: range) -> list[list[object]]:
    rows: list[list[object]] = []
    for count in counts:
        row: list[object] = [count]
        for loss in losses:
            times = []
            for seed in seeds:
                with world(seed, f"join-{count}-{loss}", keeps_events=False) as made:
                    made.weather.loss = loss
                    join_by_one_seed(made, count)
                    times.append(made.run_until(made.is_one_pool, within=120.0))
            row.append(f"{statistics.median(times):.1f} / {max(times):.1f}")
        rows.append(row)
    return rows


def test_joining_converges_as_it_did() -> None:
    losses = (0.0, 0.1, 0.3)
    rows = convergence((5, 20, 50), losses, range(5))
    head = ["nodes", *(f"loss {loss:.0%}: median / worst s" for loss in losses)]
    assert_snapshot("convergence", table(head, rows))


@pytest.mark.long_sim
@pytest.mark.timeout(3600)
def test_joining_converges_at_two_hundred() -> None:
    for _, lossless, *_ in convergence((100, 200), (0.0, 0.1, 0.3), many_seeds(5)):
        assert float(str(lossless).split(" / ")[1]) < 60.0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [2, 5, 12])
def test_halves_of_two_minutes_are_one_pool_soon_after(seed: int, count: int) -> None:
    with world(seed, "halves") as made:
        actors = made.pool(count)
        made.partition(actors[: count // 2], actors[count // 2 :])
        made.run(120.0)
        assert believes(actors[0], actors[-1].name, MemberState.DEAD)
        assert made.is_one_pool(actors[: count // 2])
        assert made.is_one_pool(actors[count // 2 :])
        made.heal()
        made.run_until(made.is_one_pool, within=HEAL_WITHIN)


def test_halves_of_an_hour_are_one_pool_soon_after() -> None:
    # Everybody's news has long been gossiped out: only the rejoining heals this.
    with world(3, "halves-hour", keeps_events=False) as made:
        actors = made.pool(6)
        made.partition(actors[:3], actors[3:])
        made.run(3600.0)
        made.heal()
        made.run_until(made.is_one_pool, within=HEAL_WITHIN)


def test_a_lone_node_without_seeds_is_found_again() -> None:
    with world(4, "lone") as made:
        actors = made.pool(6)
        made.partition(actors[:1], actors[1:])
        made.run(600.0)
        made.heal()
        made.run_until(made.is_one_pool, within=HEAL_WITHIN)


@pytest.mark.long_sim
@pytest.mark.timeout(3600)
def test_halves_of_a_hundred_heal() -> None:
    for seed in many_seeds(20):
        with world(seed, "halves-100", keeps_events=False) as made:
            actors = made.pool(100)
            made.partition(actors[::2], actors[1::2])
            made.run(120.0)
            made.heal()
            made.run_until(made.is_one_pool, within=HEAL_WITHIN)
