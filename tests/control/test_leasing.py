"""What is leased is on disk before it is so, comes back after a restart, and a torn file is a lost one."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from ipaddress import ip_network
from pathlib import Path

import pytest
from support.disk import full_disk
from support.gossip_world import Actor, World, weft_tags, world
from support.records import peer

from control.intent import leases as leases_module
from control.intent.desired import Ours
from control.intent.leases import LOST, SETTLE_SECONDS, Self
from control.intent.own import Routed, own_networks
from control.leasing import LEASES_FILE, Leasing
from control.membership.peer import Peer
from control.operator.config import Config, load
from overlay.addr import NetworkId
from overlay.errors import ConfigError, Ground, LeaseError

PODS = NetworkId("pods")
FOUNDED = """
[gossip]
[[network]]
name = "pods"
mode = "routed"
network = "10.5.0.0/16"
"""


class Node:
    """One node's leases on a real disk, its pool a simulated one."""

    def __init__(
        self,
        made: World,
        folder: Path,
        name: str,
        founders: str = "",
        more: str = "",
        *,
        is_first: bool = True,
    ) -> None:
        self.folder = folder / name
        self.folder.mkdir(exist_ok=True)
        self.made = made
        file = folder / f"{name}.toml"
        file.write_text(FOUNDED + (f"founders = [{founders}]\n" if founders else "") + more)
        self.config: Config = load(file, {"name": name, "state_dir": str(self.folder)}, {})
        key = {"name": name, "tags": weft_tags(f"id-{name}")}
        self.actor: Actor = made.actors.get(name) or made.add(key.pop("name"), **key)  # type: ignore[arg-type]
        own = Self(name, f"id-{name}", str(self.actor.endpoint))
        leasing = Leasing.open(self.config, own, is_first=is_first, now=self.now)
        assert leasing is not None
        self.leasing = leasing

    @property
    def now(self) -> float:
        return self.actor.clock(self.made.now)

    @property
    def core(self) -> Peer:
        return peer(self.actor)

    async def turn(self) -> None:
        """Decides, writes, and says what is so."""
        await self.leasing.advance(self.core, is_cloned=False, now=self.now)
        subnet = self.config.networks[0].subnet or self.leasing.held(PODS)
        routed = Routed((subnet,) if subnet else (), self.leasing.words().get(PODS))
        self.core.publish(own_networks(self.config.networks, Ours(), {PODS: routed}), now=self.now)
        self.made.settle(self.actor)

    def file(self) -> Path:
        return self.folder / LEASES_FILE

    def rows(self) -> dict[str, tuple[str, str]]:
        return {row.node: (row.subnet, row.state) for row in self.leasing.rows()}

    def troubles(self) -> str:
        return "; ".join(trouble.problem for trouble in self.leasing.troubles())


Story = Callable[[World], Coroutine[None, None, None]]


def tell(story: Story) -> None:
    with world(1, "leasing", core=Peer) as made:
        asyncio.run(story(made))


async def rounds(*nodes: Node, seconds: float = SETTLE_SECONDS + 4.0) -> None:
    made = nodes[0].made
    made.converge([node.actor for node in nodes])
    for _ in range(int(seconds * 2)):
        made.run(0.5)
        for node in nodes:
            await node.turn()


def test_who_is_told_nothing_learns_the_founders_and_leases(tmp_path: Path) -> None:
    async def story(made: World) -> None:
        founder, joiner = Node(made, tmp_path, "n1", '"n1"'), Node(made, tmp_path, "n2")
        assert "nobody leases" in joiner.troubles()
        await rounds(founder, joiner)
        assert founder.rows() == {"n1": ("10.5.1.0/24", "held"), "n2": ("10.5.2.0/24", "held")}
        assert joiner.rows() == founder.rows()
        assert founder.troubles() == joiner.troubles() == ""
        remembered = json.loads(joiner.file().read_text())["networks"]["pods"]
        assert remembered["founders"] == ["n1"]
        assert remembered["held"][0] == "10.5.2.0/24"

        again = Node(made, tmp_path, "n2", is_first=False)
        assert again.leasing.held(PODS) == ip_network("10.5.2.0/24"), "before anybody was heard"

    tell(story)


