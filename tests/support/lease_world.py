"""Nodes that lease subnets of one another, their disks, and all that can happen to them, from one seed.

Each step one thing happens: a node decides, a record arrives, somebody crashes between two instructions, a
disk fills up or is lost, the network parts, a disk is copied, the operator releases or adopts.  After each
step the four claims are checked (`LeaseWorld.check`).  The `Flaw`s are the mistakes these claims are there
to catch: with one of them built in, the same schedule must end in a `ClaimError`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from enum import Enum
from ipaddress import ip_network
from random import Random

from control.intent.leasememory import LeaseMemory, encode_memory, parse_memory_untrusted
from control.intent.leaseplan import LeasePlan
from control.intent.leases import Leases, Self, Word
from control.membership.recordbody import Grant, Holding, IpNetwork, LeaseWord, NetworkRecord
from overlay.addr import NetworkId
from overlay.errors import LeaseError, WireError

PODS = NetworkId("pods")
PLAN = LeasePlan(ip_network("10.5.0.0/20"), 24, ("n0", "n1"))
NODES = 8
STEPS = 250
TORN = '{"schema": "weft.leases-memory/1", "netw'


class Flaw(Enum):
    """A mistake built in on purpose."""

    NO_FSYNC = "what was written is gone after a crash"
    REPLY_BEFORE_WRITE = "a grant is told before it is on disk"
    LAST_WRITER_WINS = "whatever record arrives last is believed"
    NO_FENCE = "a founder that lost its book starts a new one"
    ONE_BLOCK = "every founder grants from the whole network"


class OneBlock(LeasePlan):
    """The plan of somebody who thinks that founders will hear of one another in time."""

    def block(self, founder: str) -> range:
        return range(1, self.slots) if founder in self.founders else range(0)


class ClaimError(AssertionError):
    """One of the four claims does not hold."""


@dataclass(slots=True)
class Disk:
    """What outlives a process: its identity, its starts, its leases."""

    weft_id: str = ""
    epoch: int = 0
    leases: str | None = None
    synced: str | None = None
    is_full: bool = False


@dataclass(frozen=True, slots=True)
class Spoken:
    """One record of a node: who, which start, which word of it, and the word."""

    name: str
    weft_id: str
    born: int
    epoch: int
    version: int
    word: LeaseWord

    @property
    def age(self) -> tuple[int, int, int]:
        return self.born, self.epoch, self.version


@dataclass(slots=True)
class Node:
    """One machine: its disk, and the process on it while it runs."""

    name: str
    endpoint: str
    disk: Disk = field(default_factory=Disk)
    leases: Leases | None = None
    born: int = 0
    version: int = 0
    heard: dict[str, Spoken] = field(default_factory=dict)
    is_cloned: bool = False

    @property
    def identity(self) -> tuple[str, str]:
        return self.name, self.disk.weft_id


class LeaseWorld:
    """Eight nodes, two of them founders, fifteen subnets to lease."""

    def __init__(self, seed: int, flaw: Flaw | None = None) -> None:
        self.rng = Random(seed)
        self.flaw = flaw
        self.now = 0.0
        self.nodes = [Node(f"n{number}", f"192.0.2.{number}") for number in range(NODES)]
        self.clone: Node | None = None
        self.side: dict[str, int] = {}
        self.flying: list[tuple[Node, Spoken]] = []
        self.story: list[str] = []
        self.happened = Counter[str]()
        self._ids = 0
        self._told: dict[tuple[str, str], dict[IpNetwork, Grant]] = {}
        self._forgot: set[tuple[str, str]] = set()
        self._numbers: dict[tuple[str, str, str], int] = {}
        self._ages: dict[tuple[str, str, str], tuple[int, int, int]] = {}
        self._used: dict[tuple[str, str], Holding] = {}
        for node in self.nodes:
            self._start(node, is_first=True)

    # A life.

    def run(self, steps: int = STEPS) -> None:
        """The whole schedule, then peace, in which everybody comes by a subnet."""
        actions = (
            (self._decide, 40),
            (self._arrive, 30),
            (self._compare, 10),
            (self._crash, 4),
            (self._restart, 6),
            (self._part, 1),
            (self._heal, 2),
            (self._fill, 1),
            (self._lose, 0.4),
            (self._tear, 0.4),
            (self._copy, 0.3),
            (self._release, 1),
            (self._adopt, 2),
            (self._move, 0.3),
        )
        chosen = self.rng.choices([each for each, _ in actions], [weight for _, weight in actions], k=steps)
        for act in chosen:
            self.now += self.rng.random()
            act()
            self.check()
        self._make_peace()

    def _make_peace(self) -> None:
        if self.clone is not None:
            self._end_clone()
        self.side.clear()
        for node in self.nodes:
            node.disk.is_full = False
            if node.leases is None:
                self._start(node, is_first=False)
        for _ in range(12):
            self.now += 3.0
            for node in self.nodes:
                self._turn(node, crashes=False)
            self._share_all()
            self._adopt()
            self.check()
        free = any(node.leases and node.leases.word().free for node in self.nodes)
        without = [node.name for node in self.nodes if node.leases and node.leases.held is None]
        if free and without:
            raise ClaimError(f"liveness: {', '.join(without)} hold nothing while there is something to grant")

    # Processes.

    def _start(self, node: Node, *, is_first: bool) -> None:
        disk = node.disk
        if not disk.weft_id:
            self._ids += 1
            disk.weft_id, node.born = f"id{self._ids}", self._ids
        disk.epoch += 1
        node.version, node.heard, node.is_cloned = 0, {}, False
        own = Self(node.name, disk.weft_id, node.endpoint)
        try:
            memory = parse_memory_untrusted(disk.leases).get(PODS) if disk.leases else None
        except WireError:
            memory = None
        is_first = is_first or self.flaw is Flaw.NO_FENCE
        plan = OneBlock(PLAN.network, PLAN.subnet_len, PLAN.founders) if self.flaw is Flaw.ONE_BLOCK else PLAN
        node.leases = Leases(plan, own, memory, is_first=is_first, now=self.now)
        self._publish(node)

    def _stop(self, node: Node) -> None:
        node.leases = None
        if self.flaw is Flaw.NO_FSYNC:
            node.disk.leases = node.disk.synced

    def _running(self) -> list[Node]:
        return [node for node in self._everybody() if node.leases is not None]

    def _everybody(self) -> list[Node]:
        return [*self.nodes, *([self.clone] if self.clone else [])]

    def _sees(self, one: Node, other: Node) -> bool:
        return self.side.get(one.endpoint, 0) == self.side.get(other.endpoint, 0)

    # What a node does, with a crash possible between any two lines.

    def _decide(self) -> None:
        if running := self._running():
            self._turn(self.rng.choice(running), crashes=True)

    def _turn(self, node: Node, *, crashes: bool) -> None:
        leases = node.leases
        if leases is None:
            return
        leases.consider(self._words_for(node), is_cloned=node.is_cloned, now=self.now)
        memory = leases.to_write()
        if memory is not None:
            if self.flaw is Flaw.REPLY_BEFORE_WRITE:
                self._publish(node, replace(leases.word(), grants=memory.grants, held=memory.held))
            if self._crashes(node, crashes):
                return
            if not self._write(node, memory):
                leases.not_written("full")
                return
            if self._crashes(node, crashes):
                return
            leases.written()
            if self._crashes(node, crashes):
                return
        self._publish(node)

    def _crashes(self, node: Node, crashes: bool) -> bool:
        if crashes and self.rng.random() < 0.06:
            self._note("crash", node)
            self._stop(node)
            return True
        return False

    def _write(self, node: Node, memory: LeaseMemory) -> bool:
        if node.disk.is_full:
            self._note("full", node)
            return False
        node.disk.leases = encode_memory({PODS: memory})
        if self.flaw is not Flaw.NO_FSYNC or self.rng.random() < 0.5:
            node.disk.synced = node.disk.leases
        return True

    def _words_for(self, node: Node) -> list[Word]:
        here = {other.identity for other in self._running() if self._sees(node, other)}
        return [
            Word(each.name, each.weft_id, (each.name, each.weft_id) in here, _said(each.word))
            for each in node.heard.values()
        ]

    def _publish(self, node: Node, word: LeaseWord | None = None) -> None:
        assert node.leases is not None
        node.version += 1
        said = word or node.leases.word()
        spoken = Spoken(node.name, node.disk.weft_id, node.born, node.disk.epoch, node.version, said)
        self._told.setdefault(node.identity, {}).update({each.subnet: each for each in said.grants})
        self._check_durable(node)
        for other in self._running():
            if other is not node and self._sees(node, other):
                self._send(other, spoken)

    def _send(self, to: Node, spoken: Spoken) -> None:
        if self.rng.random() < 0.15:
            return  # lost; comparing finds it
        for _ in range(2 if self.rng.random() < 0.1 else 1):
            self.flying.append((to, spoken))

    # The network.

    def _arrive(self) -> None:
        for _ in range(min(4, len(self.flying))):
            to, spoken = self.flying.pop(self.rng.randrange(len(self.flying)))  # in any order
            self._hear(to, spoken)

    def _compare(self) -> None:
        if len(running := self._running()) < 2:
            return
        one, other = self.rng.sample(running, 2)
        if self._sees(one, other):
            for spoken in [*one.heard.values()]:
                self._hear(other, spoken)
            for spoken in [*other.heard.values()]:
                self._hear(one, spoken)
            self._publish(one)

    def _share_all(self) -> None:
        """Everybody hears the newest of everything, as after a while without loss."""
        running = self._running()
        for node in running:
            self._publish(node)
        newest: dict[str, Spoken] = {}
        said = [spoken for node in running for spoken in node.heard.values()]
        said += [spoken for _, spoken in self.flying]
        for node in running:
            assert node.leases is not None
            word = node.leases.word()
            said.append(Spoken(*node.identity, node.born, node.disk.epoch, node.version, word))
        for spoken in said:
            if spoken.name not in newest or spoken.age > newest[spoken.name].age:
                newest[spoken.name] = spoken
        self.flying.clear()
        for node in running:
            for spoken in newest.values():
                self._hear(node, spoken)

    def _hear(self, node: Node, spoken: Spoken) -> None:
        if node.leases is None:
            return
        if spoken.name == node.name:
            if spoken.weft_id == node.disk.weft_id and spoken.age[1:] > (node.disk.epoch, node.version):
                node.is_cloned = True
            return
        held = node.heard.get(spoken.name)
        if held is None or spoken.age > held.age or self.flaw is Flaw.LAST_WRITER_WINS:
            node.heard[spoken.name] = spoken

    # What goes wrong.

    def _crash(self) -> None:
        if running := self._running():
            node = self.rng.choice(running)
            self._note("crash", node)
            self._stop(node)

    def _restart(self) -> None:
        stopped = [node for node in self.nodes if node.leases is None]
        if stopped:
            node = self.rng.choice(stopped)
            self._note("restart", node)
            self._start(node, is_first=False)

    def _part(self) -> None:
        self.happened["partition"] += 1
        self.side = {node.endpoint: self.rng.randrange(2) for node in self._everybody()}

    def _heal(self) -> None:
        self.side.clear()

    def _fill(self) -> None:
        node = self.rng.choice(self.nodes)
        node.disk.is_full = not node.disk.is_full

    def _lose(self) -> None:
        node = self.rng.choice(self.nodes)
        self._note("disk lost", node)
        self._stop(node)
        self._forgot.add(node.identity)
        node.disk = Disk()

    def _tear(self) -> None:
        node = self.rng.choice(self.nodes)
        self._note("torn", node)
        self._stop(node)
        self._forgot.add(node.identity)
        node.disk.leases = node.disk.synced = TORN

    def _move(self) -> None:
        node = self.rng.choice(self.nodes)
        self._note("moved", node)
        self._stop(node)
        node.endpoint += "'"

    def _copy(self) -> None:
        """A second machine from a copy of a disk, somewhere else, until the operator ends it."""
        if self.clone is not None:
            self._end_clone()
            return
        node = self.rng.choice(self.nodes)
        self._note("cloned", node)
        self.clone = Node(node.name, f"{node.endpoint}c", replace(node.disk), born=node.born)
        self._start(self.clone, is_first=False)

    def _end_clone(self) -> None:
        assert self.clone is not None
        original = next(node for node in self.nodes if node.name == self.clone.name)
        self._stop(self.clone)
        if original.identity == self.clone.identity:  # the daemon writes down the epoch it heard of
            original.disk.epoch = max(original.disk.epoch, self.clone.disk.epoch)
            self._stop(original)
        self.clone = None

    # What the operator does.

    def _release(self) -> None:
        """Release what a machine had whose disk is gone for good."""
        for node in self._running():
            assert node.leases is not None
            for grant in node.leases.memory.grants:
                identity = (grant.node, grant.weft_id)
                if grant.is_released or identity in {each.identity for each in self._everybody()}:
                    continue
                try:
                    node.leases.release(grant.subnet)
                except LeaseError:
                    continue
                self.happened["release"] += 1
                return

    def _adopt(self) -> None:
        """Adopt a fenced founder once the pool is whole: everybody runs, and all of it has been heard."""
        fenced = [node for node in self._running() if node.leases and node.leases.fence]
        is_whole = self.clone is None and len(self._running()) == NODES and len(set(self.side.values())) < 2
        if not fenced or not is_whole:
            return
        self._share_all()
        for node in self._running():
            self._turn(node, crashes=False)
        self._share_all()
        for node in fenced:
            assert node.leases is not None
            node.leases.consider(self._words_for(node), now=self.now)
            missing = [each.name for each in self.nodes if each is not node and each.name not in node.heard]
            try:
                node.leases.adopt(missing=missing)
            except LeaseError:
                continue
            self._note("adopted", node)
            self._forgot.add(node.identity)  # its book is another one now
            self._told[node.identity] = {}
            node.is_cloned = False

    def _note(self, what: str, node: Node) -> None:
        self.happened[what] += 1
        self.story.append(f"{self.now:.1f} {what} {node.name} {node.disk.weft_id}")

    # What must be so, always.

    def check(self) -> None:
        """The four claims."""
        self._check_unique()
        for node in self._running():
            self._check_durable(node)
            self._check_monotone(node)
            self._check_stable(node)

    def _check_unique(self) -> None:
        holders: dict[IpNetwork, tuple[str, str]] = {}
        for node in self._running():
            assert node.leases is not None
            if (subnet := node.leases.held) is None:
                continue
            first = holders.setdefault(subnet, node.identity)
            if first != node.identity:
                raise ClaimError(f"unique: {first} and {node.identity} both use {subnet}")

    def _check_durable(self, node: Node) -> None:
        """Whatever a founder has told is in its book, on disk, or something it decided later is."""
        if node.identity in self._forgot or node is self.clone:
            return
        told = self._told.get(node.identity)
        if not told:
            return
        memory = parse_memory_untrusted(node.disk.leases).get(PODS) if node.disk.leases else None
        book = {each.subnet: each for each in memory.grants} if memory else {}
        for subnet, grant in told.items():
            written = book.get(subnet)
            if written != grant and (written is None or written.number <= grant.number):
                raise ClaimError(f"durable: {node.identity} has told of {grant} and wrote {written}")

    def _check_monotone(self, node: Node) -> None:
        """Nobody's word goes back, at anybody."""
        for spoken in node.heard.values():
            key = (f"{node.identity}@{node.endpoint}/{node.disk.epoch}", spoken.name, spoken.weft_id)
            if spoken.age < self._ages.get(key, spoken.age):
                raise ClaimError(f"monotone: {key[0]} went back to {spoken.age} of {spoken.name}")
            self._ages[key] = spoken.age
        assert node.leases is not None
        if node is self.clone or node.identity in self._forgot:
            return
        key = (*node.identity, "number")
        number = node.leases.memory.number
        if number < self._numbers.get(key, 0):
            raise ClaimError(f"monotone: {node.identity} counts back to {number}")
        self._numbers[key] = number

    def _check_stable(self, node: Node) -> None:
        """Who has a subnet keeps it, as long as his disk does."""
        assert node.leases is not None
        held, before = node.leases.memory.held, self._used.get(node.identity)
        if node.identity in self._forgot or node is self.clone or node.identity == self._clones_identity():
            return
        if before is not None and (held is None or held.subnet != before.subnet):
            raise ClaimError(f"stable: {node.identity} had {before.subnet} and has {held}")
        if held is not None:
            self._used[node.identity] = held

    def _clones_identity(self) -> tuple[str, str] | None:
        return self.clone.identity if self.clone else None


def _said(word: LeaseWord) -> NetworkRecord:
    return NetworkRecord(PODS, "routed", "vxlan", None, 8472, leases=word)
