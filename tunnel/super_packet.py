"""What stands before a super-packet: a VXLAN datagram the kernel itself cuts into segments, inside and out.

Written to an inject TAP in one `writev`; octets are counted from the outer Ethernet header:

    -24                       0         14       34 (54)  42 (62)  50 (70)
    | virtio_net_hdr, tunnel  | Ethernet | IPv4/6 | UDP    | VXLAN  | the super-frame, as it was read …
    '──────────────── made here ─────────────────────────' '── what a socket would send ──

The kernel checks the outer headers no further than their offsets and routes nothing: where this goes, to
which MAC and from which source port is all said here.  It cuts the frame at the size the host's own TCP or
UDP has named, and gives every segment the outer headers anew: lengths, IPv4 identification, UDP checksum.

    outer UDP checksum   the folded pseudo-header sum and UDP_TUNNEL_CSUM: the kernel or the card finishes it.
                         Without that flag zero, "none", which IPv4 allows and IPv6 does not (RFC 6935)

Heads up: read struct virtio_net_hdr_v1_hash_tunnel in <linux/virtio_net.h> (Linux ≥ 6.17) and VIRTIO 1.4
section 5.1.6 before changing this file.
"""

from __future__ import annotations

import struct

from overlay.addr import IpAddress
from tunnel.interfaces import Buffer, Hop
from tunnel.mtu import IP_OVERHEAD, UDP_OVERHEAD
from tunnel.offload import ETHERNET_LENGTH, IPV4, IPV6, NEEDS_CSUM, UDP
from tunnel.split import Place
from tunnel.vxlan import HEADER_LENGTH

# From the specification
TUNNEL_HEADER_LENGTH = 24  # octets of struct virtio_net_hdr_v1_hash_tunnel
UDP_TUNNEL_CSUM = 0x08  # of its flags
GSO_TUNNEL = {4: 0x20, 6: 0x40}  # of its gso_type, by the version of the outer IP
IP_PACKET_MAX = 65535  # octets: 16 bits say how long a packet is (IPv6's leave its header out of it)
DONT_FRAGMENT = 0x4000
HOP_LIMIT = 64

_Vnet = struct.Struct("=BBHHHH")  # flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
_Offsets = struct.Struct("=HH")  # of the outer UDP header, of the inner IP header
_OFFSETS_AT = 20
_Ipv4Start = struct.Struct("!BBH")  # version and IHL, TOS, total length
_Ipv6Start = struct.Struct("!IH")  # version, traffic class and flow label, payload length
_Short = struct.Struct("!H")
_Udp = struct.Struct("!HHHH")


class OuterHeader:
    """The headers before every super-packet to one VTEP, and what differs from one to the next.

    Args:
        source, destination: Underlay addresses of one IP version.
        port: UDP port of the VTEP.
    """

    def __init__(self, hop: Hop, source: IpAddress, destination: IpAddress, port: int) -> None:
        self._version = source.version
        self._ip_at = TUNNEL_HEADER_LENGTH + ETHERNET_LENGTH
        self._udp_at = self._ip_at + IP_OVERHEAD[source.version]
        self.length = self._udp_at + UDP_OVERHEAD
        self._port = port
        self._octets_max = IP_PACKET_MAX - IP_OVERHEAD[source.version] - UDP_OVERHEAD
        self._flags = NEEDS_CSUM | (UDP_TUNNEL_CSUM if hop.has_checksum else 0)
        self._buffer = bytearray(self.length)
        self._filled: tuple[int, Place, int, int, int] | None = None
        self._put_fixed(hop, source, destination)
        addresses = int.from_bytes(source.packed + destination.packed)
        self._pseudo = (addresses + UDP) % 0xFFFF
        self._ip_base = int.from_bytes(self._buffer[self._ip_at : self._udp_at]) % 0xFFFF

    def _put_fixed(self, hop: Hop, source: IpAddress, destination: IpAddress) -> None:
        outer_udp_at = self._udp_at - TUNNEL_HEADER_LENGTH
        inner_ip_at = outer_udp_at + UDP_OVERHEAD + HEADER_LENGTH + ETHERNET_LENGTH
        _Offsets.pack_into(self._buffer, _OFFSETS_AT, outer_udp_at, inner_ip_at)
        ethertype = _Short.pack(IPV4 if self._version == 4 else IPV6)
        self._buffer[TUNNEL_HEADER_LENGTH : self._ip_at] = hop.destination + hop.source + ethertype
        if self._version == 4:
            fixed = struct.pack("!BBHHHBBH", 0x45, 0, 0, 0, DONT_FRAGMENT, HOP_LIMIT, UDP, 0)
        else:
            fixed = struct.pack("!IHBB", 6 << 28, 0, UDP, HOP_LIMIT)
        self._buffer[self._ip_at : self._udp_at] = fixed + source.packed + destination.packed

    def takes(self, place: Place, octets: int) -> bool:
        """Whether a datagram of so many octets, its super-frame untagged, can leave as one super-packet."""
        # The kernel must find the inner IP header where `inner_nh_offset` says: a tag would move it.
        return place.network_at == ETHERNET_LENGTH and octets <= self._octets_max

    def fill(self, gso_type: int, place: Place, octets: int, *, source_port: int, ecn: int) -> Buffer:
        """HOT PATH: what to write before a VXLAN datagram of `octets`.  BORROWED: until the next call.

        Args:
            gso_type: As the device gave it with the frame.
            place: Of the frame in the datagram.
            ecn: The outer ECN field (RFC 6040 section 4.1).
        """
        wanted = (gso_type, place, octets, source_port, ecn)
        if wanted == self._filled:  # bulk transfers fill frame after frame to the brim
            return self._buffer
        self._filled = wanted
        before = self.length - TUNNEL_HEADER_LENGTH + HEADER_LENGTH  # of the frame, from the outer Ethernet
        _Vnet.pack_into(
            self._buffer,
            0,
            self._flags,
            gso_type | GSO_TUNNEL[self._version],
            before + place.payload_at,
            place.size,
            before + place.l4_at,
            place.checksum_at,
        )
        udp_length = UDP_OVERHEAD + octets
        if self._version == 4:
            total = IP_OVERHEAD[4] + udp_length
            _Ipv4Start.pack_into(self._buffer, self._ip_at, 0x45, ecn, total)
            _Short.pack_into(self._buffer, self._ip_at + 10, -(self._ip_base + ecn + total) % 0xFFFF)
        else:
            _Ipv6Start.pack_into(self._buffer, self._ip_at, 6 << 28 | ecn << 20, udp_length)
        # A sum, not its complement: the seed the kernel goes on from.  It is never zero, which says "none".
        seed = (self._pseudo + udp_length) % 0xFFFF or 0xFFFF
        checksum = seed if self._flags & UDP_TUNNEL_CSUM else 0
        _Udp.pack_into(self._buffer, self._udp_at, source_port, self._port, udp_length, checksum)
        return self._buffer
