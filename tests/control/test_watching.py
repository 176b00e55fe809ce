"""A watcher sees what changes and what is lost; nobody pays for it while there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest
from support.doubles import (
    LOCAL,
    NETWORK,
    PORT,
    REMOTE,
    STRANGER,
    VTEP_B,
    VTEP_C,
    Engine,
    balanced_engines,
    frame,
)

from control.operator.views import WatchEvent
from control.watching import DROP_EVENTS_PER_SECOND, EVENTS_HELD, Events
from overlay.addr import Vtep
from overlay.fdb import Origin
from overlay.tables import FdbRemove, FdbReplace, NeighborReplace, VtepRemove, VtepReplace
from overlay.verdict import Drop, DropReason
from tunnel.flannel_udp import ETHERNET
from tunnel.interfaces import Point

IN = frame(LOCAL, REMOTE)


@pytest.fixture
def engine() -> Iterator[Engine]:
    with balanced_engines() as make:
        yield make()


def watched(
    engine: Engine, happening: Callable[[], object], *, events: Events | None = None
) -> list[WatchEvent]:
    """The events a watcher gets of what happens, and after it has gone nobody watches."""
    source = events or Events(engine.datapath, engine.tables, engine.clock)

    async def watch() -> list[WatchEvent]:
        stream = source.subscribe()
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)  # the stream is open once it waits
        happening()
        source.publish("end", None, "")
        seen = [await first]
        while seen[-1].kind != "end":
            seen.append(await anext(stream))
        await stream.aclose()
        return seen[:-1]

    return asyncio.run(watch())


def test_tables_that_change_are_told(engine: Engine) -> None:
    def happening() -> None:
        engine.from_underlay(IN)
        engine.apply(FdbRemove(NETWORK, REMOTE))
        engine.apply(VtepReplace(NETWORK, Vtep(VTEP_C, PORT)))
        engine.apply(VtepRemove(NETWORK, VTEP_C))

    told = [(event.kind, event.network, event.text) for event in watched(engine, happening)]
    assert told == [
        ("learn", NETWORK, f"02:0b:00:00:00:01 is behind {VTEP_B}"),
        ("age", NETWORK, "02:0b:00:00:00:01 is no longer behind the tunnel"),
        ("peer", NETWORK, f"VTEP {VTEP_C}:{PORT} joined"),
        ("peer", NETWORK, f"VTEP {VTEP_C} left"),
    ]


def test_what_a_delta_names_and_does_not_change_is_no_event(engine: Engine) -> None:
    engine.from_underlay(IN)
    again = (
        FdbReplace(NETWORK, REMOTE, VTEP_B, Origin.LEARNED, 1.0),
        FdbRemove(NETWORK, LOCAL),
        VtepRemove(NETWORK, VTEP_C),
    )
    news = NeighborReplace(NETWORK, ip_address("10.9.0.1"), REMOTE, Origin.LEARNED, 1.0)
    assert watched(engine, lambda: engine.apply(*again, news)) == []


def test_news_of_the_pool_are_told_of_the_whole_node(engine: Engine) -> None:
    source = Events(engine.datapath, engine.tables, engine.clock)
    (event,) = watched(engine, lambda: source.tell_peer("member n2 192.0.2.2:7946 is dead"), events=source)
    assert (event.kind, event.network) == ("peer", None)
    assert event.text == "member n2 192.0.2.2:7946 is dead"


def test_a_drop_is_told_with_its_reason_and_addresses(engine: Engine) -> None:
    (event,) = watched(engine, lambda: engine.from_underlay(IN, sender=STRANGER))
    assert (event.kind, event.network) == ("drop", NETWORK)
    assert event.detail == {
        "reason": "UNKNOWN_VTEP",
        "octets": len(IN),
        "src": "02:0b:00:00:00:01",
        "dst": "02:0a:00:00:00:01",
    }
    assert event.text == f"UNKNOWN_VTEP 02:0b:00:00:00:01 → 02:0a:00:00:00:01 {len(IN)} octets"


@pytest.mark.parametrize("datagram", [b"short", bytes.fromhex("0800000000002a00ff") + b"\xff" * 9])
def test_a_datagram_too_short_for_a_frame_is_told_without_addresses(engine: Engine, datagram: bytes) -> None:
    (event,) = watched(engine, lambda: engine.datagrams(datagram))
    assert event.detail == {"reason": "TRUNCATED", "octets": len(datagram)}
    assert event.text == f"TRUNCATED {len(datagram)} octets"


def test_a_bare_packet_is_of_no_two_stations(engine: Engine) -> None:
    source = Events(engine.datapath, engine.tables, engine.clock)

    def happening() -> None:
        source.observe(Point.DROP, NETWORK, ETHERNET + bytes(20), Drop(DropReason.NO_ROUTE))

    (event,) = watched(engine, happening, events=source)
    assert event.detail == {"reason": "NO_ROUTE", "octets": 34}


def test_a_flood_of_drops_is_a_counter_and_no_stream(engine: Engine) -> None:
    def flood() -> None:
        for _ in range(5):
            engine.from_underlay(*[IN] * 100, sender=STRANGER)
        engine.from_underlay(IN, vni=43)  # another reason has its own share

    events = watched(engine, flood)
    assert len(events) == DROP_EVENTS_PER_SECOND + 1


def test_a_watcher_that_does_not_read_loses_events_and_holds_up_nobody(engine: Engine) -> None:
    source = Events(engine.datapath, engine.tables, engine.clock)

    async def sleepy() -> list[WatchEvent]:
        stream = source.subscribe()
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        for number in range(EVENTS_HELD + 100):
            source.publish("count", None, str(number))
        seen = [await first]
        seen += [await anext(stream) for _ in range(EVENTS_HELD - 1)]
        source.publish("count", None, "later")
        seen.append(await anext(stream))
        await stream.aclose()
        return seen

    texts = [event.text for event in asyncio.run(sleepy())]
    assert texts == [*(str(number) for number in range(EVENTS_HELD)), "later"]


def test_who_went_is_not_watched_for(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Events(engine.datapath, engine.tables, engine.clock)
    assert len(watched(engine, lambda: engine.from_underlay(IN, sender=STRANGER), events=source)) == 1

    def called(*_: object) -> None:
        raise AssertionError("expected no call while nobody watches")

    monkeypatch.setattr(source, "observe", called)
    engine.from_underlay(IN, sender=STRANGER)
