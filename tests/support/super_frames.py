"""Super-frames and what becomes of them, made the slow way: scapy builds each segment anew.

`Burst` says what a program sends; `whole` is what its host leaves to the network card, with the virtio
header before it, `segments` is what the card would put on the wire.  Nothing here is shared with the code
under test, and the checksums are scapy's.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop
from scapy.packet import Raw
from support.frames import IP4_A, IP4_B, IP6_A, IP6_B, ether, unfinished

NEEDS_CSUM = 1
TCPV4, TCPV6, UDP_L4, ECN = 1, 4, 5, 0x80

PATTERN = bytes((at * 7 + at // 251) & 0xFF for at in range(4093))  # a prime: no two segments are alike

TCP_OPTIONS: list[list[Any]] = [
    [],
    [("NOP", None), ("NOP", None), ("Timestamp", (11, 22))],
    [("NOP", None), ("NOP", None), ("SAck", (1, 2, 3, 4, 5, 6))],
]


@dataclass(frozen=True)
class Burst:
    """What a program sends in one go: `octets` of payload, `size` of them a segment."""

    version: int = 4
    protocol: int = 6
    octets: int = 3000
    size: int = 1000
    tags: tuple[int, ...] = ()
    tcp_options: int = 0
    ip_options: int = 0
    flags: str = "A"
    sequence: int = 100
    identification: int = 7
    sport: int = 40000
    dport: int = 80
    tos: int = 0
    may_fragment: bool = False

    @property
    def payload(self) -> bytes:
        return (PATTERN * (self.octets // len(PATTERN) + 1))[: self.octets]

    @property
    def l4_at(self) -> int:
        extra = 4 * self.ip_options if self.version == 4 else 8 * self.ip_options
        return 14 + 4 * len(self.tags) + (20 if self.version == 4 else 40) + extra

    @property
    def headers(self) -> int:
        options = len(bytes(TCP(options=TCP_OPTIONS[self.tcp_options]))) if self.protocol == 6 else 8
        return self.l4_at + options

    def frame(self, start: int, stop: int, index: int, flags: str) -> bytes:
        """One segment, the octets of payload from `start` to `stop`."""
        ip: Any
        if self.version == 4:
            options = [IPOption_NOP()] * (4 * self.ip_options)
            number = (self.identification + index) & 0xFFFF
            df = "" if self.may_fragment else "DF"
            ip = IP(src=IP4_A, dst=IP4_B, id=number, flags=df, tos=self.tos, options=options)
        else:
            ip = IPv6(src=IP6_A, dst=IP6_B, tc=self.tos, fl=77)
            for extension in (IPv6ExtHdrHopByHop, IPv6ExtHdrDestOpt)[: self.ip_options]:
                ip /= extension()
        l4: Any = UDP(sport=self.sport, dport=self.dport)
        if self.protocol == 6:
            number = (self.sequence + start) & 0xFFFFFFFF
            l4 = TCP(sport=self.sport, dport=self.dport, seq=number, ack=9, flags=flags, window=501)
            l4.options = TCP_OPTIONS[self.tcp_options]
        return ether(ip, l4, Raw(self.payload[start:stop]), tags=self.tags)

    @property
    def whole(self) -> bytes:
        """The super-frame, its checksum unfinished."""
        addresses = IP4_A, IP4_B
        if self.version == 6:
            addresses = IP6_A, IP6_B
        packed = b"".join(ip_address(address).packed for address in addresses)
        frame = self.frame(0, self.octets, 0, self.flags)
        return unfinished(frame, l4_at=self.l4_at, protocol=self.protocol, addresses=packed)

    @property
    def header(self) -> bytes:
        """The virtio header the kernel gives it."""
        kind = UDP_L4 if self.protocol == 17 else TCPV4 if self.version == 4 else TCPV6
        if self.protocol == 6 and "C" in self.flags:
            kind |= ECN
        offset = 16 if self.protocol == 6 else 6
        return struct.pack("=BBHHHH", NEEDS_CSUM, kind, self.headers, self.size, self.l4_at, offset)

    @property
    def segments(self) -> list[bytes]:
        """What a network card makes of it."""
        starts = range(0, self.octets, self.size) or range(1)
        made = []
        for index, start in enumerate(starts):
            stop = min(start + self.size, self.octets)
            flags = self.flags
            if stop < self.octets:
                flags = flags.replace("F", "").replace("P", "")
            if index:
                flags = flags.replace("C", "")
            made.append(self.frame(start, stop, index, flags))
        return made


def bursts(**fixed: Any) -> st.SearchStrategy[Burst]:
    """Any burst of up to 70 segments; `fixed` fields are as given (strategies)."""
    fields: dict[str, Any] = {
        "version": st.sampled_from([4, 6]),
        "protocol": st.sampled_from([6, 17]),
        "size": st.sampled_from([1, 2, 7, 100, 479, 480, 481, 1000, 1447, 1448]),
        "octets": st.integers(0, 70),
        "tags": st.sampled_from([(), (), (7,), (100, 7)]),
        "tcp_options": st.sampled_from(range(len(TCP_OPTIONS))),
        "ip_options": st.integers(0, 2),
        "flags": st.sampled_from(["A", "PA", "FA", "FPA", "CA", "CPA", "CFPA", "EA"]),
        "sequence": st.sampled_from([0, 100, 0xFFFFFFFF, 0xFFFFF000]) | st.integers(0, 0xFFFFFFFF),
        "identification": st.sampled_from([0, 1, 0xFFFF, 0xFFF0]) | st.integers(0, 0xFFFF),
        "sport": st.integers(1, 65535),
        "dport": st.integers(1, 4000),
        "tos": st.sampled_from([0, 2, 0xB8]),
        "may_fragment": st.booleans(),
        **fixed,
    }
    tails = st.integers(0, 100)

    def burst(drawn: tuple[dict[str, Any], int]) -> Burst:
        values, tail = drawn
        values["octets"] = min(values["octets"] * values["size"] + tail % values["size"], 60000)
        return Burst(**values)

    return st.tuples(st.fixed_dictionaries(fields), tails).map(burst)
