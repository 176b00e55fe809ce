"""What the kernel knows of links, addresses and routes, and the few things of it we change.

Two halves that never meet.  The functions ask and change: each opens a conversation, has it and closes
it; `ensure_…` and `remove_…` are idempotent, and undo touches only what is named to it.  The `Doorbell`
says only *that* something changed and parses nothing: what changed is asked again by the functions, so a
notification lost, doubled or overtaken cannot leave us believing something false.

The functions block for a millisecond or two: the daemon calls them through `asyncio.to_thread`.  All
speak of the network namespace of the calling thread.

Over 500 lines: what we ask of the kernel about devices, ways and redirections is one conversation's manners
and quirks, which stand at the top.

Heads up: rtnetlink(7), and pyroute2 is imported in this file and in `netroutes` alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_address
from typing import Any, Concatenate, ParamSpec, TypeVar

from pyroute2 import IPRoute, NetlinkError
from pyroute2.ethtool.ioctl import IoctlEthtool

from overlay.addr import IpAddress, Mac, format_mac, parse_mac
from overlay.errors import DeviceError

IpInterface = IPv4Interface | IPv6Interface
"""An address with its prefix length, as it stands on a device."""

P = ParamSpec("P")
T = TypeVar("T")

# From the specification: <linux/if.h>, <linux/if_addr.h>, <linux/rtnetlink.h>
IFF_UP = 0x1
IFA_F_SECONDARY = 0x01  # of IPv4; the same bit is IFA_F_TEMPORARY (RFC 8981) of IPv6
IFA_F_DADFAILED = 0x08
IFA_F_DEPRECATED = 0x20
IFA_F_TENTATIVE = 0x40
RTM_F_FIB_MATCH = 0x2000
RTN_UNICAST = 1
NUD_VALID = 0xDE  # permanent, no ARP needed, reachable, stale, delayed, being probed
RT_SCOPE_UNIVERSE = 0
RT_SCOPE_LINK = 253
CLSACT_INGRESS = 0xFFFFFFF2
ETH_P_ALL = 0x0003
BPF_DIRECT_ACTION = 0x1  # TCA_BPF_FLAG_ACT_DIRECT
EGRESS_REDIRECT = 1  # TCA_EGRESS_REDIR
ADDR_GEN_MODE_NONE = 1
NLA_HEADER_LENGTH = 4
RX_OTHERHOST_DROPPED = struct.Struct("=192xQ")  # of rtnl_link_stats64, Linux ≥ 5.19
NO_SUCH_LINK = (errno.ENODEV,)
NO_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN)
RTMGRP_LINK = 0x001
RTMGRP_NEIGH = 0x004
RTMGRP_TC = 0x008
RTMGRP_IPV4_IFADDR = 0x010
RTMGRP_IPV4_ROUTE = 0x040
RTMGRP_IPV6_IFADDR = 0x100
RTMGRP_IPV6_ROUTE = 0x400

# Ours
DOORBELL_GROUPS = (
    RTMGRP_LINK
    | RTMGRP_NEIGH
    | RTMGRP_TC
    | RTMGRP_IPV4_IFADDR
    | RTMGRP_IPV4_ROUTE
    | RTMGRP_IPV6_IFADDR
    | RTMGRP_IPV6_ROUTE
)
MIRRED = ("options", "TCA_U32_ACT", "TCA_ACT_PRIO_1")  # where a filter's answer has its action
RINGS_PER_DRAIN = 1024
"""A bound on one `ring()`: routes by the million must not hold the loop.  The rest stays readable."""


@dataclass(frozen=True, slots=True)
class LinkFacts:
    """A device as it is.

    Attributes:
        kind: What `ip link add type` calls it (`veth`, `tun`), "" for hardware.
        queues: Of a TAP or TUN that may have several: how many somebody holds.
    """

    name: str
    index: int
    mtu: int
    mac: Mac | None
    up: bool
    kind: str
    txqueuelen: int
    queues: int = 0


@dataclass(frozen=True, slots=True)
class AddressFacts:
    """An address on a device.

    Attributes:
        address: With its scope (`fe80::1%eth0`) where it is link-local.
        stable: The device's own in that subnet: neither secondary, temporary, deprecated nor duplicate.
        tentative: IPv6 duplicate address detection has not finished (RFC 4862 section 5.4).
    """

    address: IpAddress
    prefix_length: int
    device: str
    link_local: bool
    stable: bool
    tentative: bool


@dataclass(frozen=True, slots=True)
class RouteFacts:
    """What the kernel would do with a packet to an address.

    Attributes:
        source: The address it would be from, if the kernel names one.
        gateway: The next hop, or None: the address itself is on the link, or ours.
        mtu: The route's own, else the device's, in octets of packet.
    """

    device: str
    source: IpAddress | None
    gateway: IpAddress | None
    mtu: int


@dataclass(frozen=True, slots=True)
class NextHop:
    """Which device packets leave by, and the Ethernet address they are for on its link."""

    device: str
    mac: Mac


@dataclass(frozen=True, slots=True)
class Redirection:
    """How a device stands whose packets all leave by another.

    Attributes:
        leads: The filter that has them leave is there.
        refused: Packets a `mirred` filter took and its target device did not, since the filter was made.
        strayed: Packets that no filter took, since the device was made: the host's stack found them to be
            for somebody else.
    """

    up: bool
    leads: bool
    refused: int
    strayed: int


def conversation(
    ask: Callable[Concatenate[IPRoute, P], T],
) -> Callable[P, T]:
    """Opens a netlink socket for the call, and turns what the kernel refuses into a DeviceError.

    QUIRK(pyroute2 0.9): IPRoute runs an event loop of its own and fails in a thread whose loop is running.
    Called there all the same, for an error's text say, the conversation moves to a thread of its own and
    is waited for.
    """

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            with IPRoute() as kernel:
                return ask(kernel, *args, **kwargs)
        except NetlinkError as error:
            raise _refused(str(args[0]) if args else "netlink", error.code) from error
        except OSError as error:
            raise _refused("netlink", error.errno or 0) from error

    def call_from_anywhere(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return call(*args, **kwargs)
        with ThreadPoolExecutor(1) as elsewhere:
            return elsewhere.submit(call, *args, **kwargs).result()

    call_from_anywhere.__doc__ = ask.__doc__
    call_from_anywhere.__name__ = ask.__name__
    return call_from_anywhere


"""For `tunnel.netroutes`, which is this file's other half."""


