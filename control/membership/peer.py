"""A weft node in a pool, whole: Serf's member with the records on top, under the same verbs.

    datagram ─▶ Serf ─▶ PeerMessage ─▶ Records ─▶ tell one peer, or spread among peers ─▶ Serf ─▶ datagram

The two are put together here and nowhere else, so that what the daemon runs is what the simulation does.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from control.membership.config import THROTTLE
from control.membership.events import KnownToStranger, MemberChanged, MemberReaped, PeerMessage
from control.membership.limits import RateLimit
from control.membership.records import Records, Spread, Tell
from control.membership.recordwire import RecordKey, Summary, encode_message
from control.membership.serf import Serf
from control.membership.tags import encode_tags, identity_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from control.membership.config import GossipConfig
    from control.membership.events import Event
    from control.membership.member import Endpoint
    from control.membership.recordbody import NetworkRecord
    from control.membership.secure import Envelope


class Peer(Serf):
    """One weft node, sans I/O.

    Args:
        config: Its tags say who we are: `weft_id`, `weft_epoch`.
        rng: All chance there is.
        envelope: Label and keys.
        now: Monotonic seconds, as in every call.

    Attributes:
        records: What the nodes say of themselves.
    """

    def __init__(self, config: GossipConfig, *, rng: Random, envelope: Envelope, now: float) -> None:
        super().__init__(config, rng=rng, envelope=envelope, now=now)
        weft_id, epoch = identity_of(encode_tags(config.tags))
        own = RecordKey(config.name, weft_id or config.name, epoch, 0)
        self.records = Records(own, members=self, rng=rng, now=now)
        self._told: deque[Event] = deque()
        self._returns = RateLimit(1, THROTTLE)  # whoever invents senders makes us call one of them

    def publish(self, networks: Sequence[NetworkRecord], *, now: float) -> bool:
        """Say this of ourselves from now on; False: it is what we said last.

        Raises:
            MembershipError: It is more than one node may say.
        """
        is_news = self.records.publish(networks, now=now)
        self._pass_between(now)
        return is_news

    def call_back(self, name: str, *, now: float) -> None:
        """Have a peer that is dead to us hear that we know it, wherever it was, if it starts again there.

        One that has lost its memory, and nobody to join, would not know for half a minute that it had one.
        """
        summary = encode_message(Summary(self.records.hash))
        self.tell(name, summary, now=now, is_called_back=True)

    def receive_datagram(self, data: bytes, sender: Endpoint, *, now: float) -> None:
        super().receive_datagram(data, sender, now=now)
        self._pass_between(now)

    def receive_stream(self, number: int, data: bytes, *, now: float) -> None:
        super().receive_stream(number, data, now=now)
        self._pass_between(now)

    def handle_timer(self, *, now: float) -> None:
        super().handle_timer(now=now)
        if self.records.next_deadline() <= now:
            self.records.handle_timer(now=now)
        self._pass_between(now)

    def next_deadline(self) -> float:
        ours, records = super().next_deadline(), self.records.next_deadline()
        return records if ours is None else min(ours, records)

    def next_event(self) -> Event | None:
        return self._told.popleft() if self._told else super().next_event()

    def _pass_between(self, now: float) -> None:
        """What Serf heard goes to the records; what they answer goes to Serf."""
        while (event := super().next_event()) is not None:
            match event:
                case PeerMessage(sender, body):
                    member = self.member_at(sender)
                    if member is not None:
                        self.records.receive(body, member.name, now=now)
                    continue
                case KnownToStranger(sender):
                    if self._returns.permits("stranger", now=now):
                        self.join(sender, now=now)
                    continue
                case MemberChanged(member, before):
                    self.records.member_changed(member, before, now=now)
                case MemberReaped(member):
                    self.records.member_reaped(member.name, now=now)
            self._told.append(event)
        while (told := self.records.next_event()) is not None:
            self._told.append(told)
        for message in self.records.messages_to_send(now=now):
            match message:
                case Tell(name, bodies):
                    self.tell(name, *bodies, now=now)
                case Spread(subject, body):
                    self.spread(subject, body, now=now)
