"""One message off a TCP stream, from whatever pieces it arrives in.

    connect → request → reply → close        push-pull both ways; ping → ack; error instead of either

Plain, a push-pull has no length in front: its end is known only by reading it.  So it is read as it comes, a
map at a time, and nothing is read twice however small the pieces.  Every stranger's promise is checked before
memory is spent on it: the record's length, the size of one map, the number of members, the user state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgpack import OutOfData

from control.membership.config import MEMBERS_MAX, STREAM_OCTETS
from control.membership.events import Refusal
from control.membership.pack import U32, UNPACK_ERRORS, Fields, check_depth_untrusted, unpacker
from control.membership.secure import STREAM_HEAD, Envelope
from control.membership.wire import (
    ACK,
    COMPRESS,
    ENCRYPT,
    ERROR,
    PING,
    PUSH_PULL,
    Ack,
    ErrorReply,
    NodeState,
    Ping,
    PushPull,
    inflate_untrusted,
    node_state_untrusted,
)
from overlay.errors import MalformedError, UnsupportedError, WireError

if TYPE_CHECKING:
    from collections.abc import Generator

StreamMessage = PushPull | Ping | Ack | ErrorReply

# Ours
MAP_OCTETS = 4096  # one member: a name of 128, a meta of 512, and room for fields not yet invented
USER_STATE_OCTETS = 1 << 20
SLICE_OCTETS = 2048


class StreamReader:
    """Collects the one message the other side sends, at most `limit` octets of it."""

    def __init__(self, envelope: Envelope, *, limit: int = STREAM_OCTETS) -> None:
        self._envelope = envelope
        self._limit = limit
        self._held = bytearray()
        self._is_labelled = False
        self._is_sealed = bool(envelope.keyring)
        self._plain: _PlainReader | None = None

    @property
    def refusal(self) -> Refusal:
        """Why, if what is being read now cannot be."""
        if not self._is_labelled:
            return Refusal.WRONG_LABEL
        return Refusal.WRONG_KEY if self._is_sealed else Refusal.MALFORMED

    @property
    def held_octets(self) -> int:
        """Octets taken in for a message that is not whole yet."""
        return len(self._held) + (self._plain.fed if self._plain is not None else 0)

    def receive_untrusted(self, data: bytes) -> StreamMessage | None:
        """The message, once its last octet is here.

        Raises:
            WireError: This will never be a message we understand; the stream is to be closed.
        """
        if self._plain is not None:
            return self._plain.receive_untrusted(data)
        self._held += data
        if not self._is_labelled:
            if len(self._held) < max(1, self._envelope.label_octets):
                return None
            self._held = bytearray(self._envelope.strip_label_untrusted(bytes(self._held)))
            self._is_labelled = True
        if not self._held:
            return None
        if self._is_sealed:
            return self._sealed_untrusted()
        self._plain = _PlainReader(self._limit)
        held, self._held = bytes(self._held), bytearray()
        return self._plain.receive_untrusted(held)

    def _sealed_untrusted(self) -> StreamMessage | None:
        if self._held[0] != ENCRYPT:
            raise MalformedError(
                f"stream: expected an encrypted record ({ENCRYPT}), found type {self._held[0]}"
            )
        if len(self._held) < STREAM_HEAD:
            return None
        length = int.from_bytes(self._held[1:STREAM_HEAD], "big")
        if length > self._limit:
            raise MalformedError(f"stream: expected at most {self._limit} octets, found {length} announced")
        if len(self._held) < STREAM_HEAD + length:
            return None
        record, self._held = bytes(self._held[: STREAM_HEAD + length]), bytearray()
        message = self._envelope.open_stream_untrusted(record)
        self._is_sealed = False
        return parse_stream_untrusted(message, limit=self._limit)


def parse_stream_untrusted(
    message: bytes, *, limit: int = STREAM_OCTETS, may_inflate: bool = True
) -> StreamMessage:
    """The message these octets hold, all of them there and plain.

    Raises:
        WireError: They end early, or are no message that travels in streams.
    """
    parsed = _PlainReader(limit, may_inflate=may_inflate).receive_untrusted(message)
    if parsed is None:
        raise MalformedError(f"stream message: expected more than the {len(message)} octets found")
    return parsed


class _PlainReader:
    """Reads a plain message as it comes: a msgpack reader, and a generator that knows what to expect."""

    def __init__(self, limit: int, *, may_inflate: bool = True) -> None:
        self._limit = limit
        self._may_inflate = may_inflate
        self._unpacker = unpacker(limit)
        self.fed = 0
        self._taken = 0
        self._steps = self._message_untrusted()
        next(self._steps)

    def receive_untrusted(self, data: bytes) -> StreamMessage | None:
        for start in range(0, len(data), SLICE_OCTETS):
            piece = data[start : start + SLICE_OCTETS]
            self.fed += len(piece)
            if self.fed > self._limit:
                raise MalformedError(f"stream: expected at most {self._limit} octets, found more")
            try:
                self._unpacker.feed(piece)
                next(self._steps)
            except StopIteration as done:
                message: StreamMessage = done.value
                return message
            except WireError:
                raise
            except UNPACK_ERRORS as error:
                raise MalformedError(f"stream: expected msgpack, found {type(error).__name__}") from None
        return None

    def _message_untrusted(self) -> Generator[None, None, StreamMessage]:
        kind = (yield from self._octets(1))[0]
        if kind == PUSH_PULL:
            return (yield from self._push_pull_untrusted())
        if kind == PING:
            fields = Fields((yield from self._value_untrusted(MAP_OCTETS)), "ping")
            return Ping(fields.number(b"SeqNo", U32), fields.text(b"Node"))
        if kind == ACK:
            fields = Fields((yield from self._value_untrusted(MAP_OCTETS)), "ack")
            return Ack(fields.number(b"SeqNo", U32))
        if kind == ERROR:
            fields = Fields((yield from self._value_untrusted(MAP_OCTETS)), "error")
            return ErrorReply(fields.text(b"Error"))
        if kind == COMPRESS and self._may_inflate:
            value = yield from self._value_untrusted(self._limit)
            return _inflate_untrusted(value, self._limit)
        raise UnsupportedError(f"stream: expected a type that travels in streams, found {kind}")

    def _push_pull_untrusted(self) -> Generator[None, None, PushPull]:
        head = Fields((yield from self._value_untrusted(MAP_OCTETS)), "push-pull")
        count, user_octets = head.number(b"Nodes", U32), head.number(b"UserStateLen", U32)
        if count > MEMBERS_MAX:
            raise MalformedError(
                f"push-pull: expected at most {MEMBERS_MAX} members, found {count} announced"
            )
        if user_octets > USER_STATE_OCTETS:
            raise MalformedError(
                f"push-pull: expected at most {USER_STATE_OCTETS} octets of user state, found {user_octets}"
            )
        nodes: list[NodeState] = []
        while len(nodes) < count:
            nodes.append(node_state_untrusted((yield from self._value_untrusted(MAP_OCTETS))))
        user_state = (yield from self._octets(user_octets)) if user_octets else b""
        return PushPull(tuple(nodes), user_state, head.truth(b"Join"))

    def _value_untrusted(self, octets: int) -> Generator[None, None, Any]:
        while True:
            try:
                value = self._unpacker.unpack()
            except OutOfData:
                if self.fed - self._taken > octets + SLICE_OCTETS:
                    raise MalformedError(
                        f"stream: expected a map of at most {octets} octets, found more"
                    ) from None
                yield
                continue
            self._taken = self._unpacker.tell()
            check_depth_untrusted(value, "stream")
            return value

    def _octets(self, count: int) -> Generator[None, None, bytes]:
        collected = bytearray()
        while True:
            collected += self._unpacker.read_bytes(count - len(collected))
            if len(collected) == count:
                self._taken = self._unpacker.tell()
                return bytes(collected)
            yield


def _inflate_untrusted(value: object, limit: int) -> StreamMessage:
    plain = inflate_untrusted(Fields(value, "compress"), limit=limit)
    return parse_stream_untrusted(plain, limit=limit, may_inflate=False)
