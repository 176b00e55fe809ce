"""The native engine, as the loop sees it: it carries by itself; here it is programmed, answered, looked at.

    device ─▶ Rust lane ─▶ underlay        its worker is a thread that never asks for Python's lock
               │      ▲                    (with `workers`, several: each its queue, its socket, its flows)
        bell, questions │ answers, forgets, routes
               ▼      │
              NativeDatapath ─▶ Decider, Tables.apply

The same five verbs as `tunnel.pydatapath`, which is the specification: reads, looks up, carries, counts,
asks.  Descriptors are opened, probed and closed by the same Python objects as ever (`tunnel.tap`,
`tunnel.underlay`); a lane borrows their numbers between `attach` and `detach`.

Whatever is changed here is in place, in every lane, when the call returns: a call waits for every lane's turn
to end, which takes about a millisecond at most, all of them together.  Decisions are made on this thread, so
nothing can be forgotten between a decision and its being remembered.

Over 500 lines: it is the whole of the lanes' other side, and each part needs the numbers of all others.

Heads up: read tunnel/native/core/src/lane.rs beside this file.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from time import monotonic
from typing import TypeAlias

from overlay.addr import IpAddress, Mac, NetworkId, Vtep, VtepId
from overlay.errors import DatapathUnavailableError, DeviceError
from overlay.route import subnet_key
from overlay.tables import TableDelta, Tables
from overlay.verdict import (
    EVERY_VTEP,
    Decision,
    Deliver,
    Direction,
    Drop,
    DropReason,
    Encapsulate,
    Replicate,
    Reply,
    Table,
    TableKey,
    Verdict,
)
from tunnel import _native
from tunnel.interfaces import (
    Activity,
    Attachment,
    DatapathStatistics,
    FlowStatistics,
    FrameDevice,
    Ledger,
    Observer,
    PacketDecider,
    PacketDevice,
    Reactor,
    Strictness,
    VtepStatistics,
)
from tunnel.ladder import Feature
from tunnel.nativecarriage import (
    DROP,
    ENCAPSULATE,
    NUMBERS,
    POINTS,
    REASONS,
    REPLICATE,
    Network,
    Port,
    Route,
    memory_of,
    numbered,
    octets_of,
)
from tunnel.offload import ETHERNET_LENGTH
from tunnel.offload import SEGMENTS_MAX as WRITE_SEGMENTS_MAX
from tunnel.pydatapath import PATH_RECHECK_SECONDS
from tunnel.underlay import UdpUnderlay
from tunnel.upcalls import UPCALLS_PER_TURN

# Ours
FLOWS_PER_LOOK = 1024  # flows copied out in one call: a fraction of a millisecond
UPCALL_SECONDS = 0.005  # each question waits twice for the worker's turn to end, which a flood makes long
SHOWING_SECONDS = 0.005
SHOWN_AT_ONCE = 256  # frames of a lane handed to the observers before the clock is looked at
SHOWN_MAX = 1 << 20  # more than a lane keeps

Look: TypeAlias = "Callable[[int, int, int, int], tuple[list[_native.FlowRow], int | None]]"
"""Lane, network or VTEP, from where, how many: the rows, and where it goes on."""


def open_lanes(workers: int) -> _native.Engine:
    """A lane for each worker, not started; a send carries as much as this kernel takes."""
    return _native.Engine(_native.segments_max(), WRITE_SEGMENTS_MAX, workers)


class NativeDatapath:
    """The engine `native` (see `tunnel.interfaces.Datapath`)."""

    kind = "native"

    def __init__(
        self,
        tables: Tables,
        underlays: Iterable[UdpUnderlay],
        *,
        reactor: Reactor,
        choose_underlay: Callable[[IpAddress], UdpUnderlay | None],
        on_failure: Callable[[DatapathUnavailableError], object],
        lanes: _native.Engine,
    ) -> None:
        """An engine that carries nothing yet.

        Args:
            tables: Whose verdicts' ground it watches; learning is written there too.
            underlays: Our underlay addresses.  They stay the caller's to close.
            reactor: Calls back when the lane's bell rings.
            choose_underlay: Which of `underlays` reaches an address; None: none of its family.
            on_failure: Told once, from the reactor, when the engine broke: a bug in it.  It carries nothing
                from then on, and what it is told has no effect; looking at it and closing it do.
            lanes: Where it carries (`open_lanes`).  Their workers are the caller's to start, or their turns
                his to take.
        """
        self._tables = tables
        self._underlays = tuple(underlays)
        self._reactor = reactor
        self._choose_underlay = choose_underlay
        self._on_failure = on_failure
        self._lanes = lanes
        self._underlay_numbers = {underlay: self._add_underlay(underlay) for underlay in self._underlays}
        self._pools = {number: underlay for underlay, number in self._underlay_numbers.items()}
        self._networks: dict[NetworkId, Network] = {}
        self._names: list[NetworkId] = []  # of networks by their number, those that left too
        self._routes: dict[int, Route] = {}
        self._ports: dict[tuple[UdpUnderlay, int], Port] = {}
        self._super_losses: dict[UdpUnderlay, int] = {}
        self._observers: list[Observer] = []
        self._unread: deque[_native.Notice] = deque()
        self._upcalls = 0
        self._path_checked_at = monotonic()
        self._closed = False
        tables.subscribe(self._tables_changed)
        reactor.add_reader(self._lanes.fileno(), self._hear)

    # ── Networks come and go ────────────────────────────────────────────────────────────────────────────

    def attach(self, attachment: Attachment) -> None:
        """Starts carrying a network.

        Raises:
            DeviceError: Its port cannot be bound.
            OSError: The kernel refused to watch its device or port.  Nothing of it is left then.
        """
        number = self._lanes.add_network(
            None if attachment.vni is None else int(attachment.vni),
            attachment.strictness is Strictness.LINUX,
            attachment.suppresses and attachment.vni is not None,  # nobody asks for MAC addresses there
            attachment.repairs,
        )
        self._names.append(attachment.network)
        device = attachment.device
        network = Network(number, attachment, device, attachment.overlay_mtu, device.overruns())
        if attachment.vni is None:
            network.router = packet_decider(attachment)
        self._networks[network.id] = network
        try:
            for underlay in self._underlays:
                self._open_port(underlay, network).networks[network.wire_id] = network
            tables = self._tables[network.id]
            for vtep in tables.vteps.values():
                self._program_vtep(network, vtep)
            self._program_flood(network)
            self._program_subnets(network)
            self._listen(network)
            self._use_device(network, device, attachment.overlay_mtu)
        except (DeviceError, OSError):
            self.detach(network.id)
            raise

    def detach(self, network: NetworkId) -> None:
        """Stops carrying it, and drops what waits for a verdict."""
        gone = self._networks.pop(network)
        self._lanes.remove_network(gone.number)
        self._leave_ports(gone)
        for route in gone.routes.values():
            self._routes.pop(route.number, None)

    def replace_device(self, network: NetworkId, device: FrameDevice, overlay_mtu: int) -> None:
        """Goes on with another device, flows kept.  The old one may be gone already."""
        carried = self._networks[network]
        carried.device, carried.overruns_seen = device, device.overruns()
        self._use_device(carried, device, overlay_mtu)

    def _use_device(self, network: Network, device: FrameDevice, overlay_mtu: int) -> None:
        if network.overlay_mtu != overlay_mtu:
            network.overlay_mtu = overlay_mtu
            for route in network.routes.values():
                self._recheck(route)
        self._lanes.use_device(network.number, device.queues, overlay_mtu, device.takes_udp_super_frames)

    def reroute(self) -> None:
        """Asks again which underlay reaches each VTEP, and how wide its path is.  Forgets no flow."""
        for network in self._networks.values():
            for vtep in self._tables[network.id].vteps.values():
                self._program_vtep(network, vtep)

    def close(self) -> None:
        """Detaches every network, closes the ports and ends the workers.  Idempotent."""
        for network in tuple(self._networks):
            self.detach(network)
        if self._closed:
            return
        self._closed = True
        self._lanes.stop()
        self._reactor.remove_reader(self._lanes.fileno())
        self._tables.unsubscribe(self._tables_changed)

    def _add_underlay(self, underlay: UdpUnderlay) -> int:
        senders = [sender.fileno() for sender in underlay.senders]
        number = self._lanes.add_underlay([senders], underlay.ladder.is_on(Feature.UDP_GSO))
        if underlay.super_doors is not None:
            underlay.super_doors.heed(partial(self._lanes.suspend, number))
        return number

    def _open_port(self, underlay: UdpUnderlay, network: Network) -> Port:
        place = (underlay, network.attachment.port)
        if place not in self._ports and network.router is not None:
            self._ports[place] = self._open_exchange(underlay, network)
        elif place not in self._ports:
            sockets = underlay.open_ports(network.attachment.port, self._lanes.lanes())
            number = self._lanes.add_port([socket.fileno() for socket in sockets])
            self._ports[place] = Port(number, sockets)
        return self._ports[place]

    def _open_exchange(self, underlay: UdpUnderlay, network: Network) -> Port:
        """A port of Flannel's, which sends as well: to a lane it is a pool of one."""
        exchanges = underlay.open_exchanges(network.attachment.port, self._lanes.lanes())
        fds = [each.socket_fileno for each in exchanges]
        number = self._lanes.add_underlay([[fd] for fd in fds], underlay.ladder.is_on(Feature.UDP_GSO))
        network.exchanges[underlay], self._pools[number] = number, underlay
        return Port(self._lanes.add_port(fds, number), exchanges)

    def _listen(self, network: Network) -> None:
        """Receives from now on, the worker knowing already who sends."""
        for port in self._ports.values():
            if port.networks.get(network.wire_id) is network:
                self._lanes.bind(port.number, network.wire_id, network.number)

    def _leave_ports(self, network: Network) -> None:
        """Receives for this network no more; a port without a network is closed."""
        for place, port in tuple(self._ports.items()):
            if port.networks.get(network.wire_id) is network:
                del port.networks[network.wire_id]
            if not port.networks:
                self._lanes.remove_port(self._ports.pop(place).number)
                port.close()

    # ── What the tables say ─────────────────────────────────────────────────────────────────────────────

    def _tables_changed(self, delta: TableDelta, touched: frozenset[TableKey]) -> None:
        """Edits what the tables say of VTEPs, then forgets exactly the flows that rest on what changed."""
        for network_id, vtep in delta.vteps():
            if network_id in self._networks:
                self._follow_vtep(self._networks[network_id], vtep)
        for network_id in {place.network for place in touched if place.table is Table.FLOOD}:
            if network_id in self._networks:
                self._program_flood(self._networks[network_id])
        for network_id in {place.network for place in touched if place.table is Table.ROUTE}:
            if network_id in self._networks:
                self._program_subnets(self._networks[network_id])
        self._lanes.forget([octets_of(place) for place in touched])

    def _follow_vtep(self, network: Network, address: VtepId) -> None:
        """Has the VTEP as the tables have it now, all changes of the delta being written."""
        vtep = self._tables[network.id].vteps.get(address)
        if vtep is not None:
            self._program_vtep(network, vtep)
        elif address in network.routes:
            number = network.routes.pop(address).number
            self._lanes.withdraw_vtep(number)
            del self._routes[number]

    def _program_vtep(self, network: Network, vtep: Vtep) -> None:
        route = network.routes.get(vtep.address)
        if route is None:
            number = self._lanes.add_vtep(network.number, vtep.address.packed, vtep.port)
            route = Route(number, vtep.address, network)
            network.routes[vtep.address] = self._routes[number] = route
        route.use(vtep, self._choose_underlay(vtep.address))
        host, port, *rest = route.sockaddr
        scope = rest[1] if len(rest) == 2 else 0
        underlay = None
        if route.underlay is not None:
            pools = self._underlay_numbers if network.router is None else network.exchanges
            underlay = pools[route.underlay]
        packed = ip_address(host.split("%", maxsplit=1)[0]).packed
        self._lanes.route_vtep(route.number, packed, port, scope, underlay, max(route.frame_max, 0))
        self._follow_door(route)

    def _follow_door(self, route: Route) -> None:
        """Has the super door there is for the VTEP now, if any."""
        doors = route.doors
        door = None if doors is None or doors.is_suspended else doors.door(route.id)
        hop = None if door is None else route.hop(door)
        route.door = door
        if door is None or hop is None:
            self._lanes.without_door(route.number)
            return
        try:
            self._lanes.use_door(route.number, door.fileno(), hop)
        except OSError:  # its TAP was closed just now: a survey follows; or no descriptor is left
            route.door = None
            self._lanes.without_door(route.number)

    def _program_flood(self, network: Network) -> None:
        flood = self._tables[network.id].flood.vteps()
        self._lanes.program_flood(network.number, [network.routes[vtep].number for vtep in flood])

    def _program_subnets(self, network: Network) -> None:
        """What the packets of a network are told apart by."""
        if network.router is not None:
            routes = self._tables[network.id].routes.routes()
            own = [subnet_key(route.subnet) for route in routes if route.subnet.version == 4]
            self._lanes.program_subnets(network.number, own)

    # ── Upcalls ─────────────────────────────────────────────────────────────────────────────────────────

    def _hear(self) -> None:
        """The bell rang."""
        failure = self._lanes.failure()
        if failure is not None:
            self._reactor.remove_reader(self._lanes.fileno())
            self._on_failure(DatapathUnavailableError("native", f"it broke: {failure}"))
            return
        self._lanes.silence()
        try:
            self._answer_questions()
            self._read_notices()
            self._show_some()
        except Exception:
            self._lanes.ring()  # who rang once does not ring again for what waits behind this
            raise

    def _answer_questions(self) -> None:
        """UPCALLS_PER_TURN decisions, or UPCALL_SECONDS; the loop gets its turn before the rest."""
        deadline, before = monotonic() + UPCALL_SECONDS, self._upcalls
        while self._upcalls - before < UPCALLS_PER_TURN:
            question = self._lanes.next_question()
            if question is None:
                return
            self._settle(*question)
            if monotonic() >= deadline:
                break
        self._lanes.ring()

    def _settle(self, question: int, network_number: int, vtep_number: int | None, frame: bytes) -> None:
        """One decision after another until all that waited is carried; without a key one holds one frame."""
        network = self._networks[self._names[network_number]]
        vtep = None if vtep_number is None else self._routes[vtep_number].id
        following: bytes | None = frame
        while following is not None:
            decision = self._decide(network, vtep, following)
            if isinstance(decision.verdict, Reply):
                following = self._lanes.reply(question, decision.verdict.frame)
            else:
                verdict = numbered(network, decision.verdict)
                following = self._lanes.answer(question, verdict, memory_of(decision))

    def _decide(self, network: Network, vtep: VtepId | None, frame: bytes) -> Decision:
        self._upcalls += 1
        decider, frame = network.attachment.decider, frame[network.hidden :]
        if vtep is None:
            decision = decider.egress(frame, now=monotonic())
        else:
            decision = decider.ingress(frame, vtep, now=monotonic())
        if decision.delta is not None:
            self._tables.apply(decision.delta)
        return decision

    def _read_notices(self) -> None:
        self._unread.extend(self._lanes.notices())
        while self._unread:  # one that fails leaves the others for the next time
            notice = self._unread.popleft()
            if notice[0] == "no-segmentation":
                self._no_segmentation(self._pools[notice[1]], notice[2])
            elif notice[0] == "icmp-errors":
                self._refused(self._pools[notice[1]])
            elif notice[0] == "refused":
                self._tell_refused(*notice[1:])
            elif (route := self._routes.get(notice[1])) is not None:
                self._read_notice(route, notice)

    def _read_notice(self, route: Route, notice: _native.Notice) -> None:
        """What is to be known of one VTEP."""
        if notice[0] == "too-big":
            _, _, frame, is_answered, is_news = notice
            self._too_big(route, frame, is_answered=is_answered, is_news=is_news)
        elif notice[0] == "wants-door" and route.doors is not None:
            route.doors.want(route.id)
        elif notice[0] == "shut-door":
            _, _, number, is_socket = notice
            who = "a socket says" if is_socket else "the inject TAP"
            self._shut_door(route, f"{who}: {os.strerror(number)}")

    def _tell_refused(self, number: int, vtep: int | None, reason: int, frame: bytes) -> None:
        """A packet goes no further: whoever sent it is told, on the side it came from."""
        network = self._networks.get(self._names[number])
        if network is None or network.number != number or network.router is None:
            return
        router, packet = network.router, frame[network.hidden :]
        is_expired = REASONS[reason] is DropReason.TTL_EXPIRED
        error = router.expired(packet) if is_expired else router.unreachable(packet)
        if error is not None and vtep is not None:
            self._lanes.send_own(vtep, error)
        elif error is not None:
            self._answer(network, error)

    def _answer(self, network: Network, packet: bytes) -> None:
        """Gives the host a packet of our own making."""
        is_taken = False
        if isinstance(network.device, PacketDevice):
            with suppress(OSError):
                network.device.answer(packet)
                is_taken = True
        self._lanes.answered(network.number, packet, is_taken)

    def _shut_door(self, route: Route, why: str) -> None:
        if route.doors is not None and route.door is not None:
            route.doors.shut(route.id, why, now=monotonic())
            self._follow_door(route)  # where the operator insists it stays

    def _no_segmentation(self, underlay: UdpUnderlay, number: int) -> None:
        """Where single sends go through, it was segmentation that did not."""
        underlay.ladder.lower(Feature.UDP_GSO, f"{os.strerror(number)} on the way", now=monotonic())
        self._follow_ladder(underlay)

    def _follow_ladder(self, underlay: UdpUnderlay) -> None:
        is_on = underlay.ladder.is_on(Feature.UDP_GSO)
        self._lanes.use_gso(self._underlay_numbers[underlay], is_on)
        for network in self._networks.values():
            if underlay in network.exchanges:
                self._lanes.use_gso(network.exchanges[underlay], is_on)

    def _too_big(self, route: Route, frame: bytes, *, is_answered: bool, is_news: bool) -> None:
        """A frame did not fit: the path is asked for if the kernel said so, and its sender told."""
        network = route.network
        if is_news:
            self._recheck(route)
        if not is_answered:
            return
        packet_max = route.frame_max - ETHERNET_LENGTH
        reply = network.attachment.decider.too_big(frame[network.hidden :], packet_max)
        if reply is not None and network.router is not None:
            self._answer(network, reply)
        elif reply is not None:
            self._lanes.write_own(network.number, reply)

    def _recheck(self, route: Route) -> None:
        route.recheck()
        self._lanes.limit_path(route.number, max(route.frame_max, 0))

    def _refused(self, underlay: UdpUnderlay) -> None:
        """ICMP errors came back: what was counted as sent was lost, and is counted so."""
        for refusal in underlay.refusals():
            for network in self._networks.values():
                routes = network.routes.values()
                route = next((each for each in routes if each.sockaddr[0] == refusal.towards), None)
                if route is None:
                    continue
                reason = DropReason.UNDERLAY_ERROR
                if refusal.errno == errno.EMSGSIZE:
                    reason = DropReason.MTU_EXCEEDED
                    self._recheck(route)
                else:
                    self._shut_door(route, f"it answered: {os.strerror(refusal.errno)}")
                self._lanes.lost_after(NUMBERS[reason], network.number, route.number, 1)
                break  # which of the networks that share a VTEP it was cannot be known: the first answers

    # ── Every second ────────────────────────────────────────────────────────────────────────────────────

    def expire(self, *, now: float) -> None:
        """Forgets what is idle or over, gives up on old questions, names what the kernel lost."""
        self._lanes.expire(now)
        if now - self._path_checked_at >= PATH_RECHECK_SECONDS:
            self._path_checked_at = now
            for route in self._routes.values():
                if route.is_limited:
                    self._recheck(route)
        for underlay in self._underlays:
            self._refused(underlay)
            self._follow_ladder(underlay)
            self._count_super_losses(underlay, now=now)
        self._count_overruns()

    def _count_super_losses(self, underlay: UdpUnderlay, *, now: float) -> None:
        """Super-packets that were counted as sent and never reached the egress device."""
        doors = underlay.super_doors
        if doors is None:
            return
        if self._lanes.take_use(self._underlay_numbers[underlay]):
            doors.note_use(now=now)
        losses = doors.losses()
        lost, self._super_losses[underlay] = losses - self._super_losses.get(underlay, 0), losses
        owners = [network.number for network in self._networks.values()]
        if lost > 0:
            owner = owners[0] if len(owners) == 1 else None
            self._lanes.lost_after(NUMBERS[DropReason.UNDERLAY_ERROR], owner, None, lost)

    def _count_overruns(self) -> None:
        for network in self._networks.values():
            overruns = network.device.overruns()
            lost, network.overruns_seen = overruns - network.overruns_seen, overruns
            if lost > 0:
                self._lanes.lost_before(NUMBERS[DropReason.DEVICE_OVERRUN], network.number, lost)
        for port in self._ports.values():
            overruns = port.overruns()
            lost, port.overruns_seen = overruns - port.overruns_seen, overruns
            owners = [network.number for network in port.networks.values()]
            if lost > 0:  # whose they were cannot be known where networks share the port
                owner = owners[0] if len(owners) == 1 else None
                self._lanes.lost_before(NUMBERS[DropReason.RECEIVE_OVERRUN], owner, lost)

    # ── Seeing ──────────────────────────────────────────────────────────────────────────────────────────

    def watch(self, observer: Observer) -> None:
        """Shows it every frame sent, delivered or dropped from now on; a moment later, from the reactor.

        A lane does not wait for observers: of a flood it keeps 8 MiB for them, and the rest goes unseen.
        What several lanes have kept is shown one after the other.
        """
        self._show()
        self._observers.append(observer)
        self._lanes.watch(is_watched=True)

    def unwatch(self, observer: Observer) -> None:
        """Shows it no more."""
        self._lanes.watch(is_watched=len(self._observers) > 1)
        self._show()
        self._observers.remove(observer)

    def _show_some(self) -> None:
        """For SHOWING_SECONDS; the loop gets its turn before the rest."""
        deadline = monotonic() + SHOWING_SECONDS
        while self._show(SHOWN_AT_ONCE):
            if monotonic() >= deadline:
                self._lanes.ring()
                return

    def _show(self, most: int = SHOWN_MAX) -> bool:
        """So many frames of each lane, if there are as many; whether there were any."""
        shown = self._lanes.shown(most)
        for point, number, frame, reason in shown:
            network = None if number is None else self._names[number]
            verdict = None if reason is None else Drop(REASONS[reason])
            for observer in tuple(self._observers):
                observer.observe(POINTS[point], network, frame, verdict)
        return bool(shown)

    def flows(self) -> Iterator[FlowStatistics]:
        """Every remembered verdict."""
        for network in tuple(self._networks.values()):
            for row in self._remembered(self._lanes.egress_flows, network.number):
                yield from self._flow(network, Direction.EGRESS, None, row)
            for route in tuple(network.routes.values()):
                for row in self._remembered(self._lanes.ingress_flows, route.number):
                    yield from self._flow(network, Direction.INGRESS, route.id, row)

    def _remembered(self, look: Look, number: int) -> Iterator[_native.FlowRow]:
        """The rows of that flow table in every lane."""
        for lane in range(self._lanes.lanes()):
            yield from _sliced(look, lane, number)

    def _flow(
        self, network: Network, direction: Direction, vtep: VtepId | None, row: _native.FlowRow
    ) -> Iterator[FlowStatistics]:
        """A row in words; none for one whose VTEP left since it was looked at."""
        row_key, kind, number, frames, octets, used_at = row
        key = network.key_of(row_key, direction)
        verdict: Verdict = Deliver()
        if kind == ENCAPSULATE:
            if number not in self._routes:
                return
            verdict = Encapsulate(self._routes[number].id)
        elif kind == REPLICATE:
            verdict = Replicate(EVERY_VTEP)
        elif kind == DROP:
            verdict = Drop(REASONS[number])
        yield FlowStatistics(network.id, direction, vtep, key, verdict, frames, octets, used_at)

    def activity(self, *, since: float) -> Iterator[Activity]:
        """The source MACs that ingress flows have carried at or after `since`."""
        for network in tuple(self._networks.values()):
            if network.router is not None:
                continue  # there are no MACs in it
            for route in tuple(network.routes.values()):
                for key, _, _, _, _, used_at in self._remembered(self._lanes.ingress_flows, route.number):
                    if used_at >= since:
                        yield Activity(network.id, Mac(key[6:12]), route.id, used_at)

    def statistics(self) -> DatapathStatistics:
        """A snapshot of what went where."""
        drops: dict[NetworkId | None, dict[DropReason, int]] = {}
        for number, counts in self._lanes.drops():
            network_id = None if number is None else self._names[number]
            for reason, count in counts:
                of_network = drops.setdefault(network_id, {})
                of_network[REASONS[reason]] = of_network.get(REASONS[reason], 0) + count
        remembered = self._lanes.flow_counts()
        return DatapathStatistics(
            ledger=Ledger(*self._lanes.ledger()),
            drops=drops,
            vteps=tuple(self._vtep_statistics()),
            flows={network.id: remembered[network.number] for network in self._networks.values()},
            upcalls=self._upcalls,
        )

    def _vtep_statistics(self) -> Iterator[VtepStatistics]:
        rows = {row[0]: row for row in self._lanes.vteps()}
        for network in self._networks.values():
            for route in network.routes.values():
                _, sent_frames, sent_octets, received_frames, received_octets, drops = rows[route.number]
                yield VtepStatistics(
                    network.id,
                    route.id,
                    sent_frames,
                    sent_octets,
                    received_frames,
                    received_octets,
                    {REASONS[reason]: count for reason, count in drops},
                )


def packet_decider(attachment: Attachment) -> PacketDecider:
    """Who decides in a network of bare packets, its device being a TUN.

    Raises:
        TypeError: One of the two is of the other kind.
    """
    decider, device = attachment.decider, attachment.device
    if not isinstance(decider, PacketDecider) or not isinstance(device, PacketDevice):
        kinds = f"{type(decider).__name__} and {type(device).__name__}"
        raise TypeError(
            f"expected a PacketDecider and a PacketDevice for {attachment.network}, found {kinds}"
        )
    return decider


def _sliced(look: Look, lane: int, number: int) -> Iterator[_native.FlowRow]:
    """The rows of one flow table, FLOWS_PER_LOOK at a time: the lane is never held for longer."""
    start: int | None = 0
    while start is not None:
        rows, start = look(lane, number, start, FLOWS_PER_LOOK)
        yield from rows
