"""The TAP in a namespace of its own: what it carries, what it answers when its device changes."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from support.namespace import Namespace, exit_status_as_nobody, needs_namespaces

from overlay.addr import Mac, NetworkId, format_mac, parse_mac
from overlay.errors import DeviceError
from overlay.router import Router, RouterPolicy
from overlay.tables import Tables
from tunnel import netlink
from tunnel import tap as tap_module
from tunnel.interfaces import Buffer, FrameDevice, PacketDevice
from tunnel.tap import (
    FLAGS,
    HEADER_LENGTH,
    SUPER_PACKETS,
    TUNSETIFF,
    TUNSETOFFLOAD,
    Tap,
    Tun,
    open_tap,
    open_tun,
)

pytestmark = [pytest.mark.root, pytest.mark.timeout(30), needs_namespaces]

NO_GSO = bytes(HEADER_LENGTH)
BROADCAST_FRAME = b"\xff" * 6 + b"\x02\0\0\0\0\x01" + b"\x88\xb5" + bytes(range(46))
TUNSETPERSIST = 0x400454CB
IP_RECVERR = 11
TUN_F_CSUM, TUN_F_TSO4 = 1, 2
SIOCETHTOOL, ETHTOOL_GTSO, ETHTOOL_GTXCSUM = 0x8946, 0x1E, 0x16


@pytest.fixture
def host() -> Iterator[Namespace]:
    namespace = Namespace()
    with namespace:
        yield namespace
    namespace.close()


@pytest.fixture(params=["pytun", "ioctl"])
def creator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of creating the device."""
    if request.param == "ioctl":
        monkeypatch.setattr(tap_module, "pytun", None)
    elif getattr(tap_module, "pytun", None) is None:
        pytest.skip("python-pytun is not installed")
    return str(request.param)


@pytest.fixture
def tap(host: Namespace) -> Iterator[Tap]:
    """A TAP that is up, with carrier, and silent but for what a test sends."""
    tap = Tap("weft0")
    host.run("ip link set weft0 addrgenmode none", "ip link set weft0 up")
    tap.set_carrier(up=True)
    yield tap
    tap.close()


@pytest.fixture
def wire() -> Iterator[socket.socket]:
    with packet_socket("weft0") as wire:
        yield wire


def serves_as_device(tap: Tap) -> FrameDevice:
    return tap  # mypy is the test: every door of the protocol is there


def packet_socket(device: str) -> socket.socket:
    """The host's stack seen from its other side: sends into the device and sees what comes out."""
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
    wire.bind((device, 0x88B5))
    wire.settimeout(5)
    return wire


def raised(errno_: int, call: Callable[[], object]) -> None:
    try:
        call()
    except OSError as error:
        assert error.errno == errno_, error  # noqa: PT017  (the errno is the claim)
    else:
        pytest.fail(f"expected {errno.errorcode[errno_]}")


def link(host: Namespace, device: str = "weft0") -> dict[str, str]:
    """What `ip link show` says of it: flags, state and address."""
    words = host.run(f"ip link show {device}").split()
    after = {word: words[words.index(word) + 1] for word in ("state", "link/ether")}
    return {"flags": words[2], "state": after["state"], "address": after["link/ether"]}


def offload(device: str, command: int) -> int:
    """One of the device's features as ethtool shows it."""
    value = array.array("I", [command, 0])
    request = struct.pack("16sQ", device.encode(), value.buffer_info()[0]).ljust(40, b"\0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCETHTOOL, request)
    return value[1]


def persistent_tap(name: str, *, offloads: int) -> None:
    """Leaves a TAP behind, as a process that was killed does when it asked for persistence."""
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), FLAGS))
    fcntl.ioctl(fd, TUNSETOFFLOAD, offloads)
    fcntl.ioctl(fd, TUNSETPERSIST, 1)
    os.close(fd)


def writes_taken(tap: Tap, frame: bytes, most: int) -> int:
    """How many of so many writes are taken."""
    for count in range(most):
        try:
            tap.write([NO_GSO, frame])
        except BlockingIOError:
            return count
    return most


