"""How the pool steers the tunnel: what we say of ourselves, and what follows from what the others say.

    flows, addresses ─▶ our record ─▶ pool          pool ─▶ nodes that count ─▶ desired ─▶ reconcile

A node that is suspected still counts; one that died does for a while longer, for it may only be slow; one
that left does not.  What is decided here is when; what, is `control.intent`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from control.intent.desired import BRIDGE, DesiredTables, NetworkIntent, Node, Ours, OwnPart, claimed, survey
from control.intent.localmacs import LOCAL_MACS_MAX, LocalMacs
from control.intent.own import Routed, own_networks
from control.intent.shared import Trouble
from control.membership.member import MemberState
from control.membership.tags import identity_of
from overlay.addr import IpAddress, Mac, NetworkId, format_mac, is_station
from overlay.verdict import Direction
from tunnel.interfaces import FlowStatistics

if TYPE_CHECKING:
    from control.membership.member import Member
    from control.membership.peer import Peer
    from control.membership.recordbody import LeaseWord, NetworkRecord

# Ours
HOLD_DOWN_SECONDS = 3.0  # between a death and what follows from it
FLOWS_PER_LOOK = 4096  # flows whose sources are read at once; the next look goes on from there
MAC_PAIR = 12  # octets of a bridged flow's key: destination and source

HELD = (MemberState.ALIVE, MemberState.SUSPECT)


def nodes_that_count(core: Peer, *, now: float) -> tuple[Node, ...]:
    """The peers whose word is acted upon, ourselves left out."""
    own = core.ourselves.name
    return tuple(
        Node(member.name, record.networks)
        for member in core.members
        if member.name != own
        and member.is_peer
        and is_held(member, now=now)
        and (record := core.records.lookup(member.name)) is not None
        and record.key.weft_id == identity_of(member.meta)[0]
    )


def is_held(member: Member, *, now: float) -> bool:
    """Whether what a member says is acted upon."""
    if member.state in HELD:
        return True
    return member.state is MemberState.DEAD and now - member.changed_at < HOLD_DOWN_SECONDS


@dataclass(frozen=True, slots=True)
class Scene:
    """What a survey looks at: nothing of it changes any more."""

    networks: tuple[NetworkIntent, ...]
    nodes: tuple[Node, ...]
    ours: Ours


@dataclass(frozen=True, slots=True)
class Found:
    """What it finds.

    Attributes:
        elsewhere: By network, which MACs other nodes claim, and by which sequence.
    """

    nodes: tuple[Node, ...]
    tables: DesiredTables
    troubles: tuple[Trouble, ...]
    elsewhere: Mapping[NetworkId, Mapping[Mac, int]]


def survey_of(scene: Scene) -> Found:
    """Surveys the scene.  Of a thousand nodes this takes a tenth of a second: not on the loop."""
    tables, troubles = survey(scene.networks, scene.nodes, scene.ours)
    elsewhere = {network.id: claimed(network, scene.nodes) for network in scene.networks}
    return Found(scene.nodes, tables, tuple(troubles), elsewhere)


class Steering:
    """One daemon's view of what the pool wants of its tables.

    Attributes:
        troubles: What the nodes disagree about, as of the last look.
        nodes: Those that counted then.
        leases: What we say of the leases of a network.
    """

    def __init__(self, underlays: Sequence[IpAddress]) -> None:
        self.troubles: tuple[Trouble, ...] = ()
        self.nodes: tuple[Node, ...] = ()
        self.leases: dict[NetworkId, LeaseWord] = {}
        self._underlays = tuple(underlays)
        self._macs: dict[NetworkId, LocalMacs] = {}
        self._addresses: dict[NetworkId, tuple[IpAddress, ...]] = {}
        self._devices: dict[NetworkId, Mac] = {}
        self._elsewhere: Mapping[NetworkId, Mapping[Mac, int]] = {}
        self._flows: Iterator[FlowStatistics] = iter(())

    def serve(
        self, network: NetworkIntent, device: Mac, addresses: Iterable[IpAddress], *, ageing: float
    ) -> None:
        """A network of ours has this device now, with these addresses on it."""
        if self._devices.get(network.id) != device:
            self._devices[network.id] = device
            self._macs[network.id] = LocalMacs(device, ageing=ageing)
        self._addresses[network.id] = tuple(sorted(addresses, key=lambda each: (each.version, each)))

    def look(
        self, networks: Sequence[NetworkIntent], nodes: tuple[Node, ...], *, now: float
    ) -> DesiredTables:
        """What the tables must hold, with these nodes counting; notes what they disagree about.

        Args:
            networks: All of them: which of them another node means follows from all.
        """
        return self.note(survey_of(self.scene(networks, nodes, now=now)), now=now)

    def scene(self, networks: Sequence[NetworkIntent], nodes: tuple[Node, ...], *, now: float) -> Scene:
        """All that `survey_of` needs, for a thread to work on while the loop turns."""
        return Scene(tuple(networks), nodes, self._ours_now(networks, now=now))

    def note(self, found: Found, *, now: float) -> DesiredTables:
        """Takes note of what was found."""
        self.nodes, self._elsewhere = found.nodes, found.elsewhere
        twice = (
            Trouble(
                f"{format_mac(mac)} is behind this node and behind another, in network {network}",
                "find the second one: weft fdb, weft watch; or a bridge loop",
            )
            for network, macs in self._macs.items()
            for mac in macs.doubles(now=now)
        )
        crowded = (
            Trouble(
                f"more than {LOCAL_MACS_MAX} MACs are behind this node in network {network}: some are untold",
                "the others learn the rest from its frames: divide the segment",
            )
            for network, macs in self._macs.items()
            if macs.is_full
        )
        self.troubles = (*found.troubles, *twice, *crowded)
        return found.tables

    def own(self, networks: Sequence[NetworkIntent], *, now: float) -> tuple[NetworkRecord, ...]:
        """What we say of ourselves."""
        routed = {
            network.id: Routed(
                () if network.subnet is None else (network.subnet,), self.leases.get(network.id)
            )
            for network in networks
            if network.mode != BRIDGE
        }
        return own_networks(networks, self._ours_now(networks, now=now), routed)

    def see(self, flows: Iterable[FlowStatistics], networks: Sequence[NetworkIntent], *, now: float) -> None:
        """Notes who sent something through our devices, of a slice of the flows; the rest is next time's."""
        looked = list(islice(self._flows, FLOWS_PER_LOOK))
        if len(looked) < FLOWS_PER_LOOK:
            self._flows = iter(flows)
            looked += islice(self._flows, FLOWS_PER_LOOK - len(looked))
        seen: dict[NetworkId, dict[Mac, float]] = {network.id: {} for network in networks}
        for flow in looked:
            mac, last = Mac(flow.key[6:12]), seen.get(flow.network)
            is_bridged = flow.direction is Direction.EGRESS and len(flow.key) == MAC_PAIR
            if last is not None and is_bridged and is_station(mac):
                last[mac] = max(flow.used_at, last.get(mac, flow.used_at))
        for network in networks:
            if (macs := self._macs.get(network.id)) is not None:
                macs.see(seen[network.id], self._elsewhere.get(network.id, {}), now=now)
                macs.forget(now=now)

    def _ours_now(self, networks: Sequence[NetworkIntent], *, now: float) -> Ours:
        return Ours(self._underlays, {each.id: self._part(each, now=now) for each in networks})

    def _part(self, network: NetworkIntent, *, now: float) -> OwnPart:
        leases = self.leases.get(network.id)
        pool_id = leases.pool_id if leases is not None else b""
        macs = self._macs.get(network.id)
        if macs is None:
            return OwnPart(pool_id=pool_id)
        device = self._devices[network.id]
        claims = macs.claims(self._elsewhere.get(network.id, {}), now=now)
        return OwnPart(claims, tuple((each, device) for each in self._addresses[network.id]), pool_id)


def next_release(members: Iterable[Member], *, now: float) -> float | None:
    """When the next of the dead no longer counts; None: there is none to wait for."""
    waiting = [
        member.changed_at + HOLD_DOWN_SECONDS
        for member in members
        if member.state is MemberState.DEAD and is_held(member, now=now)
    ]
    return min(waiting, default=None)
