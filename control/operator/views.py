"""What the daemon shows of itself: one frozen view per table, its fields the JSON keys of the contract.

Scripts outside this repository read these keys: a field may be added, none renamed or removed without a
new number behind its schema's name.  Values are as they are printed (an address is text), because a view
is made to leave the process.  `rx` and `tx` follow `ip -s link`: seen from this node's underlay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

Json = dict[str, Any] | list[Any] | str | int | float | bool | None

STATUS = "weft.status/1"
PEERS = "weft.peers/1"
FDB = "weft.fdb/1"
NEIGH = "weft.neigh/1"
FLOWS = "weft.flows/1"
DROPS = "weft.drops/1"
CONFIG = "weft.config/1"
WATCH = "weft.watch/1"
VERSION = "weft.version/1"
ERROR = "weft.error/1"
MEMBERS = "weft.members/1"
JOIN = "weft.join/1"
LEAVE = "weft.leave/1"
KEYS = "weft.keys/1"
LEASES = "weft.leases/1"
RELEASE = "weft.release/1"
ADOPT = "weft.adopt/1"
ROUTES = "weft.routes/1"

_ABSENT = {"absent_when_none": True}


def envelope(schema: str, data: object) -> dict[str, Json]:
    """Every JSON object weft prints or serves: what it is, and the thing itself."""
    return {"schema": schema, "data": plain(data)}


def plain(value: object) -> Any:
    """Views as dictionaries, in the order of their fields; everything else as JSON has it."""
    if is_dataclass(value) and not isinstance(value, type):
        shown = ((each, getattr(value, each.name)) for each in fields(value))
        return {
            each.name: plain(content)
            for each, content in shown
            if content is not None or not each.metadata.get("absent_when_none")
        }
    if isinstance(value, Mapping):
        return {str(key): plain(content) for key, content in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value


@dataclass(frozen=True, slots=True)
class RungsView:
    """The rungs of the offload ladder in use (`plain`, `batch`, `super`), and why these."""

    egress: str
    ingress: str
    reason: str


@dataclass(frozen=True, slots=True)
class UnderlayView:
    """One underlay address; `mtu` in octets."""

    address: str
    device: str
    mtu: int
    rungs: RungsView


@dataclass(frozen=True, slots=True)
class NetworkView:
    """One network; `vni` is None where the format has none."""

    name: str
    mode: str
    encap: str
    vni: int | None
    port: int
    device: str
    mtu: int


@dataclass(frozen=True, slots=True)
class PeerCountsView:
    """Peers by state.  A static peer nothing is known about counts as alive."""

    alive: int
    suspect: int
    dead: int


@dataclass(frozen=True, slots=True)
class RatesView:
    """Traffic over the last seconds: frames, octets and drops a second."""

    egress_frames_s: float = 0.0
    egress_octets_s: float = 0.0
    ingress_frames_s: float = 0.0
    ingress_octets_s: float = 0.0
    drops_s: float = 0.0


@dataclass(frozen=True, slots=True)
class HealthView:
    """Something that is not as it should be, and the command or change that mends it."""

    problem: str
    fix: str


@dataclass(frozen=True, slots=True)
class GossipView:
    """The pool as this node sees it.

    Attributes:
        address: Where the others find us.
        members: Alive, this node included, peers and stock agents alike.
        health: Lifeguard's local health score: 0 is well, 7 the worst.
        has_left: After `weft leave`; the rest is then as it was last.
        refused: Reason → how often something was said to us that had no effect, without the zeros.
        records: Held, of every node that has said something of itself.
        records_refused: As `refused`, of what was said about records.
    """

    address: str
    encrypted: bool
    members: int
    health: int
    has_left: bool
    refused: Mapping[str, int] = field(default_factory=dict)
    records: int = 0
    records_refused: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MemberView:
    """weft.members/1.  `state` is alive, suspect, dead or left; `tags` are Serf's."""

    name: str
    address: str
    state: str
    incarnation: int
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class KeysView:
    """weft.keys/1: what the pool answered to a step of a key rotation.

    Attributes:
        members: How many were asked.
        responses: How many answered in time.
        errors: Who refused or failed, and why.
        keys: Base64 key → how many hold it (list only); `primary_keys`: how many encrypt with it.
    """

    members: int
    responses: int
    errors: Mapping[str, str]
    keys: Mapping[str, int]
    primary_keys: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class StatusView:
    """weft.status/1.  `engine_reason` says why this engine was chosen."""

    node: str
    version: str
    engine: str
    engine_reason: str
    underlays: tuple[UnderlayView, ...]
    networks: tuple[NetworkView, ...]
    peers: PeerCountsView
    uptime_s: float
    rates: RatesView = RatesView()
    health: tuple[HealthView, ...] = ()
    gossip: GossipView | None = field(default=None, metadata=_ABSENT)


