"""The plan from what is to what must be: ordered, idempotent steps, each a delta for `Tables.apply`.

    programmed   VTEP → neighbor → FDB → flood list → route
    withdrawn    route → flood list → FDB → neighbor → VTEP

A frame may come between any two steps.  In this order none is ever flooded to a VTEP that is not there,
nor sent to one by an entry that outlived it; and a question is answered before its answer is reachable,
never the reverse.  Where everything is as it must be the plan is empty.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from control.intent.desired import DesiredNetwork, DesiredTables
from overlay.addr import NetworkId, format_mac
from overlay.fdb import Origin
from overlay.route import Route
from overlay.tables import (
    Change,
    FdbRemove,
    FdbReplace,
    FloodReplace,
    NeighborRemove,
    NeighborReplace,
    NetworkTables,
    RouteRemove,
    RouteReplace,
    TableDelta,
    Tables,
    VtepRemove,
    VtepReplace,
)


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do, in words for the log, and as a delta."""

    what: str
    delta: TableDelta


def reconcile(desired: DesiredTables, actual: Tables, *, now: float) -> tuple[Step, ...]:
    """The steps that make the tables of the desired networks hold what is desired.

    Args:
        desired: Networks that are not in it are left alone.
        actual: Has every network of `desired`.
        now: What new entries say of when they were seen, monotonic seconds.
    """
    return tuple(
        Step(what, TableDelta((change,)))
        for network, wanted in desired.items()
        for what, change in _plan(network, wanted, actual[network], now)
    )


def _plan(
    network: NetworkId, wanted: DesiredNetwork, actual: NetworkTables, now: float
) -> Iterator[tuple[str, Change]]:
    yield from _programmed(network, wanted, actual, now)
    # One replacement both programs and withdraws: it stands between the two halves.
    if actual.flood.vteps() != wanted.flood:
        yield f"{network}: flood to {len(wanted.flood)} VTEPs", FloodReplace(network, wanted.flood)
    for subnet, (vtep, origin) in wanted.routes.items():
        if actual.routes.find(subnet) != Route(subnet, vtep, origin):
            what = f"{network}: {subnet} is {'ours' if vtep is None else f'behind {vtep}'}"
            yield what, RouteReplace(network, subnet, vtep, origin)
    yield from _withdrawn(network, wanted, actual)


def _programmed(
    network: NetworkId, wanted: DesiredNetwork, actual: NetworkTables, now: float
) -> Iterator[tuple[str, Change]]:
    for vtep in wanted.vteps.values():
        if actual.vteps.get(vtep.address) != vtep:
            yield f"{network}: VTEP {vtep}", VtepReplace(network, vtep)
    for address, (mac, origin) in wanted.neighbors.items():
        neighbor = actual.neighbors.lookup(address)
        if neighbor is None or (neighbor.mac, neighbor.origin) != (mac, origin):
            what = f"{network}: neighbor {address} is {format_mac(mac)}"
            yield what, NeighborReplace(network, address, mac, origin, now)
    for mac, (vtep_id, origin) in wanted.fdb.items():
        entry = actual.fdb.lookup(mac)
        if entry is None or (entry.vtep, entry.origin) != (vtep_id, origin):
            what = f"{network}: {format_mac(mac)} is behind {vtep_id}"
            yield what, FdbReplace(network, mac, vtep_id, origin, now)


def _withdrawn(
    network: NetworkId, wanted: DesiredNetwork, actual: NetworkTables
) -> Iterator[tuple[str, Change]]:
    for route in actual.routes.routes():
        if route.subnet not in wanted.routes:
            yield f"{network}: forget {route.subnet}", RouteRemove(network, route.subnet)
    for entry in actual.fdb.entries():
        if entry.origin is not Origin.LEARNED and entry.mac not in wanted.fdb:
            yield f"{network}: forget {format_mac(entry.mac)}", FdbRemove(network, entry.mac)
    for neighbor in actual.neighbors.entries():
        if neighbor.origin is not Origin.LEARNED and neighbor.address not in wanted.neighbors:
            yield f"{network}: forget neighbor {neighbor.address}", NeighborRemove(network, neighbor.address)
    for vtep in tuple(actual.vteps.values()):
        if vtep.address not in wanted.vteps:
            yield f"{network}: VTEP {vtep} left", VtepRemove(network, vtep.address)
