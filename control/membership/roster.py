"""Everybody we have heard of: written through one door, asked in constant time.

The dead and the left stay for a day as tombstones, so that a late word from their past is known for what it
is.  When the roster is full the oldest tombstone makes room; when there is none, strangers are not taken
in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from control.membership.member import GONE, Endpoint, Member, MemberState
from control.membership.wire import encode_node_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random

TRIES_PER_PICK = 3  # memberlist's: a random pick that finds only the unsuitable gives up


class Roster:
    """The members by name, ourselves among them, with a shuffled order for probing.

    Args:
        ourselves: The one member that is never probed, picked or evicted.
        rng: Shuffles and picks.
        capacity: Members held, tombstones included.
    """

    def __init__(self, ourselves: Member, *, rng: Random, capacity: int) -> None:
        self._rng = rng
        self._capacity = capacity
        self._our_name = ourselves.name
        self._members: dict[str, Member] = {ourselves.name: ourselves}
        self._encoded: dict[str, bytes] = {}
        self._at: dict[Endpoint, list[str]] = {ourselves.endpoint: [ourselves.name]}
        self._here = 1
        self._ring: list[str] = []
        self._ring_at = 0

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def lookup(self, name: str) -> Member | None:
        """The member of that name."""
        return self._members.get(name)

    @property
    def ourselves(self) -> Member:
        """The member that is us."""
        return self._members[self._our_name]

    @property
    def here(self) -> int:
        """How many are alive or suspect, ourselves included: the N of every formula."""
        return self._here

    @property
    def others_here(self) -> int:
        """How many others are alive or suspect."""
        return self._here - self.ourselves.is_here

    def at(self, endpoint: Endpoint) -> Member | None:
        """The one member at that endpoint; None if there is none, or more than one."""
        names = self._at.get(endpoint, ())
        return self._members[names[0]] if len(names) == 1 else None

    def has_room(self) -> bool:
        """Whether one more can be taken in, making room if a tombstone can go."""
        if len(self._members) < self._capacity:
            return True
        gone = [member for member in self if member.state in GONE]
        if not gone:
            return False
        self.remove(min(gone, key=lambda member: member.changed_at).name)
        return True

    def put(self, member: Member) -> Member | None:
        """Write a member; the only door.  Returns what stood there before."""
        before = self._members.get(member.name)
        self._members[member.name] = member
        self._encoded.pop(member.name, None)
        self._here += member.is_here - (before is not None and before.is_here)
        if before is None:
            # Anywhere in the round that is under way, so that a newcomer waits half of it on average.
            self._ring.insert(self._rng.randint(0, len(self._ring)), member.name)
        if before is None or before.endpoint != member.endpoint:
            if before is not None:
                self._leave_endpoint(before)
            self._at.setdefault(member.endpoint, []).append(member.name)
        return before

    def remove(self, name: str) -> None:
        """Forget a member altogether."""
        member = self._members.pop(name)
        self._encoded.pop(name, None)
        self._here -= member.is_here
        self._ring.remove(name)
        self._leave_endpoint(member)

    def encoded(self, member: Member) -> bytes:
        """The member as a push-pull carries it, encoded once per change."""
        encoded = self._encoded.get(member.name)
        if encoded is None:
            encoded = self._encoded[member.name] = encode_node_state(member)
        return encoded

    def next_to_probe(self) -> Member | None:
        """The next in a shuffled round: everybody is probed once before anybody is probed twice."""
        for _ in range(2 * len(self._ring)):  # the rest of this round, and all of a new one
            if self._ring_at >= len(self._ring):
                self._rng.shuffle(self._ring)
                self._ring_at = 0
            member = self._members[self._ring[self._ring_at]]
            self._ring_at += 1
            if member.is_here:
                return member
        return None

    def pick(self, count: int, is_suitable: Callable[[Member], bool]) -> list[Member]:
        """Up to `count` different members other than ourselves, at random among the suitable."""
        size = len(self._ring)
        if size <= count * TRIES_PER_PICK:
            found = [member for name in self._ring if is_suitable(member := self._members[name])]
            return self._rng.sample(found, min(count, len(found)))
        picked: dict[str, Member] = {}
        for _ in range(TRIES_PER_PICK * size):
            if len(picked) == count:
                break
            name = self._ring[int(self._rng.random() * size)]
            if name not in picked and is_suitable(self._members[name]):
                picked[name] = self._members[name]
        return list(picked.values())

    def gone_before(self, instant: float) -> list[Member]:
        """Those whose tombstones are older than that."""
        return [member for member in self if member.state in GONE and member.changed_at < instant]

    def failed(self) -> list[Member]:
        """The dead: they did not say goodbye, so they may come back."""
        return [member for member in self if member.state is MemberState.DEAD]

    def _leave_endpoint(self, member: Member) -> None:
        names = self._at[member.endpoint]
        names.remove(member.name)
        if not names:
            del self._at[member.endpoint]
