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

# Ours
LOOK_SHARE = 1 / 60  # of an ageing time: so much later than due a MAC may be forgotten
LOOK_PAUSE_MAX = 10.0  # seconds, less than a flow stays remembered that carries nothing


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


def look_pause(ageing: Iterable[float]) -> float:
    """Seconds between two looks at what was seen, for networks with these ageing times.

    A look at ten thousand MACs that talk keeps the loop for 70 ms.  What a flow carried between the last look
    and its being forgotten, for a change of the tables, is not seen.
    """
    return min(min(ageing, default=0.0) * LOOK_SHARE, LOOK_PAUSE_MAX)


def refresh(activity: Iterable[Seen]) -> TableDelta:
    """The delta that notes when each MAC was last seen."""
    return TableDelta(tuple(FdbRefresh(seen.network, seen.mac, seen.vtep, seen.used_at) for seen in activity))


def aged(network: NetworkId, tables: NetworkTables, *, now: float, ageing: float) -> TableDelta:
    """The delta that removes what was learned and not seen for `ageing` seconds."""
    changes: list[Change] = [FdbRemove(network, mac) for mac in tables.fdb.aged(now=now, ageing=ageing)]
    changes += [NeighborRemove(network, address) for address in tables.neighbors.aged(now=now, ageing=ageing)]
    return TableDelta(tuple(changes))
