"""The daemon's counters as Prometheus reads them: asked for at the moment of the scrape, kept nowhere.

prometheus-client's own counters take a lock for every increment; weft counts in plain integers where
the frames are and shows those.  A collector is handed to the library for each scrape, so there is no
registry to fall out of step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from control.membership.events import Refusal
from control.membership.records import Refused
from overlay.addr import NetworkId
from overlay.verdict import DropReason

if TYPE_CHECKING:
    from control.operator.api import Introspection


def exposition(daemon: Introspection, accept: str) -> tuple[bytes, str]:
    """The body of one scrape and its content type, in the format the scraper's Accept header prefers."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Views(daemon))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Views(Collector):
    """Every metric, made from the same views the tables are printed from."""

    def __init__(self, daemon: Introspection) -> None:
        self._daemon = daemon

    def describe(self) -> Iterator[Metric]:
        """Nothing ahead of time: the registry would otherwise scrape once when it is made."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        yield from self._node()
        yield from self._underlays()
        yield from self._traffic()
        yield self._drops()
        yield from self._gossip()
        yield from self._peers()

    def _node(self) -> Iterator[Metric]:
        status = self._daemon.status()
        labels = {"node": status.node, "version": status.version, "engine": status.engine}
        yield InfoMetricFamily("weft", "This node, its version and the engine that carries.", labels)
        yield GaugeMetricFamily("weft_uptime_seconds", "Since the daemon started.", status.uptime_s)
        yield GaugeMetricFamily("weft_ready", "1 if every network carries.", int(self._daemon.is_ready()))
        yield GaugeMetricFamily("weft_health_problems", "Lines in the health block.", len(status.health))
        lag = GaugeMetricFamily("weft_loop_lag_seconds", "How late the loop was lately.", labels=["quantile"])
        late = self._daemon.loop_lag()
        for quantile, seconds in (("0.5", late.p50), ("0.99", late.p99), ("1", late.worst)):
            lag.add_metric([quantile], seconds)
        yield lag
        peers = GaugeMetricFamily("weft_peers", "Peers by state.", labels=["state"])
        for state in ("alive", "suspect", "dead"):
            peers.add_metric([state], getattr(status.peers, state))
        yield peers

    def _underlays(self) -> Iterator[Metric]:
        labels = ["address", "device", "direction", "rung"]
        rungs = GaugeMetricFamily("weft_rung", "1 for the offload rung in use.", labels=labels)
        mtus = GaugeMetricFamily(
            "weft_underlay_mtu_octets", "The underlay's MTU.", labels=["address", "device"]
        )
        for underlay in self._daemon.status().underlays:
            place = [underlay.address, underlay.device]
            rungs.add_metric([*place, "egress", underlay.rungs.egress], 1)
            rungs.add_metric([*place, "ingress", underlay.rungs.ingress], 1)
            mtus.add_metric(place, underlay.mtu)
        yield rungs
        yield mtus

    def _traffic(self) -> Iterator[Metric]:
        labels = ["network", "direction"]
        frames = CounterMetricFamily("weft_frames", "Frames carried.", labels=labels)
        octets = CounterMetricFamily("weft_octets", "Octets of frames carried.", labels=labels)
        fdb = GaugeMetricFamily("weft_fdb_entries", "MACs known to be behind a VTEP.", labels=["network"])
        flows = GaugeMetricFamily("weft_flows", "Verdicts remembered.", labels=["network"])
        refused = CounterMetricFamily(
            "weft_fdb_refused", "MACs not learned: the FDB was full.", labels=["network"]
        )
        for traffic in self._daemon.traffic():
            frames.add_metric([traffic.network, "egress"], traffic.egress_frames)
            frames.add_metric([traffic.network, "ingress"], traffic.ingress_frames)
            octets.add_metric([traffic.network, "egress"], traffic.egress_octets)
            octets.add_metric([traffic.network, "ingress"], traffic.ingress_octets)
            fdb.add_metric([traffic.network], traffic.fdb_entries)
            flows.add_metric([traffic.network], traffic.flows)
            refused.add_metric([traffic.network], traffic.fdb_refused)
        yield from (frames, octets, fdb, flows, refused)

    def _drops(self) -> Metric:
        """Every reason from the start, also at zero: a rate needs the sample before the first drop.

        So does every network, also one that waits for its subnet; and "" for what is no network's.
        """
        drops = CounterMetricFamily("weft_drops", "Frames dropped, by reason.", labels=["network", "reason"])
        counted = self._daemon.drops()
        networks = [NetworkId(""), *(network.id for network in self._daemon.config().networks), *counted]
        for network in dict.fromkeys(networks):
            counts = counted.get(network, {})
            for reason in DropReason:
                drops.add_metric([network, reason.name], counts.get(reason, 0))
        return drops

    def _gossip(self) -> Iterator[Metric]:
        """Nothing where gossip is off."""
        gossip = self._daemon.status().gossip
        if gossip is None:
            return
        states = Counter(member.state for member in self._daemon.members())
        members = GaugeMetricFamily("weft_members", "Members of the pool by state.", labels=["state"])
        for state in ("alive", "suspect", "dead", "left"):
            members.add_metric([state], states[state])
        yield members
        yield GaugeMetricFamily("weft_gossip_health", "Lifeguard's score: 0 well, 7 worst.", gossip.health)
        refused = CounterMetricFamily("weft_gossip_refused", "Gossip without effect.", labels=["reason"])
        for reason in Refusal:
            refused.add_metric([reason.name], gossip.refused.get(reason.name, 0))
        yield refused
        yield GaugeMetricFamily("weft_records", "Nodes whose record is held.", gossip.records)
        unheard = CounterMetricFamily("weft_records_refused", "Records without effect.", labels=["reason"])
        for why in Refused:
            unheard.add_metric([why.name], gossip.records_refused.get(why.name, 0))
        yield unheard

    def _peers(self) -> Iterator[Metric]:
        labels = ["peer", "underlay", "direction"]
        octets = CounterMetricFamily(
            "weft_peer_octets", "Octets of datagrams to and from a peer.", labels=labels
        )
        # Without the zeros: peers times reasons would be more series than a scrape should have.
        drops = CounterMetricFamily(
            "weft_peer_drops", "Frames to or from a peer dropped.", labels=["peer", "underlay", "reason"]
        )
        for peer in self._daemon.peers():
            octets.add_metric([peer.name, peer.underlay, "rx"], peer.rx_octets)
            octets.add_metric([peer.name, peer.underlay, "tx"], peer.tx_octets)
            for reason, count in peer.drops.items():
                drops.add_metric([peer.name, peer.underlay, reason], count)
        yield from (octets, drops)
