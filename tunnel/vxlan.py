"""The VXLAN header: eight octets between the UDP header and the inner Ethernet frame.

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |R|R|R|R|I|R|R|R|                  Reserved                     |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |               VXLAN network identifier        |   Reserved    |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

I says that the identifier is valid.  The other 39 bits are sent as zero and ignored on receipt, says
RFC 7348; Linux drops what sets one it was not configured for.  Both are right: who ignores them meets
every stranger, who drops them learns that the stranger meant something by it.  An operator chooses.

Three dialects live in those bits, and none of them is spoken here, only recognised by name:

    88 40 gg gg  vv vv vv 00    GBP  G beside I, a group policy id        (draft-smith-vxlan-group-policy)
    0c 00 00 03  vv vv vv 00    GPE  P beside I, the payload's protocol   (draft-ietf-nvo3-vxlan-gpe)
    08 20 00 00  vv vv vv xx    RCO  where to finish the inner checksum   (Linux, remcsumtx)

Heads up: read RFC 7348 sections 4 and 5 before changing this file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum

from overlay.addr import Vni
from overlay.errors import TruncatedError
from overlay.verdict import DropReason
from tunnel.interfaces import Buffer

# From the specification
HEADER_LENGTH = 8  # octets (RFC 7348 section 5)
PORT = 4789  # UDP, assigned by IANA (RFC 7348 section 8)
I_FLAG = 0x08  # in the first octet
INNER_LENGTH_MIN = 14  # octets: an Ethernet header; the check sequence is not carried

# QUIRK(linux): the kernel's own default predates the assignment.
LINUX_PORT = 8472

_Words = struct.Struct("!II")
_I_WORD = I_FLAG << 24


class Dialect(Enum):
    """What a header's reserved bits seem to say; for people, never for a decision."""

    PLAIN = "RFC 7348"
    GBP = "group based policy"
    GPE = "generic protocol extension"
    RCO = "remote checksum offload"
    UNKNOWN = "reserved bits set"


@dataclass(frozen=True, slots=True)
class VxlanHeader:
    """All 64 bits of a header.

    Attributes:
        vni: Means something only where `has_vni`.
        flags: The first octet, I among them.
        reserved1: The 24 bits after the flags.
        reserved2: The 8 bits after the VNI.
    """

    vni: Vni
    flags: int = I_FLAG
    reserved1: int = 0
    reserved2: int = 0

    @property
    def has_vni(self) -> bool:
        """Whether the I flag is set."""
        return bool(self.flags & I_FLAG)

    @property
    def dialect(self) -> Dialect:
        """Whose header it looks like."""
        if self.flags & ~I_FLAG == 0 and self.reserved1 == 0 and self.reserved2 == 0:
            return Dialect.PLAIN
        if self.flags & 0x80:
            return Dialect.GBP
        if self.flags & 0x04:
            return Dialect.GPE
        return Dialect.RCO if self.reserved1 & 1 << 21 else Dialect.UNKNOWN

    def build(self) -> bytes:
        """The eight octets, every bit as it was parsed."""
        return _Words.pack(self.flags << 24 | self.reserved1, self.vni << 8 | self.reserved2)


def build_header(vni: Vni) -> bytes:
    """The header we send: I set, every reserved bit zero (RFC 7348 section 5)."""
    return _Words.pack(_I_WORD, vni << 8)


def classify_untrusted(datagram: Buffer, *, strict: bool) -> Vni | DropReason:
    """The VNI the datagram is for, or why it goes no further.

    Args:
        datagram: A UDP payload, from anybody.
        strict: Whether a set reserved bit condemns it, as in Linux, or is ignored (RFC 7348 section 5).
    """
    # HOT PATH: once per datagram.  One unpack, no object: the VNI is an int by another name.
    if len(datagram) < HEADER_LENGTH + INNER_LENGTH_MIN:
        return DropReason.TRUNCATED
    first, second = _Words.unpack_from(datagram)
    if not first & _I_WORD:
        return DropReason.BAD_FLAGS
    if strict and (first != _I_WORD or second & 0xFF):
        return DropReason.RESERVED_BITS
    vni: Vni = second >> 8
    return vni


def parse_header_untrusted(datagram: Buffer) -> VxlanHeader:
    """The header, whatever its bits say, for those who look: trace, capture, explain.

    Raises:
        TruncatedError: Fewer than eight octets.
    """
    if len(datagram) < HEADER_LENGTH:
        raise TruncatedError("VXLAN header", expected=HEADER_LENGTH, found=len(datagram))
    first, second = _Words.unpack_from(datagram)
    return VxlanHeader(
        vni=Vni(second >> 8), flags=first >> 24, reserved1=first & 0xFFFFFF, reserved2=second & 0xFF
    )
