"""Octets at every parser of overlay.frame: a value or a WireError, nothing else.

python tests/fuzz/fuzz_frame.py -max_total_time=20
"""

from __future__ import annotations

import sys
from contextlib import suppress
from ipaddress import IPv6Address
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["overlay", "tunnel"]):
    from overlay.checksum import checksum, transport_checksum
    from overlay.errors import WireError
    from overlay.frame import (
        PROTOCOL_ICMPV6,
        parse_arp_untrusted,
        parse_ethernet_untrusted,
        parse_icmp_untrusted,
        parse_icmpv6_untrusted,
        parse_ipv4_untrusted,
        parse_ipv6_untrusted,
        parse_neighbor_untrusted,
        parse_tcp_untrusted,
        parse_udp_untrusted,
    )

PARSERS = (
    parse_ethernet_untrusted,
    parse_arp_untrusted,
    parse_ipv4_untrusted,
    parse_ipv6_untrusted,
    parse_icmp_untrusted,
    parse_tcp_untrusted,
    parse_udp_untrusted,
)
A, B, ANY = IPv6Address("fd00::1"), IPv6Address("ff02::1:ff00:2"), IPv6Address("::")


def one_input(octets: bytes) -> None:
    for parse in PARSERS:
        with suppress(WireError):
            parse(octets)
    with suppress(WireError):
        parse_ipv4_untrusted(octets, verify=False)
    for source in (A, ANY):
        for candidate in (octets, icmpv6_summed(octets, source)):
            with suppress(WireError):
                parse_icmpv6_untrusted(candidate, source, B)
            with suppress(WireError):
                parse_neighbor_untrusted(candidate, source, B, 255)
    if len(octets) >= 20:  # past the checksum, where no fuzzer would get by itself
        head = octets[:10] + b"\0\0" + octets[12:20]
        with suppress(WireError):
            parse_ipv4_untrusted(octets[:10] + checksum(head).to_bytes(2, "big") + octets[12:])


def icmpv6_summed(octets: bytes, source: IPv6Address) -> bytes:
    """The octets with the checksum right, past which no fuzzer would get by itself."""
    if len(octets) < 4:
        return octets
    sum_ = transport_checksum(source, B, PROTOCOL_ICMPV6, octets[:2] + b"\0\0" + octets[4:])
    return octets[:2] + sum_.to_bytes(2, "big") + octets[4:]


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
