"""Serf's layer on SWIM: the whole of a member, as a stock agent sees it and as the daemon drives it.

SWIM says who is there.  Serf adds what members say about themselves: tags, and under a Lamport clock the
intents to join and to leave, by which a member that left is told from one that failed; queries, by which
names are disputed and keys rotated; events, which are other people's and are passed on.

    leave intent ──▶ spread ──▶ dead{self, self} ──▶ spread ──▶ ack for one more second ──▶ Departed

Everything Serf gossips is gossiped on, once: in a pool of mostly weft nodes, swallowing it would starve the
stock agents.  Questions are answered only to a member we know at the very address the question names; regular
expressions in filters are never evaluated; nothing is relayed.

Heads up: read `swim` first; its verbs are these.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from control.membership.events import Departed, KnownToStranger, PeerMessage, Refusal
from control.membership.keyquery import KeyStep
from control.membership.lamport import Heard, LamportClock
from control.membership.member import MemberState
from control.membership.queries import Queries
from control.membership.rumors import Audience
from control.membership.serfwire import (
    Intent,
    Query,
    QueryResponse,
    SerfState,
    UserEvent,
    WeftMessage,
    encode_intent,
    encode_state,
    encode_weft,
    parse_serf_untrusted,
    parse_state_untrusted,
)
from control.membership.swim import Swim
from control.membership.tags import encode_tags, tags_of
from control.membership.timers import Alarm
from control.membership.wire import User, encode
from overlay.errors import MembershipError, WireError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

    from control.membership.config import GossipConfig
    from control.membership.events import Datagram, Event, StreamOpen, StreamWrite, SwimStatistics
    from control.membership.member import Endpoint, Member
    from control.membership.rumors import Subject
    from control.membership.secure import Envelope

# From Serf
INTENT_AGE = 300.0  # seconds an intent about somebody unknown is remembered
LEAVE_PROPAGATE = 1.0

# Ours
INTENTS_MAX = 1024
LEAVE_STEP_MAX = 2.0  # seconds for each of the two rumors of a leave
LEAVE_POLL = 0.1


@dataclass(frozen=True, slots=True)
class _EarlyIntent:
    """An intent about a member we have not met yet."""

    intent: Intent
    heard_at: float


class Serf:
    """One member of a pool, sans I/O.

    Args:
        config: Name, address, tags, seeds, timing.
        rng: All chance there is.
        envelope: Label and keys; key queries change its keyring.
        now: Monotonic seconds, as in every call.
    """

    def __init__(self, config: GossipConfig, *, rng: Random, envelope: Envelope, now: float) -> None:
        self._name = config.name
        self._swim = Swim(config, rng=rng, envelope=envelope, layer=self, now=now)
        self._context = self._swim.context
        self._clock = LamportClock(config.lamport)
        self._event_clock = LamportClock()
        self._queries = Queries(self._context)
        self._heard_events = Heard(self._event_clock)
        self._status_times: dict[str, int] = {}
        self._leaving: set[str] = set()
        self._early: dict[str, _EarlyIntent] = {}
        self._leave_step = 0
        self._leave_step_ends = 0.0
        self._swim.on_alarm(Alarm.QUERY, lambda number: self._queries.close(int(number)))
        self._swim.on_alarm(Alarm.LEAVE, self._continue_leaving)
        self._status_times[self._name] = self._clock.increment()

    # The verbs.

    def receive_datagram(self, data: bytes, sender: Endpoint, *, now: float) -> None:
        """Take in one datagram, whoever sent it."""
        self._swim.receive_datagram(data, sender, now=now)

    def handle_timer(self, *, now: float) -> None:
        """Do whatever is due.  Everything already received should be handed in first."""
        self._swim.handle_timer(now=now)

    def datagrams_to_send(self, *, now: float) -> list[Datagram]:
        """What is to be sent, oldest first; handed out once."""
        return self._swim.datagrams_to_send(now=now)

    def next_deadline(self) -> float | None:
        """When `handle_timer` is wanted next."""
        return self._swim.next_deadline()

    def next_event(self) -> Event | None:
        """The oldest thing not told yet."""
        return self._swim.next_event()

    def streams_to_open(self, *, now: float) -> list[StreamOpen]:
        """Whom to connect to, and what to write; handed out once."""
        return self._swim.streams_to_open(now=now)

    def accept_stream(self, other: Endpoint, *, now: float) -> int | None:
        """The number of a stream somebody opened to us; None: close it at once."""
        return self._swim.accept_stream(other, now=now)

    def receive_stream(self, number: int, data: bytes, *, now: float) -> None:
        """Take in octets from a stream, in whatever pieces."""
        self._swim.receive_stream(number, data, now=now)

    def streams_to_write(self, *, now: float) -> list[StreamWrite]:
        """What to write to which stream before closing it; handed out once."""
        return self._swim.streams_to_write(now=now)

    def stream_closed(self, number: int, *, now: float, why: str = "closed", was_open: bool = False) -> None:
        """A stream could not be opened, or (`was_open`) the other side closed it."""
        self._swim.stream_closed(number, now=now, why=why, was_open=was_open)

    # What the daemon asks for.

    @property
    def members(self) -> list[Member]:
        """Everybody known, ourselves and the gone included."""
        return [self._as_serf_sees(member) for member in self._context.roster]

    @property
    def ourselves(self) -> Member:
        """The member that is us."""
        return self._context.roster.ourselves

    @property
    def lamport(self) -> int:
        """The membership clock, to be written down: a leave must be later than every join before it."""
        return self._clock.time

    def lookup(self, name: str) -> Member | None:
        """The member of that name."""
        member = self._context.roster.lookup(name)
        return self._as_serf_sees(member) if member is not None else None

    def member_at(self, endpoint: Endpoint) -> Member | None:
        """The one member at that endpoint."""
        return self._context.roster.at(endpoint)

    def peers(self) -> list[Member]:
        """The members here that carry weft's tags, ourselves not among them."""
        return [
            member
            for member in self._context.roster
            if member.is_here and member.is_peer and member.name != self._name
        ]

    def tags(self, name: str) -> Mapping[str, str]:
        """The tags of a member; none if it has none, or is not known."""
        member = self._context.roster.lookup(name)
        return tags_of(member.meta) if member is not None else {}

    def statistics(self) -> SwimStatistics:
        """A frozen snapshot of the counters."""
        return self._swim.statistics()

    def join(self, *endpoints: Endpoint, now: float) -> None:
        """Join the pool one of these is in; `JoinSucceeded` or `JoinFailed` follows for each."""
        self._swim.join(*endpoints, now=now)

    def set_tags(self, tags: Mapping[str, str], *, now: float) -> None:
        """Our tags are these from now on.

        Raises:
            MembershipError: They do not fit 512 octets.
        """
        self._swim.change_tags(encode_tags(tags), now=now)

    def change_endpoint(self, endpoint: Endpoint, *, now: float) -> None:
        """We are to be reached elsewhere from now on; the pool sees us leave and come back."""
        self._swim.change_endpoint(endpoint, now=now)

    def leave(self, *, now: float) -> None:
        """Leave the pool; `Departed` follows within seconds, if the verbs go on being called."""
        if self._leave_step:
            return
        self._swim.take_note(now=now)
        self._leave_step = 1
        # Later than our join, and before `dead`: else stock members show us as failed.
        self._spread_intent(Intent(self._clock.increment(), self._name, is_leave=True))
        self._leave_step_ends = now + LEAVE_STEP_MAX
        self._context.timers.set(now + LEAVE_POLL, Alarm.LEAVE)

    def spread(self, subject: str, body: bytes, *, now: float) -> None:
        """Have weft's own `body` spread among peers as a rumor; it replaces the last one on `subject`.

        Raises:
            MembershipError: Longer than a rumor may be.
        """
        self._swim.take_note(now=now)
        self._context.spread(("weft", subject), self._weft_message(body), Audience.PEERS)

    def tell(self, name: str, *bodies: bytes, now: float, is_called_back: bool = False) -> bool:
        """Send weft's own messages to one peer in one datagram, best effort; False if it is no peer here.

        Args:
            is_called_back: Send them even to one that is dead, to where it was.

        Raises:
            MembershipError: One is longer than a datagram carries.
        """
        self._swim.take_note(now=now)
        messages = [self._weft_message(body) for body in bodies]
        member = self._context.roster.lookup(name)
        is_dead = member is not None and member.state is MemberState.DEAD
        if member is None or not member.is_peer or not (member.is_here or (is_dead and is_called_back)):
            return False
        self._context.outbox.send(member.endpoint, *messages)
        return True

    def pick_peers(self, count: int) -> list[Member]:
        """Up to so many different peers that are here, at random."""
        return self._context.roster.pick(count, lambda member: member.is_here and member.is_peer)

    @property
    def others_here(self) -> int:
        """How many others are here, peers or not."""
        return self._context.roster.others_here

    def room(self) -> int:
        """Octets `tell` and `spread` carry at most."""
        return self._context.outbox.room() - len(encode(User(encode_weft(b""))))

    def ask_keys(self, step: KeyStep, key: bytes = b"", *, now: float) -> int:
        """Have the whole pool take a step of a key rotation; `KeysAnswered` with this number follows.

        Raises:
            MembershipError: Too many such questions are open.
        """
        self._swim.take_note(now=now)
        return self._queries.ask_keys(step, key)

    # What SWIM hands up (`swim.Layer`).

    def user_message(self, body: bytes, sender: Endpoint, *, now: float) -> None:
        """A user message arrived in a packet."""
        try:
            message = parse_serf_untrusted(body)
        except WireError:
            self._context.refuse(Refusal.MALFORMED)
            return
        match message:
            case Intent():
                self._receive_intent(message, body, now=now)
            case UserEvent(time, name, payload):
                if not self._witness(self._event_clock, time):
                    return
                if self._heard_events.is_news(time, (time, name, payload)):
                    self._pass_on(("event", str(time), name, payload.hex()), body)
            case Query():
                self._queries.receive(message, body)
            case QueryResponse():
                self._queries.receive_response(message)
            case WeftMessage(own):
                member = self._context.roster.at(sender)
                if member is None or not member.is_peer:
                    self._context.refuse(Refusal.NOT_A_PEER)
                    if member is None and self._context.roster.others_here == 0:
                        self._context.events.append(KnownToStranger(sender))
                else:
                    self._context.events.append(PeerMessage(sender, own))

    def local_state(self) -> bytes:
        """What a push-pull carries for Serf."""
        roster = self._context.roster
        left = [
            member.name for member in roster if member.state is MemberState.LEFT and member.name != self._name
        ]
        statuses = {name: time for name, time in self._status_times.items() if name in roster}
        times = self._clock.time, self._event_clock.time, self._queries.clock.time
        return encode_state(SerfState(*times, statuses, tuple(left)))

    def merge_state(self, state: bytes, *, now: float) -> None:
        """What the other side's push-pull carried for Serf."""
        try:
            theirs = parse_state_untrusted(state)
        except WireError:
            self._context.refuse(Refusal.MALFORMED)
            return
        # Each of their clocks is one ahead of the last thing it counted.
        for clock, time in (
            (self._clock, theirs.time),
            (self._event_clock, theirs.event_time),
            (self._queries.clock, theirs.query_time),
        ):
            if time and not self._witness(clock, time - 1):
                return
        left = set(theirs.left)
        for name, time in theirs.statuses.items():
            intent = Intent(time, name, is_leave=name in left)
            self._receive_intent(intent, encode_intent(intent), now=now, is_rumor=False)

    def member_changed(self, member: Member, before: MemberState | None, *, now: float) -> None:
        """The roster has just changed."""
        if member.state is MemberState.ALIVE and before in (None, MemberState.DEAD, MemberState.LEFT):
            self._leaving.discard(member.name)
        if before is None and (early := self._early.pop(member.name, None)) is not None:
            self._note_intent(early.intent, member)

    def joined(self, *, now: float) -> None:
        """A push-pull of ours to a new member succeeded: say under our clock that we are here."""
        if not self._leave_step:
            self._spread_join()

    # Intents.

    def _receive_intent(self, intent: Intent, body: bytes, *, now: float, is_rumor: bool = True) -> None:
        if not self._witness(self._clock, intent.time):
            return
        member = self._context.roster.lookup(intent.node)
        if intent.node == self._name:
            self._receive_intent_about_us(intent, body)
            return
        is_news = self._note_intent(intent, member) if member is not None else self._note_early(intent, now)
        if not is_news:
            self._context.refuse(Refusal.STALE)
        elif is_rumor:
            self._pass_on(("intent", intent.node), body)

    def _receive_intent_about_us(self, intent: Intent, body: bytes) -> None:
        if intent.time <= self._status_times[self._name]:
            return
        if intent.is_leave and not self._leave_step:
            # From before a restart, or forged.  Our clock has witnessed it, so this is later.
            self._spread_join()
            return
        self._status_times[self._name] = intent.time
        self._pass_on(("intent", self._name), body)

    def _note_intent(self, intent: Intent, member: Member) -> bool:
        # The time advances even if the state does not: else a leave intent is passed on for ever.
        if intent.time <= self._status_times.get(intent.node, 0):
            return False
        self._status_times[intent.node] = intent.time
        if not intent.is_leave:
            self._leaving.discard(intent.node)
        elif member.is_here or member.state is MemberState.DEAD:
            self._leaving.add(intent.node)
        return True

    def _note_early(self, intent: Intent, now: float) -> bool:
        known = self._early.get(intent.node)
        if known is not None and intent.time <= known.intent.time:
            return False
        if len(self._early) >= INTENTS_MAX:
            fresh = {name: early for name, early in self._early.items() if now - early.heard_at < INTENT_AGE}
            self._early = fresh
            if len(fresh) >= INTENTS_MAX:
                return False
        self._early[intent.node] = _EarlyIntent(intent, now)
        return True

    def _as_serf_sees(self, member: Member) -> Member:
        """The member, with one that announced its leave and then fell silent shown as left, not dead."""
        if member.state is MemberState.DEAD and member.name in self._leaving:
            return replace(member, state=MemberState.LEFT)
        return member

    def _spread_join(self) -> None:
        self._spread_intent(Intent(self._clock.increment(), self._name, is_leave=False))

    def _spread_intent(self, intent: Intent) -> None:
        self._status_times[self._name] = intent.time
        self._pass_on(("intent", self._name), encode_intent(intent))

    # Leaving.

    def _continue_leaving(self, _key: str | int) -> None:
        now = self._context.timers.now
        if self._leave_step == 1 and self._is_spread(("intent", self._name), now):
            self._leave_step, self._leave_step_ends = 2, now + LEAVE_STEP_MAX
            self._swim.leave(now=now)
        elif self._leave_step == 2 and self._is_spread(("member", self._name), now):
            self._leave_step, self._leave_step_ends = 3, now + LEAVE_PROPAGATE
        elif self._leave_step == 3 and now >= self._leave_step_ends:
            self._leave_step = 4
            self._context.events.append(Departed())
        if 0 < self._leave_step < 4:
            self._context.timers.set(now + LEAVE_POLL, Alarm.LEAVE)

    def _is_spread(self, subject: Subject, now: float) -> bool:
        """Whether the rumor has been sent as often as it is worth, or it is time to go on anyway."""
        return (
            subject not in self._context.rumors
            or now >= self._leave_step_ends
            or self._context.roster.others_here == 0
        )

    # Small change.

    def _witness(self, clock: LamportClock, time: int) -> bool:
        if clock.witness(time):
            return True
        self._context.refuse(Refusal.CLOCK_JUMP)
        return False

    def _pass_on(self, subject: Subject, body: bytes) -> None:
        self._context.spread(subject, encode(User(body)))

    def _weft_message(self, body: bytes) -> bytes:
        message = encode(User(encode_weft(body)))
        if len(message) > self._context.outbox.room():
            raise MembershipError(f"message: expected at most {self.room()} octets, found {len(body)}")
        return message
