"""What the cores tell the daemon, and what they hand its sockets: values only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from control.membership.member import Endpoint, Member, MemberState


class Datagram(NamedTuple):
    """To be sent from our one UDP socket."""

    data: bytes
    to: Endpoint


@dataclass(frozen=True, slots=True)
class StreamOpen:
    """To be connected, and `data` written, within `STREAM_TIMEOUT`; what comes back is the core's."""

    stream: int
    to: Endpoint
    data: bytes


@dataclass(frozen=True, slots=True)
class StreamWrite:
    """To be written to a stream that was accepted, which is then closed.  Empty: only closed."""

    stream: int
    data: bytes


@dataclass(frozen=True, slots=True)
class MemberChanged:
    """A member is new, or its state, address or tags are.  `before` is None for one we never knew."""

    member: Member
    before: MemberState | None


@dataclass(frozen=True, slots=True)
class MemberReaped:
    """A tombstone grew old: the member is forgotten."""

    member: Member


@dataclass(frozen=True, slots=True)
class NameConflict:
    """Two nodes use one name.  Nobody is shut down for it: the operator is told."""

    name: str
    known: Endpoint
    claimed: Endpoint


@dataclass(frozen=True, slots=True)
class UdpBlocked:
    """A member answers over TCP and not over UDP: alive, and its firewall is in the way."""

    name: str


@dataclass(frozen=True, slots=True)
class PeerMessage:
    """weft's own message from another peer: `body` is what it passed to `Serf.tell` or `Serf.spread`."""

    sender: Endpoint
    body: bytes


@dataclass(frozen=True, slots=True)
class KnownToStranger:
    """Somebody we do not know takes us for a peer, and we know nobody: we were here before, and forgot."""

    sender: Endpoint


@dataclass(frozen=True, slots=True)
class JoinSucceeded:
    """A seed or failed member answered our push-pull."""

    endpoint: Endpoint


class Answer(Enum):
    """What came back of a push-pull that failed.

    Who is asked under a key that is not its own hangs up (weft) or says so under its own (memberlist).
    """

    NOTHING = "nobody is there, or the way is blocked"
    CLOSED = "the connection was closed before a word was said"
    OTHER_KEY = "it is sealed with none of our keys, or not sealed"
    REFUSED = "something else"


@dataclass(frozen=True, slots=True)
class JoinFailed:
    """It did not; it will be retried."""

    endpoint: Endpoint
    why: str
    answer: Answer = Answer.NOTHING


@dataclass(frozen=True, slots=True)
class KeyringChanged:
    """A key query changed our keyring: it is to be written down."""


@dataclass(frozen=True, slots=True)
class KeysAnswered:
    """What the pool answered to a key query of ours.

    Attributes:
        query: The number `Serf.ask_keys` returned.
        members: How many were here when it was asked.
        responses: How many answered in time, ourselves included.
        errors: Who refused or failed, and why.
        keys: Base64 key to how many hold it (list-keys only).
        primary_keys: Base64 key to how many encrypt with it (list-keys only).
    """

    query: int
    members: int
    responses: int
    errors: dict[str, str]
    keys: dict[str, int]
    primary_keys: dict[str, int]

    @property
    def is_complete(self) -> bool:
        """Whether everybody answered, and nobody with an error."""
        return self.responses == self.members and not self.errors


@dataclass(frozen=True, slots=True)
class Departed:
    """Our leave has been heard: the sockets may close."""


@dataclass(frozen=True, slots=True)
class RecordChanged:
    """A node's record is another, or gone."""

    name: str


@dataclass(frozen=True, slots=True)
class RecordForked:
    """A node says two things under one version: there are two of it."""

    name: str


@dataclass(frozen=True, slots=True)
class Cloned:
    """The pool has words of ours that we never said: our disk was copied, or set back."""

    epoch: int
    version: int


RecordEvent = RecordChanged | RecordForked | Cloned

Event = (
    MemberChanged
    | MemberReaped
    | NameConflict
    | UdpBlocked
    | PeerMessage
    | KnownToStranger
    | JoinSucceeded
    | JoinFailed
    | KeyringChanged
    | KeysAnswered
    | Departed
    | RecordEvent
)


class Refusal(Enum):
    """Why something a stranger sent had no effect.  One counter each."""

    MALFORMED = "not memberlist's format"
    WRONG_KEY = "encrypted by none of our keys, or plain in a pool with keys"
    WRONG_LABEL = "of another pool"
    NOT_FOR_US = "a ping for another name"
    UNKNOWN_TARGET = "an indirect probe of somebody who is no member"
    RELAY_LIMIT = "too many indirect probes for one requester"
    INCARNATION_JUMP = "an incarnation more than 2**31 above the one known"
    NAME_CONFLICT = "a second node with a name in use"
    ROSTER_FULL = "no room for another member"
    STREAMS_FULL = "too many streams at once"
    UNKNOWN_QUERIER = "a query whose source is not one known member"
    ANSWER_LIMIT = "a query whose answer is more than three times as long"
    CLOCK_JUMP = "a Lamport time too far ahead"
    STALE = "heard before, or too old to be told from that"
    NOT_A_PEER = "weft's own message from somebody without weft's tags"


@dataclass(frozen=True, slots=True)
class SwimStatistics:
    """A frozen snapshot of what the core counted.

    Attributes:
        alive: Members alive, ourselves included.
        health: Lifeguard's local health score; 0 is well.
        rumors: Rumors queued.
        paused: Seconds we stood still, in all.
        refused: Count by reason.
    """

    alive: int
    suspect: int
    dead: int
    left: int
    health: int
    rumors: int
    rumors_forgotten: int
    incarnation: int
    datagrams_received: int
    datagrams_sent: int
    probes: int
    probes_failed: int
    refutations: int
    push_pulls: int
    paused: float
    refused: dict[Refusal, int]
