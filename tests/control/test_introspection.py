"""What the daemon tells is what engine, tables and configuration hold; rates are taken between samples."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from ipaddress import ip_address
from typing import Any

import pytest
from support.doubles import (
    LOCAL,
    NETWORK,
    OURS,
    OWN_MAC,
    PORT,
    REMOTE,
    STRANGER,
    UNKNOWN,
    VTEP_B,
    VTEP_C,
    Engine,
    balanced_engines,
    frame,
    mac,
)

from control.intent.shared import Trouble
from control.introspection import ELSEWHERE, Introspector, Parts, Rates
from control.membership.events import Refusal, SwimStatistics
from control.membership.member import VERSIONS, Endpoint, Member, MemberState
from control.membership.records import RecordStatistics, Refused
from control.membership.tags import encode_tags, tags_of
from control.mistakes import MISTAKE_SECONDS
from control.operator.config import load
from control.operator.schema import Config, NetworkConfig
from control.operator.views import HealthView, PeerCountsView, RatesView, plain
from control.steering import Steering
from control.watching import Events
from overlay.addr import NetworkId, Vtep, VtepId
from overlay.bridge import BridgePolicy
from overlay.errors import DeviceError
from overlay.fdb import Origin
from overlay.tables import (
    FdbReplace,
    NeighborReplace,
    VtepRemove,
    VtepReplace,
)
from overlay.verdict import DropReason
from tunnel.datapath import Choice
from tunnel.interfaces import DatapathStatistics, Ledger, VtepStatistics

WEFT: Mapping[str, str] = {"weft_id": "3f"}


def configured() -> Config:
    flags = {"name": "n1", "vni": "42", "device": "lab", "underlay": str(OURS)}
    return load(None, flags, {})


@dataclass
class Served:
    """A network as the introspector sees it."""

    config: NetworkConfig
    mtu: int = 1450
    problem: DeviceError | None = None
    unwritten: DeviceError | None = None

    @property
    def id(self) -> NetworkId:
        return self.config.id


@dataclass
class Pooled:
    """A pool as the introspector sees it; it is its own core."""

    members: list[Member] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    unsaid: list[str] = field(default_factory=list)
    vteps: dict[str, tuple[VtepId, ...]] = field(default_factory=dict)
    unleased: list[Trouble] = field(default_factory=list)
    unheard: dict[Refused, int] = field(default_factory=dict)
    blamed: dict[Refused, str] = field(default_factory=dict)
    unwritten: list[DeviceError] = field(default_factory=list)
    unreached: Trouble | None = None
    health: int = 0
    refused: dict[Refusal, int] = field(default_factory=dict)
    has_left: bool = False
    is_encrypted: bool = True

    @property
    def core(self) -> Pooled:
        return self

    @property
    def ourselves(self) -> Member:
        return somebody("n1", "192.0.2.1")

    def vteps_of(self, name: str) -> tuple[VtepId, ...]:
        return self.vteps.get(name, ())

    def lease_troubles(self) -> list[Trouble]:
        return self.unleased

    def record_counts(self) -> RecordStatistics:
        return RecordStatistics(3, 1, 2, 0, 0, 0, self.unheard, self.blamed)

    def tags(self, name: str) -> Mapping[str, str]:
        return next(tags_of(member.meta) for member in self.members if member.name == name)

    def statistics(self) -> SwimStatistics:
        here = sum(member.is_here for member in self.members)
        counts = dict.fromkeys((each.name for each in fields(SwimStatistics)), 0)
        told = counts | {"alive": here, "health": self.health, "refused": self.refused}
        return SwimStatistics(**as_anything(told))


def somebody(
    name: str, host: str, state: MemberState = MemberState.ALIVE, tags: Mapping[str, str] = WEFT
) -> Member:
    return Member(name, Endpoint(host, 7946), 3, state, encode_tags(tags), VERSIONS, 0.0)


class Node:
    """An introspector before an engine between doubles."""

    def __init__(self, engine: Engine, *, pool: Pooled | None = None) -> None:
        self.engine = engine
        self.pool = pool
        config = configured()
        self.served = Served(config.networks[0])
        assert self.served.id == NETWORK
        self.steering = Steering([OURS])
        parts = Parts(
            version="0.1.0",
            engine=Choice("python", "asked for"),
            tables=engine.tables,
            datapath=engine.datapath,
            networks=as_anything({NETWORK: self.served}),
            underlays=as_anything(tuple(engine.underlays)),
            pool=as_anything(pool),
            clock=engine.clock,
            steering=self.steering,
        )
        events = Events(engine.datapath, engine.tables, engine.clock)
        self.introspector = Introspector(config, parts, events)


def as_anything(value: object) -> Any:
    """For doubles that are only like the real thing."""
    return value


@pytest.fixture
def node() -> Iterator[Node]:
    with balanced_engines() as make:
        yield Node(make(vteps=(VTEP_B, VTEP_C)))


Pooling = Callable[[Pooled], Node]


@pytest.fixture
def pooled() -> Iterator[Pooling]:
    """A node in that pool."""
    with balanced_engines() as make:
        yield lambda pool: Node(make(vteps=(VTEP_B, VTEP_C)), pool=pool)


# ── Tables ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_fdb_is_shown_as_bridge_shows_it(node: Node) -> None:
    engine = node.engine
    engine.apply(VtepReplace(NETWORK, Vtep(VTEP_C, 8472)))
    for number, origin in enumerate(Origin):
        engine.apply(FdbReplace(NETWORK, mac(number), VTEP_C, origin, 0.0))
    shown = plain(node.introspector.fdb())
    on_b = {"dst": str(VTEP_B), "vni": 42, "ifname": "lab"}
    on_c = {"dst": str(VTEP_C), "vni": 42, "ifname": "lab", "port": 8472}  # a port of its own is told
    assert shown == [
        {"mac": "00:00:00:00:00:00", **on_b, "state": "permanent", "flags": ["self"]},
        {"mac": "00:00:00:00:00:00", **on_c, "state": "permanent", "flags": ["self"]},
        {"mac": "02:aa:00:00:00:00", **on_c, "state": "permanent", "flags": ["self"]},
        {"mac": "02:aa:00:00:00:01", **on_c, "state": "", "flags": ["extern_learn", "self"]},
        {"mac": "02:aa:00:00:00:02", **on_c, "state": "", "flags": ["self"]},
    ]


@pytest.mark.parametrize(
    ("origin", "state"),
    [(Origin.LEARNED, "REACHABLE"), (Origin.CONTROL, "PERMANENT"), (Origin.STATIC, "PERMANENT")],
)
def test_a_neighbor_is_shown_with_how_sure_it_is(node: Node, origin: Origin, state: str) -> None:
    node.engine.apply(NeighborReplace(NETWORK, ip_address("fd09::1"), REMOTE, origin, 0.0))
    (shown,) = plain(node.introspector.neighbors())
    assert shown == {"ip": "fd09::1", "mac": "02:0b:00:00:00:01", "dev": "lab", "state": state}


def test_flows_are_shown_in_words_with_their_idle_time(node: Node) -> None:
    node.engine.bind(REMOTE)
    node.engine.from_device(frame(REMOTE, LOCAL), frame(REMOTE, LOCAL), frame(UNKNOWN, LOCAL))
    node.engine.from_underlay(frame(LOCAL, mac(1)), frame(REMOTE, mac(1)))
    node.engine.clock.advance(2.5)
    flows = node.introspector.flows()
    assert {(flow.direction, flow.src, flow.dst, flow.verdict) for flow in flows} == {
        ("egress", "02:0a:00:00:00:01", "02:0b:00:00:00:01", f"encapsulate {VTEP_B}"),
        ("egress", "02:0a:00:00:00:01", "02:0f:00:00:00:01", "replicate"),
        ("ingress", "02:aa:00:00:00:01", "02:0a:00:00:00:01", "deliver"),
        ("ingress", "02:aa:00:00:00:01", "02:0b:00:00:00:01", "drop SPLIT_HORIZON"),
    }
    assert {flow.idle_s for flow in flows} == {2.5}
    assert {flow.frames for flow in flows} == {1, 2}


# ── Peers, drops, traffic ───────────────────────────────────────────────────────────────────────────────


def test_a_static_peer_is_shown_once_with_what_was_exchanged(node: Node) -> None:
    node.engine.bind(REMOTE)
    node.engine.from_device(frame(REMOTE, LOCAL))
    node.engine.from_underlay(frame(LOCAL, REMOTE), frame(LOCAL, REMOTE))
    peers = {peer.name: peer for peer in node.introspector.peers()}
    octets = len(frame(REMOTE, LOCAL))
    of_b, of_c = peers[str(VTEP_B)], peers[str(VTEP_C)]
    assert (of_b.underlay, of_b.state, of_b.networks) == (f"{VTEP_B}:{PORT}", "alive", (NETWORK,))
    assert (of_b.tx_octets, of_b.rx_octets) == (octets, 2 * octets)
    assert (of_c.tx_octets, of_c.rx_octets) == (0, 0)
    assert node.introspector.status().peers == PeerCountsView(alive=2, suspect=0, dead=0)


def test_a_peers_drops_are_told_over_all_its_networks_without_the_zeros(node: Node) -> None:
    node.engine.from_underlay(frame(LOCAL, OWN_MAC), frame(LOCAL, OWN_MAC))
    peers = {peer.name: peer for peer in node.introspector.peers()}
    assert (peers[str(VTEP_B)].drops, peers[str(VTEP_C)].drops) == ({"OWN_MAC": 2}, {})


def test_drops_are_told_by_network_and_those_of_none_apart(node: Node) -> None:
    node.engine.from_underlay(frame(LOCAL, REMOTE), sender=STRANGER)
    node.engine.from_underlay(frame(LOCAL, REMOTE), vni=43)
    assert node.introspector.drops() == {
        NETWORK: {DropReason.UNKNOWN_VTEP: 1},
        ELSEWHERE: {DropReason.UNKNOWN_VNI: 1},
    }


def test_traffic_is_the_sum_over_vteps(node: Node) -> None:
    node.engine.from_device(frame(UNKNOWN, LOCAL))  # a copy to each of two
    node.engine.from_underlay(frame(LOCAL, REMOTE))
    (traffic,) = node.introspector.traffic()
    octets = len(frame(UNKNOWN, LOCAL))
    assert (traffic.egress_frames, traffic.egress_octets) == (2, 2 * octets)
    assert (traffic.ingress_frames, traffic.ingress_octets) == (1, octets)
    assert (traffic.fdb_entries, traffic.flows) == (1, 2)


# ── Status and health ───────────────────────────────────────────────────────────────────────────────────


def test_status_says_who_it_is_and_what_it_carries(node: Node) -> None:
    node.engine.clock.advance(12.5)
    status = node.introspector.status()
    assert (status.node, status.version, status.engine, status.uptime_s) == ("n1", "0.1.0", "python", 12.5)
    (network,) = status.networks
    assert (network.name, network.vni, network.port, network.device, network.mtu) == (
        NETWORK,
        42,
        PORT,
        "lab",
        1450,
    )
    (underlay,) = status.underlays
    assert (underlay.address, underlay.mtu) == (str(OURS), 1500)
    assert status.health == ()


def test_a_network_with_a_problem_is_not_ready_and_told_with_what_mends_it(node: Node) -> None:
    node.introspector.ready = True
    assert node.introspector.is_ready()
    node.served.problem = DeviceError("weft0", 16, why="taken", advice="take another")
    assert not node.introspector.is_ready()
    assert HealthView(str(node.served.problem), "take another") in node.introspector.ailments()
    node.served.problem = None
    assert node.introspector.is_ready()


def test_before_everything_is_open_it_is_live_and_not_ready(node: Node) -> None:
    assert node.introspector.is_live()
    assert not node.introspector.is_ready()


def test_a_network_without_peers_and_a_missing_underlay_are_told(node: Node) -> None:
    node.engine.apply(VtepRemove(NETWORK, VTEP_B), VtepRemove(NETWORK, VTEP_C))
    node.introspector.missing_underlays.add(as_anything(node.engine.underlay))
    problems = [ailment.problem for ailment in node.introspector.ailments()]
    assert problems == ["network lab has no peers", f"underlay address {OURS} is gone"]


def test_a_pool_nobody_answers_for_is_told_instead_of_networks_without_peers(pooled: Pooling) -> None:
    pool = Pooled([somebody("n1", "192.0.2.1")], unreached=Trouble("no member has answered", "start one"))
    node = pooled(pool)
    node.engine.apply(VtepRemove(NETWORK, VTEP_B), VtepRemove(NETWORK, VTEP_C))
    assert list(node.introspector.ailments()) == [HealthView("no member has answered", "start one")]


def test_the_first_of_a_pool_is_told_how_others_come(pooled: Pooling) -> None:
    node = pooled(Pooled([somebody("n1", "192.0.2.1")]))
    node.engine.apply(VtepRemove(NETWORK, VTEP_B), VtepRemove(NETWORK, VTEP_C))
    (ailment,) = node.introspector.ailments()
    assert ailment.problem == "network lab has no peers"
    assert ailment.fix.startswith("weft run --join 192.0.2.1:7946 on another node, or peers = ")


def test_drops_that_mean_a_mistake_are_told_with_their_number(node: Node) -> None:
    node.engine.from_underlay(*[frame(LOCAL, REMOTE)] * 3, sender=STRANGER)
    (ailment,) = node.introspector.ailments()
    assert ailment.problem == "3 frames dropped: the sender is not a VTEP of this network"
    assert "peers" in ailment.fix


def test_a_mistake_is_told_for_a_minute_after_its_last_drop(node: Node) -> None:
    clock = node.engine.clock
    for _ in range(3):
        node.engine.from_underlay(frame(LOCAL, REMOTE), sender=STRANGER)
        node.introspector.tick(now=clock.now)
        clock.now += MISTAKE_SECONDS - 1
        assert [ailment.fix for ailment in node.introspector.ailments()] != []
    clock.now += 1
    assert not list(node.introspector.ailments())


def test_an_fdb_that_is_full_is_told_for_a_minute_and_counted() -> None:
    with balanced_engines() as make:
        node = Node(make(vteps=(VTEP_B,), policy=BridgePolicy(NETWORK, OWN_MAC, fdb_max=1)))
        node.served.config = node.served.config.model_copy(update={"fdb_max": 1})
        node.engine.bind(REMOTE)
        node.engine.from_underlay(*(frame(LOCAL, mac(number)) for number in (1, 2, 2)))
        (ailment,) = node.introspector.ailments()
        assert ailment.problem == "network lab: the FDB is full (fdb_max = 1): 2 times a MAC was not learned"
        assert "fdb_max" in ailment.fix
        (traffic,) = node.introspector.traffic()
        assert (traffic.fdb_entries, traffic.fdb_refused) == (1, 2)
        node.engine.clock.advance(MISTAKE_SECONDS)
        assert list(node.introspector.ailments()) == []


# ── Rates ───────────────────────────────────────────────────────────────────────────────────────────────


def statistics(vtep: VtepId, *, sent: int, received: int, dropped: int = 0) -> DatapathStatistics:
    of_vtep = VtepStatistics(NETWORK, vtep, sent, 100 * sent, received, 200 * received, {})
    ledger = Ledger(received + sent + dropped, 0, sent, received, dropped, 0)
    return DatapathStatistics(ledger=ledger, drops={}, vteps=(of_vtep,), flows={}, upcalls=0)


def test_a_rate_is_what_grew_over_the_time_between_two_samples() -> None:
    rates = Rates(10.0)
    rates.sample(statistics(VTEP_B, sent=100, received=50, dropped=10), now=12.0)
    assert rates.view == RatesView(50.0, 5000.0, 25.0, 5000.0, 5.0)
    rates.sample(statistics(VTEP_B, sent=100, received=54, dropped=10), now=16.0)
    assert rates.view == RatesView(0.0, 0.0, 1.0, 200.0, 0.0)


def test_no_rate_is_below_zero_when_a_vtep_takes_its_totals_along() -> None:
    rates = Rates(0.0)
    rates.sample(statistics(VTEP_B, sent=1000, received=1000), now=1.0)
    rates.sample(statistics(VTEP_C, sent=10, received=10), now=2.0)
    assert rates.view == RatesView()


def test_a_sample_at_the_same_instant_changes_nothing() -> None:
    rates = Rates(0.0)
    rates.sample(statistics(VTEP_B, sent=10, received=0), now=1.0)
    before = rates.view
    rates.sample(statistics(VTEP_B, sent=99, received=0), now=1.0)
    assert rates.view == before


def test_status_shows_the_rates_of_the_last_tick(node: Node) -> None:
    node.engine.from_underlay(*[frame(LOCAL, REMOTE)] * 4)
    node.engine.clock.advance(2.0)
    node.introspector.tick(now=node.engine.clock.now)
    assert node.introspector.status().rates.ingress_frames_s == 2.0


# ── The pool ────────────────────────────────────────────────────────────────────────────────────────────


def test_members_are_everybody_and_peers_are_those_with_our_tags(pooled: Pooling) -> None:
    members = [
        somebody("n1", "192.0.2.1"),
        somebody("b", str(VTEP_B)),
        somebody("n9", "192.0.2.99", MemberState.DEAD),
        somebody("db", "192.0.2.50", tags={"role": "db"}),
    ]
    node = pooled(Pooled(members))
    assert plain(node.introspector.members())[3] == {
        "name": "db",
        "address": "192.0.2.50:7946",
        "state": "alive",
        "incarnation": 3,
        "tags": {"role": "db"},
    }
    # A static VTEP that is a member too is one peer, with the member's name and state.
    shown = [(peer.name, peer.underlay, peer.state) for peer in node.introspector.peers()]
    assert shown == [
        ("b", f"{VTEP_B}:{PORT}", "alive"),
        (str(VTEP_C), f"{VTEP_C}:{PORT}", "alive"),
        ("n9", "192.0.2.99", "dead"),
    ]
    assert node.introspector.status().peers == PeerCountsView(alive=2, suspect=0, dead=1)


def test_a_peer_is_one_with_the_vtep_it_says_it_has(pooled: Pooling) -> None:
    told = Pooled([somebody("n1", "192.0.2.1"), somebody("n2", "198.51.100.7")], vteps={"n2": (VTEP_B,)})
    peers = {peer.name: peer for peer in pooled(told).introspector.peers()}
    assert peers["n2"].underlay == f"{VTEP_B}:{PORT}"
    assert peers.keys() == {"n2", str(VTEP_C)}


def test_what_the_others_cannot_be_told_is_told_here(pooled: Pooling) -> None:
    node = pooled(Pooled([somebody("n1", "192.0.2.1")], unsaid=["our own record: expected at most 7"]))
    problems = [ailment.problem for ailment in node.introspector.ailments()]
    assert "the others do not hear what is so here: our own record: expected at most 7" in problems


def test_what_nodes_disagree_about_is_told_with_its_fix(pooled: Pooling) -> None:
    node = pooled(Pooled([somebody("n1", "192.0.2.1")], doubled=["n3 says two things under one version"]))
    assert node.pool is not None
    node.pool.unleased = [Trouble("this founder grants no leases", "weft leases adopt")]
    node.steering.troubles = (Trouble("VNI 42 here, 43 on n2", "make `vni` the same"),)
    told = {line.problem: line.fix for line in node.introspector.status().health}
    assert told["VNI 42 here, 43 on n2"] == "make `vni` the same"
    assert told["this founder grants no leases"] == "weft leases adopt"
    assert told["n3 says two things under one version: a copied disk, or one that was set back"]


def test_a_file_of_a_network_that_is_not_on_disk_is_named(node: Node) -> None:
    node.served.unwritten = DeviceError("/run/flannel/subnet.env", errno.ENOSPC, advice="free its disk")
    told = {each.problem: each.fix for each in node.introspector.ailments()}
    (problem,) = (each for each in told if each.startswith("not on disk: /run/flannel/subnet.env"))
    assert told[problem] == "free its disk"


def test_who_says_more_than_one_may_is_named(pooled: Pooling) -> None:
    unheard, blamed = {Refused.TOO_MANY: 4, Refused.REPEATED: 9}, {Refused.TOO_MANY: "n7"}
    node = pooled(Pooled([somebody("n1", "192.0.2.1")], unheard=unheard, blamed=blamed))
    told = {each.problem: each.fix for each in node.introspector.ailments()}
    assert "n7" in told[f"4 records refused, the last of n7: {Refused.TOO_MANY.value}"]
    assert not [problem for problem in told if "9 records" in problem]


def test_status_tells_of_the_pool(pooled: Pooling) -> None:
    refused = {Refusal.STALE: 1, Refusal.MALFORMED: 2}
    told = Pooled([somebody("n1", "192.0.2.1")], health=1, refused=refused, unheard={Refused.TOO_LARGE: 4})
    node = pooled(told)
    assert plain(node.introspector.status())["gossip"] == {
        "address": "192.0.2.1:7946",
        "encrypted": True,
        "members": 1,
        "health": 1,
        "has_left": False,
        "refused": {"MALFORMED": 2, "STALE": 1},
        "records": 3,
        "records_refused": {"TOO_LARGE": 4},
    }


def test_without_a_pool_nothing_is_said_of_one(node: Node) -> None:
    assert "gossip" not in plain(node.introspector.status())
    assert node.introspector.members() == []


@pytest.mark.parametrize(
    ("pool", "problem", "fix"),
    [
        (Pooled(conflicts=["n7 is used at a and at b"]), "name conflict: n7 is used at a and at b", "`name`"),
        (Pooled(blocked=["n8"]), "n8 answers over TCP and not over UDP", "open UDP port 7946"),
        (
            Pooled(unwritten=[DeviceError("/s/pool.json", errno.ENOSPC, advice="free its disk")]),
            "not on disk: /s/pool.json: No space left on device",
            "free its disk",
        ),
        (Pooled(health=3), "answers gossip slowly (health score 3 of 7)", "CPU"),
        (Pooled(refused={Refusal.WRONG_KEY: 4}), "4 gossip messages refused: encrypted by none", "weft keys"),
    ],
    ids=["conflict", "blocked", "unwritten", "slow", "wrong-key"],
)
def test_what_is_wrong_in_the_pool_is_told_with_what_mends_it(
    pooled: Pooling, pool: Pooled, problem: str, fix: str
) -> None:
    (ailment,) = pooled(pool).introspector.ailments()
    assert problem in ailment.problem
    assert fix in ailment.fix


def test_a_pool_that_is_well_has_no_ailments(pooled: Pooling) -> None:
    well = Pooled(health=2, refused={Refusal.STALE: 900})
    assert list(pooled(well).introspector.ailments()) == []
