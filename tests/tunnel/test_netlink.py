"""Links, addresses and routes of a namespace made for the test, changed by `ip` and by us."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface

import pytest
from scapy.layers.inet import IP
from support.frames import udp4
from support.namespace import Namespace, eventually, exit_status_as_nobody, needs_namespaces

from overlay.addr import parse_mac
from overlay.errors import DeviceError
from tunnel import bpf, netlink
from tunnel.netlink import Redirection
from tunnel.tap import Tap

pytestmark = [pytest.mark.root, pytest.mark.timeout(30), needs_namespaces]


@pytest.fixture
def far() -> Iterator[Namespace]:
    far = Namespace()
    yield far
    far.close()


@pytest.fixture
def host(far: Namespace) -> Iterator[Namespace]:
    """A namespace with wa0 (192.0.2.1/24, 2001:db8::1/64) cabled to wb0 of `far`."""
    host = Namespace()
    with host:
        host.add_veth("wa0", far, "wb0")
        host.run("ip addr add 192.0.2.1/24 dev wa0", "ip addr add 2001:db8::1/64 dev wa0")
        yield host
    host.close()


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


# ── Next hops ───────────────────────────────────────────────────────────────────────────────────────────


def hop(text: str) -> netlink.NextHop | str:
    address = ip_address(text)
    return netlink.next_hops([address])[address]


BESIDE = {"192.0.2.2": "02:00:5e:10:00:02", "192.0.2.254": "02:00:5e:10:00:fe"}
BESIDE_V6 = {"2001:db8::2": "02:00:5e:10:06:02", "2001:db8::fe": "02:00:5e:10:06:fe"}


@pytest.fixture
def neighborly(host: Namespace) -> Namespace:
    """Knows who is beside it, and reaches others by gateways there."""
    for address, mac in {**BESIDE, **BESIDE_V6, "fe80::2": "02:00:5e:10:07:02"}.items():
        host.run(f"ip neigh add {address} lladdr {mac} dev wa0")
    host.run(
        "ip route add 198.51.100.0/24 via 192.0.2.254",
        "ip route add 2001:db8:1::/64 via 2001:db8::fe",
    )
    return host


@pytest.mark.usefixtures("neighborly")
@pytest.mark.parametrize(
    ("address", "mac"),
    [
        ("192.0.2.2", "02:00:5e:10:00:02"),
        ("198.51.100.7", "02:00:5e:10:00:fe"),
        ("2001:db8::2", "02:00:5e:10:06:02"),
        ("2001:db8:1::7", "02:00:5e:10:06:fe"),
        ("fe80::2%wa0", "02:00:5e:10:07:02"),
    ],
)
def test_the_next_hop_is_the_host_itself_or_its_gateway(address: str, mac: str) -> None:
    assert hop(address) == netlink.NextHop("wa0", parse_mac(mac))


@pytest.mark.parametrize(
    ("route", "address", "why"),
    [
        ("203.0.113.0/24 nexthop via 192.0.2.2 nexthop via 192.0.2.254", "203.0.113.1", "several next hops"),
        (
            "2001:db8:2::/64 nexthop via 2001:db8::2 nexthop via 2001:db8::fe",
            "2001:db8:2::1",
            "several next hops",
        ),
        ("unreachable 203.0.113.0/24", "203.0.113.1", "no route: No route to host"),
        ("blackhole 203.0.113.0/24", "203.0.113.1", "no route"),
        ("prohibit 203.0.113.0/24", "203.0.113.1", "no route"),
        ("unreachable 2001:db8:2::/64", "2001:db8:2::1", "no"),
        ("203.0.113.0/24 encap ip id 42 dst 192.0.2.2 dev wa0", "203.0.113.1", "not a plain one"),
        (
            "2001:db8:2::/64 encap seg6 mode encap segs 2001:db8::2 dev wa0",
            "2001:db8:2::1",
            "not a plain one",
        ),
        ("203.0.113.0/24 via inet6 2001:db8::fe dev wa0", "203.0.113.1", "not a plain one"),
        ("203.0.113.0/24 via 192.0.2.77", "203.0.113.1", "192.0.2.77 is not known yet"),
    ],
)
def test_a_route_that_is_no_single_plain_next_hop_says_why(
    neighborly: Namespace, route: str, address: str, why: str
) -> None:
    neighborly.run(f"ip route add {route}")
    found = hop(address)
    assert isinstance(found, str)
    assert why in found


def test_a_group_of_next_hops_is_several(neighborly: Namespace) -> None:
    neighborly.run(
        "ip nexthop add id 1 via 192.0.2.2 dev wa0",
        "ip nexthop add id 2 via 192.0.2.254 dev wa0",
        "ip nexthop add id 3 group 1/2",
        "ip route add 203.0.113.0/24 nhid 3",
        "ip route add 203.0.114.0/24 nhid 2",
    )
    assert hop("203.0.113.1") == "its route has several next hops"
    assert hop("203.0.114.1") == netlink.NextHop("wa0", parse_mac(BESIDE["192.0.2.254"]))


@pytest.mark.usefixtures("neighborly")
@pytest.mark.parametrize(
    "address", ["192.0.2.1", "127.0.0.1", "2001:db8::1", "::1", "192.0.2.255", "224.0.0.9"]
)
def test_what_is_ours_or_everybodys_has_no_next_hop(address: str) -> None:
    assert isinstance(hop(address), str)


@pytest.mark.usefixtures("neighborly")
@pytest.mark.parametrize("address", ["203.0.113.1", "2001:db9::1", "fe80::2%nowhere"])
def test_where_there_is_no_route_there_is_no_next_hop(address: str) -> None:
    assert str(hop(address)).startswith("no route: ")


@pytest.mark.usefixtures("neighborly")
@pytest.mark.parametrize("address", ["192.0.2.9", "2001:db8::9"])
def test_an_unresolved_neighbor_is_not_known_yet(address: str) -> None:
    assert hop(address) == f"the Ethernet address of {address} is not known yet"


@pytest.mark.parametrize(("state", "is_known"), [("failed", False), ("incomplete", False), ("stale", True)])
def test_a_neighbor_counts_while_its_address_is_valid(
    neighborly: Namespace, state: str, is_known: bool
) -> None:
    lladdr = "lladdr 02:00:5e:10:00:09 " if is_known else ""
    neighborly.run(f"ip neigh replace 192.0.2.9 {lladdr}dev wa0 nud {state}")
    assert isinstance(hop("192.0.2.9"), netlink.NextHop) == is_known


def test_a_device_without_ethernet_addresses_tells_none(neighborly: Namespace) -> None:
    neighborly.run("ip tuntap add tun7 mode tun", "ip addr add 10.7.0.1/24 dev tun7", "ip link set tun7 up")
    assert isinstance(hop("10.7.0.2"), str)


@pytest.mark.usefixtures("neighborly")
def test_each_address_asked_for_has_its_own_answer() -> None:
    wanted = [ip_address(each) for each in ("192.0.2.2", "203.0.113.1", "2001:db8::2")]
    found = netlink.next_hops(wanted)
    assert list(found) == wanted
    assert [isinstance(each, str) for each in found.values()] == [False, True, False]
    assert netlink.next_hops([]) == {}


# ── Redirection ─────────────────────────────────────────────────────────────────────────────────────────

FRAME = bytes.fromhex("02005e10000902005e10000188b5") + bytes(range(46))
TO_NOBODY = udp4(b"for a MAC that no device has")


def test_the_features_are_those_that_ethtool_shows_as_on(host: Namespace) -> None:
    host.run("ethtool -K wa0 tx-udp_tnl-segmentation on")
    shown = [line.split(": ") for line in host.run("ethtool -k wa0").splitlines() if line[0] not in "F\t"]
    on = {name for name, state in shown if state.startswith("on")}
    assert "tx-udp_tnl-segmentation" in netlink.features("wa0") & on
    host.run("ethtool -K wa0 tx-udp_tnl-segmentation off")
    assert "tx-udp_tnl-segmentation" not in netlink.features("wa0")
    assert "tx-udp_tnl-csum-segmentation" in netlink.features("wa0")


@pytest.mark.usefixtures("host")
def test_the_features_of_no_device_are_a_device_error() -> None:
    with pytest.raises(DeviceError) as caught:
        netlink.features("nowhere")
    assert (caught.value.device, caught.value.errno) == ("nowhere", errno.ENODEV)


@pytest.fixture
def inject(host: Namespace) -> Iterator[Tap]:
    """A TAP beside wa0, up, whose frames go nowhere yet."""
    tap = Tap("inj0")
    host.run("ip link set inj0 addrgenmode none", "ip link set inj0 up")
    tap.set_carrier(up=True)
    yield tap
    tap.close()


@pytest.fixture
def far_end(far: Namespace) -> Iterator[socket.socket]:
    with far:
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
        wire.bind(("wb0", 0x88B5))
    with wire:
        wire.settimeout(5)
        yield wire


def test_what_enters_a_redirected_device_leaves_by_the_other_as_it_is(
    inject: Tap, far_end: socket.socket
) -> None:
    netlink.redirect("inj0", "wa0")
    inject.write([bytes(10), FRAME])
    assert far_end.recv(2048) == FRAME
    assert inject_to_wa0() == Redirection(up=True, leads=True, refused=0, strayed=0)


@pytest.mark.usefixtures("neighborly")
def test_by_a_program_it_leaves_for_the_neighbor_the_kernel_knows(inject: Tap, far: Namespace) -> None:
    program = bpf.load_redirect(socket.if_nametoindex("wa0"))
    netlink.redirect("inj0", "wa0", program=program)
    os.close(program)
    own = netlink.link("wa0")
    assert own is not None
    packet = udp4(b"by the way", ip=IP(src="192.0.2.1", dst="198.51.100.7"))
    with far, socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as wire:
        wire.bind(("wb0", 0x0800))
        wire.settimeout(5)
        inject.write([bytes(10), packet])
        arrived = wire.recv(2048)
    assert arrived[:12] == parse_mac(BESIDE["192.0.2.254"]) + (own.mac or b"")
    assert arrived[34:] == packet[34:]
    assert inject_to_wa0() == Redirection(up=True, leads=True, refused=0, strayed=0)


@pytest.mark.usefixtures("inject")
def test_a_redirection_is_a_filter_and_goes_with_its_device(host: Namespace) -> None:
    netlink.redirect("inj0", "wa0")
    shown = host.run("tc filter show dev inj0 ingress")
    assert "mirred (Egress Redirect to device wa0)" in shown
    assert shown.count("mirred") == 1
    host.run("ip link del inj0")
    assert "clsact" not in host.run("tc qdisc show")


@pytest.mark.usefixtures("inject")
@pytest.mark.parametrize("names", [("nowhere", "wa0"), ("inj0", "nowhere")])
def test_a_redirection_from_or_to_no_device_is_a_device_error(names: tuple[str, str]) -> None:
    with pytest.raises(DeviceError) as caught:
        netlink.redirect(*names)
    assert caught.value.errno == errno.ENODEV


@pytest.mark.parametrize("change", ["ip link set wa0 down", "ip link del wa0"])
def test_what_a_redirection_loses_is_counted(host: Namespace, inject: Tap, change: str) -> None:
    index = socket.if_nametoindex("wa0")
    netlink.redirect("inj0", "wa0")
    inject.write([bytes(10), FRAME])
    host.run(change)
    for lost in (1, 2, 3):
        inject.write([bytes(10), FRAME])
        found = netlink.redirection("inj0", index)
        assert found is not None
        assert (found.refused, found.strayed) == (lost, 0)


TAKEN_AWAY = (
    "tc qdisc del dev inj0 clsact",
    "tc filter del dev inj0 ingress",
    "tc filter del dev inj0 ingress prio 1",
)
MIRRORED = (
    "tc filter replace dev inj0 ingress prio 1 handle 800::800 protocol all u32 match u32 0 0 "
    "action mirred egress mirror dev wa0"
)


@pytest.mark.parametrize("change", [*TAKEN_AWAY, MIRRORED])
def test_a_redirection_that_others_change_leads_nowhere_and_rings(
    host: Namespace, inject: Tap, change: str
) -> None:
    netlink.redirect("inj0", "wa0")
    expect_lost(inject, host, change)


@pytest.mark.parametrize("change", TAKEN_AWAY)
def test_a_program_that_others_take_away_leads_nowhere_and_rings(
    host: Namespace, inject: Tap, change: str
) -> None:
    program = bpf.load_redirect(socket.if_nametoindex("wa0"))
    netlink.redirect("inj0", "wa0", program=program)
    os.close(program)
    expect_lost(inject, host, change)


def expect_lost(inject: Tap, host: Namespace, change: str) -> None:
    """That the bell rings for the change, and what is written from then on is counted as strayed."""
    bell = netlink.Doorbell()
    host.run(change)
    assert bell.ring()
    bell.close()
    for lost in (1, 2, 3):
        inject.write([bytes(10), TO_NOBODY])
        assert inject_to_wa0() == Redirection(up=True, leads=False, refused=0, strayed=lost)


def test_a_redirection_is_told_to_be_down_elsewhere_or_gone(host: Namespace, inject: Tap) -> None:
    netlink.redirect("inj0", "wa0")
    elsewhere = netlink.redirection("inj0", socket.if_nametoindex("lo"))
    assert elsewhere == Redirection(up=True, leads=False, refused=0, strayed=0)
    host.run("ip link set inj0 down")
    assert inject_to_wa0() == Redirection(up=False, leads=True, refused=0, strayed=0)
    inject.close()
    assert inject_to_wa0() is None


@pytest.mark.usefixtures("host")
def test_a_device_that_redirects_nothing_has_lost_nothing() -> None:
    assert netlink.redirection("wa0", 1) == Redirection(up=True, leads=False, refused=0, strayed=0)


def inject_to_wa0() -> Redirection | None:
    return netlink.redirection("inj0", socket.if_nametoindex("wa0"))


def test_a_device_without_addresses_gives_itself_none(host: Namespace) -> None:
    host.run("ip link add wc0 type veth peer name wd0")
    netlink.without_addresses("wc0")
    netlink.without_addresses("wc0")
    host.run("ip link set wc0 up", "ip link set wd0 up")
    eventually(lambda: "inet6" in host.run("ip -o addr show wd0"))
    assert "inet6" not in host.run("ip -o addr show wc0")
    with pytest.raises(DeviceError):
        netlink.without_addresses("nowhere")


def test_the_doorbell_rings_when_an_offload_is_switched(host: Namespace) -> None:
    bell = netlink.Doorbell()
    host.run("ethtool -K wa0 tx-udp_tnl-segmentation off")
    assert bell.ring()
    bell.close()


# ── Changes ─────────────────────────────────────────────────────────────────────────────────────────────


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
