"""A topology in one process and virtual time: whole nodes, a simulated wire, no root, no descriptor.

    SimulatedHost ─ SimulatedDevice ─ datapath ─ SimulatedUnderlay ─ SimulatedWire ─ … the other nodes
                                       │   ▲
                                       ▼   │ decisions
                                     Tables, Bridge

Everything between device and underlay is the real thing: engine, decisions, tables, codecs.  What is
simulated is what a kernel would do.  A node of any kind is carried by weft here, for there is no kernel.

A run is a function of the topology, the impairment and the seed.  After it every node's ledger must
balance: `SimulatedLab.unbalanced` names those that do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from random import Random
from typing import Protocol, Self

from bench.lab.checks import PING_COUNT, PING_INTERVAL_S, PING_REPLY_TIMEOUT_S, Ping
from bench.lab.host import Echo, SimulatedDevice, SimulatedHost
from bench.lab.topology import Address, Node, Topology
from bench.lab.virtual import VirtualReactor
from bench.lab.wire import Impairment, SimulatedUnderlay, SimulatedWire
from overlay.addr import IpAddress, Mac, NetworkId, Vni, Vtep, VtepId
from overlay.bridge import Bridge, BridgePolicy
from overlay.tables import FloodReplace, TableDelta, Tables, VtepReplace
from overlay.verdict import DropReason
from tunnel.interfaces import Attachment, Datapath, Reactor, Underlay
from tunnel.pydatapath import PythonDatapath

# Ours
NETWORK = NetworkId("lab")
HOUSEKEEPING_S = 1.0  # how often an engine is asked to expire what is over
SETTLE_S = 5.0  # the longest a resolution, a retry or a refusal takes


class MakeDatapath(Protocol):
    """Builds an engine; `PythonDatapath` is one such."""

    def __call__(
        self,
        tables: Tables,
        underlays: Iterable[Underlay],
        *,
        reactor: Reactor,
        clock: Callable[[], float],
        choose_underlay: Callable[[IpAddress], Underlay | None],
    ) -> Datapath: ...


class SimulatedNode:
    """One whole node.

    Attributes:
        host: The stack behind its device; what a test pings from.
    """

    def __init__(
        self, topology: Topology, node: Node, wire: SimulatedWire, *, make_datapath: MakeDatapath
    ) -> None:
        self.node = node
        self.reactor = wire.reactor
        # 02: locally administered, and unicast (IEEE 802-2014 section 8.4).
        mac = Mac(b"\x02\x00\x00\x00" + topology.nodes.index(node).to_bytes(2, "big"))
        self.device = SimulatedDevice(self.reactor, node.device, mac, mtu=topology.overlay_mtu(node))
        self.host = SimulatedHost(self.reactor, self.device, node.overlay_addresses)
        self.tables = Tables()
        self.tables.add_network(NETWORK)
        self.underlays = [
            SimulatedUnderlay(wire, address.ip, mtu=topology.underlay.mtu)
            for address in node.underlay_addresses
        ]
        self.datapath = make_datapath(
            self.tables,
            self.underlays,
            reactor=self.reactor,
            clock=self.reactor.time,
            choose_underlay=self._choose_underlay,
        )
        self.bridge = Bridge(BridgePolicy(NETWORK, mac), self.tables)
        self._is_closed = False
        self._start(topology)

    def _start(self, topology: Topology) -> None:
        vteps = [Vtep(address, topology.port) for address in topology.vteps_seen_by(self.node)]
        flood = FloodReplace(NETWORK, tuple(vtep.address for vtep in vteps))
        self.tables.apply(TableDelta((*(VtepReplace(NETWORK, vtep) for vtep in vteps), flood)))
        self.datapath.attach(
            Attachment(
                network=NETWORK,
                vni=Vni(topology.vni),
                port=topology.port,
                device=self.device,
                decider=self.bridge,
                overlay_mtu=self.device.mtu,
            )
        )
        self.device.set_carrier(up=True)
        self.reactor.call_later(HOUSEKEEPING_S, self._housekeep)

    def ping(self, destination: Address, *, size: int = 56) -> Echo:
        """One echo request from the host behind this node."""
        return self.host.ping(destination, size=size)

    def fdb(self) -> list[tuple[Mac, VtepId]]:
        """Where each known MAC is."""
        return [(entry.mac, entry.vtep) for entry in self.tables[NETWORK].fdb.entries()]

    def drops(self) -> dict[DropReason, int]:
        """What was dropped here, all networks together, reasons that occurred only."""
        total: dict[DropReason, int] = {}
        for drops in self.datapath.statistics().drops.values():
            for reason, count in drops.items():
                if count:
                    total[reason] = total.get(reason, 0) + count
        return total

    def crash(self) -> None:
        """Falls silent in mid-sentence: its address leaves the wire, nobody is told."""
        for underlay in self.underlays:
            underlay.wire.detach(underlay)
        self.close()

    def close(self) -> None:
        """Ends its engine and closes what it held."""
        if not self._is_closed:
            self._is_closed = True
            self.datapath.close()
            self.device.close()
            for underlay in self.underlays:
                underlay.close()

    def _choose_underlay(self, address: IpAddress) -> Underlay | None:
        return next((own for own in self.underlays if own.address.version == address.version), None)

    def _housekeep(self) -> None:
        if not self._is_closed:
            self.datapath.expire(now=self.reactor.time())
            self.reactor.call_later(HOUSEKEEPING_S, self._housekeep)


class SimulatedLab:
    """All nodes of a topology, running.

    Args:
        seed: Of every draw: the wire's, and the order of readers.
        impairment: Of every path until `wire.impair` says otherwise; None: a good wire of the underlay's MTU.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        seed: int = 0,
        impairment: Impairment | None = None,
        make_datapath: MakeDatapath = PythonDatapath,
    ) -> None:
        self.topology = topology
        self.reactor = VirtualReactor(seed)
        self.wire = SimulatedWire(
            self.reactor, Random(seed), impairment or Impairment(mtu=topology.underlay.mtu)
        )
        self.nodes = {
            node.name: SimulatedNode(topology, node, self.wire, make_datapath=make_datapath)
            for node in topology.nodes
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getitem__(self, name: str) -> SimulatedNode:
        return self.nodes[name]

    def ping_all(
        self, pairs: Iterable[tuple[SimulatedNode, Address]], *, count: int = PING_COUNT
    ) -> Iterator[Ping]:
        """The pings of all pairs, sent at once and answered in the order of `pairs`."""
        chosen = list(pairs)
        echoes: list[list[Echo]] = [[] for _ in chosen]
        for _ in range(count):
            for (node, destination), sent in zip(chosen, echoes, strict=True):
                sent.append(node.ping(destination))
            self.reactor.run_for(PING_INTERVAL_S)
        everyone = [echo for sent in echoes for echo in sent]
        self.reactor.run_until(
            lambda: all(echo.answered_at is not None for echo in everyone), within=PING_REPLY_TIMEOUT_S
        )
        return (_as_ping(sent) for sent in echoes)

    def settle(self) -> None:
        """Lets what is under way come to its end: resolutions, retries, refusals."""
        self.reactor.run_for(SETTLE_S)

    def unbalanced(self) -> list[str]:
        """The nodes whose ledger does not add up, each with its ledger: none, at any quiet moment."""
        ledgers = {name: node.datapath.statistics().ledger for name, node in self.nodes.items()}
        return [f"{name}: {ledger}" for name, ledger in ledgers.items() if not ledger.balances]

    def close(self) -> None:
        """Ends every node."""
        for node in self.nodes.values():
            node.close()


def _as_ping(echoes: list[Echo]) -> Ping:
    rtts = [1000 * echo.rtt_s for echo in echoes if echo.rtt_s is not None]
    if not rtts:
        return Ping(len(echoes), 0)
    return Ping(len(echoes), len(rtts), min(rtts), sum(rtts) / len(rtts), max(rtts))
