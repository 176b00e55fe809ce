"""Whole bridged nodes: hosts speak and move over a wire that loses, doubles, reorders and parts."""

from __future__ import annotations

import os

import pytest
from support.bridge_world import ROUGH, SECOND, BridgeWorld, bridge_world
from support.doubles import mac

from bench.lab.simulated import NETWORK
from bench.lab.wire import Impairment
from overlay.addr import Mac, NetworkId
from overlay.verdict import DropReason

SEEDS = range(int(os.environ.get("SEEDS", "200")))
X, Y = mac(1), mac(2)
both_families = pytest.mark.parametrize("version", [4, 6])


# ── One thing at a time ─────────────────────────────────────────────────────────────────────────────────


@both_families
def test_a_broadcast_arrives_once_everywhere_else(version: int) -> None:
    with bridge_world(1, 4, underlay_version=version) as world:
        number = world.speak("n1", X)
        world.settle()
        assert world.hearers(number) == {"n2": 1, "n3": 1, "n4": 1}


@both_families
def test_an_answer_goes_straight_to_who_spoke(version: int) -> None:
    with bridge_world(1, 4, underlay_version=version) as world:
        world.speak("n1", X)
        world.settle()
        answer = world.speak("n3", Y, X)
        world.settle()
        assert world.hearers(answer) == {"n1": 1}
        assert world.crossed[answer] == 1


def test_a_mac_that_moves_is_followed_within_one_frame() -> None:
    with bridge_world(1, 4) as world:
        for home in ("n1", "n2", "n3", "n2", "n1"):
            world.speak(home, X)
            world.settle()
            to_x = world.speak("n4", Y, X)
            world.settle()
            assert world.hearers(to_x) == {home: 1}


def test_a_mac_that_moved_silently_is_found_by_its_first_frame_to_anybody() -> None:
    with bridge_world(1, 3) as world:
        world.speak("n1", X)
        world.speak("n3", Y)
        world.settle()
        world.speak("n2", X, Y)  # moved, and speaks to Y alone
        world.settle()
        assert world.hearers(world_says(world, "n3", Y, X)) == {"n2": 1}


def test_a_frame_sent_to_where_a_mac_no_longer_is_is_not_passed_on() -> None:
    with bridge_world(1, 3) as world:
        world.speak("n3", X)
        world.settle()
        n1, n2, n3 = (node.node.vtep for node in world.lab.nodes.values())
        world.lab.wire.partition([n1], [n2, n3])
        world.speak("n2", X)  # moved; n3 hears it, n1 does not
        world.settle()
        world.lab.wire.heal()
        stray = world_says(world, "n1", Y, X)
        assert world.hearers(stray) == {}
        assert world.lab["n3"].drops() == {DropReason.SPLIT_HORIZON: 1}


def test_bpdus_pass_and_lldp_does_not() -> None:
    with bridge_world(1, 3) as world:
        bpdu = world.speak("n1", X, b"\x01\x80\xc2\0\0\0")
        lldp = world.speak("n1", X, b"\x01\x80\xc2\0\0\x0e")
        world.settle()
        assert world.hearers(bpdu) == {"n2": 1, "n3": 1}
        assert world.hearers(lldp) == {}
        assert world.lab["n1"].drops() == {DropReason.LINK_LOCAL: 1}


def test_two_networks_on_every_daemon_are_isolated() -> None:
    with bridge_world(1, 3) as world:
        world.add_second_network()
        # The same MACs in both, at other places.
        for node, address, network in (
            ("n1", X, NETWORK),
            ("n2", X, SECOND),
            ("n2", Y, NETWORK),
            ("n1", Y, SECOND),
        ):
            world.speak(node, address, network=network)
            world.settle()
        first = world.speak("n3", mac(3), X)
        second = world.speak("n3", mac(3), X, SECOND)
        world.settle()
        assert (world.hearers(first), world.hearers(second)) == ({"n1": 1}, {"n2": 1})


