"""What the parts of one core share: the time, the members, the rumors, the way out.

A core is built of parts that each know one thing: `probe` who answers, `presence` what we say of ourselves,
`beliefs` what we hold of the others, `exchange` how states are compared.  They meet here, and in `swim`.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Protocol

from control.membership.awareness import Awareness
from control.membership.config import QUEUE_MIN
from control.membership.member import VERSIONS, Member, MemberState
from control.membership.outbox import Outbox
from control.membership.roster import Roster
from control.membership.rumors import Audience, RumorQueue
from control.membership.tags import encode_tags
from control.membership.timers import Alarm, Timers

if TYPE_CHECKING:
    from random import Random

    from control.membership.config import GossipConfig
    from control.membership.events import Event, Refusal
    from control.membership.member import Endpoint
    from control.membership.rumors import Subject
    from control.membership.secure import Envelope

# Ours
EVENTS_MAX = 65536  # untold; the daemon takes them after every call


class Layer(Protocol):
    """What rides on SWIM: Serf."""

    def user_message(self, body: bytes, sender: Endpoint, *, now: float) -> None:
        """A user message arrived in a packet.  `body` is a stranger's."""

    def local_state(self) -> bytes:
        """What a push-pull carries for this layer."""

    def merge_state(self, state: bytes, *, now: float) -> None:
        """What the other side's push-pull carried for this layer.  `state` is a stranger's."""

    def member_changed(self, member: Member, before: MemberState | None, *, now: float) -> None:
        """The roster has just changed."""

    def joined(self, *, now: float) -> None:
        """A push-pull of ours to a new member succeeded."""


class Context:
    """One core's common ground."""

    def __init__(
        self, config: GossipConfig, *, rng: Random, envelope: Envelope, layer: Layer, now: float
    ) -> None:
        meta = encode_tags(config.tags)
        ourselves = Member(
            config.name, config.endpoint, config.incarnation, MemberState.ALIVE, meta, VERSIONS, now
        )
        self.config = config
        self.rng = rng
        self.envelope = envelope
        self.layer = layer
        self.timers = Timers(now)
        self.roster = Roster(ourselves, rng=rng, capacity=config.members_max)
        self.rumors = RumorQueue(QUEUE_MIN)
        self.outbox = Outbox(envelope, self.roster, self.rumors, octets=config.datagram_octets)
        self.awareness = Awareness()
        self.events: deque[Event] = deque(maxlen=EVENTS_MAX)
        self.refused: Counter[Refusal] = Counter()
        self._is_gossiping = False

    @property
    def now(self) -> float:
        """The time, as last told."""
        return self.timers.now

    @property
    def name(self) -> str:
        """Our own."""
        return self.config.name

    def refuse(self, reason: Refusal) -> None:
        """Count something a stranger sent in vain."""
        self.refused[reason] += 1

    def spread(self, subject: Subject, message: bytes, audience: Audience = Audience.EVERYONE) -> None:
        """Have a bare message spread as a rumor; it replaces what was being spread about `subject`."""
        self.rumors.add(subject, message, audience)
        if not self._is_gossiping:
            self._is_gossiping = True
            self.timers.set(self.now + self.rng.random() * self.config.gossip_interval, Alarm.GOSSIP)

    def gossip(self) -> None:
        """Tell a few others what they may not know; the next round follows while there is anything left.

        The recently dead are told as well: one that is dead to us alone hears of it and refutes.
        """
        self._is_gossiping = False
        if not self.rumors:
            return
        recently = self.now - self.config.gossip_to_the_dead
        targets = self.roster.pick(
            self.config.gossip_fanout,
            lambda member: (
                member.is_here or (member.state is MemberState.DEAD and member.changed_at > recently)
            ),
        )
        for target in targets:
            self.outbox.send(target.endpoint)
        if targets and self.rumors:
            self._is_gossiping = True
            self.timers.set(self.now + self.config.gossip_interval, Alarm.GOSSIP)