RANGE = 'subnet_min = "10.5.16.0"\nsubnet_max = "10.5.17.0"\n'


def test_founders_lease_of_the_range_and_who_is_told_nothing_learns_it(tmp_path: Path) -> None:
    async def story(made: World) -> None:
        founders = [Node(made, tmp_path, name, '"n1", "n2"', RANGE) for name in ("n1", "n2")]
        joiner = Node(made, tmp_path, "n3")
        await rounds(*founders)
        await rounds(*founders, joiner)
        assert {row for row, _ in founders[0].rows().values()} == {"10.5.16.0/24", "10.5.17.0/24"}
        assert joiner.leasing.held(PODS) is None, "what is outside the range is nobody's"
        assert "this founder has no subnet left to grant" in founders[0].troubles()

    tell(story)


def test_a_range_is_learned_and_comes_back_with_the_disk(tmp_path: Path) -> None:
    async def story(made: World) -> None:
        founder, joiner = Node(made, tmp_path, "n1", '"n1"', RANGE), Node(made, tmp_path, "n2")
        await rounds(founder, joiner)
        assert joiner.rows() == {"n1": ("10.5.16.0/24", "held"), "n2": ("10.5.17.0/24", "held")}
        assert joiner.troubles() == ""
        again = Node(made, tmp_path, "n2", is_first=False)
        assert again.leasing.held(PODS) == ip_network("10.5.17.0/24"), "before anybody was heard"

    tell(story)


def test_founders_that_are_told_different_ranges_are_of_two_pools(tmp_path: Path) -> None:
    async def story(made: World) -> None:
        told, untold = (
            Node(made, tmp_path, "n1", '"n1", "n2"', RANGE),
            Node(made, tmp_path, "n2", '"n1", "n2"'),
        )
        await rounds(told, untold)
        for one, other in ((told, "n2"), (untold, "n1")):
            assert f"{other} is of another pool: its founders, network, subnet length" in one.troubles()

    tell(story)


STATIC = """
subnet = "10.5.1.0/24"
peers = [{ vtep = "192.0.2.9", subnet = "10.5.2.0/24", mac = "02:00:00:00:00:09" }]
"""


def test_a_founder_grants_neither_its_own_static_subnet_nor_a_static_peers(tmp_path: Path) -> None:
    async def story(made: World) -> None:
        founder, joiner = Node(made, tmp_path, "n1", '"n1"', STATIC), Node(made, tmp_path, "n2")
        await rounds(founder, joiner)
        assert founder.rows() == {"n1": ("10.5.1.0/24", "static"), "n2": ("10.5.3.0/24", "held")}
        assert joiner.rows() == founder.rows()
        assert founder.troubles() == joiner.troubles() == ""

    tell(story)


def test_a_static_peer_that_comes_with_a_reload_is_minded_too(tmp_path: Path) -> None:
    async def story(made: World) -> None:
        founder = Node(made, tmp_path, "n1", '"n1"', 'subnet = "10.5.1.0/24"')
        again = Node(made, tmp_path, "n1", '"n1"', STATIC)
        founder.leasing.take_over(again.config.networks)
        joiner = Node(made, tmp_path, "n2")
        await rounds(founder, joiner)
        assert joiner.leasing.held(PODS) == ip_network("10.5.3.0/24")

    tell(story)


def test_a_full_disk_grants_nothing_and_says_so_and_then_it_does(tmp_path: Path) -> None:
    async def story(made: World) -> None:
        founder = Node(made, tmp_path, "n1", '"n1"')
        with full_disk():
            await rounds(founder)
            assert founder.leasing.held(PODS) is None
            assert "not on disk" in founder.troubles()
            assert not founder.file().exists()
        await rounds(founder, seconds=2.0)
        assert founder.leasing.held(PODS) == ip_network("10.5.1.0/24")

    tell(story)


SECOND = """
[[network]]
name = "more"
mode = "routed"
network = "10.6.0.0/16"
vni = 43
founders = ["n1"]
"""


