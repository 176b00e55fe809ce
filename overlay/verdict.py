"""What can become of a frame: five verdicts, and a name for every way to lose one.

    Deliver          to the network's own device
    Encapsulate      to one VTEP                    (known unicast)
    Replicate        to every VTEP of a group       (BUM: broadcast, unknown unicast, multicast)
    Reply            answered on the spot; the frame goes no further
    Drop             with its reason

A `Decision` is a verdict with what an engine needs to remember it: under which key, until when, and
upon which table entries it rests (found or not found: an entry that appears changes the verdict too).
Verdicts name VTEPs and flood groups by id, so a route or a member may change without touching them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, NewType

if TYPE_CHECKING:
    from overlay.addr import NetworkId, VtepId
    from overlay.tables import TableDelta


class Direction(Enum):
    """Egress = device → underlay.  Ingress = underlay → device."""

    EGRESS = "egress"
    INGRESS = "ingress"


class DropReason(Enum):
    """Why a frame went no further.  One counter each, per network and (where known) per VTEP.

    The value is the sentence the operator reads; the directions in which it occurs are in brackets.
    """

    # At the door, before anything is decided.
    TRUNCATED = "the datagram ends before the frame it announces begins [ingress]"
    BAD_FLAGS = "the VXLAN header's I flag is clear: no valid VNI [ingress]"
    RESERVED_BITS = "reserved VXLAN bits are set and strictness is linux [ingress]"
    UNKNOWN_VNI = "no network here has this VNI on this port [ingress]"
    UNKNOWN_VTEP = "the sender is not a VTEP of this network [ingress]"
    INNER_MALFORMED = "the frame's own headers contradict themselves, or its source is no station's [both]"

    # Decided.
    SPLIT_HORIZON = "from the tunnel for a place behind the tunnel: it must not go back [ingress]"
    OWN_MAC = "from the tunnel with the source address of our own device: a loop or a clone [ingress]"
    SPOOFED_SOURCE = (
        "the source MAC, or its subnet, is pinned to another place by the operator or control [both]"
    )
    LINK_LOCAL = "a reserved group 01:80:c2:00:00:0x that bridges do not forward [both]"
    UNKNOWN_UNICAST = "the destination is unknown and flooding is off [egress]"
    NO_VTEP = "there is no VTEP to send to [egress]"
    NO_ROUTE = "its destination is in no subnet of the network [egress]"

    # Carrying.
    TTL_EXPIRED = "its time to live is over, which is routed networks' to count down [both]"
    MTU_EXCEEDED = "longer than the path to the VTEP carries [egress]"
    UNDERLAY_ERROR = "the underlay refused it: no route, nobody there, or a rule against it [egress]"
    UNDERLAY_FULL = "the underlay socket's send buffer is full [egress]"
    ECN_CONGESTED = "marked congested on the underlay, and its sender does not heed marks [ingress]"
    DEVICE_FULL = "the device could not take it: down, gone, or out of memory [ingress]"
    RECEIVE_OVERRUN = "the kernel dropped it: the underlay socket's receive buffer was full [ingress]"
    DEVICE_OVERRUN = "the kernel dropped it: the device's queue towards us was full [egress]"

    # Limits.
    UPCALL_LIMIT = "its source asks for more decisions than its share [both]"
    UPCALL_OVERFLOW = "too many frames of one flow waited for its verdict [both]"
    UPCALL_TIMEOUT = "the verdict did not come within a second [both]"
    BUM_LIMIT = "more broadcast copies than the network's share [egress]"


class Table(Enum):
    """Which table a `TableKey` points into."""

    FDB = "fdb"
    NEIGHBOR = "neighbor"
    VTEP = "vtep"
    FLOOD = "flood"
    ROUTE = "route"


class TableKey(NamedTuple):
    """One place in the tables a decision may rest upon, whether or not an entry stands there.

    `key` is the MAC of an FDB entry, the packed IP of a neighbor, the text of a VTEP's address, a route's
    subnet as `overlay.route.subnet_key` packs it, empty for the flood list.
    """

    table: Table
    network: NetworkId
    key: bytes


FloodGroupId = NewType("FloodGroupId", int)
EVERY_VTEP = FloodGroupId(0)
"""The network's one flood list: head-end replication to all its VTEPs."""


@dataclass(frozen=True, slots=True)
class Deliver:
    """To the network's own device."""


@dataclass(frozen=True, slots=True)
class Encapsulate:
    """To one VTEP."""

    vtep: VtepId


@dataclass(frozen=True, slots=True)
class Replicate:
    """A copy to every VTEP of the group (head-end replication)."""

    group: FloodGroupId


@dataclass(frozen=True, slots=True)
class Reply:
    """This answer goes back to where the frame came from; the frame itself ends here."""

    frame: bytes


@dataclass(frozen=True, slots=True)
class Drop:
    """Nowhere, for this reason."""

    reason: DropReason


Verdict = Deliver | Encapsulate | Replicate | Reply | Drop


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict, and what remembering it needs.

    Attributes:
        verdict: What becomes of the frame.
        key: The flow this verdict holds for, or None: true of this one frame only.
        delta: What the decision teaches the tables, for the caller to apply, or None.
        rests_on: Every table place looked up on the way.  A change to any of them ends the verdict.
        expires_at: Absolute monotonic seconds, for a verdict made under a limit; None: no own end.
    """

    verdict: Verdict
    key: bytes | None
    delta: TableDelta | None = None
    rests_on: tuple[TableKey, ...] = ()
    expires_at: float | None = None
