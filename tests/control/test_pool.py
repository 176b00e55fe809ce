"""A node's part in the pool: what it writes down and when, where it says it is, what the operator may ask.

The pools here gossip over addresses of 127.0.0.0/8, each test's its own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import stat
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import uvloop
from support.disk import full_disk
from support.records import network
from support.serf_agent import GOSSIP_PORT, fresh_block, until

from control import pool as pool_module
from control import troubles as troubles_module
from control.membership.events import MemberChanged, NameConflict, UdpBlocked
from control.membership.keys import format_key
from control.membership.member import Endpoint, MemberState
from control.membership.recordbody import MACS_MAX
from control.operator.config import Config, load
from control.operator.fields import Endpoint as Written
from control.operator.schema import GossipConfig as GossipTable
from control.pool import Pool, advertised, bind_endpoint
from overlay.addr import IpAddress
from overlay.errors import ConfigError, DeviceError, Ground, LeaseError, MembershipError

OLD_KEY, NEW_KEY = (format_key(bytes([number]) * 32) for number in (1, 2))
TORN = ["", "{", '{"schema": "weft.snapshot/9"}', '{"schema": "weft.snapshot/1", "weft_id": 7}', "[" * 5000]


class World:
    """Nodes of one test: their folders and addresses, and the pools that run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.block = fresh_block()
        self.told: list[str] = []
        self._running: list[tuple[Pool, asyncio.Task[None]]] = []

    def host(self, number: int) -> str:
        return f"{self.block}.{number}"

    def state(self, number: int) -> Path:
        return self.folder / f"n{number}" / "pool.json"

    def snapshot(self, number: int) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.state(number).read_text())
        return told

    def config(self, number: int, *join: str, **flags: object) -> Config:
        told = {"name": f"n{number}", "vni": "42", "underlay": self.host(number), "join": join}
        told |= {"gossip_bind": self.host(number), "state_dir": str(self.state(number).parent)}
        return load(None, told | flags, {})

    async def open(self, number: int, *join: str, **flags: object) -> Pool:
        """A pool that has not spoken."""
        return await Pool.open(self.config(number, *join, **flags), (), tell=self.told.append)

    async def start(self, number: int, *join: str, **flags: object) -> Pool:
        """A pool that runs."""
        pool = await self.open(number, *join, **flags)
        self._running.append((pool, asyncio.create_task(pool.run())))
        return pool

    async def stop(self, *pools: Pool) -> None:
        """Ends these, or all, without a word, as a crash does."""
        for pool, task in [each for each in self._running if not pools or each[0] in pools]:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            pool.close()
            self._running.remove((pool, task))

    async def holds(self, pool: Pool, name: str, state: MemberState) -> None:
        """Waits until the pool holds the member to be in that state."""

        def claim() -> bool:
            member = pool.core.lookup(name)
            return member is not None and member.state is state

        await until(claim, within=20, what=f"{name} is {state}")


Story = Callable[[World], Awaitable[None]]
Tell = Callable[[Story], None]


@pytest.fixture
def tell(tmp_path: Path) -> Tell:
    """Runs a story in a world of its own, on the loop of the daemon."""

    def run(story: Story) -> None:
        async def told() -> None:
            world = World(tmp_path)
            try:
                await story(world)
            finally:
                await world.stop()

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(told())

    return run


def keyring(path: Path, *keys: str) -> Path:
    path.write_text(json.dumps(keys))
    path.chmod(0o644)
    return path


# ── The start ───────────────────────────────────────────────────────────────────────────────────────────


def test_this_start_is_on_disk_before_a_word_is_said(tell: Tell) -> None:
    async def story(world: World) -> None:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
            socket.create_server((world.host(9), GOSSIP_PORT)) as tcp,
        ):
            udp.bind((world.host(9), GOSSIP_PORT))
            udp.setblocking(False)
            tcp.setblocking(False)
            pool = await world.open(1, world.host(9))
            assert world.snapshot(1)["epoch"] == 1
            with pytest.raises(BlockingIOError):
                udp.recv(1)
            with pytest.raises(BlockingIOError):
                tcp.accept()
            pool.close()

    tell(story)


