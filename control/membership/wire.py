"""memberlist's packets and messages, octet for octet.

A packet, once its label and encryption are off (`secure.Envelope`), is wrapped at most once by each of

    ┌────┬───────────────┬────────────────────────────────────────────────────────────┐
    │ 12 │ CRC-32, BE    │ the rest                                                   │  hasCrc
    ├────┼───────────────┴────────────────────────────────────────────────────────────┤
    │  9 │ msgpack {Algo: 0 (LZW), Buf}                                               │  compress
    ├────┼─────┬──────────────────┬───────────────────────────────────────────────────┤
    │  7 │ n   │ length × n, BE16 │ n messages                                        │  compound
    ├────┼─────┴──────────────────┴───────────────────────────────────────────────────┤
    │ t  │ msgpack map of the message's fields; for a user message any octets         │  message
    └────┴────────────────────────────────────────────────────────────────────────────┘

in that order.  memberlist itself unwraps in any order and to any depth; we refuse what it never writes.

A rumor is heard many times on its way round the pool, in the same octets each time, so parsing remembers.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from control.membership.lzw import decompress_untrusted
from control.membership.member import Endpoint, Member, MemberState, packed_address
from control.membership.pack import U16, U32, Fields, fields_untrusted, pack
from control.membership.tags import META_OCTETS
from overlay.addr import unmap
from overlay.errors import MalformedError, TruncatedError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# From the specification: message types, never renumbered
(
    PING,
    INDIRECT_PING,
    ACK,
    SUSPECT,
    ALIVE,
    DEAD,
    PUSH_PULL,
    COMPOUND,
    USER,
    COMPRESS,
    ENCRYPT,
    NACK,
    CRC,
    ERROR,
) = range(14)
LABEL = 244
LZW_ALGORITHM = 0
VERSION_OCTETS = 6
CRC_OCTETS = 5
COMPOUND_HEAD = 2
COMPOUND_PART = 2
COMPOUND_MAX = 255
PACKET_OCTETS = 65536

# Ours
PARSED_REMEMBERED = 4096  # messages
STATES_REMEMBERED = 16384  # members in push-pulls


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there, `node`?  The source fields newer agents add are not read: we answer the sender."""

    seq: int
    node: str


@dataclass(frozen=True, slots=True)
class IndirectPing:
    """Ping `node` for me, and tell me if it does not answer (`wants_nack`)."""

    seq: int
    target: Endpoint
    node: str
    wants_nack: bool


@dataclass(frozen=True, slots=True)
class Ack:
    """The ping numbered `seq` arrived."""

    seq: int


@dataclass(frozen=True, slots=True)
class Nack:
    """I am well and asked for you; the target did not answer me in time."""

    seq: int


@dataclass(frozen=True, slots=True)
class Suspect:
    """`accuser` could not reach `node`."""

    incarnation: int
    node: str
    accuser: str


@dataclass(frozen=True, slots=True)
class Dead:
    """`node` is gone; if `accuser` is the node itself, it left."""

    incarnation: int
    node: str
    accuser: str


@dataclass(frozen=True, slots=True)
class Alive:
    """A member's word about itself."""

    incarnation: int
    node: str
    endpoint: Endpoint
    meta: bytes
    versions: bytes


@dataclass(frozen=True, slots=True)
class User:
    """What the layer above sends; memberlist does not look inside."""

    body: bytes


@dataclass(frozen=True, slots=True)
class NodeState:
    """One member as the other side of a push-pull knows it."""

    alive: Alive
    state: MemberState


@dataclass(frozen=True, slots=True)
class PushPull:
    """Everything one side knows.

    Attributes:
        nodes: Its members, itself among them.
        user_state: What the layer above exchanges.
        join: Whether the sender is joining, rather than repairing.
    """

    nodes: tuple[NodeState, ...]
    user_state: bytes
    join: bool


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """Why the other side of a stream gave up on us."""

    error: str


Message = Ping | IndirectPing | Ack | Nack | Suspect | Dead | Alive | User


# Writing.


