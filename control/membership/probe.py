"""Asking one member after the other whether it is there, and asking others to ask.

    0 s              ping ──────────────▶ target
    probe_timeout    ping-req ──▶ three others ──▶ target          and, over TCP:  ping ──▶ target
    interval × (1 + health)   no ack by now: suspect it

One probe is under way at a time.  An ack counts whenever it comes before the interval ends, by whichever way.
Who was asked to ask and hears nothing says so (a nack), in time to be heard before the interval ends: nacks
that do not come mean that it is we who are cut off.  A target that answers TCP only is alive behind a bad
firewall: it is reported, not suspected.

We ask on behalf of others too, but only members we know, and only so often for one requester: an indirect
ping is otherwise a way to have us send datagrams to anybody.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from control.membership.config import NACK_AFTER, RELAYS_MAX, RELAYS_PER_SECOND
from control.membership.events import Refusal
from control.membership.limits import RateLimit
from control.membership.member import NACK_SINCE, TCP_PING_SINCE, MemberState
from control.membership.timers import Alarm
from control.membership.wire import Ack, IndirectPing, Nack, Ping, Suspect, encode

if TYPE_CHECKING:
    from control.membership.context import Context
    from control.membership.member import Endpoint, Member

SEQ_MASK = (1 << 32) - 1


@dataclass(slots=True)
class Probe:
    """The probe under way."""

    seq: int
    target: Member
    is_answered: bool = False
    is_reached_by_tcp: bool = False
    nacks_expected: set[Endpoint] = field(default_factory=set)
    nacks: int = 0
    has_asked_others: bool = False


@dataclass(frozen=True, slots=True)
class Relay:
    """A ping we sent for somebody else."""

    requester: Endpoint
    requester_seq: int
    wants_nack: bool


class Prober:
    """Our side of failure detection: one probe, and the pings relayed for others."""

    def __init__(self, context: Context) -> None:
        self._config = context.config
        self._roster = context.roster
        self._outbox = context.outbox
        self._timers = context.timers
        self._awareness = context.awareness
        self._seq = context.rng.getrandbits(32)  # not guessable: an ack is believed by its number alone
        self._probe: Probe | None = None
        self._relays: dict[int, Relay] = {}
        self._relay_limit = RateLimit(RELAYS_PER_SECOND, 1.0)
        self.probes = 0
        self.failed = 0

    # Our own probes, in the order of their life.

    def begin(self) -> None:
        """Probe the next member, and set the timer that concludes it."""
        now = self._timers.now
        self._timers.set(now + self._awareness.stretch(self._config.probe_interval), Alarm.PROBE)
        target = self._roster.next_to_probe()
        if target is None:
            return
        self.probes += 1
        self._probe = Probe(self._next_seq(), target)
        self._timers.set(now + self._config.probe_timeout, Alarm.PROBE_INDIRECTLY, self._probe.seq)
        messages = [encode(Ping(self._probe.seq, target.name))]
        if target.state is MemberState.SUSPECT:  # the sooner it hears of it, the sooner it can refute
            messages.append(encode(Suspect(target.incarnation, target.name, self._config.name)))
        self._outbox.send(target.endpoint, *messages)

    def ask_others(self, seq: int) -> Endpoint | None:
        """The direct ping went unanswered: go round it.  Returns whom to ping over TCP as well, if it can."""
        probe = self._probe
        if probe is None or probe.seq != seq or probe.is_answered:
            return None
        probe.has_asked_others = True
        target = probe.target
        for other in self._roster.pick(
            self._config.indirect_probes,
            lambda member: member.state is MemberState.ALIVE and member.name != target.name,
        ):
            can_nack = other.speaks(NACK_SINCE)
            if can_nack:
                probe.nacks_expected.add(other.endpoint)
            self._outbox.send(
                other.endpoint, encode(IndirectPing(seq, target.endpoint, target.name, can_nack))
            )
        return target.endpoint if target.speaks(TCP_PING_SINCE) else None

    def receive_ack(self, seq: int) -> None:
        """Somebody answered: us, or somebody we asked for."""
        if self._probe is not None and self._probe.seq == seq:
            self._probe.is_answered = True
        elif relay := self._relays.pop(seq, None):
            self._outbox.send(relay.requester, encode(Ack(relay.requester_seq)), with_rumors=False)

    def receive_nack(self, seq: int, sender: Endpoint) -> None:
        """One of those we asked is well, and did not reach the target: counted once each."""
        if self._probe is not None and self._probe.seq == seq and sender in self._probe.nacks_expected:
            self._probe.nacks_expected.discard(sender)
            self._probe.nacks += 1

    def receive_ack_by_tcp(self, seq: int) -> None:
        """The target answered over TCP."""
        if self._probe is not None and self._probe.seq == seq:
            self._probe.is_reached_by_tcp = True

    def conclude(self) -> Probe | None:
        """End the probe under way, and learn from it about ourselves.  Returns it if it failed."""
        probe, self._probe = self._probe, None
        if probe is None:
            return None
        if probe.is_answered:
            self._awareness.apply(-1)
            return None
        self.failed += 1
        missing = len(probe.nacks_expected)
        self._awareness.apply(missing if missing + probe.nacks else 1)
        return probe

    # For others.

    def relay(self, request: IndirectPing, sender: Endpoint) -> Refusal | None:
        """Ping a member for somebody else; the reason if we do not."""
        target = self._roster.at(request.target)
        if target is None or request.node not in ("", target.name):
            return Refusal.UNKNOWN_TARGET
        if len(self._relays) >= RELAYS_MAX or not self._relay_limit.permits(sender, now=self._timers.now):
            return Refusal.RELAY_LIMIT
        seq = self._next_seq()
        if not self._outbox.answer(target.endpoint, encode(Ping(seq, target.name))):
            return Refusal.RELAY_LIMIT
        self._relays[seq] = Relay(sender, request.seq, request.wants_nack)
        self._timers.set(self._timers.now + NACK_AFTER * self._config.probe_timeout, Alarm.NACK, seq)
        return None

    def expire_relay(self, seq: int) -> None:
        """The target did not answer us: tell who asked, if they wanted to be told."""
        relay = self._relays.pop(seq, None)
        if relay is not None and relay.wants_nack:
            self._outbox.send(relay.requester, encode(Nack(relay.requester_seq)), with_rumors=False)

    def _next_seq(self) -> int:
        self._seq = (self._seq + 1) & SEQ_MASK
        return self._seq
