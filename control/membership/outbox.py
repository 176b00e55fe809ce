"""Datagrams on their way out: messages, the rumors that fit beside them, checksum, envelope.

Every datagram a pool sends is an opportunity to gossip, so whatever room is left is given to rumors.  An
answer is different: its receiver's address is only what the sender claimed, so what one datagram makes us
send stays within `AMPLIFICATION` times its octets, rumors included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from control.membership.config import AMPLIFICATION, retransmit_limit
from control.membership.events import Datagram
from control.membership.member import CRC_SINCE
from control.membership.wire import COMPOUND_HEAD, COMPOUND_MAX, COMPOUND_PART, CRC_OCTETS, compound, with_crc

if TYPE_CHECKING:
    from control.membership.member import Endpoint
    from control.membership.roster import Roster
    from control.membership.rumors import RumorQueue
    from control.membership.secure import Envelope


class Outbox:
    """Collects datagrams until the shell takes them.

    Args:
        octets: A datagram's size at most, everything included.
    """

    def __init__(self, envelope: Envelope, roster: Roster, rumors: RumorQueue, *, octets: int) -> None:
        self._envelope = envelope
        self._roster = roster
        self._rumors = rumors
        self._octets = octets
        self._datagrams: list[Datagram] = []
        self._answer_octets = 0
        self.sent = 0

    def take(self) -> list[Datagram]:
        """Everything collected since the last call, oldest first."""
        taken, self._datagrams = self._datagrams, []
        return taken

    def room(self) -> int:
        """Octets one message may have and still travel in a packet of its own."""
        return self._octets - self._envelope.extra - CRC_OCTETS

    def send(self, to: Endpoint, *messages: bytes, with_rumors: bool = True) -> None:
        """Send these messages, and as many rumors as fit; nothing at all sends nothing."""
        self._pack(to, list(messages), self._octets if with_rumors else 0)

    def begin_answers(self, asked_octets: int) -> None:
        """A datagram of that size came in: what `answer` sends from here on is on its account."""
        self._answer_octets = AMPLIFICATION * asked_octets

    def answer(self, to: Endpoint, message: bytes, *, with_rumors: bool = True) -> bool:
        """Send this message on the account of the datagram being answered; False if it is used up."""
        least = len(message) + self._envelope.extra + CRC_OCTETS
        if least > self._answer_octets:
            return False
        # A question may stand behind a ping in one datagram: rumors leave half of the account for its answer.
        budget = min(self._octets, self._answer_octets // 2) if with_rumors else 0
        self._answer_octets -= self._pack(to, [message], budget)
        return True

    def _pack(self, to: Endpoint, messages: list[bytes], budget: int) -> int:
        member = self._roster.at(to)
        room = budget - self._envelope.extra - CRC_OCTETS - COMPOUND_HEAD
        room -= sum(len(message) + COMPOUND_PART for message in messages)
        messages += self._rumors.take(
            room,
            overhead=COMPOUND_PART,
            limit=retransmit_limit(self._roster.here),
            count=COMPOUND_MAX - len(messages),
            is_peer=member is not None and member.is_peer,
        )
        if not messages:
            return 0
        packet = compound(messages)
        if not self._envelope.keyring and member is not None and member.speaks(CRC_SINCE):
            packet = with_crc(packet)
        datagram = Datagram(self._envelope.seal(packet), to)
        self._datagrams.append(datagram)
        self.sent += 1
        return len(datagram.data)
