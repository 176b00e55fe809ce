"""The longest prefix wins, against a twin that looks at every route; and keys name what was matched."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from overlay.fdb import Origin
from overlay.route import KEY_LENGTH, NOWHERE, IpNetwork, Route, RouteTable, subnet_key

A, B = ip_address("192.0.2.2"), ip_address("2001:db8::3")


@st.composite
def subnets(draw: st.DrawFn) -> IPv4Network:
    """Of a crowded corner of the address space, so that they contain each other."""
    base = IPv4Address("10.0.0.0") + draw(st.integers(0, 255)) * draw(st.sampled_from([1, 256, 65536]))
    return IPv4Network((base, draw(st.integers(0, 32))), strict=False)


ADDRESSES = st.integers(0, (1 << 18) - 1).map(lambda number: IPv4Address("10.0.0.0") + number)


def naive(routes: dict[IpNetwork, Route], address: IPv4Address) -> Route | None:
    """Looks at every route there is."""
    holding = [route for subnet, route in routes.items() if address in subnet]
    return max(holding, key=lambda route: route.subnet.prefixlen, default=None)


class RoutesModel(RuleBasedStateMachine):
    """A route table beside a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.table = RouteTable()
        self.model: dict[IpNetwork, Route] = {}

    @rule(subnet=subnets(), vtep=st.sampled_from([A, B, None]))
    def replace(self, subnet: IPv4Network, vtep: IPv4Address | None) -> None:
        route = Route(subnet, vtep, Origin.STATIC)
        assert self.table.replace(route) is (self.model.get(subnet) != route)
        self.model[subnet] = route

    @rule(subnet=subnets())
    def remove(self, subnet: IPv4Network) -> None:
        assert self.table.remove(subnet) is (self.model.pop(subnet, None) is not None)

    @rule(address=ADDRESSES)
    def look_up(self, address: IPv4Address) -> None:
        expected = naive(self.model, address)
        assert self.table.lookup(address) == expected
        key = self.table.key_of(int(address))
        assert key == (NOWHERE if expected is None else subnet_key(expected.subnet))
        assert self.table.route(key) == expected

    @invariant()
    def both_hold_the_same(self) -> None:
        assert list(self.table.routes()) == list(self.model.values())
        assert len(self.table) == len(self.model)
        assert set(self.table.behind(A)) == {each.subnet for each in self.model.values() if each.vtep == A}


TestRoutes = RoutesModel.TestCase
TestRoutes.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


@given(subnets())
def test_a_key_is_of_one_subnet_and_never_nowhere(subnet: IPv4Network) -> None:
    key = subnet_key(subnet)
    assert (len(key), IPv4Network((key[:4], key[4]))) == (KEY_LENGTH, subnet)
    assert key != NOWHERE


def test_the_versions_do_not_meet() -> None:
    table = RouteTable()
    table.replace(Route(ip_network("::/0"), B, Origin.CONTROL))
    assert table.lookup(A) is None
    assert table.find(ip_network("::/0")) == table.lookup(ip_address("fd00::1"))
    table.replace(Route(ip_network("0.0.0.0/0"), A, Origin.CONTROL))
    assert table.lookup(A) == Route(ip_network("0.0.0.0/0"), A, Origin.CONTROL)
