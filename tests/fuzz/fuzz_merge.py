"""Frames at merge: every one of them is written once or named, and what is merged can be cut again.

python tests/fuzz/fuzz_merge.py -max_total_time=20
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["overlay", "tunnel"]):
    from overlay.verdict import DropReason
    from tunnel.merge import Lost, count_open_untrusted, merge_untrusted
    from tunnel.split import split_untrusted

MACS = b"\x02\0\0\0\0\x0b\x02\0\0\0\0\x0a"
SIZE = 40
COUNT = 6


def one_input(octets: bytes) -> None:
    check([octets[at : at + 60] for at in range(0, len(octets), 60)])
    for protocol in (6, 17):
        for version in (4, 6):
            check(segments(octets, version, protocol))


def segments(octets: bytes, version: int, protocol: int) -> list[bytes]:
    """A run whose numbers and checksums are right, but for the changes drawn: frame, place, value."""
    network = 20 if version == 4 else 40
    l4_length = 20 if protocol == 6 else 8
    frames = []
    for index in range(COUNT):
        packet = bytearray(network + l4_length + SIZE)
        if version == 4:
            packet[0:1], packet[2:4] = b"\x45", len(packet).to_bytes(2, "big")
            packet[5], packet[9] = index, protocol
            packet[10:12] = (-int.from_bytes(packet[:20], "big") % 0xFFFF).to_bytes(2, "big")
        else:
            packet[0:1], packet[4:6], packet[6] = b"\x60", (l4_length + SIZE).to_bytes(2, "big"), protocol
        if protocol == 6:
            packet[network + 4 : network + 8] = (index * SIZE).to_bytes(4, "big")
            packet[network + 12 : network + 14] = b"\x50\x10"
        else:
            packet[network + 4 : network + 6] = (l4_length + SIZE).to_bytes(2, "big")
        at = network + (16 if protocol == 6 else 6)
        pseudo = protocol + l4_length + SIZE
        checksum = -(pseudo + int.from_bytes(packet[network:], "big")) % 0xFFFF or 0xFFFF
        packet[at : at + 2] = checksum.to_bytes(2, "big")
        frames.append(bytearray(MACS + {4: b"\x08\x00", 6: b"\x86\xdd"}[version] + packet))
    for which, place, value in zip(octets[0::3], octets[1::3], octets[2::3], strict=False):
        frame = frames[which % COUNT]
        frame[place % len(frame)] = value
    return [bytes(frame) for frame in frames]


def check(frames: list[bytes]) -> None:
    views = [memoryview(frame) for frame in frames]
    if not 0 <= count_open_untrusted(views, overlay_mtu=1450) <= len(frames):
        raise AssertionError(f"open: {[frame.hex() for frame in frames]}")
    for udp in (False, True):
        writes = merge_untrusted(views, overlay_mtu=1450, udp=udp)
        found = 0
        for write in writes:
            if isinstance(write, Lost):
                if write.reason is not DropReason.INNER_MALFORMED:
                    raise AssertionError(f"{write.reason}: {write.frame.hex()}")
                found += 1
                continue
            found += write.frames
            frame = b"".join(write.buffers)
            if write.frames > 1:
                runs = split_untrusted(
                    write.header, memoryview(bytearray(frame)), prefix=b"", payload_max=65535
                )
                if isinstance(runs, DropReason) or sum(run.segments for run in runs) != write.frames:
                    raise AssertionError(
                        f"{write.frames} frames are {runs}: {write.header.hex()} {frame.hex()}"
                    )
        if found != len(frames):
            raise AssertionError(f"{found} of {len(frames)} frames: {[frame.hex() for frame in frames]}")


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
