"""What each node says of itself: versioned records with one writer each, spread among peers and kept whole.

Liveness comes from `swim`, content from here.  A record is known by (name, weft_id, epoch, version): the
member it is of, the identity and the start of it that its tags claim, and a count of its words since that
start.  Only the node itself writes it; the newer (epoch, version) wins everywhere, so an older start never
does.  News travels as a rumor; what a rumor missed, anti-entropy finds within seconds:

    every second, to one peer at random                      ── summary ─▶    equal: nothing more
                                                             ◀─ buckets ──    which parts differ?
    the parts that differ, record by record                  ── digests ─▶
                                     ◀─ the records missing there, and those wanted from there ──
    the records wanted                                       ── records ─▶

    receive(data, sender, *, now)      handle_timer(*, now)      next_deadline()
    messages_to_send(*, now)           next_event()

Over 500 lines: who may say what, and what becomes of it, is one set of rules and read as one.

Heads up: read `recordwire` (what is said) and `recordset` (what is compared) first.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol, assert_never

from control.membership.events import Cloned, RecordChanged, RecordEvent, RecordForked
from control.membership.limits import RateLimit
from control.membership.member import GONE, MemberState
from control.membership.recordbody import (
    RECORD_OCTETS,
    NetworkRecord,
    encode_networks,
    parse_networks_untrusted,
)
from control.membership.recorddigests import PER_MESSAGE, bundles, is_covered, is_newer, pages_of_digests
from control.membership.recordpages import Assemblies
from control.membership.recordset import RECORDS_MAX, Record, RecordSet, hash_of
from control.membership.recordwire import (
    BUCKETS,
    PAGE_OCTETS,
    WANTS_MAX,
    Announcement,
    Buckets,
    Digest,
    Digests,
    Page,
    RecordKey,
    RecordMessage,
    Rumor,
    Summary,
    Want,
    Wants,
    encode_message,
    pages_of,
    parse_message_untrusted,
)
from control.membership.tags import identity_of
from overlay.errors import MembershipError, UnsupportedError, WireError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from random import Random

    from control.membership.member import Member

# Ours
ANTI_ENTROPY_SECONDS = 1.0
ANTI_ENTROPY_JITTER = 0.25  # of the interval, either way
HURRY_SECONDS = 0.2  # until the next exchange, where the last one brought something
GREETED_BY = 8  # peers of a newcomer that compare their sets with it at once
ANSWER_OCTETS = 64 << 10  # of records, in answer to one message
DIGEST_PAGES_MAX = 16  # in answer to one message
EARLY_MAX = 1024  # records whose writer we have not met yet
EARLY_SECONDS = 60.0
TIDY_SECONDS = 60.0
MESSAGES_PER_SECOND = 1024  # of one sender
QUESTIONS_PER_SECOND = 64  # of one sender: what makes us send
UPDATES_PER_SECOND = 10  # of one writer; anti-entropy brings the last of them anyway
ROOM_RESERVED = 4
EVENTS_MAX = 65536


class Refused(Enum):
    """Why something another peer sent had no effect.  One counter each."""

    MALFORMED = "not a message about records"
    TOO_LARGE = "a record longer than a record may be"
    TOO_MANY = "a record with more MACs, IPs or grants than one node may have"
    OURS = "a record of ours that we did not write"
    NOT_A_PEER = "a record of a member without weft's tags"
    WRONG_OWNER = "a record under another identity than its member's"
    OLD_EPOCH = "a record from before its writer's last start"
    STALE = "a record older than the one held"
    REPEATED = "the very record that is held: most of what a rumor brings"
    GONE = "a record of a member that has left"
    FORKED = "another record under the same version"
    FULL = "no room for another record"
    TOO_OFTEN = "more messages than one peer may send, or more news than one may have"
    UNASKED = "a page nobody asked for"


@dataclass(frozen=True, slots=True)
class Tell:
    """To be told to this peer, in one datagram."""

    name: str
    bodies: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Spread:
    """To be spread among peers as a rumor; it replaces the last one on the subject."""

    subject: str
    body: bytes


class Members(Protocol):
    """What membership knows: `serf.Serf`."""

    def lookup(self, name: str) -> Member | None:
        """The member of that name."""

    def pick_peers(self, count: int) -> list[Member]:
        """Up to so many different peers that are here, at random."""

    @property
    def others_here(self) -> int:
        """How many others are here, peers or not."""

    def room(self) -> int:
        """Octets a message may have."""


@dataclass(frozen=True, slots=True)
class RecordStatistics:
    """A frozen snapshot of what was counted.

    Attributes:
        records: Held, our own among them.
        repairs: Exchanges of ours that found a difference.
        told_octets: Said to single peers, rumors apart.
        blamed: Whose the last of those was that were refused for what they said.
    """

    records: int
    published: int
    accepted: int
    exchanges: int
    repairs: int
    told_octets: int
    refused: dict[Refused, int]
    blamed: dict[Refused, str]


class Records:
    """One node's copy of everybody's records, and its own.

    Args:
        own: Our name, weft_id and epoch; the version is counted here.
        members: Who is there; `member_changed` is to be called with each change.
        rng: All chance there is.
        now: Monotonic seconds, as in every call.
    """

    def __init__(self, own: RecordKey, *, members: Members, rng: Random, now: float) -> None:
        self._own = own
        self._members = members
        self._rng = rng
        self._now = now
        self._set = RecordSet()
        self._early: dict[str, float] = {}
        self._assemblies = Assemblies()
        self._tells: dict[str, list[bytes]] = {}
        self._spreads: list[Spread] = []
        self._events: deque[RecordEvent] = deque(maxlen=EVENTS_MAX)
        self._messages = RateLimit(MESSAGES_PER_SECOND, 1.0)
        self._questions = RateLimit(QUESTIONS_PER_SECOND, 1.0)
        self._updates = RateLimit(UPDATES_PER_SECOND, 1.0)
        self._compare_at = now + rng.random() * ANTI_ENTROPY_SECONDS
        self._tidy_at = now + TIDY_SECONDS
        self._refused: Counter[Refused] = Counter()
        self._blamed: dict[Refused, str] = {}
        self._counted: Counter[str] = Counter()

    # The five verbs.

    def receive(self, data: bytes, sender: str, *, now: float) -> None:
        """Take in one message; `sender` is the peer it came from."""
        self._now = now
        if not self._messages.permits(sender, now=now):
            self._refuse(Refused.TOO_OFTEN)
            return
        try:
            message = parse_message_untrusted(data)
        except WireError:
            self._refuse(Refused.MALFORMED, sender)
            return
        if isinstance(message, Summary | Buckets | Digests | Wants) and not self._questions.permits(
            sender, now=now
        ):
            self._refuse(Refused.TOO_OFTEN)
            return
        self._receive(message, sender)

    def _receive(self, message: RecordMessage, sender: str) -> None:
        match message:
            case Rumor(key, body, is_answer):
                if (objection := self._objection(key, hash_of(key, body))) is None:
                    self._take(key, body, is_news=not is_answer)
                else:
                    self._refuse(objection)
            case Announcement():
                self._receive_announcement(message, sender)
            case Page():
                self._receive_page(message, sender)
            case Summary(whole):
                if whole != self._set.hash:
                    self._tell(sender, Buckets(self._set.bucket_hashes))
            case Buckets(hashes):
                self._receive_buckets(hashes, sender)
            case Digests():
                self._receive_digests(message, sender)
            case Wants(wants):
                self._receive_wants(wants, sender)
            case _:
                assert_never(message)

    def handle_timer(self, *, now: float) -> None:
        """Do whatever is due."""
        self._now = now
        if now >= self._compare_at:
            spread = 1 + ANTI_ENTROPY_JITTER * (2 * self._rng.random() - 1)
            self._compare_at = now + ANTI_ENTROPY_SECONDS * spread
            for peer in self._members.pick_peers(1):
                self._compare_with(peer.name)
        for assembly in self._assemblies.due(now=now):
            self._tell(assembly.source, Wants((assembly.next_want(now=now),)))
        if now >= self._tidy_at:
            self._tidy_at = now + TIDY_SECONDS
            self._tidy()

    def messages_to_send(self, *, now: float) -> list[Tell | Spread]:
        """What is to be said, rumors first; handed out once."""
        self._now = now
        spreads, self._spreads = self._spreads, []
        tells, self._tells = self._tells, {}
        room = self._members.room() - ROOM_RESERVED
        return [
            *spreads,
            *(Tell(name, bundle) for name, bodies in tells.items() for bundle in bundles(bodies, room)),
        ]

    def next_deadline(self) -> float:
        """When `handle_timer` is wanted next."""
        asked_again = self._assemblies.next_at
        return min(self._compare_at, self._tidy_at, asked_again if asked_again is not None else self._tidy_at)

    def next_event(self) -> RecordEvent | None:
        """The oldest thing not told yet."""
        return self._events.popleft() if self._events else None

    # What the daemon asks for.

    @property
    def own(self) -> Record | None:
        """Our own, as last published."""
        return self._set.lookup(self._own.name)

    def lookup(self, name: str) -> Record | None:
        """The record held of that node, whether it is here or not."""
        return self._set.lookup(name)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._set)

    @property
    def hash(self) -> bytes:
        """Of the set: equal where two nodes hold the same of those that are here."""
        return self._set.hash

    def publish(self, networks: Sequence[NetworkRecord], *, now: float) -> bool:
        """Say this of ourselves from now on; False: it is what we said last.

        Raises:
            MembershipError: It is more than one node may say.
        """
        self._now = now
        body = encode_networks(networks)
        if self.own is not None and self.own.body == body:
            return False
        try:
            parsed = parse_networks_untrusted(body)
        except WireError as error:
            raise MembershipError(f"our own record: {error}") from None
        own = self._own
        self._own = key = RecordKey(own.name, own.weft_id, own.epoch, own.version + 1)
        record = Record(key, parsed, body, hash_of(key, body))
        self._set.put(record, is_shown=True)
        self._counted["published"] += 1
        self._events.append(RecordChanged(key.name))
        self._spread(record)
        return True

    def member_changed(self, member: Member, before: MemberState | None, *, now: float) -> None:
        """A member is new, or its state or tags are."""
        self._now = now
        if member.name == self._own.name:
            return
        self._early.pop(member.name, None)
        held = self._set.lookup(member.name)
        is_its_own = held is not None and identity_of(member.meta)[0] == held.key.weft_id
        if held is not None and (member.state is MemberState.LEFT or not is_its_own):
            self._forget(member.name)
        self._set.show(member.name, is_shown=member.is_here)
        if member.is_here and member.is_peer and before in (None, *GONE):
            self._greet(member)

    def member_reaped(self, name: str, *, now: float) -> None:
        """A member that was gone for long is forgotten."""
        self._now = now
        self._forget(name)

    def statistics(self) -> RecordStatistics:
        """A frozen snapshot of the counters."""
        counted = self._counted
        return RecordStatistics(
            records=len(self._set),
            published=counted["published"],
            accepted=counted["accepted"],
            exchanges=counted["exchanges"],
            repairs=counted["repairs"],
            told_octets=counted["told_octets"],
            refused=dict(self._refused),
            blamed=dict(self._blamed),
        )

    # Records that come in.

    def _objection(self, key: RecordKey, found: bytes | None) -> Refused | None:
        """Why the record is not to be taken in; `found`, its hash, is None where only its key is known."""
        if key.name == self._own.name:
            return self._own_objection(key, found)
        member = self._members.lookup(key.name)
        if (reason := self._members_objection(key, member)) is not None:
            return reason
        held = self._set.lookup(key.name) or None
        if held is None:
            return self._newcomers_objection(key, is_met=member is not None)
        if held.key.weft_id != key.weft_id:
            # Which of the two is the member's own, only its tags can say.
            return Refused.WRONG_OWNER if member is None else None
        if key.age < held.key.age:
            return Refused.OLD_EPOCH if key.epoch < held.key.epoch else Refused.STALE
        if key.age == held.key.age:
            return self._repeats_objection(held, found)
        return None

    def _members_objection(self, key: RecordKey, member: Member | None) -> Refused | None:
        if member is None:
            return None
        if not member.is_peer:
            return Refused.NOT_A_PEER
        weft_id, epoch = identity_of(member.meta)
        if weft_id != key.weft_id:
            return Refused.WRONG_OWNER
        if key.epoch < epoch:
            return Refused.OLD_EPOCH
        if member.state is MemberState.LEFT and key.epoch == epoch:
            return Refused.GONE
        return None

    def _newcomers_objection(self, key: RecordKey, *, is_met: bool) -> Refused | None:
        grave = self._set.tombstone(key.name)
        if grave is not None and grave.weft_id == key.weft_id and key.age <= grave.age:
            return Refused.STALE
        if len(self._set) >= RECORDS_MAX or (not is_met and len(self._early) >= EARLY_MAX):
            return Refused.FULL
        return None

    def _repeats_objection(self, held: Record, found: bytes | None) -> Refused | None:
        if found is None or found == held.hash:
            return Refused.REPEATED
        self._events.append(RecordForked(held.name))
        # Two of one name; everybody keeps the same one, or sets would differ for ever.
        self._refuse(Refused.FORKED)
        return Refused.STALE if found < held.hash else None

    def _own_objection(self, key: RecordKey, found: bytes | None) -> Refused:
        own = self._own
        if key.weft_id != own.weft_id:
            return Refused.OURS
        is_other = self.own is not None and found not in (None, self.own.hash)
        if key.age > own.age or (key.age == own.age and is_other):
            self._events.append(Cloned(key.epoch, key.version))
            return Refused.OURS
        return Refused.REPEATED if key.age == own.age else Refused.STALE

    def _take(self, key: RecordKey, body: bytes, *, is_news: bool) -> None:
        if not self._updates.permits(key.name, now=self._now):
            self._refuse(Refused.TOO_OFTEN)
            return
        try:
            networks = parse_networks_untrusted(body)
        except UnsupportedError:
            self._refuse(Refused.TOO_MANY, key.name)
            return
        except WireError:
            self._refuse(Refused.MALFORMED, key.name)
            return
        record = Record(key, networks, body, hash_of(key, body))
        member = self._members.lookup(key.name)
        if member is None:
            self._early[key.name] = self._now + EARLY_SECONDS
        self._assemblies.drop(key.name)
        self._set.put(record, is_shown=member is not None and member.is_here)
        self._counted["accepted"] += 1
        self._events.append(RecordChanged(key.name))
        if is_news:
            self._spread(record)
        else:
            self._compare_at = min(self._compare_at, self._now + HURRY_SECONDS)

    def _receive_announcement(self, announced: Announcement, sender: str) -> None:
        if announced.octets > RECORD_OCTETS:
            self._refuse(Refused.TOO_LARGE, announced.key.name)
        elif (objection := self._objection(announced.key, announced.hash or None)) is not None:
            self._refuse(objection)
        elif self._assemblies.is_under_way(announced.key):
            self._refuse(Refused.REPEATED)
        elif (assembly := self._assemblies.begin(announced, sender)) is None:
            self._refuse(Refused.FULL)
        else:
            self._tell(sender, Wants((assembly.next_want(now=self._now),)))

    def _receive_page(self, page: Page, sender: str) -> None:
        assembly = self._assemblies.take(page, sender)
        if assembly is None:
            self._refuse(Refused.UNASKED)
        elif assembly.is_complete:
            self._assemblies.drop(page.key.name)
            body = assembly.body
            if (objection := self._objection(page.key, hash_of(page.key, body))) is not None:
                self._refuse(objection)
            else:
                self._take(page.key, body, is_news=not assembly.is_answer)
        elif not assembly.asked:
            self._tell(sender, Wants((assembly.next_want(now=self._now),)))

    # Anti-entropy, in the order of its messages.

    def _compare_with(self, name: str) -> None:
        self._counted["exchanges"] += 1
        self._tell(name, Summary(self._set.hash))

    def _greet(self, member: Member) -> None:
        """Compare with a newcomer at once; in a large pool only some do, or it would drown in greetings."""
        if self._rng.random() * max(1, self._members.others_here) < GREETED_BY:
            self._compare_with(member.name)

    def _receive_buckets(self, hashes: tuple[bytes, ...], sender: str) -> None:
        ours = self._set.bucket_hashes
        differing = [bucket for bucket in range(BUCKETS) if hashes[bucket] != ours[bucket]]
        if not differing:
            return
        self._counted["repairs"] += 1
        for digests in pages_of_digests(self._set, differing, room=self._members.room())[:DIGEST_PAGES_MAX]:
            self._tell(sender, digests)

    def _receive_digests(self, told: Digests, sender: str) -> None:
        theirs = {digest.key.name: digest for digest in told.digests}
        missing_there = [
            record
            for bucket in set(told.buckets)
            for record in self._set.shown(bucket)
            if is_covered(record.name, told) and is_newer(record, theirs.get(record.name))
        ]
        self._tell_records(sender, missing_there)
        wanted = [Want(digest.key) for digest in told.digests if self._is_wanted(digest)]
        if wanted:
            self._tell(sender, Wants(tuple(wanted[:WANTS_MAX])))

    def _is_wanted(self, digest: Digest) -> bool:
        key, held = digest.key, self._set.lookup(digest.key.name)
        if held is not None and held.key.weft_id == key.weft_id:
            is_fork = key.age == held.key.age and digest.hash > held.digest.hash
            return is_fork or (key.age > held.key.age and self._objection(key, None) is None)
        return self._objection(key, None) is None

    def _receive_wants(self, wants: tuple[Want, ...], sender: str) -> None:
        whole = [want for want in wants if not want.pages]
        records = [record for want in whole if (record := self._set.lookup(want.key.name)) is not None]
        self._tell_records(sender, records)
        for want in wants:
            record = self._set.lookup(want.key.name)
            if want.pages and record is not None and record.key == want.key:
                self._tell_pages(sender, record, want.pages)

    def _tell_records(self, name: str, records: Iterable[Record]) -> None:
        left = ANSWER_OCTETS
        for record in records:
            message = self._word(record, is_answer=True)
            left -= len(message)
            if left < 0:
                return  # the next exchange goes on from there
            self._tell_octets(name, message)

    def _tell_pages(self, name: str, record: Record, numbers: Iterable[int]) -> None:
        octets = len(record.body)
        for number in sorted(set(numbers))[: ANSWER_OCTETS // PAGE_OCTETS]:
            if number < pages_of(record.body):
                at = number * PAGE_OCTETS
                self._tell(name, Page(record.key, octets, number, record.body[at : at + PAGE_OCTETS]))

    # Words that go out.

    def _word(self, record: Record, *, is_answer: bool) -> bytes:
        """The record, or where it is too long for a datagram that there is one."""
        word = encode_message(Rumor(record.key, record.body, is_answer))
        if len(word) > self._members.room() - ROOM_RESERVED - PER_MESSAGE:
            return encode_message(Announcement(record.key, len(record.body), is_answer, record.hash))
        return word

    def _spread(self, record: Record) -> None:
        self._spreads.append(Spread(f"record {record.name}", self._word(record, is_answer=False)))

    def _tell(self, name: str, message: RecordMessage) -> None:
        self._tell_octets(name, encode_message(message))

    def _tell_octets(self, name: str, message: bytes) -> None:
        self._tells.setdefault(name, []).append(message)
        self._counted["told_octets"] += len(message)

    def _refuse(self, reason: Refused, whose: str = "") -> None:
        self._refused[reason] += 1
        if whose:
            self._blamed[reason] = whose

    # Those that are gone.

    def _forget(self, name: str) -> None:
        self._assemblies.drop(name)
        if self._set.remove(name, now=self._now) is not None:
            self._events.append(RecordChanged(name))

    def _tidy(self) -> None:
        self._set.expire(now=self._now)
        for name in [name for name, until in self._early.items() if until <= self._now]:
            del self._early[name]
            self._forget(name)
