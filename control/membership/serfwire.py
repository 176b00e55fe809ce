"""Serf's messages: what a stock agent puts into memberlist's user messages and push-pulls.

    ┌───┬───┬──────────────────────────────────┐
    │ 8 │ t │ msgpack map, keyed by Go's names │      8 = memberlist's user message, t = Serf's type
    └───┴───┴──────────────────────────────────┘

weft's own messages travel the same way under a type Serf does not use; they go to peers alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from control.membership.member import Endpoint, packed_address
from control.membership.pack import (
    U16,
    U32,
    U64,
    Fields,
    fields_untrusted,
    name_untrusted,
    pack,
    text_untrusted,
    unpack_untrusted,
)
from control.membership.wire import host_untrusted
from overlay.errors import MalformedError, TruncatedError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from control.membership.member import Member

# From Serf: message types
LEAVE, JOIN, PUSH_PULL, USER_EVENT, QUERY, QUERY_RESPONSE, CONFLICT_RESPONSE, KEY_REQUEST, KEY_RESPONSE = (
    range(9)
)
FLAG_ACK, FLAG_NO_BROADCAST = 1, 2
FILTER_NODE, FILTER_TAG = 0, 1
EVENT_OCTETS = 512
QUERY_OCTETS = 1024
MEMBER_ALIVE = 1  # Serf's own member status, in a conflict answer
INTERNAL = "_serf_"
CONFLICT = "_serf_conflict"
INSTALL_KEY, USE_KEY, REMOVE_KEY, LIST_KEYS = (
    "_serf_install-key",
    "_serf_use-key",
    "_serf_remove-key",
    "_serf_list-keys",
)

# Ours
WEFT = 119  # "w": the type of weft's own messages
FILTERS_MAX = 32
FILTER_NAMES_MAX = 1024
MESSAGE_OCTETS = 8192


@dataclass(frozen=True, slots=True)
class Intent:
    """`node` joined, or is about to leave, at this Lamport time."""

    time: int
    node: str
    is_leave: bool
    prune: bool = False


@dataclass(frozen=True, slots=True)
class UserEvent:
    """Somebody's event.  We pass it on and do nothing with it."""

    time: int
    name: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Query:
    """A question to the pool.

    Attributes:
        source: Where the asker says answers go.
        source_node: The asker's name; older agents do not say.
        nodes: The names asked; empty: everybody.
        has_tag_filter: Whether a regular expression on tags decides who is asked.  It is never evaluated.
        timeout: Nanoseconds.
    """

    time: int
    number: int
    source: Endpoint
    source_node: str
    nodes: frozenset[str]
    has_tag_filter: bool
    flags: int
    timeout: int
    name: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class QueryResponse:
    """One member's answer to the query with this time and number."""

    time: int
    number: int
    sender: str
    flags: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class WeftMessage:
    """weft's own, for the core above."""

    body: bytes


@dataclass(frozen=True, slots=True)
class KeyAnswer:
    """One member's answer to a key query."""

    is_done: bool
    message: str = ""
    keys: tuple[str, ...] = ()
    primary_key: str = ""


@dataclass(frozen=True, slots=True)
class SerfState:
    """Serf's part of a push-pull.

    Attributes:
        time: The sender's Lamport clock; events and queries have clocks of their own.
        statuses: Member to the Lamport time of the last intent heard of it.
        left: Members it holds as left.
    """

    time: int
    event_time: int
    query_time: int
    statuses: Mapping[str, int] = field(default_factory=dict)
    left: tuple[str, ...] = ()


SerfMessage = Intent | UserEvent | Query | QueryResponse | WeftMessage


# Writing.  Bodies, without memberlist's type octet in front.


def encode_intent(intent: Intent) -> bytes:
    """A join or leave intent."""
    body: dict[str, object] = {"LTime": intent.time, "Node": intent.node}
    if intent.is_leave:
        return bytes((LEAVE,)) + pack(body | {"Prune": intent.prune})
    return bytes((JOIN,)) + pack(body)


