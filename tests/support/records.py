"""Records for tests: what a node might say of itself, and peers in a world that say it."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from random import Random
from typing import cast

from support.gossip_world import Actor, World, weft_tags

from control.membership.member import VERSIONS, Endpoint, Member, MemberState
from control.membership.peer import Peer
from control.membership.recordbody import LocalMac, NetworkRecord, encode_networks
from control.membership.records import Records, Refused, Spread, Tell
from control.membership.recordwire import (
    RecordKey,
    RecordMessage,
    Rumor,
    encode_message,
    parse_message_untrusted,
)
from control.membership.tags import encode_tags
from overlay.addr import Mac, NetworkId, Vni

LAB = NetworkId("lab")


def mac(number: int, node: int = 0) -> Mac:
    """A station's address."""
    return Mac(bytes((0x02, node >> 8, node & 255)) + number.to_bytes(3, "big"))


def network(node: int = 1, *, macs: int = 1, name: str = LAB, vni: int = 42) -> NetworkRecord:
    """One bridged network as node `node` has it, with that many MACs behind its device."""
    own = mac(0, node)
    return NetworkRecord(
        name=NetworkId(name),
        mode="bridge",
        encap="vxlan",
        vni=Vni(vni),
        port=4789,
        vteps=(ip_address(0xC0000200 + node),),
        mac=own,
        macs=tuple(LocalMac(mac(each, node)) for each in range(macs)),
        ips=((ip_address(0x0A090000 + node), own),),
    )


def peer(actor: Actor) -> Peer:
    """The actor's core, which is a whole peer."""
    return cast("Peer", actor.core)


def peers(made: World, count: int) -> list[Actor]:
    """A converged pool of peers that have said nothing of themselves."""
    actors = [made.add(f"n{number:04}", tags=weft_tags(f"id{number}")) for number in range(count)]
    made.converge(actors)
    return actors


def say(made: World, actor: Actor, *networks: NetworkRecord) -> None:
    """Have the actor say this of itself."""
    peer(actor).publish(networks, now=actor.clock(made.now))
    made.settle(actor)


def holds_newest(actor: Actor, writer: Actor) -> bool:
    """Whether the actor holds what the writer said last."""
    held, said = peer(actor).records.lookup(writer.name), peer(writer).records.own
    return held is not None and said is not None and held.key == said.key


def agree(made: World) -> bool:
    """Whether all that run hold the same set, all of it."""
    running = made.running()
    return len({peer(actor).records.hash for actor in running}) == 1 and all(
        holds_newest(actor, writer) for actor in running for writer in running
    )


# Records without a pool around them.


def member(
    name: str,
    *,
    epoch: int = 1,
    weft_id: str = "",
    state: MemberState = MemberState.ALIVE,
    is_peer: bool = True,
) -> Member:
    """A member of that name, a peer of identity `id-<name>` unless told otherwise."""
    tags = weft_tags(weft_id or f"id-{name}", epoch) if is_peer else {"role": "db"}
    return Member(name, Endpoint("192.0.2.1", 7946), 1, state, encode_tags(tags), VERSIONS, 0.0)


def key(name: str, version: int = 1, *, epoch: int = 1, weft_id: str = "") -> RecordKey:
    """The key of a record of `member(name)`."""
    return RecordKey(name, weft_id or f"id-{name}", epoch, version)


def rumor(of: RecordKey, *networks: NetworkRecord, is_answer: bool = False) -> Rumor:
    """The record with that key, saying this."""
    return Rumor(of, encode_networks(networks or (network(),)), is_answer)


class Crowd:
    """The members one `Records` sees."""

    def __init__(self, *members: Member, room: int = 1300) -> None:
        self.members = {each.name: each for each in members}
        self._room = room

    def lookup(self, name: str) -> Member | None:
        return self.members.get(name)

    def pick_peers(self, count: int) -> list[Member]:
        return [each for each in self.members.values() if each.is_here and each.is_peer][:count]

    @property
    def others_here(self) -> int:
        return sum(each.is_here for each in self.members.values())

    def room(self) -> int:
        return self._room


class Desk:
    """One `Records` called `us` on a desk, in a crowd; time moves only when told."""

    def __init__(self, *others: Member, room: int = 1300) -> None:
        self.now = 100.0
        self.crowd = Crowd(*others, room=room)
        self.records = Records(key("us", 0), members=self.crowd, rng=Random(1), now=self.now)

    def hear(self, *messages: RecordMessage, sender: str = "m1") -> None:
        """Hand in messages."""
        for message in messages:
            self.records.receive(encode_message(message), sender, now=self.now)

    def change(self, changed: Member) -> None:
        """A member is now this."""
        before = self.crowd.members.get(changed.name)
        self.crowd.members[changed.name] = changed
        self.records.member_changed(changed, before.state if before else None, now=self.now)

    def run(self, seconds: float) -> None:
        """Let time pass, doing what is due."""
        end = self.now + seconds
        while self.records.next_deadline() <= end:
            self.now = max(self.now, self.records.next_deadline())
            self.records.handle_timer(now=self.now)
        self.now = end

    def said(self) -> list[Tell | Spread]:
        """What was said since."""
        return self.records.messages_to_send(now=self.now)

    def told(self, name: str = "m1") -> list[RecordMessage]:
        """What was told that peer since."""
        return [
            parse_message_untrusted(body)
            for each in self.said()
            if isinstance(each, Tell) and each.name == name
            for body in each.bodies
        ]

    def refused(self, reason: Refused) -> int:
        """How often something was refused for that."""
        return self.records.statistics().refused.get(reason, 0)

    def held(self, name: str) -> RecordKey | None:
        """Which record of that node is held."""
        record = self.records.lookup(name)
        return record.key if record else None


def talk(one: Desk, other: Desk, names: tuple[str, str], *, rounds: int = 50) -> int:
    """Carries what the two desks say to one another until both are silent; how many messages that took."""
    count = 0
    for _ in range(rounds):
        moved = [*_carry(one, other, names), *_carry(other, one, names[::-1])]
        count += len(moved)
        if not moved:
            break
    return count


def _carry(source: Desk, target: Desk, names: tuple[str, str]) -> Iterable[bytes]:
    bodies = [
        body
        for each in source.said()
        if isinstance(each, Tell) and each.name == names[1]
        for body in each.bodies
    ]
    for body in bodies:
        target.records.receive(body, names[0], now=target.now)
    return bodies
