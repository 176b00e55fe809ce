"""Frames at the super door: located inside themselves and behind a header whose offsets agree, or not at all.

python tests/fuzz/fuzz_super_packet.py -max_total_time=20
"""

from __future__ import annotations

import struct
import sys
from ipaddress import ip_address
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["overlay", "tunnel"]):
    from overlay.addr import Mac
    from tunnel.interfaces import Hop
    from tunnel.split import Place, locate_untrusted
    from tunnel.super_packet import OuterHeader

MACS = b"\x02\0\0\0\0\x0b\x02\0\0\0\0\x0a"
VXLAN = 8  # octets of its header
HOP = Hop(Mac(MACS[:6]), Mac(MACS[6:]), has_checksum=True)
OUTER = {
    4: OuterHeader(HOP, ip_address("192.0.2.1"), ip_address("192.0.2.2"), 4789),
    6: OuterHeader(HOP, ip_address("2001:db8::1"), ip_address("2001:db8::2"), 4789),
}


def one_input(octets: bytes) -> None:
    check(octets[:10].ljust(10, b"\0"), octets[10:])
    for protocol in (6, 17):
        for version in (4, 6):
            check(*super_frame(octets, version, protocol))


def super_frame(octets: bytes, version: int, protocol: int) -> tuple[bytes, bytes]:
    """A frame of some hundred octets with its lengths right, the rest as drawn, segment size included."""
    packet = bytearray(octets[2:].ljust(200, b"\0"))
    network = 20 if version == 4 else 40
    if version == 4:
        packet[0:1], packet[2:4], packet[6] = b"\x45", len(packet).to_bytes(2, "big"), packet[6] & 0x40
        packet[9] = protocol
    else:
        packet[0:1], packet[4:6], packet[6] = b"\x60", (len(packet) - 40).to_bytes(2, "big"), protocol
    if protocol == 17:
        packet[network + 4 : network + 6] = (len(packet) - network).to_bytes(2, "big")
    kind, offset = ({4: 1, 6: 4}[version], 16) if protocol == 6 else (5, 6)
    size = int.from_bytes(octets[:2], "big") % 300
    header = struct.pack("=BBHHHH", 1, kind, 0, size, 14 + network, offset)
    return header, MACS + {4: b"\x08\x00", 6: b"\x86\xdd"}[version] + packet


def check(header: bytes, frame: bytes) -> None:
    place = locate_untrusted(header, memoryview(frame))
    if place is None:
        return
    if not 14 <= place.network_at < place.l4_at < place.payload_at <= len(frame) or not place.size:
        raise AssertionError(f"{place} outside of its frame: {frame.hex()}")
    for version, outer in OUTER.items():
        octets = VXLAN + len(frame)
        if outer.takes(place, octets):
            check_filled(header, frame, place, version)
        elif place.network_at == 14 and octets <= 60000:
            raise AssertionError(f"{octets} octets, {place} not taken: {frame.hex()}")


def check_filled(header: bytes, frame: bytes, place: Place, version: int) -> None:
    ecn = frame[-1] & 3
    filled = OUTER[version].fill(header[1], place, VXLAN + len(frame), source_port=50000, ecn=ecn)
    _, kind, header_length, _, l4_at, checksum_at, *_, udp_at, network_at = struct.unpack_from(
        "=BB11H", filled
    )
    before = len(filled) - 24 + VXLAN  # of the frame, from the outer Ethernet header
    whole = before + len(frame)
    if (kind & ~0x60, network_at, l4_at) != (header[1], before + 14, before + place.l4_at):
        raise AssertionError(f"{place} told as {filled.hex()}: {frame.hex()}")
    # What the kernel looks at before it believes any of it: <linux/virtio_net.h>, virtio_net_hdr_tnl_to_skb.
    if udp_at < 34 or network_at < udp_at + 8 or l4_at < network_at + 20:
        raise AssertionError(f"the kernel would refuse {filled.hex()}: {frame.hex()}")
    if not l4_at + checksum_at + 2 <= header_length <= whole:
        raise AssertionError(f"headers of {header_length} octets: {filled.hex()} {frame.hex()}")


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