def encode_query(query: Query) -> bytes:
    """A query of ours: to everybody, without filters."""
    body = {
        "LTime": query.time,
        "ID": query.number,
        "Addr": packed_address(query.source.host),
        "Port": query.source.port,
        "SourceNode": query.source_node,
        "Filters": [],
        "Flags": query.flags,
        "RelayFactor": 0,
        "Timeout": query.timeout,
        "Name": query.name,
        "Payload": query.payload,
    }
    return bytes((QUERY,)) + pack(body)


def encode_query_response(response: QueryResponse) -> bytes:
    """An answer, or with `FLAG_ACK` the receipt for a query."""
    body = {
        "LTime": response.time,
        "ID": response.number,
        "From": response.sender,
        "Flags": response.flags,
        "Payload": response.payload,
    }
    return bytes((QUERY_RESPONSE,)) + pack(body)


def encode_conflict_answer(member: Member) -> bytes:
    """Who we hold to have the name in conflict: the asker compares address and port.

    Tags are left out: the answer must stay small beside the question.
    """
    body = {
        "Name": member.name,
        "Addr": packed_address(member.endpoint.host),
        "Port": member.endpoint.port,
        "Tags": {},
        "Status": MEMBER_ALIVE,
    }
    versions = ("ProtocolMin", "ProtocolMax", "ProtocolCur", "DelegateMin", "DelegateMax", "DelegateCur")
    return bytes((CONFLICT_RESPONSE,)) + pack(body | dict(zip(versions, member.versions, strict=True)))


def encode_key_request(key: bytes) -> bytes:
    """The payload of a key query."""
    return bytes((KEY_REQUEST,)) + pack({"Key": key})


def encode_key_answer(answer: KeyAnswer) -> bytes:
    """The payload of the answer to a key query."""
    body = {
        "Result": answer.is_done,
        "Message": answer.message,
        "Keys": list(answer.keys),
        "PrimaryKey": answer.primary_key,
    }
    return bytes((KEY_RESPONSE,)) + pack(body)


def encode_state(state: SerfState) -> bytes:
    """Serf's part of a push-pull, without events: we keep none."""
    body = {
        "LTime": state.time,
        "StatusLTimes": dict(state.statuses),
        "LeftMembers": list(state.left),
        "EventLTime": state.event_time,
        "Events": [],
        "QueryLTime": state.query_time,
    }
    return bytes((PUSH_PULL,)) + pack(body)


def encode_weft(body: bytes) -> bytes:
    """Weft's own message."""
    return bytes((WEFT,)) + body


# Reading.


def parse_serf_untrusted(body: bytes) -> SerfMessage:
    """The message in a user message's body.

    Raises:
        WireError: Not a message that travels there.
    """
    if not body:
        raise TruncatedError("Serf message", expected=1, found=0)
    if len(body) > MESSAGE_OCTETS:
        raise MalformedError(f"Serf message: expected at most {MESSAGE_OCTETS} octets, found {len(body)}")
    kind, rest = body[0], body[1:]
    if kind == WEFT:
        return WeftMessage(rest)
    if kind in (JOIN, LEAVE):
        fields = fields_untrusted(rest, "intent")
        return Intent(
            fields.number(b"LTime", U64), fields.name(b"Node"), kind == LEAVE, fields.truth(b"Prune")
        )
    if kind == USER_EVENT:
        fields = fields_untrusted(rest, "user event")
        return UserEvent(
            fields.number(b"LTime", U64), fields.text(b"Name"), fields.octets(b"Payload", MESSAGE_OCTETS)
        )
    if kind == QUERY:
        return _query_untrusted(fields_untrusted(rest, "query"))
    if kind == QUERY_RESPONSE:
        fields = fields_untrusted(rest, "query response")
        return QueryResponse(
            fields.number(b"LTime", U64),
            fields.number(b"ID", U32),
            fields.name(b"From"),
            fields.number(b"Flags", U32),
            fields.octets(b"Payload", MESSAGE_OCTETS),
        )
    raise UnsupportedError(f"Serf message: expected a type of 0 to 5, found {kind}")


