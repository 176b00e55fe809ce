"""What the daemon tells about itself: engine, tables and configuration turned into views.

Nothing is kept for the views but the rates; they are made when somebody asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Container, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from control.loop_lag import LagWatch, LoopLag
from control.membership.events import Refusal
from control.membership.member import Member, state_word
from control.membership.records import Refused
from control.mistakes import FullFdb, Mistakes
from control.network import ServedNetwork
from control.operator.schema import Config
from control.operator.views import (
    FdbView,
    FlowView,
    GossipView,
    HealthView,
    LeaseView,
    MemberView,
    NeighView,
    NetworkView,
    PeerCountsView,
    PeerView,
    RatesView,
    RouteView,
    RungsView,
    StatusView,
    TrafficView,
    UnderlayView,
    WatchEvent,
)
from control.watching import Clock, Events
from overlay.addr import NetworkId, Vtep, VtepId, format_mac
from overlay.fdb import Origin
from overlay.route import KEY_LENGTH, Route
from overlay.tables import Tables
from overlay.verdict import (
    Deliver,
    Drop,
    DropReason,
    Encapsulate,
    Replicate,
    Reply,
    Verdict,
)
from tunnel.counters import joined
from tunnel.datapath import Choice
from tunnel.interfaces import Datapath, DatapathStatistics, FlowStatistics, VtepStatistics
from tunnel.underlay import UdpUnderlay

if TYPE_CHECKING:
    from control.pool import Pool
    from control.steering import Steering

MAC_PAIR = 12  # octets of a bridged flow's key
ELSEWHERE = NetworkId("")  # drops that belong to no network


@dataclass(frozen=True, slots=True)
class Parts:
    """What a daemon is made of, as far as it is shown.  `pool` is None with static peers only."""

    version: str
    engine: Choice
    tables: Tables
    datapath: Datapath
    networks: Mapping[NetworkId, ServedNetwork]
    underlays: tuple[UdpUnderlay, ...]
    pool: Pool | None
    clock: Clock
    steering: Steering | None = None
    lag: LagWatch | None = None


class Introspector:
    """One daemon, seen from outside: `control.operator.api.Introspection`."""

    def __init__(self, config: Config, parts: Parts, events: Events) -> None:
        self.ready = False
        self.missing_underlays: set[UdpUnderlay] = set()
        self._config = config
        self._parts = parts
        self._events = events
        self._started_at = parts.clock()
        self._rates = Rates(parts.clock())
        self._mistakes = Mistakes()

    def use_config(self, config: Config) -> None:
        """Shows this one from now on."""
        self._config = config
        self._events.publish("config", None, "configuration reloaded")

    def tick(self, *, now: float) -> None:
        """Once a second: what the rates are made of."""
        self._rates.sample(self._parts.datapath.statistics(), now=now)
        self._note_mistakes(now=now)

    # ── The views ───────────────────────────────────────────────────────────────────────────────────────

    def status(self) -> StatusView:
        peers = self.peers()
        return StatusView(
            node=self._config.node.name,
            version=self._parts.version,
            engine=self._parts.engine.kind,
            engine_reason=self._parts.engine.reason,
            underlays=tuple(self._underlay(underlay) for underlay in self._parts.underlays),
            networks=tuple(_network(network) for network in self._parts.networks.values()),
            peers=PeerCountsView(
                alive=sum(peer.state == "alive" for peer in peers),
                suspect=sum(peer.state == "suspect" for peer in peers),
                dead=sum(peer.state == "dead" for peer in peers),
            ),
            gossip=self._gossip(),
            uptime_s=round(self._parts.clock() - self._started_at, 3),
            rates=self._rates.view,
            health=tuple(self.ailments()),
        )

    def peers(self) -> list[PeerView]:
        """Static VTEPs and the pool's peers, each once; of a static one nothing worse than alive is known."""
        exchanged = {(each.network, each.vtep): each for each in self._parts.datapath.statistics().vteps}
        ports: dict[VtepId, Vtep] = {}  # a host may serve two networks on two ports: the first is shown
        shares: dict[VtepId, list[VtepStatistics]] = {}
        for network in self._parts.networks:
            for vtep in self._parts.tables[network].vteps.values():
                ports.setdefault(vtep.address, vtep)
                shares.setdefault(vtep.address, []).append(exchanged[network, vtep.address])
        peers = {str(address): _static_peer(ports[address], share) for address, share in shares.items()}
        for member in self._pool_peers():
            address = self._vtep_of(member, peers)
            known = peers.get(address) or PeerView(member.name, address, "", (), 0, 0)
            peers[address] = replace(known, name=member.name, state=state_word(member.state))
        return list(peers.values())

    def _vtep_of(self, member: Member, vteps: Container[str]) -> str:
        """The VTEP we have of a peer, by what it says; else where it gossips."""
        said = self._parts.pool.vteps_of(member.name) if self._parts.pool is not None else ()
        return next((str(address) for address in said if str(address) in vteps), member.endpoint.host)

    def _pool_peers(self) -> list[Member]:
        """The pool's members with weft's tags, this node left out."""
        pool = self._parts.pool
        if pool is None:
            return []
        own = pool.core.ourselves.name
        return [member for member in pool.members if member.is_peer and member.name != own]

    def members(self) -> list[MemberView]:
        pool = self._parts.pool
        if pool is None:
            return []
        return [
            MemberView(
                name=member.name,
                address=str(member.endpoint),
                state=state_word(member.state),
                incarnation=member.incarnation,
                tags=dict(pool.core.tags(member.name)),
            )
            for member in pool.members
        ]

    def _gossip(self) -> GossipView | None:
        pool = self._parts.pool
        if pool is None:
            return None
        statistics, records = pool.core.statistics(), pool.record_counts()
        return GossipView(
            address=str(pool.core.ourselves.endpoint),
            encrypted=pool.is_encrypted,
            members=statistics.alive,
            health=statistics.health,
            has_left=pool.has_left,
            refused={
                reason.name: statistics.refused[reason] for reason in Refusal if reason in statistics.refused
            },
            records=records.records,
            records_refused={
                reason.name: records.refused[reason] for reason in Refused if reason in records.refused
            },
        )

    def fdb(self) -> list[FdbView]:
        """Floods first, as all-zero MACs, the way `bridge fdb` shows them; then what is bound."""
        shown = []
        for network in self._parts.networks.values():
            tables = self._parts.tables[network.id]
            shown += [
                _fdb_view(network, tables.vteps[vtep], "00:00:00:00:00:00", "permanent")
                for vtep in tables.flood.vteps()
            ]
            for entry in tables.fdb.entries():
                state, flags = _FDB_WORDS[entry.origin]
                shown.append(
                    _fdb_view(network, tables.vteps[entry.vtep], format_mac(entry.mac), state, flags)
                )
        return shown

    def neighbors(self) -> list[NeighView]:
        return [
            NeighView(
                ip=str(entry.address),
                mac=format_mac(entry.mac),
                dev=network.config.device,
                state="REACHABLE" if entry.origin is Origin.LEARNED else "PERMANENT",
            )
            for network in self._parts.networks.values()
            for entry in self._parts.tables[network.id].neighbors.entries()
        ]

    def routes(self) -> list[RouteView]:
        """Our own subnet first, as it is programmed."""
        return [
            self._route(network, route)
            for network in self._parts.networks.values()
            for route in self._parts.tables[network.id].routes.routes()
        ]

    def _route(self, network: ServedNetwork, route: Route) -> RouteView:
        tables = self._parts.tables[network.id]
        hop = tables.neighbors.lookup(route.subnet.network_address)
        return RouteView(
            network=network.id,
            subnet=str(route.subnet),
            vtep=None if route.vtep is None else str(route.vtep),
            via=None if hop is None else str(hop.address),
            mac=None if hop is None else format_mac(hop.mac),
            dev=network.config.device,
            state="local" if route.vtep is None else route.origin.value,
        )

    def leases(self) -> list[LeaseView]:
        """Every subnet anybody has, static ones of networks without founders left out."""
        return self._parts.pool.leases() if self._parts.pool is not None else []

    def flows(self) -> list[FlowView]:
        now = self._parts.clock()
        return [
            FlowView(
                network=flow.network,
                direction=flow.direction.value,
                src=self._ends(flow)[0],
                dst=self._ends(flow)[1],
                verdict=_in_words(flow.verdict),
                frames=flow.frames,
                octets=flow.octets,
                idle_s=round(max(0.0, now - flow.used_at), 3),
            )
            for flow in joined(self._parts.datapath.flows())
        ]

    def _ends(self, flow: FlowStatistics) -> tuple[str, str]:
        """From where to where, as the flow's key has it."""
        if len(flow.key) == MAC_PAIR:
            return format_mac(flow.key[6:12]), format_mac(flow.key[0:6])
        routes = self._parts.tables[flow.network].routes
        known = [routes.route(flow.key[at : at + KEY_LENGTH]) for at in range(0, len(flow.key), KEY_LENGTH)]
        *source, destination = ("" if route is None else str(route.subnet) for route in known)
        return "".join(source), destination

    def traffic(self) -> list[TrafficView]:
        statistics = self._parts.datapath.statistics()
        vteps = statistics.vteps
        return [
            TrafficView(
                network=network,
                egress_frames=sum(each.sent_frames for each in vteps if each.network == network),
                egress_octets=sum(each.sent_octets for each in vteps if each.network == network),
                ingress_frames=sum(each.received_frames for each in vteps if each.network == network),
                ingress_octets=sum(each.received_octets for each in vteps if each.network == network),
                fdb_entries=len(self._parts.tables[network].fdb),
                flows=statistics.flows[network],
                fdb_refused=self._parts.tables[network].fdb.refused,
            )
            for network in self._parts.networks
        ]

    def drops(self) -> dict[NetworkId, dict[DropReason, int]]:
        counted = self._parts.datapath.statistics().drops
        return {ELSEWHERE if network is None else network: dict(each) for network, each in counted.items()}

    def config(self) -> Config:
        return self._config

    def loop_lag(self) -> LoopLag:
        return self._parts.lag.lag() if self._parts.lag is not None else LoopLag()

    def is_live(self) -> bool:
        """The loop turned to answer this."""
        return True

    def is_ready(self) -> bool:
        networks = self._parts.networks
        is_whole = len(networks) == len(self._config.networks)  # one that waits for its lease is not there
        return self.ready and is_whole and all(network.problem is None for network in networks.values())

    def watch(self) -> AsyncGenerator[WatchEvent, None]:
        return self._events.subscribe()

    # ── Health ──────────────────────────────────────────────────────────────────────────────────────────

    def ailments(self) -> Iterator[HealthView]:
        """What is not as it should be, each with what mends it."""
        for network in self._parts.networks.values():
            if network.problem is not None:
                yield HealthView(str(network.problem), network.problem.advice or "weft retries by itself")
            if (unwritten := network.unwritten) is not None:
                yield HealthView(f"not on disk: {unwritten}", unwritten.advice)
            if not self._parts.tables[network.id].vteps and not self._is_unreached:
                yield HealthView(f"network {network.id} has no peers", self._way_to_peers(network.id))
        for underlay in self.missing_underlays:
            yield HealthView(
                f"underlay address {underlay.address} is gone", f"ip addr add {underlay.address}/… dev …"
            )
        if self._parts.steering is not None:
            for trouble in self._parts.steering.troubles:
                yield HealthView(trouble.problem, trouble.fix)
        yield from self._pool_ailments()
        now = self._parts.clock()
        self._note_mistakes(now=now)
        yield from self._mistakes.ailments(now=now)

    @property
    def _is_unreached(self) -> bool:
        """Whether the pool is yet to be found, which is told once instead of for every network."""
        return self._parts.pool is not None and self._parts.pool.unreached is not None

    def _way_to_peers(self, network: NetworkId) -> str:
        static = f'peers = ["…"] under [[network]] {network}'
        pool = self._parts.pool
        if pool is None or pool.has_left:
            return static
        return f"weft run --join {pool.core.ourselves.endpoint} on another node, or {static}"

    def _pool_ailments(self) -> Iterator[HealthView]:
        pool = self._parts.pool
        if pool is None:
            return
        if (unreached := pool.unreached) is not None:
            yield HealthView(unreached.problem, unreached.fix)
        for text in pool.conflicts:
            yield HealthView(f"name conflict: {text}", "give every node its own `name`")
        for unwritten in pool.unwritten:
            yield HealthView(f"not on disk: {unwritten}", unwritten.advice)
        for trouble in pool.lease_troubles():
            yield HealthView(trouble.problem, trouble.fix)
        for text in pool.unsaid:
            yield HealthView(
                f"the others do not hear what is so here: {text}",
                "have another node be the founder of some of its networks",
            )
        for text in pool.doubled:
            yield HealthView(
                f"{text}: a copied disk, or one that was set back",
                "stop the copy, or move its state_dir away so that it is another node; restart this one",
            )
        for name in pool.blocked:
            port = pool.core.ourselves.endpoint.port
            yield HealthView(f"{name} answers over TCP and not over UDP", f"open UDP port {port} towards it")
        statistics = pool.core.statistics()
        if statistics.health > 2:
            yield HealthView(
                f"this node answers gossip slowly (health score {statistics.health} of 7)",
                "it is starved of CPU, or its network loses much",
            )
        if strange := statistics.refused.get(Refusal.WRONG_KEY):
            text = f"{strange} gossip messages refused: {Refusal.WRONG_KEY.value}"
            yield HealthView(text, "weft keys list, here and there: a node with other keys, or a stranger")

        records = pool.record_counts()
        for why, whose in records.blamed.items():
            text = f"{records.refused[why]} records refused, the last of {whose}: {why.value}"
            yield HealthView(
                text, f"look after {whose}: nothing of that is used; is its weft another version?"
            )

    def _note_mistakes(self, *, now: float) -> None:
        networks = self._parts.networks.values()
        fdbs = [
            FullFdb(each.id, each.config.fdb_max, self._parts.tables[each.id].fdb.refused)
            for each in networks
        ]
        self._mistakes.note(self.drops().values(), fdbs, now=now)

    @staticmethod
    def _underlay(underlay: UdpUnderlay) -> UnderlayView:
        ladder = underlay.ladder
        return UnderlayView(
            address=str(underlay.address),
            device=underlay.device,
            mtu=underlay.mtu,
            rungs=RungsView(egress=ladder.egress(), ingress=ladder.ingress(), reason=ladder.explain()),
        )


