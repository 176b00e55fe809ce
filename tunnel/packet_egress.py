"""Egress of bare packets: TUN → underlay, in Flannel's UDP format.

    drain_packets ─▶ header sound, TTL − 1 ─▶ destination's subnet: flow remembered? ─▶ `tunnel.egress`
                        └▶ ICMP error            └▶ upcall

From the batch on a packet is carried as a frame is.  A packet that goes no further is answered where a
router must answer (RFC 1812 section 4.3.3): its sender is the host, or somebody behind it, and each answer
is the host's own (`PacketDevice.answer`).

Heads up: read `tunnel.flannel_udp`, and RFC 1812 section 5.2 before changing this file.
"""

from __future__ import annotations

import struct

from overlay.verdict import Drop, DropReason, Verdict
from tunnel.carriage import FRAMES_PER_TURN, QUIET_SECONDS, TURN_SECONDS, NetworkCarriage, VtepCarriage
from tunnel.egress import UNKNOWN_PER_TURN, Egress
from tunnel.flannel_udp import forward_untrusted, with_ethernet
from tunnel.flows import Held
from tunnel.interfaces import Point
from tunnel.meter import UpcallKind
from tunnel.offload import ETHERNET_LENGTH, PLAIN, VNET_HEADER_LENGTH
from tunnel.packet_carriage import LEAD, PacketCarriage
from tunnel.vxlan import HEADER_LENGTH

# What the hot path reads of a packet: TOS, destination.
_PACKET = struct.Struct("!xB14xI")
PACKET_AT = len(LEAD)
IPV6_VERSION = 6


class PacketEgress(Egress):
    """The way out of one engine, for packets."""

    def drain_packets(self, network: PacketCarriage) -> None:
        """HOT PATH: runs once per packet the host sends; builds nothing for a flow that is known."""
        clock, read_into = self._clock, network.device.read_into
        counters, observers = self._recorder.counters, self._recorder.observers
        flow_of, key_of = network.egress.active.get, network.router.key_of
        started_at = clock()
        deadline = started_at + TURN_SECONDS
        is_quiet = started_at - network.drained_at > QUIET_SECONDS  # see `tunnel.egress`
        unknown = 0
        for header, datagram, buffers in network.slots[: 1 if is_quiet else FRAMES_PER_TURN]:
            try:
                octets = read_into(buffers) - VNET_HEADER_LENGTH
            except OSError as error:
                self._stop_if_gone(network, error)
                break
            counters.received += 1
            now = clock()
            frame = datagram[HEADER_LENGTH : PACKET_AT + octets]
            if observers:
                self._recorder.show(Point.DEVICE_READ, network, frame)
            length = forward_untrusted(frame)
            if isinstance(length, DropReason):
                self._refuse(network, length, frame)
                continue
            if header != PLAIN:
                header[:] = with_ethernet(bytes(header))
            tos, destination = _PACKET.unpack_from(datagram, PACKET_AT)
            key = key_of(destination)
            flow = flow_of(key)
            if flow is None:
                held = Held(bytes(frame[:length]), bytes(header))
                self._upcalls.ask(network.egress, network, None, held, now=now, key=key)
                unknown += 1
                if unknown == UNKNOWN_PER_TURN:
                    break
            else:
                flow.frames += 1
                flow.octets += length - ETHERNET_LENGTH
                flow.used_at = now
                self._carry_known(
                    network, flow, header, datagram[: HEADER_LENGTH + length], is_marked=tos & 3 != 0
                )
            if now >= deadline:
                break
        self._end_turn()
        network.drained_at = clock()

    def send_own(self, network: NetworkCarriage, vtep: VtepCarriage, packet: bytes) -> None:
        """Sends a packet of our own making to that VTEP."""
        self._recorder.counters.generated += 1
        self._offer(network, vtep, memoryview(bytearray(LEAD + packet)), 0, 0)
        self._flush_all()

    def _carry_verdict(
        self, network: NetworkCarriage, verdict: Verdict, header: bytearray, datagram: memoryview
    ) -> None:
        if isinstance(verdict, Drop):
            self._refuse(network, verdict.reason, datagram[HEADER_LENGTH:])
        else:
            super()._carry_verdict(network, verdict, header, datagram)

    def _offer(
        self, network: NetworkCarriage, vtep: VtepCarriage, datagram: memoryview, entropy: int, ecn: int
    ) -> None:
        """HOT PATH: one finished packet, which leaves as it is."""
        if len(datagram) - PACKET_AT > network.payload_max(vtep):
            self._too_big(network, vtep, datagram)
        else:
            super()._offer(network, vtep, datagram[PACKET_AT:], entropy, ecn)

    # ── What goes no further ────────────────────────────────────────────────────────────────────────────

    def _refuse(self, network: NetworkCarriage, reason: DropReason, frame: memoryview) -> None:
        """Counted, and its sender told where a router tells (within the meter)."""
        if reason is DropReason.INNER_MALFORMED and frame[ETHERNET_LENGTH] >> 4 == IPV6_VERSION:
            reason = DropReason.NO_ROUTE  # well formed, and the format has no way for it
        self._recorder.drop(reason, network, frame)
        if not isinstance(network, PacketCarriage):
            return
        error = {
            DropReason.NO_ROUTE: network.router.unreachable,
            DropReason.TTL_EXPIRED: network.router.expired,
        }.get(reason)
        whole = bytes(frame)
        if error is None or not self._upcalls.meter.admits(
            UpcallKind.ICMP_ERROR, network.source_of(whole), now=self._clock()
        ):
            return
        packet = error(whole[ETHERNET_LENGTH:])
        if packet is not None:
            self._recorder.counters.generated += 1
            self._write(network, PLAIN, (packet,))