def _refused(what: str, number: int) -> DeviceError:
    if number in (errno.EPERM, errno.EACCES):
        why = "changing links, addresses and routes needs CAP_NET_ADMIN"
        return DeviceError(what, number, why=why, advice="sudo weft run …; or --cap-add NET_ADMIN")
    if number == errno.ENODEV:
        return DeviceError(
            what, number, why="there is no device of this name", advice="list them with: ip link"
        )
    return DeviceError(what, number)


# --- Links ------------------------------------------------------------------------------------------


@conversation
def link(kernel: IPRoute, name: str) -> LinkFacts | None:
    """The device called so, or None."""
    with none_for(NO_SUCH_LINK):
        return _link_facts(kernel.link("get", ifname=name)[0])
    return None


@conversation
def ensure_link(
    kernel: IPRoute,
    name: str,
    *,
    mtu: int,
    up: bool,
    mac: Mac | None = None,
    txqueuelen: int | None = None,
) -> LinkFacts:
    """Makes the device have these properties; None leaves one as it is.  Returns it as it then is.

    Raises:
        DeviceError: ENODEV, there is none; EINVAL, an MTU or MAC it cannot have; EPERM.
    """
    found = _link_facts(kernel.link("get", ifname=name)[0])
    wanted: dict[str, Any] = {}
    if found.mtu != mtu:
        wanted["mtu"] = mtu
    if mac is not None and found.mac != mac:
        wanted["address"] = format_mac(mac)
    if txqueuelen is not None and found.txqueuelen != txqueuelen:
        wanted["txqlen"] = txqueuelen
    if found.up != up:
        wanted["state"] = "up" if up else "down"
    if not wanted:
        return found
    kernel.link("set", index=found.index, **wanted)
    return _link_facts(kernel.link("get", index=found.index)[0])