_FDB_WORDS: dict[Origin, tuple[str, tuple[str, ...]]] = {
    Origin.LEARNED: ("", ("self",)),
    Origin.CONTROL: ("", ("extern_learn", "self")),
    Origin.STATIC: ("permanent", ("self",)),
}


def _static_peer(vtep: Vtep, shares: list[VtepStatistics]) -> PeerView:
    drops: Counter[DropReason] = Counter()
    for each in shares:
        drops.update(each.drops)
    return PeerView(
        name=str(vtep.address),
        underlay=str(vtep),
        state="alive",
        networks=tuple(each.network for each in shares),
        rx_octets=sum(each.received_octets for each in shares),
        tx_octets=sum(each.sent_octets for each in shares),
        drops={reason.name: drops[reason] for reason in DropReason if drops[reason]},
    )


def _network(network: ServedNetwork) -> NetworkView:
    config = network.config
    return NetworkView(
        name=config.name,
        mode=config.mode.value,
        encap=config.encap.value,
        vni=config.vni,
        port=config.port,
        device=config.device,
        mtu=network.mtu,
    )


def _fdb_view(
    network: ServedNetwork, vtep: Vtep, mac: str, state: str, flags: tuple[str, ...] = ("self",)
) -> FdbView:
    return FdbView(
        mac=mac,
        dst=str(vtep.address),
        vni=network.config.vni,
        ifname=network.config.device,
        state=state,
        flags=flags,
        port=None if vtep.port == network.config.port else vtep.port,
    )


