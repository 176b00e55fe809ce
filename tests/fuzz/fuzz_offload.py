"""Frames at repair: a header that stays inside its frame, or INNER_MALFORMED.

python tests/fuzz/fuzz_offload.py -max_total_time=20
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["overlay", "tunnel"]):
    from overlay.errors import WireError
    from overlay.verdict import DropReason
    from tunnel.offload import (
        PLAIN,
        is_super_frame_untrusted,
        parse_vnet_header_untrusted,
        repair_untrusted,
        syn_mss_untrusted,
    )

MACS = b"\x02\0\0\0\0\x0b\x02\0\0\0\0\x0a"


def one_input(octets: bytes) -> None:
    with suppress(WireError):
        parse_vnet_header_untrusted(octets)
    for frame in (octets, MACS + b"\x08\x00" + octets, MACS + b"\x86\xdd" + octets, super_frame(octets)):
        syn_mss_untrusted(frame)
        is_super_frame_untrusted(frame)
        for mtu, segment_size, mss in ((1450, None, None), (40, None, 3), (40, 7, None), (1450, 100, 0)):
            check(frame, repair_untrusted(frame, overlay_mtu=mtu, segment_size=segment_size, mss=mss))


def super_frame(octets: bytes) -> bytes:
    """An IPv4 frame of 4000 octets with its lengths and an unfinished checksum right, the rest as drawn."""
    protocol, checksum_at = (6, 36) if octets[:1] < b"\x80" else (17, 26)
    packet = bytearray(octets.ljust(3986, b"\0")[:3986])
    packet[0:1], packet[2:4], packet[6:8], packet[9] = b"\x45", b"\x0f\x92", b"\0\0", protocol
    addresses = int.from_bytes(packet[12:16], "big") + int.from_bytes(packet[16:20], "big")
    field = (addresses + protocol + 3966) % 0xFFFF or 0xFFFF
    packet[checksum_at : checksum_at + 2] = field.to_bytes(2, "big")
    return MACS + b"\x08\x00" + packet


def check(frame: bytes, verdict: bytes | DropReason) -> None:
    if verdict is DropReason.INNER_MALFORMED or verdict == PLAIN:
        return
    if isinstance(verdict, DropReason):
        raise AssertionError(f"{verdict}: {frame.hex()}")
    vnet = parse_vnet_header_untrusted(verdict)
    if not vnet.checksum_start + vnet.checksum_offset + 2 <= vnet.header_length <= len(frame):
        raise AssertionError(f"{vnet} outside of its frame: {frame.hex()}")
    payload = len(frame) - vnet.header_length
    if vnet.gso_type and not vnet.gso_size < payload <= 64 * vnet.gso_size:
        raise AssertionError(f"{vnet} cuts {payload} octets: {frame.hex()}")


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
