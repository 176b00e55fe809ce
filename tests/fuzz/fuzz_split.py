"""Frames at split: runs whose segments fill them and hold the payload, or a named drop; checksums finished.

python tests/fuzz/fuzz_split.py -max_total_time=20
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["overlay", "tunnel"]):
    from overlay.verdict import DropReason
    from tunnel.split import RUN_OCTETS_MAX, SEGMENTS_MAX, finish_untrusted, split_untrusted

MACS = b"\x02\0\0\0\0\x0b\x02\0\0\0\0\x0a"
NAMED = (DropReason.INNER_MALFORMED, DropReason.MTU_EXCEEDED)
ROOMS = (0, 100, 1472, 65507)


def one_input(octets: bytes) -> None:
    room = ROOMS[octets[0] % len(ROOMS)] if octets else 0
    check(octets[:10], octets[10:], room)
    finish(octets[:10], octets[10:])
    for protocol in (6, 17):
        for version in (4, 6):
            check(*super_frame(octets, version, protocol), room)


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


def finish(header: bytes, octets: bytes) -> None:
    frame = bytearray(octets)
    if not finish_untrusted(header, memoryview(frame)):
        if frame != octets:
            raise AssertionError(f"refused and changed: {header.hex()} {octets.hex()}")
        return
    start, checksum_at = struct.unpack_from("=6xHH", header)
    at = start + checksum_at
    if frame[:at] + frame[at + 2 :] != octets[:at] + octets[at + 2 :]:
        raise AssertionError(f"more than the checksum changed: {header.hex()} {octets.hex()}")


def check(header: bytes, frame: bytes, room: int) -> None:
    runs = split_untrusted(header, memoryview(bytearray(frame)), prefix=bytes(8), payload_max=room)
    if isinstance(runs, DropReason):
        if runs not in NAMED:
            raise AssertionError(f"{runs}: {header.hex()} {frame.hex()}")
        return
    for run in runs:
        octets = sum(map(len, run.buffers))
        if run.segment_size > room or octets > RUN_OCTETS_MAX or not 1 <= run.segments <= SEGMENTS_MAX:
            raise AssertionError(f"{run.segments} of {run.segment_size}: {header.hex()} {frame.hex()}")
        if -(-octets // run.segment_size) != run.segments:
            raise AssertionError(f"{octets} octets are not {run.segments} segments: {frame.hex()}")


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