def encode(message: Message) -> bytes:
    """The message, bare: type octet and body."""
    match message:
        case Ping(seq, node):
            return _typed(PING, {"SeqNo": seq, "Node": node})
        case IndirectPing(seq, target, node, wants_nack):
            body = {"SeqNo": seq, "Target": packed_address(target.host), "Port": target.port, "Node": node}
            return _typed(INDIRECT_PING, body | {"Nack": wants_nack})
        case Ack(seq):
            # Anything in the payload logs ERR at a stock agent on every probe, unless it is a coordinate.
            return _typed(ACK, {"SeqNo": seq, "Payload": b""})
        case Nack(seq):
            return _typed(NACK, {"SeqNo": seq})
        case Suspect(incarnation, node, accuser):
            return _typed(SUSPECT, {"Incarnation": incarnation, "Node": node, "From": accuser})
        case Dead(incarnation, node, accuser):
            return _typed(DEAD, {"Incarnation": incarnation, "Node": node, "From": accuser})
        case Alive():
            body = {
                "Incarnation": message.incarnation,
                "Node": message.node,
                "Addr": packed_address(message.endpoint.host),
            }
            return _typed(
                ALIVE, body | {"Port": message.endpoint.port, "Meta": message.meta, "Vsn": message.versions}
            )
        case User(body):
            return bytes((USER,)) + body


def encode_push_pull(states: Sequence[bytes], user_state: bytes, *, join: bool) -> bytes:
    """A push-pull of members already encoded by `encode_node_state`."""
    head = _typed(PUSH_PULL, {"Nodes": len(states), "UserStateLen": len(user_state), "Join": join})
    return b"".join((head, *states, user_state))


def encode_node_state(member: Member) -> bytes:
    """One member, as a push-pull carries it."""
    return pack(
        {
            "Name": member.name,
            "Addr": packed_address(member.endpoint.host),
            "Port": member.endpoint.port,
            "Meta": member.meta,
            "Incarnation": member.incarnation,
            "State": member.state.value,
            "Vsn": member.versions,
        }
    )


def encode_error(why: str) -> bytes:
    """The reply that ends a stream we cannot serve."""
    return _typed(ERROR, {"Error": why})


def compound(messages: Sequence[bytes]) -> bytes:
    """Up to 255 messages as one packet; a single one goes bare."""
    if len(messages) == 1:
        return messages[0]
    lengths = b"".join(len(message).to_bytes(2, "big") for message in messages)
    return b"".join((bytes((COMPOUND, len(messages))), lengths, *messages))


def with_crc(packet: bytes) -> bytes:
    """The packet behind its checksum: what protocol version 5 expects where nothing authenticates it."""
    return bytes((CRC,)) + zlib.crc32(packet).to_bytes(4, "big") + packet


def _typed(kind: int, body: dict[str, object]) -> bytes:
    return bytes((kind,)) + pack(body)


# Reading, in the order a packet meets it.


def unwrap_untrusted(packet: bytes) -> list[bytes]:
    """The bare messages of a packet.

    Raises:
        WireError: A wrapping that is cut short, lies about its lengths, or is out of order.
    """
    if packet[:1] == bytes((CRC,)):
        packet = _check_crc_untrusted(packet)
    if packet[:1] == bytes((COMPRESS,)):
        packet = inflate_untrusted(fields_untrusted(packet[1:], "compress"), limit=PACKET_OCTETS)
    if packet[:1] == bytes((COMPOUND,)):
        return _split_untrusted(packet)
    return [packet]


def _check_crc_untrusted(packet: bytes) -> bytes:
    if len(packet) < CRC_OCTETS:
        raise TruncatedError("packet with CRC", expected=CRC_OCTETS, found=len(packet))
    said, packet = int.from_bytes(packet[1:CRC_OCTETS], "big"), packet[CRC_OCTETS:]
    if zlib.crc32(packet) != said:
        raise MalformedError(f"CRC: expected {zlib.crc32(packet):08x}, found {said:08x}")
    return packet


def inflate_untrusted(fields: Fields, *, limit: int) -> bytes:
    """What a compress message holds, at most `limit` octets."""
    if (algorithm := fields.number(b"Algo", 255)) != LZW_ALGORITHM:
        raise UnsupportedError(f"compress: expected algorithm {LZW_ALGORITHM} (LZW), found {algorithm}")
    return decompress_untrusted(fields.octets(b"Buf", limit), limit=limit)


def _split_untrusted(packet: bytes) -> list[bytes]:
    count = packet[1] if len(packet) > 1 else 0
    start = COMPOUND_HEAD + COMPOUND_PART * count
    if len(packet) < start:
        raise TruncatedError("compound", expected=start, found=len(packet))
    messages = []
    for index in range(COMPOUND_HEAD, start, COMPOUND_PART):
        end = start + int.from_bytes(packet[index : index + COMPOUND_PART], "big")
        if end > len(packet):
            raise TruncatedError("compound", expected=end, found=len(packet))
        messages.append(packet[start:end])
        start = end
    return messages


