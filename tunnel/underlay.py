"""UDP sockets on one underlay address: a pool that sends, and a port for each network that receives.

    flow ──hash──▶ senders[n]  (address, port chosen by the kernel) ──▶ the underlay, DF set, checksum on
                   open_port() (address, 4789)                      ◀── the underlay

The pool is what the source port's entropy comes from (RFC 7348 section 5): a port for each flow would
be a socket for each flow, so flows share 8 ports and each keeps to its own; ECMP, receive-side hashing
and `UDP_GRO` at the other end see 8 flows.

Nothing reads the pool.  VXLAN answers to the destination's port, so whatever strangers send to a pool
port is dropped by a filter in the kernel and wakes nobody.  What does arrive there are ICMP errors, on
the error queue, and they have a sting:

    A queued error also fails the *next* send on that socket, towards whomever, with its errno.  That
    datagram was not sent.  Drain `refusals()` and send it again before believing it.

So errors make themselves known, and nothing watches the pool: ask for `refusals()` when a send fails, and
once a second for those that no send came after, which may be a super-packet's.  Whoever watched it would
be called by the kernel for every datagram it frees, which is every segment of a burst
(sock_def_write_space()): a twentieth of the sending core was seen to go there.

An address may go and come back, and its device may be made anew: sockets are bound to the address, not
to the device, and go on.  Only a link-local address is tied to a device's index: then `rebind()`.

Over 500 lines: the kernel's socket quirks stand here and nowhere else.

Heads up: read ip(7), ipv6(7) and udp(7), IP_RECVERR above all, before changing this file.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import select
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import TypeVar

from overlay.addr import IpAddress, parse_ip
from overlay.errors import DeviceError
from tunnel import netlink
from tunnel.interfaces import Ancillary, Buffer, Refusal, SockAddr, SuperDoors, Underlay
from tunnel.ladder import Feature, Ladder, Switches

# From the specification: the kernel's <asm-generic/socket.h>, <linux/in.h>, <linux/in6.h>, <linux/udp.h>,
# as far as CPython's socket module has no name for them.
SO_ATTACH_FILTER = 26
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33
SO_MEMINFO = 55
SO_BINDTOIFINDEX = 62
SK_MEMINFO_DROPS = 8
SK_MEMINFO_VARS = 9
IP_MTU_DISCOVER = 10
IP_RECVERR = 11
IP_MTU = 14
IPV6_MTU_DISCOVER = 23
IPV6_MTU = 24
IPV6_RECVERR = 25
IPV6_FREEBIND = 78
PMTUDISC_DO = 2  # IP_PMTUDISC_DO and IPV6_PMTUDISC_DO
UDP_NO_CHECK6_RX = 102
UDP_SEGMENT = 103
UDP_GRO = 104
SO_EE_ORIGIN_ICMP = 2
SO_EE_ORIGIN_ICMP6 = 3
EXTENDED_ERROR = struct.Struct("=IBBBxII")  # struct sock_extended_err: errno, origin, type, code, info, data
BPF_RET_K = 0x06

# Ours
POOL_SIZE = 8
BUFFER_OCTETS = 7 << 20  # 64 KB bursts of several flows; what the fast userspace tunnels ask for, too
ERROR_QUEUE_OCTETS = 64 << 10  # a pool socket receives ICMP errors alone: this bounds what they may hold
REFUSALS_PER_DRAIN = 256
HOP_LIMIT = 64
ERROR_ROOM = 512  # of control messages on the error queue: the extended error and the offender's address
DISCARD_PORT = 9  # RFC 863; connect() wants a port, and sends nothing

Option = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class UnderlayFacts:
    """An address of this host that may carry an overlay, its device and the MTU of that."""

    address: IpAddress
    device: str
    mtu: int


class _Bound:
    """A socket bound to an underlay address."""

    def __init__(self, bound: socket.socket) -> None:
        self._socket = bound

    def fileno(self) -> int:
        return self._socket.fileno()

    def tie(self, device: str) -> None:
        """Binds the socket to the device by name, unless the index a scoped bind() noted is still its."""
        if self._socket.getsockopt(socket.SOL_SOCKET, SO_BINDTOIFINDEX) == _index(device):
            return
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())

    def close(self) -> None:
        self._socket.close()


class UdpSender(_Bound):
    """One socket of the pool: a `Sender`."""

    send: Callable[[Buffer, SockAddr], int]
    send_marked: Callable[[Iterable[Buffer], Iterable[tuple[int, int, Buffer]], int, SockAddr], int]

    def __init__(self, bound: socket.socket) -> None:
        super().__init__(bound)
        self.port = int(bound.getsockname()[1])
        self.send = bound.sendto
        self.send_marked = bound.sendmsg

    def refusals(self) -> list[Refusal]:
        """The ICMP errors that wait on this socket; taking them also clears its pending error."""
        return _drain_errors(self._socket)


def _drain_errors(bound: socket.socket) -> list[Refusal]:
    """What waits on a socket's error queue, a bounded part of it."""
    refusals: list[Refusal] = []
    with contextlib.suppress(BlockingIOError):
        for _ in range(REFUSALS_PER_DRAIN):
            _, ancillary, _, destination = bound.recvmsg(0, ERROR_ROOM, socket.MSG_ERRQUEUE)
            refusals += _refusals_of(ancillary, destination)
    return refusals


