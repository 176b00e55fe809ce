"""A stock Serf agent is a member of our pool, and we are of its: Debian's `serf` is our conformance test.

The agent's log is part of the test: what it warns of, we did wrong.  (Its members of other pools, its clients
and its own start are left out of that by watching only pools of our own.)
"""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from support.serf_agent import Agent, Pool, Weft, needs_serf, until

from control.membership.events import Departed, KeysAnswered, Refusal
from control.membership.keyquery import KeyStep
from control.membership.keys import format_key
from control.membership.member import VERSIONS, Endpoint
from control.membership.wire import Alive, encode

pytestmark = [pytest.mark.interop, needs_serf, pytest.mark.timeout(120)]

OLD_KEY, NEW_KEY = bytes(range(32)), bytes(range(32, 64))
TROUBLE_FOR_US = {Refusal.MALFORMED, Refusal.WRONG_KEY, Refusal.UNKNOWN_TARGET, Refusal.INCARNATION_JUMP}
ROUND_OF_PUSH_PULLS = 65.0  # seconds: two of a stock agent's, and some


@asynccontextmanager
async def pool_in(folder: Path) -> AsyncIterator[Pool]:
    pool = Pool(folder)
    try:
        yield pool
    finally:
        await pool.stop()


def in_a_pool(folder: Path, story: Callable[[Pool], Awaitable[None]]) -> None:
    async def told() -> None:
        async with pool_in(folder) as pool:
            await story(pool)

    asyncio.run(told())


def sees(agent: Agent, name: str, status: str) -> Callable[[], bool]:
    return lambda: agent.status(name) == status


async def alive_both_ways(agent: Agent, weft: Weft, *, within: float = 15.0) -> None:
    name = weft.core.ourselves.name
    await until(sees(agent, name, "alive"), within=within, what=f"{agent.name} sees {name}")
    await until(lambda: weft.status(agent.name) == "alive", within=within, what=f"{name} sees {agent.name}")


@pytest.mark.parametrize("keys", [(), (OLD_KEY,)], ids=["plain", "encrypted"])
def test_a_weft_node_joins_a_stock_pool_of_two(tmp_path: Path, keys: tuple[bytes, ...]) -> None:
    async def story(pool: Pool) -> None:
        secret = [f"-encrypt={format_key(key)}" for key in keys]
        first = pool.agent("s1", "-tag", "role=db", *secret)
        await until(first.members, within=10, what="s1 runs")
        second = pool.agent("s2", f"-retry-join={first.host}", *secret)
        weft = pool.weft(
            "w1", seeds=(first.endpoint,), keys=keys, tags={"weft_id": "w1", "weft_vtep": "192.0.2.1"}
        )
        await alive_both_ways(first, weft)
        await alive_both_ways(second, weft)
        assert weft.core.tags("s1") == {"role": "db"}
        assert first.members()["w1"]["tags"] == {"weft_id": "w1", "weft_vtep": "192.0.2.1"}
        assert not weft.core.statistics().probes_failed

    in_a_pool(tmp_path, story)


@pytest.mark.parametrize("keys", [(), (OLD_KEY,)], ids=["plain", "encrypted"])
def test_a_stock_agent_joins_a_pool_of_weft_nodes(tmp_path: Path, keys: tuple[bytes, ...]) -> None:
    async def story(pool: Pool) -> None:
        first = pool.weft("w1", keys=keys)
        second = pool.weft("w2", keys=keys, seeds=(first.endpoint,))
        await until(lambda: second.status("w1") == "alive", within=5, what="w2 joined w1")
        secret = [f"-encrypt={format_key(key)}" for key in keys]
        agent = pool.agent("s1", f"-retry-join={first.endpoint.host}", *secret)
        for weft in (first, second):
            await alive_both_ways(agent, weft)

    in_a_pool(tmp_path, story)


def test_a_stock_log_stays_quiet_for_two_rounds_of_push_pull(tmp_path: Path) -> None:
    async def both() -> None:
        async with pool_in(tmp_path / "plain") as plain, pool_in(tmp_path / "encrypted") as encrypted:
            await asyncio.gather(quiet_life(plain), quiet_life(encrypted, OLD_KEY))

    asyncio.run(both())