def _in_words(verdict: Verdict) -> str:
    match verdict:
        case Deliver():
            return "deliver"
        case Encapsulate(vtep):
            return f"encapsulate {vtep}"
        case Replicate():
            return "replicate"
        case Reply():
            return "reply"
        case Drop(reason):
            return f"drop {reason.name}"


class Rates:
    """Traffic a second, over the time between two samples."""

    def __init__(self, now: float) -> None:
        self.view = RatesView()
        self._sampled_at = now
        self._totals = (0, 0, 0, 0, 0)

    def sample(self, statistics: DatapathStatistics, *, now: float) -> None:
        """Takes the totals; the view is what they grew by."""
        totals = (
            sum(each.sent_frames for each in statistics.vteps),
            sum(each.sent_octets for each in statistics.vteps),
            sum(each.received_frames for each in statistics.vteps),
            sum(each.received_octets for each in statistics.vteps),
            statistics.ledger.dropped,
        )
        elapsed = now - self._sampled_at
        if elapsed <= 0:
            return
        # A VTEP that left takes its totals along: no rate is below zero for it.
        grown = [max(0, after - before) / elapsed for before, after in zip(self._totals, totals, strict=True)]
        self.view = RatesView(*(round(rate, 1) for rate in grown))
        self._totals = totals
        self._sampled_at = now