def test_no_more_is_granted_than_one_record_holds_whatever_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases_module, "GRANTS_MAX", 1)

    async def story(made: World) -> None:
        founder = Node(made, tmp_path, "n1", '"n1"', SECOND)
        await rounds(founder)
        assert [(row.network, row.subnet) for row in founder.leasing.rows()] == [("pods", "10.5.1.0/24")]
        assert "network more: this founder has no subnet left to grant" in founder.troubles()

    tell(story)


def test_what_was_decided_last_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(made: World) -> None:
        founder = Node(made, tmp_path, "n1", '"n1"', SECOND)
        known = list(founder.leasing._known())
        for _, leases in known * 2:  # asked, then granted
            leases.consider((), now=founder.now + SETTLE_SECONDS + 1)
        delays = [0.1, 0.0]
        write = founder.leasing._file.write

        def slow_at_first(text: str) -> None:
            time.sleep(delays.pop(0))
            write(text)

        monkeypatch.setattr(founder.leasing._file, "write", slow_at_first)
        await asyncio.gather(*(founder.leasing._write(*each) for each in known))
        networks = json.loads(founder.file().read_text())["networks"]
        assert {name: len(each["grants"]) for name, each in networks.items()} == {"pods": 1, "more": 1}

    tell(story)


@pytest.mark.parametrize(
    "text", ["", "{", '{"schema": "weft.leases-memory/1", "networks": {"pods": {}}}', "\u0000"]
)
def test_a_torn_file_is_a_lost_one_and_a_founder_grants_nothing(tmp_path: Path, text: str) -> None:
    async def story(made: World) -> None:
        (tmp_path / "n1").mkdir()
        (tmp_path / "n1" / LEASES_FILE).write_text(text)
        founder = Node(made, tmp_path, "n1", '"n1"')
        await rounds(founder)
        assert founder.leasing.held(PODS) is None
        assert LOST in founder.troubles()
        assert await founder.leasing.adopt(founder.core, ()) == {"pods": 0}
        await rounds(founder)
        assert founder.leasing.held(PODS) == ip_network("10.5.1.0/24")

    tell(story)


def test_a_founder_that_ran_before_and_has_no_book_grants_nothing(tmp_path: Path) -> None:
    async def story(made: World) -> None:
        founder = Node(made, tmp_path, "n1", '"n1"', is_first=False)
        await rounds(founder)
        assert LOST in founder.troubles()

    tell(story)


def test_leases_of_another_pool_are_a_mistake_of_the_configuration(tmp_path: Path) -> None:
    async def story(made: World) -> None:
        await rounds(Node(made, tmp_path, "n1", '"n1"'))
        with pytest.raises(ConfigError, match="not what they were"):
            Node(made, tmp_path, "n1", '"n1", "n9"')

    tell(story)


def test_what_an_operator_asks_for_wrongly_is_refused(tmp_path: Path) -> None:
    async def story(made: World) -> None:
        founder, joiner = Node(made, tmp_path, "n1", '"n1"'), Node(made, tmp_path, "n2")
        await rounds(founder, joiner)
        for subnet, what, ground in (
            ("10.5.2.0", "expected a subnet of a leased network", Ground.ABSENT),
            ("ten", "expected a subnet like", Ground.QUESTION),
            ("10.5.2.1/24", "expected a subnet like", Ground.QUESTION),
            ("10.6.2.0/24", "expected a subnet of a leased network", Ground.ABSENT),
            ("10.5.2.0/24", "n2 is alive", Ground.STATE),
            ("10.5.1.0/24", "this node's own", Ground.STATE),
            ("10.5.9.0/24", "expected a subnet this node has granted", Ground.ABSENT),
        ):
            with pytest.raises(LeaseError, match=what) as caught:
                await founder.leasing.release(subnet)
            assert caught.value.ground is ground
            assert caught.value.why
            assert caught.value.advice
        with pytest.raises(LeaseError, match="founder of no network") as caught:
            await joiner.leasing.adopt(joiner.core, ())
        assert (caught.value.why, caught.value.ground) == ("founders here: n1", Ground.ABSENT)

    tell(story)


def test_where_nothing_is_routed_there_is_nothing_to_lease() -> None:
    config = load(None, {"name": "n1", "vni": "42"}, {})
    assert Leasing.open(config, Self("n1", "id", ""), is_first=True, now=0.0) is None
