"""A TAP: whole Ethernet frames between the host's stack and this process, one per system call; or a TUN.

    the host's stack ──▶ weft0's queue ──read_into──▶ [virtio_net_hdr 10][Ethernet frame]
                     ◀────────────────────write─────  [virtio_net_hdr 10][Ethernet frame]

A TUN is the same with IP packets, and has one door more.  A router's errors come from the host's own
address, and what a device brings in from there is a martian (fib_validate_source()): they leave through a
raw socket, as the host's own packets do.

The device is created by python-pytun where it is installed (it has wheels for x86-64 alone) and by the
same ioctl made here elsewhere; either way what remains is one descriptor of ours, non-blocking and
closed on exec.  Non-blocking is more than courtesy: together with a send buffer nobody has touched
(TUNSETSNDBUF is never called; `bound_writes` says for whom it is) it lets the kernel build the packet in
one copy.

What a descriptor answers when its device changes, seen on Linux 6.18:

    |         | read              | write    | poll
    | down    | EAGAIN            | EIO      | nothing
    | deleted | EBADFD (77)       | EBADFD   | EPOLLERR, never EPOLLIN
    | no carrier: what is written is delivered all the same; the host sends nothing

Offloads and carrier belong to the device, not to the descriptor: both are set on every opening, since a
persistent TAP keeps what its last owner left behind.

Heads up: read Documentation/networking/tuntap.rst of the kernel before changing this file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import struct
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from overlay.addr import MAC_LENGTH, Mac
from overlay.errors import DeviceError
from tunnel import netlink
from tunnel.interfaces import Buffer

try:
    import pytun
except ImportError:  # no wheel for this machine: `_create_by_ioctl` does the same
    pytun = None

# From the specification: <linux/if_tun.h>, <linux/if.h>, <linux/sockios.h> (x86, arm and riscv numbers)
CLONE_DEVICE = "/dev/net/tun"
TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
TUNGETIFF = 0x800454D2
TUNSETSNDBUF = 0x400454D4
TUNSETVNETHDRSZ = 0x400454D8
TUNSETCARRIER = 0x400454E2
SIOCGIFHWADDR = 0x8927
IFF_TUN = 0x0001
IFF_TAP = 0x0002
IFF_MULTI_QUEUE = 0x0100
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
IFREQ_LENGTH = 40
IFNAMSIZ = 16
MAC_OFFSET = IFNAMSIZ + 2  # in an ifreq: the name, sa_family, then the address
TX_DROPPED_COLUMN = 11  # of /proc/net/dev, the first number after the name being 0

# Ours
FLAGS = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
TUN_FLAGS = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR
HEADER_LENGTH = 10  # struct virtio_net_hdr
DESTINATION = slice(16, 20)  # of an IPv4 header (RFC 791 section 3.1)
NO_OFFLOADS = 0
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 = 0x01, 0x02, 0x04
TUN_F_USO4, TUN_F_USO6 = 0x20, 0x40  # Linux ≥ 6.2, and only together
TUN_F_UDP_TUNNEL_GSO, TUN_F_UDP_TUNNEL_GSO_CSUM = 0x80, 0x100  # Linux ≥ 6.17
SUPER_FRAMES = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6
SUPER_FRAMES_AND_USO = SUPER_FRAMES | TUN_F_USO4 | TUN_F_USO6
SUPER_PACKETS = SUPER_FRAMES_AND_USO | TUN_F_UDP_TUNNEL_GSO | TUN_F_UDP_TUNNEL_GSO_CSUM
DEVICE_TABLE = Path("/proc/net/dev")


def open_tap(name: str, *, super_frames: bool, queues: int = 1) -> Tap:
    """A TAP that hands us whole super-frames, as far as this kernel can; plain frames where not asked to.

    Raises:
        DeviceError: As `Tap`.
    """
    return _open(Tap, name, super_frames=super_frames, queues=queues)


def open_tun(name: str, *, super_frames: bool, queues: int = 1) -> Tun:
    """The same for a TUN.

    Raises:
        DeviceError: As `Tun`.
    """
    return _open(Tun, name, super_frames=super_frames, queues=queues)


def _open(kind: type[AnyTap], name: str, *, super_frames: bool, queues: int) -> AnyTap:
    if queues > 1 and (found := netlink.link(name)) is not None and found.queues:
        # QUIRK(linux): of a device with several queues anybody may open one more.
        raise _refused(name, OSError(errno.EBUSY, os.strerror(errno.EBUSY)))
    for mask in (SUPER_FRAMES_AND_USO, SUPER_FRAMES) if super_frames else ():
        try:
            return kind(name, offload_mask=mask, queues=queues)
        except DeviceError as error:
            if error.errno != errno.EINVAL:
                raise
    return kind(name, queues=queues)


class Tap:
    """The `FrameDevice` of a Linux host.  Opened with its carrier down; the name is free or a TAP's.

    Args:
        name: What the device is called, 1 to 15 octets; `weft%d` lets the kernel number it.
        offload_mask: The TUN_F_* offloads the kernel may leave undone in what it hands us.
        header_length: Octets of virtio header before every frame, read or written.
        queues: Descriptors; a flow's frames come to one of them, the one its answers were written to.

    Raises:
        DeviceError: No TAP devices here, no right to make one, the name taken or invalid, or an offload
            this kernel has not got.
    """

    read_into: Callable[[Sequence[Buffer]], int]
    write: Callable[[Sequence[Buffer]], int]
    flags = FLAGS

    def __init__(
        self,
        name: str,
        *,
        offload_mask: int = NO_OFFLOADS,
        header_length: int = HEADER_LENGTH,
        queues: int = 1,
    ) -> None:
        _require_name(name)
        flags = self.flags if queues == 1 else self.flags | IFF_MULTI_QUEUE
        try:
            self._fd = _create(name, flags)
        except OSError as error:
            raise _refused(name, error) from error
        self._others: list[int] = []
        self.offload_mask = offload_mask
        try:
            self._name = self._prepare(header_length)
            self.takes_udp_super_frames = self._accepts(SUPER_FRAMES_AND_USO)
            fcntl.ioctl(self._fd, TUNSETOFFLOAD, offload_mask)
            for _ in range(1, queues):
                self._others.append(_create(self._name, flags))
        except OSError as error:
            self._close_queues()
            why = f"this kernel refused the TAP's header, carrier, queues or offloads {offload_mask:#x}"
            advice = 'tap_gso = "off" under [offload]' if offload_mask else "weft needs Linux ≥ 5.0"
            raise DeviceError(name, error.errno or 0, why=why, advice=advice) from error
        self._mac = Mac(bytes(MAC_LENGTH))
        self._dropped_before = _tx_dropped(self._name) or 0
        self._overruns = 0
        self.read_into = partial(os.readv, self._fd)
        self.write = partial(os.writev, self._fd)

    def _prepare(self, header_length: int) -> str:
        """Makes the device ours whatever its last owner left; returns the name the kernel gave it."""
        self.set_carrier(up=False)
        fcntl.ioctl(self._fd, TUNSETVNETHDRSZ, struct.pack("i", header_length))
        return _text(fcntl.ioctl(self._fd, TUNGETIFF, bytes(IFREQ_LENGTH))[:IFNAMSIZ])

    def _accepts(self, mask: int) -> bool:
        """Whether this kernel knows these offloads.  What it knows it also takes in a write."""
        try:
            fcntl.ioctl(self._fd, TUNSETOFFLOAD, mask)
        except OSError:
            return False
        return True

    @property
    def name(self) -> str:
        return self._name

    @property
    def mac(self) -> Mac:
        """The device's address as it is now, the last known one when the device is gone."""
        try:
            answer = fcntl.ioctl(self._fd, SIOCGIFHWADDR, bytes(IFREQ_LENGTH))
            self._mac = Mac(answer[MAC_OFFSET : MAC_OFFSET + MAC_LENGTH])
        except (OSError, ValueError):  # deleted; closed
            pass
        return self._mac

    def fileno(self) -> int:
        return self._fd

    @property
    def queues(self) -> tuple[int, ...]:
        """A descriptor for each queue, `fileno()` first."""
        return (self._fd, *self._others)

    def set_carrier(self, *, up: bool) -> None:
        """Tells the host whether the network behind the device is ready.  Linux ≥ 5.0.

        Raises:
            OSError: EBADFD, the device is gone.
        """
        fcntl.ioctl(self._fd, TUNSETCARRIER, struct.pack("i", up))

    def bound_writes(self, octets: int) -> None:
        """From now on a write is refused (EAGAIN) while that much of what was written is still under way.

        Not for a TAP that frames are delivered to: the kernel then no longer builds a short one in one copy.
        """
        fcntl.ioctl(self._fd, TUNSETSNDBUF, struct.pack("i", octets))

    def overruns(self) -> int:
        """Frames dropped since the opening because the queue towards us was full.

        Read from /proc/net/dev, which is this process's namespace, where /sys may be another's.
        """
        dropped = _tx_dropped(self._name)
        if dropped is not None:
            self._overruns = max(self._overruns, dropped - self._dropped_before)
        return self._overruns

    def close(self) -> None:
        """Closes the descriptors, with which the device goes unless it is persistent.  Idempotent."""
        self.read_into, self.write = partial(os.readv, -1), partial(os.writev, -1)
        self._close_queues()

    def _close_queues(self) -> None:
        fds, self._fd, self._others = self.queues, -1, []
        for fd in fds:
            if fd >= 0:
                os.close(fd)


