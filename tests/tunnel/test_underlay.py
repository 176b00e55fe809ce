"""UDP sockets between namespaces: a near host, a far one, and a router with a narrow link between."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from support.namespace import Namespace, eventually, exit_status_as_nobody, needs_namespaces

from overlay.errors import DeviceError
from tunnel import underlay as underlay_module
from tunnel.interfaces import Refusal, Underlay, UnderlayExchange
from tunnel.underlay import (
    POOL_SIZE,
    UdpExchange,
    UdpPort,
    UdpUnderlay,
    UnderlayFacts,
    choose,
    resolve_underlays,
)

pytestmark = [pytest.mark.root, pytest.mark.timeout(60), needs_namespaces]

PORT = 4789
UDP_NO_CHECK6_TX = 101
ADDRESSES = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}
LINK_LOCAL = {"near": "fe80::1", "far": "fe80::2"}


@pytest.fixture
def far() -> Iterator[Namespace]:
    far = Namespace()
    yield far
    far.close()


@pytest.fixture
def near(far: Namespace) -> Iterator[Namespace]:
    """The test runs in here: w0 (192.0.2.1, 2001:db8::1, fe80::1) cabled to w0 of `far` (…2)."""
    near = Namespace()
    with near:
        plug_in(near, far)
        yield near
    near.close()


def plug_in(near: Namespace, far: Namespace) -> None:
    near.add_veth("w0", far, "w0")
    for host, end in ((near, 0), (far, 1)):
        host.run(f"ip addr add {ADDRESSES[4][end]}/24 dev w0", f"ip addr add {ADDRESSES[6][end]}/64 dev w0")
    near.run(f"ip addr add {LINK_LOCAL['near']}/64 dev w0")
    far.run(f"ip addr add {LINK_LOCAL['far']}/64 dev w0")


@contextlib.contextmanager
def opened(address: str, *, device: str = "w0", host: Namespace | None = None) -> Iterator[UdpUnderlay]:
    with host or contextlib.nullcontext():
        underlay = UdpUnderlay(ip_address(address), device, 1500)
    try:
        yield underlay
    finally:
        underlay.close()


@contextlib.contextmanager
def both(near: Namespace, far: Namespace, version: int) -> Iterator[tuple[UdpUnderlay, UdpUnderlay]]:
    here, there = ADDRESSES[version]
    with opened(here, host=near) as here_underlay, opened(there, host=far) as there_underlay:
        yield here_underlay, there_underlay


def serves_as_underlay(underlay: UdpUnderlay) -> Underlay:
    return underlay  # mypy is the test: every door of the protocol is there


def open_in(host: Namespace, underlay: UdpUnderlay) -> UdpPort:
    with host:
        return underlay.open_port(PORT)


def receive(port: UdpPort) -> tuple[bytes, list[tuple[int, int, bytes]], object]:
    assert select.select([port], [], [], 5)[0], "nothing came"
    buffer = bytearray(65535)
    octets, ancillary, _, sender = port.receive_into([buffer], 256)
    return bytes(buffer[:octets]), ancillary, sender


def arrivals(port: UdpPort) -> Iterator[tuple[bytes, list[tuple[int, int, bytes]], object]]:
    """What has come, and comes at once, datagram by datagram."""
    while select.select([port], [], [], 0.2)[0]:
        yield receive(port)


def refusals(underlay: UdpUnderlay) -> list[Refusal]:
    watch = select.poll()  # for the test's sake: an engine is told by its next send
    for bound in (*underlay.senders, *underlay._exchanges):
        watch.register(bound.socket_fileno if isinstance(bound, UdpExchange) else bound, 0)
    assert watch.poll(5000), "no refusal came"
    return underlay.refusals()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def raised(number: int, call: Callable[[], object]) -> None:
    with pytest.raises(OSError, match=rf"\[Errno {number}\]"):
        call()


# --- Sending and receiving --------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_a_datagram_arrives_and_names_its_sender_as_sockaddr_does(
    near: Namespace, far: Namespace, version: int
) -> None:
    with both(near, far, version) as (here, there):
        port = open_in(far, there)
        to = here.sockaddr(there.address, PORT)
        assert here.senders[3].send(b"one", to) == 3
        payload, _, sender = receive(port)
        assert payload == b"one"
        assert sender == there.sockaddr(here.address, here.senders[3].port)
        assert here.senders[0].send_marked([b"t", memoryview(b"wo")], [], 0, to) == 3
        assert receive(port)[0] == b"two"


@pytest.mark.usefixtures("near")
def test_a_link_local_address_sends_and_receives_on_its_own_device(far: Namespace) -> None:
    with opened("fe80::1%w0") as here, opened("fe80::2%w0", host=far) as there:
        port = open_in(far, there)
        index = socket.if_nametoindex("w0")
        assert here.sockaddr(ip_address("fe80::2"), 1) == ("fe80::2", 1, 0, index)
        assert here.sockaddr(ip_address("fe80::2%lo"), 1) == ("fe80::2", 1, 0, 1)
        here.senders[0].send(b"near by", here.sockaddr(ip_address("fe80::2%w0"), PORT))
        payload, _, sender = receive(port)
        assert payload == b"near by"
        assert isinstance(sender, tuple)
        assert sender[0] == there.sockaddr(ip_address("fe80::1"), 1)[0] == "fe80::1"


@pytest.mark.usefixtures("near")
def test_addresses_are_spelt_as_the_socket_spells_them() -> None:
    with opened("2001:db8::1") as here:
        assert here.sockaddr(ip_address("2001:DB8:0:0::2"), 7) == ("2001:db8::2", 7, 0, 0)
        assert here.sockaddr(ip_address("::ffff:192.0.2.7"), 7)[0] == "::ffff:192.0.2.7"
        assert here.sockaddr(ip_address("192.0.2.7"), 7) == ("192.0.2.7", 7)


@pytest.mark.usefixtures("near")
def test_the_pool_is_a_power_of_two_of_ports_that_differ() -> None:
    with opened("192.0.2.1") as here:
        assert len(here.senders) == POOL_SIZE == 8
        assert len({sender.port for sender in here.senders}) == POOL_SIZE
        for sender in here.senders:
            assert not os.get_inheritable(sender.fileno())
            assert not os.get_blocking(sender.fileno())
    with pytest.raises(ValueError, match="power of two"):
        UdpUnderlay(ip_address("192.0.2.1"), "w0", 1500, pool_size=6)


@pytest.mark.parametrize("version", [4, 6])
def test_datagrams_leave_whole_with_64_hops_and_a_checksum(
    near: Namespace, far: Namespace, version: int
) -> None:
    protocol = {4: 0x0800, 6: 0x86DD}[version]
    with far, socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(protocol)) as wire:
        wire.bind(("w0", protocol))
        wire.settimeout(5)
        with both(near, far, version) as (here, _):
            here.senders[0].send(b"x" * 1000, here.sockaddr(ip_address(ADDRESSES[version][1]), PORT))
            packet = b""
            while len(packet) < 1000:
                packet = wire.recv(2048)
            raised(
                errno.EMSGSIZE,
                lambda: here.senders[0].send(
                    bytes(1500), here.sockaddr(ip_address(ADDRESSES[version][1]), PORT)
                ),
            )
    header_length = {4: 20, 6: 40}[version]
    assert len(packet) == header_length + 8 + 1000
    if version == 4:
        assert struct.unpack_from("!H", packet, 6) == (0x4000,), "DF, and no fragment"
        assert packet[8] == 64
    else:
        assert packet[7] == 64
    assert packet[header_length + 6 : header_length + 8] != b"\0\0"


@pytest.mark.parametrize("version", [4, 6])
def test_the_ecn_field_comes_with_the_datagram(near: Namespace, far: Namespace, version: int) -> None:
    level, option = {4: (socket.IPPROTO_IP, socket.IP_TOS), 6: (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)}[
        version
    ]
    with both(near, far, version) as (here, there):
        port = open_in(far, there)
        mark = [(level, option, struct.pack("i", 3))]
        here.senders[0].send_marked([b"marked"], mark, 0, here.sockaddr(there.address, PORT))
        _, ancillary, _ = receive(port)
        assert [data[0] for *kind, data in ancillary if kind == [level, option]] == [3]


def test_a_zero_checksum_is_accepted_on_ipv6(near: Namespace, far: Namespace) -> None:
    with both(near, far, 6) as (here, there):
        port = here.open_port(PORT)
        with far, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as stranger:
            stranger.setsockopt(socket.IPPROTO_UDP, UDP_NO_CHECK6_TX, 1)
            stranger.sendto(b"unchecked", there.sockaddr(here.address, PORT))
        assert receive(port)[0] == b"unchecked"


@pytest.mark.usefixtures("near")
def test_what_the_receive_buffer_cannot_hold_is_counted() -> None:
    with opened("192.0.2.1") as here:
        port = here.open_port(PORT)
        assert port.overruns() == 0
        sent = 1000
        for number in range(sent):
            here.senders[number % POOL_SIZE].send(bytes(60_000), here.sockaddr(here.address, PORT))
        received = 0
        buffer = bytearray(65535)
        with contextlib.suppress(BlockingIOError):
            while port.receive_into([buffer], 256)[0]:
                received += 1
        assert port.overruns() > 0
        assert received + port.overruns() == sent
        assert received * 60_000 >= 7 << 20, "the buffer is smaller than was asked for"


def test_what_strangers_send_to_the_pool_is_dropped_and_wakes_nobody(near: Namespace, far: Namespace) -> None:
    with both(near, far, 4) as (here, there):
        target = here.senders[0]
        there.senders[0].send(b"hello?", there.sockaddr(here.address, target.port))

        def dropped() -> int:
            facts = target._socket.getsockopt(socket.SOL_SOCKET, underlay_module.SO_MEMINFO, 36)
            return int(struct.unpack("=9I", facts)[underlay_module.SK_MEMINFO_DROPS])

        eventually(lambda: dropped() == 1)
        assert select.select([target], [], [], 0)[0] == []
        raised(errno.EAGAIN, lambda: target._socket.recv(100))


# --- Refusals and path MTU --------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_a_closed_port_is_a_refusal_that_names_the_host(
    near: Namespace, far: Namespace, version: int
) -> None:
    with both(near, far, version) as (here, there):
        assert here.refusals() == []
        to = here.sockaddr(there.address, 9999)
        here.senders[5].send(b"anybody?", to)
        assert refusals(here) == [Refusal(to[0], errno.ECONNREFUSED)]
        assert here.refusals() == []


def test_a_waiting_refusal_fails_the_next_send_and_draining_prevents_it(
    near: Namespace, far: Namespace
) -> None:
    with both(near, far, 4) as (here, there):
        open_in(far, there)
        closed, open_ = here.sockaddr(there.address, 9999), here.sockaddr(there.address, PORT)
        here.senders[0].send(b"x", closed)
        watch = select.poll()
        watch.register(here.senders[0], 0)
        assert watch.poll(5000)
        raised(errno.ECONNREFUSED, lambda: here.senders[0].send(b"x", open_))
        assert here.refusals() == [Refusal(closed[0], errno.ECONNREFUSED)]
        here.senders[0].send(b"x", closed)
        assert refusals(here)
        assert here.senders[0].send(b"x", open_) == 1


@pytest.fixture
def router(near: Namespace) -> Iterator[Namespace]:
    """Behind w1 of `near` a router, and behind that, over a link of 1400 octets, 198.51.100.2."""
    router, end = Namespace(), Namespace()
    near.add_veth("w1", router, "w1")
    router.add_veth("w2", end, "w2", mtu=1400)
    near.run(
        "ip addr add 10.1.0.1/24 dev w1",
        "ip addr add fd00:1::1/64 dev w1",
        "ip route add 198.51.100.0/24 via 10.1.0.2",
        "ip route add fd00:2::/64 via fd00:1::2",
    )
    router.run(
        "ip addr add 10.1.0.2/24 dev w1",
        "ip addr add fd00:1::2/64 dev w1",
        "ip addr add 198.51.100.1/24 dev w2",
        "ip addr add fd00:2::1/64 dev w2",
    )
    end.run("ip addr add 198.51.100.2/24 dev w2", "ip addr add fd00:2::2/64 dev w2")
    router.sysctl("net/ipv4/ip_forward", 1)
    router.sysctl("net/ipv6/conf/all/forwarding", 1)
    yield router
    router.close()
    end.close()


@pytest.mark.usefixtures("router")
@pytest.mark.parametrize(("ours", "theirs"), [("10.1.0.1", "198.51.100.2"), ("fd00:1::1", "fd00:2::2")])
def test_a_narrow_path_is_a_refusal_with_its_mtu_and_then_known(ours: str, theirs: str) -> None:
    with opened(ours, device="w1") as here:
        to = here.sockaddr(ip_address(theirs), 9999)
        assert here.path_mtu(to) == 1500
        fits_the_link = bytes(1500 - 28 - 20)
        assert here.senders[2].send(fits_the_link, to)
        assert refusals(here) == [Refusal(theirs, errno.EMSGSIZE, 1400)]
        assert here.path_mtu(to) == 1400
        raised(errno.EMSGSIZE, lambda: here.senders[4].send(fits_the_link, to))
        assert here.refusals() == [], "the send has said so itself"


@pytest.mark.parametrize("version", [4, 6])
def test_without_a_path_there_is_no_path_mtu(near: Namespace, far: Namespace, version: int) -> None:
    nowhere = {4: "203.0.113.1", 6: "2001:db9::1"}[version]
    with both(near, far, version) as (here, there):
        assert here.path_mtu(here.sockaddr(there.address, PORT)) == 1500
        raised(errno.ENETUNREACH, lambda: here.path_mtu(here.sockaddr(ip_address(nowhere), PORT)))


# --- Addresses that come and go ---------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_an_address_removed_and_restored_works_again(near: Namespace, far: Namespace, version: int) -> None:
    prefix = {4: 24, 6: 64}[version]
    with both(near, far, version) as (here, there):
        here_port, there_port = here.open_port(PORT), open_in(far, there)
        near.run(f"ip addr del {here.address}/{prefix} dev w0")
        with contextlib.suppress(OSError):  # EINVAL or ENETUNREACH while it is away
            here.senders[0].send(b"lost", here.sockaddr(there.address, PORT))
        near.run(f"ip addr add {here.address}/{prefix} dev w0")
        assert_both_ways(here, there, here_port, there_port)


@pytest.mark.parametrize("version", [4, 6])
def test_a_device_made_anew_works_again(near: Namespace, far: Namespace, version: int) -> None:
    with both(near, far, version) as (here, there):
        here_port, there_port = here.open_port(PORT), open_in(far, there)
        near.run("ip link del w0")
        with pytest.raises(OSError, match="Errno"):
            here.senders[0].send(b"lost", here.sockaddr(there.address, PORT))
        plug_in(near, far)
        here.rebind()
        assert_both_ways(here, there, here_port, there_port)


def test_a_link_local_address_on_a_device_made_anew_wants_rebind(near: Namespace, far: Namespace) -> None:
    with opened("fe80::1%w0") as here, opened("fe80::2%w0", host=far) as there:
        there_port = open_in(far, there)
        here_port = here.open_port(PORT)
        index = socket.if_nametoindex("w0")
        near.run("ip link del w0")
        with pytest.raises(DeviceError) as caught:
            here.rebind()
        assert (caught.value.device, caught.value.errno) == ("w0", errno.ENODEV)
        near.run("ip link add filler type veth peer name filler2")
        plug_in(near, far)
        assert socket.if_nametoindex("w0") != index
        here.rebind()
        with far:
            there.rebind()
            back = there.sockaddr(ip_address("fe80::1"), PORT)
        here.senders[0].send(b"there", here.sockaddr(ip_address("fe80::2"), PORT))
        assert receive(there_port)[0] == b"there"
        there.senders[0].send(b"back", back)
        assert receive(here_port)[0] == b"back"


def assert_both_ways(here: UdpUnderlay, there: UdpUnderlay, here_port: UdpPort, there_port: UdpPort) -> None:
    here.refusals()
    there.refusals()
    here.senders[0].send(b"there", here.sockaddr(there.address, there_port.port))
    assert receive(there_port)[0] == b"there"
    there.senders[0].send(b"back", there.sockaddr(here.address, here_port.port))
    assert receive(here_port)[0] == b"back"


def test_a_tentative_address_is_bound_at_once_and_comes_to_life(near: Namespace, far: Namespace) -> None:
    near.detect_duplicates("w0")
    near.run("ip addr add 2001:db8::9/64 dev w0")
    with opened("2001:db8::9") as here, opened("2001:db8::2", host=far) as there:
        port = here.open_port(PORT)
        assert "tentative" in near.run("ip addr show w0")
        eventually(lambda: "tentative" not in near.run("ip addr show w0"))
        there_port = open_in(far, there)
        assert_both_ways(here, there, port, there_port)


# --- What the kernel refuses ------------------------------------------------------------------------


def test_a_port_a_kernel_vxlan_device_holds_is_explained(near: Namespace) -> None:
    near.run(f"ip link add vx0 type vxlan id 1 dstport {PORT} local 192.0.2.1 dev w0", "ip link set vx0 up")
    with opened("192.0.2.1") as here:
        with pytest.raises(DeviceError) as caught:
            here.open_port(PORT)
        assert (caught.value.device, caught.value.errno) == (f"udp 192.0.2.1:{PORT}", errno.EADDRINUSE)
        assert "kernel vxlan" in caught.value.why
        assert "ip -d link show type vxlan" in caught.value.advice
        near.run("ip link del vx0")
        assert here.open_port(PORT).port == PORT


@pytest.mark.usefixtures("near")
def test_a_port_is_free_again_once_closed() -> None:
    with opened("192.0.2.1") as here:
        first = here.open_port(PORT)
        with pytest.raises(DeviceError):
            here.open_port(PORT)
        first.close()
        here.open_port(PORT)
    with opened("192.0.2.1") as here:
        here.open_port(PORT)


@pytest.mark.parametrize("version", [4, 6])
def test_sockets_that_share_a_port_each_have_their_senders(
    near: Namespace, far: Namespace, version: int
) -> None:
    with both(near, far, version) as (here, there):
        ports = here.open_ports(PORT, 4)
        to = there.sockaddr(here.address, PORT)
        for _ in range(3):
            for sender in there.senders:
                sender.send(str(sender.port).encode(), to)
        senders = [[told for told, *_ in arrivals(port)] for port in ports]
        assert sorted(told for each in senders for told in each) == sorted(
            str(sender.port).encode() for sender in there.senders for _ in range(3)
        )
        assert all(each.count(told) == 3 for each in senders for told in each)
        assert sum(map(bool, senders)) > 1


def test_sockets_that_share_a_port_still_do_when_their_device_is_looked_at_again(
    near: Namespace, far: Namespace
) -> None:
    with (
        opened("fe80::1%w0", host=near) as here,
        opened("fe80::2%w0", host=far) as there,
    ):
        ports = here.open_ports(PORT, 4)
        here.rebind()
        with far:
            to = there.sockaddr(here.address, PORT)
        for sender in there.senders:
            sender.send(b"here", to)
        assert sum(any(arrivals(port)) for port in ports) > 1


@pytest.mark.usefixtures("near")
def test_a_port_that_is_shared_is_shared_with_nobody_else() -> None:
    with opened("192.0.2.1") as here, opened("192.0.2.1") as other:
        before = open_descriptors()
        for first, second in ((1, 2), (2, 1), (2, 2)):
            ports = here.open_ports(PORT, first)
            with pytest.raises(DeviceError) as caught:
                other.open_ports(PORT, second)
            assert caught.value.errno == errno.EADDRINUSE
            for port in ports:
                port.close()
            assert open_descriptors() == before


@pytest.mark.usefixtures("near")
@pytest.mark.parametrize("address", ["192.0.2.77", "2001:db8::77", "fe80::77%w0", "fe80::1%nowhere"])
def test_an_address_that_is_not_ours_is_refused_with_those_that_are(address: str) -> None:
    before = open_descriptors()
    with pytest.raises(DeviceError) as caught:
        UdpUnderlay(ip_address(address), "w0", 1500)
    assert address in caught.value.device
    assert "192.0.2.1, 2001:db8::1, fe80::1%w0" in caught.value.why
    assert open_descriptors() == before


@pytest.mark.usefixtures("near")
def test_a_pool_that_fails_half_way_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = iter(range(3))
    grow = underlay_module._grow

    def fail_later(*args: Any) -> None:
        if next(allowed, None) is None:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        grow(*args)

    monkeypatch.setattr(underlay_module, "_grow", fail_later)
    before = open_descriptors()
    with pytest.raises(DeviceError) as caught:
        UdpUnderlay(ip_address("192.0.2.1"), "w0", 1500)
    assert caught.value.errno == errno.ENOBUFS
    assert open_descriptors() == before


@pytest.mark.usefixtures("near")
def test_a_low_port_without_the_right_is_explained() -> None:
    def bind_low() -> int:
        try:
            with opened("192.0.2.1") as here:
                here.open_port(789)
        except DeviceError as error:
            return error.errno if "CAP_NET_BIND_SERVICE" in error.why else 0
        return 0

    assert exit_status_as_nobody(bind_low) == errno.EACCES


@pytest.mark.usefixtures("near")
def test_without_any_right_the_buffers_are_what_the_host_allows() -> None:
    def receive_buffer() -> int:
        with opened("192.0.2.1") as here:
            port = here.open_port(PORT)
            return port._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >> 16

    forced = UdpUnderlay(ip_address("192.0.2.1"), "w0", 1500)
    granted = forced.open_port(PORT)._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    forced.close()
    assert granted == 2 * (7 << 20)
    assert 0 < exit_status_as_nobody(receive_buffer) << 16 <= granted


# --- Which underlay ---------------------------------------------------------------------------------


def test_underlays_are_named_by_address_device_or_default_route(near: Namespace) -> None:
    four = UnderlayFacts(ip_address("192.0.2.1"), "w0", 1500)
    six = UnderlayFacts(ip_address("2001:db8::1"), "w0", 1500)
    scoped = UnderlayFacts(ip_address("fe80::1%w0"), "w0", 1500)
    assert resolve_underlays(["192.0.2.1"]) == [four]
    assert resolve_underlays(["2001:db8::1", "192.0.2.1"]) == [six, four]
    assert resolve_underlays(["fe80::1"]) == resolve_underlays(["fe80::1%w0"]) == [scoped]
    near.run("ip addr add 192.0.2.100/24 dev w0")  # a secondary one, which the device's name does not mean
    assert resolve_underlays(["w0", "192.0.2.1"]) == [four, six]
    near.run("ip route add default via 2001:db8::fe")
    assert resolve_underlays([]) == [six]
    near.run("ip route add default via 192.0.2.254", "ip link set w0 mtu 1400")
    assert resolve_underlays([]) == [UnderlayFacts(ip_address("192.0.2.1"), "w0", 1400)]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nowhere", "expected an address or a device"),
        ("bare", "no global address"),
        ("192.0.2.77", "192.0.2.1"),
        ("fe80::1%bare", "192.0.2.1"),
        ("fe80::1", ""),
        ("fe80::cafe", "several devices have"),
    ],
)
def test_an_underlay_that_cannot_be_meant_says_why(near: Namespace, name: str, why: str) -> None:
    near.run(
        "ip link add bare type veth peer name bare2",
        "ip addr add fe80::cafe/64 dev bare",
        "ip addr add fe80::cafe/64 dev bare2",
    )
    if not why:
        assert len(resolve_underlays([name])) == 1
        return
    with pytest.raises(DeviceError) as caught:
        resolve_underlays([name])
    assert why in caught.value.why


@pytest.mark.usefixtures("near")
def test_without_a_default_route_the_operator_must_name_one() -> None:
    with pytest.raises(DeviceError) as caught:
        resolve_underlays([])
    assert "no default route" in caught.value.why
    assert "192.0.2.1" in caught.value.why


def test_the_underlay_chosen_is_the_one_the_kernel_would_send_from(near: Namespace) -> None:
    near.run(
        "ip link add v0 type veth peer name v1",
        "ip link set v0 up",
        "ip link set v1 up",
        "ip addr add 10.7.0.1/24 dev v0",
        "ip addr add fe80::7/64 dev v0",
    )
    with opened("192.0.2.1") as first, opened("10.7.0.1", device="v0") as second:
        ours = [first, second]
        assert choose(ours, ip_address("192.0.2.50")) is first
        assert choose(ours, ip_address("10.7.0.50")) is second
        assert choose(ours, ip_address("203.0.113.1")) is first  # no route: the first of its family
        assert choose(ours, ip_address("2001:db8::2")) is None
        assert choose([], ip_address("192.0.2.50")) is None
    with opened("fe80::1%w0") as first, opened("fe80::7%v0", device="v0") as second:
        assert choose([first, second], ip_address("fe80::99%v0")) is second
        assert choose([first, second], ip_address("fe80::99%w0")) is first


# --- A socket for both ways -------------------------------------------------------------------------


def serves_as_exchange(exchange: UdpExchange) -> UnderlayExchange:
    return exchange  # mypy is the test: every door of the protocol is there


@pytest.mark.parametrize("version", [4, 6])
def test_an_exchange_sends_from_the_port_it_receives_on(
    near: Namespace, far: Namespace, version: int
) -> None:
    with both(near, far, version) as (here, there):
        mine = here.open_exchange(8285)
        with far:
            theirs = there.open_exchange(8285)
        to = here.sockaddr(there.address, 8285)
        assert mine.send(b"bare", to) == 4
        payload, _, sender = receive(theirs)
        assert (payload, sender) == (b"bare", there.sockaddr(here.address, 8285))
        assert theirs.send_marked([b"ba", b"ck"], [], 0, there.sockaddr(here.address, 8285)) == 4
        assert receive(mine)[0] == b"back"


@pytest.mark.usefixtures("near", "far")
def test_what_comes_of_an_exchanges_sends_is_among_the_refusals_and_it_goes_on() -> None:
    with opened("192.0.2.1") as here:
        exchange = here.open_exchange(8285)
        to = here.sockaddr(ip_address("192.0.2.2"), 9)
        exchange.send(b"refused", to)
        assert refusals(here) == [Refusal("192.0.2.2", errno.ECONNREFUSED)]
        assert here.refusals() == []
        assert not select.select([exchange], [], [], 0)[0]
        exchange.send(b"again", to)


@pytest.mark.usefixtures("near")
def test_an_exchange_that_is_closed_leaves_nothing_open() -> None:
    with opened("192.0.2.1") as here:
        before = open_descriptors()
        exchange = here.open_exchange(8285)
        exchange.close()
        assert (open_descriptors(), exchange.fileno()) == (before, -1)
        assert here.refusals() == []
        here.open_exchange(8285).close()