def test_a_node_that_comes_back_is_itself_and_a_later_start(tell: Tell) -> None:
    async def story(world: World) -> None:
        tags, words = [], []
        for epoch in (1, 2, 3):
            pool = await world.open(1)
            words.append(pool.core.ourselves.incarnation)
            tags.append(pool.core.tags("n1"))
            assert world.snapshot(1)["epoch"] == epoch
            assert stat.S_IMODE(world.state(1).stat().st_mode) == 0o600
            pool.close()
        assert [each["weft_epoch"] for each in tags] == ["1", "2", "3"]
        assert len({each["weft_id"] for each in tags}) == 1
        assert len(tags[0]["weft_id"]) == 32
        assert words == sorted(set(words))

    tell(story)


def test_more_than_one_node_may_say_is_a_trouble_for_as_long_as_it_is(tell: Tell) -> None:
    async def story(world: World) -> None:
        pool = await world.start(1)
        pool.publish([network(macs=1)])
        said = pool.core.records.own
        pool.publish([network(macs=MACS_MAX + 1)])
        assert pool.core.records.own is said
        (trouble,) = pool.unsaid
        assert f"expected at most {MACS_MAX} of one node" in trouble
        pool.publish([network(macs=2)])
        assert pool.unsaid == []
        assert pool.core.records.own is not said

    tell(story)


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM], ids=["udp", "tcp"])
def test_a_taken_port_is_no_start(tell: Tell, kind: socket.SocketKind) -> None:
    async def story(world: World) -> None:
        with socket.socket(socket.AF_INET, kind) as taken:
            taken.bind((world.host(1), GOSSIP_PORT))
            if kind is socket.SOCK_STREAM:
                taken.listen()
            with pytest.raises(DeviceError, match=r"gossip .*: Address already in use") as caught:
                await world.open(1)
        assert "another weft or Serf agent" in caught.value.why
        assert "--gossip-bind" in caught.value.advice
        assert not world.state(1).exists()
        (await world.open(1)).close()  # nothing was kept of the first try

    tell(story)


def test_an_address_that_is_not_ours_is_named(tell: Tell) -> None:
    async def story(world: World) -> None:
        with pytest.raises(DeviceError, match=r"gossip 192\.0\.2\.77:7946: Cannot assign") as caught:
            await world.open(1, gossip_bind="192.0.2.77")
        assert "no such address" in caught.value.why

    tell(story)


def test_a_start_that_cannot_be_written_says_nothing_and_keeps_nothing(tell: Tell) -> None:
    async def story(world: World) -> None:
        with full_disk(), pytest.raises(DeviceError, match=r"pool\.json: File too large"):
            await world.open(1)
        assert not world.state(1).exists()
        (await world.open(1)).close()

    tell(story)


@pytest.mark.parametrize("text", TORN)
def test_a_torn_snapshot_is_named_and_left_as_it_is(tell: Tell, text: str) -> None:
    async def story(world: World) -> None:
        world.state(1).parent.mkdir()
        world.state(1).write_text(text)
        with pytest.raises(ConfigError) as caught:
            await world.open(1)
        (problem,) = caught.value.problems
        assert problem.path == "node.state_dir"
        assert str(world.state(1)) in problem.why
        assert "move it away" in problem.why
        assert world.state(1).read_text() == text

    tell(story)


# ── Where we are ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("bind", "advertise", "expected"),
    [
        ("0.0.0.0:7946", None, "192.0.2.1:7946"),
        ("[::]:7947", None, "[2001:db8::1]:7947"),
        ("192.0.2.5:7000", None, "192.0.2.5:7000"),
        ("[::ffff:192.0.2.5]:7000", None, "192.0.2.5:7000"),
        ("0.0.0.0:7946", "198.51.100.1:80", "198.51.100.1:80"),
    ],
)
def test_the_address_told_is_advertise_or_bind_or_the_first_underlay_of_its_family(
    bind: str, advertise: str | None, expected: str
) -> None:
    underlays = [ip_address(text) for text in ("fe80::1", "192.0.2.1", "2001:db8::1", "192.0.2.9")]
    assert str(advertised(table(bind, advertise), underlays)) == expected


