"""What must be done to the tables now and then: refresh what was seen, age what was not.  Pure.

An engine remembers flows and does not tell the tables of every frame, so a MAC that talks through one
remembered flow for an hour would age out.  `refresh` turns what the flows carried into the time their
sources were last seen, only while the FDB still binds them to that VTEP.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from overlay.addr import Mac, NetworkId, VtepId
from overlay.tables import Change, FdbRefresh, FdbRemove, NeighborRemove, NetworkTables, TableDelta


class Seen(Protocol):
    """A source MAC an engine has carried frames of."""

    @property
    def network(self) -> NetworkId: ...
    @property
    def mac(self) -> Mac: ...
    @property
    def vtep(self) -> VtepId: ...
    @property
    def used_at(self) -> float: ...


def refresh(activity: Iterable[Seen]) -> TableDelta:
    """The delta that notes when each MAC was last seen."""
    return TableDelta(tuple(FdbRefresh(seen.network, seen.mac, seen.vtep, seen.used_at) for seen in activity))


def aged(network: NetworkId, tables: NetworkTables, *, now: float, ageing: float) -> TableDelta:
    """The delta that removes what was learned and not seen for `ageing` seconds."""
    changes: list[Change] = [FdbRemove(network, mac) for mac in tables.fdb.aged(now=now, ageing=ageing)]
    changes += [NeighborRemove(network, address) for address in tables.neighbors.aged(now=now, ageing=ageing)]
    return TableDelta(tuple(changes))