@lru_cache(maxsize=PARSED_REMEMBERED)
def parse_untrusted(message: bytes) -> Message:
    """One bare message.

    Raises:
        WireError: Empty, of a type that has no business in a packet, or with fields that cannot be.
    """
    if not message:
        raise TruncatedError("message", expected=1, found=0)
    kind = message[0]
    if kind == USER:
        return User(message[1:])
    parse = _PARSERS.get(kind)
    if parse is None:
        raise UnsupportedError(f"message: expected a type that travels in packets, found {kind}")
    return parse(fields_untrusted(message[1:], _NAMES[kind]))


def _ping_untrusted(fields: Fields) -> Ping:
    return Ping(fields.number(b"SeqNo", U32), fields.text(b"Node"))


def _indirect_ping_untrusted(fields: Fields) -> IndirectPing:
    return IndirectPing(
        fields.number(b"SeqNo", U32),
        endpoint_untrusted(fields, b"Target"),
        fields.text(b"Node"),
        fields.truth(b"Nack"),
    )


def _ack_untrusted(fields: Fields) -> Ack:
    return Ack(fields.number(b"SeqNo", U32))


def _nack_untrusted(fields: Fields) -> Nack:
    return Nack(fields.number(b"SeqNo", U32))


def _suspect_untrusted(fields: Fields) -> Suspect:
    return Suspect(fields.number(b"Incarnation", U32), fields.name(b"Node"), fields.name(b"From"))


def _dead_untrusted(fields: Fields) -> Dead:
    return Dead(fields.number(b"Incarnation", U32), fields.name(b"Node"), fields.name(b"From"))


def _alive_untrusted(fields: Fields) -> Alive:
    return _alive_named_untrusted(fields, b"Node")


def _alive_named_untrusted(fields: Fields, key: bytes) -> Alive:
    versions = fields.octets(b"Vsn", VERSION_OCTETS)
    return Alive(
        fields.number(b"Incarnation", U32),
        fields.name(key),
        endpoint_untrusted(fields, b"Addr"),
        fields.octets(b"Meta", META_OCTETS),
        versions.ljust(VERSION_OCTETS, b"\0"),
    )


_PARSERS: dict[int, Callable[[Fields], Message]] = {
    PING: _ping_untrusted,
    INDIRECT_PING: _indirect_ping_untrusted,
    ACK: _ack_untrusted,
    NACK: _nack_untrusted,
    SUSPECT: _suspect_untrusted,
    ALIVE: _alive_untrusted,
    DEAD: _dead_untrusted,
}


_NAMES = {
    kind: parse.__name__.removeprefix("_").removesuffix("_untrusted") for kind, parse in _PARSERS.items()
}


def node_state_untrusted(value: object) -> NodeState:
    """One member out of a push-pull.  Most are as they were in the last one, so parsing remembers."""
    if not isinstance(value, dict):
        raise MalformedError(f"node state: expected a map, found {type(value).__name__}")
    try:
        return _node_state_untrusted(tuple(value.items()))
    except TypeError:  # unhashable: a list or a map where a number or octets should be
        raise MalformedError("node state: expected numbers and octets, found a list or a map") from None


@lru_cache(maxsize=STATES_REMEMBERED)
def _node_state_untrusted(items: tuple[tuple[object, object], ...]) -> NodeState:
    fields = Fields(dict(items), "node state")
    state = fields.number(b"State", MemberState.LEFT.value)
    return NodeState(_alive_named_untrusted(fields, b"Name"), MemberState(state))


def endpoint_untrusted(fields: Fields, address: bytes) -> Endpoint:
    """The endpoint in the field named `address` and in `Port`; one nobody can listen on is refused."""
    port = fields.number(b"Port", U16)
    if port == 0:
        raise MalformedError("endpoint: expected a port of 1 to 65535, found 0")
    return Endpoint(host_untrusted(fields.octets(address, 16)), port)


@lru_cache(maxsize=16384)
def host_untrusted(packed: bytes) -> str:
    """The unicast address four or sixteen octets stand for."""
    if len(packed) not in (4, 16):
        raise MalformedError(f"address: expected 4 or 16 octets, found {len(packed)}")
    address = unmap(IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed))
    if address.is_multicast or address.is_unspecified or int(address) == U32:
        raise MalformedError(f"address: expected a unicast address, found {address}")
    return str(address)