def _link_facts(message: Any) -> LinkFacts:
    mac = message.get("IFLA_ADDRESS")
    return LinkFacts(
        name=message.get("IFLA_IFNAME"),
        index=message["index"],
        mtu=message.get("IFLA_MTU"),
        mac=parse_mac(mac) if mac and mac.count(":") == 5 else None,
        up=bool(message["flags"] & IFF_UP),
        kind=message.get(("linkinfo", "kind")) or "",
        txqueuelen=message.get("IFLA_TXQLEN") or 0,
        queues=message.get(("linkinfo", "data", "tun_num_queues")) or 0,
    )


# --- Addresses --------------------------------------------------------------------------------------


@conversation
def addresses(kernel: IPRoute) -> list[AddressFacts]:
    """Every address of this host, loopback's included, in the kernel's order."""
    names = _link_names(kernel)
    return [_address_facts(message, names) for message in kernel.get_addr()]


@conversation
def ensure_addresses(kernel: IPRoute, name: str, wanted: Sequence[IpInterface]) -> list[IpInterface]:
    """Puts the addresses on the device; others there stay.  Returns those it added, in order.

    Raises:
        DeviceError: No such device; EEXIST, an IPv6 address is there with another prefix length.
    """
    index = kernel.link("get", ifname=name)[0]["index"]
    found = _interfaces_of(kernel, index)
    added = [interface for interface in wanted if interface not in found]
    for interface in added:
        kernel.addr("add", index=index, address=str(interface.ip), prefixlen=interface.network.prefixlen)
    return added


@conversation
def remove_addresses(kernel: IPRoute, name: str, unwanted: Iterable[IpInterface]) -> None:
    """Takes the addresses off the device; one that is not there, or no device, is as good."""
    with none_for(NO_SUCH_LINK):
        index = kernel.link("get", ifname=name)[0]["index"]
        found = _interfaces_of(kernel, index)
        for interface in unwanted:
            if interface in found:
                kernel.addr(
                    "del", index=index, address=str(interface.ip), prefixlen=interface.network.prefixlen
                )


def device_of_address(address: IpAddress) -> str | None:
    """The device that has the address, or None.  Any scope of the address must be that device."""
    wanted = str(address)
    return next((facts.device for facts in addresses() if str(facts.address) == wanted), None)


def _interfaces_of(kernel: IPRoute, index: int) -> set[IpInterface]:
    return {
        _interface(_own_address(message), message["prefixlen"])
        for message in kernel.get_addr(index=index)
        if message["index"] == index
    }


def _interface(address: str, prefix_length: int) -> IpInterface:
    version = IPv6Interface if ":" in address else IPv4Interface
    return version(f"{address}/{prefix_length}")


def _own_address(message: Any) -> str:
    """On a point-to-point link IFA_ADDRESS is the other end; IPv6 has no IFA_LOCAL elsewhere."""
    own: str = message.get("IFA_LOCAL") or message.get("IFA_ADDRESS")
    return own


def _address_facts(message: Any, names: dict[int, str]) -> AddressFacts:
    device = names.get(message["index"], "")
    link_local = message["scope"] == RT_SCOPE_LINK and message["family"] == socket.AF_INET6
    flags = message.get("IFA_FLAGS") or message["flags"]
    return AddressFacts(
        address=ip_address(_own_address(message) + (f"%{device}" if link_local else "")),
        prefix_length=message["prefixlen"],
        device=device,
        link_local=link_local,
        stable=not flags & (IFA_F_SECONDARY | IFA_F_DEPRECATED | IFA_F_DADFAILED),
        tentative=bool(flags & IFA_F_TENTATIVE),
    )


# --- Routes -----------------------------------------------------------------------------------------


@conversation
def route_to(kernel: IPRoute, address: IpAddress) -> RouteFacts | None:
    """How the kernel would reach the address now; None: it would not."""
    scope = getattr(address, "scope_id", None)
    question: dict[str, Any] = {"dst": str(address).split("%")[0]}
    with none_for((*NO_SUCH_LINK, *NO_ROUTE)):
        if scope:
            question["oif"] = kernel.link("get", ifname=scope)[0]["index"]
        answer = kernel.route("get", **question)[0]
        device = _link_facts(kernel.link("get", index=answer.get("RTA_OIF"))[0])
        source, gateway = answer.get("RTA_PREFSRC"), answer.get("RTA_GATEWAY")
        return RouteFacts(
            device=device.name,
            source=ip_address(source) if source else None,
            gateway=ip_address(gateway) if gateway else None,
            mtu=answer.get(("metrics", "mtu")) or device.mtu,
        )
    return None


