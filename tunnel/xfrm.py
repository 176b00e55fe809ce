"""Whether an IPsec policy has a say in what we send: the host's outgoing XFRM policies, asked and matched.

A datagram that a socket sends is transformed as the policies say; a super-packet is handed to the egress
device behind their back.  So where one matches, only sockets may send.

    nlmsghdr 16 | xfrm_userpolicy_info 168: | selector 56 … | direction at 160 … | attributes, unread

    selector    | destination 16 | source 16 | four ports 8 | family 2 | prefix lengths 1 1 | protocol 1 | …

Asked over a netlink socket of our own, since pyroute2 does not speak XFRM.  Ports are not looked at: a
policy for one port closes the door for all, which costs speed and never secrecy.

Heads up: read <linux/xfrm.h> before changing this file.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network

from overlay.addr import IpAddress
from overlay.errors import DeviceError
from tunnel.netlink import Doorbell

# From the specification: <linux/netlink.h>, <linux/xfrm.h>
NETLINK_XFRM = 6
XFRM_GROUP_POLICY = 0x8  # of bind(): policies come and go
XFRM_MSG_NEWPOLICY = 0x13
XFRM_MSG_GETPOLICY = 0x15
XFRM_POLICY_OUT = 1
NLM_F_REQUEST, NLM_F_DUMP = 0x01, 0x300
NLMSG_ERROR, NLMSG_DONE = 0x02, 0x03
USERPOLICY_ID_LENGTH = 64
DIRECTION_AT = 160
UDP = 17

# Ours
ROOM = 1 << 16
TIMEOUT_SECONDS = 1.0

_Header = struct.Struct("=IHHII")
_Selector = struct.Struct("=16s16s8xHBBB")

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Policy:
    """What an outgoing policy is about.  `protocol` 0: every one."""

    source: Network
    destination: Network
    protocol: int

    def applies(self, source: IpAddress, destination: IpAddress) -> bool:
        """Whether it has a say in UDP from and to there."""
        return self.protocol in (0, UDP) and source in self.source and destination in self.destination


def outgoing() -> tuple[Policy, ...]:
    """The outgoing policies of this thread's network namespace; none where the kernel has no XFRM.

    Raises:
        OSError: EPERM, asking needs CAP_NET_ADMIN.
    """
    try:
        asking = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_XFRM)
    except OSError:
        return ()
    with asking:
        asking.settimeout(TIMEOUT_SECONDS)
        length = _Header.size + USERPOLICY_ID_LENGTH
        header = _Header.pack(length, XFRM_MSG_GETPOLICY, NLM_F_REQUEST | NLM_F_DUMP, 1, 0)
        asking.sendto(header + bytes(USERPOLICY_ID_LENGTH), (0, 0))
        found: list[Policy] = []
        while _take(asking.recv(ROOM), found):
            pass
        return tuple(found)


def policy_bell() -> tuple[Doorbell, ...]:
    """One that rings when a policy came or went; none where the kernel has no XFRM."""
    try:
        return (Doorbell(NETLINK_XFRM, XFRM_GROUP_POLICY),)
    except DeviceError as error:
        if error.errno not in (errno.EPROTONOSUPPORT, errno.EPERM):
            raise
        return ()


def _take(answer: bytes, found: list[Policy]) -> bool:
    """Adds the outgoing policies of one read; whether there is more to come."""
    at = 0
    while at + _Header.size <= len(answer):
        length, kind, _, _, _ = _Header.unpack_from(answer, at)
        body = answer[at + _Header.size : at + length]
        if kind == NLMSG_ERROR:
            number = -int.from_bytes(body[:4], sys.byteorder, signed=True)
            raise OSError(number, "the kernel refused to list XFRM policies")
        if kind == NLMSG_DONE:
            return False
        if kind == XFRM_MSG_NEWPOLICY and body[DIRECTION_AT] == XFRM_POLICY_OUT:
            found.append(_policy(body))
        at += length + 3 & ~3
    return True


def _policy(body: bytes) -> Policy:
    destination, source, family, destination_prefix, source_prefix, protocol = _Selector.unpack_from(body)
    octets = 4 if family == socket.AF_INET else 16
    return Policy(
        source=ip_network((source[:octets], source_prefix), strict=False),
        destination=ip_network((destination[:octets], destination_prefix), strict=False),
        protocol=protocol,
    )