async def quiet_life(pool: Pool, *keys: bytes) -> None:
    secret = [f"-encrypt={format_key(key)}" for key in keys]
    agent = pool.agent("s1", *secret)
    await until(agent.members, within=10, what="s1 runs")
    other = pool.agent("s2", f"-retry-join={agent.host}", *secret)
    wefts = [pool.weft(name, seeds=(agent.endpoint,), keys=keys) for name in ("w1", "w2")]
    for weft in wefts:
        await alive_both_ways(agent, weft)
        await alive_both_ways(other, weft)
    # weft's own messages and other people's events are part of ordinary life.
    for number in range(int(ROUND_OF_PUSH_PULLS)):
        wefts[0].call(wefts[0].core.spread, "test", b"record %d" % number)
        wefts[1].call(wefts[1].core.tell, "w1", b"hello")
        await asyncio.to_thread(agent.run, "event", f"tick{number}", "payload")
        await asyncio.sleep(1.0)
    assert agent.trouble() == []
    assert other.trouble() == []
    assert "Initiating push/pull sync" in agent.log() + other.log()
    assert [weft.core.statistics().refused.keys() & TROUBLE_FOR_US for weft in wefts] == [set(), set()]


def test_tags_follow_a_change_on_either_side(tmp_path: Path) -> None:
    async def story(pool: Pool) -> None:
        agent = pool.agent("s1")
        await until(agent.members, within=10, what="s1 runs")
        weft = pool.weft("w1", seeds=(agent.endpoint,))
        await alive_both_ways(agent, weft)
        agent.run("tags", "-set", "rack=7")
        await until(lambda: weft.core.tags("s1") == {"rack": "7"}, within=10, what="w1 follows s1's tags")
        weft.call(weft.core.set_tags, {"weft_id": "w1", "weft_state": "ready"})
        await until(
            lambda: agent.members()["w1"]["tags"].get("weft_state") == "ready",
            within=10,
            what="s1 follows w1's tags",
        )
        assert agent.trouble() == []

    in_a_pool(tmp_path, story)


def test_a_weft_node_that_leaves_has_left_and_one_that_dies_has_failed(tmp_path: Path) -> None:
    async def story(pool: Pool) -> None:
        agent = pool.agent("s1")
        await until(agent.members, within=10, what="s1 runs")
        leaver, victim = (pool.weft(name, seeds=(agent.endpoint,)) for name in ("leaver", "victim"))
        for weft in (leaver, victim):
            await alive_both_ways(agent, weft)
        leaver.call(leaver.core.leave)
        await until(lambda: Departed() in leaver.events, within=10, what="the leaver departs")
        await until(sees(agent, "leaver", "left"), within=5, what="s1 sees it left")
        await until(
            lambda: victim.status("leaver") == "left", within=5, what="the other weft node sees it left"
        )
        await leaver.stop()
        await victim.stop()
        await until(sees(agent, "victim", "failed"), within=30, what="s1 sees the dead one failed")
        assert agent.status("leaver") == "left"

    in_a_pool(tmp_path, story)


def test_a_stock_agent_that_leaves_has_left_and_one_that_dies_is_dead(tmp_path: Path) -> None:
    async def story(pool: Pool) -> None:
        weft = pool.weft("w1")
        agents = [pool.agent(name, f"-retry-join={weft.endpoint.host}") for name in ("leaver", "victim")]
        for agent in agents:
            await alive_both_ways(agent, weft)
        agents[0].run("leave")
        agents[1].stop()
        await until(lambda: weft.status("leaver") == "left", within=15, what="w1 sees it left")
        await until(lambda: weft.status("victim") == "dead", within=30, what="w1 sees it dead")

    in_a_pool(tmp_path, story)


def test_a_weft_node_that_moves_is_followed_without_a_conflict(tmp_path: Path) -> None:
    async def story(pool: Pool) -> None:
        agent = pool.agent("s1")
        await until(agent.members, within=10, what="s1 runs")
        weft = pool.weft("w1", seeds=(agent.endpoint,))
        await alive_both_ways(agent, weft)
        before, incarnation = weft.endpoint, weft.core.ourselves.incarnation
        await weft.stop()
        moved = pool.weft(
            "w1",
            seeds=(agent.endpoint,),
            former=before,
            incarnation=incarnation + 1,
            lamport=weft.core.lamport,
        )
        await until(
            lambda: (
                agent.members()["w1"]["addr"] == f"{moved.endpoint.host}:7946"
                and agent.status("w1") == "alive"
            ),
            within=15,
            what="s1 follows w1",
        )
        assert not [line for line in agent.trouble() if "onflict" in line]

    in_a_pool(tmp_path, story)