def _query_untrusted(fields: Fields) -> Query:
    nodes: set[str] = set()
    has_tag_filter = False
    filters = fields.items(b"Filters")
    if len(filters) > FILTERS_MAX:
        raise MalformedError(f"query.Filters: expected at most {FILTERS_MAX}, found {len(filters)}")
    for item in filters:
        if type(item) is not bytes or not item:
            raise MalformedError(f"query.Filters: expected octets, found {item!r:.40}")
        if item[0] == FILTER_NODE:
            nodes |= _node_filter_untrusted(item[1:])
        else:
            has_tag_filter = True
    return Query(
        time=fields.number(b"LTime", U64),
        number=fields.number(b"ID", U32),
        source=Endpoint(host_untrusted(fields.octets(b"Addr", 16)), fields.number(b"Port", U16)),
        source_node=fields.text(b"SourceNode"),
        nodes=frozenset(nodes),
        has_tag_filter=has_tag_filter,
        flags=fields.number(b"Flags", U32),
        timeout=fields.number(b"Timeout", U64),
        name=fields.text(b"Name"),
        payload=fields.octets(b"Payload", MESSAGE_OCTETS),
    )


def _node_filter_untrusted(packed: bytes) -> set[str]:
    names = unpack_untrusted(packed, "node filter")
    if not isinstance(names, list) or len(names) > FILTER_NAMES_MAX:
        raise MalformedError(f"node filter: expected up to {FILTER_NAMES_MAX} names, found {names!r:.40}")
    return {text_untrusted(name, "node filter") for name in names}


def parse_key_request_untrusted(payload: bytes) -> bytes:
    """The key in a key query's payload."""
    if payload[:1] != bytes((KEY_REQUEST,)):
        raise MalformedError(f"key request: expected type {KEY_REQUEST}, found {payload[:1]!r}")
    return fields_untrusted(payload[1:], "key request").octets(b"Key", 64)


def parse_key_answer_untrusted(payload: bytes) -> KeyAnswer:
    """A member's answer to our key query."""
    if payload[:1] != bytes((KEY_RESPONSE,)):
        raise MalformedError(f"key answer: expected type {KEY_RESPONSE}, found {payload[:1]!r}")
    fields = fields_untrusted(payload[1:], "key answer")
    keys = tuple(text_untrusted(key, "key answer.Keys") for key in fields.items(b"Keys"))
    return KeyAnswer(fields.truth(b"Result"), fields.text(b"Message"), keys, fields.text(b"PrimaryKey"))


def parse_state_untrusted(state: bytes) -> SerfState:
    """Serf's part of a push-pull.  Its events (512 slots, mostly nil, nested five deep) are not looked at."""
    if state[:1] != bytes((PUSH_PULL,)):
        raise UnsupportedError(f"Serf state: expected type {PUSH_PULL}, found {state[:1]!r}")
    fields = fields_untrusted(state[1:], "Serf state")
    statuses = {}
    for name, time in fields.mapping(b"StatusLTimes").items():
        if type(time) is not int or not 0 <= time <= U64:
            raise MalformedError(f"Serf state.StatusLTimes: expected a Lamport time, found {time!r:.40}")
        statuses[name_untrusted(name, "Serf state.StatusLTimes")] = time
    return SerfState(
        fields.number(b"LTime", U64),
        fields.number(b"EventLTime", U64),
        fields.number(b"QueryLTime", U64),
        statuses,
        tuple(name_untrusted(name, "Serf state.LeftMembers") for name in fields.items(b"LeftMembers")),
    )
