"""Identifiers, validated once: MAC addresses, VNIs, networks, VTEPs.

A MAC address is its six octets and nothing more, because frames are cut into keys a hundred thousand
times a second and a slice of `bytes` already is one.  The `NewType`s below cost nothing at run time;
the functions that make them are where a value is checked, and nothing checks it again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NewType

Mac = NewType("Mac", bytes)
"""Six octets, as on the wire."""

Vni = NewType("Vni", int)
"""A VXLAN network identifier, 0 … 2**24 - 1 (RFC 7348 section 5)."""

NetworkId = NewType("NetworkId", str)
"""The operator's name for a network, unique in a daemon.  (Two networks may share a VNI on two ports.)"""

IpAddress = IPv4Address | IPv6Address

# From the specification
MAC_LENGTH = 6
VNI_BITS = 24  # RFC 7348 section 5
BROADCAST = Mac(b"\xff" * MAC_LENGTH)
ZERO_MAC = Mac(bytes(MAC_LENGTH))

# IEEE 802.1Q-2018 table 8-1: what a bridge must not forward.  01:80:C2:00:00:00 is spanning tree's.
RESERVED_GROUP_PREFIX = b"\x01\x80\xc2\x00\x00"
BPDU_GROUP = Mac(b"\x01\x80\xc2\x00\x00\x00")

_OCTET = re.compile("[0-9A-Fa-f]{1,2}")


@dataclass(frozen=True, slots=True)
class Vtep:
    """A data-plane endpoint of a network: where encapsulated frames are sent.

    Its id is its address: of a datagram's sender ingress can tell nothing else, for the source port
    varies with the inner flow (RFC 7348 section 5).  Verdicts name that id, never the port.
    """

    address: IpAddress
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"


VtepId = IpAddress


def parse_mac(text: str) -> Mac:
    """The MAC address written as `02:00:5e:10:00:01` (or with dashes).

    Raises:
        ValueError: Not six hexadecimal octets.
    """
    octets = text.replace("-", ":").split(":")
    # int() alone would also take a sign, blanks and the digits of other scripts.
    if len(octets) != MAC_LENGTH or not all(map(_OCTET.fullmatch, octets)):
        raise ValueError(f"expected a MAC address like 02:00:5e:10:00:01, found {text!r}")
    return Mac(bytes(int(octet, 16) for octet in octets))


def format_mac(mac: bytes) -> str:
    """`02:00:5e:10:00:01`, as `ip` and `bridge` print it."""
    return mac.hex(":")


def is_group(mac: bytes) -> bool:
    """Whether the address is multicast or broadcast: the I/G bit (IEEE 802-2014 section 8.2)."""
    return bool(mac[0] & 0x01)


def is_station(mac: bytes) -> bool:
    """Whether it can be one station's: neither a group's nor all zero, which Linux takes from nobody."""
    return not is_group(mac) and mac != ZERO_MAC


def vni(value: int) -> Vni:
    """The VNI.

    Raises:
        ValueError: Not 0 … 16777215.
    """
    if not 0 <= value < 1 << VNI_BITS:
        raise ValueError(f"expected a VNI of 0 to {(1 << VNI_BITS) - 1}, found {value}")
    return Vni(value)


def unmap(address: IpAddress) -> IpAddress:
    """The IPv4 address inside a v4-mapped IPv6 address (RFC 4291 section 2.5.5.2), else the address."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def parse_ip(text: str) -> IpAddress:
    """The address, v4-mapped ones unmapped, a scope (`fe80::1%eth0`) kept.

    Raises:
        ValueError: Not an IP address.
    """
    return unmap(ip_address(text.strip("[]")))


def is_address(text: str) -> bool:
    """Whether it is one, and no name."""
    try:
        parse_ip(text)
    except ValueError:
        return False
    return True


def parse_vtep(text: str, *, default_port: int) -> Vtep:
    """The VTEP written `address`, `address:port` or `[address]:port`.

    Raises:
        ValueError: Not an address, or a port outside 1 … 65535.
    """
    host, port = text, str(default_port)
    if text.startswith("[") and "]:" in text:
        host, port = text.rsplit(":", 1)
    elif text.count(":") == 1:
        host, port = text.split(":")
    if not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"expected a port of 1 to 65535, found {port!r}")
    return Vtep(parse_ip(host), int(port))