def test_a_stock_agent_back_at_another_address_is_followed(tmp_path: Path) -> None:
    async def story(pool: Pool) -> None:
        weft = pool.weft("w1")
        agent = pool.agent("s1", f"-retry-join={weft.endpoint.host}")
        await alive_both_ways(agent, weft)
        agent.run("leave")
        await until(lambda: weft.status("s1") == "left", within=15, what="w1 sees it left")
        back = pool.agent("s1", f"-retry-join={weft.endpoint.host}")
        await until(
            lambda: weft.status("s1") == "alive" and weft.core.lookup("s1").endpoint == back.endpoint,  # type: ignore[union-attr]
            within=15,
            what="w1 follows s1",
        )

    in_a_pool(tmp_path, story)


@pytest.mark.parametrize("by", ["stock", "weft"])
def test_the_key_is_rotated_from_either_side(tmp_path: Path, by: str) -> None:
    async def story(pool: Pool) -> None:
        agents = [pool.agent("s1", pool.keyring_file("s1", OLD_KEY))]
        await until(agents[0].members, within=10, what="s1 runs")
        agents.append(pool.agent("s2", f"-retry-join={agents[0].host}", pool.keyring_file("s2", OLD_KEY)))
        wefts = [pool.weft(name, seeds=(agents[0].endpoint,), keys=(OLD_KEY,)) for name in ("w1", "w2")]
        for weft in wefts:
            for agent in agents:
                await alive_both_ways(agent, weft)
        rotate = rotate_by_stock if by == "stock" else rotate_by_weft
        await rotate(agents[0], wefts[0])
        assert [weft.keyring.keys for weft in wefts] == [(NEW_KEY,), (NEW_KEY,)]
        for weft in wefts:
            for agent in agents:
                await alive_both_ways(agent, weft)
        assert not [line for agent in agents for line in agent.trouble() if "ecrypt" in line]

    in_a_pool(tmp_path, story)


async def rotate_by_stock(agent: Agent, _weft: Weft) -> None:
    new, old = format_key(NEW_KEY), format_key(OLD_KEY)
    for arguments in (("-install", new), ("-use", new), ("-remove", old)):
        told = await asyncio.to_thread(agent.run, "keys", *arguments)
        assert "Successfully" in told, f"{arguments}: {told}\n{agent.log()}"
    told = await asyncio.to_thread(agent.run, "keys", "-list")
    assert told.split()[-2:] == [new, "[4/4]"], told


async def rotate_by_weft(_agent: Agent, weft: Weft) -> None:
    await step_by_weft(weft, KeyStep.INSTALL, NEW_KEY)
    await step_by_weft(weft, KeyStep.USE, NEW_KEY)
    await step_by_weft(weft, KeyStep.REMOVE, OLD_KEY)
    answer = await step_by_weft(weft, KeyStep.LIST, b"")
    assert answer.keys == {base64.b64encode(NEW_KEY).decode(): 4}
    assert answer.primary_keys.keys() <= answer.keys.keys()  # agents before 0.10 do not say theirs


async def step_by_weft(weft: Weft, step: KeyStep, key: bytes) -> KeysAnswered:
    number = weft.call(weft.core.ask_keys, step, key)
    await until(partial(answers, weft, number), within=10, what=f"answers to {step.name}")
    (answer,) = answers(weft, number)
    assert answer.is_complete, answer
    return answer


def answers(weft: Weft, number: int) -> list[KeysAnswered]:
    return [event for event in weft.events if isinstance(event, KeysAnswered) and event.query == number]


def test_a_forged_conflict_does_not_make_the_stock_agent_quit(tmp_path: Path) -> None:
    async def story(pool: Pool) -> None:
        weft = pool.weft("w1")
        other = pool.weft("w2", seeds=(weft.endpoint,))
        agent = pool.agent("s1", f"-retry-join={weft.endpoint.host}")
        for member in (weft, other):
            await alive_both_ways(agent, member)
        forged_conflict(agent, Endpoint("192.0.2.66", 7946))
        await until(
            lambda: "minority in name conflict" in agent.log() or "majority in name conflict" in agent.log(),
            within=20,
            what="the agent counts votes",
        )
        assert "majority in name conflict" in agent.log()
        assert agent.is_running()
        assert agent.status("w1") == "alive"

    in_a_pool(tmp_path, story)


def forged_conflict(agent: Agent, elsewhere: Endpoint) -> None:
    """One datagram from nobody: an `alive` for the agent's own name at another address."""
    forged = encode(Alive(99, agent.name, elsewhere, b"", VERSIONS))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(forged, agent.endpoint)