@dataclass(frozen=True, slots=True)
class PeerView:
    """weft.peers/1.

    Attributes:
        underlay: The VTEP, `address:port`.
        state: alive, suspect, dead or left.
        drops: Reason → how many frames to or from it were dropped, without the zeros.
    """

    name: str
    underlay: str
    state: str
    networks: tuple[str, ...]
    rx_octets: int
    tx_octets: int
    drops: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FdbView:
    """weft.fdb/1, with the keys and the words of `bridge -j fdb`.

    Attributes:
        port: Only where it is not the network's, as the kernel does it.
        state: `permanent` or `static` for what does not age, empty for what was learned.
        flags: `self`, and `extern_learn` for what control has set.
    """

    mac: str
    dst: str
    vni: int | None = field(metadata=_ABSENT)
    ifname: str
    state: str = ""
    flags: tuple[str, ...] = ("self",)
    port: int | None = field(default=None, metadata=_ABSENT)


@dataclass(frozen=True, slots=True)
class NeighView:
    """weft.neigh/1.  `state` is `REACHABLE` for what was learned, else `PERMANENT`, as in `ip neigh`."""

    ip: str
    mac: str
    dev: str
    state: str


@dataclass(frozen=True, slots=True)
class RouteView:
    """weft.routes/1: behind which node a subnet is.

    Attributes:
        vtep: Its node's, None for this one's own.
        via: The next hop the kernel is told, None where it is told none.
        mac: That hop's.
        state: `local` for our own, `static` or `control` by who says so.
    """

    network: str
    subnet: str
    vtep: str | None
    via: str | None
    mac: str | None
    dev: str
    state: str


@dataclass(frozen=True, slots=True)
class FlowView:
    """weft.flows/1: a verdict that is remembered.  `direction` is egress or ingress.

    Of bare packets `src` and `dst` are subnets, "" where any other will do as well.

    Attributes:
        verdict: In words: `deliver`, `encapsulate 192.0.2.2`, `replicate`, `drop UNKNOWN_VTEP`.
        idle_s: Seconds since it last served.
    """

    network: str
    direction: str
    src: str
    dst: str
    verdict: str
    frames: int
    octets: int
    idle_s: float


@dataclass(frozen=True, slots=True)
class TrafficView:
    """One network's totals since the start, for /metrics; drops are in `Introspection.drops`.

    `fdb_refused`: how often a MAC was not learned because the FDB was full.
    """

    network: str
    egress_frames: int
    egress_octets: int
    ingress_frames: int
    ingress_octets: int
    fdb_entries: int
    flows: int
    fdb_refused: int = 0


@dataclass(frozen=True, slots=True)
class LeaseView:
    """weft.leases/1: whose a subnet is.

    Attributes:
        state: `held`; `granted`, and not taken up yet; `released`; `static`, by configuration.
    """

    network: str
    subnet: str
    node: str
    state: str


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """weft.watch/1: something that just happened.

    Attributes:
        at: Seconds since 1970.
        kind: `drop`, `learn`, `age`, `peer`, `rung`, `config`.
        network: None for what concerns the whole node.
        text: One line for a person.
        detail: The same for a program.
    """

    at: float
    kind: str
    network: str | None
    text: str
    detail: Mapping[str, str | int | float] = field(default_factory=dict)
