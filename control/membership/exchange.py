"""Whole states over streams: joining, repairing what rumors missed, and calling the lost.

    request ──▶ [merge, then answer] ──▶ reply ──▶ [merge]

What a server refutes while it merges, its answer already says; what the client refutes it sends at once.
So one exchange makes both sides alive to each other, also when each had long buried the other: a pool that
was cut in two is one again as soon as one member of either half has called the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from control.membership.config import (
    FIRST_REJOIN,
    REJOIN_FAILED,
    REJOIN_JITTER,
    STREAM_TIMEOUT,
    push_pull_interval,
)
from control.membership.events import (
    Answer,
    JoinFailed,
    JoinSucceeded,
    Refusal,
    StreamOpen,
    StreamWrite,
)
from control.membership.member import Endpoint, MemberState
from control.membership.streams import Purpose, Stream, Streams
from control.membership.timers import Alarm
from control.membership.wire import Ack, ErrorReply, Ping, PushPull, encode, encode_error, encode_push_pull
from overlay.errors import WireError

if TYPE_CHECKING:
    from control.membership.beliefs import Beliefs
    from control.membership.context import Context
    from control.membership.presence import Presence
    from control.membership.probe import Prober
    from control.membership.stream import StreamMessage

# Ours
SEEDS_PER_ROUND = 8


class Exchange:
    """The streams of one core, and what they are opened for."""

    def __init__(self, context: Context, *, presence: Presence, beliefs: Beliefs, prober: Prober) -> None:
        self._context = context
        self._presence = presence
        self._beliefs = beliefs
        self._prober = prober
        self._streams = Streams(context.envelope)
        self._to_open: list[StreamOpen] = []
        self._to_write: list[StreamWrite] = []
        self._rejoin_delay = FIRST_REJOIN
        self._exchanged_at = context.now
        self._phase = context.rng.random()  # of an interval, so that those started together do not stay so
        self.push_pulls = 0

    def start(self, delay: float) -> None:
        """Call the seeds after `delay` seconds, and exchange states from time to time."""
        context = self._context
        context.timers.set(context.now + delay, Alarm.REJOIN)
        context.timers.set(context.now + self._phase * context.config.push_pull_interval, Alarm.PUSH_PULL)

    # Why streams are opened.

    def join(self, endpoint: Endpoint) -> None:
        """Exchange states with whoever is there; `JoinSucceeded` or `JoinFailed` follows."""
        self._open_push_pull(endpoint, Purpose.JOIN)

    def repair(self) -> None:
        """Exchange states with a random member, the more rarely the larger the pool."""
        context = self._context
        interval = push_pull_interval(context.roster.here, context.config.push_pull_interval)
        due = self._exchanged_at + interval * self._phase
        if context.now < due:  # the pool has grown since this was set
            context.timers.set(due, Alarm.PUSH_PULL)
            return
        self._exchanged_at, self._phase = context.now, 1.0
        context.timers.set(context.now + interval, Alarm.PUSH_PULL)
        for member in context.roster.pick(1, lambda member: member.state is MemberState.ALIVE):
            self._open_push_pull(member.endpoint, Purpose.PUSH_PULL)

    def rejoin(self) -> None:
        """Call every seed that is not here, and some of the failed: all nodes together call them all.

        The retry of this layer: its interval is jittered, and shorter at first while we are alone.
        """
        context = self._context
        if self._presence.is_leaving:
            return
        is_alone = context.roster.others_here == 0
        delay = context.config.rejoin_interval * (1 - REJOIN_JITTER * context.rng.random())
        if is_alone and self._rejoin_delay < delay:
            delay, self._rejoin_delay = self._rejoin_delay, self._rejoin_delay * 2
        context.timers.set(context.now + delay, Alarm.REJOIN)
        lost = [endpoint for endpoint in context.config.seeds if not self._is_here(endpoint)]
        if is_alone:
            lost += context.config.remembered
        context.rng.shuffle(lost)
        failed = [member.endpoint for member in context.roster.failed()]
        failed = context.rng.sample(failed, min(REJOIN_FAILED, len(failed)))
        for endpoint in dict.fromkeys(lost[:SEEDS_PER_ROUND] + failed):
            self.join(endpoint)

    def ping(self, endpoint: Endpoint, seq: int) -> None:
        """Ping over TCP a member that did not answer over UDP."""
        target = self._context.roster.at(endpoint)
        if target is not None:
            self._open(endpoint, Purpose.PING, encode(Ping(seq, target.name)), seq=seq)

    def _is_here(self, endpoint: Endpoint) -> bool:
        roster = self._context.roster
        member = roster.at(endpoint)
        return endpoint == roster.ourselves.endpoint or (member is not None and member.is_here)

    def _open_push_pull(self, endpoint: Endpoint, purpose: Purpose) -> None:
        if self._streams.is_to(endpoint, purpose):
            return
        other = self._context.roster.at(endpoint)
        about = {other.name} if other is not None else set()
        self._open(endpoint, purpose, self._local_state(about, join=purpose is Purpose.JOIN))

    def _open(self, endpoint: Endpoint, purpose: Purpose, message: bytes, *, seq: int = 0) -> None:
        stream = self._streams.open(endpoint, purpose, seq)
        if stream is None:
            return
        sealed = self._context.envelope.seal_stream(message)
        self._to_open.append(StreamOpen(stream.number, endpoint, sealed))
        self._expire_later(stream)

    def _local_state(self, about: set[str], *, join: bool) -> bytes:
        """Our members for a push-pull; those long gone only to those they are about, who may know better."""
        roster = self._context.roster
        recently = self._context.now - self._context.config.gossip_to_the_dead
        states = [
            roster.encoded(member)
            for member in roster
            if member.is_here or member.changed_at > recently or member.name in about
        ]
        return encode_push_pull(states, self._context.layer.local_state(), join=join)

    # What becomes of them.

    def to_open(self) -> list[StreamOpen]:
        """Whom to connect to; handed out once."""
        taken, self._to_open = self._to_open, []
        return taken

    def to_write(self) -> list[StreamWrite]:
        """What to write, then close; handed out once."""
        taken, self._to_write = self._to_write, []
        return taken

    def accept(self, other: Endpoint) -> int | None:
        """The number of a stream somebody opened to us; None: there are too many."""
        stream = self._streams.open(other, Purpose.SERVE)
        if stream is None:
            self._context.refuse(Refusal.STREAMS_FULL)
            return None
        self._expire_later(stream)
        return stream.number

    def receive(self, number: int, data: bytes) -> None:
        """Take in octets from a stream."""
        stream = self._streams.lookup(number)
        if stream is None:
            return
        try:
            message = stream.reader.receive_untrusted(data)
        except WireError as error:
            self._context.refuse(refusal := stream.reader.refusal)
            is_sealed = refusal is Refusal.WRONG_KEY
            self._end(stream, why=str(error), answer=Answer.OTHER_KEY if is_sealed else Answer.REFUSED)
            return
        if message is not None:
            self._understand(stream, message)
        elif self._streams.holds_too_much():
            self._context.refuse(Refusal.STREAMS_FULL)
            self._end(stream, why="too many octets held")

    def closed(self, number: int, *, why: str, was_open: bool = False) -> None:
        """A stream ended before its message did, or never was one (`was_open`)."""
        if (stream := self._streams.lookup(number)) is not None:
            self._end(stream, why=why, answer=Answer.CLOSED if was_open else Answer.NOTHING)

    def _understand(self, stream: Stream, message: StreamMessage) -> None:
        match stream.purpose, message:
            case Purpose.SERVE, PushPull():
                self._merge(message)
                claimed = {state.alive.node for state in message.nodes}
                self._answer(stream, self._local_state(claimed, join=message.join))
            case Purpose.SERVE, Ping(seq, node) if node in ("", self._context.name):
                self._answer(stream, encode(Ack(seq)))
            case Purpose.SERVE, Ping():
                self._context.refuse(Refusal.NOT_FOR_US)
                self._answer(stream, encode_error("not the node you ping"))
            case Purpose.PING, Ack(seq) if seq == stream.seq:
                self._prober.receive_ack_by_tcp(seq)
                self._end(stream)
            case ((Purpose.PUSH_PULL | Purpose.JOIN), PushPull()):
                self._finish_push_pull(stream, message)
            case _, ErrorReply(error):
                self._end(stream, why=f"refused: {error}")
            case _:
                self._context.refuse(Refusal.MALFORMED)
                self._end(stream, why="an answer to something else")

    def _finish_push_pull(self, stream: Stream, theirs: PushPull) -> None:
        refutations = self._presence.refutations
        self._merge(theirs)
        if self._presence.refutations != refutations:
            # Whoever held us dead does not gossip to us, nor perhaps we to them.
            self._context.outbox.send(stream.other, self._presence.word())
        self._end(stream)
        if stream.purpose is Purpose.JOIN:
            self._rejoin_delay = FIRST_REJOIN
            self._context.events.append(JoinSucceeded(stream.other))
            self._presence.announce()
            self._context.layer.joined(now=self._context.now)

    def _merge(self, theirs: PushPull) -> None:
        self.push_pulls += 1
        for node in theirs.nodes:
            self._beliefs.merge(node)
        if theirs.user_state:
            self._context.layer.merge_state(theirs.user_state, now=self._context.now)

    def _answer(self, stream: Stream, message: bytes) -> None:
        self._streams.close(stream.number)
        self._to_write.append(StreamWrite(stream.number, self._context.envelope.seal_stream(message)))

    def _end(self, stream: Stream, *, why: str = "", answer: Answer = Answer.REFUSED) -> None:
        if self._streams.close(stream.number) is None:
            return
        self._to_write.append(StreamWrite(stream.number, b""))
        if why and stream.purpose is Purpose.JOIN:
            self._context.events.append(JoinFailed(stream.other, why, answer))

    def _expire_later(self, stream: Stream) -> None:
        self._context.timers.set(self._context.now + STREAM_TIMEOUT, Alarm.STREAM, stream.number)