def _refusals_of(ancillary: Ancillary, destination: SockAddr) -> Iterable[Refusal]:
    """What an error queue's message says.  Errors of local origin are left out: the send raised them."""
    for level, kind, data in ancillary:
        if (level, kind) not in ((socket.IPPROTO_IP, IP_RECVERR), (socket.IPPROTO_IPV6, IPV6_RECVERR)):
            continue
        number, origin, _, _, info, _ = EXTENDED_ERROR.unpack_from(data)
        if origin in (SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6):
            yield Refusal(destination[0], number, info if number == errno.EMSGSIZE else 0)


class UdpPort(_Bound):
    """The socket that receives on (address, port): an `UnderlayPort`."""

    receive_into: Callable[[Sequence[Buffer], int], tuple[int, Ancillary, int, SockAddr]]

    def __init__(self, bound: socket.socket, port: int) -> None:
        super().__init__(bound)
        self._port = port
        self._overruns = 0
        self.receive_into = bound.recvmsg_into

    @property
    def port(self) -> int:
        return self._port

    def overruns(self) -> int:
        """Datagrams lost to a full receive buffer, and the few with a wrong UDP checksum.  Linux ≥ 4.12."""
        with contextlib.suppress(OSError):  # closed, or a kernel that does not tell
            facts = self._socket.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 4 * SK_MEMINFO_VARS)
            (self._overruns,) = struct.unpack_from("=I", facts, 4 * SK_MEMINFO_DROPS)
        return self._overruns

    def join_datagrams(self, *, is_on: bool) -> None:
        """Has the kernel join equal datagrams of one sender into one read (`UDP_GRO`), or not."""
        with contextlib.suppress(OSError):  # closed; and what the kernel has not got is simply not on
            self._socket.setsockopt(socket.IPPROTO_UDP, UDP_GRO, is_on)


class UdpExchange(UdpPort):
    """The socket that receives on (address, port) and sends from there: an `UnderlayExchange`.

    uvloop stops watching a descriptor for good once it has shown EPOLLERR, and ICMP errors do come here.  So
    what is watched is an epoll descriptor around the socket, which never shows it.
    """

    def __init__(self, bound: socket.socket, port: int) -> None:
        super().__init__(bound, port)
        self.send: Callable[[Buffer, SockAddr], int] = bound.sendto
        self.send_marked = bound.sendmsg
        self._readable = select.epoll()
        self._readable.register(bound.fileno(), select.EPOLLIN)

    def fileno(self) -> int:
        return -1 if self._readable.closed else self._readable.fileno()

    def refusals(self) -> list[Refusal]:
        """The ICMP errors that wait on this socket; taking them also clears its pending error."""
        return _drain_errors(self._socket)

    @property
    def socket_fileno(self) -> int:
        """The socket itself, which shows EPOLLERR, too, until its refusals are taken."""
        return self._socket.fileno()

    def close(self) -> None:
        self._readable.close()
        super().close()


AnyPort = TypeVar("AnyPort", bound=UdpPort)