class Tun(Tap):
    """The `PacketDevice` of a Linux host: as a `Tap`, and it can answer as the host itself.

    Raises:
        DeviceError: As `Tap`; or no right to open a raw socket.
    """

    flags = TUN_FLAGS

    def __init__(self, name: str, *, offload_mask: int = NO_OFFLOADS, queues: int = 1) -> None:
        super().__init__(name, offload_mask=offload_mask, queues=queues)
        try:
            # IPPROTO_RAW: what is sent brings its own IP header, and nothing is ever received (raw(7)).
            self._raw = socket.socket(
                socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_RAW
            )
        except OSError as error:
            super().close()
            why = "a router's ICMP errors leave through a raw socket, which needs CAP_NET_RAW"
            advice = "sudo weft run …; or --cap-add NET_RAW"
            raise DeviceError(name, error.errno or 0, why=why, advice=advice) from error

    def answer(self, packet: bytes) -> int:
        """Sends one IPv4 packet of this node's own making to whomever it names."""
        return self._raw.sendto(packet, (socket.inet_ntoa(packet[DESTINATION]), 0))

    def close(self) -> None:
        """As `Tap`, the raw socket with it.  Idempotent."""
        self._raw.close()
        super().close()


AnyTap = TypeVar("AnyTap", bound=Tap)


