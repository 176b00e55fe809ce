"""Datagrams at the VXLAN header: a VNI or a reason, and every bit kept.

python tests/fuzz/fuzz_vxlan.py -max_total_time=20
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
    from tunnel.vxlan import HEADER_LENGTH, classify_untrusted, parse_header_untrusted


def one_input(octets: bytes) -> None:
    strict = classify_untrusted(octets, strict=True)
    lenient = classify_untrusted(octets, strict=False)
    if strict is not lenient and strict != lenient and strict is not DropReason.RESERVED_BITS:
        raise AssertionError(f"strict {strict}, lenient {lenient}: {octets.hex()}")
    with suppress(WireError):
        header = parse_header_untrusted(octets)
        if header.build() != octets[:HEADER_LENGTH] or not header.dialect:
            raise AssertionError(f"encoded as {header.build().hex()}: {octets.hex()}")


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
