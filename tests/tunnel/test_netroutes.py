"""Neighbors and routes come once and go alone: what is not ours is never touched."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest
from support.namespace import Namespace, needs_namespaces

from overlay.addr import Mac
from overlay.errors import DeviceError
from tunnel import netroutes
from tunnel.netroutes import KernelRoute

pytestmark = [pytest.mark.root, needs_namespaces]

MAC, OTHER = Mac(b"\x02\0\0\0\0\x02"), Mac(b"\x02\0\0\0\0\x03")
FOUR, SIX = ip_address("10.5.2.0"), ip_address("fd05:0:0:2::")
ROUTES = [
    KernelRoute(ip_network("10.5.2.0/24"), FOUR),
    KernelRoute(ip_network("fd05:0:0:2::/64"), SIX),
]
WHOLE = KernelRoute(ip_network("10.5.0.0/16"))


@pytest.fixture
def here() -> Iterator[Namespace]:
    namespace = Namespace()
    with namespace:
        namespace.run("ip link add d0 type veth peer name d1", "ip link set d1 up")
        netroutes.ensure_quiet("d0")
        namespace.run("ip link set d0 up")
        yield namespace
    namespace.close()


def test_a_quiet_device_has_no_address_of_its_own_accord(here: Namespace) -> None:
    netroutes.ensure_quiet("d0")
    assert "fe80" not in here.run("ip -6 address show dev d0")
    assert "addrgenmode none" in here.run("ip -d link show dev d0")


def test_neighbors_are_permanent_follow_a_mac_and_go(here: Namespace) -> None:
    here.run("ip neigh add 10.5.9.9 lladdr 02:00:00:00:00:99 dev d0 nud reachable")
    for _ in range(2):
        netroutes.ensure_neighbors("d0", {FOUR: MAC, SIX: MAC})
    netroutes.ensure_neighbors("d0", {FOUR: OTHER})
    told = here.run("ip neigh show dev d0 nud permanent")
    assert "10.5.2.0 lladdr 02:00:00:00:00:03 PERMANENT" in told
    assert "fd05:0:0:2:: lladdr 02:00:00:00:00:02 PERMANENT" in told
    netroutes.remove_other_neighbors("d0", [FOUR])
    assert "fd05" not in here.run("ip neigh show dev d0")
    netroutes.remove_other_neighbors("d0", [])
    assert here.run("ip neigh show dev d0").split()[0] == "10.5.9.9"


def test_routes_come_once_and_only_ours_go(here: Namespace) -> None:
    here.run("ip route add 10.6.0.0/16 dev d0")
    for _ in range(2):
        netroutes.ensure_routes("d0", [*ROUTES, WHOLE])
    told = here.run("ip route show dev d0")
    assert "10.5.2.0/24 via 10.5.2.0 proto 119 onlink" in told
    assert "10.5.0.0/16 proto 119 scope link" in told
    assert "fd05:0:0:2::/64 via fd05:0:0:2::" in here.run("ip -6 route show dev d0")
    netroutes.remove_other_routes("d0", [WHOLE])
    netroutes.remove_other_routes("d0", [WHOLE])
    assert here.run("ip route show dev d0 proto 119").split()[0] == "10.5.0.0/16"
    netroutes.remove_other_routes("d0", [])
    assert here.run("ip route show dev d0").split()[0] == "10.6.0.0/16"
    assert "fd05" not in here.run("ip -6 route show dev d0")


@pytest.mark.usefixtures("here")
def test_a_device_that_is_gone_has_nothing_to_remove_and_takes_nothing() -> None:
    netroutes.remove_other_routes("gone", [])
    netroutes.remove_other_neighbors("gone", [])
    with pytest.raises(DeviceError):
        netroutes.ensure_neighbors("gone", {FOUR: MAC})
    with pytest.raises(DeviceError):
        netroutes.ensure_routes("gone", ROUTES)