def _require_name(name: str) -> None:
    """Raises DeviceError for what the kernel's dev_valid_name() would refuse, with its rule."""
    if not 0 < len(name.encode()) < IFNAMSIZ or name in (".", "..") or re.search(r"[/:\s]", name):
        why = f"expected 1 to {IFNAMSIZ - 1} octets without '/', ':' or space, found {name!r}"
        raise DeviceError(name or "device", errno.EINVAL, why=why, advice="choose another `device` name")


def _create(name: str, flags: int) -> int:
    """A non-blocking, close-on-exec descriptor of the device called so, created if there is none."""
    fd = _create_by_ioctl(name, flags) if pytun is None else _create_by_pytun(name, flags)
    os.set_blocking(fd, False)
    return fd


def _create_by_pytun(name: str, flags: int) -> int:
    # QUIRK(python-pytun<=2.4.2): its descriptor survives exec and its read and write copy, so ours is a
    # duplicate made with close-on-exec and its own is closed.
    device = pytun.TunTapDevice(name=name, flags=flags)
    try:
        fd: int = fcntl.fcntl(device.fileno(), fcntl.F_DUPFD_CLOEXEC, 0)
        return fd
    finally:
        device.close()


def _create_by_ioctl(name: str, flags: int) -> int:
    fd = os.open(CLONE_DEVICE, os.O_RDWR)  # closed on exec: PEP 446
    try:
        request = struct.pack(f"{IFNAMSIZ}sH", name.encode(), flags)
        fcntl.ioctl(fd, TUNSETIFF, request.ljust(IFREQ_LENGTH, b"\0"))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _refused(name: str, error: OSError) -> DeviceError:
    """The same error with what usually causes it and what mends it."""
    number = error.errno or errno.EINVAL
    if number in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return DeviceError(
            CLONE_DEVICE,
            number,
            why="the kernel's TUN/TAP driver is not loaded, or its device node is missing (in a container)",
            advice=f"sudo modprobe tun; or mkdir -p /dev/net && mknod {CLONE_DEVICE} c 10 200; "
            f"or start the container with --device {CLONE_DEVICE}",
        )
    if number in (errno.EPERM, errno.EACCES):
        return DeviceError(
            CLONE_DEVICE,
            number,
            why="creating a TAP device needs CAP_NET_ADMIN",
            advice="sudo weft run …; or start the container with --cap-add NET_ADMIN",
        )
    if number == errno.EBUSY:
        return DeviceError(
            name,
            number,
            why="another process holds this TAP device",
            advice=f"find it with: grep -l 'iff:.*{name}$' /proc/[0-9]*/fdinfo/*; or choose another `device`",
        )
    if _exists(name):
        return DeviceError(
            name,
            number,
            why="the name belongs to a device that is no TAP, or to one made with one queue or several",
            advice=f"look at it with: ip -d link show {name}; several `workers` want multi_queue on, one "
            "wants it off; or choose another `device`",
        )
    return DeviceError(name, number, why=f"the kernel refused the TAP: {error.strerror or error}")


def _exists(name: str) -> bool:
    return any(name == other for _, other in socket.if_nameindex())


def _tx_dropped(name: str) -> int | None:
    """The device's tx_dropped, which is what tun_net_xmit() counts when its queue is full; None: gone."""
    with DEVICE_TABLE.open(encoding="ascii", errors="replace") as table:
        for line in table:
            device, _, numbers = line.partition(":")
            if device.strip() == name:
                return int(numbers.split()[TX_DROPPED_COLUMN])
    return None


def _text(octets: bytes) -> str:
    return octets.split(b"\0", 1)[0].decode(errors="replace")