class UdpUnderlay:
    """The `Underlay` of a Linux host: one address, its pool, its ports.

    Args:
        address: One of this host's; with its scope (`fe80::1%eth0`) if it is link-local.
        device: The device that has it.
        mtu: That device's.  Whoever hears of a change writes the attribute anew.
        pool_size: A power of two.
        switches: What the operator says of each offload; None: all auto.

    Raises:
        DeviceError: The address is not this host's.
    """

    def __init__(
        self,
        address: IpAddress,
        device: str,
        mtu: int,
        *,
        pool_size: int = POOL_SIZE,
        switches: Switches | None = None,
    ) -> None:
        if pool_size <= 0 or pool_size & (pool_size - 1):
            raise ValueError(f"expected a pool of a power of two sockets, found {pool_size}")
        self.address = address
        self.device = device
        self.mtu = mtu
        self._ports: list[UdpPort] = []
        self._exchanges: list[UdpExchange] = []
        self._errors = select.poll()
        senders: list[UdpSender] = []
        try:
            for _ in range(pool_size):
                senders.append(UdpSender(self._bound_socket(0, SENDING)))
                self._errors.register(senders[-1], 0)  # no events asked for: POLLERR alone comes
        except DeviceError:
            for sender in senders:
                sender.close()
            raise
        self.senders: Sequence[UdpSender] = tuple(senders)
        self.ladder = Ladder(switches)
        self.super_doors: SuperDoors | None = None  # whoever watches the host for them puts them here
        self.probe(Feature.UDP_GSO)
        self.probe(Feature.UDP_GRO)

    def probe(self, feature: Feature) -> bool:
        """Tries whether an offload of the sockets is there; whether it is in use now.  Idempotent."""
        option = {Feature.UDP_GSO: UDP_SEGMENT, Feature.UDP_GRO: UDP_GRO}[feature]
        obstacle = None
        try:
            with _open_socket(self.address.version, PROBING) as probe:
                # Asking is harmless; a kernel that has never heard of it refuses (Linux < 4.18, < 5.0).
                probe.getsockopt(socket.IPPROTO_UDP, option)
        except OSError as error:
            obstacle = f"this kernel: {error.strerror}"
        is_on = self.ladder.probed(feature, obstacle)
        if feature is Feature.UDP_GRO:
            for port in self._ports:
                port.join_datagrams(is_on=is_on)
        return is_on

    def open_port(self, port: int, *, shared: bool = False) -> UdpPort:
        """Binds (address, port) for receiving, alone or with others; closed with the underlay, or before."""
        opened = UdpPort(self._bound_socket(port, RECEIVING, shared=shared), port)
        opened.join_datagrams(is_on=self.ladder.is_on(Feature.UDP_GRO))
        self._ports = [other for other in self._ports if other.fileno() >= 0] + [opened]
        return opened

    def open_ports(self, port: int, count: int) -> tuple[UdpPort, ...]:
        """As many sockets that share the port; the kernel has one sender's port and ours on one of them."""
        return self._open_several(self.open_port, port, count)

    def open_exchange(self, port: int, *, shared: bool = False) -> UdpExchange:
        """Binds (address, port) for both ways, alone or with others; closed with the underlay, or before."""
        opened = UdpExchange(self._bound_socket(port, EXCHANGING, shared=shared), port)
        opened.join_datagrams(is_on=self.ladder.is_on(Feature.UDP_GRO))
        self._exchanges = [other for other in self._exchanges if other.fileno() >= 0] + [opened]
        self._ports = [other for other in self._ports if other.fileno() >= 0] + [opened]
        return opened

    def open_exchanges(self, port: int, count: int) -> tuple[UdpExchange, ...]:
        """As many of them, as `open_ports`."""
        return self._open_several(self.open_exchange, port, count)

    def _open_several(self, open_one: Callable[..., AnyPort], port: int, count: int) -> tuple[AnyPort, ...]:
        """As many of one kind.  Who shares a port shares it with all of his user: it must be free before."""
        if count == 1:
            return (open_one(port),)
        self._bound_socket(port, PROBING).close()
        with contextlib.ExitStack() as opened:
            ports = tuple(
                opened.enter_context(contextlib.closing(open_one(port, shared=True))) for _ in range(count)
            )
            opened.pop_all()
        return ports

    def sockaddr(self, address: IpAddress, port: int) -> SockAddr:
        """Where to send for this address; element 0 is also how a datagram from there names its sender.

        The scope of a link-local address is an index, which a device made anew does not keep: ask again
        after `rebind()`.  One written without a scope has the underlay's device's.

        Raises:
            OSError: ENODEV, a scope names a device that is not there.
        """
        if not isinstance(address, IPv6Address):
            return (str(address), port)
        # inet_ntop, not str(): the two spell v4-mapped addresses differently, and recvmsg uses this one.
        host = socket.inet_ntop(socket.AF_INET6, address.packed)
        return (host, port, 0, _index(address.scope_id or self.device) if address.is_link_local else 0)

    def path_mtu(self, destination: SockAddr) -> int:
        """What the path carries: the route's MTU, or less once an ICMP error has said so.

        Raises:
            OSError: There is no path.
        """
        version = self.address.version
        with _open_socket(version, SENDING) as probe:
            probe.bind(self.sockaddr(self.address, 0))
            probe.connect(destination)
            if version == 4:
                return probe.getsockopt(socket.IPPROTO_IP, IP_MTU)
            return probe.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU)

    def refusals(self) -> list[Refusal]:
        """The ICMP errors that came back for what was sent from here, since the last call."""
        waiting = {fd for fd, _ in self._errors.poll(0)}
        told: list[UdpSender | UdpExchange] = [each for each in self.senders if each.fileno() in waiting]
        told += [each for each in self._exchanges if each.fileno() >= 0]
        return [refusal for each in told for refusal in each.refusals()]

    def rebind(self) -> None:
        """Ties a link-local address's sockets to its device as it is now.  Idempotent; others need none.

        The same descriptors go on, so nothing that watches them has to be told.  Sockets that share a port
        each have their senders until then; afterwards one of them has all (QUIRK(linux): tying a socket takes
        it out of its group).

        Raises:
            DeviceError: The device is not there, or CAP_NET_RAW is missing.
        """
        if not self.address.is_link_local or self.address.version == 4:
            return
        try:
            for bound in (*self.senders, *self._ports):
                if bound.fileno() >= 0:
                    bound.tie(self.device)
        except OSError as error:
            why = f"the sockets of {self.address} must be tied to its device again, which needs CAP_NET_RAW"
            raise DeviceError(self.device, error.errno or 0, why=why, advice="restart weft") from error

    def close(self) -> None:
        """Closes the pool and every port opened here.  Idempotent."""
        for bound in (*self.senders, *self._ports):
            bound.close()

    def _bound_socket(
        self, port: int, options: dict[int, tuple[Option, ...]], *, shared: bool = False
    ) -> socket.socket:
        try:
            unbound = _open_socket(self.address.version, options)
            try:
                unbound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
                self._bind(unbound, port)
            except OSError:
                unbound.close()
                raise
        except OSError as error:
            raise _not_bound(self.address, port, error) from error
        return unbound

    def _bind(self, unbound: socket.socket, port: int) -> None:
        """Binds to (address, port); a tentative IPv6 address too, without waiting for it.

        Duplicate address detection takes a second or two (RFC 4862 section 5.1), during which bind() says
        EADDRNOTAVAIL.  A retry would hold the loop for as long; IPV6_FREEBIND binds at once, and the
        socket comes to life with the address.  It is used for addresses this host has, and no others: a
        mistyped one must stay an error.
        """
        try:
            unbound.bind(self.sockaddr(self.address, port))
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL or not _is_tentative(self.address):
                raise
            unbound.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
            unbound.bind(self.sockaddr(self.address, port))


