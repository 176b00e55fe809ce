"""Links, addresses and routes of a namespace made for the test, changed by `ip` and by us."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface

import pytest
from support.namespace import Namespace, eventually, exit_status_as_nobody, needs_namespaces

from overlay.addr import parse_mac
from overlay.errors import DeviceError
from tunnel import netlink

pytestmark = [pytest.mark.root, pytest.mark.timeout(30), needs_namespaces]


@pytest.fixture
def host() -> Iterator[Namespace]:
    """A namespace with wa0 (192.0.2.1/24, 2001:db8::1/64) cabled to another one."""
    host, far = Namespace(), Namespace()
    with host:
        host.add_veth("wa0", far, "wb0")
        host.run("ip addr add 192.0.2.1/24 dev wa0", "ip addr add 2001:db8::1/64 dev wa0")
        yield host
    host.close()
    far.close()


def test_a_link_is_described_and_an_unknown_one_is_none(host: Namespace) -> None:
    host.run("ip link set wa0 mtu 1400", "ip link set wa0 address 02:00:5e:10:00:01")
    found = netlink.link("wa0")
    assert found is not None
    assert (found.name, found.mtu, found.mac, found.up, found.kind) == (
        "wa0",
        1400,
        parse_mac("02:00:5e:10:00:01"),
        True,
        "veth",
    )
    assert found.index == socket.if_nametoindex("wa0")
    assert netlink.link("nowhere") is None


def test_a_link_is_made_as_wanted_and_then_left_alone(host: Namespace) -> None:
    wanted = {"mtu": 1300, "up": True, "mac": parse_mac("02:00:5e:10:00:02"), "txqueuelen": 77}
    made = netlink.ensure_link("wa0", **wanted)  # type: ignore[arg-type]
    assert (made.mtu, made.up, made.mac, made.txqueuelen) == tuple(wanted.values())
    shown = host.run("ip link show wa0")
    assert "mtu 1300" in shown
    assert "qlen 77" in shown
    bell = netlink.Doorbell()
    assert netlink.ensure_link("wa0", **wanted) == made  # type: ignore[arg-type]
    assert not bell.ring()
    bell.close()


def test_a_link_is_taken_down_and_what_is_not_named_stays(host: Namespace) -> None:
    before = netlink.link("wa0")
    assert before is not None
    after = netlink.ensure_link("wa0", mtu=before.mtu, up=False)
    assert not after.up
    assert (after.mac, after.txqueuelen) == (before.mac, before.txqueuelen)
    assert "state DOWN" in host.run("ip link show wa0")


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(
    ("name", "mtu", "number"), [("nowhere", 1400, errno.ENODEV), ("wa0", 1 << 24, errno.EINVAL)]
)
def test_what_the_kernel_refuses_of_a_link_is_a_device_error(name: str, mtu: int, number: int) -> None:
    with pytest.raises(DeviceError) as caught:
        netlink.ensure_link(name, mtu=mtu, up=True)
    assert (caught.value.device, caught.value.errno) == (name, number)


@pytest.mark.usefixtures("host")
def test_without_the_right_a_change_says_what_it_needs() -> None:
    def change() -> int:
        try:
            netlink.ensure_link("wa0", mtu=1300, up=True)
        except DeviceError as error:
            return error.errno if "CAP_NET_ADMIN" in error.why else 0
        return 0

    assert exit_status_as_nobody(change) == errno.EPERM


def test_addresses_are_added_once_and_strangers_stay(host: Namespace) -> None:
    wanted = [ip_interface("10.9.0.1/24"), ip_interface("fd00:9::1/64"), ip_interface("192.0.2.1/24")]
    assert netlink.ensure_addresses("wa0", wanted) == wanted[:2]
    assert netlink.ensure_addresses("wa0", wanted) == []
    shown = host.run("ip -o addr show wa0")
    for text in ("10.9.0.1/24", "fd00:9::1/64", "192.0.2.1/24", "2001:db8::1/64"):
        assert shown.count(f" {text} ") == 1, text


def test_only_the_named_addresses_are_removed_and_twice_is_once(host: Namespace) -> None:
    ours = [ip_interface("10.9.0.1/24"), ip_interface("fd00:9::1/64")]
    netlink.ensure_addresses("wa0", ours)
    netlink.remove_addresses("wa0", ours)
    netlink.remove_addresses("wa0", [*ours, ip_interface("192.0.2.1/25")])
    netlink.remove_addresses("nowhere", ours)
    shown = host.run("ip -o addr show wa0")
    assert "10.9.0.1" not in shown
    assert "fd00:9::1" not in shown
    assert "192.0.2.1/24" in shown


@pytest.mark.usefixtures("host")
def test_an_address_for_no_device_is_a_device_error() -> None:
    with pytest.raises(DeviceError) as caught:
        netlink.ensure_addresses("nowhere", [ip_interface("10.9.0.1/24")])
    assert (caught.value.device, caught.value.errno) == ("nowhere", errno.ENODEV)


def test_addresses_say_their_device_scope_and_standing(host: Namespace) -> None:
    host.run("ip addr add 192.0.2.9/24 dev wa0", "ip addr add fe80::1/64 dev wa0")
    found = {str(facts.address): facts for facts in netlink.addresses()}
    assert {"127.0.0.1", "::1", "192.0.2.1", "192.0.2.9", "2001:db8::1", "fe80::1%wa0"} <= set(found)
    assert (found["192.0.2.1"].device, found["192.0.2.1"].prefix_length) == ("wa0", 24)
    assert found["192.0.2.1"].stable
    assert not found["192.0.2.9"].stable  # secondary
    assert found["fe80::1%wa0"].link_local
    assert not found["2001:db8::1"].link_local


def test_an_address_under_duplicate_detection_is_tentative_until_it_is_over(host: Namespace) -> None:
    host.detect_duplicates("wa0")
    host.run("ip addr add 2001:db8::9/64 dev wa0")
    ours = ip_address("2001:db8::9")

    def tentative() -> bool:
        return next(facts.tentative for facts in netlink.addresses() if facts.address == ours)

    assert tentative()
    eventually(lambda: not tentative())


def test_the_device_of_an_address_is_found_by_its_scope_too(host: Namespace) -> None:
    host.run("ip addr add fe80::1/64 dev wa0")
    assert netlink.device_of_address(ip_address("192.0.2.1")) == "wa0"
    assert netlink.device_of_address(ip_address("2001:db8::1")) == "wa0"
    assert netlink.device_of_address(ip_address("fe80::1%wa0")) == "wa0"
    assert netlink.device_of_address(ip_address("fe80::1%lo")) is None
    assert netlink.device_of_address(ip_address("192.0.2.200")) is None


def test_a_route_names_device_source_gateway_and_mtu(host: Namespace) -> None:
    host.run(
        "ip route add 198.51.100.0/24 via 192.0.2.254 mtu 1300",
        "ip route add 2001:db8:1::/64 via 2001:db8::fe",
    )
    on_link = netlink.route_to(ip_address("192.0.2.2"))
    assert on_link == netlink.RouteFacts("wa0", ip_address("192.0.2.1"), None, 1500)
    beyond = netlink.route_to(ip_address("198.51.100.7"))
    assert beyond == netlink.RouteFacts("wa0", ip_address("192.0.2.1"), ip_address("192.0.2.254"), 1300)
    six = netlink.route_to(ip_address("2001:db8:1::7"))
    assert six == netlink.RouteFacts("wa0", ip_address("2001:db8::1"), ip_address("2001:db8::fe"), 1500)
    scoped = netlink.route_to(ip_address("fe80::2%wa0"))
    assert scoped is not None
    assert scoped.device == "wa0"


def test_where_there_is_no_route_there_is_none(host: Namespace) -> None:
    host.run("ip route add unreachable 198.51.100.0/24")
    assert netlink.route_to(ip_address("203.0.113.1")) is None
    assert netlink.route_to(ip_address("198.51.100.1")) is None
    assert netlink.route_to(ip_address("2001:db9::1")) is None
    assert netlink.route_to(ip_address("fe80::2%nowhere")) is None


def test_the_default_source_is_what_the_default_route_sends_from(host: Namespace) -> None:
    assert netlink.default_source(4) is None
    assert netlink.default_source(6) is None
    host.run("ip route add default via 192.0.2.254", "ip route add default via fe80::fe dev wa0")
    four, six = netlink.default_source(4), netlink.default_source(6)
    assert four is not None
    assert six is not None
    assert (str(four.address), four.device) == ("192.0.2.1", "wa0")
    assert str(six.address) == "2001:db8::1"


@pytest.mark.parametrize(
    "route",
    [
        "default via 192.0.2.254 src 10.7.0.1",
        "default dev wb1",
        "default nexthop via 10.7.0.254 dev wb1 nexthop via 192.0.2.254 dev wa0",
    ],
)
def test_the_default_source_heeds_src_device_and_multipath(host: Namespace, route: str) -> None:
    host.run(
        "ip link add wb1 type veth peer name wb2",
        "ip addr add 10.7.0.1/24 dev wb1",
        "ip link set wb1 up",
        "ip link set wb2 up",
        "ip route add default via 192.0.2.253 metric 500",
    )
    host.run(f"ip route add {route}")
    facts = netlink.default_source(4)
    assert facts is not None
    assert str(facts.address) == "10.7.0.1"


@pytest.mark.usefixtures("host")
def test_the_kernel_can_be_asked_inside_a_running_loop() -> None:
    async def ask() -> tuple[object, object]:
        return netlink.link("wa0"), await asyncio.to_thread(netlink.link, "wa0")

    here, in_a_thread = asyncio.run(ask())
    assert here == in_a_thread == netlink.link("wa0")


@pytest.mark.parametrize(
    "change",
    [
        "ip link set wa0 mtu 1400",
        "ip link set wa0 down",
        "ip addr add 192.0.2.7/24 dev wa0",
        "ip addr add 2001:db8::7/64 dev wa0",
        "ip route add 198.51.100.0/24 via 192.0.2.254",
        "ip route add 2001:db8:1::/64 via 2001:db8::fe",
        "ip neigh add 192.0.2.2 lladdr 02:00:5e:10:00:02 dev wa0",
    ],
)
def test_the_doorbell_rings_for_a_change_and_then_is_quiet(host: Namespace, change: str) -> None:
    bell = netlink.Doorbell()
    assert not bell.ring()
    host.run(change)
    assert bell.ring()
    bell.close()


def test_a_doorbell_that_lost_notifications_has_rung(host: Namespace) -> None:
    bell, witness = netlink.Doorbell(), netlink.Doorbell()
    for small in (bell, witness):
        small._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    for octet in range(20):
        host.run(f"ip addr add 10.1.1.{octet}/32 dev wa0")
    with pytest.raises(OSError, match="No buffer space"):
        witness._socket.recv(1)
    assert bell.ring()
    assert not bell.ring()
    bell.close()
    witness.close()
