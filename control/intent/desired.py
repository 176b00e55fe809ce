"""What the tables must hold: a pure function of what the operator and the pool say.

    desired(networks) -> {network: its VTEPs, neighbors, FDB, flood list}

Only what control is responsible for stands in it.  What the data plane has learned is nobody's intent: it
is left alone as long as its VTEP is wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from overlay.addr import IpAddress, Mac, NetworkId, Vtep, VtepId
from overlay.fdb import Origin


@dataclass(frozen=True, slots=True)
class DesiredNetwork:
    """What one network's tables must hold.

    Attributes:
        vteps: The VTEPs, by their id.
        neighbors: IP → MAC, and who says so.
        fdb: MAC → VTEP, and who says so.
        flood: Where copies go, in order.
    """

    vteps: Mapping[VtepId, Vtep] = field(default_factory=dict)
    neighbors: Mapping[IpAddress, tuple[Mac, Origin]] = field(default_factory=dict)
    fdb: Mapping[Mac, tuple[VtepId, Origin]] = field(default_factory=dict)
    flood: tuple[VtepId, ...] = ()


DesiredTables = Mapping[NetworkId, DesiredNetwork]


class NetworkIntent(Protocol):
    """What the operator says of a network, as far as the tables are concerned."""

    @property
    def id(self) -> NetworkId: ...
    @property
    def vteps(self) -> tuple[Vtep, ...]: ...


def desired(networks: Iterable[NetworkIntent]) -> DesiredTables:
    """What the tables must hold for these networks, of which only static VTEPs are known."""
    return {network.id: _bridged(network.vteps) for network in networks}


def _bridged(vteps: tuple[Vtep, ...]) -> DesiredNetwork:
    """Every VTEP gets a copy of what is replicated: the underlay is taken to carry no multicast."""
    by_id = {vtep.address: vtep for vtep in vteps}
    return DesiredNetwork(vteps=by_id, flood=tuple(by_id))