# --- Sockets ----------------------------------------------------------------------------------------

# Every datagram leaves whole or not at all (RFC 7348 section 4.3: a VTEP must not fragment), and says
# when it did not arrive.  SO_NO_CHECK is never set: UDP_SEGMENT and UDP_GRO need the outer checksum.
SENDING: dict[int, tuple[Option, ...]] = {
    4: (
        (socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DO),
        (socket.IPPROTO_IP, IP_RECVERR, 1),
        (socket.IPPROTO_IP, socket.IP_TTL, HOP_LIMIT),
    ),
    6: (
        (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_DO),
        (socket.IPPROTO_IPV6, socket.IPV6_DONTFRAG, 1),
        (socket.IPPROTO_IPV6, IPV6_RECVERR, 1),
        (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, HOP_LIMIT),
    ),
}
PROBING: dict[int, tuple[Option, ...]] = {4: (), 6: ()}
# The ECN field comes with every datagram (RFC 6040 section 4.2).  RFC 7348 section 5 obliges a VTEP to
# accept a zero UDP checksum, which IPv6 refuses unless asked (RFC 6935 section 5).
RECEIVING: dict[int, tuple[Option, ...]] = {
    4: ((socket.IPPROTO_IP, socket.IP_RECVTOS, 1),),
    6: (
        (socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1),
        (socket.IPPROTO_UDP, UDP_NO_CHECK6_RX, 1),
    ),
}
EXCHANGING = {version: (*SENDING[version], *RECEIVING[version]) for version in (4, 6)}


