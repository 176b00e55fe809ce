"""Bare packets at the door of Flannel's format: forwarded with a right checksum, or untouched with a reason.

python tests/fuzz/fuzz_flannel_udp.py -max_total_time=20
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["overlay", "tunnel", "control.operator.net_conf"]):
    from control.operator.net_conf import parse_net_conf_untrusted
    from overlay.checksum import checksum
    from overlay.verdict import DropReason
    from tunnel.flannel_udp import ETHERNET, forward_untrusted


def one_input(octets: bytes) -> None:
    for sample in (octets, summed(octets)):
        frame = bytearray(ETHERNET + sample)
        answer = forward_untrusted(memoryview(frame))
        length = (frame[14] & 0x0F) * 4 if sample else 0
        if isinstance(answer, DropReason):
            if frame != ETHERNET + sample:
                raise AssertionError(f"dropped, and written to: {sample.hex()}")
        elif checksum(frame[14 : 14 + length]) != 0 or frame[22] != sample[8] - 1:
            raise AssertionError(f"header checksum spoiled: {sample.hex()}")
    parse_net_conf_untrusted("net-conf.json", octets)


def summed(octets: bytes) -> bytes:
    """The octets as an IPv4 packet without options whose lengths and header checksum are right."""
    if len(octets) < 20:
        return octets
    head = b"\x45" + octets[1:2] + min(len(octets), 0xFFFF).to_bytes(2, "big") + octets[4:10] + b"\0\0"
    head += octets[12:20]
    return head[:10] + checksum(head).to_bytes(2, "big") + octets[12:]


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
