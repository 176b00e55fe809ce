"""TCP and UDP, as far as an overlay looks into them: ports, lengths, flags, the MSS.

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |          Source port          |       Destination port        |  both
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |            Length             |           Checksum            |  UDP
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |                        Sequence number                        |  TCP
    |                     Acknowledgment number                     |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    | Offset|  Rsvd |C|E|U|A|P|R|S|F|            Window             |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |           Checksum            |        Urgent pointer         |
    |           Options, offset − 5 words: kind, length, value      |

Checksums are not verified here: an overlay carries segments, their addressee checks them.

Heads up: read RFC 9293 section 3.1 and RFC 768 before changing this file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from overlay.checksum import Octets
from overlay.errors import MalformedError, TruncatedError

# From the specification
TCP_LENGTH = 20  # octets, without options
UDP_LENGTH = 8  # octets
TCP_FIN = 0x01
TCP_SYN = 0x02
TCP_RST = 0x04
TCP_PSH = 0x08
TCP_ACK = 0x10
OPTION_END = 0
OPTION_NOTHING = 1
OPTION_MSS = 2  # four octets (RFC 9293 section 3.7.1)

_Tcp = struct.Struct("!HHIIBBH")
_Udp = struct.Struct("!HHH")


@dataclass(frozen=True, slots=True)
class Tcp:
    """The header of a segment.

    Attributes:
        header_length: Octets, options included.
        mss: The largest segment its sender accepts, if it says so: only a SYN does.
    """

    source_port: int
    destination_port: int
    sequence: int
    acknowledgment: int
    flags: int
    window: int
    header_length: int
    mss: int | None


@dataclass(frozen=True, slots=True)
class Udp:
    """The header of a datagram.  `length` is octets, the header's eight included."""

    source_port: int
    destination_port: int
    length: int


def parse_tcp_untrusted(segment: Octets) -> Tcp:
    """The header of the segment.

    Raises:
        TruncatedError: The octets end before the header does.
        MalformedError: A header shorter than 20 octets, or an option that does not fit it.
    """
    if len(segment) < TCP_LENGTH:
        raise TruncatedError("TCP header", expected=TCP_LENGTH, found=len(segment))
    source_port, destination_port, sequence, acknowledgment, offset, flags, window = _Tcp.unpack_from(segment)
    header_length = (offset >> 4) * 4
    if header_length < TCP_LENGTH:
        raise MalformedError(f"TCP data offset: expected at least 5 words, found {offset >> 4}")
    if header_length > len(segment):
        raise TruncatedError("TCP header", expected=header_length, found=len(segment))
    return Tcp(
        source_port=source_port,
        destination_port=destination_port,
        sequence=sequence,
        acknowledgment=acknowledgment,
        flags=flags,
        window=window,
        header_length=header_length,
        mss=_mss(bytes(segment[TCP_LENGTH:header_length])) if flags & TCP_SYN else None,
    )


def parse_udp_untrusted(datagram: Octets) -> Udp:
    """The header of the datagram; what follows its length is padding.

    Raises:
        TruncatedError: The octets end before the header or the datagram does.
        MalformedError: A length below the header's own.
    """
    if len(datagram) < UDP_LENGTH:
        raise TruncatedError("UDP header", expected=UDP_LENGTH, found=len(datagram))
    source_port, destination_port, length = _Udp.unpack_from(datagram)
    if length < UDP_LENGTH:
        raise MalformedError(f"UDP length: expected at least {UDP_LENGTH} octets, found {length}")
    if length > len(datagram):
        raise TruncatedError("UDP datagram", expected=length, found=len(datagram))
    return Udp(source_port, destination_port, length)


def _mss(options: bytes) -> int | None:
    """The value of the MSS option (RFC 9293 section 3.7.1), None without one."""
    at = 0
    while at < len(options) and options[at] != OPTION_END:
        if options[at] == OPTION_NOTHING:
            at += 1
            continue
        length = options[at + 1] if at + 1 < len(options) else 0
        if length < 2 or at + length > len(options):
            raise MalformedError(
                f"TCP option {options[at]}: expected 2 to {len(options) - at} octets, found {length}"
            )
        if options[at] == OPTION_MSS and length == 4:
            return int.from_bytes(options[at + 2 : at + 4], "big")
        at += length
    return None
