"""Egress: device → underlay.  The functions stand in the order the frame meets them.

    drain ─▶ a frame alone, of a flow remembered ─────────────────────▶ one send
     ├▶ it follows its like? ─▶ train ──────────────────▶ batch
     └▶ meet ─▶ flow remembered? ─▶ carry ─▶ _offer ─▶ batch ─▶ flush ─▶ one send
                 └▶ upcall           └▶ a super-frame ─▶ whole, by the super door
                                                       └▶ split ─▶ runs ─▶ one send each

Frames are read in place, each into a slot of its network's ring, the VXLAN header already standing before
them; nothing is copied on the hot path.  Frames of one size and ECN field for one VTEP and source port
leave together in one `UDP_SEGMENT` send; whatever is open when the drain ends is flushed, so batching never
waits for a frame.  A flow keeps to one source port, hence to one batch, and stays in order.

Over 500 lines: what may become of a frame is read in one piece, and half of it is what befalls a send.

Heads up: read udp(7), UDP_SEGMENT, and RFC 6040 section 4.1 before changing this file.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Callable, Iterable
from typing import Any

from overlay.discovery import may_be_discovery_untrusted
from overlay.verdict import Deliver, Drop, DropReason, Encapsulate, Replicate, Reply, Verdict
from tunnel.carriage import (
    FRAMES_PER_TURN,
    QUIET_SECONDS,
    TURN_SECONDS,
    Batch,
    NetworkCarriage,
    Slot,
    VtepCarriage,
)
from tunnel.ecn import inner_ecn_untrusted
from tunnel.entropy import flow_hash_untrusted
from tunnel.flows import PENDING_FRAMES_MAX, Flow, Held
from tunnel.interfaces import Buffer, Point, Reactor, Underlay
from tunnel.ladder import Feature
from tunnel.meter import UpcallKind
from tunnel.offload import (
    COMMON_LENGTH,
    ETHERNET_LENGTH,
    GSO_NONE,
    NEEDS_CSUM,
    PLAIN,
    TCP,
    TCP_CHECKSUM,
    UDP,
    UDP_CHECKSUM,
    UDP_LENGTH,
    VNET_HEADER_LENGTH,
    VnetHeader,
    syn_mss_untrusted,
)
from tunnel.recorder import Recorder
from tunnel.split import finish_untrusted, locate_untrusted, split_untrusted
from tunnel.sums import WORD_MAX
from tunnel.train import UNFINISHED, Train
from tunnel.upcalls import UPCALLS_PER_TURN, Upcalls
from tunnel.vxlan import HEADER_LENGTH

# From the specification
IPV4, IPV6 = UNTAGGED_IP = (0x0800, 0x86DD)  # EtherTypes
SYN = 0x02  # RFC 9293 section 3.1
ECN = 0b11  # of the TOS octet (RFC 3168 section 5)
FRAGMENT = 0x3FFF  # IPv4: more fragments, or an offset (RFC 791 section 3.1)
IP_TOS, IPV6_TCLASS = (0, 1), (41, 67)  # (level, type) of the control messages that carry an ECN field
UDP_SEGMENT = (17, 103)

# What the hot path reads of a frame in one go: both MACs, EtherType, and, where it is IPv4, version and
# header length, TOS, fragment field, protocol; without options addresses with ports.  Read before it is known
# to be there: the buffer is longer than this.  What lies past the frame's end is an earlier frame's, and
# leads at most to a closer look.
_FRAME = struct.Struct("!12s H B B 4x H x B 2x 12s")
_Fields = tuple[Any, ...]
_TCP_FLAGS_AT = HEADER_LENGTH + ETHERNET_LENGTH + 20 + 13  # in a datagram, of a frame without options
_NO_OPTIONS = 0x45  # version 4, and five words of header (RFC 791 section 3.1)
_PORTS_END = ETHERNET_LENGTH + 20 + 4  # of a frame that has all that tells its flow from others
_UDP_END = ETHERNET_LENGTH + 20 + UDP_LENGTH

# Where a checksum that a device has left to us stands in the datagram, by the frame's virtio header: of TCP
# and UDP in IPv4 without options.  0: it is finished.  Any other header wants a closer look.
_L4_AT = HEADER_LENGTH + ETHERNET_LENGTH + 20
_CHECKSUM_AT = {PLAIN: 0} | {
    VnetHeader(NEEDS_CSUM, checksum_start=_L4_AT - HEADER_LENGTH, checksum_offset=at).build(): _L4_AT + at
    for at in (TCP_CHECKSUM, UDP_CHECKSUM)
}
_Checksum = struct.Struct("!H")

# What a full queue looks like, and a device that is gone.
FULL = frozenset((errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM))
OWN = FULL | {errno.EPERM}
GONE = frozenset((errno.EBADFD, errno.EBADF, errno.ENODEV, errno.ENXIO))
NO_SEGMENTATION = frozenset((errno.EIO, errno.EINVAL))  # no checksum offload on the way; a driver's refusal

# Ours
UNKNOWN_PER_TURN = min(UPCALLS_PER_TURN, PENDING_FRAMES_MAX)  # more are not answered at once, or have no room
SEND_TRIES = 8  # of a send; each that fails may tell of an earlier datagram


class Egress:
    """The way out of one engine."""

    def __init__(
        self,
        recorder: Recorder,
        upcalls: Upcalls,
        *,
        reactor: Reactor,
        clock: Callable[[], float],
        write: Callable[[NetworkCarriage, bytes, tuple[Buffer, ...]], None],
        hear_refusals: Callable[[Underlay], None],
    ) -> None:
        """`write` gives a network's device a frame of ours; `hear_refusals` has ICMP errors read, soon."""
        self._recorder = recorder
        self._upcalls = upcalls
        self._reactor = reactor
        self._clock = clock
        self._write = write
        self._hear_refusals = hear_refusals
        self._open: list[tuple[NetworkCarriage, VtepCarriage, Batch]] = []

    def drain(self, network: NetworkCarriage) -> None:
        """HOT PATH: one frame after a pause, else a turn of a burst.

        Who was quiet has most likely one frame to say, and waits for the answer.  Asking for more would cost
        a system call, and the loop comes back at once if there is more.
        """
        now = self._clock()
        if now - network.drained_at > QUIET_SECONDS:
            self._drain_alone(network, now)
        else:
            self._drain_burst(network, now)
        network.drained_at = self._clock()

    def _drain_alone(self, network: NetworkCarriage, now: float) -> None:
        """HOT PATH: one frame, on cold caches, where every line costs several times what it does in a burst.

        So a frame with nothing to ask about it goes its shortest way, past the batches: one of IPv4 without
        options and of a flow that is remembered, with the protocol, addresses and ports of the last.  Any
        other goes the way of a burst.  What the flow and its VTEP carried is counted once it has left.
        """
        slot = header, datagram, buffers = network.slots[0]
        try:
            octets = network.device.read_into(buffers) - VNET_HEADER_LENGTH
        except OSError as error:
            self._stop_if_gone(network, error)
            return
        recorder, end = self._recorder, HEADER_LENGTH + octets
        recorder.counters.received += 1
        fields = _FRAME.unpack_from(datagram, HEADER_LENGTH)
        key, ethertype, version, tos, fragment, protocol, selector = fields
        flow = network.egress.active.get(key)
        if (
            flow is None
            or (vtep := flow.target) is None
            or selector != flow.selector
            or protocol != flow.protocol
            or ethertype != IPV4
            or version != _NO_OPTIONS
            or tos & ECN
            or fragment & FRAGMENT
            or (protocol == TCP and datagram[_TCP_FLAGS_AT] & SYN)
            or (checksum_at := _CHECKSUM_AT.get(bytes(header))) is None
            or not COMMON_LENGTH <= octets <= vtep.frame_max
            or not vtep.senders
            or recorder.observers
        ):
            self._meet(network, slot, octets, fields, now)
            self._end_turn()
            return
        if checksum_at:
            total = int.from_bytes(datagram[_L4_AT:end], "big") << (octets & 1) * 8  # see `finish_untrusted`
            _Checksum.pack_into(datagram, checksum_at, WORD_MAX - total % WORD_MAX)
        try:
            vtep.senders[flow.entropy & vtep.mask].send(datagram[:end], vtep.sockaddr)
        except OSError as error:
            single = Batch(flow.entropy & vtep.mask)
            single.add(datagram[:end], end)
            self._send_again(network, vtep, single, error)
        else:
            recorder.counters.sent += 1
            vtep.sent_frames += 1
            vtep.sent_octets += octets
        flow.frames += 1
        flow.octets += octets
        flow.used_at = now

    def _drain_burst(self, network: NetworkCarriage, now: float) -> None:
        """HOT PATH: a turn of what the host sends; looks nothing up for what follows its like."""
        clock, read_into, counters = self._clock, network.device.read_into, self._recorder.counters
        deadline = now + TURN_SECONDS
        slots, used, unknown = network.slots, 0, 0
        last: _Fields | None = None
        train: Train | None = None
        try:
            for _ in range(FRAMES_PER_TURN):
                slot = header, datagram, buffers = slots[used]
                try:
                    octets = read_into(buffers) - VNET_HEADER_LENGTH
                except OSError as error:
                    self._stop_if_gone(network, error)
                    break
                counters.received += 1
                fields = _FRAME.unpack_from(datagram, HEADER_LENGTH)
                if train is not None:
                    if fields == last and train.takes(header, datagram, octets):
                        used += 1
                        continue
                    train.close()
                    train = None
                header_before = bytes(header) if fields == last else None
                last = fields
                now = clock()
                flow = self._meet(network, slot, octets, fields, now)
                if flow is None:
                    unknown += 1
                    if unknown == UNKNOWN_PER_TURN:
                        break
                elif header_before is not None:
                    train = self._train(flow, fields, header_before, octets)
                # Only what waits in a batch keeps its slot.  A super-frame has left: the next one finds that
                # memory in the cache, which 64 KB at every place would empty of everything else.
                used = used + 1 if self._open else 0
                if now >= deadline:
                    break
        finally:
            if train is not None:
                train.close()
            self._end_turn()

    def _stop_if_gone(self, network: NetworkCarriage, error: OSError) -> None:
        """Stops listening to a dead descriptor, or the loop would spin on it."""
        if error.errno in GONE:
            self._reactor.remove_reader(network.device.fileno())

    def _meet(
        self, network: NetworkCarriage, slot: Slot, octets: int, fields: _Fields, now: float
    ) -> Flow | None:
        """HOT PATH: a frame of so many octets that was read to the slot; its flow, if that is remembered."""
        header, datagram, _ = slot
        end = HEADER_LENGTH + octets
        key, ethertype, version, tos, fragment, protocol, selector = fields
        if self._recorder.observers:
            self._recorder.show(Point.DEVICE_READ, network, datagram[HEADER_LENGTH:end])
        is_plain = ethertype == IPV4 and version == _NO_OPTIONS
        if not is_plain or (protocol == TCP and datagram[_TCP_FLAGS_AT] & SYN):
            self._note_segment_limit(network, datagram[HEADER_LENGTH:end])
        flow = network.egress.active.get(key)
        if (
            flow is None
            or octets < ETHERNET_LENGTH
            or (key[0] & 1 and network.suppresses and may_be_discovery_untrusted(datagram[HEADER_LENGTH:end]))
        ):
            held = Held(bytes(datagram[HEADER_LENGTH:end]), bytes(header))
            self._upcalls.ask(network.egress, network, None, held, now=now)
            return None
        flow.frames += 1
        flow.octets += octets
        flow.used_at = now
        has_ports = is_plain and not fragment & FRAGMENT and octets >= _PORTS_END
        if selector != flow.selector or protocol != flow.protocol or not has_ports:
            flow.selector, flow.protocol = selector if has_ports else b"", protocol
            flow.entropy = flow_hash_untrusted(datagram[HEADER_LENGTH:end])
        # In a tagged frame another octet stands where the TOS is: then the right one is looked for.
        is_marked = bool(tos) or ethertype not in UNTAGGED_IP
        self._carry_known(network, flow, header, datagram[:end], is_marked=is_marked)
        return flow

    def _train(self, flow: Flow, fields: _Fields, header: bytes, octets: int) -> Train | None:
        """A train for what follows this frame, which came behind its like; None: that is to be asked."""
        _, ethertype, version, _, _, protocol, _ = fields
        vtep = flow.target
        if (
            protocol != UDP
            or ethertype != IPV4
            or version != _NO_OPTIONS
            or octets < _UDP_END
            or header not in (PLAIN, UNFINISHED)
            or self._recorder.observers
            or vtep is None
            or not vtep.segments
        ):
            return None
        batch = vtep.batch(flow.entropy)
        return Train(flow, batch, header) if batch.segment_size == HEADER_LENGTH + octets else None

    def _end_turn(self) -> None:
        """Sends the batches that are open, and has the questions answered that were asked."""
        if self._open:
            self._flush_all()
        self._upcalls.answer()

    def _carry_known(
        self,
        network: NetworkCarriage,
        flow: Flow,
        header: bytearray,
        datagram: memoryview,
        *,
        is_marked: bool,
    ) -> None:
        """HOT PATH: a frame whose flow is remembered; `is_marked`: it may have an ECN field."""
        vtep = flow.target
        if vtep is None:
            self._carry_verdict(network, flow.verdict, header, datagram)
            return
        ecn = inner_ecn_untrusted(datagram[HEADER_LENGTH:]) if is_marked else 0
        if header == PLAIN:
            self._offer(network, vtep, datagram, flow.entropy, ecn)
        else:
            self._offer_unfinished(network, vtep, header, datagram, flow.entropy, ecn)

    def carry(self, network: NetworkCarriage, verdict: Verdict, held: Held) -> None:
        """Does what the verdict says with one frame that has waited for it."""
        datagram = memoryview(bytearray(network.header + held.frame))
        self._carry_verdict(network, verdict, bytearray(held.header), datagram)
        self._flush_all()

    def _carry_verdict(
        self, network: NetworkCarriage, verdict: Verdict, header: bytearray, datagram: memoryview
    ) -> None:
        """`datagram` is the VXLAN header and the frame; it and `header` are ours to write to."""
        match verdict:
            case Encapsulate(vtep):
                self._offer_any(network, (network.vteps[vtep],), header, datagram)
            case Replicate():
                self._replicate(network, header, datagram)
            case Reply(frame):
                self._write(network, PLAIN, (frame,))
            case Drop(reason):
                self._recorder.drop(reason, network, datagram[HEADER_LENGTH:])
            case Deliver():
                raise AssertionError("expected an egress verdict, found Deliver")

    def _replicate(self, network: NetworkCarriage, header: bytearray, datagram: memoryview) -> None:
        """A copy to every VTEP of the flood list: one received frame, the further copies generated."""
        vteps = network.flood
        if not vteps:
            self._recorder.drop(DropReason.NO_VTEP, network, datagram[HEADER_LENGTH:])
        elif not network.copies.take(len(vteps), now=self._clock()):
            self._recorder.drop(DropReason.BUM_LIMIT, network, datagram[HEADER_LENGTH:])
        else:
            self._recorder.counters.generated += len(vteps) - 1
            self._offer_any(network, vteps, header, datagram)

    def _offer_any(
        self,
        network: NetworkCarriage,
        vteps: tuple[VtepCarriage, ...],
        header: bytearray,
        datagram: memoryview,
    ) -> None:
        frame = datagram[HEADER_LENGTH:]
        entropy, ecn = flow_hash_untrusted(frame), inner_ecn_untrusted(frame)
        for vtep in vteps:
            if header == PLAIN:
                self._offer(network, vtep, datagram, entropy, ecn)
            else:
                self._offer_unfinished(network, vtep, header, datagram, entropy, ecn)

    # ── Super-frames and unfinished checksums ───────────────────────────────────────────────────────────

    def _offer_unfinished(
        self,
        network: NetworkCarriage,
        vtep: VtepCarriage,
        header: bytearray,
        datagram: memoryview,
        entropy: int,
        ecn: int,
    ) -> None:
        """A frame whose sender left work to us: a checksum to finish, or segments to cut."""
        frame = datagram[HEADER_LENGTH:]
        if header[1] == GSO_NONE:  # its checksum is finished, where it lies, for whoever else gets a copy
            if finish_untrusted(header, frame):
                header[:] = PLAIN
                self._offer(network, vtep, datagram, entropy, ecn)
            else:
                self._recorder.drop(DropReason.INNER_MALFORMED, network, frame, vtep)
            return
        if self._goes_whole(network, vtep, header, datagram, entropy, ecn):
            return
        runs = split_untrusted(
            header,
            frame,
            prefix=network.prefix,
            payload_max=network.payload_max(vtep),
            hidden=network.hidden,
        )
        if runs is DropReason.MTU_EXCEEDED:
            self._too_big(network, vtep, datagram)
        elif isinstance(runs, DropReason):
            self._recorder.drop(runs, network, frame, vtep)
        else:
            batch = vtep.batch(entropy)
            self._flush(network, vtep, batch)  # what the flow sent before stays before
            batch.ecn = ecn
            self._recorder.counters.generated += sum(run.segments for run in runs) - 1
            for run in runs:
                batch.load(run)
                self._flush(network, vtep, batch)

    # ── The super door ──────────────────────────────────────────────────────────────────────────────────

    def _goes_whole(
        self,
        network: NetworkCarriage,
        vtep: VtepCarriage,
        header: bytearray,
        datagram: memoryview,
        entropy: int,
        ecn: int,
    ) -> bool:
        """HOT PATH: whether a super-frame left as one super-packet; if not, it takes the lower door.

        Frames that are no super-frames take the sockets all the while, from the same thread and port, to
        the same device: a flow whose bursts come this way was never seen out of order there.
        """
        door, outer = vtep.door, vtep.outer
        if door is None or outer is None:
            if vtep.wants_door:
                vtep.want_door()
            return False
        place = locate_untrusted(header, datagram[HEADER_LENGTH:])
        octets = len(datagram)
        if (
            place is None
            or not outer.takes(place, octets)
            or place.payload_at + place.size > vtep.frame_max
            or not door.is_open(now=self._clock())
        ):
            return False
        batch = vtep.batch(entropy)
        if batch.count:
            self._flush(network, vtep, batch)  # what the flow sent before stays before
        source_port = vtep.source_ports[batch.index]
        before = outer.fill(header[1], place, octets, source_port=source_port, ecn=ecn)
        try:
            door.write((before, datagram))
        except OSError as error:
            return self._not_whole(network, vtep, datagram, error)
        self._recorder.counters.sent += 1
        vtep.sent_frames += 1
        vtep.sent_octets += octets - HEADER_LENGTH
        if self._recorder.observers:
            self._recorder.show(Point.UNDERLAY_SEND, network, datagram[HEADER_LENGTH:])
        return True

    def _not_whole(
        self, network: NetworkCarriage, vtep: VtepCarriage, datagram: memoryview, error: OSError
    ) -> bool:
        """What a refused super-packet comes to: a drop where as much as may be is under way already."""
        if error.errno in FULL:
            self._recorder.drop(DropReason.UNDERLAY_FULL, network, datagram[HEADER_LENGTH:], vtep)
            return True
        if error.errno != errno.EINVAL:  # that one the frame's contents can cause: it changes no rung
            vtep.shut_door(f"the inject TAP: {error.strerror}", now=self._clock())
        return False

    # ── Batches ─────────────────────────────────────────────────────────────────────────────────────────

    def _offer(
        self, network: NetworkCarriage, vtep: VtepCarriage, datagram: memoryview, entropy: int, ecn: int
    ) -> None:
        """HOT PATH: one finished datagram joins the batch of its VTEP and source port."""
        octets = len(datagram)
        if octets - HEADER_LENGTH > vtep.frame_max:
            self._too_big(network, vtep, datagram)
            return
        batch = vtep.batch(entropy)
        if batch.count and not (vtep.segments and batch.takes(octets, ecn)):
            self._flush(network, vtep, batch)
        if not batch.count:
            batch.ecn = ecn
            self._open.append((network, vtep, batch))
        batch.add(datagram, octets)

    def _flush_all(self) -> None:
        """Sends whatever is open."""
        opened, self._open = self._open, []
        for network, vtep, batch in opened:
            self._flush(network, vtep, batch)

    def _flush(self, network: NetworkCarriage, vtep: VtepCarriage, batch: Batch) -> None:
        """HOT PATH: sends one batch, and empties it whatever comes of that."""
        count = batch.count
        if not count:
            return
        if count > 1 and not vtep.segments:  # a super-frame's, where sends carry one datagram
            for single in batch.singles():
                self._flush(network, vtep, single)
            batch.clear()
            return
        try:
            if not vtep.senders:
                raise OSError(errno.ENETUNREACH, "no underlay of this family")
            self._send(vtep, batch)
        except OSError as error:
            self._send_again(network, vtep, batch, error)
        else:
            self._sent(network, vtep, batch)
        batch.clear()

    def _send(self, vtep: VtepCarriage, batch: Batch) -> None:
        sender = vtep.senders[batch.index & vtep.mask]
        control = [] if not batch.ecn else [_ecn_message(vtep, batch.ecn)]
        if batch.count > 1:
            control.append((*UDP_SEGMENT, batch.segment_size.to_bytes(2, sys.byteorder)))
        if len(batch.buffers) == 1 and not control:
            sender.send(batch.buffers[0], vtep.sockaddr)
        else:
            sender.send_marked(batch.buffers, control, 0, vtep.sockaddr)

    def _sent(self, network: NetworkCarriage, vtep: VtepCarriage, batch: Batch) -> None:
        self._recorder.counters.sent += batch.count
        vtep.sent_frames += batch.count
        vtep.sent_octets += batch.octets - len(network.prefix) * batch.count
        if self._recorder.observers:
            for frame in batch.frames(network.lead):
                self._recorder.show(Point.UNDERLAY_SEND, network, frame)

    def _send_again(self, network: NetworkCarriage, vtep: VtepCarriage, batch: Batch, error: OSError) -> None:
        """What a refused send comes to: another try, the same in pieces, or drops with their reason.

        QUIRK(linux): with IP_RECVERR a send may report what befell an earlier datagram, its own not having
        been tried.  The report clears the error, but the next one may be there already: what every one of
        SEND_TRIES says is believed.  A rule's EPERM is never another's, and EMSGSIZE hardly twice.
        """
        if vtep.underlay is not None and error.errno not in OWN:
            self._hear_refusals(vtep.underlay)
        for _ in range(1, SEND_TRIES if vtep.senders else 1):
            if error.errno in OWN or (batch.count > 1 and error.errno in NO_SEGMENTATION):
                break
            try:
                self._send(vtep, batch)
            except OSError as another:
                is_narrow = another.errno == error.errno == errno.EMSGSIZE
                error = another
                if is_narrow:
                    break
            else:
                self._sent(network, vtep, batch)
                return
        if batch.count > 1 and (error.errno in NO_SEGMENTATION or error.errno == errno.EMSGSIZE):
            self._send_singly(network, vtep, batch, error)
        elif error.errno == errno.EMSGSIZE:
            vtep.recheck_path()
            self._too_big(network, vtep, memoryview(b"".join((network.lead, *batch.buffers))))
        else:
            reason = DropReason.UNDERLAY_FULL
            if error.errno not in FULL:  # a rule against it, no route, nobody there: not past the host's back
                reason = DropReason.UNDERLAY_ERROR
                vtep.shut_door(f"a socket says: {error.strerror}", now=self._clock())
            for frame in batch.frames(network.lead):
                self._recorder.drop(reason, network, frame, vtep)

    def _send_singly(
        self, network: NetworkCarriage, vtep: VtepCarriage, batch: Batch, error: OSError
    ) -> None:
        """The batch in single sends.  Where these go through, it was segmentation that did not.

        QUIRK(linux): to many kernels segments longer than the path are EINVAL too.  So the first one judges,
        which has their full length: a shorter last one goes through where they do not.
        """
        counters = self._recorder.counters
        first, *others = batch.singles()
        sent_before = counters.sent
        self._flush(network, vtep, first)
        is_segmentation = counters.sent > sent_before and error.errno in NO_SEGMENTATION
        for single in others:
            self._flush(network, vtep, single)
        if is_segmentation and vtep.underlay is not None:
            vtep.underlay.ladder.lower(Feature.UDP_GSO, f"{error.strerror} on the way", now=self._clock())

    # ── What the path does not carry ────────────────────────────────────────────────────────────────────

    def _too_big(self, network: NetworkCarriage, vtep: VtepCarriage, datagram: memoryview) -> None:
        """The path does not carry it: counted, and its sender told (within the meter)."""
        frame = bytes(datagram[HEADER_LENGTH:])
        self._recorder.drop(DropReason.MTU_EXCEEDED, network, frame, vtep)
        if not self._upcalls.meter.admits(UpcallKind.ICMP_ERROR, network.source_of(frame), now=self._clock()):
            return
        reply = network.decider.too_big(frame[network.hidden :], network.packet_max(vtep))
        if reply is not None:
            self._recorder.counters.generated += 1
            self._write(network, PLAIN, (reply,))

    def refused(self, networks: Iterable[NetworkCarriage], underlay: Underlay) -> None:
        """ICMP errors came back: what was counted as sent was lost, and is counted so."""
        for refusal in underlay.refusals():
            for network in networks:
                vtep = network.by_host.get(refusal.towards)
                if vtep is None:
                    continue
                reason = DropReason.UNDERLAY_ERROR
                if refusal.errno == errno.EMSGSIZE:
                    vtep.recheck_path()
                    reason = DropReason.MTU_EXCEEDED
                else:
                    vtep.shut_door(f"it answered: {os.strerror(refusal.errno)}", now=self._clock())
                self._recorder.counters.lost_after_us(reason, network.id, vtep.drops)
                break  # which of the networks that share a VTEP it was cannot be known: the first answers

    @staticmethod
    def _note_segment_limit(network: NetworkCarriage, frame: memoryview) -> None:
        """A SYN tells the largest segment its sender, who is behind our device, can take."""
        mss = syn_mss_untrusted(frame)
        if mss is not None:
            network.note_segment_limit(bytes(frame[6:12]) + bytes(frame[0:6]), mss)


def _ecn_message(vtep: VtepCarriage, ecn: int) -> tuple[int, int, bytes]:
    """The control message that gives one datagram's outer header this ECN field."""
    level, kind = IP_TOS if vtep.id.version == 4 else IPV6_TCLASS
    return level, kind, struct.pack("=i", ecn)
