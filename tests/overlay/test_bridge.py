"""The rules of a bridged network, one by one, and that a decision changes nothing by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.inet6 import ICMPv6MLReport, IPv6
from scapy.layers.l2 import ARP, Ether
from support.doubles import LOCAL, NETWORK, OWN_MAC, REMOTE, UNKNOWN, VTEP_B, VTEP_C, frame, mac
from support.frames import (
    IP4_A,
    IP4_B,
    IP6_B,
    MAC_A,
    MAC_B,
    arp_request,
    echo4,
    ether,
    neighbor_advertisement,
    neighbor_solicitation,
)

from overlay.addr import BROADCAST, Mac, Vtep, VtepId
from overlay.bridge import LIMITED_VERDICT_SECONDS, Bridge, BridgePolicy
from overlay.fdb import FdbEntry, Origin
from overlay.neigh import NeighborEntry
from overlay.tables import (
    FdbRefuse,
    FdbRemove,
    FdbReplace,
    FloodReplace,
    NeighborReplace,
    TableDelta,
    Tables,
    VtepReplace,
    fdb_key,
    flood_key,
)
from overlay.verdict import (
    EVERY_VTEP,
    Decision,
    Deliver,
    Drop,
    DropReason,
    Encapsulate,
    Replicate,
    Reply,
    Verdict,
)

NOW = 100.0
EVERYBODY = Replicate(EVERY_VTEP)
PINNED = [Origin.STATIC, Origin.CONTROL]


class Segment:
    """A bridge with two VTEPs, both flooded to."""

    def __init__(self, **policy: Any) -> None:
        self.tables = Tables()
        self.tables.add_network(NETWORK)
        self.bridge = Bridge(replace(BridgePolicy(NETWORK, OWN_MAC), **policy), self.tables)
        vteps = (VtepReplace(NETWORK, Vtep(address, 4789)) for address in (VTEP_B, VTEP_C))
        self.tables.apply(TableDelta((*vteps, FloodReplace(NETWORK, (VTEP_B, VTEP_C)))))

    def bind(self, address: Mac, vtep: VtepId = VTEP_B, origin: Origin = Origin.LEARNED) -> None:
        self.tables.apply(TableDelta((FdbReplace(NETWORK, address, vtep, origin, NOW),)))

    def knows(
        self, ip: str, address: Mac, origin: Origin = Origin.LEARNED, *, is_router: bool = False
    ) -> None:
        change = NeighborReplace(NETWORK, ip_address(ip), address, origin, NOW, is_router)
        self.tables.apply(TableDelta((change,)))

    def egress(self, octets: bytes) -> Decision:
        return self.bridge.egress(octets, now=NOW)

    def ingress(self, octets: bytes, vtep: VtepId = VTEP_B) -> Decision:
        return self.bridge.ingress(octets, vtep, now=NOW)

    def learn(self, decision: Decision) -> None:
        if decision.delta is not None:
            self.tables.apply(decision.delta)

    def where(self, address: Mac) -> VtepId | None:
        entry = self.tables[NETWORK].fdb.lookup(address)
        return None if entry is None else entry.vtep

    def neighbor(self, ip: str) -> NeighborEntry | None:
        return self.tables[NETWORK].neighbors.lookup(ip_address(ip))

    def snapshot(self) -> tuple[object, ...]:
        tables = self.tables[NETWORK]
        return (
            dict(tables.vteps),
            tables.fdb.entries(),
            tables.neighbors.entries(),
            tables.flood.vteps(),
        )


@pytest.fixture
def segment() -> Segment:
    return Segment()


# ── Towards the tunnel ──────────────────────────────────────────────────────────────────────────────────


def test_a_bound_mac_is_encapsulated_to_its_vtep_alone(segment: Segment) -> None:
    segment.bind(REMOTE, VTEP_C)
    decision = segment.egress(frame(REMOTE, LOCAL))
    assert decision.verdict == Encapsulate(VTEP_C)
    assert decision.key == REMOTE + LOCAL
    assert set(decision.rests_on) == {fdb_key(NETWORK, LOCAL), fdb_key(NETWORK, REMOTE)}


def test_unknown_unicast_is_replicated(segment: Segment) -> None:
    decision = segment.egress(frame(UNKNOWN, LOCAL))
    assert decision.verdict == EVERYBODY
    # It rests on the place where nothing was found: the verdict ends when something stands there.
    assert set(decision.rests_on) == {
        fdb_key(NETWORK, LOCAL),
        fdb_key(NETWORK, UNKNOWN),
        flood_key(NETWORK),
    }


def test_unknown_unicast_is_dropped_where_flooding_is_off() -> None:
    segment = Segment(flood=False)
    decision = segment.egress(frame(UNKNOWN, LOCAL))
    assert decision.verdict == Drop(DropReason.UNKNOWN_UNICAST)
    assert fdb_key(NETWORK, UNKNOWN) in decision.rests_on


MULTICAST = {
    "broadcast": frame(BROADCAST, LOCAL),
    "igmp": ether(IP(src=IP4_A, dst="224.0.0.22", ttl=1, proto=2), destination=Mac(b"\x01\0\x5e\0\0\x16")),
    "mld": ether(
        IPv6(src="fe80::1", dst="ff02::16", hlim=1), ICMPv6MLReport(), destination=Mac(b"\x33\x33\0\0\0\x16")
    ),
    "lldp's neighbour 01:80:c2:00:00:10": frame(b"\x01\x80\xc2\0\0\x10", LOCAL),
}


@pytest.mark.parametrize("octets", MULTICAST.values(), ids=MULTICAST)
@pytest.mark.parametrize("flood", [True, False])
def test_broadcast_and_multicast_are_replicated_whatever_becomes_of_unknown_unicast(
    octets: bytes, flood: bool
) -> None:
    decision = Segment(flood=flood).egress(octets)
    assert decision.verdict == EVERYBODY
    assert flood_key(NETWORK) in decision.rests_on


@pytest.mark.parametrize("destination", [BROADCAST, UNKNOWN])
def test_with_nobody_to_send_to_there_is_no_vtep(segment: Segment, destination: Mac) -> None:
    segment.tables.apply(TableDelta((FloodReplace(NETWORK, ()),)))
    decision = segment.egress(frame(destination, LOCAL))
    assert decision.verdict == Drop(DropReason.NO_VTEP)
    assert flood_key(NETWORK) in decision.rests_on


def test_a_source_learned_behind_the_tunnel_has_come_home(segment: Segment) -> None:
    segment.bind(LOCAL, VTEP_B)
    decision = segment.egress(frame(UNKNOWN, LOCAL))
    assert decision.delta == TableDelta((FdbRemove(NETWORK, LOCAL),))
    segment.learn(decision)
    assert segment.where(LOCAL) is None


@pytest.mark.parametrize("origin", PINNED)
def test_a_source_pinned_behind_the_tunnel_cannot_be_here(segment: Segment, origin: Origin) -> None:
    segment.bind(LOCAL, VTEP_B, origin)
    decision = segment.egress(frame(UNKNOWN, LOCAL))
    assert (decision.verdict, decision.delta) == (Drop(DropReason.SPOOFED_SOURCE), None)
    assert decision.rests_on == (fdb_key(NETWORK, LOCAL),)


def test_a_tag_changes_no_decision(segment: Segment) -> None:
    segment.bind(MAC_B)
    plain, tagged = echo4(), echo4(tags=(7,))
    assert segment.egress(tagged) == segment.egress(plain)
    assert segment.ingress(tagged, VTEP_C) == segment.ingress(plain, VTEP_C)


# ── From the tunnel ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("destination", [LOCAL, BROADCAST, b"\x33\x33\0\0\0\x01"])
def test_a_frame_from_the_tunnel_is_delivered_and_its_source_learned(
    segment: Segment, destination: bytes
) -> None:
    decision = segment.ingress(frame(destination, REMOTE))
    assert decision.verdict == Deliver()
    segment.learn(decision)
    entry = segment.tables[NETWORK].fdb.lookup(REMOTE)
    assert entry == FdbEntry(REMOTE, VTEP_B, Origin.LEARNED, NOW)


def test_without_learning_nothing_is_learned() -> None:
    segment = Segment(learning=False)
    decision = segment.ingress(arp_request())
    assert (decision.verdict, decision.delta, decision.expires_at) == (Deliver(), None, None)


def test_a_mac_that_moved_is_bound_to_where_it_was_seen_last(segment: Segment) -> None:
    segment.bind(REMOTE, VTEP_B)
    decision = segment.ingress(frame(LOCAL, REMOTE), VTEP_C)
    assert decision.verdict == Deliver()
    assert fdb_key(NETWORK, REMOTE) in decision.rests_on
    segment.learn(decision)
    assert segment.where(REMOTE) == VTEP_C
    assert segment.egress(frame(REMOTE, LOCAL)).verdict == Encapsulate(VTEP_C)


@pytest.mark.parametrize("origin", PINNED)
def test_a_pinned_mac_seen_elsewhere_is_spoofed(segment: Segment, origin: Origin) -> None:
    segment.bind(REMOTE, VTEP_B, origin)
    decision = segment.ingress(frame(LOCAL, REMOTE), VTEP_C)
    assert (decision.verdict, decision.delta) == (Drop(DropReason.SPOOFED_SOURCE), None)
    assert decision.rests_on == (fdb_key(NETWORK, REMOTE),)


@pytest.mark.parametrize("origin", PINNED)
def test_a_pinned_mac_seen_where_it_is_pinned_stays_pinned(segment: Segment, origin: Origin) -> None:
    segment.bind(REMOTE, VTEP_B, origin)
    decision = segment.ingress(frame(LOCAL, REMOTE), VTEP_B)
    assert decision.verdict == Deliver()
    segment.learn(decision)
    entry = segment.tables[NETWORK].fdb.lookup(REMOTE)
    assert entry is not None
    assert entry.origin is origin


@pytest.mark.parametrize("origin", Origin)
def test_a_frame_for_a_mac_behind_the_tunnel_does_not_go_back(segment: Segment, origin: Origin) -> None:
    segment.bind(UNKNOWN, VTEP_C, origin)
    decision = segment.ingress(frame(UNKNOWN, REMOTE), VTEP_B)
    assert decision.verdict == Drop(DropReason.SPLIT_HORIZON)
    assert fdb_key(NETWORK, UNKNOWN) in decision.rests_on
    segment.learn(decision)
    assert segment.where(REMOTE) == VTEP_B  # what it tells of its source is true all the same


def test_our_own_mac_from_the_tunnel_is_a_loop_or_a_clone(segment: Segment) -> None:
    decision = segment.ingress(frame(BROADCAST, OWN_MAC))
    assert (decision.verdict, decision.delta) == (Drop(DropReason.OWN_MAC), None)


def test_a_full_fdb_delivers_does_not_learn_counts_and_is_asked_again() -> None:
    segment = Segment(fdb_max=2)
    segment.bind(mac(1))
    segment.bind(mac(2))
    decision = segment.ingress(frame(LOCAL, REMOTE))
    assert (decision.verdict, decision.delta) == (Deliver(), TableDelta((FdbRefuse(NETWORK, REMOTE),)))
    assert decision.expires_at == NOW + LIMITED_VERDICT_SECONDS
    segment.learn(decision)
    assert segment.where(REMOTE) is None


def test_a_full_fdb_still_follows_the_macs_it_knows() -> None:
    segment = Segment(fdb_max=1)
    segment.bind(REMOTE, VTEP_B)
    decision = segment.ingress(frame(LOCAL, REMOTE), VTEP_C)
    assert decision.expires_at is None
    segment.learn(decision)
    assert segment.where(REMOTE) == VTEP_C


def test_an_fdb_that_does_not_learn_is_never_full() -> None:
    segment = Segment(fdb_max=1, learning=False)
    segment.bind(mac(1))
    decision = segment.ingress(frame(LOCAL, REMOTE))
    assert (decision.delta, decision.expires_at) == (None, None)


# ── Ethernet corners ────────────────────────────────────────────────────────────────────────────────────

DIRECTIONS = {
    "egress": lambda segment, octets: segment.egress(octets),
    "ingress": lambda segment, octets: segment.ingress(octets),
}
both = pytest.mark.parametrize("decide", DIRECTIONS.values(), ids=DIRECTIONS)
Decide = Callable[[Segment, bytes], Decision]


@both
@pytest.mark.parametrize("last", range(1, 16))
def test_a_reserved_group_is_not_forwarded(segment: Segment, decide: Decide, last: int) -> None:
    # LLDP is 0x0e, LACP 0x02, 802.1X 0x03 (IEEE 802.1Q-2018 table 8-1).
    decision = decide(segment, frame(b"\x01\x80\xc2\0\0" + bytes([last]), REMOTE))
    assert (decision.verdict, decision.delta) == (Drop(DropReason.LINK_LOCAL), None)


@both
def test_bpdus_are_carried(segment: Segment, decide: Decide) -> None:
    verdict = decide(segment, frame(b"\x01\x80\xc2\0\0\0", REMOTE)).verdict
    assert verdict in (EVERYBODY, Deliver())


@both
@pytest.mark.parametrize("source", [BROADCAST, b"\x01\0\x5e\0\0\x01", b"\x03\0\0\0\0\x01", bytes(6)])
def test_a_source_that_is_no_station_is_malformed(segment: Segment, decide: Decide, source: bytes) -> None:
    decision = decide(segment, frame(LOCAL, source))
    assert (decision.verdict, decision.delta) == (Drop(DropReason.INNER_MALFORMED), None)
    assert decision.key == LOCAL + source  # every frame of this flow is


@both
@pytest.mark.parametrize("length", range(14))
def test_less_than_an_ethernet_header_is_malformed(segment: Segment, decide: Decide, length: int) -> None:
    decision = decide(segment, frame(LOCAL, REMOTE)[:length])
    assert decision.verdict == Drop(DropReason.INNER_MALFORMED)
    assert decision.key is None  # the next frame with these addresses may be whole


@both
def test_a_frame_to_its_own_source_stays_on_its_side(segment: Segment, decide: Decide) -> None:
    segment.bind(REMOTE, VTEP_C)
    assert decide(segment, frame(REMOTE, REMOTE)).verdict in (EVERYBODY, Drop(DropReason.SPLIT_HORIZON))


# ── Neighbor suppression ────────────────────────────────────────────────────────────────────────────────

QUESTIONS = {"arp": (arp_request, IP4_B), "nd": (neighbor_solicitation, IP6_B)}
arp_and_nd = pytest.mark.parametrize(("question", "ip"), QUESTIONS.values(), ids=QUESTIONS)
Question = Callable[..., bytes]
PROBES = {
    "arp": (arp_request(asker="0.0.0.0"), IP4_B),
    "nd": (neighbor_solicitation(asker="::", with_mac=False), IP6_B),
}


@arp_and_nd
def test_a_known_neighbor_is_answered_for(segment: Segment, question: Question, ip: str) -> None:
    segment.bind(MAC_B)
    segment.knows(ip, MAC_B)
    decision = segment.egress(question())
    assert isinstance(decision.verdict, Reply)
    assert decision.verdict.frame[:12] == MAC_A + MAC_B
    assert decision.key is None


@arp_and_nd
def test_in_a_vlan_everybody_is_asked(segment: Segment, question: Question, ip: str) -> None:
    segment.bind(MAC_B)
    segment.knows(ip, MAC_B)
    decision = segment.egress(question(tags=(7,)))
    assert decision.verdict == EVERYBODY
    assert decision.key is not None  # and everybody hears what comes behind it


@pytest.mark.parametrize("question", [arp_request, neighbor_solicitation])
def test_an_unknown_neighbor_is_asked_for_everywhere(segment: Segment, question: Question) -> None:
    decision = segment.egress(question())
    assert decision.verdict == EVERYBODY
    assert decision.key is None  # the next question under this key may be for another


@arp_and_nd
def test_a_neighbor_whose_mac_is_no_longer_behind_the_tunnel_is_asked_for(
    segment: Segment, question: Question, ip: str
) -> None:
    segment.knows(ip, MAC_B)
    assert segment.egress(question()).verdict == EVERYBODY


@arp_and_nd
def test_without_suppression_questions_are_carried_like_anything_else(question: Question, ip: str) -> None:
    segment = Segment(suppress=False)
    segment.bind(MAC_B)
    segment.knows(ip, MAC_B, Origin.CONTROL)
    decision = segment.egress(question())
    assert (decision.verdict, decision.key) == (EVERYBODY, question()[:12])


@pytest.mark.parametrize(("probe", "ip"), PROBES.values(), ids=PROBES)
def test_a_probe_for_a_duplicate_reaches_the_owner(segment: Segment, probe: bytes, ip: str) -> None:
    segment.bind(MAC_B)
    segment.knows(ip, MAC_B)
    assert segment.egress(probe).verdict == EVERYBODY


@pytest.mark.parametrize("origin", PINNED)
@pytest.mark.parametrize(("probe", "ip"), PROBES.values(), ids=PROBES)
def test_a_probe_is_answered_on_the_owners_own_word(
    segment: Segment, probe: bytes, ip: str, origin: Origin
) -> None:
    segment.knows(ip, MAC_B, origin)
    assert isinstance(segment.egress(probe).verdict, Reply)


@pytest.mark.parametrize(("probe", "ip"), PROBES.values(), ids=PROBES)
def test_an_owner_who_probes_is_not_told_of_itself(segment: Segment, probe: bytes, ip: str) -> None:
    # RFC 5227 section 2.1.1, RFC 4862 section 5.4.3: it would take the answer for another's.
    segment.knows(ip, MAC_A, Origin.CONTROL)
    assert segment.egress(probe).verdict == EVERYBODY


def test_an_announcement_is_carried(segment: Segment) -> None:
    segment.bind(MAC_B)
    segment.knows(IP4_A, MAC_B)
    assert segment.egress(arp_request(asked_for=IP4_A)).verdict == EVERYBODY


def test_a_question_to_one_mac_is_not_answered_for_it(segment: Segment) -> None:
    # RFC 4861 section 7.3: it is how a host finds out whether its neighbor still is.
    segment.bind(MAC_B)
    segment.knows(IP4_B, MAC_B)
    unicast = ether(ARP(hwsrc=MAC_A.hex(":"), psrc=IP4_A, pdst=IP4_B))
    assert segment.egress(unicast).verdict == Encapsulate(VTEP_B)


@pytest.mark.parametrize("is_router", [False, True])
def test_the_answer_says_whether_the_owner_is_a_router(segment: Segment, is_router: bool) -> None:
    segment.bind(MAC_B)
    segment.knows(IP6_B, MAC_B, is_router=is_router)
    verdict = segment.egress(neighbor_solicitation()).verdict
    assert isinstance(verdict, Reply)
    flags = Ether(verdict.frame)["ICMPv6ND_NA"].R
    assert bool(flags) == is_router


def test_an_answered_host_that_came_home_is_noticed(segment: Segment) -> None:
    segment.bind(MAC_A)
    segment.bind(MAC_B)
    segment.knows(IP4_B, MAC_B)
    decision = segment.egress(arp_request())
    assert isinstance(decision.verdict, Reply)
    assert decision.delta == TableDelta((FdbRemove(NETWORK, MAC_A),))


def test_what_only_looks_like_arp_is_carried(segment: Segment) -> None:
    torn = arp_request()[:30]
    assert segment.egress(torn).verdict == EVERYBODY
    assert segment.ingress(torn).verdict == Deliver()


# ── Snooping ────────────────────────────────────────────────────────────────────────────────────────────


def test_arp_from_the_tunnel_teaches_its_senders_binding(segment: Segment) -> None:
    decision = segment.ingress(arp_request())
    assert (decision.verdict, decision.key) == (Deliver(), None)
    segment.learn(decision)
    known = segment.neighbor(IP4_A)
    assert known == NeighborEntry(ip_address(IP4_A), MAC_A, Origin.LEARNED, NOW)


@pytest.mark.parametrize("is_router", [False, True])
def test_an_advertisement_from_the_tunnel_teaches_its_target(segment: Segment, is_router: bool) -> None:
    segment.learn(segment.ingress(neighbor_advertisement(router=is_router)))
    assert segment.neighbor(IP6_B) == NeighborEntry(
        ip_address(IP6_B), MAC_B, Origin.LEARNED, NOW, is_router=is_router
    )


@pytest.mark.parametrize("octets", [arp_request(asker="0.0.0.0"), neighbor_solicitation()])
def test_what_tells_no_binding_teaches_none(segment: Segment, octets: bytes) -> None:
    segment.learn(segment.ingress(octets))
    assert segment.tables[NETWORK].neighbors.entries() == ()


def test_arp_from_the_device_teaches_nothing(segment: Segment) -> None:
    assert segment.egress(arp_request()).delta is None


def test_the_operators_neighbor_is_not_displaced_by_a_forged_one(segment: Segment) -> None:
    segment.knows(IP4_A, UNKNOWN, Origin.STATIC)
    segment.learn(segment.ingress(arp_request()))
    known = segment.neighbor(IP4_A)
    assert known is not None
    assert known.mac == UNKNOWN


def test_a_full_neighbor_table_learns_no_new_address() -> None:
    segment = Segment(fdb_max=1)
    segment.knows(IP4_B, MAC_B)
    segment.learn(segment.ingress(arp_request()))
    assert segment.neighbor(IP4_A) is None


def test_a_full_neighbor_table_still_follows_those_it_knows() -> None:
    segment = Segment(fdb_max=1)
    segment.knows(IP4_A, MAC_B)
    segment.learn(segment.ingress(arp_request()))
    known = segment.neighbor(IP4_A)
    assert known is not None
    assert known.mac == MAC_A


# ── Too long for the path ───────────────────────────────────────────────────────────────────────────────


def test_a_packet_too_long_is_answered_in_the_devices_name(segment: Segment) -> None:
    error = segment.bridge.too_big(echo4(bytes(1400), flags="DF"), 1000)
    assert error is not None
    assert error[:12] == MAC_A + OWN_MAC
    assert Ether(error)["ICMP"].nexthopmtu == 1000
    assert segment.bridge.too_big(frame(LOCAL, REMOTE, bytes(1400)), 1000) is None


# ── Whatever the frame ──────────────────────────────────────────────────────────────────────────────────

FEW_MACS = st.sampled_from([LOCAL, REMOTE, UNKNOWN, OWN_MAC, BROADCAST, b"\x01\x80\xc2\0\0\x0e", MAC_A])
FRAMES = st.one_of(
    st.binary(max_size=80),
    st.builds(frame, FEW_MACS, FEW_MACS),
    st.sampled_from([arp_request(), neighbor_solicitation(), neighbor_advertisement(), echo4()]),
)
BINDINGS = st.lists(
    st.tuples(FEW_MACS, st.sampled_from([VTEP_B, VTEP_C]), st.sampled_from(Origin)), max_size=4
)


@given(FRAMES, BINDINGS, st.booleans(), st.booleans())
def test_a_decision_changes_nothing_and_its_lesson_does_not_change_the_decision(
    octets: bytes, bindings: list[tuple[Mac, VtepId, Origin]], is_egress: bool, flood: bool
) -> None:
    segment = Segment(flood=flood)
    for address, vtep, origin in bindings:
        segment.bind(address, vtep, origin)
    decide = segment.egress if is_egress else segment.ingress
    before = segment.snapshot()
    decision = decide(octets)
    assert segment.snapshot() == before
    # What is remembered was decided before the lesson was written: it must hold after.
    segment.learn(decision)
    assert decide(octets).verdict == decision.verdict or decision.key is None
    allowed: tuple[type[Verdict], ...] = (
        (Encapsulate, Replicate, Reply, Drop) if is_egress else (Deliver, Drop)
    )
    assert isinstance(decision.verdict, allowed)
