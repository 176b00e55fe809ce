"""The FDB against a dictionary: whatever is done to it, look-ups, the way back and ageing agree."""

from __future__ import annotations

from ipaddress import ip_address

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from support.doubles import mac

from overlay.addr import Mac, VtepId
from overlay.fdb import Fdb, FdbEntry, Origin

MACS = st.integers(0, 5).map(mac)
VTEPS = st.integers(1, 3).map(lambda host: ip_address(f"192.0.2.{host}"))
ORIGINS = st.sampled_from(Origin)
SECONDS = st.integers(0, 20).map(float)


class FdbModel(RuleBasedStateMachine):
    """One dictionary, searched from end to end each time."""

    def __init__(self) -> None:
        super().__init__()
        self.fdb = Fdb()
        self.twin: dict[Mac, FdbEntry] = {}

    @rule(address=MACS, vtep=VTEPS, origin=ORIGINS, seen_at=SECONDS)
    def replace(self, address: Mac, vtep: VtepId, origin: Origin, seen_at: float) -> None:
        before = self.twin.get(address)
        self.twin[address] = FdbEntry(address, vtep, origin, seen_at)
        is_visible = before is None or before.vtep != vtep or before.origin is not origin
        assert self.fdb.replace(self.twin[address]) == is_visible

    @rule(address=MACS, vtep=VTEPS, seen_at=SECONDS)
    def refresh(self, address: Mac, vtep: VtepId, seen_at: float) -> None:
        entry = self.twin.get(address)
        if entry is not None and entry.vtep == vtep:
            latest = max(entry.seen_at, seen_at)
            self.twin[address] = FdbEntry(address, vtep, entry.origin, latest)
        self.fdb.refresh(address, vtep, seen_at)

    @rule(address=MACS)
    def remove(self, address: Mac) -> None:
        assert self.fdb.remove(address) == (self.twin.pop(address, None) is not None)

    @rule(now=SECONDS, ageing=st.integers(1, 10).map(float))
    def age(self, now: float, ageing: float) -> None:
        due = {
            entry.mac
            for entry in self.twin.values()
            if entry.origin is Origin.LEARNED and entry.seen_at <= now - ageing
        }
        assert set(self.fdb.aged(now=now, ageing=ageing)) == due

    @invariant()
    def every_look_up_agrees(self) -> None:
        assert len(self.fdb) == len(self.twin)
        assert {entry.mac: entry for entry in self.fdb.entries()} == self.twin
        assert all(self.fdb.lookup(mac(number)) == self.twin.get(mac(number)) for number in range(6))

    @invariant()
    def the_way_back_agrees(self) -> None:
        for host in range(1, 4):
            vtep = ip_address(f"192.0.2.{host}")
            behind = {entry.mac for entry in self.twin.values() if entry.vtep == vtep}
            assert self.fdb.behind(vtep) == behind


TestFdb = FdbModel.TestCase


def test_ten_thousand_macs_fit_behind_one_vtep() -> None:
    fdb = Fdb()
    vtep = ip_address("192.0.2.2")
    for number in range(10_000):
        fdb.replace(FdbEntry(mac(number), vtep, Origin.LEARNED, 0.0))
    assert len(fdb.behind(vtep)) == len(fdb) == 10_000
    for number in range(10_000):
        assert fdb.remove(mac(number))
    assert fdb.behind(vtep) == frozenset()
