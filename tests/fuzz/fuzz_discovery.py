"""Frames at neighbor discovery: a question that can be answered, or a WireError.

python tests/fuzz/fuzz_discovery.py -max_total_time=20
"""

from __future__ import annotations

import sys
from contextlib import suppress
from ipaddress import IPv6Address
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["overlay", "tunnel"]):
    from overlay.addr import Mac
    from overlay.checksum import transport_checksum
    from overlay.discovery import answer, may_be_discovery_untrusted, read_discovery_untrusted
    from overlay.errors import WireError
    from overlay.fdb import Origin
    from overlay.frame import PROTOCOL_ICMPV6, parse_ethernet_untrusted
    from overlay.neigh import NeighborEntry

ADDRESSES = b"\x33\x33\xff\0\0\x02\x02\0\0\0\0\x0a"
OWNER = Mac(b"\x02\0\0\0\0\x0c")
A, GROUP_OF_B = IPv6Address("fd00::1"), IPv6Address("ff02::1:ff00:2")


def one_input(octets: bytes) -> None:
    for frame in (octets, ADDRESSES + b"\x08\x06" + octets, ADDRESSES + b"\x86\xdd" + solicited(octets)):
        may_be_discovery_untrusted(frame)
        with suppress(WireError):
            ethernet = parse_ethernet_untrusted(frame)
            discovery = read_discovery_untrusted(ethernet, frame)
            if discovery is not None and discovery.asks_for is not None:
                answer(
                    discovery, ethernet, NeighborEntry(discovery.asks_for, OWNER, Origin.LEARNED, seen_at=0.0)
                )


def solicited(octets: bytes) -> bytes:
    """An IPv6 packet to a solicited-node group whose ICMPv6 message is drawn, but for its checksum."""
    message = octets[:1500].ljust(8, b"\0")
    message = message[:2] + b"\0\0" + message[4:]
    sum_ = transport_checksum(A, GROUP_OF_B, PROTOCOL_ICMPV6, message)
    head = b"\x60\0\0\0" + len(message).to_bytes(2, "big") + bytes([PROTOCOL_ICMPV6, 255])
    return head + A.packed + GROUP_OF_B.packed + message[:2] + sum_.to_bytes(2, "big") + message[4:]


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