@conversation
def default_source(kernel: IPRoute, version: int) -> AddressFacts | None:
    """The address the host's default route of this IP version (4 or 6) sends from, or None.

    The route's own `src` where it has one, else what the kernel would choose towards its gateway, else
    the first global address of its device.
    """
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    routes = sorted(kernel.get_default_routes(family), key=lambda route: route.get("RTA_PRIORITY") or 0)
    if not routes:
        return None
    hop = (routes[0].get("RTA_MULTIPATH") or [routes[0]])[0]
    index = hop.get("RTA_OIF") or hop.get("oif")
    source, gateway = routes[0].get("RTA_PREFSRC"), hop.get("RTA_GATEWAY")
    if not source and gateway:
        with none_for(NO_ROUTE):
            source = kernel.route("get", dst=gateway, oif=index)[0].get("RTA_PREFSRC")
    names = _link_names(kernel)
    own = [_address_facts(message, names) for message in kernel.get_addr(family)]
    by_name = [facts for facts in own if str(facts.address) == source]
    by_device = [facts for facts in own if facts.device == names[index] and facts.stable]
    return next((facts for facts in by_name + by_device if not facts.link_local), None)


def _link_names(kernel: IPRoute) -> dict[int, str]:
    return {message["index"]: message.get("IFLA_IFNAME") for message in kernel.get_links()}


@contextlib.contextmanager
def none_for(numbers: tuple[int, ...]) -> Iterator[None]:
    """Lets the caller go on to its `return None` where the kernel answers one of these."""
    try:
        yield
    except NetlinkError as error:
        if error.code not in numbers:
            raise


@conversation
def next_hops(kernel: IPRoute, addresses: Iterable[IpAddress]) -> dict[IpAddress, NextHop | str]:
    """Of each address its one unicast next hop; a string says why there is none such."""
    return {address: _next_hop(kernel, address) for address in addresses}


def _next_hop(kernel: IPRoute, address: IpAddress) -> NextHop | str:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    question: dict[str, Any] = {"dst": str(address).split("%")[0], "family": family}
    try:
        if scope := getattr(address, "scope_id", None):
            question["oif"] = kernel.link("get", ifname=scope)[0]["index"]
        route = kernel.route("get", flags=RTM_F_FIB_MATCH, **question)[0]
    except NetlinkError as error:
        return f"no route: {os.strerror(error.code)}"
    if route["type"] != RTN_UNICAST or route.get("RTA_ENCAP_TYPE") or route.get("RTA_VIA"):
        return "its route is not a plain one"
    if route.get("RTA_MULTIPATH"):
        return "its route has several next hops"
    gateway = route.get("RTA_GATEWAY") or question["dst"]
    try:
        found = kernel.neigh("get", dst=gateway, ifindex=route.get("RTA_OIF"), family=family)[0]
    except NetlinkError:
        return f"the Ethernet address of {gateway} is not known yet"
    mac = found.get("NDA_LLADDR")
    if not found["state"] & NUD_VALID or not mac or mac.count(":") != 5:
        return f"{gateway} does not tell its Ethernet address"
    return NextHop(_link_facts(kernel.link("get", index=route.get("RTA_OIF"))[0]).name, parse_mac(mac))


# --- Redirection ------------------------------------------------------------------------------------


def features(name: str) -> frozenset[str]:
    """The offloads the device has switched on, in ethtool's words (`tx-udp_tnl-segmentation`).

    Raises:
        DeviceError: No such device.
    """
    try:
        with contextlib.closing(IoctlEthtool()) as asking:
            asking.change_ifname(name)
            told = asking.get_features()
    except OSError as error:
        raise _refused(name, error.errno or 0) from error
    return frozenset(feature for feature, is_on, *_ in told if is_on)


