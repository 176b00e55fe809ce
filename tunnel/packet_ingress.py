"""Ingress of bare packets: underlay → TUN, from Flannel's UDP format.

    drain_packets ─▶ packets of one read ─▶ VTEP ─▶ header sound, TTL − 1 ─▶ both subnets: flow remembered?
                                                       └▶ ICMP error            └▶ upcall
                                            `tunnel.ingress`: merge, repair, write ◀─┘

A run that `UDP_GRO` has joined is taken apart, each packet with an Ethernet header of its own before it,
which costs a copy; neighbours that may be delivered are merged again as frames are.

A packet whose time is over came through the tunnel, and so does what its sender is told: back to the VTEP
that brought it, whose host knows the way.

Heads up: read `tunnel.flannel_udp`, and RFC 1812 section 5.2 before changing this file.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from overlay.verdict import Deliver, DropReason
from tunnel.carriage import (
    QUIET_SECONDS,
    READS_PER_TURN,
    TURN_SECONDS,
    NetworkCarriage,
    PortCarriage,
    VtepCarriage,
)
from tunnel.ecn import mark_congested_untrusted
from tunnel.flannel_udp import ETHERNET, forward_untrusted
from tunnel.flows import Flow, Held
from tunnel.ingress import CONTROL_ROOM, UNMARKED, Ingress, read_control, reason_of
from tunnel.interfaces import Buffer, Point
from tunnel.meter import UpcallKind
from tunnel.offload import ETHERNET_LENGTH
from tunnel.packet_carriage import WIRE_ID, Dressed, PacketCarriage
from tunnel.recorder import Recorder
from tunnel.upcalls import Upcalls

_ADDRESSES = struct.Struct("!II")  # source, destination
ENDS = slice(ETHERNET_LENGTH + 12, ETHERNET_LENGTH + 20)  # where they stand in a frame

DELIVER = Deliver()


class PacketIngress(Ingress):
    """The way in of one engine, for packets."""

    def __init__(
        self,
        recorder: Recorder,
        upcalls: Upcalls,
        *,
        clock: Callable[[], float],
        reply: Callable[[NetworkCarriage, VtepCarriage, bytes], None],
    ) -> None:
        """`reply` sends a VTEP a packet of our own making."""
        super().__init__(recorder, upcalls, clock=clock)
        self._reply = reply

    def drain_packets(self, port: PortCarriage) -> bool:
        """HOT PATH: runs once per read from the underlay, whoever sent it; whether anything was there."""
        clock, receive_into, slot = self._clock, port.socket.receive_into, port.slots[0]
        view = slot.view
        started_at = clock()
        deadline = started_at + TURN_SECONDS
        is_quiet = started_at - port.drained_at > QUIET_SECONDS  # see `tunnel.egress`
        was_there = False
        for _ in range(1 if is_quiet else READS_PER_TURN):
            try:
                octets, ancillary, _, sockaddr = receive_into(slot.buffers, CONTROL_ROOM)
            except OSError:
                break
            was_there = True
            now = clock()
            stride, is_marked = None, False
            if ancillary not in UNMARKED:
                stride, is_marked = read_control(ancillary)
            end = ETHERNET_LENGTH + octets
            frames = [view[:end]] if stride is None or stride >= octets else [*_apart(view[:end], stride)]
            self._receive_packets(port, frames, sockaddr[0], now=now, is_marked=is_marked)
            if now >= deadline:
                break
        self._upcalls.answer()
        port.drained_at = clock()
        return was_there

    def _receive_packets(
        self, port: PortCarriage, frames: list[memoryview], host: str, *, now: float, is_marked: bool
    ) -> None:
        """The packets of one read, all from one sender."""
        recorder, network = self._recorder, port.networks[WIRE_ID]
        recorder.counters.received += len(frames)
        if recorder.observers:
            for frame in frames:
                recorder.show(Point.UNDERLAY_RECEIVE, network, frame)
        vtep = network.by_host.get(host)
        if vtep is None or not isinstance(network, PacketCarriage):
            for frame in frames:
                recorder.drop(DropReason.UNKNOWN_VTEP, network, frame)
            return
        ready: list[memoryview] = []
        ends, flow = b"", None  # neighbours mostly have the same two, and no flow comes or goes meanwhile
        for frame in frames:
            if frame[ENDS] != ends or flow is None:
                ends, flow = frame[ENDS].tobytes(), self._flow(network, vtep, frame)
            packet = self._accept(network, vtep, flow, frame, now=now, is_marked=is_marked)
            if packet is not None:
                ready.append(packet)
        if len(ready) > 1:
            self._carry_together(network, vtep, DELIVER, ready)
        elif ready:
            self._carry_one(network, vtep, DELIVER, ready[0], None)

    @staticmethod
    def _flow(network: PacketCarriage, vtep: VtepCarriage, frame: memoryview) -> Flow | None:
        """The flow of what may yet turn out to be no packet."""
        if len(frame) < ENDS.stop:
            return None
        return vtep.ingress.active.get(_key(network, frame))

    def _accept(
        self,
        network: PacketCarriage,
        vtep: VtepCarriage,
        flow: Flow | None,
        frame: memoryview,
        *,
        now: float,
        is_marked: bool,
    ) -> memoryview | None:
        """HOT PATH: one packet that may be delivered, else None: it waits for its verdict, or is counted."""
        length = forward_untrusted(frame)
        if isinstance(length, DropReason):
            self._refuse(network, vtep, length, frame)
            return None
        packet = frame[:length]
        if is_marked and (reason := mark_congested_untrusted(packet)) is not None:
            self._recorder.drop(reason, network, packet, vtep)  # RFC 6040 section 4.2
            return None
        if flow is None:
            key = _key(network, packet)
            vtep.received_frames += 1
            vtep.received_octets += length - ETHERNET_LENGTH
            self._upcalls.ask(vtep.ingress, network, vtep, Held(bytes(packet)), now=now, key=key)
            return None
        self._count(vtep, flow, 1, length - ETHERNET_LENGTH, now=now)
        if type(flow.verdict) is Deliver:
            return packet
        self._recorder.drop(reason_of(flow.verdict), network, packet, vtep)
        return None

    def _refuse(
        self, network: PacketCarriage, vtep: VtepCarriage, reason: DropReason, frame: memoryview
    ) -> None:
        """Counted; where its time is over, its sender is told (within the meter)."""
        self._recorder.drop(reason, network, frame, vtep)
        if reason is not DropReason.TTL_EXPIRED or not self._upcalls.meter.admits(
            UpcallKind.ICMP_ERROR, vtep.id, now=self._clock()
        ):
            return
        packet = network.router.expired(bytes(frame[ETHERNET_LENGTH:]))
        if packet is not None:
            self._reply(network, vtep, packet)

    def answer(self, network: NetworkCarriage, _: bytes, buffers: tuple[Buffer, ...]) -> None:
        """Gives the host a packet of our own making; `buffers` are its octets."""
        packet = b"".join(buffers)
        try:
            if isinstance(network.device, Dressed):
                network.device.device.answer(packet)
        except OSError:
            self._recorder.drop(DropReason.DEVICE_FULL, network, ETHERNET + packet)
            return
        self._recorder.counters.delivered += 1
        if self._recorder.observers:
            self._recorder.show(Point.DEVICE_WRITE, network, ETHERNET + packet)


def _key(network: PacketCarriage, frame: memoryview) -> bytes:
    source, destination = _ADDRESSES.unpack_from(frame, ENDS.start)
    key_of = network.router.key_of
    return key_of(source) + key_of(destination)


def _apart(run: memoryview, stride: int) -> Iterator[memoryview]:
    """The packets of a run, each behind an Ethernet header of its own, and writable."""
    pieces: list[Buffer] = []
    for at in range(ETHERNET_LENGTH, len(run), stride):
        pieces += (ETHERNET, run[at : at + stride])
    apart = memoryview(bytearray(b"".join(pieces)))
    for at in range(0, len(apart), ETHERNET_LENGTH + stride):
        yield apart[at : at + ETHERNET_LENGTH + stride]
