"""How fast a crash is known, beside the model: 1.58 probe intervals to be suspected, then the minimum."""

from __future__ import annotations

import statistics
import time

import pytest
from support.gossip_world import World, believes, world
from support.seeds import many_seeds
from support.snapshots import assert_snapshot, table

from control.membership.config import GossipConfig, push_pull_interval, suspicion_min
from control.membership.events import MemberChanged
from control.membership.member import Endpoint, MemberState

EXPECTED_DETECTION = 1.58  # probe intervals: e / (e - 1), the SWIM paper
TOLERANCE = 1.2
DEFAULTS = GossipConfig("n", Endpoint("192.0.2.1", 7946))


def model(members: int) -> tuple[float, float]:
    """Seconds to the first suspicion, and to the death, of a crashed member."""
    first = EXPECTED_DETECTION * DEFAULTS.probe_interval
    mult = DEFAULTS.suspicion_mult_at(members)
    return first, first + suspicion_min(mult, members, DEFAULTS.probe_interval)


def crashes(made: World, members: int, count: int, *, every: float) -> tuple[list[float], list[float]]:
    """Seconds until each crash was first suspected, and until everybody held it dead."""
    actors = made.pool(members)
    made.run(2.0)
    suspected: dict[str, float] = {}
    deaths: dict[str, list[float]] = {}

    def watch(_actor: object, event: object) -> None:
        if isinstance(event, MemberChanged):
            if event.member.state is MemberState.SUSPECT:
                suspected.setdefault(event.member.name, made.now)
            elif event.member.state is MemberState.DEAD:
                deaths.setdefault(event.member.name, []).append(made.now)

    made.watchers.append(watch)
    killed: dict[str, float] = {}
    for victim in actors[:count]:
        made.kill(victim)
        killed[victim.name] = made.now
        made.run(every)
    survivors = made.running()
    made.run_until(
        lambda: all(believes(actor, name, MemberState.DEAD) for actor in survivors for name in killed),
        within=120.0,
        step=0.5,
    )
    assert set(deaths) == set(killed), "nobody else died"
    everywhere = [sorted(deaths[name])[len(survivors) - 1] - at for name, at in killed.items()]
    return [suspected[name] - at for name, at in killed.items()], everywhere


def measure(members: int, count: int, seeds: range) -> tuple[float, float]:
    """Medians of one crash in each of many pools, or of several in one."""
    suspicions: list[float] = []
    everywhere: list[float] = []
    for seed in seeds:
        with world(seed, f"crash-{members}", keeps_events=False) as made:
            first, last = crashes(made, members, count, every=1.0)
            suspicions += first
            everywhere += last
    return statistics.median(suspicions), statistics.median(everywhere)


def test_crashes_are_known_everywhere_within_the_model() -> None:
    rows = []
    for members, seeds in ((3, 30), (10, 30), (50, 15), (100, 8)):
        first, last = model(members)
        suspicion, death = measure(members, 1, range(seeds))
        rows.append([members, f"{first:.1f}", f"{suspicion:.1f}", f"{last:.1f}", f"{death:.1f}"])
        assert death <= TOLERANCE * last, f"{members} members"
    head = ["members", "model: suspected s", "median s", "model: dead everywhere s", "median s"]
    assert_snapshot("detection", table(head, rows))


@pytest.mark.parametrize("seed", range(5))
def test_a_crash_is_not_held_against_those_who_found_it(seed: int) -> None:
    # Who asked others in vain and heard their nacks is well, and goes on probing at its usual pace.
    with world(seed, "crash-health") as made:
        victim, *survivors = made.pool(6)
        made.run(2.0)
        made.kill(victim)
        while not all(believes(actor, victim.name, MemberState.DEAD) for actor in survivors):
            made.run(0.1)
            assert {actor.core.statistics().health for actor in survivors} == {0}


def test_a_crash_among_a_thousand_is_known_within_the_model() -> None:
    first, last = model(1000)
    with world(7, "crash-1000", keeps_events=False) as made:
        suspicions, deaths = crashes(made, 1000, 3, every=0.5)
    assert statistics.median(suspicions) <= TOLERANCE * (first + DEFAULTS.probe_interval)
    assert statistics.median(deaths) <= TOLERANCE * last


@pytest.mark.long_sim
@pytest.mark.timeout(3600)
def test_fifty_crashes_among_a_thousand_are_known_within_the_model() -> None:
    _, last = model(1000)
    for seed in many_seeds(1):
        with world(seed, "crash-1000x50", keeps_events=False) as made:
            _, deaths = crashes(made, 1000, 50, every=1.0)
            print(f"seed {seed}: dead everywhere after {statistics.median(deaths):.1f} s, model {last:.1f} s")
            assert statistics.median(deaths) <= TOLERANCE * last


@pytest.mark.parametrize("members", [3, 100, 1000])
def test_an_idle_pool_costs_its_members_little(members: int) -> None:
    # A probe and its ack, and whoever probes us; nothing grows with the pool.
    with world(1, "idle", keeps_events=False) as made:
        made.pool(members)
        seconds = 5.0 if members == 1000 else 30.0
        made.run(seconds)
        assert sum(made.sent.values()) / members / seconds <= 2.2
        assert sum(made.octets.values()) / members / seconds <= 200


@pytest.mark.long_sim
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("members", [3, 100, 1000])
def test_a_member_takes_a_twentieth_of_a_core_at_most(members: int) -> None:
    # The work of the simulated network is counted too; push-pulls are, so it runs for as long as one takes.
    with world(1, "cpu", keeps_events=False) as made:
        made.pool(members)
        seconds = push_pull_interval(members, DEFAULTS.push_pull_interval)
        began = time.process_time()
        made.run(seconds)
        share = (time.process_time() - began) / seconds / members
        sent = sum(made.sent.values()) / seconds / members
        print(f"{members} members: {share:.3%} of a core and {sent:.1f} datagrams/s each")
        assert share <= 0.05