@pytest.mark.parametrize(
    ("bind", "advertise", "underlays", "path"),
    [
        ("n1.example:7946", None, ["192.0.2.1"], "gossip.bind"),
        ("0.0.0.0:7946", "n1.example:7946", ["192.0.2.1"], "gossip.advertise"),
        ("0.0.0.0:7946", None, ["2001:db8::1"], "gossip.advertise"),
        ("[::]:7946", None, ["fe80::1"], "gossip.advertise"),
    ],
)
def test_an_address_that_cannot_be_told_is_named(
    bind: str, advertise: str | None, underlays: list[str], path: str
) -> None:
    addresses: list[IpAddress] = [ip_address(text) for text in underlays]
    with pytest.raises(ConfigError) as caught:
        advertised(table(bind, advertise), addresses)
    (problem,) = caught.value.problems
    assert problem.path == path
    assert problem.why.startswith("expected an")


def table(bind: str, advertise: str | None) -> GossipTable:
    return GossipTable.model_construct(
        bind=written(bind), advertise=written(advertise) if advertise else None, join=(), keyring=None
    )


def written(text: str) -> Written:
    host, _, port = text.rpartition(":")
    return Written(host.strip("[]"), int(port))


def test_a_table_without_an_address_binds_every_one() -> None:
    assert bind_endpoint(table("0.0.0.0:7946", None)) == Endpoint("0.0.0.0", 7946)


# ── Memory ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_others_are_written_down_and_found_again_without_a_seed(
    tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "SNAPSHOT_SECONDS", 0.02)

    async def story(world: World) -> None:
        first = await world.start(1)
        second = await world.start(2, world.host(1))
        await world.holds(first, "n2", MemberState.ALIVE)
        expected = [{"name": "n1", "endpoint": f"{world.host(1)}:{GOSSIP_PORT}"}]
        await until(lambda: world.snapshot(2)["members"] == expected, within=10, what="n1 is on disk")
        assert world.snapshot(2)["lamport"] > 0
        await world.stop(second)
        again = await world.start(2)
        await world.holds(again, "n1", MemberState.ALIVE)

    tell(story)


def test_who_is_cut_off_forgets_nobody(tell: Tell) -> None:
    async def story(world: World) -> None:
        first = await world.start(1)
        second = await world.start(2, world.host(1))
        await world.holds(second, "n1", MemberState.ALIVE)
        await world.stop(first)
        await world.holds(second, "n1", MemberState.DEAD)
        for _ in range(2):  # dead to this start; never met by the next
            await world.stop(second)
            assert [each["name"] for each in world.snapshot(2)["members"]] == ["n1"]
            second = await world.start(2)
            await second.join([world.host(9)])  # by its answer it has run
        await world.start(1)
        await world.holds(second, "n1", MemberState.ALIVE)

    tell(story)


def test_who_left_is_not_remembered(tell: Tell) -> None:
    async def story(world: World) -> None:
        first = await world.start(1)
        second = await world.start(2, world.host(1))
        await world.holds(first, "n2", MemberState.ALIVE)
        await second.leave()
        await world.holds(first, "n2", MemberState.LEFT)
        await world.stop(first)
        assert world.snapshot(1)["members"] == []

    tell(story)


def test_a_full_disk_is_shown_until_there_is_room(tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "SNAPSHOT_SECONDS", 0.02)

    async def story(world: World) -> None:
        first = await world.start(1)
        with full_disk():
            first.core.set_tags({"weft_id": "x"}, now=asyncio.get_running_loop().time())
            await until(lambda: first.unwritten, within=10, what="the refusal is known")
            (problem,) = first.unwritten
            assert str(world.state(1)) in str(problem)
        await until(lambda: not first.unwritten, within=10, what="it is written after all")
        assert world.snapshot(1)["incarnation"] == first.core.ourselves.incarnation

    tell(story)


