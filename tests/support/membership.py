"""Small pieces the membership tests share: bare cores, claims, stock datagrams, an LZW writer."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from control.membership.config import GossipConfig
from control.membership.events import Event, Refusal
from control.membership.member import VERSIONS, Endpoint, Member, MemberState
from control.membership.secure import Envelope, Keyring
from control.membership.serf import Serf
from control.membership.tags import encode_tags
from control.membership.wire import (
    Ack,
    Alive,
    Dead,
    Message,
    NodeState,
    Ping,
    Suspect,
    encode,
    encode_node_state,
    encode_push_pull,
    parse_untrusted,
    unwrap_untrusted,
)

DATA = Path(__file__).parents[1] / "data" / "membership"
US = Endpoint("192.0.2.1", 7946)
STRANGER = Endpoint("203.0.113.99", 1234)
PEER_META = encode_tags({"weft_id": "x"})
STOCK_META = encode_tags({"role": "db"})


def stock(name: str) -> list[bytes]:
    """What a stock agent sent."""
    return [bytes.fromhex(line) for line in (DATA / f"serf-0.9.4-{name}.hex").read_text().split()]


def at(number: int) -> Endpoint:
    """The endpoint of the member with that number."""
    return Endpoint(f"192.0.2.{number + 1}", 7946)


def alive(
    number: int, incarnation: int = 1, *, meta: bytes = PEER_META, endpoint: Endpoint | None = None
) -> Alive:
    """The word of member `m<number>`."""
    return Alive(incarnation, f"m{number}", endpoint or at(number), meta, VERSIONS)


def state_of(number: int, state: MemberState, incarnation: int = 1) -> NodeState:
    """A line of a push-pull."""
    return NodeState(alive(number, incarnation), state)


class Bench:
    """One core called `us` on a workbench: time moves only when told, and nothing is lost."""

    def __init__(
        self, members: int = 0, *, keys: tuple[bytes, ...] = (), seed: int = 1, **changes: Any
    ) -> None:
        self.now = 100.0
        self.opened: list[Endpoint] = []
        self.keyring = Keyring(keys)
        rng = Random(seed)
        label = changes.get("label", "")
        self.envelope = Envelope(self.keyring, label, nonce=rng.randbytes)
        changes.setdefault("tags", {"weft_id": "us"})
        self.core = Serf(GossipConfig("us", US, **changes), rng=rng, envelope=self.envelope, now=self.now)
        for number in range(1, members + 1):
            self.receive(alive(number), sender=at(number))
        self.take_datagrams()
        self.take_events()

    # In.

    def receive(self, *messages: Message, sender: Endpoint = STRANGER) -> None:
        """Hand in each message as a datagram of its own."""
        for message in messages:
            self.receive_octets(self.envelope.seal(encode(message)), sender)

    def receive_octets(self, data: bytes, sender: Endpoint = STRANGER) -> None:
        """Hand in a datagram."""
        self.core.receive_datagram(data, sender, now=self.now)

    def push_pull(self, *states: NodeState, user_state: bytes = b"") -> bytes:
        """Hand in a push-pull over a stream.  Returns what is written back."""
        lines = [encode_state(state) for state in states]
        return self.stream(self.envelope.seal_stream(encode_push_pull(lines, user_state, join=True)))

    def stream(self, data: bytes) -> bytes:
        """Hand in octets over a new stream.  Returns what is written back."""
        number = self.core.accept_stream(STRANGER, now=self.now)
        assert number is not None
        self.core.receive_stream(number, data, now=self.now)
        return b"".join(
            write.data for write in self.core.streams_to_write(now=self.now) if write.stream == number
        )

    def run(self, seconds: float) -> None:
        """Let time pass, firing what is due when it is due."""
        end = self.now + seconds
        while (deadline := self.core.next_deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            self.core.handle_timer(now=self.now)
        self.now = end

    def run_quietly(self, seconds: float) -> None:
        """Let time pass with every ping answered, so that nobody is suspected; rumors die out."""
        end = self.now + seconds
        while self.now < end:
            self.run(min(0.25, end - self.now))
            for to, messages in self.take_datagrams():
                for message in messages:
                    if isinstance(message, Ping):
                        self.receive(Ack(message.seq), sender=to)
            self.opened += [opening.to for opening in self.core.streams_to_open(now=self.now)]

    def forget_rumors(self) -> None:
        """Have everything said that is queued, to nobody."""
        rumors = self.core._swim.context.rumors
        while rumors:
            rumors.take(1 << 20, overhead=2, limit=1, count=255, is_peer=True)

    # Out.

    def take_datagrams(self) -> list[tuple[Endpoint, list[Message]]]:
        """What was sent since, opened, by receiver."""
        return [(to, self.open(data)) for data, to in self.core.datagrams_to_send(now=self.now)]

    def open(self, data: bytes) -> list[Message]:
        """The messages in a datagram of ours."""
        packet = self.envelope.open_untrusted(self.envelope.strip_label_untrusted(data))
        return [parse_untrusted(raw) for raw in unwrap_untrusted(packet)]

    def take_messages(self) -> list[Message]:
        """What was sent since, whoever it was for."""
        return [message for _, messages in self.take_datagrams() for message in messages]

    def take_events(self) -> list[Event]:
        """What was told since."""
        events = []
        while (event := self.core.next_event()) is not None:
            events.append(event)
        return events

    # What is believed.

    def state(self, number: int) -> MemberState | None:
        """What we hold member `m<number>` to be."""
        member = self.core.lookup(f"m{number}")
        return member.state if member else None

    def refused(self, reason: Refusal) -> int:
        """How often we refused something for that reason."""
        return self.core.statistics().refused.get(reason, 0)


def suspect(number: int, incarnation: int = 1, accuser: str = "m9") -> Suspect:
    """An accusation."""
    return Suspect(incarnation, f"m{number}", accuser)


def dead(number: int, incarnation: int = 1, accuser: str = "m9") -> Dead:
    """A death notice."""
    return Dead(incarnation, f"m{number}", accuser)


def left(number: int, incarnation: int = 1) -> Dead:
    """A farewell."""
    return Dead(incarnation, f"m{number}", f"m{number}")


def encode_state(state: NodeState) -> bytes:
    """A line of a push-pull, encoded."""
    word = state.alive
    return encode_node_state(
        Member(word.node, word.endpoint, word.incarnation, state.state, word.meta, word.versions, 0.0)
    )


def compress_lzw(data: bytes) -> bytes:
    """LZW as Go writes it, for the reader to be tested against: ends with clear and end as any writer may."""
    codes: list[tuple[int, int]] = []
    strings = {bytes((octet,)): octet for octet in range(256)}
    width, last, current = 9, 257, b""
    for octet in data:
        longer = current + bytes((octet,))
        if longer in strings:
            current = longer
            continue
        codes.append((strings[current], width))
        last += 1
        if last == 1 << width and width < 12:
            width += 1
        if last == 4095:
            codes.append((256, width))
            strings = {bytes((each,)): each for each in range(256)}
            width, last = 9, 257
        else:
            strings[longer] = last
        current = bytes((octet,))
    if current:
        codes.append((strings[current], width))
        last += 1
        if last == 1 << width and width < 12:
            width += 1
    codes.append((257, width))
    window, held, out = 0, 0, bytearray()
    for code, bits in codes:
        window |= code << held
        held += bits
        while held >= 8:
            out.append(window & 255)
            window >>= 8
            held -= 8
    if held:
        out.append(window & 255)
    return bytes(out)
