"""IPv6 neighbor discovery: a solicitation asks who has an address, an advertisement tells.

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    | Type 135, 136 |    Code 0     |           Checksum            |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |R|S|O|      Reserved: all of it in a solicitation              |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |                       Target, four words                      |
    |     Options, each: type, length in eights of octets, value    |

Whoever believes a forged advertisement sends its traffic to the forger, so RFC 4861 obliges a node to
drop in silence what fails any of the checks in sections 7.1.1 and 7.1.2.  The first of them, a hop
limit of 255, proves that no router has passed the message on: the sender is on this very segment.

Heads up: read RFC 4861 sections 4.3, 4.4 and 7.1 before changing this file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv6Address

from overlay.addr import MAC_LENGTH, Mac
from overlay.checksum import Octets
from overlay.errors import MalformedError, TruncatedError, UnsupportedError
from overlay.frame.icmp import Icmp, build_icmpv6, parse_icmpv6_untrusted

# From the specification
NEIGHBOR_SOLICITATION = 135
NEIGHBOR_ADVERTISEMENT = 136
NEIGHBOR_LENGTH = 24  # octets, without options
NEIGHBOR_HOP_LIMIT = 255
ROUTER = 0x80000000
SOLICITED = 0x40000000
OVERRIDE = 0x20000000
OPTION_SOURCE_MAC = 1
OPTION_TARGET_MAC = 2
OPTION_UNIT = 8  # octets
ALL_NODES = IPv6Address("ff02::1")  # RFC 4291 section 2.7.1
SOLICITED_NODE_PREFIX = IPv6Address("ff02::1:ff00:0").packed[:13]  # RFC 4291 section 2.7.1

_MacOption = struct.Struct("!BB6s")


@dataclass(frozen=True, slots=True)
class NeighborSolicitation:
    """Who has `target`?  `source_mac` is the asker's, None while it probes for a duplicate address."""

    target: IPv6Address
    source_mac: Mac | None

    def build(self, *, source: IPv6Address, destination: IPv6Address) -> bytes:
        """The ICMPv6 message with its checksum."""
        option = b"" if self.source_mac is None else _MacOption.pack(OPTION_SOURCE_MAC, 1, self.source_mac)
        head = Icmp(NEIGHBOR_SOLICITATION, 0, 0)
        return build_icmpv6(head, self.target.packed + option, source=source, destination=destination)


@dataclass(frozen=True, slots=True)
class NeighborAdvertisement:
    """`target` is at `target_mac`.

    Attributes:
        target_mac: None where the asker knows it already (RFC 4861 section 4.4).
        router: The owner of the target forwards.
        solicited: An answer, and so a proof that the owner is reachable.
        override: What the asker had cached is to be replaced.
    """

    target: IPv6Address
    target_mac: Mac | None
    router: bool
    solicited: bool
    override: bool

    def build(self, *, source: IPv6Address, destination: IPv6Address) -> bytes:
        """The ICMPv6 message with its checksum."""
        option = b"" if self.target_mac is None else _MacOption.pack(OPTION_TARGET_MAC, 1, self.target_mac)
        flags = ROUTER * self.router | SOLICITED * self.solicited | OVERRIDE * self.override
        head = Icmp(NEIGHBOR_ADVERTISEMENT, 0, flags)
        return build_icmpv6(head, self.target.packed + option, source=source, destination=destination)


def parse_neighbor_untrusted(
    message: Octets, source: IPv6Address, destination: IPv6Address, hop_limit: int
) -> NeighborSolicitation | NeighborAdvertisement:
    """The solicitation or advertisement, valid by every rule of RFC 4861 sections 7.1.1 and 7.1.2.

    Args:
        message: The ICMPv6 message, Ethernet padding cut off, and never from a fragment (RFC 6980).
        source: The packet's, as are `destination` and `hop_limit`.

    Raises:
        TruncatedError: Shorter than its fixed part, or than an option says.
        MalformedError: A rule is broken; the message names it.
        UnsupportedError: Another ICMPv6 message.
    """
    icmp = parse_icmpv6_untrusted(message, source, destination)
    if icmp.kind not in (NEIGHBOR_SOLICITATION, NEIGHBOR_ADVERTISEMENT):
        raise UnsupportedError(f"ICMPv6 type: expected 135 or 136, found {icmp.kind}")
    if hop_limit != NEIGHBOR_HOP_LIMIT:
        raise MalformedError(f"hop limit of neighbor discovery: expected 255, found {hop_limit}")
    if icmp.code != 0:
        raise MalformedError(f"code of neighbor discovery: expected 0, found {icmp.code}")
    if len(message) < NEIGHBOR_LENGTH:
        raise TruncatedError("neighbor discovery message", expected=NEIGHBOR_LENGTH, found=len(message))
    target = IPv6Address(bytes(message[8:NEIGHBOR_LENGTH]))
    if target.is_multicast:
        raise MalformedError(f"target of neighbor discovery: expected unicast, found {target}")
    if icmp.kind == NEIGHBOR_SOLICITATION:
        source_mac = _mac_option(message, OPTION_SOURCE_MAC)
        _check_probe(source, destination, source_mac)
        return NeighborSolicitation(target, source_mac)
    solicited = bool(icmp.rest & SOLICITED)
    if solicited and destination.is_multicast:
        raise MalformedError(f"solicited advertisement: expected a unicast destination, found {destination}")
    return NeighborAdvertisement(
        target=target,
        target_mac=_mac_option(message, OPTION_TARGET_MAC),
        router=bool(icmp.rest & ROUTER),
        solicited=solicited,
        override=bool(icmp.rest & OVERRIDE),
    )


def _check_probe(source: IPv6Address, destination: IPv6Address, source_mac: Mac | None) -> None:
    """RFC 4861 section 7.1.1: what a solicitation from the unspecified address must look like."""
    if not source.is_unspecified:
        return
    if source_mac is not None:
        raise MalformedError("solicitation from ::: expected no source link-layer address, found one")
    if not destination.packed.startswith(SOLICITED_NODE_PREFIX):
        raise MalformedError(
            f"solicitation from ::: expected to a solicited-node group, found to {destination}"
        )


def _mac_option(message: Octets, wanted: int) -> Mac | None:
    """The address in the first option of that type; every option is walked, for each must be sound."""
    mac: Mac | None = None
    at = NEIGHBOR_LENGTH
    while at < len(message):
        if at + OPTION_UNIT > len(message):
            raise TruncatedError("neighbor discovery option", expected=at + OPTION_UNIT, found=len(message))
        kind, units = message[at], message[at + 1]
        if units == 0:
            raise MalformedError("neighbor discovery option: expected a length above 0, found 0")
        if at + units * OPTION_UNIT > len(message):
            raise TruncatedError(
                "neighbor discovery option", expected=at + units * OPTION_UNIT, found=len(message)
            )
        if kind == wanted and mac is None:
            if units != 1:  # RFC 2464 section 6
                raise MalformedError(f"Ethernet address option: expected a length of 1, found {units}")
            mac = Mac(bytes(message[at + 2 : at + 2 + MAC_LENGTH]))
        at += units * OPTION_UNIT
    return mac
