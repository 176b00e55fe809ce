"""The Python engine: reads, looks up, carries, counts; asks when it does not know.  It never decides.

    egress    device ──▶ flow? ──▶ batch or split ──▶ sender of the pool          `tunnel.egress`
    ingress   underlay ──▶ header, network, VTEP, flow? ──▶ merge, repair ──▶ device   `tunnel.ingress`
    a miss    pending flow ──▶ Decider, Tables.apply, remember, carry              `tunnel.upcalls`

Networks of bare packets (Flannel's UDP format) have walks of their own, `tunnel.packet_egress` and
`tunnel.packet_ingress`, which differ where a packet does from a frame and share the rest.

It is the specification of what an engine does, and the teaching text; a native engine does the same.  This
file holds the networks and what is done every second; the frames' walks are the three files named.

A drain ends after a number of reads or a millisecond, so that gossip, timers and the other direction get
the loop back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from overlay.addr import IpAddress, Mac, NetworkId, VtepId
from overlay.errors import DeviceError
from overlay.tables import TableDelta, Tables
from overlay.verdict import (
    Direction,
    DropReason,
    Table,
    TableKey,
    Verdict,
)
from tunnel.carriage import NetworkCarriage, PortCarriage, VtepCarriage
from tunnel.egress import Egress
from tunnel.flannel_udp import ETHERNET
from tunnel.flows import Dependents, Flow, Held
from tunnel.ingress import Ingress
from tunnel.interfaces import (
    Activity,
    Attachment,
    DatapathStatistics,
    FlowStatistics,
    FrameDevice,
    Observer,
    Reactor,
    Underlay,
    VtepStatistics,
)
from tunnel.packet_carriage import PacketCarriage
from tunnel.packet_egress import PacketEgress
from tunnel.packet_ingress import PacketIngress
from tunnel.recorder import Recorder
from tunnel.upcalls import Upcalls

# Ours
PATH_RECHECK_SECONDS = 10.0  # how often a path found narrow is asked again


class PythonDatapath:
    """The engine `python` (see `tunnel.interfaces.Datapath`)."""

    kind = "python"

    def __init__(
        self,
        tables: Tables,
        underlays: Iterable[Underlay],
        *,
        reactor: Reactor,
        clock: Callable[[], float],
        choose_underlay: Callable[[IpAddress], Underlay | None],
    ) -> None:
        """An engine that carries nothing yet.

        Args:
            tables: Whose verdicts' ground it watches; learning is written there too.
            underlays: Our underlay addresses.  They stay the caller's to close.
            reactor: Calls back when something is readable.
            clock: Monotonic seconds.  (An event loop's own time may stand still during a callback.)
            choose_underlay: Which of `underlays` reaches an address; None: none of its family.
        """
        self._tables = tables
        self._underlays = tuple(underlays)
        self._reactor = reactor
        self._clock = clock
        self._choose_underlay = choose_underlay
        self._networks: dict[NetworkId, NetworkCarriage] = {}
        self._ports: dict[tuple[Underlay, int], PortCarriage] = {}
        self._dependents = Dependents()
        self._recorder = Recorder()
        self._upcalls = Upcalls(tables, self._recorder, reactor=reactor, clock=clock, carry=self._carry)
        self._ingress = Ingress(self._recorder, self._upcalls, clock=clock)
        self._egress = Egress(
            self._recorder,
            self._upcalls,
            reactor=reactor,
            clock=clock,
            write=self._ingress.write,
            hear_refusals=self._hear_refusals,
        )
        self._super_losses: dict[Underlay, int] = {}
        self._packet_ingress = PacketIngress(self._recorder, self._upcalls, clock=clock, reply=self._reply)
        self._packet_egress = PacketEgress(
            self._recorder,
            self._upcalls,
            reactor=reactor,
            clock=clock,
            write=self._packet_ingress.answer,
            hear_refusals=self._hear_refusals,
        )
        self._path_checked_at = clock()
        self._to_hear: set[Underlay] = set()
        self._closed = False
        tables.subscribe(self._tables_changed)

    # ── Networks come and go ────────────────────────────────────────────────────────────────────────────

    def attach(self, attachment: Attachment) -> None:
        """Starts carrying a network; DeviceError where its port cannot be bound."""
        network = self._new_carriage(attachment)
        try:
            for underlay in self._underlays:
                self._open_port(underlay, network).networks[network.wire_id] = network
        except DeviceError:
            self._leave_ports(network)
            raise
        self._networks[network.id] = network
        tables = self._tables[network.id]
        for vtep in tables.vteps.values():
            network.program_vtep(vtep, self._choose_underlay(vtep.address), self._dependents)
        network.program_flood(tables.flood.vteps())
        self._listen(network)

    def detach(self, network: NetworkId) -> None:
        """Stops carrying it, and drops what waits for a verdict."""
        carriage = self._networks.pop(network)
        self._reactor.remove_reader(carriage.device.fileno())
        self._leave_ports(carriage)
        self._upcalls.abandon(carriage)
        carriage.egress.clear()
        for vtep in tuple(carriage.vteps):
            carriage.withdraw_vtep(vtep)

    def replace_device(self, network: NetworkId, device: FrameDevice, overlay_mtu: int) -> None:
        """Goes on with another device, flows kept.  The old one may be gone already."""
        carriage = self._networks[network]
        self._reactor.remove_reader(carriage.device.fileno())
        carriage.use_device(device, overlay_mtu)
        self._listen(carriage)

    def reroute(self) -> None:
        """Asks again which underlay reaches each VTEP, and how wide its path is.  Forgets no flow."""
        for carriage in self._networks.values():
            for vtep in self._tables[carriage.id].vteps.values():
                carriage.program_vtep(vtep, self._choose_underlay(vtep.address), self._dependents)

    def close(self) -> None:
        """Detaches every network and closes the ports.  Idempotent."""
        for network in tuple(self._networks):
            self.detach(network)
        if not self._closed:
            self._tables.unsubscribe(self._tables_changed)
            self._closed = True

    def _new_carriage(self, attachment: Attachment) -> NetworkCarriage:
        kind = PacketCarriage if attachment.vni is None else NetworkCarriage
        return kind(attachment, self._dependents, now=self._clock())

    def _listen(self, network: NetworkCarriage) -> None:
        """Reads what the device has to say."""
        if isinstance(network, PacketCarriage):
            self._reactor.add_reader(network.device.fileno(), self._packet_egress.drain_packets, network)
        else:
            self._reactor.add_reader(network.device.fileno(), self._egress.drain, network)

    def _open_port(self, underlay: Underlay, network: NetworkCarriage) -> PortCarriage:
        place = (underlay, network.attachment.port)
        if place not in self._ports:
            if isinstance(network, PacketCarriage):
                self._ports[place] = self._open_exchange(underlay, network)
            else:
                carriage = self._ports[place] = PortCarriage(underlay.open_port(network.attachment.port))
                self._reactor.add_reader(carriage.socket.fileno(), self._ingress.drain, carriage)
        return self._ports[place]

    def _open_exchange(self, underlay: Underlay, network: PacketCarriage) -> PortCarriage:
        """A port of Flannel's, which sends as well."""
        exchange = underlay.open_exchange(network.attachment.port)
        network.exchanges[underlay] = exchange
        carriage = PortCarriage(exchange, lead=ETHERNET, reads=1)
        self._reactor.add_reader(exchange.fileno(), self._drain_exchange, carriage, underlay)
        return carriage

    def _drain_exchange(self, carriage: PortCarriage, underlay: Underlay) -> None:
        """A socket that sends as well is readable, too, while an ICMP error waits: until that is taken."""
        if not self._packet_ingress.drain_packets(carriage):
            self._hear_refusals(underlay)

    def _leave_ports(self, network: NetworkCarriage) -> None:
        """Receives for this network no more; a port without a network is closed."""
        for place, port in tuple(self._ports.items()):
            if port.networks.get(network.wire_id) is network:
                del port.networks[network.wire_id]
            if not port.networks:
                self._close_port(place)

    def _close_port(self, place: tuple[Underlay, int]) -> None:
        port = self._ports.pop(place)
        self._reactor.remove_reader(port.socket.fileno())
        port.socket.close()

    def _tables_changed(self, delta: TableDelta, touched: frozenset[TableKey]) -> None:
        """Edits what the tables say of VTEPs, then forgets exactly the flows that rest on what changed."""
        for network_id, vtep in delta.vteps():
            if network_id in self._networks:
                self._follow_vtep(self._networks[network_id], vtep)
        for network_id in {place.network for place in touched if place.table is Table.FLOOD}:
            if network_id in self._networks:
                flood = self._tables[network_id].flood.vteps()
                self._networks[network_id].program_flood(flood)
        self._dependents.forget(touched)

    def _follow_vtep(self, network: NetworkCarriage, address: VtepId) -> None:
        """Has the VTEP as the tables have it now, all changes of the delta being written."""
        vtep = self._tables[network.id].vteps.get(address)
        if vtep is None:
            network.withdraw_vtep(address)
        else:
            network.program_vtep(vtep, self._choose_underlay(address), self._dependents)

    def _carry(
        self, network: NetworkCarriage, vtep: VtepCarriage | None, verdict: Verdict, held: Held
    ) -> None:
        """A frame that waited has its verdict."""
        is_packet = isinstance(network, PacketCarriage)
        if vtep is None:
            (self._packet_egress if is_packet else self._egress).carry(network, verdict, held)
        else:
            (self._packet_ingress if is_packet else self._ingress).carry(network, vtep, verdict, held)

    def _reply(self, network: NetworkCarriage, vtep: VtepCarriage, packet: bytes) -> None:
        """A packet of our own making goes back to where the one it answers came from."""
        self._packet_egress.send_own(network, vtep, packet)

    def _hear_refusals(self, underlay: Underlay) -> None:
        """Has them read soon: a socket has failed, perhaps for what befell an earlier datagram."""
        if underlay not in self._to_hear:
            self._to_hear.add(underlay)
            self._reactor.call_soon(self._read_refusals, underlay)

    def _read_refusals(self, underlay: Underlay) -> None:
        self._to_hear.discard(underlay)
        if not self._closed:
            self._egress.refused(self._networks.values(), underlay)

    # ── Every second ────────────────────────────────────────────────────────────────────────────────────

    def expire(self, *, now: float) -> None:
        """Forgets what is idle or over, gives up on old questions, names what the kernel lost."""
        self._upcalls.expire(now=now)
        recheck = now - self._path_checked_at >= PATH_RECHECK_SECONDS
        if recheck:
            self._path_checked_at = now
        for network in self._networks.values():
            network.egress.expire(now=now)
            for vtep in network.vteps.values():
                vtep.ingress.expire(now=now)
                if recheck and vtep.path_is_limited:
                    vtep.recheck_path()
        for underlay in self._underlays:
            self._read_refusals(underlay)
        self._count_overruns()

    def _count_overruns(self) -> None:
        for network in self._networks.values():
            overruns = network.device.overruns()
            lost, network.overruns_seen = overruns - network.overruns_seen, overruns
            if lost > 0:
                self._recorder.counters.lost_before_us(DropReason.DEVICE_OVERRUN, network.id, frames=lost)
        for port in self._ports.values():
            overruns = port.socket.overruns()
            lost, port.overruns_seen = overruns - port.overruns_seen, overruns
            owners = [network.id for network in port.networks.values()]
            if lost > 0:  # whose they were cannot be known where networks share the port
                owner = owners[0] if len(owners) == 1 else None
                self._recorder.counters.lost_before_us(DropReason.RECEIVE_OVERRUN, owner, frames=lost)
        for underlay in self._underlays:
            self._count_super_losses(underlay)

    def _count_super_losses(self, underlay: Underlay) -> None:
        """Super-packets that were counted as sent and never reached the egress device."""
        if underlay.super_doors is None:
            return
        losses = underlay.super_doors.losses()
        lost, self._super_losses[underlay] = losses - self._super_losses.get(underlay, 0), losses
        owner = next(iter(self._networks)) if len(self._networks) == 1 else None
        self._recorder.counters.lost_after_us(DropReason.UNDERLAY_ERROR, owner, None, frames=lost)

    # ── Seeing ──────────────────────────────────────────────────────────────────────────────────────────

    def watch(self, observer: Observer) -> None:
        """Shows it every frame sent, delivered or dropped from now on."""
        self._recorder.observers.append(observer)

    def unwatch(self, observer: Observer) -> None:
        """Shows it no more."""
        self._recorder.observers.remove(observer)

    def flows(self) -> Iterator[FlowStatistics]:
        """Every remembered verdict."""
        for network in tuple(self._networks.values()):
            for flow in tuple(network.egress.active.values()):
                yield _flow_statistics(network, Direction.EGRESS, None, flow)
            for vtep in tuple(network.vteps.values()):
                for flow in tuple(vtep.ingress.active.values()):
                    yield _flow_statistics(network, Direction.INGRESS, vtep.id, flow)

    def activity(self, *, since: float) -> Iterator[Activity]:
        """The source MACs that ingress flows have carried at or after `since`."""
        for network in tuple(self._networks.values()):
            if isinstance(network, PacketCarriage):
                continue  # there are no MACs in it
            for vtep in tuple(network.vteps.values()):
                for flow in tuple(vtep.ingress.active.values()):
                    if flow.used_at >= since:
                        yield Activity(network.id, Mac(flow.key[6:12]), vtep.id, flow.used_at)

    def statistics(self) -> DatapathStatistics:
        """A snapshot of what went where."""
        networks = self._networks.values()
        return DatapathStatistics(
            ledger=self._recorder.counters.ledger(held=self._upcalls.held),
            drops={network: dict(drops) for network, drops in self._recorder.counters.drops.items()},
            vteps=tuple(
                _vtep_statistics(network, vtep) for network in networks for vtep in network.vteps.values()
            ),
            flows={
                network.id: len(network.egress.active)
                + sum(len(vtep.ingress.active) for vtep in network.vteps.values())
                for network in networks
            },
            upcalls=self._recorder.counters.upcalls,
        )


def _flow_statistics(
    network: NetworkCarriage, direction: Direction, vtep: VtepId | None, flow: Flow
) -> FlowStatistics:
    return FlowStatistics(
        network.id, direction, vtep, flow.key, flow.verdict, flow.frames, flow.octets, flow.used_at
    )


def _vtep_statistics(network: NetworkCarriage, vtep: VtepCarriage) -> VtepStatistics:
    return VtepStatistics(
        network.id,
        vtep.id,
        vtep.sent_frames,
        vtep.sent_octets,
        vtep.received_frames,
        vtep.received_octets,
        dict(vtep.drops),
    )
