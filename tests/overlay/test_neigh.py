"""The neighbor table against a dictionary, and the rules of when it may answer for somebody else."""

from __future__ import annotations

import math
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from support.doubles import mac

from overlay.addr import IpAddress, Mac
from overlay.fdb import Fdb, FdbEntry, Origin
from overlay.neigh import VOUCHED_SECONDS, NeighborEntry, NeighborTable

VTEP = ip_address("192.0.2.2")
IPS = st.sampled_from([ip_address(text) for text in ("10.9.0.1", "10.9.0.2", "fd09::1", "fd09::2")])
MACS = st.integers(0, 2).map(mac)
ORIGINS = st.sampled_from(Origin)
SECONDS = st.integers(0, 20).map(float)


class NeighborModel(RuleBasedStateMachine):
    """One dictionary of entries, and when each MAC behind the tunnel was last heard; inf: it is pinned."""

    def __init__(self) -> None:
        super().__init__()
        self.table = NeighborTable()
        self.fdb = Fdb()
        self.twin: dict[IpAddress, NeighborEntry] = {}
        self.heard_at: dict[Mac, float] = {}

    @rule(ip=IPS, address=MACS, origin=ORIGINS, seen_at=SECONDS, is_router=st.booleans())
    def replace(self, ip: IpAddress, address: Mac, origin: Origin, seen_at: float, is_router: bool) -> None:
        entry = NeighborEntry(ip, address, origin, seen_at, is_router)
        before = self.twin.get(ip)
        self.twin[ip] = entry
        is_visible = before is None or (before.mac, before.origin, before.is_router) != (
            address,
            origin,
            is_router,
        )
        assert self.table.replace(entry) == is_visible

    @rule(ip=IPS)
    def remove(self, ip: IpAddress) -> None:
        assert self.table.remove(ip) == (self.twin.pop(ip, None) is not None)

    @rule(address=MACS, seen_at=SECONDS, origin=ORIGINS)
    def hear(self, address: Mac, seen_at: float, origin: Origin) -> None:
        self.fdb.replace(FdbEntry(address, VTEP, origin, seen_at))
        self.heard_at[address] = seen_at if origin is Origin.LEARNED else math.inf

    @rule(address=MACS)
    def lose(self, address: Mac) -> None:
        self.fdb.remove(address)
        self.heard_at.pop(address, None)

    @rule(now=SECONDS, ageing=st.integers(1, 10).map(float))
    def age(self, now: float, ageing: float) -> None:
        due = {
            ip
            for ip, entry in self.twin.items()
            if entry.origin is Origin.LEARNED and entry.seen_at + ageing <= now
        }
        assert set(self.table.aged(now=now, ageing=ageing)) == due

    @invariant()
    def every_look_up_agrees(self) -> None:
        assert len(self.table) == len(self.twin)
        assert {entry.address: entry for entry in self.table.entries()} == self.twin

    @invariant()
    def an_answer_is_given_exactly_when_the_owner_would_give_it(self) -> None:
        for ip, entry in self.twin.items():
            assert self.table.lookup(ip) == entry
            is_certain = entry.origin is not Origin.LEARNED
            for now in (20.0, 20.0 + VOUCHED_SECONDS, 21.0 + VOUCHED_SECONDS):
                is_heard = self.heard_at.get(entry.mac, -math.inf) >= now - VOUCHED_SECONDS
                asked = self.table.suppress(ip, is_probe=False, fdb=self.fdb, now=now)
                probed = self.table.suppress(ip, is_probe=True, fdb=self.fdb, now=now)
                assert asked == (entry if is_certain or is_heard else None)
                assert probed == (entry if is_certain else None)


TestNeighborTable = NeighborModel.TestCase


def test_of_an_unknown_address_nothing_is_said() -> None:
    assert NeighborTable().suppress(ip_address("10.9.0.1"), is_probe=False, fdb=Fdb(), now=0.0) is None


@pytest.mark.parametrize("origin", Origin)
def test_being_seen_again_changes_no_answer(origin: Origin) -> None:
    table = NeighborTable()
    entry = NeighborEntry(ip_address("10.9.0.1"), mac(1), origin, seen_at=1.0)
    assert table.replace(entry)
    assert not table.replace(replace(entry, seen_at=2.0))
    assert table.lookup(entry.address) == replace(entry, seen_at=2.0)
