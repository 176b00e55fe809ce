"""What is used stays young, what is not ages out, and neither touches what was never learned."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from support.doubles import (
    LOCAL,
    NETWORK,
    REMOTE,
    UNKNOWN,
    VTEP_B,
    VTEP_C,
    Engine,
    balanced_engines,
    frame,
    mac,
)

from control.daemon import UPKEEP_SECONDS
from control.upkeep import LOOK_PAUSE_MAX, aged, look_pause, refresh
from overlay.addr import Mac
from overlay.fdb import Origin
from overlay.tables import FdbRemove, FdbReplace, NeighborReplace, TableDelta
from tunnel.flows import IDLE_SECONDS
from tunnel.interfaces import Activity

AGEING = 300.0
IP = ip_address("10.9.0.1")


@pytest.fixture
def engine() -> Iterator[Engine]:
    with balanced_engines() as make:
        yield make(vteps=(VTEP_B, VTEP_C))


def keep_up(engine: Engine, *, since: float) -> None:
    """What the daemon does now and then."""
    engine.tables.apply(refresh(engine.datapath.activity(since=since)))
    now = engine.clock.now
    engine.tables.apply(aged(NETWORK, engine.tables[NETWORK], now=now, ageing=AGEING))


def is_known(engine: Engine, address: Mac) -> bool:
    return engine.tables[NETWORK].fdb.lookup(address) is not None


def test_a_mac_that_talks_through_one_remembered_flow_does_not_age(engine: Engine) -> None:
    silent = frame(LOCAL, UNKNOWN)
    engine.from_underlay(frame(LOCAL, REMOTE), silent)
    for _ in range(20):
        since = engine.clock.now
        engine.clock.advance(AGEING / 10)
        engine.from_underlay(frame(LOCAL, REMOTE))
        keep_up(engine, since=since)
    assert is_known(engine, REMOTE)
    assert not is_known(engine, UNKNOWN)


def test_a_mac_that_aged_out_is_flooded_to_again(engine: Engine) -> None:
    engine.from_underlay(frame(LOCAL, REMOTE))
    engine.from_device(frame(REMOTE, LOCAL))
    engine.clock.advance(AGEING)
    keep_up(engine, since=engine.clock.now)
    engine.from_device(frame(REMOTE, LOCAL))
    assert [sent.to[0] for sent in engine.sent] == [str(VTEP_B), str(VTEP_B), str(VTEP_C)]


def test_a_mac_that_aged_out_is_learned_again_from_its_next_frame(engine: Engine) -> None:
    engine.from_underlay(frame(LOCAL, REMOTE))
    engine.clock.advance(AGEING)
    engine.tables.apply(aged(NETWORK, engine.tables[NETWORK], now=engine.clock.now, ageing=AGEING))
    assert not is_known(engine, REMOTE)
    engine.from_underlay(frame(LOCAL, REMOTE))
    assert is_known(engine, REMOTE)


def test_what_was_seen_before_a_mac_moved_does_not_keep_it_where_it_went(engine: Engine) -> None:
    engine.apply(FdbReplace(NETWORK, REMOTE, VTEP_C, Origin.LEARNED, 10.0))
    engine.tables.apply(refresh([Activity(NETWORK, REMOTE, VTEP_B, 200.0)]))
    entry = engine.tables[NETWORK].fdb.lookup(REMOTE)
    assert entry is not None
    assert (entry.vtep, entry.seen_at) == (VTEP_C, 10.0)


def test_refreshing_forgets_no_flow(engine: Engine) -> None:
    engine.from_underlay(frame(LOCAL, REMOTE))
    upcalls = engine.statistics().upcalls
    engine.clock.advance(1.0)
    engine.from_underlay(frame(LOCAL, REMOTE))
    keep_up(engine, since=engine.clock.now - 1)
    engine.from_underlay(frame(LOCAL, REMOTE))
    assert engine.statistics().upcalls == upcalls


def test_only_what_was_learned_ages(engine: Engine) -> None:
    for number, origin in enumerate(Origin):
        engine.apply(
            FdbReplace(NETWORK, mac(number), VTEP_B, origin, 0.0),
            NeighborReplace(NETWORK, IP + number, mac(number), origin, 0.0),
        )
    tables = engine.tables[NETWORK]
    delta = aged(NETWORK, tables, now=AGEING, ageing=AGEING)
    engine.tables.apply(delta)
    assert len(delta.changes) == 2
    assert {entry.origin for entry in tables.fdb.entries()} == {Origin.STATIC, Origin.CONTROL}
    assert {entry.origin for entry in tables.neighbors.entries()} == {Origin.STATIC, Origin.CONTROL}


def test_ageing_is_a_whole_time_not_an_instant_less(engine: Engine) -> None:
    engine.apply(FdbReplace(NETWORK, REMOTE, VTEP_B, Origin.LEARNED, 10.0))
    tables = engine.tables[NETWORK]
    assert aged(NETWORK, tables, now=10.0 + AGEING - 0.1, ageing=AGEING) == TableDelta(())
    assert aged(NETWORK, tables, now=10.0 + AGEING, ageing=AGEING) == TableDelta(
        (FdbRemove(NETWORK, REMOTE),)
    )


@pytest.mark.parametrize(
    ("ageing", "pause"),
    [((), 0), ((1,), 1 / 60), ((300,), 5), ((3600, 300), 5), ((86_400,), LOOK_PAUSE_MAX)],
)
def test_what_was_seen_is_looked_at_often_enough_for_the_shortest_ageing_time(
    ageing: tuple[int, ...], pause: float
) -> None:
    assert look_pause(ageing) == pytest.approx(pause)


def test_a_flow_is_looked_at_before_it_expires() -> None:
    assert LOOK_PAUSE_MAX + UPKEEP_SECONDS < IDLE_SECONDS
