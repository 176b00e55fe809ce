"""What encapsulation costs, in octets, and which MTU it leaves.

    underlay MTU   |<------------------------- 1500 --------------------------->|
                   | IP 20 or 40 | UDP 8 | VXLAN 8 | Ethernet 14 | inner packet |    50 or 70
                   | IP 20 or 40 | UDP 8 |                         inner packet |    28 or 48

An MTU counts packets, not frames: the underlay's own Ethernet header is outside of it, the inner one
inside.  A frame's tags are not counted, as no Ethernet device counts its own: a tagged frame that
fills the overlay MTU needs four octets more of the underlay, and gets the answer of a path too narrow.

Heads up: read RFC 7348 section 4.3 before changing this file: a VTEP must not fragment.
"""

from __future__ import annotations

from enum import Enum

# From the specification
UDP_OVERHEAD = 8  # octets (RFC 768)
IP_OVERHEAD = {4: 20, 6: 40}  # octets, without options (RFC 791 section 3.1, RFC 8200 section 3)
IP_PACKET_MAX = {4: 65535, 6: 65535 + 40}  # octets: 16-bit lengths, IPv6's not counting its header
IP_MIN_MTU = {4: 68, 6: 1280}  # octets every link carries (RFC 791 section 3.2, RFC 8200 section 5)


class Encap(Enum):
    """How a network's frames cross the underlay.  The value is what the operator writes."""

    VXLAN = "vxlan"
    FLANNEL_UDP = "flannel-udp"


# A VXLAN header and the inner Ethernet header (RFC 7348 section 5); Flannel's udp backend adds nothing.
ENCAP_OVERHEAD = {Encap.VXLAN: 8 + 14, Encap.FLANNEL_UDP: 0}


def overhead(encap: Encap, underlay_version: int) -> int:
    """Octets between the underlay packet and the inner packet it carries, over IPv4 (4) or IPv6 (6)."""
    return IP_OVERHEAD[underlay_version] + UDP_OVERHEAD + ENCAP_OVERHEAD[encap]


def overlay_mtu(underlay_mtu: int, encap: Encap, underlay_version: int) -> int:
    """The longest inner packet that crosses the underlay in one piece.

    No device's MTU helps beyond the longest IP packet: loopback has 65536.
    """
    return min(underlay_mtu, IP_PACKET_MAX[underlay_version]) - overhead(encap, underlay_version)


def versions_not_carried(overlay_mtu: int) -> tuple[int, ...]:
    """The IP versions whose minimum the overlay MTU does not reach: none, IPv6, or both.

    An overlay without IPv6 is worth a warning, one without IPv4 carries nothing.  The kernel says it
    less clearly: it takes IPv6 off a device whose MTU falls below 1280.
    """
    return tuple(version for version, minimum in IP_MIN_MTU.items() if overlay_mtu < minimum)
