"""SWIM with Lifeguard, as a core that is told the time and handed octets: who of the pool is there.

Every member probes the others in turn (`probe`); who does not answer is suspected, accused in rumors
(`rumors`), given time to refute (`suspicion`, `presence`), and then given up (`beliefs`).  What each claim
does is one table (`transitions`).  Whole states are exchanged over streams now and then (`exchange`), which
repairs what rumors missed; and whoever is lost is called again and again.

    receive_datagram(data, sender, *, now)       handle_timer(*, now)        next_deadline()
    datagrams_to_send(*, now)                    next_event()

    accept_stream(other, *, now)   receive_stream(number, data, *, now)   stream_closed(number, *, now)
    streams_to_open(*, now)        streams_to_write(*, now)

What memberlist does not do, and we do: tombstones, so that ghosts stay dead; answers only to where the
question came from, within three times its octets; a limit on jumps of an incarnation; deadlines that move
when it was we who stood still; a push-pull that merges before it answers.

Heads up: read the SWIM paper (DSN 2002), the Lifeguard paper (arXiv:1707.00788), and `transitions` first.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from control.membership.beliefs import Beliefs, Claim
from control.membership.config import ADDRESS_CHANGE_DELAY, QUEUE_MIN, GossipConfig
from control.membership.context import Context, Layer
from control.membership.events import (
    Datagram,
    Event,
    MemberReaped,
    Refusal,
    StreamOpen,
    StreamWrite,
    SwimStatistics,
    UdpBlocked,
)
from control.membership.exchange import SEEDS_PER_ROUND, Exchange
from control.membership.member import GONE, Endpoint, MemberState
from control.membership.presence import Presence
from control.membership.probe import Prober
from control.membership.timers import Alarm
from control.membership.wire import (
    Ack,
    Alive,
    Dead,
    IndirectPing,
    Message,
    Nack,
    Ping,
    Suspect,
    User,
    encode,
    parse_untrusted,
    unwrap_untrusted,
)
from overlay.errors import WireError

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from control.membership.secure import Envelope

# Ours
REAP_INTERVAL = 60.0


class Swim:
    """One member's view of its pool, and its duties in it.

    Args:
        config: Name, address, seeds, timing.
        rng: All chance there is.
        envelope: Label and keys.
        layer: What rides on top.
        now: Monotonic seconds, as in every call.
    """

    def __init__(
        self, config: GossipConfig, *, rng: Random, envelope: Envelope, layer: Layer, now: float
    ) -> None:
        self.context = context = Context(config, rng=rng, envelope=envelope, layer=layer, now=now)
        self._presence = Presence(context)
        self._beliefs = Beliefs(context, self._presence)
        self._prober = Prober(context)
        self._exchange = Exchange(
            context, presence=self._presence, beliefs=self._beliefs, prober=self._prober
        )
        self._received = 0
        self._on_alarm: dict[Alarm, Callable[[str | int], None]] = {
            Alarm.PROBE: lambda _: self._probe_next(),
            Alarm.PROBE_INDIRECTLY: lambda seq: self._probe_indirectly(int(seq)),
            Alarm.NACK: lambda seq: self._prober.expire_relay(int(seq)),
            Alarm.GOSSIP: lambda _: context.gossip(),
            Alarm.PUSH_PULL: lambda _: self._exchange.repair(),
            Alarm.REJOIN: lambda _: self._exchange.rejoin(),
            Alarm.SUSPICION: lambda name: self._beliefs.give_up_ripe(str(name)),
            Alarm.STREAM: lambda number: self._exchange.closed(int(number), why="timed out"),
            Alarm.REAP: lambda _: self._reap(),
            Alarm.MOVE: lambda _: self._presence.arrive(),
        }
        self._start()

    def _start(self) -> None:
        config, timers, now = self.context.config, self.context.timers, self.context.now
        timers.set(now + self.context.rng.random() * config.probe_interval, Alarm.PROBE)
        timers.set(now + REAP_INTERVAL, Alarm.REAP)
        if config.former is None or config.former == config.endpoint:
            self._exchange.start(0.0)
            return
        for endpoint in (*config.seeds, *config.remembered)[:SEEDS_PER_ROUND]:
            self.context.outbox.send(endpoint, self._presence.farewell(), with_rumors=False)
        self._presence.be_on_the_way()
        self._exchange.start(ADDRESS_CHANGE_DELAY)

    # The five verbs.

    def receive_datagram(self, data: bytes, sender: Endpoint, *, now: float) -> None:
        """Take in one datagram, whoever sent it."""
        self._advance(now)
        self._received += 1
        refusal = Refusal.WRONG_LABEL
        try:
            packet = self.context.envelope.strip_label_untrusted(data)
            refusal = Refusal.WRONG_KEY
            packet = self.context.envelope.open_untrusted(packet)
            refusal = Refusal.MALFORMED
            messages = unwrap_untrusted(packet)
        except WireError:
            self.context.refuse(refusal)
            return
        self.context.outbox.begin_answers(len(data))
        for raw in messages:
            try:
                message = parse_untrusted(raw)
            except WireError:
                self.context.refuse(Refusal.MALFORMED)
                continue
            self._receive(message, raw, sender)

    def handle_timer(self, *, now: float) -> None:
        """Do whatever is due.  Everything already received should be handed in first."""
        self._advance(now)
        while (timer := self.context.timers.take_due()) is not None:
            self._on_alarm[timer.alarm](timer.key)

    def datagrams_to_send(self, *, now: float) -> list[Datagram]:
        """What is to be sent, oldest first; it is handed out once."""
        self._advance(now)
        return self.context.outbox.take()

    def next_deadline(self) -> float | None:
        """When `handle_timer` is wanted next."""
        return self.context.timers.next_at

    def next_event(self) -> Event | None:
        """The oldest thing not told yet."""
        return self.context.events.popleft() if self.context.events else None

    # The five for streams.

    def streams_to_open(self, *, now: float) -> list[StreamOpen]:
        """Whom to connect to, and what to write; handed out once."""
        self._advance(now)
        return self._exchange.to_open()

    def accept_stream(self, other: Endpoint, *, now: float) -> int | None:
        """The number of a stream somebody opened to us; None: close it at once, there are too many."""
        self._advance(now)
        return self._exchange.accept(other)

    def receive_stream(self, number: int, data: bytes, *, now: float) -> None:
        """Take in octets from a stream, in whatever pieces."""
        self._advance(now)
        self._exchange.receive(number, data)

    def streams_to_write(self, *, now: float) -> list[StreamWrite]:
        """What to write to which stream before closing it; handed out once."""
        self._advance(now)
        return self._exchange.to_write()

    def stream_closed(self, number: int, *, now: float, why: str = "closed", was_open: bool = False) -> None:
        """A stream could not be opened, or (`was_open`) the other side closed it."""
        self._advance(now)
        self._exchange.closed(number, why=why, was_open=was_open)

    # What the layer above and the daemon ask for.

    def take_note(self, *, now: float) -> None:
        """Take note of the time, before something is asked that needs it."""
        self._advance(now)

    def on_alarm(self, alarm: Alarm, handler: Callable[[str | int], None]) -> None:
        """Have the layer above handle a timer of its own."""
        self._on_alarm[alarm] = handler

    def join(self, *endpoints: Endpoint, now: float) -> None:
        """Exchange states with these, now and once; `JoinSucceeded` or `JoinFailed` follows for each."""
        self._advance(now)
        for endpoint in endpoints:
            self._exchange.join(endpoint)

    def leave(self, *, now: float) -> None:
        """Tell the pool that we go.  Keep calling the verbs for a while: a member that left still acks."""
        self._advance(now)
        self._presence.leave()

    def change_endpoint(self, endpoint: Endpoint, *, now: float) -> None:
        """We are to be reached elsewhere from now on; the pool sees us leave and come back."""
        self._advance(now)
        self._presence.move(endpoint)

    def change_tags(self, meta: bytes, *, now: float) -> None:
        """Our tags are these from now on."""
        self._advance(now)
        self._presence.change_tags(meta)

    def statistics(self) -> SwimStatistics:
        """A frozen snapshot of the counters."""
        context = self.context
        states = Counter(member.state for member in context.roster)
        return SwimStatistics(
            alive=states[MemberState.ALIVE],
            suspect=states[MemberState.SUSPECT],
            dead=states[MemberState.DEAD],
            left=states[MemberState.LEFT],
            health=context.awareness.score,
            rumors=len(context.rumors),
            rumors_forgotten=context.rumors.forgotten,
            incarnation=context.roster.ourselves.incarnation,
            datagrams_received=self._received,
            datagrams_sent=context.outbox.sent,
            probes=self._prober.probes,
            probes_failed=self._prober.failed,
            refutations=self._presence.refutations,
            push_pulls=self._exchange.push_pulls,
            paused=context.timers.paused,
            refused=dict(context.refused),
        )

    # Inside.

    def _advance(self, now: float) -> None:
        if late := self.context.timers.advance(now):
            self.context.awareness.apply(1)
            self._beliefs.stood_still(late)

    def _receive(self, message: Message, raw: bytes, sender: Endpoint) -> None:
        match message:
            case Ping(seq, node):
                if node in ("", self.context.name):
                    self._answer_ping(seq, sender)
                else:
                    self.context.refuse(Refusal.NOT_FOR_US)
            case Ack(seq):
                self._prober.receive_ack(seq)
            case Nack(seq):
                self._prober.receive_nack(seq, sender)
            case IndirectPing():
                if reason := self._prober.relay(message, sender):
                    self.context.refuse(reason)
            case Suspect(incarnation, node, accuser):
                self._beliefs.hear(Claim(MemberState.SUSPECT, node, incarnation, accuser, raw))
            case Dead(incarnation, node, accuser):
                state = MemberState.LEFT if node == accuser else MemberState.DEAD
                self._beliefs.hear(Claim(state, node, incarnation, accuser, raw))
            case Alive(incarnation, node):
                self._beliefs.hear(Claim(MemberState.ALIVE, node, incarnation, node, raw, message))
            case User(body):
                self.context.layer.user_message(body, sender, now=self.context.now)

    def _answer_ping(self, seq: int, sender: Endpoint) -> None:
        """An ack; and whoever we hold to be gone hears of it with the ack, and can refute.

        Nobody gossips to those that left, nor long to the dead: one that was only said to be would otherwise
        not hear of it before its next push-pull, half a minute or more.
        """
        context, ack = self.context, encode(Ack(seq))
        asker = context.roster.at(sender)
        if asker is None or asker.state not in GONE:
            context.outbox.answer(sender, ack)
            return
        accuser = asker.name if asker.state is MemberState.LEFT else context.name
        context.outbox.answer(sender, ack, with_rumors=False)
        notice = encode(Dead(asker.incarnation, asker.name, accuser))
        context.outbox.answer(sender, notice, with_rumors=False)

    def _probe_next(self) -> None:
        failed = self._prober.conclude()
        if failed is not None and failed.is_reached_by_tcp:
            self.context.events.append(UdpBlocked(failed.target.name))
        elif failed is not None:
            # Under the incarnation we probed: an `alive` that came since has already refuted this.
            target = failed.target
            accusation = Claim(MemberState.SUSPECT, target.name, target.incarnation, self.context.name)
            self._beliefs.hear(accusation)
        self._prober.begin()

    def _probe_indirectly(self, seq: int) -> None:
        endpoint = self._prober.ask_others(seq)
        if endpoint is not None:
            self._exchange.ping(endpoint, seq)

    def _reap(self) -> None:
        context = self.context
        context.timers.set(context.now + REAP_INTERVAL, Alarm.REAP)
        context.rumors.capacity = max(QUEUE_MIN, 2 * len(context.roster))
        for member in context.roster.gone_before(context.now - context.config.tombstone_age):
            if member.name != context.name:
                context.roster.remove(member.name)
                context.events.append(MemberReaped(member))