def _open_socket(version: int, options: dict[int, tuple[Option, ...]]) -> socket.socket:
    """A non-blocking, close-on-exec UDP socket of this IP version and no other, for sending or receiving."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    opened = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        if version == 6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        for level, option, value in options[version]:
            opened.setsockopt(level, option, value)
        if options in (RECEIVING, EXCHANGING):
            _grow(opened, SO_RCVBUFFORCE, socket.SO_RCVBUF)
        if options is EXCHANGING:
            _grow(opened, SO_SNDBUFFORCE, socket.SO_SNDBUF)
        elif options is not RECEIVING:
            _grow(opened, SO_SNDBUFFORCE, socket.SO_SNDBUF)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ERROR_QUEUE_OCTETS)
            _refuse_everything(opened)
    except OSError:
        opened.close()
        raise
    return opened


def _grow(bound: socket.socket, forced: int, plain: int) -> None:
    """A large buffer: beyond the host's limit with CAP_NET_ADMIN, up to the limit without."""
    try:
        bound.setsockopt(socket.SOL_SOCKET, forced, BUFFER_OCTETS)
    except PermissionError:
        bound.setsockopt(socket.SOL_SOCKET, plain, BUFFER_OCTETS)


def _refuse_everything(unbound: socket.socket) -> None:
    """Makes the kernel drop what is sent to this socket: one BPF instruction, `ret 0`.  Errors still come."""
    program = ctypes.create_string_buffer(struct.pack("=HBBI", BPF_RET_K, 0, 0, 0))
    descriptor = struct.pack("@HP", 1, ctypes.addressof(program))
    with contextlib.suppress(OSError):  # no filters here: what strangers can park is ERROR_QUEUE_OCTETS
        unbound.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, descriptor)


def _index(device: str) -> int:
    """The device's index.  A scope may also be written as the number itself (RFC 4007 section 11)."""
    if device.isdecimal():
        return int(device)
    try:
        return socket.if_nametoindex(device)
    except OSError:  # CPython's has no errno
        raise OSError(errno.ENODEV, f"no device {device}") from None


def _is_tentative(address: IpAddress) -> bool:
    return any(facts.address == address and facts.tentative for facts in netlink.addresses())


def _not_bound(address: IpAddress, port: int, error: OSError) -> DeviceError:
    """The same error with what usually causes it and what mends it."""
    number = error.errno or 0
    place = f"udp [{address}]:{port}" if address.version == 6 else f"udp {address}:{port}"
    if number == errno.EADDRINUSE:
        return DeviceError(
            place,
            number,
            why="a process has the port, or a kernel vxlan device, which no list of processes shows",
            advice=f"ss -ulpn 'sport = :{port}'; ip -d link show type vxlan; or choose another `port`",
        )
    if number in (errno.EADDRNOTAVAIL, errno.ENODEV, errno.ENXIO):
        ours = ", ".join(str(facts.address) for facts in netlink.addresses() if not facts.address.is_loopback)
        why = f"the address is not on this host, which has {ours or 'none but loopback'}"
        return DeviceError(place, number, why=why, advice="set `underlay` to one of them, or to a device")
    if number == errno.EACCES:
        why = "a port below the host's ip_unprivileged_port_start needs CAP_NET_BIND_SERVICE"
        return DeviceError(place, number, why=why, advice="sudo weft run …, or a port above 1023")
    why = f"this host has no IPv{address.version}" if number == errno.EAFNOSUPPORT else ""
    return DeviceError(place, number, why=why)