@conversation
def redirect(kernel: IPRoute, name: str, device: str, *, program: int | None = None) -> None:
    """Has everything that enters by `name`, a device of our own making, leave by `device`.

    The filter goes with either device.  By `mirred`, which wants CAP_NET_ADMIN and modules that every
    distribution has; or by a tc program's descriptor, which knows the way itself.

    Raises:
        DeviceError: ENODEV, one of them is gone; ENOENT, this kernel has not got what it takes; EPERM.
    """
    index = kernel.link("get", ifname=name)[0]["index"]
    kernel.tc("replace", "clsact", index)
    everything: dict[str, Any] = {"parent": CLSACT_INGRESS, "protocol": ETH_P_ALL, "prio": 1}
    if program is not None:
        kernel.tc("add-filter", "bpf", index, fd=program, name=name, flags=BPF_DIRECT_ACTION, **everything)
        return
    towards = kernel.link("get", ifname=device)[0]["index"]
    action = {"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": towards}
    kernel.tc("add-filter", "u32", index, keys=["0x0/0x0+0"], target=0, action=action, **everything)


@conversation
def without_addresses(kernel: IPRoute, name: str) -> None:
    """Keeps the kernel from giving the device an IPv6 address, and so from talking through it."""
    index = kernel.link("get", ifname=name)[0]["index"]
    mode = {"attrs": [["AF_INET6", {"attrs": [["IFLA_INET6_ADDR_GEN_MODE", ADDR_GEN_MODE_NONE]]}]]}
    with none_for((errno.EAFNOSUPPORT, errno.EINVAL)):  # a host without IPv6
        kernel.link("set", index=index, IFLA_AF_SPEC=mode)


@conversation
def redirection(kernel: IPRoute, name: str, towards: int) -> Redirection | None:
    """How what `redirect` made of a device stands, the other having that index; None: the device is gone."""
    with none_for(NO_SUCH_LINK):
        device = kernel.link("get", ifname=name)[0]
        filters = tuple(kernel.get_filters(index=device["index"], parent=CLSACT_INGRESS))
        return Redirection(
            up=bool(device["flags"] & IFF_UP),
            leads=any(_leads(each, name, towards) for each in filters),
            refused=sum(map(_refusals, filters)),
            strayed=_strayed(device.get("IFLA_STATS64")),
        )
    return None


def _leads(message: Any, name: str, towards: int) -> bool:
    mirred = message.get((*MIRRED, "TCA_ACT_OPTIONS", "TCA_MIRRED_PARMS"))
    if mirred:
        return bool(mirred["ifindex"] == towards and mirred["eaction"] == EGRESS_REDIRECT)
    return bool(message.get(("options", "TCA_BPF_NAME")) == name)


def _refusals(message: Any) -> int:
    """What tc counts where a redirection goes wrong: the device gone or down, its queue full."""
    queue = message.get((*MIRRED, "TCA_ACT_STATS", "TCA_STATS_QUEUE"))
    return int(queue["overlimits"]) if queue else 0


def _strayed(counters: Any) -> int:
    """QUIRK(pyroute2 0.9): it reads the counters up to this one."""
    octets = counters.data[counters.offset + NLA_HEADER_LENGTH : counters.offset + counters.length]
    return int(RX_OTHERHOST_DROPPED.unpack_from(octets)[0]) if len(octets) >= RX_OTHERHOST_DROPPED.size else 0


# --- Changes ----------------------------------------------------------------------------------------


class Doorbell:
    """Rings when a link, an address, a route, a neighbour or a tc filter of its namespace changed.

    Args:
        protocol, groups: Another family of netlink, and what of it is listened to.

    Raises:
        DeviceError: The kernel refuses the subscription.
    """

    def __init__(self, protocol: int = socket.NETLINK_ROUTE, groups: int = DOORBELL_GROUPS) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
        except OSError as error:
            raise _refused("netlink", error.errno or 0) from error
        try:
            self._socket.bind((0, groups))
        except OSError as error:
            self._socket.close()
            raise _refused("netlink", error.errno or 0) from error

    def fileno(self) -> int:
        return self._socket.fileno()

    def ring(self) -> bool:
        """Whether anything changed since the last call.  Reads the notifications away unseen."""
        rang = False
        for _ in range(RINGS_PER_DRAIN):
            try:
                self._socket.recv(1)  # one notification; what does not fit is discarded
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # notifications were lost: all the more reason to look
                    raise
            rang = True
        return rang

    def close(self) -> None:
        self._socket.close()
