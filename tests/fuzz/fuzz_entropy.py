"""Frames at the flow hash: 32 bits, the same for bytes and for a view of them.

python tests/fuzz/fuzz_entropy.py -max_total_time=20
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["overlay", "tunnel"]):
    from tunnel.entropy import flow_hash_untrusted

MACS = b"\x02\0\0\0\0\x0b\x02\0\0\0\0\x0a"


def one_input(octets: bytes) -> None:
    for frame in (octets, MACS + b"\x08\x00" + octets, MACS + b"\x86\xdd" + octets):
        value = flow_hash_untrusted(frame)
        if not 0 <= value < 2**32 or value != flow_hash_untrusted(memoryview(frame)):
            raise AssertionError(f"{value}: {frame.hex()}")


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
