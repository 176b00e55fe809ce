"""Frames at ECN: a field of two bits, and a mark that spoils no IPv4 header checksum.

python tests/fuzz/fuzz_ecn.py -max_total_time=20
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["overlay", "tunnel"]):
    from overlay.checksum import checksum
    from tunnel.ecn import CE, NOT_ECT, inner_ecn_untrusted, mark_congested_untrusted

MACS = b"\x02\0\0\0\0\x0b\x02\0\0\0\0\x0a"


def one_input(octets: bytes) -> None:
    for frame in (octets, MACS + b"\x08\x00" + summed(octets), MACS + b"\x86\xdd" + octets):
        before = inner_ecn_untrusted(frame)
        marked = bytearray(frame)
        is_dropped = mark_congested_untrusted(marked) is not None
        if is_dropped is not (before == NOT_ECT) or len(marked) != len(frame):
            raise AssertionError(f"{before} became {marked.hex()}: {frame.hex()}")
        if not is_dropped and inner_ecn_untrusted(marked) != CE:
            raise AssertionError(f"not marked: {frame.hex()}")
        is_summed = frame[12:15] == b"\x08\x00\x45" and checksum(frame[14:34]) == 0
        if is_summed and checksum(marked[14:34]) != 0:
            raise AssertionError(f"header checksum spoiled: {frame.hex()}")


def summed(octets: bytes) -> bytes:
    """The octets as an IPv4 packet without options whose header checksum is right."""
    if len(octets) < 20:
        return octets
    head = b"\x45" + octets[1:10] + b"\0\0" + octets[12:20]
    return head[:10] + checksum(head).to_bytes(2, "big") + octets[12:]


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
