"""The kernel's neighbors and routes, as far as routed networks program them.

Everything set here is marked with a protocol number of ours, as routing daemons mark theirs (`ip route show
proto 119`): so it is known again after a crash, and nothing of anybody else's is ever taken away.  As in
`tunnel.netlink`, every function opens a conversation, is idempotent, and blocks for a millisecond or two.

Heads up: rtnetlink(7), ip-neighbour(8), ip-route(8).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from pyroute2 import IPRoute

from overlay.addr import IpAddress, Mac, format_mac
from overlay.route import IpNetwork
from tunnel.netlink import conversation, none_for

# From the specification: <linux/if_link.h>, <linux/neighbour.h>, <linux/rtnetlink.h>
IN6_ADDR_GEN_MODE_NONE = 1
NUD_PERMANENT = 0x80
RTNH_F_ONLINK = 4
NO_SUCH_LINK = (errno.ENODEV,)
NO_IPV6 = (errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL)
NOT_THERE = (errno.ESRCH, errno.ENOENT, errno.ENODEV)

# Ours
PROTOCOL = 119  # "w"; the kernel and /etc/iproute2/rt_protos have no use for it

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass(frozen=True, slots=True)
class KernelRoute:
    """`subnet` is reached through the device: by way of `gateway`, taken to be on its link, or directly."""

    subnet: IpNetwork
    gateway: IpAddress | None = None


@conversation
def ensure_quiet(kernel: IPRoute, device: str) -> None:
    """Has the device speak no IPv6 of its own accord: behind it is nobody to be solicited.  Idempotent.

    To be said before it has its carrier, with which the kernel would give it a link-local address.

    Raises:
        DeviceError: ENODEV, no such device; EPERM.
    """
    found = kernel.link("get", ifname=device)[0]
    index = found["index"]
    # Setting what is set already is announced as a change all the same, to us too.
    if found.get(("af_spec", "AF_INET6", "IFLA_INET6_ADDR_GEN_MODE")) == IN6_ADDR_GEN_MODE_NONE:
        return
    mode = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", IN6_ADDR_GEN_MODE_NONE)]})]}
    with none_for(NO_IPV6):
        kernel.link("set", index=index, IFLA_AF_SPEC=mode)


@conversation
def ensure_neighbors(kernel: IPRoute, device: str, wanted: Mapping[IpAddress, Mac]) -> None:
    """Has these neighbors on the device, permanent: the host never asks for them.

    Raises:
        DeviceError: ENODEV, no such device; EPERM.
    """
    index = _index(kernel, device)
    found = dict(_neighbors(kernel, index))
    for address, mac in wanted.items():
        if found.get(address) != format_mac(mac):
            kernel.neigh(
                "replace",
                family=_FAMILIES[address.version],
                dst=str(address),
                lladdr=format_mac(mac),
                ifindex=index,
                state=NUD_PERMANENT,
                NDA_PROTOCOL=PROTOCOL,
            )


@conversation
def remove_other_neighbors(kernel: IPRoute, device: str, wanted: Iterable[IpAddress]) -> None:
    """Takes every neighbor of ours off the device but these; no device is as good."""
    with none_for(NO_SUCH_LINK):
        index = _index(kernel, device)
        kept = set(wanted)
        for address, _ in list(_neighbors(kernel, index)):
            if address not in kept:
                with none_for(NOT_THERE):
                    family = _FAMILIES[address.version]
                    kernel.neigh("del", family=family, dst=str(address), ifindex=index)


@conversation
def ensure_routes(kernel: IPRoute, device: str, wanted: Iterable[KernelRoute]) -> None:
    """Has these routes through the device.

    Raises:
        DeviceError: ENODEV, no such device; ENETDOWN, it is not up; EPERM.
    """
    index = _index(kernel, device)
    found = set(_routes(kernel, index))
    for route in wanted:
        if route not in found:
            kernel.route("replace", **_request(route, index))


@conversation
def remove_other_routes(kernel: IPRoute, device: str, wanted: Iterable[KernelRoute]) -> None:
    """Takes every route of ours off the device but these; no device is as good."""
    with none_for(NO_SUCH_LINK):
        index = _index(kernel, device)
        for route in set(_routes(kernel, index)) - set(wanted):
            with none_for(NOT_THERE):
                kernel.route("del", **_request(route, index))


def _index(kernel: IPRoute, device: str) -> int:
    index: int = kernel.link("get", ifname=device)[0]["index"]
    return index


def _neighbors(kernel: IPRoute, index: int) -> Iterable[tuple[IpAddress, str]]:
    """Those we have set: the kernel says who did since Linux 5.2, and no one else would before."""
    for family in _FAMILIES.values():
        for message in kernel.get_neighbours(family, ifindex=index):
            is_ours = message.get("NDA_PROTOCOL") in (PROTOCOL, None) and message["state"] & NUD_PERMANENT
            if message["ifindex"] == index and is_ours and message.get("NDA_LLADDR"):
                yield ip_address(message.get("NDA_DST")), message.get("NDA_LLADDR")


def _routes(kernel: IPRoute, index: int) -> Iterable[KernelRoute]:
    for family in _FAMILIES.values():
        for message in kernel.get_routes(family=family, proto=PROTOCOL):
            if message["proto"] != PROTOCOL or message.get("RTA_OIF") != index:
                continue
            base = message.get("RTA_DST") or ("0.0.0.0" if family == socket.AF_INET else "::")  # noqa: S104
            gateway = message.get("RTA_GATEWAY")
            yield KernelRoute(
                ip_network(f"{base}/{message['dst_len']}"), ip_address(gateway) if gateway else None
            )


def _request(route: KernelRoute, index: int) -> dict[str, Any]:
    request: dict[str, Any] = {"dst": str(route.subnet), "oif": index, "proto": PROTOCOL}
    if route.gateway is not None:
        request |= {"gateway": str(route.gateway), "flags": RTNH_F_ONLINK}
    elif route.subnet.version == 4:
        request["scope"] = 253  # link: there is nobody to hand it to
    return request
