"""A daemon that only tells: what `control.operator.api.Introspection` asks, answered from fields.

`served` puts a real `ApiServer` in front of it, on a real Unix socket, in a thread with a loop of its
own, so that the synchronous client and the commands can be tested against the real thing.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from control.loop_lag import LoopLag
from control.operator.api import ApiServer
from control.operator.config import Config, load
from control.operator.fields import Endpoint
from control.operator.views import (
    FdbView,
    FlowView,
    GossipView,
    HealthView,
    KeysView,
    LeaseView,
    MemberView,
    NeighView,
    NetworkView,
    PeerCountsView,
    PeerView,
    RatesView,
    RouteView,
    RungsView,
    StatusView,
    TrafficView,
    UnderlayView,
    WatchEvent,
)
from overlay.addr import NetworkId
from overlay.errors import RefusedError
from overlay.verdict import DropReason

STATUS = StatusView(
    node="n1",
    version="0.1.0",
    engine="python",
    engine_reason="the native engine is not built",
    underlays=(
        UnderlayView("192.0.2.1", "eth0", 1500, RungsView("batch", "plain", "udp_gro is off")),
        UnderlayView("2001:db8::1", "eth1", 9000, RungsView("plain", "plain", "udp_gso: EIO")),
    ),
    networks=(
        NetworkView("lab", "bridge", "vxlan", 42, 4789, "weft0", 1450),
        NetworkView("pods", "routed", "flannel-udp", None, 8285, "flannel0", 1472),
    ),
    peers=PeerCountsView(alive=2, suspect=1, dead=0),
    uptime_s=11_523.4,
    rates=RatesView(91_000.0, 122_500_000.0, 108_250.0, 151_250_000.0, 12.0),
    health=(HealthView("rmem_max 212992 < 4194304", "sudo sysctl -w net.core.rmem_max=4194304"),),
)
PEERS = (
    PeerView("n2", "192.0.2.2:4789", "alive", ("lab",), 8_800_000_000, 9_100_000_000),
    PeerView("n3", "[2001:db8::3]:4789", "suspect", ("lab", "pods"), 0, 1_500, {"MTU_EXCEEDED": 7}),
)
FDB = (
    FdbView("02:00:00:00:00:02", "192.0.2.2", 42, "weft0"),
    FdbView("02:00:00:00:00:03", "192.0.2.3", 42, "weft0", "static", ("self", "extern_learn"), 8472),
    FdbView("02:00:00:00:00:04", "192.0.2.4", None, "flannel0", "permanent"),
)
NEIGHBORS = (
    NeighView("10.9.0.2", "02:00:00:00:00:02", "weft0", "REACHABLE"),
    NeighView("10.5.2.0", "02:00:00:00:00:04", "flannel0", "PERMANENT"),
)
ROUTES = (
    RouteView("pods", "10.5.1.0/24", None, None, None, "flannel0", "local"),
    RouteView("pods", "10.5.2.0/24", "192.0.2.4", "10.5.2.0", "02:00:00:00:00:04", "flannel0", "static"),
)
FLOWS = (
    FlowView(
        "lab", "egress", "02:00:00:00:00:01", "02:00:00:00:00:02", "encapsulate 192.0.2.2", 12, 18_000, 0.4
    ),
)
TRAFFIC = (TrafficView("lab", 12, 18_000, 7, 900, 2, 1, 9), TrafficView("pods", 0, 0, 0, 0, 1, 0))
DROPS: Mapping[NetworkId, Mapping[DropReason, int]] = {
    NetworkId("lab"): {DropReason.UNKNOWN_VTEP: 3, DropReason.NO_VTEP: 0, DropReason.BAD_FLAGS: 40},
    NetworkId("pods"): {DropReason.UNKNOWN_VTEP: 2},
}
MEMBERS = (
    MemberView("n1", "192.0.2.1:7946", "alive", 4, {"weft_id": "3f", "weft_epoch": "2"}),
    MemberView("n3", "[2001:db8::3]:7946", "dead", 9, {"weft_id": "5a", "weft_epoch": "1"}),
    MemberView("db", "192.0.2.9:7946", "alive", 1, {"role": "db"}),
    MemberView("old", "192.0.2.8:7946", "left", 2, {}),
)
LEASES = (
    LeaseView("pods", "10.5.1.0/24", "n1", "held"),
    LeaseView("pods", "10.5.2.0/24", "n3", "released"),
)
GOSSIP = GossipView(
    address="192.0.2.1:7946",
    encrypted=True,
    members=2,
    health=1,
    has_left=False,
    refused={"MALFORMED": 12, "WRONG_KEY": 3},
)
OLD_KEY, NEW_KEY = "b2xkb2xkb2xkb2xkb2xkbw==", "bmV3bmV3bmV3bmV3bmV3bg=="
KEY_LIST = KeysView(3, 3, {}, {OLD_KEY: 3, NEW_KEY: 2}, {OLD_KEY: 3})
EVENTS = (
    WatchEvent(1_700_000_000.25, "drop", "lab", "UNKNOWN_VTEP from 192.0.2.9", {"reason": "UNKNOWN_VTEP"}),
    WatchEvent(1_700_000_001.5, "peer", None, "n3 is suspect"),
)


@dataclass
class FakePool:
    """Notes what it is asked, and answers what its fields hold: `control.operator.api.PoolControl`.

    Attributes:
        absent: Hosts that nobody answers for.
        refusal: What is raised instead of anything done, or None.
    """

    asked: list[tuple[object, ...]] = field(default_factory=list)
    absent: tuple[str, ...] = ()
    refusal: RefusedError | None = None
    answer: KeysView = KEY_LIST

    async def join(self, hosts: Iterable[str]) -> list[tuple[str, str | None]]:
        self._note("join", *hosts)
        return [(host, "no answer" if host in self.absent else None) for host in hosts]

    async def leave(self) -> None:
        self._note("leave")

    async def keys(self, step: str, key: str | None) -> KeysView:
        self._note("keys", step, key)
        return self.answer

    async def release(self, subnet: str) -> None:
        self._note("release", subnet)

    async def adopt(self, without: Iterable[str]) -> Mapping[str, int]:
        self._note("adopt", *without)
        return {"pods": 3}

    def _note(self, *asked: object) -> None:
        self.asked.append(asked)
        if self.refusal is not None:
            raise self.refusal


@dataclass
class FakeDaemon:
    """Tells what its fields hold.  `watch` gives the events and then waits, or ends if told to.

    Attributes:
        pool: What an operator may ask, or None: gossip is off.
    """

    live: bool = True
    ready: bool = True
    alive: int = 2
    pool: FakePool | None = None
    watch_ends: bool = False
    watches_open: int = 0
    watch_closed: threading.Event = field(default_factory=threading.Event)

    def status(self) -> StatusView:
        gossip = GOSSIP if self.pool is not None else None
        return replace(STATUS, peers=replace(STATUS.peers, alive=self.alive), gossip=gossip)

    def members(self) -> Sequence[MemberView]:
        return MEMBERS

    def leases(self) -> Sequence[LeaseView]:
        return LEASES

    def peers(self) -> Sequence[PeerView]:
        return PEERS

    def fdb(self) -> Sequence[FdbView]:
        return FDB

    def neighbors(self) -> Sequence[NeighView]:
        return NEIGHBORS

    def routes(self) -> Sequence[RouteView]:
        return ROUTES

    def flows(self) -> Sequence[FlowView]:
        return FLOWS

    def traffic(self) -> Sequence[TrafficView]:
        return TRAFFIC

    def config(self) -> Config:
        return load(None, {"name": "n1", "vni": "42"}, {})

    def drops(self) -> Mapping[NetworkId, Mapping[DropReason, int]]:
        return DROPS

    def loop_lag(self) -> LoopLag:
        return LoopLag(0.001, 0.02, 0.5)

    def is_live(self) -> bool:
        return self.live

    def is_ready(self) -> bool:
        return self.ready

    async def watch(self) -> AsyncGenerator[WatchEvent, None]:
        self.watches_open += 1
        try:
            for event in EVENTS:
                yield event
            if not self.watch_ends:
                await asyncio.Event().wait()
        finally:
            self.watches_open -= 1
            self.watch_closed.set()


@contextmanager
def served(daemon: FakeDaemon, path: Path, *, listen: Endpoint | None = None) -> Iterator[ApiServer]:
    """The daemon behind its API, until the block is left."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="api")
    thread.start()
    server = ApiServer(daemon, path=str(path), listen=listen, pool=daemon.pool)
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.close(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
