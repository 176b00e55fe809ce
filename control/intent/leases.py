"""Who owns which subnet of a routed network: founders grant, each from its own block, and nobody else.

    asks      a node's word: "I want a subnet of n1"                   ┐
    grants    n1 writes it into its book, on disk, and then says so    │ all of it in their records
    holds     the node writes down that it has it, and then says so    ┘ (`membership.records`)

The founders split the network into fixed blocks, so no two ever decide about one subnet, and a founder
decides about each at most once: what it says is on disk before anybody hears of it.  So two nodes never
have one subnet, whatever is lost, doubled, reordered or cut off; that rests on three things, and where one
of them fails the founder is *fenced*: it grants nothing until the operator has looked (`adopt`).

    the disk keeps what it was given       a book that is gone, torn or set back: its own grants are news
    one founder of that name and identity  a copy of its disk starts at another address, or speaks as it
    the operator releases only the dead    `release` is refused while the holder is here

    Leases(plan, …)   consider(words)   to_write() ─▶ written() | not_written()   word()   adopt()   release()

Nothing takes effect before `written`.  Over 500 lines: asking, granting, holding and being fenced are one
state, and each is only safe because of the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b

from control.intent.desired import is_within
from control.intent.leasememory import LeaseMemory
from control.intent.leaseplan import LeasePlan
from control.intent.shared import Trouble
from control.membership.recordbody import (
    GRANTS_MAX,
    SUBNETS_MAX,
    Grant,
    Holding,
    IpNetwork,
    LeaseWord,
    NetworkRecord,
)
from overlay.addr import NetworkId
from overlay.errors import Ground, LeaseError

# Ours
SETTLE_SECONDS = 2.0  # a founder that has just started listens before it grants
STRANGERS_SETTLE_SECONDS = 45.0  # where somebody takes it for an old acquaintance that it has yet to hear
LOST = "its book of grants is gone: a lost disk, or a torn file"
MOVED = "it is at another address than its book says: moved, or a copy of its disk"
CLONED = "another node speaks under its identity: a copied disk, or one that was set back"


@dataclass(frozen=True, slots=True)
class Word:
    """What one other node says of the network.

    Attributes:
        is_here: Whether the pool believes that it runs: alive, or suspected.
    """

    name: str
    weft_id: str
    is_here: bool
    said: NetworkRecord

    @property
    def leases(self) -> LeaseWord | None:
        return self.said.leases

    @property
    def subnets(self) -> tuple[IpNetwork, ...]:
        """Every subnet it says is its own."""
        held = self.leases.held if self.leases else None
        return (
            *self.said.subnets,
            *((held.subnet,) if held and held.subnet not in self.said.subnets else ()),
        )


@dataclass(frozen=True, slots=True)
class Self:
    """Who we are to the others."""

    name: str
    weft_id: str
    endpoint: str


@dataclass(frozen=True, slots=True)
class Static:
    """Subnets the operator gave away: ours, and those of peers that are in no pool and say nothing."""

    own: IpNetwork | None = None
    peers: tuple[IpNetwork, ...] = ()

    @property
    def subnets(self) -> tuple[IpNetwork, ...]:
        return self.peers if self.own is None else (self.own, *self.peers)


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """One subnet: whose it is, and `held`, `granted` (not taken up yet), `released` or `static`."""

    subnet: IpNetwork
    node: str
    state: str


class Leases:
    """One node's part in the leases of one network.

    Args:
        memory: What the disk holds of it; None: nothing, or nothing that can be read.
        is_first: Whether this node has never run: only then is an empty book a new one.
        static: What the operator gave away; where we have a subnet by that we want none, and only grant.
        now: Monotonic seconds, as in every call.

    Raises:
        LeaseError: The disk holds leases of another pool.
    """

    def __init__(
        self,
        plan: LeasePlan,
        own: Self,
        memory: LeaseMemory | None,
        *,
        is_first: bool,
        now: float,
        static: Static | None = None,
    ) -> None:
        if memory is not None and memory.pool_id != plan.pool_id:
            raise LeaseError(
                f"leases of {plan.network}: expected pool {plan.pool_id.hex()[:8]}, found on disk"
                f" {memory.pool_id.hex()[:8]}:"
                " founders, network, subnet length or range are not what they were"
            )
        self.plan = plan
        self._own = own
        self._is_founder = own.name in plan.founders
        self._pending: LeaseMemory | None = None
        self._is_writing = False
        self._unwritten = ""
        self.static = static or Static()
        self._elsewhere = 0
        self._wants = self.static.own is None
        self._asks = ""
        self._knows: dict[str, str] = {}
        self._words: tuple[Word, ...] = ()
        self._settles_at = now + SETTLE_SECONDS
        self._strange_since: float | None = None
        self._is_adopted = False
        self._now = now
        self._memory = memory or LeaseMemory(plan.pool_id, plan.subnet_len, plan.founders, within=plan.within)
        if self._is_founder:
            self._open_book(has_book=memory is not None and memory.is_founder, is_first=is_first)

    def _open_book(self, *, has_book: bool, is_first: bool) -> None:
        fence = self._memory.fence
        if not has_book:
            fence = "" if is_first else LOST
        elif self._memory.endpoint != self._own.endpoint:
            fence = fence or MOVED
        self._memory = replace(
            self._memory, is_founder=True, fence=fence, endpoint=self._memory.endpoint or self._own.endpoint
        )

    # What is so.

    @property
    def held(self) -> IpNetwork | None:
        """The subnet that is ours, on disk."""
        return self._memory.held.subnet if self._memory.held else None

    @property
    def fence(self) -> str:
        """Why we, a founder, grant nothing; empty: we do, or are none."""
        return self._memory.fence

    @property
    def memory(self) -> LeaseMemory:
        """What the disk holds."""
        return self._memory

    @property
    def unwritten(self) -> str:
        """Why the disk does not hold what was last decided; empty: it does."""
        return self._unwritten

    @property
    def is_waiting(self) -> bool:
        """Whether time alone may change something: we want a subnet, or have just begun to listen."""
        return (self._wants and self._memory.held is None) or (
            self._is_founder and self._now < self._settles_at + 1.0
        )

    def word(self) -> LeaseWord:
        """What we say of it in our record: only what is on disk."""
        memory = self._memory
        return LeaseWord(
            self.plan.pool_id,
            self.plan.subnet_len,
            self.plan.founders,
            asks="" if memory.held else self._asks,
            free=len(self._free_slots(limit=1)) if self._may_grant else 0,
            held=memory.held,
            knows=tuple(sorted(self._knows.items())),
            grants=memory.grants,
            within=self.plan.within,
        )

    def rows(self) -> list[LeaseRow]:
        """Every subnet anybody has been given or says is his, by subnet."""
        rows: dict[IpNetwork, LeaseRow] = {}
        everybody = [*self._words, self._own_word()]
        for grant in (grant for word in everybody if word.leases for grant in word.leases.grants):
            state = "released" if grant.is_released else "granted"
            rows[grant.subnet] = LeaseRow(grant.subnet, grant.node, state)
        for word in everybody:
            held = word.leases.held if word.leases else None
            for subnet in word.subnets:
                is_held = held is not None and held.subnet == subnet
                rows[subnet] = LeaseRow(subnet, word.name, "held" if is_held else "static")
        return sorted(rows.values(), key=lambda row: (row.subnet.version, row.subnet.network_address))

    def troubles(self) -> list[Trouble]:
        """What is not as it should be."""
        found = [*self._own_troubles(), *_pool_troubles(self.plan, self._words)]
        for one, other, subnet in _doubles([*self._words, self._own_word()]):
            found.append(
                Trouble(
                    f"{one} and {other} both have the subnet {subnet}",
                    "stop one, remove its leases.json, start it again",
                )
            )
        return found

    def _own_troubles(self) -> Iterable[Trouble]:
        if self._is_founder and self.fence:
            yield Trouble(f"this founder grants no leases: {self.fence}", "weft leases adopt")
        elif self._is_founder and self._now >= self._settles_at and not self._free_slots(limit=1):
            yield Trouble("this founder has no subnet left to grant", "weft leases release SUBNET")
        if self._unwritten:
            yield Trouble(f"leases are not on disk: {self._unwritten}", "free its disk, make it writable")
        if self._wants and self._memory.held is None and not self._asks:
            names = ", ".join(self.plan.founders)
            yield Trouble(
                f"no founder here to lease a subnet of: {names}", "start one of them, or set `subnet`"
            )

    # What follows from what the others say.

    def consider(
        self,
        words: Iterable[Word],
        *,
        is_cloned: bool = False,
        has_strangers: bool = False,
        elsewhere: int = 0,
        now: float,
    ) -> None:
        """Decides what follows; what has to be on disk first is then in `to_write`.

        Args:
            words: What every other node says of this network, those not here included.
            is_cloned: Whether the pool has heard words of ours that we never said.
            has_strangers: Whether somebody we have yet to hear takes us for a peer: we may have been here.
            elsewhere: How many grants we have in other networks: one record has to hold them all.
        """
        self._now = now
        self._elsewhere = elsewhere
        self._words = tuple(words)
        if not self._memory.grants and not self._is_adopted:
            self._listen(has_strangers=has_strangers, now=now)
        agreeing = [word for word in self._words if word.leases and word.leases.pool_id == self.plan.pool_id]
        self._knows = {word.name: word.weft_id for word in agreeing if word.name in self.plan.founders}
        if self._pending is not None:
            return  # one thing at a time: what it leads to is decided when it is on disk
        wanted = self._fenced(self._memory, agreeing, is_cloned=is_cloned)
        wanted = self._granted(wanted, agreeing)
        wanted = self._taken(wanted, agreeing)
        self._ask(wanted, agreeing)
        if wanted != self._memory:
            self._pending = wanted

    def _listen(self, *, has_strangers: bool, now: float) -> None:
        """Put granting off while there may be somebody who holds a subnet of ours."""
        if has_strangers:
            since = self._strange_since = now if self._strange_since is None else self._strange_since
            self._settles_at = max(self._settles_at, since + STRANGERS_SETTLE_SECONDS)
        else:  # those that took us for somebody have been heard, and hold nothing of ours
            self._strange_since = None
            self._settles_at = min(self._settles_at, now + SETTLE_SECONDS)

    def _fenced(self, memory: LeaseMemory, words: list[Word], *, is_cloned: bool) -> LeaseMemory:
        """The memory with a fence, where the book turns out not to be ours, or not all of it."""
        if not self._is_founder or memory.fence:
            return memory
        if is_cloned:
            return replace(memory, fence=CLONED)
        book = {(grant.subnet, grant.node, grant.weft_id) for grant in memory.grants}
        for word in words:
            held = word.leases.held if word.leases else None
            if held and held.founder == self._own.name and (held.subnet, word.name, word.weft_id) not in book:
                return replace(
                    memory, fence=f"{word.name} holds {held.subnet}, of which its book knows nothing"
                )
        return memory

    @property
    def _may_grant(self) -> bool:
        return self._is_founder and not self._memory.fence and self._now >= self._settles_at

    def _granted(self, memory: LeaseMemory, words: list[Word]) -> LeaseMemory:
        """The memory with a grant for each that asks us."""
        if not self._may_grant or memory.fence:
            return memory
        served = {(grant.node, grant.weft_id) for grant in memory.grants if not grant.is_released}
        asking = [(word.name, word.weft_id) for word in words if self._is_asked_by(word)]
        if memory.held is None and self._asks == self._own.name:
            asking.append((self._own.name, self._own.weft_id))
        asking = [each for each in sorted(asking) if each not in served]
        slots = self._free_slots(limit=len(asking))
        for (node, weft_id), slot in zip(asking, slots, strict=False):
            number = memory.number + 1
            grant = Grant(self.plan.subnet(slot), node, weft_id, number)
            kept = tuple(each for each in memory.grants if each.subnet != grant.subnet)
            memory = replace(memory, number=number, grants=(*kept, grant))
        return memory

    def _is_asked_by(self, word: Word) -> bool:
        leases = word.leases
        return bool(word.is_here and leases and leases.asks == self._own.name and leases.held is None)

    def _free_slots(self, *, limit: int) -> list[int]:
        """Slots of our block nobody has: those never given away first, then those released."""
        book = {self.plan.slot_of(grant.subnet): grant for grant in self._memory.grants}
        said = (subnet for word in self._words for subnet in word.subnets)
        taken = [*self.static.subnets, *said]
        room = GRANTS_MAX - self._elsewhere - len(book)

        def is_free(slot: int) -> bool:
            return not any(_overlap(self.plan.subnet(slot), other) for other in taken)

        fresh: list[int] = []
        for slot in self.plan.block(self._own.name):
            if len(fresh) >= min(limit, room):
                break
            if slot not in book and is_free(slot):
                fresh.append(slot)
        back = [
            slot
            for slot, grant in sorted(book.items(), key=lambda each: each[1].number)
            if slot is not None and grant.is_released and is_free(slot)
        ]
        return (fresh + back)[:limit]

    def _taken(self, memory: LeaseMemory, words: list[Word]) -> LeaseMemory:
        """The memory with the lease a founder granted us, or without one it has released."""
        books = {word.name: (word.weft_id, word.leases.grants) for word in words if word.leases}
        # Of our own book what is on disk counts, and nothing that is only about to be.
        books[self._own.name] = (self._own.weft_id, self._memory.grants)
        held = memory.held
        if held is not None:
            _, grants = books.get(held.founder, ("", ()))
            is_over = any(
                grant.is_released and grant.number > held.number
                for grant in grants
                if self._is_ours(grant) and grant.subnet == held.subnet
            )
            return replace(memory, held=None) if is_over else memory
        found = [
            Holding(grant.subnet, founder, weft_id, grant.number)
            for founder, (weft_id, grants) in sorted(books.items())
            for grant in grants
            if self._is_ours(grant)
            and not grant.is_released
            and self.plan.slot_of(grant.subnet) in self.plan.block(founder)
        ]
        return replace(memory, held=found[0]) if found and self._wants else memory

    def _is_ours(self, grant: Grant) -> bool:
        return (grant.node, grant.weft_id) == (self._own.name, self._own.weft_id)

    def _ask(self, memory: LeaseMemory, words: list[Word]) -> None:
        """Choose whom to ask, and stay with it while it is here and has something to give.

        Asked twice, two founders would each give one away.
        """
        able = {
            word.name
            for word in words
            if word.name in self.plan.founders and word.is_here and word.leases and word.leases.free
        }
        if self._is_founder and not memory.fence and self._free_slots(limit=1):
            able.add(self._own.name)
        if memory.held is not None or not self._wants:
            self._asks = ""
        elif self._asks not in able:
            self._asks = min(able, key=self._preference, default="")

    def _preference(self, founder: str) -> tuple[bool, bytes]:
        """Ourselves first; else spread over the founders, each node its own way."""
        text = f"{founder}\0{self._own.name}\0{self._own.weft_id}".encode()
        return founder != self._own.name, blake2b(text, digest_size=8).digest()

    # The disk.

    def to_write(self) -> LeaseMemory | None:
        """What is to be on disk before it is so; `written` or `not_written` follows."""
        if self._is_writing:
            return None
        self._is_writing = self._pending is not None
        return self._pending

    def written(self) -> None:
        """The disk holds what was to be written: now it is so."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        self._is_writing, self._unwritten = False, ""
        held = pending.held
        if held is not None and held != self._memory.held and not self._still_granted(held):
            # The founder is another meanwhile, and may have adopted without knowing of us.
            pending = replace(pending, held=None)
            self._pending = pending
            self._memory = pending
            return
        self._memory = pending

    def _still_granted(self, held: Holding) -> bool:
        known = self._own.weft_id if held.founder == self._own.name else self._knows.get(held.founder)
        return known == held.founder_id

    def not_written(self, why: str) -> None:
        """The disk refused it: it is not so, and is decided anew."""
        self._pending = None
        self._is_writing, self._unwritten = False, why

    # What the operator asks for.

    def release(self, subnet: IpNetwork, *, is_here: bool | None = None) -> None:
        """Takes a subnet back from a node that will not come back; `to_write` follows.

        Args:
            is_here: Whether its holder runs, where the caller knows better than the words do.

        Raises:
            LeaseError: We did not grant it, or its holder is here.
        """
        grant = next((each for each in self._memory.grants if each.subnet == subnet), None)
        if grant is None or grant.is_released:
            raise self._not_granted(subnet)
        if self.fence:
            raise LeaseError(
                f"release {subnet}: this founder must be adopted first",
                why=self.fence,
                advice="weft leases adopt",
            )
        if self._is_ours(grant):
            raise LeaseError(
                f"release {subnet}: it is this node's own, which is alive",
                why="taken back is only what its node will never come back for",
                advice="weft leases names the node that has each",
            )
        holders = [word for word in self._words if (word.name, word.weft_id) == (grant.node, grant.weft_id)]
        if is_here or any(word.is_here and subnet in word.subnets for word in holders):
            raise LeaseError(
                f"release {subnet}: its holder {grant.node} is alive",
                why="released, it could be granted to another node beside it",
                advice=f"stop weft on {grant.node} for good first",
            )
        self._require_idle()
        number = self._memory.number + 1
        released = replace(grant, number=number, is_released=True)
        grants = tuple(released if each is grant else each for each in self._memory.grants)
        self._pending = replace(self._memory, number=number, grants=grants)

    def _not_granted(self, subnet: IpNetwork) -> LeaseError:
        """Who has something to say about it instead."""
        slot = self.plan.slot_of(subnet)
        owner = next((each for each in self.plan.founders if slot in self.plan.block(each)), None)
        is_others = owner is not None and owner != self._own.name
        return LeaseError(
            f"release {subnet}: expected a subnet this node has granted, found none",
            why=f"{owner} is the founder to ask" if is_others else "nobody has it from this node",
            advice=f"weft leases release {subnet}, on {owner}" if is_others else "weft leases",
            ground=Ground.ABSENT,
        )

    def adopt(self, *, without: Iterable[str] = (), missing: Iterable[str] = ()) -> int:
        """Takes what the pool holds of our block for our book, and ends the fence; `to_write` follows.

        Args:
            without: Nodes that will not come back, so that what they may hold is free.
            missing: Members that are not here, or have said nothing yet.

        Returns:
            How many grants the book has then.

        Raises:
            LeaseError: We are no founder, or somebody is missing that might hold a subnet.
        """
        if not self._is_founder:
            raise LeaseError(
                f"adopt: {self._own.name} is no founder",
                why=f"the founders are {', '.join(self.plan.founders)}",
                advice="weft leases adopt, on a founder",
                ground=Ground.ABSENT,
            )
        self._require_idle()
        gone = set(without)
        absent = {word.name for word in self._words if not word.is_here} | set(missing)
        unaware = {word.name for word in self._words if word.is_here and not self._is_known_to(word)}
        if waiting := sorted((absent | unaware) - gone):
            raise LeaseError(
                f"adopt: {', '.join(waiting)} might hold a subnet and cannot be asked",
                why="not here, or here and not aware yet of what this founder is now",
                advice="start them, or name them with --without if they will never come back",
            )
        book = {grant.subnet: grant for grant in self._memory.grants}
        number = self._memory.number
        for word in self._words:
            held = word.leases.held if word.leases else None
            if held is None or held.founder != self._own.name or word.name in gone:
                continue
            number = max(number, held.number)
            book[held.subnet] = Grant(held.subnet, word.name, word.weft_id, held.number)
        own = self._memory.held
        if own is not None and own.founder == self._own.name:
            book[own.subnet] = Grant(own.subnet, self._own.name, self._own.weft_id, own.number)
        self._settles_at, self._is_adopted = self._now, True  # the operator has looked
        self._pending = replace(
            self._memory,
            number=number + 1,
            endpoint=self._own.endpoint,
            fence="",
            grants=tuple(sorted(book.values(), key=lambda each: each.number)),
        )
        return len(book)

    def _is_known_to(self, word: Word) -> bool:
        """Whether it has heard us as we are now, so that nothing we granted before can still surprise it."""
        known: Mapping[str, str] = dict(word.leases.knows) if word.leases else {}
        return word.leases is None or known.get(self._own.name) == self._own.weft_id

    def _require_idle(self) -> None:
        if self._pending is not None:
            raise LeaseError(
                "leases: the last change is still being written",
                why="the next is decided once the disk has it",
                advice="ask again in a moment",
            )

    def _own_word(self) -> Word:
        own = () if self.static.own is None else (self.static.own,)
        said = NetworkRecord(NetworkId(""), "", "", None, 0, subnets=own, leases=self.word())
        return Word(self._own.name, self._own.weft_id, is_here=True, said=said)


def _overlap(one: IpNetwork, other: IpNetwork) -> bool:
    return one.version == other.version and one.overlaps(other)


def _doubles(words: Iterable[Word]) -> Iterable[tuple[str, str, IpNetwork]]:
    """Two nodes and a subnet both say is theirs."""
    seen: dict[IpNetwork, str] = {}
    for word in sorted(words, key=lambda word: word.name):
        for subnet in word.subnets[:SUBNETS_MAX]:
            if seen.setdefault(subnet, word.name) != word.name:
                yield seen[subnet], word.name, subnet


def _pool_troubles(plan: LeasePlan, words: Iterable[Word]) -> Iterable[Trouble]:
    """Nodes of another pool, and subnets that are none of this network."""
    for word in words:
        leases = word.leases
        if leases is not None and leases.pool_id != plan.pool_id:
            yield Trouble(
                f"{word.name} is of another pool:"
                " its founders, network, subnet length or range differ from ours",
                "make `founders`, `network` and the range the same on every node;"
                " until then nothing of it is used",
            )
        for subnet in word.subnets:
            if not is_within(subnet, plan.network):
                yield Trouble(
                    f"{word.name} says it has {subnet}, outside {plan.network}", f"mend {word.name}"
                )
