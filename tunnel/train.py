"""A packet train: frames of one UDP flow and one size, one right behind the other in a turn.

What a program sends in bulk comes so.  What was asked about two of them holds for the rest: neither tables
nor VTEP are looked at again, and their checksums are summed together.  (The term: R. Jain and S. Routhier,
"Packet Trains", 1986.)

A train ends with the first frame that differs in anything that was asked, with its turn, and where its batch
is full: the next frame is asked everything, and may begin another.  It never looks at the clock, for it is a
batch at most.

Heads up: read udp(7), UDP_SEGMENT, and RFC 768 before changing this file.
"""

from __future__ import annotations

import struct

from tunnel.carriage import SEND_MAX, Batch
from tunnel.flows import Flow
from tunnel.offload import ETHERNET_LENGTH, NEEDS_CSUM, PLAIN, UDP_CHECKSUM, VnetHeader
from tunnel.split import SEGMENTS_MAX
from tunnel.sums import WORD_MAX, word_sums
from tunnel.vxlan import HEADER_LENGTH

# From the specification: where UDP begins in a frame, and in a datagram, behind IPv4 without options.
_FRAME_UDP_AT = ETHERNET_LENGTH + 20
_UDP_AT = HEADER_LENGTH + _FRAME_UDP_AT
# What the host says of a frame whose checksum it has left to us there.
UNFINISHED = VnetHeader(NEEDS_CSUM, checksum_start=_FRAME_UDP_AT, checksum_offset=UDP_CHECKSUM).build()
_Checksum = struct.Struct("!H")


class Train:
    """The frames that have come of one train, and the batch they are to leave with."""

    def __init__(self, flow: Flow, batch: Batch, header: bytes) -> None:
        """Behind the last datagram of a batch, which is one of the train.

        Args:
            header: The `virtio_net_hdr` of all its frames, PLAIN or UNFINISHED.
        """
        self._flow = flow
        self._batch = batch
        self._header = header
        self._end = batch.segment_size
        self._octets = self._end - HEADER_LENGTH
        self._room = min(SEGMENTS_MAX, SEND_MAX // self._end) - batch.count
        self._datagrams: list[memoryview] = []

    def takes(self, header: bytearray, datagram: memoryview, octets: int) -> bool:
        """HOT PATH: takes a frame of so many octets, of the same flow, if it is like the others."""
        if octets != self._octets or header != self._header or self._room <= 0:
            return False
        self._room -= 1
        self._datagrams.append(datagram[: self._end])
        return True

    def close(self) -> None:
        """Has what was taken leave with the batch.  To be called before anything else joins that."""
        datagrams, count = self._datagrams, len(self._datagrams)
        if self._header != PLAIN:
            udp = [datagram[_UDP_AT:] for datagram in datagrams]
            for each, total in zip(udp, word_sums(udp), strict=True):
                _Checksum.pack_into(each, UDP_CHECKSUM, WORD_MAX - total)
        self._batch.extend(datagrams)
        self._flow.frames += count
        self._flow.octets += count * self._octets
