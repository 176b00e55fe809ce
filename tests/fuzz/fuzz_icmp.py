"""Frames at the maker of ICMP errors: an answer to its sender, or none.

python tests/fuzz/fuzz_icmp.py -max_total_time=20
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["overlay", "tunnel"]):
    from overlay.checksum import checksum
    from overlay.icmp import build_too_big

MACS = b"\x02\0\0\0\0\x0b\x02\0\0\0\0\x0a"


def one_input(octets: bytes) -> None:
    for frame in (octets, MACS + octets, MACS + b"\x08\x00" + summed(octets), MACS + b"\x86\xdd" + octets):
        for mtu in (68, 1280):
            answer = build_too_big(frame, mtu=mtu)
            if answer is not None and answer[:12] != frame[6:12] + frame[:6]:
                raise AssertionError(f"answered to {answer[:6].hex()}: {frame.hex()}")


def summed(octets: bytes) -> bytes:
    """The octets as an IPv4 packet without options whose header checksum is right."""
    if len(octets) < 20:
        return octets
    head = b"\x45" + octets[1:10] + b"\0\0" + octets[12:20]
    return head[:10] + checksum(head).to_bytes(2, "big") + octets[12:]


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
