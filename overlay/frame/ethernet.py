"""An Ethernet frame, cut where its payload begins.

     0                 6                 12                              payload_at
    +-----------------+-----------------+- - - - - - - - - -+-----------+----------
    |   destination   |     source      |  tag    tag   …   | EtherType |  payload
    +-----------------+-----------------+- - - - - - - - - -+-----------+----------

    a tag, four octets (IEEE 802.1Q-2018 section 9.3):
    +---------------+-----+-+-------------+
    |  TPID         | PCP |D|   VLAN ID   |     TPID 0x8100: C-tag, 0x88a8: S-tag
    +---------------+-----+-+-------------+     the last two octets are the TCI

VXLAN carries frames without their check sequence (RFC 7348 section 5), so a payload runs to the end.
Tags are carried as they are; they are read here only to find what lies behind them.

Heads up: read IEEE 802.3-2018 section 3 and IEEE 802.1Q-2018 section 9 before changing this file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from overlay.addr import MAC_LENGTH, Mac, format_mac, is_station
from overlay.checksum import Octets
from overlay.errors import MalformedError, TruncatedError

# From the specification
ETHERNET_LENGTH = 14  # octets: two addresses and an EtherType (IEEE 802.3-2018 section 3.1.1)
TAG_LENGTH = 4  # octets (IEEE 802.1Q-2018 section 9.3)
TAG_TPIDS = frozenset({0x8100, 0x88A8})  # C-tag, S-tag (IEEE 802.1Q-2018 table 9-1)
ETHERTYPE_MIN = 0x0600  # below it the field is a length (IEEE 802.3-2018 section 3.2.6)
ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_ARP = 0x0806
ETHERTYPE_IPV6 = 0x86DD

# Ours
TAGS_MAX = 8  # as deep as Linux looks (VLAN_MAX_DEPTH); what lies deeper is payload

_EtherType = struct.Struct("!H")
_Tag = struct.Struct("!HH")


@dataclass(frozen=True, slots=True)
class Ethernet:
    """The header of a frame.

    Attributes:
        ethertype: What the payload is; below `ETHERTYPE_MIN` the length of an 802.2 payload.
        payload_at: Where in the frame the payload begins.
        tagging: The tags as they stood on the wire, so that an answer can wear the same ones.
    """

    destination: Mac
    source: Mac
    ethertype: int
    payload_at: int
    tagging: bytes = b""

    @property
    def tags(self) -> tuple[int, ...]:
        """The TCI of each 802.1Q or 802.1ad tag, outermost first."""
        return tuple(tci for _, tci in _Tag.iter_unpack(self.tagging))

    def answer(self, source: Mac, destination: Mac | None = None) -> bytes:
        """The header of an answer to this frame: to its source unless told otherwise, tagged alike."""
        return (destination or self.source) + source + self.tagging + _EtherType.pack(self.ethertype)


def parse_ethernet_untrusted(frame: Octets) -> Ethernet:
    """The header of the frame, every tag of it skipped.

    Raises:
        TruncatedError: The frame ends inside its header.
        MalformedError: The source is a group address (IEEE 802.3-2018 section 3.2.3), or all zero, as Linux
            has it: no frame can come from there.
    """
    length = len(frame)
    if length < ETHERNET_LENGTH:
        raise TruncatedError("Ethernet header", expected=ETHERNET_LENGTH, found=length)
    source = Mac(bytes(frame[MAC_LENGTH : 2 * MAC_LENGTH]))
    if not is_station(source):
        raise MalformedError(f"Ethernet source: expected one station's address, found {format_mac(source)}")
    type_at = 2 * MAC_LENGTH
    (ethertype,) = _EtherType.unpack_from(frame, type_at)
    for _ in range(TAGS_MAX):
        if ethertype not in TAG_TPIDS:
            break
        type_at += TAG_LENGTH
        if length < type_at + 2:
            raise TruncatedError("802.1Q tag", expected=type_at + 2, found=length)
        (ethertype,) = _EtherType.unpack_from(frame, type_at)
    return Ethernet(
        destination=Mac(bytes(frame[:MAC_LENGTH])),
        source=source,
        ethertype=ethertype,
        payload_at=type_at + 2,
        tagging=bytes(frame[2 * MAC_LENGTH : type_at]),
    )
