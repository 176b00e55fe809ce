"""The streams a core has open: who they are with, what is expected, until when.

The shell connects and carries octets; everything it needs to know it is told in `StreamOpen` and
`StreamWrite`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from control.membership.config import STREAM_OCTETS, STREAMS_MAX
from control.membership.stream import StreamReader

if TYPE_CHECKING:
    from control.membership.member import Endpoint
    from control.membership.secure import Envelope

# Ours
HELD_OCTETS = 4 * STREAM_OCTETS  # of all unfinished messages together


class Purpose(Enum):
    """Why a stream is open."""

    SERVE = auto()  # accepted
    PUSH_PULL = auto()
    JOIN = auto()
    PING = auto()


@dataclass(slots=True)
class Stream:
    """One stream; `seq` is the ping's number, for PING."""

    number: int
    other: Endpoint
    purpose: Purpose
    reader: StreamReader
    seq: int = 0


class Streams:
    """The open streams by number, bounded in count and in octets held."""

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope
        self._open: dict[int, Stream] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._open)

    def open(self, other: Endpoint, purpose: Purpose, seq: int = 0) -> Stream | None:
        """A new stream, None when there are too many of its kind: accepted ones never crowd out our own."""
        is_ours = purpose is not Purpose.SERVE
        alike = sum((stream.purpose is not Purpose.SERVE) == is_ours for stream in self._open.values())
        if alike >= STREAMS_MAX:
            return None
        self._last += 1
        stream = Stream(self._last, other, purpose, StreamReader(self._envelope), seq)
        self._open[stream.number] = stream
        return stream

    def lookup(self, number: int) -> Stream | None:
        """The stream of that number, while it is open."""
        return self._open.get(number)

    def close(self, number: int) -> Stream | None:
        """Forget it.  Returns it if it was open."""
        return self._open.pop(number, None)

    def is_to(self, other: Endpoint, purpose: Purpose) -> bool:
        """Whether one with that purpose is under way already."""
        return any(stream.other == other and stream.purpose is purpose for stream in self._open.values())

    def holds_too_much(self) -> bool:
        """Whether the unfinished messages together are more than we keep."""
        return sum(stream.reader.held_octets for stream in self._open.values()) > HELD_OCTETS