# --- Which underlay ---------------------------------------------------------------------------------

AnyUnderlay = TypeVar("AnyUnderlay", bound=Underlay)


def resolve_underlays(names: Sequence[str]) -> list[UnderlayFacts]:
    """The underlays the operator means: addresses, device names (their global addresses), or nothing.

    Nothing means the address the default route sends from, IPv4's before IPv6's: one, since the overlay
    MTU is the smallest of what the underlays allow.  Blocks for netlink.

    Raises:
        DeviceError: A name is neither, an address is not this host's, a device has none, no default route.
    """
    own = netlink.addresses()
    found = [facts for name in names for facts in _named(name, own)] if names else [_default(own)]
    return [
        UnderlayFacts(facts.address, facts.device, link.mtu)
        for facts in dict.fromkeys(found)
        if (link := netlink.link(facts.device))
    ]


def choose(underlays: Sequence[AnyUnderlay], address: IpAddress) -> AnyUnderlay | None:
    """The underlay the kernel would send from towards this address.

    The first of the address's family where the kernel would use none of ours or has no route; None where
    none is of that family.
    """
    family = [underlay for underlay in underlays if underlay.address.version == address.version]
    source = _source_towards(address) if len(family) > 1 else None
    return next((underlay for underlay in family if underlay.address == source), next(iter(family), None))


def _named(name: str, own: Sequence[netlink.AddressFacts]) -> list[netlink.AddressFacts]:
    try:
        address = parse_ip(name)
    except ValueError:
        return _of_device(name, own)
    scoped = isinstance(address, IPv6Address) and address.scope_id
    found = [
        facts
        for facts in own
        if facts.address == address or (not scoped and _unscoped(facts) == str(address))
    ]
    if len(found) > 1:
        why = f"several devices have {name}: {', '.join(facts.device for facts in found)}"
        advice = f"write it with its device: {found[0].address}"
        raise DeviceError(f"underlay {name}", errno.EADDRNOTAVAIL, why=why, advice=advice)
    if not found:
        raise _not_bound(address, 0, OSError(errno.EADDRNOTAVAIL, ""))
    return found


def _unscoped(facts: netlink.AddressFacts) -> str:
    return str(facts.address).split("%", maxsplit=1)[0]


def _of_device(name: str, own: Sequence[netlink.AddressFacts]) -> list[netlink.AddressFacts]:
    """Its stable global addresses: not temporary ones, which a peer could not rely on (RFC 8981)."""
    found = [facts for facts in own if facts.device == name and facts.stable and not facts.link_local]
    if found:
        return found
    if netlink.link(name) is None:
        why = f"expected an address or a device, found {name!r}"
        raise DeviceError(f"underlay {name}", errno.ENODEV, why=why, advice="ip -br address")
    why = "the device has no global address"
    advice = f"sudo ip address add … dev {name}; or name an address"
    raise DeviceError(f"underlay {name}", errno.EADDRNOTAVAIL, why=why, advice=advice)


def _default(own: Sequence[netlink.AddressFacts]) -> netlink.AddressFacts:
    found = netlink.default_source(4) or netlink.default_source(6)
    if found is None:
        ours = ", ".join(str(facts.address) for facts in own if not facts.address.is_loopback)
        why = f"there is no default route to take the underlay address from; this host has {ours or 'none'}"
        raise DeviceError("underlay", errno.ENETUNREACH, why=why, advice="weft run --underlay ADDRESS …")
    return found


def _source_towards(address: IpAddress) -> IpAddress | None:
    scope = address.scope_id if isinstance(address, IPv6Address) else None
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            host = str(address).split("%", maxsplit=1)[0]
            probe.connect((host, DISCARD_PORT, 0, _index(scope)) if scope else (host, DISCARD_PORT))
            chosen = probe.getsockname()
    except OSError:
        return None
    suffix = f"%{scope}" if scope and not scope.isdecimal() else ""
    return parse_ip(chosen[0].split("%", maxsplit=1)[0] + suffix)