# ── Keys ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_keyring_follows_a_rotation_and_is_private(tell: Tell) -> None:
    async def story(world: World) -> None:
        paths = [keyring(world.folder / f"{number}.keys", OLD_KEY) for number in (1, 2)]
        first = await world.start(1, keyring=str(paths[0]))
        second = await world.start(2, world.host(1), keyring=str(paths[1]))
        await world.holds(first, "n2", MemberState.ALIVE)
        assert first.is_encrypted
        for step, key in (("install", NEW_KEY), ("use", NEW_KEY), ("remove", OLD_KEY)):
            view = await second.keys(step, key)
            assert (view.members, view.responses, view.errors) == (2, 2, {})
        view = await first.keys("list", None)
        assert (view.keys, view.primary_keys) == ({NEW_KEY: 2}, {NEW_KEY: 2})
        for path in paths:
            assert json.loads(path.read_text()) == [NEW_KEY]
            assert stat.S_IMODE(path.stat().st_mode) == 0o600

    tell(story)


def test_a_keyring_that_cannot_be_written_is_shown_and_the_old_one_stands(
    tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "SNAPSHOT_SECONDS", 0.02)

    async def story(world: World) -> None:
        path = keyring(world.folder / "keys", OLD_KEY)
        pool = await world.start(1, keyring=str(path))
        with full_disk():
            assert (await pool.keys("install", NEW_KEY)).responses == 1
            assert str(path) in str(pool.unwritten)
            assert json.loads(path.read_text()) == [OLD_KEY]
        await until(lambda: not pool.unwritten, within=10, what="it is written after all")
        assert json.loads(path.read_text()) == [OLD_KEY, NEW_KEY]

    tell(story)


@pytest.mark.parametrize("text", [None, "", "{}", "[]", '["short"]', '[""]', "[7]", "[" * 5000])
def test_a_keyring_that_is_none_is_named(tell: Tell, text: str | None) -> None:
    async def story(world: World) -> None:
        path = world.folder / "keys"
        if text is not None:
            path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            await world.open(1, keyring=str(path))
        (problem,) = caught.value.problems
        assert problem.path in ("--keyring", "gossip.keyring")
        assert str(path) in problem.why

    tell(story)


def test_no_key_of_the_ring_is_told_with_what_is_wrong_with_it(tell: Tell) -> None:
    async def story(world: World) -> None:
        path = keyring(world.folder / "keys", OLD_KEY, "c2VjcmV0")  # base64, and too short
        with pytest.raises(ConfigError, match="expected 16, 24 or 32 octets") as caught:
            await world.open(1, keyring=str(path))
        assert "c2VjcmV0" not in str(caught.value)
        assert OLD_KEY not in str(caught.value)

    tell(story)


# ── Nobody takes us in ──────────────────────────────────────────────────────────────────────────────────


