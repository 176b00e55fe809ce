"""Faults of the network, of machines and of clocks: who must not die does not, and it all mends."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from support.gossip_world import Actor, Weather, World, believes, changes_of, weft_tags, world
from support.seeds import many_seeds

from control.membership.events import Event, MemberChanged, NameConflict
from control.membership.member import VERSIONS, Endpoint, MemberState
from control.membership.snapshot import Snapshot, snapshot_of
from control.membership.wire import Alive, Dead, Suspect, encode


def watch_deaths(made: World) -> list[tuple[float, str, str]]:
    """Every (time, believer, buried) from now on, as it happens."""
    deaths: list[tuple[float, str, str]] = []

    def watch(actor: Actor, event: Event) -> None:
        if isinstance(event, MemberChanged) and event.member.state is MemberState.DEAD:
            deaths.append((made.now, actor.name, event.member.name))

    made.watchers.append(watch)
    return deaths


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "weather",
    [
        Weather(loss=0.1),
        Weather(duplication=0.5),
        Weather(delay=(0.0, 0.4)),
        Weather(loss=0.05, duplication=0.2, delay=(0.001, 0.2)),
    ],
    ids=["loss", "duplication", "reorder", "all"],
)
def test_bad_weather_kills_nobody(seed: int, weather: Weather) -> None:
    with world(seed, "weather") as made:
        made.pool(20)
        made.weather = weather
        deaths = watch_deaths(made)
        made.run(60.0)
        assert deaths == []


@pytest.mark.parametrize("seed", range(3))
def test_heavy_loss_ends_in_one_pool(seed: int) -> None:
    with world(seed, "loss-30") as made:
        made.pool(20)
        made.weather.loss = 0.3
        made.run(60.0)
        made.weather.loss = 0.0
        made.run_until(made.is_one_pool, within=35.0)


@pytest.mark.parametrize("seed", range(4))
def test_a_one_way_link_kills_nobody(seed: int) -> None:
    with world(seed, "one-way") as made:
        actors = made.pool(10)
        made.cut.add((actors[0].name, actors[1].name))
        deaths = watch_deaths(made)
        made.run(90.0)
        assert deaths == []


@pytest.mark.parametrize("seed", range(4))
def test_halves_joined_by_a_bridge_keep_the_bridge_and_mend(seed: int) -> None:
    with world(seed, "bridge") as made:
        actors = made.pool(9)
        bridge, left, right = actors[0], actors[1:5], actors[5:]
        made.partition(left, right)
        deaths = watch_deaths(made)
        made.run(120.0)
        assert bridge.name not in {buried for _, _, buried in deaths}
        made.heal()
        made.run_until(made.is_one_pool, within=35.0)


@pytest.mark.parametrize("period", [1.0, 7.0, 30.0])
def test_a_flapping_node_takes_nobody_with_it(period: float) -> None:
    with world(5, "flapping") as made:
        actors = made.pool(10)
        flapping, steady = actors[0], actors[1:]
        deaths = watch_deaths(made)
        for _ in range(int(180 / (2 * period))):
            made.partition([flapping], steady)
            made.run(period)
            made.heal()
            made.run(period)
        assert {buried for _, believer, buried in deaths if believer != flapping.name} <= {flapping.name}
        made.run_until(made.is_one_pool, within=35.0)


@pytest.mark.parametrize("seconds", [2.0, 5.0, 60.0, 1800.0])
def test_who_stood_still_buries_nobody_and_comes_back(seconds: float) -> None:
    # A pause of 5 s may cost the sleeper its life in a small pool: the minimum there is 4 s.
    with world(6, "pause") as made:
        actors = made.pool(10)
        sleeper = actors[0]
        deaths = watch_deaths(made)
        made.pause(sleeper, seconds)
        made.run(seconds + 1.0)
        made.run_until(made.is_one_pool, within=35.0)
        assert {buried for _, _, buried in deaths} <= {sleeper.name}


def test_a_pause_of_five_seconds_kills_nobody_in_a_large_pool() -> None:
    with world(6, "pause-large", keeps_events=False) as made:
        actors = made.pool(150)
        deaths = watch_deaths(made)
        for actor in actors[:3]:
            made.pause(actor, 5.0)
            made.run(10.0)
        made.run(20.0)
        assert deaths == []


@pytest.mark.parametrize("rate", [0.5, 0.98, 1.02, 2.0])
def test_a_clock_that_runs_fast_or_slow_kills_nobody(rate: float) -> None:
    with world(8, "clock-rate") as made:
        actors = made.pool(10)
        for actor in actors[:3]:
            actor.rate = rate
        deaths = watch_deaths(made)
        made.run(120.0)
        assert deaths == []


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_a_clock_that_jumps_kills_nobody(jump: float) -> None:
    with world(9, "clock-jump") as made:
        actors = made.pool(10)
        deaths = watch_deaths(made)
        made.run(10.0)
        made.step_clock(actors[0], jump)
        made.run(60.0)
        assert deaths == []


# Coming back.


def where_is(actor: Actor, name: str) -> Endpoint | None:
    """Where an actor holds a member to be."""
    member = actor.core.lookup(name)
    return member.endpoint if member is not None else None


def restart(made: World, actor: Actor, memory: Snapshot | None, **changes: object) -> Actor:
    """The killed member started again, with what it wrote down or without."""
    if memory is None:
        return made.add(actor.name, tags=weft_tags("another-id"), **changes)
    start = memory.next_start()
    return made.add(
        actor.name,
        tags=weft_tags(start.weft_id, start.epoch),
        incarnation=start.incarnation,
        lamport=start.lamport,
        former=start.endpoint,
        remembered=tuple(endpoint for _, endpoint in start.members),
        **changes,
    )


@pytest.mark.parametrize("away", [1.0, 60.0, 600.0], ids=["before-detection", "dead", "long-dead"])
@pytest.mark.parametrize("has_state", [True, False], ids=["with-state", "without-state"])
@pytest.mark.parametrize("moves", [False, True], ids=["same-address", "new-address"])
def test_who_is_killed_and_comes_back_is_taken_back(away: float, *, has_state: bool, moves: bool) -> None:
    with world(10, "restart") as made:
        actors = [made.add(f"n{number}", tags=weft_tags(f"id{number}")) for number in range(6)]
        made.converge(actors)
        victim, seed = actors[5], actors[0]
        made.run(5.0)
        memory = snapshot_of(victim.core, "id5", 1) if has_state else None
        made.kill(victim)
        made.run(away)
        where = {} if moves else {"endpoint": victim.endpoint}
        back = restart(made, victim, memory, seeds=(seed.endpoint,), **where)
        made.run_until(
            lambda: (
                made.is_one_pool()
                and {where_is(actor, back.name) for actor in made.running()} == {back.endpoint}
            ),
            within=75.0,
        )


def test_a_cloned_identity_is_an_alarm_and_not_a_war() -> None:
    with world(11, "clone") as made:
        actors = [made.add(f"n{number}", tags=weft_tags(f"id{number}")) for number in range(5)]
        made.converge(actors)
        clone = made.add("n4", tags=weft_tags("id4"), seeds=(actors[0].endpoint,))
        made.run(120.0)
        everybody = [*actors, clone]
        assert any(isinstance(event, NameConflict) for actor in everybody for _, event in actor.events)
        assert all(actor.core.ourselves.incarnation < 10 for actor in everybody), "they outbid each other"
        assert all(believes(actor, "n4", MemberState.ALIVE) for actor in actors)
        made.kill(clone)
        made.run(60.0)
        assert made.is_one_pool(actors)


def test_a_ghost_stays_dead() -> None:
    with world(12, "ghost") as made:
        actors = made.pool(5)
        ghost = actors[4].core.ourselves
        made.kill(actors[4])
        made.run(120.0)
        late = encode(Alive(ghost.incarnation, ghost.name, ghost.endpoint, ghost.meta, ghost.versions))
        made.inject(late, actors[0], Endpoint("10.9.9.9", 7946))
        made.run(30.0)
        assert not any(believes(actor, ghost.name, MemberState.ALIVE) for actor in actors[:4])
        assert all(changes_of(actor, ghost.name)[-1][1] is MemberState.DEAD for actor in actors[:4])


# Forged.


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "forged",
    [
        Suspect(1, "n0003", "n0002"),
        Dead(1, "n0003", "n0002"),
        Dead(1, "n0003", "n0003"),
        Dead(70_000, "n0003", "n0003"),
        Dead((1 << 32) - 1, "n0003", "n0003"),
        Alive(9, "n0003", Endpoint("10.9.9.9", 7946), b"", VERSIONS),
    ],
    ids=["suspicion", "death", "leave", "outbidding leave", "huge leave", "alive elsewhere"],
)
def test_who_is_slandered_is_alive_to_everybody_soon_after(seed: int, forged: Suspect | Dead | Alive) -> None:
    with world(seed, "forged") as made:
        actors = made.pool(8)
        made.run(2.0)
        made.inject(encode(forged), actors[0], Endpoint("203.0.113.9", 999))
        made.run(1.0)
        made.run_until(made.is_one_pool, within=10.0)
        assert {where_is(actor, "n0003") for actor in actors} == {actors[3].endpoint}
        made.run(60.0)
        assert made.is_one_pool()


# Long.


def steal_cpu(made: World, actor: Actor, share: float, *, until: float) -> None:
    """Take that share of every second from a member, in one piece."""

    def steal() -> None:
        made.pause(actor, share)
        if made.now < until:
            made.at(made.now + 1.0, steal)

    steal()


def sleep_often(made: World, actor: Actor, *, seconds: float, every: float, until: float) -> None:
    """Let a member stand still for so long, again and again."""

    def sleep() -> None:
        made.pause(actor, seconds)
        if made.now < until:
            made.at(made.now + every, sleep)

    sleep()


def unwell(made: World, members: int, seconds: float) -> Iterable[tuple[float, str, str]]:
    actors = made.pool(members)
    made.weather.loss = 0.05
    deaths = watch_deaths(made)
    steal_cpu(made, actors[0], 0.3, until=made.now + seconds)
    sleep_often(made, actors[1], seconds=5.0, every=60.0, until=made.now + seconds)
    made.run(seconds)
    return deaths


def test_an_unwell_pool_buries_nobody_falsely() -> None:
    with world(13, "unwell", keeps_events=False) as made:
        assert unwell(made, 100, 120.0) == []


@pytest.mark.long_sim
@pytest.mark.timeout(7200)
def test_an_hour_of_a_thousand_unwell_buries_nobody_falsely() -> None:
    for seed in many_seeds(1):
        with world(seed, "unwell-1000", keeps_events=False) as made:
            assert unwell(made, 1000, 3600.0) == []
