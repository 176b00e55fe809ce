"""Ingress: underlay → device.  The functions stand in the order the datagram meets them.

    drain ─▶ a datagram alone, of a flow remembered ──────────────────────────────────────▶ write
     └▶ datagrams of one read ─▶ header, network, VTEP ─▶ flow remembered? ─▶ carry ─▶ write
                                                                     └▶ upcall      merge ─┘

One read gives a datagram; a run of equal ones that `UDP_GRO` has joined; or a whole super-frame that a
kernel VXLAN node on the same host sent unsegmented.  Neighbours of one flow within a run are merged into
one write, checksums verified first; the rest is written as it is, repaired where its sender left a
checksum unfinished (`tunnel.offload`).  TCP segments at a read's end which no PSH closes wait while the turn
goes on reading, at most READS_JOINED times: a burst too long for one send is still one write.  After each run
the core is given away.

Heads up: read RFC 7348 section 5 and RFC 6040 section 4.2 before changing this file.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Callable
from typing import NamedTuple

from overlay.discovery import may_be_discovery_untrusted
from overlay.verdict import Deliver, Drop, DropReason, Verdict
from tunnel.carriage import (
    QUIET_SECONDS,
    READS_PER_TURN,
    TURN_SECONDS,
    NetworkCarriage,
    PortCarriage,
    ReadSlot,
    VtepCarriage,
)
from tunnel.ecn import CE, mark_congested_untrusted
from tunnel.egress import IP_TOS, IPV6_TCLASS
from tunnel.flows import Flow, Held
from tunnel.interfaces import Ancillary, Buffer, Point
from tunnel.merge import Lost, count_open_untrusted, merge_untrusted
from tunnel.offload import ETHERNET_LENGTH, PLAIN, is_super_frame_untrusted, repair_untrusted
from tunnel.recorder import Recorder
from tunnel.upcalls import Upcalls
from tunnel.vxlan import HEADER_LENGTH, I_FLAG

# From the specification
I_WORD = I_FLAG << 24  # a VXLAN header's first word with nothing reserved set (RFC 7348 section 5)
UDP_GRO = (17, 104)

# Ours
CONTROL_ROOM = 128  # octets for control messages: an ECN field, a segment size, and room to spare

_VXLAN_AND_FLOW = struct.Struct("!I I 12s")
_I_FLAG_ALONE = I_WORD.to_bytes(4)
FLOW_END = HEADER_LENGTH + 14  # of a datagram: VXLAN header, both MACs, EtherType

# The control messages of nearly every datagram, over IPv4 and IPv6: an ECN field that says nothing.
UNMARKED: tuple[Ancillary, ...] = ([(*IP_TOS, bytes(1))], [(*IPV6_TCLASS, bytes(4))])


class _Tail(NamedTuple):
    """Segments at the end of a read which the next one may continue, counted and not yet carried.

    `frames` are BORROWED from the port's slots, which are not read to while they wait.
    """

    network: NetworkCarriage
    vtep: VtepCarriage
    flow: Flow
    frames: list[memoryview]


class Ingress:
    """The way in of one engine."""

    def __init__(
        self,
        recorder: Recorder,
        upcalls: Upcalls,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._recorder = recorder
        self._upcalls = upcalls
        self._clock = clock
        self._tail: _Tail | None = None  # never beyond a turn

    def drain(self, port: PortCarriage) -> None:
        """HOT PATH: one read after a pause, else a turn of a burst, whoever sent it (see `tunnel.egress`)."""
        now = self._clock()
        if now - port.drained_at > QUIET_SECONDS:
            self._drain_alone(port, now)
        else:
            self._drain_burst(port, now)
        port.drained_at = self._clock()

    def _drain_alone(self, port: PortCarriage, now: float) -> None:
        """HOT PATH: one read, on cold caches.

        A datagram of a flow that is to be delivered goes its shortest way; what `UDP_GRO` has joined, what is
        marked or cut off or not known goes the way of a burst.
        """
        slot = port.slots[0]
        try:
            octets, ancillary, _, sockaddr = port.socket.receive_into(slot.buffers, CONTROL_ROOM)
        except OSError:
            return
        recorder = self._recorder
        network, vtep, flow = self._look_up(port, slot.view, sockaddr[0])
        if (
            network is None
            or vtep is None
            or flow is None
            or octets < FLOW_END
            or type(flow.verdict) is not Deliver
            or ancillary not in UNMARKED
            or recorder.observers
        ):
            slot.octets = octets
            try:
                self._receive_read(port, slot, ancillary, sockaddr[0], now)
            finally:
                self._end_turn()
            return
        self._deliver(network, vtep, slot.view[HEADER_LENGTH:octets], None)
        recorder.counters.received += 1
        self._count(vtep, flow, 1, octets - HEADER_LENGTH, now=now)

    def _drain_burst(self, port: PortCarriage, now: float) -> None:
        """HOT PATH: a turn of what the underlay brings."""
        clock, receive_into = self._clock, port.socket.receive_into
        deadline = now + TURN_SECONDS
        slots, used = port.slots, 0
        try:
            for _ in range(READS_PER_TURN):
                slot = slots[used]
                try:
                    slot.octets, ancillary, _, sockaddr = receive_into(slot.buffers, CONTROL_ROOM)
                except OSError:
                    break
                now = clock()
                self._receive_read(port, slot, ancillary, sockaddr[0], now)
                used += 1  # while something waits, every read has a slot of its own
                if used == len(slots):
                    self._carry_tail()
                if self._tail is None:
                    used = 0
                if now >= deadline:
                    break
        finally:
            self._end_turn()

    def _end_turn(self) -> None:
        """Carries what waits for a further read, and has the questions answered that were asked."""
        self._carry_tail()
        self._upcalls.answer()

    def _receive_read(
        self, port: PortCarriage, slot: ReadSlot, ancillary: Ancillary, host: str, now: float
    ) -> None:
        """HOT PATH: what one read to the slot has brought: a datagram, a super-frame or a run."""
        stride, is_marked = None, False
        if ancillary not in UNMARKED:
            stride, is_marked = read_control(ancillary)
        read = slot.view[: slot.octets]
        if stride is None or stride >= slot.octets:
            self._receive_single(port, read, host, now=now, is_marked=is_marked)
        elif not is_super_frame_untrusted(read[HEADER_LENGTH:]):
            self._receive_run(port, slot, stride, host, now=now, is_marked=is_marked)
        elif _begins_datagram(port, read[stride:]):
            self._refuse_ambiguous(port, read, stride, host)
        else:
            self._carry_tail()
            self._receive(port, read, host, stride, now=now, is_marked=is_marked)

    def _refuse_ambiguous(self, port: PortCarriage, read: memoryview, stride: int, host: str) -> None:
        """Drops what may be a super-frame or a run, each of its datagrams counted.

        Whoever wrote it made it so: a length that lies would take others' datagrams along, and a payload that
        looks like a datagram would be taken for one of another network.
        """
        recorder, network, count = self._recorder, _network_of(port, read), -(-len(read) // stride)
        vtep = None if network is None else network.by_host.get(host)
        recorder.counters.received += count
        if recorder.observers:
            recorder.show(Point.UNDERLAY_RECEIVE, network, read[HEADER_LENGTH:])
        recorder.drop(DropReason.INNER_MALFORMED, network, read[HEADER_LENGTH:], vtep, frames=count)

    def _receive_run(
        self,
        port: PortCarriage,
        slot: ReadSlot,
        stride: int,
        host: str,
        *,
        now: float,
        is_marked: bool,
    ) -> None:
        """A run of datagrams of `stride` octets, the last perhaps shorter, all from one sender.

        HOT PATH: neighbours that agree in VXLAN header, MACs and EtherType are one flow's, and are looked
        at once.  Octets compare faster than a view of them does.
        """
        at, end, received = 0, slot.octets, slot.datagram
        run = slot.view[:end]
        while at < end:
            first, after = received[at : at + FLOW_END], at + stride
            while after < end and received.startswith(first, after, end):
                after += stride
            if after - at == stride:
                self._receive_single(port, run[at:after], host, now=now, is_marked=is_marked)
            else:
                group = [run[start : min(start + stride, end)] for start in range(at, after, stride)]
                self._receive_group(port, group, host, now=now, is_marked=is_marked)
            at = after
        # Who is to read them may wait for this core, and has room for four short runs.
        os.sched_yield()

    def _receive_single(
        self, port: PortCarriage, datagram: memoryview, host: str, *, now: float, is_marked: bool
    ) -> None:
        """One datagram, which may go on with the segments that wait."""
        if self._tail is not None:
            first = self._tail.frames[0]
            if datagram[HEADER_LENGTH:FLOW_END] == first[:ETHERNET_LENGTH]:
                self._receive_group(port, [datagram], host, now=now, is_marked=is_marked)
                return
            self._carry_tail()
        self._receive(port, datagram, host, None, now=now, is_marked=is_marked)

    def _receive_group(
        self, port: PortCarriage, group: list[memoryview], host: str, *, now: float, is_marked: bool
    ) -> None:
        """Datagrams of one flow: carried together where it is remembered, else one by one."""
        if not is_marked:
            network, vtep, flow = self._look_up(port, group[0], host)
            if network is not None and vtep is not None and flow is not None and not self._recorder.observers:
                octets = sum(map(len, group)) - HEADER_LENGTH * len(group)
                self._recorder.counters.received += len(group)
                self._count(vtep, flow, len(group), octets, now=now)
                self._join(network, vtep, flow, [each[HEADER_LENGTH:] for each in group])
                return
        self._carry_tail()
        for datagram in group:
            self._receive(port, datagram, host, None, now=now, is_marked=is_marked)

    def _join(
        self, network: NetworkCarriage, vtep: VtepCarriage, flow: Flow, frames: list[memoryview]
    ) -> None:
        """Frames of one flow, behind those that wait: carried, but for what the next read may continue.

        The first is the longest: of a read it is, and longer ones never go on with those that wait.
        """
        if self._tail is not None:
            if self._tail.flow is flow and len(frames[0]) <= len(self._tail.frames[0]):
                frames = self._tail.frames + frames
                self._tail = None
            else:
                self._carry_tail()
        count = 0
        if type(flow.verdict) is Deliver and network.attachment.repairs:
            count = count_open_untrusted(frames, overlay_mtu=network.overlay_mtu)
        ready = len(frames) - count
        if count:
            self._tail = _Tail(network, vtep, flow, frames[ready:])
        if ready:
            self._carry_together(network, vtep, flow.verdict, frames[:ready])

    def _carry_tail(self) -> None:
        """No further segments are waited for."""
        if self._tail is not None:
            network, vtep, flow, frames = self._tail
            self._tail = None
            self._carry_together(network, vtep, flow.verdict, frames)

    def _look_up(
        self, port: PortCarriage, datagram: memoryview, host: str
    ) -> tuple[NetworkCarriage | None, VtepCarriage | None, Flow | None]:
        """The flow of a datagram with nothing to object to; Nones where `_receive` must look closer."""
        if len(datagram) < FLOW_END:
            return None, None, None
        word, vni_word, key = _VXLAN_AND_FLOW.unpack_from(datagram)
        network = port.networks.get(vni_word >> 8)
        if word != I_WORD or vni_word & 0xFF or network is None:
            return None, None, None
        vtep = network.by_host.get(host)
        if vtep is None or key[0] & 1:
            return None, None, None
        return network, vtep, vtep.ingress.active.get(key)

    def _receive(
        self,
        port: PortCarriage,
        datagram: memoryview,
        host: str,
        segment_size: int | None,
        *,
        now: float,
        is_marked: bool,
    ) -> None:
        """HOT PATH: one datagram, checked from the outside in: header, network, sender, flow."""
        recorder = self._recorder
        recorder.counters.received += 1
        octets = len(datagram)
        if octets < FLOW_END:
            recorder.drop(DropReason.TRUNCATED, _network_of(port, datagram), datagram)
            return
        word, vni_word, key = _VXLAN_AND_FLOW.unpack_from(datagram)
        network = port.networks.get(vni_word >> 8)
        frame = datagram[HEADER_LENGTH:]
        if recorder.observers:
            recorder.show(Point.UNDERLAY_RECEIVE, network, frame)
        if not word & I_WORD:
            recorder.drop(DropReason.BAD_FLAGS, None, frame)  # RFC 7348 section 5: I MUST be 1
        elif network is None:
            recorder.drop(DropReason.UNKNOWN_VNI, None, frame)
        elif network.is_strict and (word != I_WORD or vni_word & 0xFF):
            recorder.drop(DropReason.RESERVED_BITS, network, frame)
        elif (vtep := network.by_host.get(host)) is None:
            recorder.drop(DropReason.UNKNOWN_VTEP, network, frame)
        elif is_marked and (reason := mark_congested_untrusted(frame)) is not None:
            recorder.drop(reason, network, frame, vtep)  # RFC 6040 section 4.2
        else:
            flow = vtep.ingress.active.get(key)
            if flow is None or (key[0] & 1 and network.suppresses and may_be_discovery_untrusted(frame)):
                vtep.received_frames += 1
                vtep.received_octets += len(frame)
                held = Held(bytes(frame), segment_size=segment_size)
                self._upcalls.ask(vtep.ingress, network, vtep, held, now=now)
            else:
                self._count(vtep, flow, 1, len(frame), now=now)
                self._carry_one(network, vtep, flow.verdict, frame, segment_size)

    @staticmethod
    def _count(vtep: VtepCarriage, flow: Flow, frames: int, octets: int, *, now: float) -> None:
        vtep.received_frames += frames
        vtep.received_octets += octets
        flow.frames += frames
        flow.octets += octets
        flow.used_at = now

    def carry(self, network: NetworkCarriage, vtep: VtepCarriage, verdict: Verdict, held: Held) -> None:
        """Does what the verdict says with one frame that has waited for it."""
        self._carry_one(network, vtep, verdict, memoryview(held.frame), held.segment_size)

    def _carry_one(
        self,
        network: NetworkCarriage,
        vtep: VtepCarriage,
        verdict: Verdict,
        frame: memoryview,
        segment_size: int | None,
    ) -> None:
        """HOT PATH: does what the verdict says with one frame."""
        if type(verdict) is Deliver:
            self._deliver(network, vtep, frame, segment_size)
        else:
            self._recorder.drop(reason_of(verdict), network, frame, vtep)

    def _deliver(
        self, network: NetworkCarriage, vtep: VtepCarriage, frame: memoryview, segment_size: int | None
    ) -> None:
        """HOT PATH: one frame to the device, repaired on the way."""
        header: bytes | DropReason = PLAIN
        if network.attachment.repairs:
            mss = self._segment_limit(network, frame) if network.segment_limits else None
            header = repair_untrusted(
                frame, overlay_mtu=network.overlay_mtu, segment_size=segment_size, mss=mss
            )
        if isinstance(header, DropReason):
            self._recorder.drop(header, network, frame, vtep)
            return
        try:
            network.device.write((header, frame))
        except OSError as error:
            self._not_written(network, (frame,), vtep, 1, error)
            return
        self._recorder.counters.delivered += 1
        if self._recorder.observers:
            self._recorder.show(Point.DEVICE_WRITE, network, frame)

    def _carry_together(
        self, network: NetworkCarriage, vtep: VtepCarriage, verdict: Verdict, frames: list[memoryview]
    ) -> None:
        """HOT PATH: frames of one flow from one turn, the longest first, merged where that is allowed."""
        if type(verdict) is not Deliver:
            for frame in frames:
                self._recorder.drop(reason_of(verdict), network, frame, vtep)
            return
        if not network.attachment.repairs:
            for frame in frames:
                self.write(network, PLAIN, (frame,), vtep)
            return
        limit = self._segment_limit(network, frames[0]) if network.segment_limits else None
        for outcome in merge_untrusted(
            frames, overlay_mtu=network.overlay_mtu, udp=network.merges_udp, mss=limit
        ):
            if isinstance(outcome, Lost):
                self._recorder.drop(outcome.reason, network, outcome.frame, vtep)
            else:
                self.write(network, outcome.header, outcome.buffers, vtep, frames=outcome.frames)

    @staticmethod
    def _segment_limit(network: NetworkCarriage, frame: memoryview) -> int | None:
        """The smallest segment the receivers of this flow are known to need; of no use for a short frame."""
        if len(frame) <= network.overlay_mtu + ETHERNET_LENGTH:
            return None
        return network.segment_limits.get(bytes(frame[0:12]))

    def write(
        self,
        network: NetworkCarriage,
        header: bytes,
        buffers: tuple[Buffer, ...],
        vtep: VtepCarriage | None = None,
        *,
        frames: int = 1,
    ) -> None:
        """HOT PATH: one frame, or one that stands for several, to the device."""
        try:
            network.device.write((header, *buffers))
        except OSError as error:
            self._not_written(network, buffers, vtep, frames, error)
            return
        self._recorder.counters.delivered += frames
        if self._recorder.observers:
            self._recorder.show(Point.DEVICE_WRITE, network, b"".join(buffers))

    def _not_written(
        self,
        network: NetworkCarriage,
        buffers: tuple[Buffer, ...],
        vtep: VtepCarriage | None,
        frames: int,
        error: OSError,
    ) -> None:
        """Counts a refused write.  EINVAL is about the contents, which a stranger chose; else the device."""
        is_frame = error.errno == errno.EINVAL
        reason = DropReason.INNER_MALFORMED if is_frame else DropReason.DEVICE_FULL
        self._recorder.drop(reason, network, b"".join(buffers), vtep, frames=frames)


def read_control(ancillary: Ancillary) -> tuple[int | None, bool]:
    """The `UDP_GRO` value, if there is one; and whether the outer header says congestion experienced."""
    stride, is_marked = None, False
    for level, kind, value in ancillary:
        if (level, kind) == UDP_GRO:
            stride = int.from_bytes(value, sys.byteorder)
        elif (level, kind) in (IP_TOS, IPV6_TCLASS):  # one octet for IPv4, an int for IPv6
            is_marked = int.from_bytes(value, sys.byteorder) & 0b11 == CE
    return stride or None, is_marked


def _begins_datagram(port: PortCarriage, octets: memoryview) -> bool:
    """Whether a datagram for one of the port's networks may begin there: a VXLAN header of theirs does.

    One with nothing reserved set: where payload may be anything, less would be found by chance.
    """
    return octets[:4] == _I_FLAG_ALONE and _network_of(port, octets) is not None


def _network_of(port: PortCarriage, datagram: memoryview) -> NetworkCarriage | None:
    """Whose a datagram is that ends too soon, as far as it can be told."""
    return port.networks.get(int.from_bytes(datagram[4:7])) if len(datagram) >= HEADER_LENGTH else None


def reason_of(verdict: Verdict) -> DropReason:
    """Why a verdict that is not to deliver loses the frame."""
    return verdict.reason if isinstance(verdict, Drop) else DropReason.SPLIT_HORIZON