def joins(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    """What was logged of joins that failed."""
    told = [each.getMessage() for each in caplog.records if each.levelno == level]
    return [each for each in told if each.startswith("join ")]


def test_a_seed_where_nobody_is_is_told_once_and_until_somebody_answers(
    tell: Tell, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(world: World) -> None:
        pool = await world.start(2, world.host(1))
        await until(lambda: "nobody answers" in str(pool.unreached), within=10, what="it is told")
        assert pool.unreached is not None
        assert f"{world.host(1)}:{GOSSIP_PORT}: nobody answers there (" in pool.unreached.problem
        assert f"is UDP and TCP {GOSSIP_PORT} open?" in pool.unreached.fix
        await until(lambda: len(joins(caplog, logging.DEBUG)) >= 2, within=10, what="it is asked again")
        (warning,) = joins(caplog, logging.WARNING)
        assert warning.startswith(f"join {world.host(1)}:{GOSSIP_PORT}: nobody answers there (")
        await world.start(1)
        await until(lambda: pool.unreached is None, within=20, what="somebody answered")

    caplog.set_level(logging.DEBUG, "weft.pool")
    tell(story)


@pytest.mark.parametrize("has_keys", [True, False], ids=["another", "none"])
def test_a_seed_with_another_keyring_is_told_from_nobody(
    tell: Tell, caplog: pytest.LogCaptureFixture, has_keys: bool
) -> None:
    async def story(world: World) -> None:
        theirs = {"keyring": str(keyring(world.folder / "theirs", NEW_KEY))} if has_keys else {}
        await world.start(1, **theirs)
        pool = await world.start(2, world.host(1), keyring=str(keyring(world.folder / "own", OLD_KEY)))
        await until(lambda: "hangs up" in str(pool.unreached), within=10, what="it is told")
        assert pool.unreached is not None
        assert "has it the same keyring?" in pool.unreached.fix
        (warning,) = joins(caplog, logging.WARNING)
        assert warning.startswith(f"join {world.host(1)}:{GOSSIP_PORT}: it answers and hangs up")

    tell(story)


def test_the_first_of_a_pool_asks_nobody(tell: Tell) -> None:
    async def story(world: World) -> None:
        assert (await world.start(1)).unreached is None
        assert (await world.start(2, world.host(2))).unreached is None

    tell(story)


# ── What the operator asks ──────────────────────────────────────────────────────────────────────────────


def test_a_join_says_of_each_host_what_became_of_it(tell: Tell) -> None:
    async def story(world: World) -> None:
        await world.start(1)
        second = await world.start(2)
        nobody, unknown = world.host(9), "nobody.invalid"
        answers = dict(await second.join([world.host(1), nobody, unknown]))
        assert list(answers) == [world.host(1), nobody, unknown]
        assert answers[world.host(1)] is None
        assert answers[nobody]
        assert "nobody.invalid" in (answers[unknown] or "")
        assert [(member.name, member.state) for member in second.members] == [
            ("n1", MemberState.ALIVE),
            ("n2", MemberState.ALIVE),
        ]
        with pytest.raises(MembershipError, match="join no host:0: expected ") as caught:
            await second.join(["no host:0"])
        assert caught.value.ground is Ground.QUESTION

    tell(story)


def test_who_left_is_alone_says_so_and_stays_gone(tell: Tell) -> None:
    async def story(world: World) -> None:
        first = await world.start(1)
        second = await world.start(2, world.host(1))
        await world.holds(first, "n2", MemberState.ALIVE)
        await second.leave()
        await world.holds(first, "n2", MemberState.LEFT)
        await second.leave()  # twice is once
        assert second.has_left
        assert [(member.name, member.state) for member in second.members] == [("n2", MemberState.LEFT)]
        for ask in (second.join([world.host(1)]), second.keys("list", None)):
            with pytest.raises(MembershipError, match="this node has left the pool") as caught:
                await ask
            assert "restart weft" in caught.value.advice
        (_, ended) = world._running[1]
        await asyncio.wait_for(ended, 5)  # its sockets are closed: the port is free
        second.close()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind((world.host(2), GOSSIP_PORT))

    tell(story)


def test_a_leave_that_nobody_hears_ends_all_the_same(tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "LEAVE_SECONDS", 0.05)

    async def story(world: World) -> None:
        pool = await world.open(1)  # never run: nothing is ever carried away
        await pool.leave()
        assert pool.has_left
        pool.close()

    tell(story)


@pytest.mark.parametrize(
    ("step", "key", "why"),
    [
        ("rotate", None, "expected one of list, install, use, remove"),
        ("install", "not base64", "key: expected base64"),
        ("install", None, "expected 16, 24 or 32 octets"),
        ("use", "c2VjcmV0", "expected 16, 24 or 32 octets"),
    ],
)
def test_a_key_step_that_is_none_is_refused(tell: Tell, step: str, key: str | None, why: str) -> None:
    async def story(world: World) -> None:
        pool = await world.start(1, keyring=str(keyring(world.folder / "keys", OLD_KEY)))
        with pytest.raises(MembershipError, match=why) as caught:
            await pool.keys(step, key)
        assert caught.value.ground is Ground.QUESTION
        assert caught.value.why
        assert caught.value.advice

    tell(story)


def test_a_pool_without_keys_has_none_to_rotate(tell: Tell) -> None:
    async def story(world: World) -> None:
        pool = await world.start(1)
        with pytest.raises(MembershipError, match="not encrypted") as caught:
            await pool.keys("install", NEW_KEY)
        assert "without a keyring" in caught.value.why
        assert "--keyring" in caught.value.advice

    tell(story)


def test_a_node_where_nothing_is_leased_has_no_lease_to_change(tell: Tell) -> None:
    async def story(world: World) -> None:
        pool = await world.open(1)
        for ask in (pool.release("10.5.2.0/24"), pool.adopt(())):
            with pytest.raises(LeaseError, match="no network here has `founders`") as caught:
                await ask
            assert caught.value.ground is Ground.ABSENT
        pool.close()

    tell(story)


# ── What it tells ───────────────────────────────────────────────────────────────────────────────────────


def test_troubles_are_told_once_and_shown_while_they_last(tell: Tell) -> None:
    async def story(world: World) -> None:
        pool = await world.open(1)
        clock = [100.0]
        pool._clock = lambda: clock[0]
        here, there = Endpoint("192.0.2.7", 7946), Endpoint("192.0.2.8", 7946)
        conflict = NameConflict("n7", here, there)
        for _ in range(3):
            pool._event(conflict)
            pool._event(UdpBlocked("n8"))
            clock[0] += troubles_module.TROUBLE_SECONDS / 2
        said = ["name conflict: n7 is used at 192.0.2.7:7946 and at 192.0.2.8:7946"]
        assert world.told == [*said, "member n8 answers over TCP and not over UDP"]
        assert (pool.conflicts, pool.blocked) == ([said[0].removeprefix("name conflict: ")], ["n8"])
        clock[0] += troubles_module.TROUBLE_SECONDS
        assert (pool.conflicts, pool.blocked) == ([], [])
        pool._event(UdpBlocked("n8"))
        assert pool.blocked == ["n8"]
        gone = pool.core.ourselves
        pool._event(MemberChanged(gone.__class__("n8", here, 1, MemberState.DEAD, b"", bytes(6), 0.0), None))
        assert pool.blocked == []
        assert world.told[-1] == "member n8 192.0.2.7:7946 is dead"
        pool.close()

    tell(story)


# ── Seeds by name ───────────────────────────────────────────────────────────────────────────────────────


def test_a_seed_by_name_is_looked_up_until_it_is_there_and_again_where_it_moves(
    tell: Tell, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pool_module, "FIRST_REJOIN", 0.02)
    monkeypatch.setattr(pool_module, "REJOIN_INTERVAL", 0.1)

    async def story(world: World) -> None:
        book: dict[str, list[str]] = {}

        async def resolve(_: Pool, host: Written) -> list[Endpoint]:
            if host.host not in book:
                raise MembershipError(f"join {host}: Name or service not known")
            return [Endpoint(address, host.port) for address in book[host.host]]

        monkeypatch.setattr(Pool, "_resolve", resolve)
        await world.start(1)
        await world.start(3)
        second = await world.start(2, "seed.example")
        await until(lambda: "seed.example" in caplog.text, within=10, what="the failure is logged")
        book["seed.example"] = [world.host(9), world.host(1)]  # the first is nobody's
        await world.holds(second, "n1", MemberState.ALIVE)
        book["seed.example"] = [world.host(3)]
        await world.holds(second, "n3", MemberState.ALIVE)
        assert caplog.text.count("seed.example") == 1

    tell(story)


def test_names_are_looked_up_in_the_family_we_gossip_over(tell: Tell) -> None:
    async def story(world: World) -> None:
        pool = await world.open(1)
        assert await pool._resolve(Written("localhost", 7946)) == [Endpoint("127.0.0.1", 7946)]
        for wrong in ("a..b", "x" * 64 + ".example"):
            with pytest.raises(MembershipError, match="join "):
                await pool._resolve(Written(wrong, 7946))
        pool.close()

    tell(story)
