"""What a pool knows of one member.

A member is keyed by its name; its endpoint, tags and state are what it, or somebody, last said of it under
a numbered incarnation.  Values only: `roster.Roster` holds them, `swim.Swim` decides when they change.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple

from control.membership.tags import is_peer_meta


class Endpoint(NamedTuple):
    """Where a member listens, UDP and TCP alike.  A plain pair, for it is hashed with every datagram."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@lru_cache(maxsize=16384)
def packed_address(host: str) -> bytes:
    """The four or sixteen octets of the address, v4-mapped ones as four."""
    address = ip_address(host)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).packed


class MemberState(Enum):
    """A member's state; the values are memberlist's on the wire."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2
    LEFT = 3


def state_word(state: MemberState) -> str:
    """`alive`, `suspect`, `dead` or `left`, as operators read it."""
    return state.name.lower()


GONE = (MemberState.DEAD, MemberState.LEFT)

# Protocol minimum, maximum, current; delegate minimum, maximum, current.  A delegate maximum below 5, or
# zeros, makes a stock agent refuse our push-pull; a protocol maximum of 5 obliges us to TCP ping, nack, CRC.
VERSIONS = bytes((1, 5, 2, 2, 5, 5))
PROTOCOL_MAX = 1  # index into the versions
TCP_PING_SINCE, NACK_SINCE, CRC_SINCE = 3, 4, 5


@dataclass(frozen=True, slots=True)
class Member:
    """One member as we know it.

    Attributes:
        meta: Serf's tags, encoded as they came (`tags.parse_tags_untrusted`).
        versions: Six octets, see `VERSIONS`.
        changed_at: When the state last changed, by our own monotonic clock.
    """

    name: str
    endpoint: Endpoint
    incarnation: int
    state: MemberState
    meta: bytes
    versions: bytes
    changed_at: float

    @property
    def is_here(self) -> bool:
        """Whether it is believed to run: alive, or suspected and not yet given up."""
        return self.state is MemberState.ALIVE or self.state is MemberState.SUSPECT

    @property
    def is_peer(self) -> bool:
        """Whether it carries weft's tags: weft's own messages go to peers alone."""
        return is_peer_meta(self.meta)

    def speaks(self, protocol: int) -> bool:
        """Whether it understands what memberlist added with this protocol version."""
        return self.versions[PROTOCOL_MAX] >= protocol