def test_nobody_hears_across_a_partition_and_everybody_after_it() -> None:
    with bridge_world(1, 4) as world:
        near = [world.lab[name].node.vtep for name in ("n1", "n2")]
        far = [world.lab[name].node.vtep for name in ("n3", "n4")]
        world.lab.wire.partition(near, far)
        during = world.speak("n1", X)
        world.settle()
        world.lab.wire.heal()
        after = world.speak("n1", X)
        world.settle()
        assert world.hearers(during) == {"n2": 1}
        assert world.hearers(after) == {"n2": 1, "n3": 1, "n4": 1}


def test_a_node_that_crashed_costs_the_others_nothing() -> None:
    with bridge_world(1, 4) as world:
        world.speak("n2", Y)
        world.settle()
        world.lab["n2"].crash()
        number = world.speak("n1", X)
        to_the_dead = world.speak("n1", X, Y)
        world.settle()
        assert world.hearers(number) == {"n3": 1, "n4": 1}
        assert world.hearers(to_the_dead) == {}
        assert world.lab["n1"].drops() == {DropReason.UNDERLAY_ERROR: 2}


def world_says(world: BridgeWorld, node: str, source: Mac, destination: Mac) -> int:
    """One frame, arrived."""
    number = world.speak(node, source, destination)
    world.settle()
    return number


# ── Anything at all ─────────────────────────────────────────────────────────────────────────────────────

NODES, HOSTS, STEPS = 5, 8, 300


def live(world: BridgeWorld, networks: tuple[NetworkId, ...]) -> None:
    """Hosts speak and move, the wire gets worse and better; then all is quiet and everybody is found."""
    draw = world.random
    names = list(world.lab.nodes)
    vteps = [node.node.vtep for node in world.lab.nodes.values()]
    homes = {(network, mac(host)): draw.choice(names) for network in networks for host in range(HOSTS)}
    for _ in range(STEPS):
        network, source = draw.choice(list(homes))
        match draw.random():
            case chance if chance < 0.6:
                world.speak(homes[network, source], source, mac(draw.randrange(HOSTS + 1)), network)
            case chance if chance < 0.75:
                world.speak(homes[network, source], source, network=network)
            case chance if chance < 0.85:
                homes[network, source] = draw.choice(names)
            case chance if chance < 0.95:
                world.lab.reactor.run_for(draw.expovariate(20))
            case chance if chance < 0.98:
                draw.shuffle(vteps)
                cut = draw.randrange(NODES)
                world.lab.wire.partition(vteps[:cut], vteps[cut:])
            case _:
                world.lab.wire.heal()
    world.settle()

    world.lab.wire.heal()
    world.lab.wire.impair(Impairment())
    for (network, source), home in homes.items():
        world.speak(home, source, network=network)
        world.settle()
    for (network, source), home in homes.items():
        speaker = next(name for name in names if name != home)
        number = world.speak(speaker, mac(900), source, network)
        world.settle()
        assert world.hearers(number) == {home: 1}
        assert world.crossed[number] == 1


@pytest.mark.parametrize("seed", range(24))
def test_whatever_the_wire_does_frames_go_where_they_belong_and_nowhere_else(seed: int) -> None:
    run(seed)


@pytest.mark.long_sim
@pytest.mark.parametrize("seed", SEEDS)
def test_in_many_runs_frames_go_where_they_belong_and_nowhere_else(seed: int) -> None:
    run(seed)


def run(seed: int) -> None:
    """A seed is a run: with one network or two, over IPv4 or IPv6, on a good wire or a rough one."""
    with bridge_world(seed, NODES, underlay_version=(4, 6)[seed // 2 % 2]) as world:
        world.lab.wire.impair(ROUGH if seed % 3 else Impairment())
        networks: tuple[NetworkId, ...] = (NETWORK,)
        if seed % 2:
            world.add_second_network()
            networks = (NETWORK, SECOND)
        live(world, networks)


def test_one_seed_is_one_run() -> None:
    def told(seed: int) -> object:
        with bridge_world(seed, 3) as world:
            world.lab.wire.impair(ROUGH)
            for number in range(30):
                world.speak(f"n{1 + number % 3}", mac(number % 4))
            world.settle()
            return world.heard

    assert told(7) == told(7)
    assert told(7) != told(8)
