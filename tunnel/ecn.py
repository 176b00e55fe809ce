"""Explicit congestion notification across the tunnel: RFC 6040, in one pair of functions.

    egress    the outer header takes the inner one's ECN field               (section 4.1, normal mode)
    ingress   outer CE: inner Not-ECT is dropped, any other IP becomes CE    (section 4.2, figure 4)
              otherwise the inner field stands

Heads up: read RFC 6040 section 4 before changing this file.  (The outer ECT(1) over inner ECT(0) row of
figure 4 is left out: no sender of ours or of the kernel's makes it.)
"""

from __future__ import annotations

import struct

from overlay.checksum import update
from overlay.verdict import DropReason

# From the specification
NOT_ECT, ECT_1, ECT_0, CE = 0b00, 0b01, 0b10, 0b11  # RFC 3168 section 5
ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_IPV6 = 0x86DD
VLAN_ETHERTYPES = (0x8100, 0x88A8)

_SHORT = struct.Struct("!H")


def inner_ecn_untrusted(frame: bytes | bytearray | memoryview) -> int:
    """The ECN field of the packet inside, Not-ECT where there is none."""
    at = _ip_at_untrusted(frame)
    if at is None:
        return NOT_ECT
    return frame[at + 1] & 0b11 if frame[at] >> 4 == 4 else frame[at + 1] >> 4 & 0b11


def mark_congested_untrusted(frame: bytearray | memoryview) -> DropReason | None:
    """Marks the packet inside CE in place, for an outer header that was; the reason to drop it, if any.

    What is no IP has no field to mark, and nobody who could heed it: it goes on, as Linux has it.
    """
    at = _ip_at_untrusted(frame)
    if at is None:
        return None
    if inner_ecn_untrusted(frame) == NOT_ECT:
        return DropReason.ECN_CONGESTED
    if frame[at] >> 4 == 6:
        frame[at + 1] |= CE << 4
        return None
    (before,) = _SHORT.unpack_from(frame, at)
    after = before | CE
    (checksum,) = _SHORT.unpack_from(frame, at + 10)
    _SHORT.pack_into(frame, at, after)
    _SHORT.pack_into(frame, at + 10, update(checksum, before, after))
    return None


def _ip_at_untrusted(frame: bytes | bytearray | memoryview) -> int | None:
    """Where the IP header begins, or None: no IP, or not a whole fixed header of it."""
    at = 12
    while len(frame) >= at + 2 and _SHORT.unpack_from(frame, at)[0] in VLAN_ETHERTYPES:
        at += 4
    if len(frame) < at + 2:
        return None
    (ethertype,) = _SHORT.unpack_from(frame, at)
    at += 2
    if ethertype == ETHERTYPE_IPV4 and len(frame) >= at + 20 and frame[at] >> 4 == 4:
        return at
    if ethertype == ETHERTYPE_IPV6 and len(frame) >= at + 40 and frame[at] >> 4 == 6:
        return at
    return None