def test_both_creators_give_the_same_descriptor(host: Namespace, creator: str) -> None:
    tap = Tap("weft0")
    flags = struct.unpack_from("H", fcntl.ioctl(tap.fileno(), tap_module.TUNGETIFF, bytes(40)), 16)[0]
    assert flags & 0x5003 == FLAGS, creator
    assert fcntl.fcntl(tap.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert fcntl.fcntl(tap.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK
    assert (tap.name, format_mac(tap.mac)) == ("weft0", link(host)["address"])
    raised(errno.EAGAIN, lambda: tap.read_into([bytearray(100)]))
    tap.close()
    assert "weft0" not in host.run("ip link")


@pytest.mark.usefixtures("host")
def test_the_kernel_numbers_a_name_with_a_percent_d(creator: str) -> None:
    taps = [Tap("weft%d"), Tap("weft%d")]
    assert [tap.name for tap in taps] == ["weft0", "weft1"], creator
    for tap in taps:
        tap.close()


@pytest.mark.parametrize("queues", [1, 4])
def test_a_new_device_has_no_carrier_until_it_is_given_one(host: Namespace, queues: int) -> None:
    tap = Tap("weft0", queues=queues)
    host.run("ip link set weft0 up")
    assert "NO-CARRIER" in link(host)["flags"]
    tap.set_carrier(up=True)
    assert "LOWER_UP" in link(host)["flags"]
    tap.set_carrier(up=False)
    assert "NO-CARRIER" in link(host)["flags"]
    tap.close()


def test_a_frame_the_host_sends_is_read_behind_its_header(tap: Tap, wire: socket.socket) -> None:
    wire.send(BROADCAST_FRAME)
    header, frame = bytearray(HEADER_LENGTH), bytearray(2048)
    assert tap.read_into([header, frame]) == HEADER_LENGTH + len(BROADCAST_FRAME)
    assert frame[: len(BROADCAST_FRAME)] == BROADCAST_FRAME


def test_a_frame_written_from_pieces_reaches_the_host_whole(tap: Tap, wire: socket.socket) -> None:
    pieces: list[Buffer] = [NO_GSO, BROADCAST_FRAME[:14], memoryview(BROADCAST_FRAME)[14:]]
    assert tap.write(pieces) == HEADER_LENGTH + len(BROADCAST_FRAME)
    assert wire.recv(2048) == BROADCAST_FRAME


@pytest.mark.parametrize("length", [10, 12, 24])
def test_a_header_of_another_length_stands_before_every_frame_both_ways(host: Namespace, length: int) -> None:
    tap = Tap("weft0", header_length=length)
    host.run("ip link set weft0 addrgenmode none", "ip link set weft0 up")
    tap.set_carrier(up=True)
    with packet_socket("weft0") as wire:
        assert tap.write([bytes(length), BROADCAST_FRAME]) == length + len(BROADCAST_FRAME)
        assert wire.recv(2048) == BROADCAST_FRAME
        wire.send(BROADCAST_FRAME)
        header, frame = bytearray(length), bytearray(2048)
        assert tap.read_into([header, frame]) == length + len(BROADCAST_FRAME)
        assert frame[: len(BROADCAST_FRAME)] == BROADCAST_FRAME
    tap.close()


def test_a_header_too_short_for_any_is_refused_and_leaves_nothing(host: Namespace) -> None:
    with pytest.raises(DeviceError) as caught:
        Tap("weft0", header_length=4)
    assert caught.value.errno == errno.EINVAL
    assert "weft0" not in host.run("ip link")


def test_tunnel_offloads_need_the_long_header_to_say_where_things_are(host: Namespace) -> None:
    tap = Tap("weft0", offload_mask=SUPER_PACKETS, header_length=24)
    assert "tx-udp_tnl-segmentation: on" in host.run("ethtool -k weft0")
    tap.close()


def test_writes_are_refused_while_so_much_is_under_way_and_not_after(host: Namespace, tap: Tap) -> None:
    host.run("ip link add slow type veth peer name far", "ip link set slow up", "ip link set far up")
    host.run("tc qdisc add dev slow root tbf rate 8kbit burst 2kb limit 10mb")
    netlink.redirect("weft0", "slow")
    long_frame = BROADCAST_FRAME.ljust(1400, b"\0")
    tap.bound_writes(50_000)

    # What a packet is charged for is more than its octets, and less than three times that.
    assert 50_000 // (3 * 1400) <= writes_taken(tap, long_frame, 1000) <= 50_000 // 1400 + 3
    host.run("tc qdisc del dev slow root")  # with which what it held goes
    assert writes_taken(tap, long_frame, 30) == 30


def test_without_a_bound_writes_are_taken_whatever_is_under_way(host: Namespace, tap: Tap) -> None:
    host.run("ip link add slow type veth peer name far", "ip link set slow up", "ip link set far up")
    host.run("tc qdisc add dev slow root tbf rate 8kbit burst 2kb limit 10mb")
    netlink.redirect("weft0", "slow")
    assert writes_taken(tap, BROADCAST_FRAME.ljust(1400, b"\0"), 300) == 300


def test_a_read_too_small_cuts_that_frame_and_only_that_frame(tap: Tap, wire: socket.socket) -> None:
    wire.send(BROADCAST_FRAME)
    wire.send(BROADCAST_FRAME[::-1].replace(b"\x88\xb5", b"\x88\xb6"))
    short = bytearray(20)
    assert tap.read_into([bytearray(HEADER_LENGTH), short]) == HEADER_LENGTH + 20
    assert short == BROADCAST_FRAME[:20]
    assert tap.read_into([bytearray(HEADER_LENGTH), bytearray(2048)]) == HEADER_LENGTH + len(BROADCAST_FRAME)


def test_a_header_that_contradicts_its_frame_is_einval_and_the_next_write_works(tap: Tap) -> None:
    tso_without_size = struct.pack("<BBHHHH", 1, 1, 54, 0, 34, 16)
    raised(errno.EINVAL, lambda: tap.write([tso_without_size, BROADCAST_FRAME]))
    assert tap.write([NO_GSO, BROADCAST_FRAME])


def test_a_device_that_is_down_reads_nothing_and_writes_eio(host: Namespace, tap: Tap) -> None:
    host.run("ip link set weft0 down")
    raised(errno.EAGAIN, lambda: tap.read_into([bytearray(2048)]))
    raised(errno.EIO, lambda: tap.write([NO_GSO, BROADCAST_FRAME]))
    host.run("ip link set weft0 up")
    assert tap.write([NO_GSO, BROADCAST_FRAME])


def test_a_deleted_device_is_ebadfd_on_both_doors_and_an_error_to_poll(host: Namespace, tap: Tap) -> None:
    mac = tap.mac
    host.run("ip link del weft0")
    raised(errno.EBADFD, lambda: tap.read_into([bytearray(2048)]))
    raised(errno.EBADFD, lambda: tap.write([NO_GSO, BROADCAST_FRAME]))
    raised(errno.EBADFD, lambda: tap.set_carrier(up=True))
    poll = select.poll()
    poll.register(tap.fileno(), select.POLLIN)
    assert poll.poll(0) == [(tap.fileno(), select.POLLERR)]
    assert (tap.mac, tap.overruns()) == (mac, 0)


def test_a_closed_tap_reads_and_writes_ebadf_and_closes_again(tap: Tap) -> None:
    tap.close()
    tap.close()
    raised(errno.EBADF, lambda: tap.read_into([bytearray(2048)]))
    raised(errno.EBADF, lambda: tap.write([NO_GSO, BROADCAST_FRAME]))


def test_an_adopted_tap_keeps_neither_offloads_nor_carrier(host: Namespace, creator: str) -> None:
    persistent_tap("weft0", offloads=TUN_F_CSUM | TUN_F_TSO4)
    assert (offload("weft0", ETHTOOL_GTXCSUM), offload("weft0", ETHTOOL_GTSO)) == (1, 1)
    host.run("ip link set weft0 up")
    tap = Tap("weft0")
    assert (offload("weft0", ETHTOOL_GTXCSUM), offload("weft0", ETHTOOL_GTSO)) == (0, 0), creator
    assert "NO-CARRIER" in link(host)["flags"]
    tap.close()
    assert "weft0" in host.run("ip link")


@pytest.mark.usefixtures("host")
def test_an_offload_mask_is_given_to_the_device() -> None:
    tap = Tap("weft0", offload_mask=TUN_F_CSUM | TUN_F_TSO4)
    assert (offload("weft0", ETHTOOL_GTXCSUM), offload("weft0", ETHTOOL_GTSO)) == (1, 1)
    tap.close()


def test_an_offload_the_kernel_has_not_got_is_refused_and_leaves_nothing(host: Namespace) -> None:
    with pytest.raises(DeviceError) as caught:
        Tap("weft0", offload_mask=TUN_F_CSUM | 1 << 30)
    assert caught.value.errno == errno.EINVAL
    assert "0x40000001" in caught.value.why
    assert "weft0" not in host.run("ip link")


def test_the_mac_is_the_devices_own_even_after_it_was_changed(host: Namespace, tap: Tap) -> None:
    host.run("ip link set weft0 address 02:00:5e:10:00:01")
    assert tap.mac == parse_mac("02:00:5e:10:00:01") == Mac(b"\x02\x00\x5e\x10\x00\x01")


def test_frames_nobody_reads_are_counted_as_overruns(host: Namespace, tap: Tap, wire: socket.socket) -> None:
    host.run("ip link set weft0 txqueuelen 16")
    for _ in range(100):
        wire.send(BROADCAST_FRAME)
    for _ in range(16):
        assert tap.read_into([bytearray(2048)])
    raised(errno.EAGAIN, lambda: tap.read_into([bytearray(2048)]))
    assert tap.overruns() == 100 - 16


def test_overruns_begin_at_the_opening(host: Namespace) -> None:
    persistent_tap("weft0", offloads=0)
    host.run("ip link set weft0 addrgenmode none", "ip link set weft0 txqueuelen 4", "ip link set weft0 up")
    first = Tap("weft0")
    first.set_carrier(up=True)
    with packet_socket("weft0") as wire:
        for _ in range(10):
            wire.send(BROADCAST_FRAME)
    assert first.overruns() == 6
    first.close()
    second = Tap("weft0")
    assert second.overruns() == 0
    second.close()


@pytest.mark.usefixtures("host")
def test_a_tap_another_descriptor_holds_is_busy(creator: str) -> None:
    tap = Tap("weft0")
    with pytest.raises(DeviceError) as caught:
        Tap("weft0")
    assert (caught.value.device, caught.value.errno) == ("weft0", errno.EBUSY), creator
    assert "another process holds" in caught.value.why
    tap.close()


def test_the_name_of_another_kind_of_device_is_refused_by_name(host: Namespace, creator: str) -> None:
    host.run("ip link add weft0 type veth peer name weft1")
    with pytest.raises(DeviceError) as caught:
        Tap("weft0")
    assert (caught.value.device, caught.value.errno) == ("weft0", errno.EINVAL), creator
    assert "no TAP" in caught.value.why


def test_a_flow_comes_out_of_the_queue_its_answers_were_written_to(host: Namespace, creator: str) -> None:
    tap = Tap("weft0", queues=4)
    host.run(
        "ip link set weft0 addrgenmode none", "ip address add 10.9.0.1/24 dev weft0", "ip link set weft0 up"
    )
    tap.set_carrier(up=True)
    first, *others = tap.queues
    assert (len(others), first) == (3, tap.fileno()), creator
    mac = format_mac(tap.mac)
    host.run("ip neigh add 10.9.0.2 lladdr 02:00:00:00:00:02 dev weft0")
    for port, queue in zip(range(7000, 7008), [*tap.queues, *tap.queues], strict=True):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
            bound.bind(("10.9.0.1", port))
            bound.settimeout(5)
            came = Ether(dst=mac, src="02:00:00:00:00:02") / IP(src="10.9.0.2", dst="10.9.0.1")
            os.write(queue, NO_GSO + bytes(came / UDP(sport=9, dport=port) / b"there"))
            assert bound.recv(9) == b"there"
            bound.sendto(b"back", ("10.9.0.2", 9))
            assert os.read(queue, 2048).endswith(b"back")
            for other in set(tap.queues) - {queue}:
                raised(errno.EAGAIN, lambda other=other: os.read(other, 2048))  # type: ignore[misc]
    tap.close()
    assert tap.queues == (-1,)
    for queue in (first, *others):
        raised(errno.EBADF, lambda queue=queue: os.fstat(queue))  # type: ignore[misc]
    assert "weft0" not in host.run("ip -o link")


@pytest.mark.usefixtures("host")
def test_a_tap_whose_queues_somebody_holds_is_busy() -> None:
    with closing(open_tap("weft0", super_frames=True, queues=2)) as held:
        with pytest.raises(DeviceError) as caught:
            open_tap("weft0", super_frames=True, queues=2)
        assert (caught.value.errno, caught.value.device) == (errno.EBUSY, "weft0")
        assert held.offload_mask
    open_tap("weft0", super_frames=False, queues=2).close()


def test_a_tap_made_with_one_queue_is_refused_with_what_to_do(host: Namespace) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    host.run("ip tuntap add weft0 mode tap vnet_hdr")
    with pytest.raises(DeviceError) as caught:
        Tap("weft0", queues=2)
    assert caught.value.errno == errno.EINVAL
    assert "multi_queue" in caught.value.advice
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("name", ["", "sixteen_octets_x", "a/b", "a b", "a:1", ".", ".."])
def test_an_impossible_name_is_refused_before_the_kernel_is_asked(name: str) -> None:
    with pytest.raises(DeviceError) as caught:
        Tap(name)
    assert caught.value.errno == errno.EINVAL
    assert "octets" in caught.value.why


@pytest.mark.parametrize(
    ("number", "device", "why", "advice"),
    [
        (errno.ENOENT, "/dev/net/tun", "not loaded", "modprobe tun"),
        (errno.ENODEV, "/dev/net/tun", "not loaded", "mknod /dev/net/tun c 10 200"),
        (errno.EPERM, "/dev/net/tun", "CAP_NET_ADMIN", "sudo weft run"),
        (errno.EACCES, "/dev/net/tun", "CAP_NET_ADMIN", "--cap-add NET_ADMIN"),
    ],
)
def test_a_refusal_says_why_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, number: int, device: str, why: str, advice: str
) -> None:
    def refuse(_name: str, _flags: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tap_module, "_create", refuse)
    with pytest.raises(DeviceError) as caught:
        Tap("weft0")
    assert (caught.value.device, caught.value.errno) == (device, number)
    assert why in caught.value.why
    assert advice in caught.value.advice


@pytest.mark.usefixtures("host")
def test_without_the_right_to_make_one_the_kernel_says_so(creator: str) -> None:
    """The real errno, from a child that has given up its rights."""

    def open_one() -> int:
        try:
            Tap("weft0")
        except DeviceError as error:
            return error.errno
        return 0

    assert exit_status_as_nobody(open_one) in (errno.EPERM, errno.EACCES), creator


# --- A TUN ------------------------------------------------------------------------------------------


@pytest.fixture
def tun(host: Namespace) -> Iterator[Tun]:
    """A TUN that is up, with carrier, whose host is 10.5.1.0 and has all of 10.5.0.0/16 behind it."""
    tun = open_tun("flannel0", super_frames=True)
    host.run("ip link set flannel0 addrgenmode none up", "ip address add 10.5.1.0/32 dev flannel0")
    tun.set_carrier(up=True)
    host.run("ip route add 10.5.0.0/16 dev flannel0")
    yield tun
    tun.close()


def serves_as_packet_device(tun: Tun) -> PacketDevice:
    return tun  # mypy is the test: every door of the protocol is there


def read_packet(tun: Tun) -> tuple[bytes, bytes]:
    """The next packet the host sends, its header before it."""
    assert select.select([tun], [], [], 5)[0], "the host sent nothing"
    header, packet = bytearray(HEADER_LENGTH), bytearray(65535)
    octets = tun.read_into([header, packet])
    return bytes(header), bytes(packet[: octets - HEADER_LENGTH])


def test_a_tun_gives_packets_whose_offsets_count_from_the_ip_header(tun: Tun, host: Namespace) -> None:
    with host, socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        client.connect_ex(("10.5.2.1", 80))
        header, packet = read_packet(tun)
    assert packet[0] == 0x45
    assert packet[16:20] == bytes([10, 5, 2, 1])
    flags, _, _, _, start, offset = struct.unpack("=BBHHHH", header)
    assert (flags & 1, start, offset) == (1, 20, 16)


def test_an_answer_from_the_hosts_own_address_reaches_its_sockets(tun: Tun, host: Namespace) -> None:
    router = Router(RouterPolicy(NetworkId("pods"), IPv4Address("10.5.1.0")), tables_of("pods"))
    with host, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)  # or the error is a soft one, and kept quiet
        client.connect(("10.5.99.1", 9))
        client.send(b"?")
        _, packet = read_packet(tun)
        error = router.unreachable(packet)
        assert error is not None
        assert tun.answer(error) == len(error)
        client.settimeout(5)
        raised(errno.ENETUNREACH, lambda: client.recv(1))


def tables_of(network: str) -> Tables:
    tables = Tables()
    tables.add_network(NetworkId(network))
    return tables


def test_a_tun_and_its_raw_socket_go_together(host: Namespace) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    tun = open_tun("flannel0", super_frames=False)
    for _ in range(2):
        tun.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert "flannel0" not in host.run("ip link")
