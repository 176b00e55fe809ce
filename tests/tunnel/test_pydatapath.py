"""The Python engine between doubles: it carries what was decided, asks when it does not know, loses nothing.

In the order of the file under test: networks, egress, ingress, upcalls, every second, seeing.  Whatever a
test does, `make_engine` finds the ledger balanced afterwards.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv6Address, ip_address
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import ARP, Ether
from support.doubles import (
    LOCAL,
    NETWORK,
    OURS,
    OURS_V6,
    OWN_MAC,
    PORT,
    REMOTE,
    STRANGER,
    UNKNOWN,
    VNI,
    VTEP_B,
    VTEP_C,
    VTEP_V6,
    DeviceDouble,
    Engine,
    MakeEngine,
    Seen,
    SuperDoorDouble,
    SuperDoorsDouble,
    Watcher,
    frame,
    mac,
    os_error,
)
from support.frames import (
    IP4_A,
    IP4_B,
    IP6_A,
    IP6_B,
    MAC_A,
    MAC_B,
    arp_request,
    echo4,
    ether,
    neighbor_solicitation,
    tcp4,
    udp4,
    udp6,
)
from support.pace import by_the_clock, in_bursts
from support.super_frames import Burst

from bench.lab.wire import Datagram
from overlay.addr import BROADCAST, Mac, NetworkId, Vni, Vtep
from overlay.bridge import LIMITED_VERDICT_SECONDS, Bridge, BridgePolicy
from overlay.errors import DeviceError
from overlay.fdb import Origin
from overlay.tables import (
    FdbReplace,
    FloodReplace,
    NeighborReplace,
    VtepRemove,
    VtepReplace,
)
from overlay.verdict import Deliver, Direction, Drop, DropReason, Encapsulate, Replicate
from tunnel import flows, upcalls
from tunnel.carriage import FRAMES_PER_TURN, READS_PER_TURN, TURN_SECONDS
from tunnel.egress import SEND_TRIES, UNKNOWN_PER_TURN
from tunnel.interfaces import Activity, Ledger, Point, Strictness
from tunnel.meter import COPIES_BURST, SHARE, UpcallKind
from tunnel.offload import PLAIN
from tunnel.pydatapath import PATH_RECHECK_SECONDS
from tunnel.recorder import Recorder
from tunnel.upcalls import UPCALL_TIMEOUT_SECONDS
from tunnel.vxlan import build_header

OUT = frame(REMOTE, LOCAL)
IN = frame(LOCAL, REMOTE)
HEADER = build_header(VNI)
OTHER = NetworkId("other")
TORN_TAG = b"\x81\x00"  # behind two MACs: no frame of the flow it seems to belong to

pytestmark = pytest.mark.usefixtures("pace")


def bound(make_engine: MakeEngine, **settings_: Any) -> Engine:
    """An engine with one remote MAC, behind VTEP B."""
    engine = make_engine(**settings_)
    engine.bind(REMOTE)
    return engine


# ── Networks come and go ────────────────────────────────────────────────────────────────────────────────


def test_a_fresh_engine_has_counted_nothing(make_engine: MakeEngine) -> None:
    assert make_engine().statistics().ledger == Ledger(0, 0, 0, 0, 0, 0)


def test_two_networks_share_a_port_and_nothing_else(make_engine: MakeEngine) -> None:
    engine = bound(make_engine)
    other = engine.add_network("other", 43, VTEP_B)
    engine.from_underlay(IN, vni=VNI)
    engine.from_underlay(frame(LOCAL, UNKNOWN), vni=43)
    assert engine.device.frames == [IN]
    assert other.frames == [frame(LOCAL, UNKNOWN)]
    # What one learned, the other floods.
    engine.from_device(frame(REMOTE, LOCAL), device=other)
    assert [sent.payload[:8] for sent in engine.sent] == [build_header(Vni(43))]
    assert engine.tables[OTHER].fdb.lookup(REMOTE) is None


def test_a_vtep_of_one_network_is_a_stranger_to_another(make_engine: MakeEngine) -> None:
    engine = make_engine()
    other = engine.add_network("other", 43, VTEP_C)
    engine.from_underlay(IN, sender=VTEP_B, vni=43)
    assert other.frames == []
    assert engine.drops(OTHER) == {DropReason.UNKNOWN_VTEP: 1}


def test_one_vni_on_two_ports_is_two_networks(make_engine: MakeEngine) -> None:
    engine = make_engine()
    other = engine.add_network("other", VNI, VTEP_C, port=8472)
    engine.datagrams(HEADER + IN, sender=VTEP_C, port=8472)
    assert (engine.device.frames, other.frames) == ([], [IN])


def test_a_port_that_is_taken_is_told_and_leaves_nothing_behind(make_engine: MakeEngine) -> None:
    engine = make_engine(addresses=(OURS, OURS_V6), vteps=())
    engine.underlays[1].taken_ports.add(8472)
    with pytest.raises(DeviceError):
        engine.add_network("other", 43, port=8472)
    assert 8472 not in engine.underlays[0].ports
    engine.underlays[1].taken_ports.clear()
    device = DeviceDouble(engine.reactor)
    engine.attach(OTHER, device, Bridge(BridgePolicy(OTHER, OWN_MAC), engine.tables), vni=Vni(43), port=8472)
    assert 8472 in engine.underlays[0].ports


def test_a_detached_network_receives_no_more_and_keeps_its_counts(make_engine: MakeEngine) -> None:
    engine = bound(make_engine)
    engine.add_network("other", 43, VTEP_B)
    engine.from_underlay(IN)
    engine.from_device(OUT)
    engine.datapath.detach(NETWORK)
    engine.from_underlay(IN)
    engine.from_device(OUT)
    assert engine.device.frames == [IN]
    assert engine.drops(None) == {DropReason.UNKNOWN_VNI: 1}
    assert (engine.statistics().ledger.sent, engine.flow_count) == (1, 0)


def test_the_last_network_of_a_port_closes_it(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.add_network("other", 43)
    engine.datapath.detach(NETWORK)
    assert PORT in engine.underlay.ports
    engine.datapath.detach(OTHER)
    assert engine.underlay.ports == {}


def test_tables_are_carried_as_they_stood_when_the_network_came(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.tables.add_network(OTHER)
    vteps = (VtepReplace(OTHER, Vtep(VTEP_C, 8472)), FloodReplace(OTHER, (VTEP_C,)))
    engine.apply(*vteps, FdbReplace(OTHER, REMOTE, VTEP_C, Origin.STATIC, 0.0))
    device = DeviceDouble(engine.reactor)
    engine.attach(OTHER, device, Bridge(BridgePolicy(OTHER, OWN_MAC), engine.tables), vni=Vni(43))
    engine.from_device(OUT, frame(BROADCAST, LOCAL), device=device)
    assert [sent.to for sent in engine.sent] == [(str(VTEP_C), 8472)] * 2


def test_closing_twice_is_closing_once_and_nothing_listens_after(make_engine: MakeEngine) -> None:
    engine = bound(make_engine)
    engine.datapath.close()
    engine.datapath.close()
    engine.add_vteps(VTEP_C)  # the tables have nobody left to tell
    engine.from_device(OUT)
    assert engine.reactor._readers == {}
    assert engine.statistics().ledger == Ledger(0, 0, 0, 0, 0, 0)


def test_another_device_takes_over_with_the_flows(make_engine: MakeEngine) -> None:
    engine = bound(make_engine)
    engine.from_device(OUT)
    engine.from_underlay(IN)
    upcalls = engine.statistics().upcalls
    engine.device.close()
    new = DeviceDouble(engine.reactor, "weft1")
    engine.datapath.replace_device(NETWORK, new, 1300)
    engine.from_device(OUT, device=new)
    engine.from_underlay(IN)
    assert new.frames == [IN]
    assert len(engine.sent) == 2
    assert engine.statistics().upcalls == upcalls


def test_a_device_is_not_charged_with_what_its_predecessor_lost(make_engine: MakeEngine) -> None:
    engine = make_engine()
    new = DeviceDouble(engine.reactor)
    new.lost = 9
    engine.datapath.replace_device(NETWORK, new, 1450)
    engine.datapath.expire(now=engine.clock.now)
    assert engine.drops() == {}


# ── VTEPs come, change and go ───────────────────────────────────────────────────────────────────────────


def test_another_port_of_a_vtep_forgets_no_flow(make_engine: MakeEngine) -> None:
    engine = bound(make_engine)
    engine.from_device(OUT, frame(BROADCAST, LOCAL))
    engine.from_underlay(IN)
    before, upcalls = engine.flow_count, engine.statistics().upcalls
    engine.apply(VtepReplace(NETWORK, Vtep(VTEP_B, 8472)))
    assert engine.flow_count == before
    engine.from_device(OUT, frame(BROADCAST, LOCAL))
    engine.from_underlay(IN)
    assert [sent.to[1] for sent in engine.sent] == [PORT, PORT, 8472, 8472]
    assert engine.statistics().upcalls == upcalls


def test_rerouting_forgets_no_flow_and_takes_the_underlays_mtu(make_engine: MakeEngine) -> None:
    engine = bound(make_engine)
    engine.from_device(OUT)
    upcalls = engine.statistics().upcalls
    engine.underlay.mtu = 1300
    engine.datapath.reroute()
    engine.from_device(OUT, frame(REMOTE, LOCAL, bytes(1300)))
    assert engine.statistics().upcalls == upcalls
    assert engine.drops_of(VTEP_B) == {DropReason.MTU_EXCEEDED: 1}


def test_a_vtep_that_left_takes_its_flows_along_and_no_others(make_engine: MakeEngine) -> None:
    engine = bound(make_engine, vteps=(VTEP_B, VTEP_C))
    engine.bind(UNKNOWN, VTEP_C)
    engine.from_device(OUT, frame(UNKNOWN, LOCAL))
    engine.from_underlay(IN)
    engine.from_underlay(frame(LOCAL, UNKNOWN), sender=VTEP_C)
    engine.apply(VtepRemove(NETWORK, VTEP_B))
    assert {flow.key for flow in engine.datapath.flows()} == {
        frame(UNKNOWN, LOCAL)[:12],
        frame(LOCAL, UNKNOWN)[:12],
    }
    engine.from_underlay(IN)
    assert engine.drops() == {DropReason.UNKNOWN_VTEP: 1}
    engine.from_device(OUT)
    assert engine.sent[-1].to == (str(VTEP_C), PORT)  # unknown again, flooded to who is left


def test_one_delta_may_exchange_every_vtep(make_engine: MakeEngine) -> None:
    engine = bound(make_engine)
    engine.from_device(OUT)
    engine.apply(
        VtepRemove(NETWORK, VTEP_B),
        VtepReplace(NETWORK, Vtep(VTEP_C, PORT)),
        FloodReplace(NETWORK, (VTEP_C,)),
    )
    engine.from_device(OUT)
    assert [sent.to[0] for sent in engine.sent] == [str(VTEP_B), str(VTEP_C)]


def test_a_vtep_of_a_family_without_underlay_is_an_underlay_error(make_engine: MakeEngine) -> None:
    engine = make_engine(vteps=(VTEP_V6,))
    engine.from_device(frame(BROADCAST, LOCAL))
    assert engine.drops_of(VTEP_V6) == {DropReason.UNDERLAY_ERROR: 1}


def test_ipv4_and_ipv6_vteps_are_reached_through_their_own_underlays(make_engine: MakeEngine) -> None:
    engine = make_engine(addresses=(OURS, OURS_V6), vteps=(VTEP_B, VTEP_V6))
    engine.from_device(frame(BROADCAST, LOCAL))
    assert [own.sent[0].to[0] for own in engine.underlays] == [str(VTEP_B), str(VTEP_V6)]
    engine.from_underlay(IN, sender=VTEP_V6)
    engine.from_device(OUT)
    assert engine.underlays[1].sent[-1].frame == OUT


# ── Egress ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_frame_leaves_behind_its_vxlan_header_octet_for_octet(make_engine: MakeEngine) -> None:
    engine = bound(make_engine)
    engine.from_device(OUT, OUT)  # decided, then remembered
    assert [sent.payload for sent in engine.sent] == [HEADER + OUT] * 2
    assert {sent.to for sent in engine.sent} == {(str(VTEP_B), PORT)}
    (of_b,) = engine.statistics().vteps
    assert (of_b.sent_frames, of_b.sent_octets) == (2, 2 * len(OUT))


def test_a_second_frame_of_a_flow_asks_nobody(make_engine: MakeEngine) -> None:
    engine = bound(make_engine)
    for _ in range(5):
        engine.from_device(OUT)
        engine.from_underlay(IN)
    assert engine.statistics().upcalls == 2
    flow = engine.flow(OUT[:12])
    assert flow is not None
    assert (flow.direction, flow.verdict) == (Direction.EGRESS, Encapsulate(VTEP_B))
    assert (flow.frames, flow.octets) == (5, 5 * len(OUT))


def test_a_flow_keeps_to_one_socket_and_flows_spread_over_the_pool(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.bind(MAC_B)
    for port in range(100):
        engine.from_device(*[udp4(b"x", sport=1000 + port)] * 3)
    ports = [sent.source_port for sent in engine.sent]
    assert all(len(set(ports[at : at + 3])) == 1 for at in range(0, 300, 3))
    assert len(set(ports)) == len(engine.underlay.senders)


def test_fragments_leave_by_the_socket_of_their_addresses(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.bind(MAC_B)
    for sport in range(1000, 1032):
        whole = udp4(bytes(64), sport=sport)
        piece = udp4(bytes(64), ip=IP(src=IP4_A, dst=IP4_B, flags="MF"), sport=sport)
        engine.from_device(whole)
        engine.from_device(piece)  # the first of its packet has ports too, the others do not
    assert len({sent.source_port for sent in engine.sent[1::2]}) == 1
    assert len({sent.source_port for sent in engine.sent[0::2]}) > 1


def test_broadcast_goes_to_each_vtep_once(make_engine: MakeEngine) -> None:
    engine = make_engine(vteps=(VTEP_B, VTEP_C))
    engine.from_device(frame(BROADCAST, LOCAL), frame(BROADCAST, LOCAL))
    assert [sent.to[0] for sent in engine.sent] == [str(VTEP_B), str(VTEP_C)] * 2
    ledger = engine.statistics().ledger
    assert (ledger.received, ledger.generated, ledger.sent) == (2, 2, 4)


def test_a_flood_list_that_changed_is_flooded_to_at_once(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.from_device(frame(BROADCAST, LOCAL))
    engine.add_vteps(VTEP_C)
    engine.from_device(frame(BROADCAST, LOCAL))
    assert [sent.to[0] for sent in engine.sent] == [str(VTEP_B), str(VTEP_B), str(VTEP_C)]


@pytest.mark.parametrize("octets", [frame(BROADCAST, LOCAL), frame(UNKNOWN, LOCAL)])
def test_with_no_vtep_nothing_is_sent(make_engine: MakeEngine, octets: bytes) -> None:
    engine = make_engine(vteps=())
    engine.from_device(octets, octets)
    assert engine.drops() == {DropReason.NO_VTEP: 2}


def test_unknown_unicast_is_dropped_where_the_operator_wants_no_flooding(make_engine: MakeEngine) -> None:
    engine = make_engine(policy=BridgePolicy(NETWORK, OWN_MAC, flood=False))
    engine.from_device(frame(UNKNOWN, LOCAL))
    engine.bind(UNKNOWN)
    engine.from_device(frame(UNKNOWN, LOCAL))
    assert engine.drops() == {DropReason.UNKNOWN_UNICAST: 1}
    assert len(engine.sent) == 1


def test_copies_beyond_the_networks_share_are_dropped(make_engine: MakeEngine) -> None:
    vteps = [ip_address(f"198.18.{number // 250}.{number % 250 + 1}") for number in range(1000)]
    engine = make_engine(vteps=vteps)
    frames = int(COPIES_BURST) // 1000
    engine.from_device(*[frame(BROADCAST, LOCAL)] * (frames + 2))
    assert engine.drops() == {DropReason.BUM_LIMIT: 2}
    assert len(engine.sent) == frames * 1000
    engine.clock.advance(1.0)
    engine.from_device(frame(BROADCAST, LOCAL))
    assert engine.drops() == {DropReason.BUM_LIMIT: 2}


@pytest.mark.parametrize("octets", [b"", b"\x02", OUT[:11], OUT[:13], frame(LOCAL, BROADCAST)])
def test_what_is_no_frame_is_malformed(make_engine: MakeEngine, octets: bytes) -> None:
    engine = bound(make_engine)
    engine.from_device(OUT)  # what stood in the buffer before must not count
    engine.from_device(octets)
    assert engine.drops() == {DropReason.INNER_MALFORMED: 1}
    assert len(engine.sent) == 1


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (frame(b"\x01\x80\xc2\0\0\x0e", LOCAL), DropReason.LINK_LOCAL),
        (frame(UNKNOWN, REMOTE), DropReason.SPOOFED_SOURCE),
    ],
)
def test_a_drop_that_was_decided_is_remembered(
    make_engine: MakeEngine, octets: bytes, reason: DropReason
) -> None:
    engine = bound(make_engine)
    engine.from_device(octets)
    engine.from_device(octets, octets)
    assert engine.drops() == {reason: 3}
    assert engine.statistics().upcalls == 1


# ── Congestion (RFC 6040) ───────────────────────────────────────────────────────────────────────────────

ECN = {"Not-ECT": 0, "ECT(1)": 1, "ECT(0)": 2, "CE": 3}
every_ecn = pytest.mark.parametrize("ecn", ECN.values(), ids=ECN)


@every_ecn
@pytest.mark.parametrize("tags", [(), (7,), (256,)])
@pytest.mark.parametrize("version", [4, 6])
def test_the_outer_header_takes_the_inner_ecn_field_and_not_its_dscp(
    make_engine: MakeEngine, ecn: int, tags: tuple[int, ...], version: int
) -> None:
    engine = make_engine()
    engine.bind(MAC_B)
    tos = 0b101110 << 2 | ecn
    for marks in (tos, ecn):
        if version == 4:
            octets = udp4(b"x", ip=IP(src=IP4_A, dst=IP4_B, tos=marks), tags=tags)
        else:
            octets = udp6(b"x", ip=IPv6(src=IP6_A, dst=IP6_B, tc=marks), tags=tags)
        engine.from_device(octets)
        engine.from_device(octets)
    assert [sent.tos for sent in engine.sent] == [ecn] * 4


@pytest.mark.parametrize("vtep", [VTEP_B, VTEP_V6])
@every_ecn
def test_a_mark_on_the_underlay_reaches_who_heeds_it(make_engine: MakeEngine, vtep: Any, ecn: int) -> None:
    engine = make_engine(addresses=(OURS, OURS_V6), vteps=(VTEP_B, VTEP_V6))
    octets = udp4(b"x", ip=IP(src=IP4_A, dst=IP4_B, tos=ecn))
    engine.from_underlay(octets, octets, sender=vtep, tos=3)
    if ecn == 0:
        assert engine.drops_of(vtep) == {DropReason.ECN_CONGESTED: 2}
        assert engine.device.frames == []
    else:
        assert [Ether(got)[IP].tos for got in engine.device.frames] == [3, 3]


@every_ecn
@pytest.mark.parametrize("outer", [0, 1, 2])
def test_without_a_mark_on_the_underlay_the_inner_field_stands(
    make_engine: MakeEngine, ecn: int, outer: int
) -> None:
    engine = make_engine()
    octets = udp4(b"x", ip=IP(src=IP4_A, dst=IP4_B, tos=ecn))
    engine.from_underlay(octets, tos=outer)
    assert engine.device.frames == [octets]


# ── What a send may come to ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM])
@pytest.mark.parametrize("marks", [0, 2])
def test_a_full_socket_is_not_tried_again(make_engine: MakeEngine, number: int, marks: int) -> None:
    engine = make_engine()
    engine.bind(MAC_B)
    octets = udp4(b"x", ip=IP(src=IP4_A, dst=IP4_B, tos=marks))
    engine.underlay.send_errors.append(os_error(number))
    engine.from_device(octets, octets)
    assert engine.drops_of(VTEP_B) == engine.drops() == {DropReason.UNDERLAY_FULL: 1}
    assert len(engine.sent) == 1


@pytest.mark.parametrize("number", [errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH])
@pytest.mark.parametrize("earlier", [1, 3, SEND_TRIES - 1])
def test_refusals_of_earlier_datagrams_do_not_lose_this_one(
    make_engine: MakeEngine, earlier: int, number: int
) -> None:
    # With IP_RECVERR a send may report what befell an earlier datagram, and the next what befell another.
    engine = bound(make_engine)
    engine.underlay.send_errors.extend([os_error(number)] * earlier)
    engine.from_device(OUT)
    assert (len(engine.sent), engine.drops()) == (1, {})


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (errno.ECONNREFUSED, DropReason.UNDERLAY_ERROR),
        (errno.ENETUNREACH, DropReason.UNDERLAY_ERROR),
        (errno.ENOBUFS, DropReason.UNDERLAY_FULL),
        (errno.EMSGSIZE, DropReason.MTU_EXCEEDED),
    ],
)
def test_a_send_refused_time_and_again_is_lost_for_the_last_reason(
    make_engine: MakeEngine, last: int, reason: DropReason
) -> None:
    engine = bound(make_engine)
    refused = [os_error(errno.ECONNREFUSED)] * (SEND_TRIES - 1)
    engine.underlay.send_errors.extend([*refused, os_error(last)])
    engine.from_device(OUT, OUT)
    assert engine.drops_of(VTEP_B) == engine.drops() == {reason: 1}
    assert len(engine.sent) == 1


@pytest.mark.parametrize(("number", "tries"), [(errno.EPERM, 1), (errno.EMSGSIZE, 2)])
def test_what_is_said_of_this_very_datagram_is_believed_at_once(
    make_engine: MakeEngine, number: int, tries: int
) -> None:
    engine = bound(make_engine)
    engine.underlay.send_errors.extend([os_error(number)] * tries)
    engine.from_device(OUT, OUT)
    assert len(engine.sent) == 1


def test_one_vtep_that_cannot_be_reached_costs_the_others_nothing(make_engine: MakeEngine) -> None:
    engine = make_engine(vteps=(VTEP_B, VTEP_C))
    engine.underlay.send_errors.extend([os_error(errno.ENETUNREACH)] * SEND_TRIES)
    engine.from_device(frame(BROADCAST, LOCAL))
    assert [sent.to[0] for sent in engine.sent] == [str(VTEP_C)]
    assert engine.drops_of(VTEP_B) == {DropReason.UNDERLAY_ERROR: 1}


# ── Too long for the path ───────────────────────────────────────────────────────────────────────────────


def long_echo(octets: int) -> bytes:
    """An echo request whose packet has that many octets and must not be fragmented."""
    return echo4(bytes(octets - 28), flags="DF")


def test_the_longest_frame_fits_and_one_octet_more_is_answered(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.bind(MAC_B)
    engine.from_device(long_echo(1450))
    assert (len(engine.sent), engine.drops()) == (1, {})
    engine.from_device(long_echo(1451))
    assert engine.drops_of(VTEP_B) == {DropReason.MTU_EXCEEDED: 1}
    (answer,) = engine.device.frames
    assert Ether(answer)["ICMP"].nexthopmtu == 1450
    assert answer[:12] == MAC_A + OWN_MAC


def test_a_path_found_narrow_is_asked_for_and_told(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.bind(MAC_B)
    engine.underlay.paths[str(VTEP_B)] = 1400
    engine.underlay.send_errors.extend([os_error(errno.EMSGSIZE)] * 2)
    engine.from_device(long_echo(1450))
    assert Ether(engine.device.frames[0])["ICMP"].nexthopmtu == 1350
    engine.from_device(long_echo(1351), long_echo(1350))  # the first is not even tried
    assert engine.drops_of(VTEP_B) == {DropReason.MTU_EXCEEDED: 2}
    assert [len(sent.frame) for sent in engine.sent] == [1364]


def test_a_narrow_path_is_asked_again_after_a_while(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.bind(MAC_B)
    engine.underlay.paths[str(VTEP_B)] = 1400
    engine.underlay.refuse(VTEP_B, errno.EMSGSIZE, 1400)
    engine.from_device(long_echo(100))  # a send tells of it
    engine.from_device(long_echo(1450))
    assert len(engine.sent) == 1
    engine.underlay.paths.clear()
    engine.clock.advance(PATH_RECHECK_SECONDS)
    engine.datapath.expire(now=engine.clock.now)
    engine.from_device(long_echo(1450))
    assert len(engine.sent) == 2


def test_a_path_that_is_gone_is_not_called_narrow(make_engine: MakeEngine) -> None:
    engine = bound(make_engine)
    engine.underlay.paths[str(VTEP_B)] = 0
    engine.underlay.send_errors.extend([os_error(errno.EMSGSIZE)] * 2)
    engine.from_device(OUT, OUT)
    assert len(engine.sent) == 1


def test_answers_about_size_are_metered_by_source(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.bind(MAC_B)
    _, burst = UpcallKind.ICMP_ERROR.value
    engine.from_device(*[long_echo(1451)] * 80)
    assert engine.drops() == {DropReason.MTU_EXCEEDED: 80}
    assert len(engine.device.frames) == burst * SHARE


def test_an_answer_the_device_does_not_take_is_counted_too(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.bind(MAC_B)
    engine.device.write_errors.append(os_error(errno.EIO))
    engine.from_device(long_echo(1451))
    assert engine.drops() == {DropReason.MTU_EXCEEDED: 1, DropReason.DEVICE_FULL: 1}


# ── Refusals ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ECONNREFUSED, DropReason.UNDERLAY_ERROR),
        (errno.EHOSTUNREACH, DropReason.UNDERLAY_ERROR),
        (errno.EMSGSIZE, DropReason.MTU_EXCEEDED),
    ],
)
def test_what_was_refused_was_not_sent_after_all(
    make_engine: MakeEngine, number: int, reason: DropReason
) -> None:
    engine = bound(make_engine)
    engine.from_device(OUT, OUT, OUT)
    engine.underlay.refuse(VTEP_B, number, 1400)
    engine.pass_a_second()
    assert engine.statistics().ledger.sent == 2
    assert engine.drops_of(VTEP_B) == engine.drops() == {reason: 1}


def test_the_next_send_tells_of_a_refusal_and_is_sent_all_the_same(make_engine: MakeEngine) -> None:
    engine = bound(make_engine)
    engine.from_device(OUT)
    engine.underlay.refuse(VTEP_B, errno.ECONNREFUSED)
    engine.from_device(OUT)
    assert (engine.statistics().ledger.sent, len(engine.sent)) == (1, 2)
    assert engine.drops_of(VTEP_B) == {DropReason.UNDERLAY_ERROR: 1}


def test_a_refusal_by_a_host_that_is_no_vtep_means_nothing(make_engine: MakeEngine) -> None:
    engine = bound(make_engine)
    engine.from_device(OUT)
    engine.underlay.refuse(STRANGER, errno.ECONNREFUSED)
    engine.pass_a_second()
    assert (engine.statistics().ledger.sent, engine.drops()) == (1, {})


def test_a_refusal_is_counted_in_one_of_the_networks_that_share_the_vtep(make_engine: MakeEngine) -> None:
    engine = bound(make_engine)
    engine.add_network("other", 43, VTEP_B)
    engine.from_device(OUT)
    engine.underlay.refuse(VTEP_B, errno.ECONNREFUSED)
    engine.pass_a_second()
    assert engine.statistics().ledger.dropped == 1


# ── Ingress: at the door ────────────────────────────────────────────────────────────────────────────────


def test_a_frame_arrives_as_it_was_sent(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.from_underlay(IN, IN)
    assert engine.device.written == [(PLAIN, IN)] * 2
    (of_b,) = engine.statistics().vteps
    assert (of_b.received_frames, of_b.received_octets) == (2, 2 * len(IN))
    flow = engine.flow(IN[:12])
    assert flow is not None
    assert (flow.direction, flow.vtep, flow.verdict) == (Direction.INGRESS, VTEP_B, Deliver())


@pytest.mark.parametrize("length", range(22))
def test_a_datagram_too_short_for_a_frame_is_truncated(make_engine: MakeEngine, length: int) -> None:
    engine = make_engine()
    engine.from_underlay(IN)  # what stood in the buffer before must not count
    engine.datagrams((HEADER + IN)[:length])
    where = NETWORK if length >= 8 else None
    assert engine.drops(where) == {DropReason.TRUNCATED: 1}
    assert engine.device.frames == [IN]


def test_a_header_without_its_flag_names_no_network(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.datagrams(b"\xf7" + HEADER[1:] + IN)
    assert engine.drops(None) == {DropReason.BAD_FLAGS: 1}


RESERVED = [1 << bit for bit in range(64) if not 8 <= bit < 32 and bit != 59]


@pytest.mark.parametrize("bit", RESERVED, ids=hex)
def test_a_reserved_bit_is_ignored_or_refused_as_the_operator_says(make_engine: MakeEngine, bit: int) -> None:
    header = (int.from_bytes(HEADER, "big") | bit).to_bytes(8, "big")
    engine = make_engine()
    engine.datagrams(header + IN)
    assert (engine.device.frames, engine.drops()) == ([IN], {})
    strict = make_engine(strictness=Strictness.LINUX)
    strict.datagrams(header + IN, HEADER + IN)
    assert (strict.device.frames, strict.drops()) == ([IN], {DropReason.RESERVED_BITS: 1})


def test_a_vni_nobody_has_is_unknown(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.from_underlay(IN, vni=43)
    assert engine.drops(None) == {DropReason.UNKNOWN_VNI: 1}
    assert engine.drops() == {}


def test_a_stranger_is_dropped_before_anything_is_asked(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.from_underlay(IN, sender=STRANGER)
    assert engine.drops() == {DropReason.UNKNOWN_VTEP: 1}
    assert engine.statistics().upcalls == 0
    assert engine.tables[NETWORK].fdb.entries() == ()


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (frame(LOCAL, BROADCAST), DropReason.INNER_MALFORMED),
        (frame(b"\x01\x80\xc2\0\0\x0e", REMOTE), DropReason.LINK_LOCAL),
        (frame(LOCAL, OWN_MAC), DropReason.OWN_MAC),
        (frame(LOCAL, UNKNOWN), DropReason.SPOOFED_SOURCE),
        (frame(REMOTE, mac(1)), DropReason.SPLIT_HORIZON),
    ],
    ids=lambda value: value.name if isinstance(value, DropReason) else "",
)
def test_what_is_decided_against_is_counted_of_its_vtep(
    make_engine: MakeEngine, octets: bytes, reason: DropReason
) -> None:
    engine = bound(make_engine, vteps=(VTEP_B, VTEP_C))
    engine.bind(UNKNOWN, VTEP_C)
    engine.from_underlay(octets)
    engine.from_underlay(octets)
    assert engine.drops() == engine.drops_of(VTEP_B) == {reason: 2}
    assert (engine.device.frames, engine.sent) == ([], [])


def test_no_frame_from_the_tunnel_goes_back_into_it(make_engine: MakeEngine) -> None:
    engine = bound(make_engine, vteps=(VTEP_B, VTEP_C))
    for destination in (REMOTE, UNKNOWN, LOCAL, BROADCAST, Mac(b"\x01\x80\xc2\0\0\0")):
        for source in (REMOTE, mac(1), mac(2)):
            engine.from_underlay(frame(destination, source), sender=VTEP_B)
            engine.from_underlay(frame(destination, source), sender=VTEP_C)
    assert engine.sent == []


class Misguided(Bridge):
    """Decides on ingress what may only be decided on egress."""

    def ingress(self, *arguments: Any, **named: Any) -> Any:
        return replace(super().ingress(*arguments, **named), verdict=Encapsulate(VTEP_B))


def test_not_even_a_wrong_decision_sends_a_frame_back(make_engine: MakeEngine) -> None:
    engine = make_engine()
    policy = BridgePolicy(OTHER, OWN_MAC)
    engine.tables.add_network(OTHER)
    device = DeviceDouble(engine.reactor)
    engine.attach(OTHER, device, Misguided(policy, engine.tables), vni=Vni(43))
    engine.add_vteps(VTEP_B, network=OTHER)
    engine.from_underlay(IN, vni=43)
    assert (engine.sent, engine.drops(OTHER)) == ([], {DropReason.SPLIT_HORIZON: 1})


def test_an_error_reported_on_receiving_loses_no_datagram(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.port.read_errors.append(os_error(errno.ECONNREFUSED))
    engine.from_underlay(IN)
    assert engine.device.frames == [IN]


# ── What a write may come to ────────────────────────────────────────────────────────────────────────────


def test_a_write_refused_for_its_contents_is_the_frames_fault_alone(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.device.write_errors.append(os_error(errno.EINVAL))
    engine.from_underlay(IN, IN)
    assert engine.drops_of(VTEP_B) == engine.drops() == {DropReason.INNER_MALFORMED: 1}
    assert engine.device.frames == [IN]
    engine.from_device(OUT)
    assert len(engine.sent) == 1


@pytest.mark.parametrize("number", [errno.EIO, errno.EBADFD, errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM])
def test_a_write_refused_by_the_device_is_the_devices(make_engine: MakeEngine, number: int) -> None:
    engine = make_engine()
    engine.device.write_errors.append(os_error(number))
    engine.from_underlay(IN, IN)
    assert engine.drops_of(VTEP_B) == engine.drops() == {DropReason.DEVICE_FULL: 1}
    assert engine.device.frames == [IN]


@pytest.mark.parametrize("number", [errno.EBADFD, errno.ENODEV])
def test_a_device_that_is_gone_is_listened_to_no_more(make_engine: MakeEngine, number: int) -> None:
    engine = bound(make_engine)
    engine.device.read_errors.append(os_error(number))
    engine.from_device(OUT)
    assert engine.device.fileno() not in engine.reactor._readers
    engine.from_device(OUT)
    assert engine.sent == []


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EIO, errno.EINTR])
def test_a_device_that_could_not_be_read_is_read_again(make_engine: MakeEngine, number: int) -> None:
    engine = bound(make_engine)
    engine.device.read_errors.append(os_error(number))
    engine.from_device(OUT)
    assert len(engine.sent) == 1


def test_a_device_that_came_back_is_listened_to_again(make_engine: MakeEngine) -> None:
    engine = bound(make_engine)
    engine.device.read_errors.append(os_error(errno.EBADFD))
    engine.from_device(OUT)
    new = DeviceDouble(engine.reactor)
    engine.datapath.replace_device(NETWORK, new, 1450)
    engine.from_device(OUT, device=new)
    assert len(engine.sent) == 1


# ── Repair ──────────────────────────────────────────────────────────────────────────────────────────────


def unfinished_tcp(payload: int) -> bytes:
    """A TCP frame as a kernel leaves it to a network card: the checksum is the pseudo-header's sum alone."""
    whole = bytearray(tcp4(bytes(payload)))
    total = sum(int.from_bytes(whole[at : at + 2], "big") for at in range(26, 34, 2)) + 6 + 20 + payload
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    whole[50:52] = total.to_bytes(2, "big")
    return bytes(whole)


@pytest.mark.parametrize("payload", [100, 20000])
def test_an_unfinished_frame_is_written_with_what_finishes_it(make_engine: MakeEngine, payload: int) -> None:
    octets = unfinished_tcp(payload)
    engine = make_engine()
    engine.from_underlay(octets)
    ((header, written),) = engine.device.written
    assert written == octets
    assert header[0] == 1  # VIRTIO_NET_HDR_F_NEEDS_CSUM
    assert (header[1] != 0) == (payload > 1450)  # a super-frame is cut as well
    plain = make_engine(repairs=False)
    plain.from_underlay(octets)
    assert plain.device.written == [(PLAIN, octets)]


def test_segments_are_no_longer_than_the_receivers_syn_allowed(make_engine: MakeEngine) -> None:
    engine = make_engine()
    syn = ether(
        IP(src=IP4_B, dst=IP4_A), TCP(flags="SA", options=[("MSS", 700)]), source=MAC_B, destination=MAC_A
    )
    engine.bind(MAC_A)
    engine.from_device(syn)
    engine.from_underlay(unfinished_tcp(20000))
    ((header, _),) = engine.device.written
    assert int.from_bytes(header[4:6], "little") == 700


def test_a_super_frame_that_contradicts_itself_is_malformed(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.from_underlay(unfinished_tcp(20000)[:15000])
    assert engine.drops_of(VTEP_B) == {DropReason.INNER_MALFORMED: 1}


# ── Learning ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_source_is_learned_and_answered_to_directly(make_engine: MakeEngine) -> None:
    engine = make_engine(vteps=(VTEP_B, VTEP_C))
    engine.from_device(OUT)
    engine.from_underlay(IN)
    engine.from_device(OUT)
    assert [sent.to[0] for sent in engine.sent] == [str(VTEP_B), str(VTEP_C), str(VTEP_B)]


def test_a_mac_that_moves_is_followed_within_one_frame(make_engine: MakeEngine) -> None:
    engine = make_engine(vteps=(VTEP_B, VTEP_C))
    for sender in (VTEP_B, VTEP_C, VTEP_B):
        engine.from_underlay(IN, IN, sender=sender)
        engine.from_device(OUT)
    assert [sent.to[0] for sent in engine.sent] == [str(VTEP_B), str(VTEP_C), str(VTEP_B)]


def test_a_mac_that_came_home_is_no_longer_sent_to(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.from_underlay(IN)
    engine.from_device(frame(BROADCAST, REMOTE))  # it speaks behind our own device now
    engine.from_underlay(frame(REMOTE, mac(1)))
    assert engine.device.frames[-1] == frame(REMOTE, mac(1))
    assert engine.drops() == {}


def test_a_full_fdb_delivers_and_asks_again_when_there_may_be_room(make_engine: MakeEngine) -> None:
    engine = make_engine(policy=BridgePolicy(NETWORK, OWN_MAC, fdb_max=1))
    engine.from_underlay(frame(LOCAL, mac(1)), IN, IN)
    assert len(engine.device.frames) == 3
    assert engine.tables[NETWORK].fdb.lookup(REMOTE) is None
    engine.clock.advance(LIMITED_VERDICT_SECONDS)
    expired(engine)
    assert engine.flow(IN[:12]) is None
    assert engine.flow(frame(LOCAL, mac(1))[:12]) is not None


def test_what_ingress_flows_carried_keeps_their_sources_young(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.from_underlay(IN)
    engine.clock.advance(5)
    engine.from_underlay(IN, frame(LOCAL, mac(1)))
    engine.from_device(OUT)
    now = engine.clock.now
    assert set(engine.datapath.activity(since=now)) == {
        Activity(NETWORK, REMOTE, VTEP_B, now),
        Activity(NETWORK, mac(1), VTEP_B, now),
    }
    assert list(engine.datapath.activity(since=now + 1)) == []


# ── Neighbor discovery is asked about frame by frame ────────────────────────────────────────────────────


def knows(engine: Engine, ip: str, address: Mac) -> None:
    engine.apply(
        FdbReplace(NETWORK, address, VTEP_B, Origin.CONTROL, 0.0),
        NeighborReplace(NETWORK, ip_address(ip), address, Origin.CONTROL, 0.0),
    )


@pytest.mark.parametrize(("question", "ip"), [(arp_request, IP4_B), (neighbor_solicitation, IP6_B)])
def test_a_known_neighbor_is_answered_for_and_nothing_is_sent(
    make_engine: MakeEngine, question: Callable[..., bytes], ip: str
) -> None:
    engine = make_engine()
    knows(engine, ip, MAC_B)
    # Another broadcast of the same source, remembered, must not answer for the question.
    asked = question()
    engine.from_device(asked[:12] + b"\x88\xb5" + bytes(46))
    engine.from_device(asked)
    assert len(engine.sent) == 1
    (answer,) = engine.device.frames
    assert answer[:12] == MAC_A + MAC_B
    ledger = engine.statistics().ledger
    assert (ledger.received, ledger.sent, ledger.delivered) == (2, 1, 1)


def test_each_question_of_a_burst_gets_its_own_answer(make_engine: MakeEngine) -> None:
    engine = make_engine()
    ips = [f"10.9.0.{host}" for host in range(10, 20)]
    for host, ip in enumerate(ips):
        knows(engine, ip, mac(host))
    engine.from_device(*(arp_request(asked_for=ip) for ip in ips))
    assert [Ether(answer)[ARP].psrc for answer in engine.device.frames] == ips


def test_a_vlan_gets_no_answer_that_another_one_gave(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.from_underlay(arp_request(tags=(10,)))
    question = BROADCAST + MAC_B + arp_request(asker=IP4_B, asked_for=IP4_A, tags=(20,))[12:]
    engine.from_device(question, question)
    assert [sent.frame for sent in engine.sent] == [question, question]
    assert len(engine.device.frames) == 1  # the one from the tunnel


def test_a_torn_frame_spoils_no_whole_one_behind_it(make_engine: MakeEngine) -> None:
    engine = bound(make_engine)
    engine.from_device(OUT[:13], OUT, OUT[:13])
    assert [sent.frame for sent in engine.sent] == [OUT]
    assert engine.drops() == {DropReason.INNER_MALFORMED: 2}


def test_an_answer_to_one_frame_is_no_answer_to_those_behind_it(make_engine: MakeEngine) -> None:
    # ND behind an extension header is not told from other IPv6 before it is read.
    engine = make_engine()
    knows(engine, IP6_B, MAC_B)
    group = IPv6Address("ff02::1:ff00:2")
    head = IPv6(src=IP6_A, dst=str(group), hlim=255) / IPv6ExtHdrDestOpt()
    at_group = Mac(b"\x33\x33" + group.packed[-4:])
    question = ether(
        head, ICMPv6ND_NS(tgt=IP6_B), ICMPv6NDOptSrcLLAddr(lladdr=MAC_A.hex(":")), destination=at_group
    )
    other = ether(IPv6(src=IP6_A, dst=str(group)), destination=at_group)
    engine.from_device(question, other, other)
    assert [sent.frame for sent in engine.sent] == [other, other]
    assert len(engine.device.frames) == 1


def test_a_burst_of_question_and_broadcast_is_answered_and_flooded(make_engine: MakeEngine) -> None:
    engine = make_engine()
    knows(engine, IP4_B, MAC_B)
    question = arp_request()
    other = question[:12] + b"\x88\xb5" + bytes(46)
    engine.from_device(question, other, question)
    assert [sent.frame for sent in engine.sent] == [other]
    assert len(engine.device.frames) == 2


def test_questions_from_the_tunnel_are_snooped_though_their_flow_is_known(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.from_underlay(frame(BROADCAST, MAC_A))
    engine.from_underlay(arp_request())
    known = engine.tables[NETWORK].neighbors.lookup(ip_address(IP4_A))
    assert known is not None
    assert known.mac == MAC_A


def test_ipv6_multicast_that_is_no_discovery_is_remembered(make_engine: MakeEngine) -> None:
    engine = make_engine()
    group = Mac(b"\x33\x33\0\0\0\xfb")
    stream = ether(IPv6(src=IP6_A, dst="ff02::fb", nh=17), destination=group)
    engine.from_device(stream)
    engine.from_device(stream, stream)
    assert engine.statistics().upcalls == 1
    flow = engine.flow(stream[:12])
    assert flow is not None
    assert isinstance(flow.verdict, Replicate)


def test_without_suppression_broadcast_arp_is_a_flow_like_any_other(make_engine: MakeEngine) -> None:
    engine = make_engine(policy=BridgePolicy(NETWORK, OWN_MAC, suppress=False), suppresses=False)
    engine.from_device(arp_request(), arp_request())
    assert engine.statistics().upcalls == 1


# ── Pending flows ───────────────────────────────────────────────────────────────────────────────────────


def test_frames_that_waited_leave_in_their_order_and_before_later_ones(make_engine: MakeEngine) -> None:
    engine = bound(make_engine)
    frames = [frame(REMOTE, LOCAL, bytes([number]) * 50) for number in range(150)]
    engine.from_device(*frames)
    assert [sent.frame for sent in engine.sent] == frames
    assert engine.statistics().upcalls == 1
    flow = engine.flow(OUT[:12])
    assert flow is not None
    assert flow.frames == 150


@in_bursts
@pytest.mark.parametrize("octets", [9000, 60000])
def test_more_octets_of_a_flow_than_may_wait_are_dropped(make_engine: MakeEngine, octets: int) -> None:
    engine = make_engine()
    engine.from_underlay(*[frame(LOCAL, REMOTE, bytes(octets - 14))] * 40)
    held = min(40, flows.PENDING_OCTETS_MAX // octets)
    assert engine.drops() == engine.drops_of(VTEP_B) == {DropReason.UPCALL_OVERFLOW: 40 - held}
    assert len(engine.device.frames) == held


@in_bursts
def test_more_frames_of_a_flow_than_may_wait_are_dropped(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With fewer upcalls a turn than reads, a question waits for several turns.
    monkeypatch.setattr(upcalls, "UPCALLS_PER_TURN", 1)
    engine = bound(make_engine)
    others = [frame(REMOTE, mac(number)) for number in range(FRAMES_PER_TURN)]
    engine.from_device(*others, *[OUT] * 500)
    assert engine.drops()[DropReason.UPCALL_OVERFLOW] > 0
    assert len([sent for sent in engine.sent if sent.frame == OUT]) >= flows.PENDING_FRAMES_MAX


@in_bursts
def test_questions_beyond_a_turns_share_are_answered_in_the_next(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upcalls, "UPCALLS_PER_TURN", 4)
    engine = bound(make_engine)
    frames = [frame(REMOTE, mac(number)) for number in range(50)]
    for octets in frames:
        engine.device.transmit(octets)
    engine.reactor.run_until(lambda: engine.statistics().upcalls > 0, within=0.0)
    assert engine.statistics().upcalls == 4
    assert engine.statistics().ledger.held == 46
    assert engine.statistics().ledger.balances
    engine.settle()
    assert [sent.frame for sent in engine.sent] == frames


@in_bursts
def test_a_turn_ends_with_so_many_decisions_however_few_questions_they_answer(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upcalls, "UPCALLS_PER_TURN", 4)
    engine = bound(make_engine)
    frames = [REMOTE + mac(number) + TORN_TAG for number in range(3) for _ in range(6)]
    for octets in frames:
        engine.device.transmit(octets)
    engine.reactor.run_until(lambda: engine.statistics().upcalls > 0, within=0.0)
    assert engine.statistics().upcalls == 6  # a question that was begun is answered
    engine.settle()
    assert engine.drops() == {DropReason.INNER_MALFORMED: 18}


def stalled(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, **others: Any) -> Engine:
    """An engine in whose last turn ten flows came and one was answered."""
    monkeypatch.setattr(upcalls, "UPCALLS_PER_TURN", 1)
    engine = bound(make_engine, **others)
    engine.bind(LOCAL)
    for number in range(5):
        engine.device.transmit(frame(REMOTE, mac(number)))
        engine.underlay.ports[PORT].enqueue(arriving(frame(mac(50), mac(60 + number))), merge=False)
    engine.reactor.run_until(lambda: engine.statistics().ledger.received == 10, within=0.0)
    assert engine.statistics().ledger.held >= 8
    return engine


def arriving(octets: bytes) -> Any:
    return Datagram(VTEP_B, 50000, OURS, PORT, HEADER + octets)


@in_bursts
def test_a_verdict_that_does_not_come_is_waited_for_a_second(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = stalled(make_engine, monkeypatch)
    held = engine.statistics().ledger.held
    engine.clock.advance(UPCALL_TIMEOUT_SECONDS - 0.01)
    engine.datapath.expire(now=engine.clock.now)
    assert engine.drops() == {}
    engine.clock.advance(0.01)
    engine.datapath.expire(now=engine.clock.now)
    assert engine.drops() == {DropReason.UPCALL_TIMEOUT: held}
    assert sum(engine.drops_of(VTEP_B).values()) in (4, 5)
    engine.settle()
    engine.from_device(frame(REMOTE, mac(4)))  # asked anew
    assert engine.sent[-1].frame == frame(REMOTE, mac(4))


@in_bursts
def test_a_network_detached_drops_what_waits(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = stalled(make_engine, monkeypatch)
    held = engine.statistics().ledger.held
    engine.datapath.detach(NETWORK)
    assert engine.drops() == {DropReason.UPCALL_TIMEOUT: held}
    assert engine.statistics().ledger.held == 0
    engine.settle()


@in_bursts
def test_what_waits_of_a_vtep_that_left_is_a_strangers(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = stalled(make_engine, monkeypatch)
    delivered = len(engine.device.frames)
    engine.apply(VtepRemove(NETWORK, VTEP_B))
    engine.settle()
    assert engine.drops()[DropReason.UNKNOWN_VTEP] == 5 - delivered
    assert len(engine.device.frames) == delivered


@in_bursts
def test_what_waits_of_a_vtep_that_left_and_came_back_is_a_strangers_too(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = stalled(make_engine, monkeypatch)
    delivered = len(engine.device.frames)
    engine.apply(VtepRemove(NETWORK, VTEP_B))
    engine.add_vteps(VTEP_B)
    engine.settle()
    assert engine.drops()[DropReason.UNKNOWN_VTEP] == 5 - delivered
    engine.from_underlay(IN)
    assert engine.device.frames[-1] == IN


# ── Limits ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_flood_of_questions_leaves_other_sources_theirs(make_engine: MakeEngine) -> None:
    engine = make_engine()
    _, burst = UpcallKind.NEIGHBOR_DISCOVERY.value
    share = int(burst * SHARE)
    for _ in range(4):
        engine.from_device(*[arp_request()] * 600)
    assert engine.drops() == {DropReason.UPCALL_LIMIT: 2400 - share}
    engine.from_device(LOCAL.join([BROADCAST, arp_request()[12:]]))
    assert len(engine.sent) == share + 1
    engine.clock.advance(1.0)
    engine.from_device(arp_request())
    assert len(engine.sent) == share + 2


def test_a_flood_from_one_vtep_leaves_other_vteps_theirs(make_engine: MakeEngine) -> None:
    engine = make_engine(vteps=(VTEP_B, VTEP_C))
    for _ in range(4):
        engine.from_underlay(*[arp_request()] * 600)
    limited = engine.drops_of(VTEP_B)[DropReason.UPCALL_LIMIT]
    assert 0 < limited < 2400
    engine.from_underlay(arp_request(), sender=VTEP_C)
    assert engine.drops_of(VTEP_C) == {}


def test_frames_whose_verdicts_hold_for_them_alone_are_metered_one_by_one(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    allowed = [True, True, True, False, False, True]
    monkeypatch.setattr(engine.datapath._upcalls.meter, "admits", lambda *_, **__: allowed.pop(0))
    engine.from_device(*[REMOTE + LOCAL + TORN_TAG] * 6)
    assert engine.drops() == {DropReason.INNER_MALFORMED: 4, DropReason.UPCALL_LIMIT: 2}
    assert engine.statistics().upcalls == 4


def test_a_flood_of_new_flows_is_limited_and_known_flows_are_not(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    engine.from_underlay(IN)
    monkeypatch.setattr(engine.datapath._upcalls.meter, "admits", lambda *_, **__: False)
    engine.from_underlay(IN, frame(LOCAL, mac(1)))
    assert engine.device.frames == [IN, IN]
    assert engine.drops_of(VTEP_B) == {DropReason.UPCALL_LIMIT: 1}


def test_a_full_flow_table_carries_frame_by_frame(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    monkeypatch.setattr(engine.datapath._networks[NETWORK].vteps[VTEP_B].ingress, "_capacity", 2)
    frames = [frame(LOCAL, mac(number)) for number in range(5)]
    for _ in range(3):
        engine.from_underlay(*frames)
    assert engine.device.frames == frames * 3
    assert (engine.flow_count, engine.statistics().upcalls) == (2, 2 + 3 * 3)


@in_bursts
def test_a_drain_ends_after_so_many_reads(make_engine: MakeEngine) -> None:
    engine = bound(make_engine)
    engine.from_device(OUT)
    for _ in range(FRAMES_PER_TURN + 1):
        engine.device.transmit(OUT)
    engine.reactor.run_until(lambda: len(engine.sent) > 1, within=0.0)
    assert len(engine.sent) == 1 + FRAMES_PER_TURN
    engine.settle()
    assert len(engine.sent) == 2 + FRAMES_PER_TURN


@in_bursts
def test_a_drain_ends_after_as_many_unknown_frames_as_are_answered_at_once(make_engine: MakeEngine) -> None:
    engine = bound(make_engine)
    for number in range(UNKNOWN_PER_TURN + 1):
        engine.device.transmit(frame(REMOTE, mac(number)))
    engine.reactor.run_until(lambda: bool(engine.sent), within=0.0)
    assert len(engine.sent) == engine.statistics().ledger.received == UNKNOWN_PER_TURN
    engine.settle()
    assert len(engine.sent) == UNKNOWN_PER_TURN + 1


def test_a_new_flow_that_begins_with_a_burst_loses_nothing(make_engine: MakeEngine) -> None:
    engine = bound(make_engine)
    engine.from_device(*[OUT] * 2 * FRAMES_PER_TURN)
    assert (len(engine.sent), engine.drops()) == (2 * FRAMES_PER_TURN, {})
    engine.from_underlay(*[IN] * 2 * READS_PER_TURN)
    assert (len(engine.device.frames), engine.drops()) == (2 * READS_PER_TURN, {})


@in_bursts
def test_a_drain_ends_after_so_much_time(make_engine: MakeEngine) -> None:
    engine = bound(make_engine)
    engine.from_device(OUT)
    engine.clock.tick = TURN_SECONDS / 10
    for _ in range(FRAMES_PER_TURN):
        engine.device.transmit(OUT)
    engine.reactor.run_until(lambda: len(engine.sent) > 1, within=0.0)
    assert 9 <= len(engine.sent) - 1 <= 11
    engine.clock.tick = 0.0
    engine.settle()
    assert len(engine.sent) == 1 + FRAMES_PER_TURN


# ── Every second ────────────────────────────────────────────────────────────────────────────────────────


def expired(engine: Engine) -> None:
    """As many calls as it takes to look at every flow of a small table."""
    for _ in range(3):
        engine.datapath.expire(now=engine.clock.now)


def test_idle_flows_leave_and_busy_ones_stay(make_engine: MakeEngine) -> None:
    engine = bound(make_engine)
    engine.from_device(OUT)
    engine.from_underlay(IN)
    engine.clock.advance(flows.IDLE_SECONDS / 2)
    engine.from_underlay(IN)
    engine.clock.advance(flows.IDLE_SECONDS / 2)
    expired(engine)
    assert [flow.key for flow in engine.datapath.flows()] == [IN[:12]]


def test_what_the_kernel_lost_before_us_has_a_name(make_engine: MakeEngine) -> None:
    engine = bound(make_engine)
    engine.from_device(OUT)
    engine.device.lost = 3
    engine.port.lost = 4
    for _ in range(2):  # the second time nothing more was lost
        engine.datapath.expire(now=engine.clock.now)
    assert engine.drops() == {DropReason.DEVICE_OVERRUN: 3, DropReason.RECEIVE_OVERRUN: 4}
    assert engine.statistics().ledger.received == 1 + 3 + 4
    engine.device.lost = 5
    engine.datapath.expire(now=engine.clock.now)
    assert engine.drops()[DropReason.DEVICE_OVERRUN] == 5


def test_super_packets_lost_behind_a_door_were_not_sent_after_all(make_engine: MakeEngine) -> None:
    engine = bound(make_engine)
    door = SuperDoorDouble()
    doors = engine.underlay.super_doors = SuperDoorsDouble({VTEP_B: door})
    engine.datapath.reroute()
    burst = Burst(octets=5000, size=1000)
    engine.bind(MAC_B)
    for _ in range(5):
        engine.device.transmit(burst.whole, burst.header)
    engine.settle()
    assert len(door.written) == engine.statistics().ledger.sent == 5
    for lost, total in ((0, 0), (2, 2), (2, 2), (3, 3)):
        doors.lost = lost
        expired(engine)
        assert engine.drops().get(DropReason.UNDERLAY_ERROR, 0) == total
        ledger = engine.statistics().ledger
        assert (ledger.sent, ledger.balances) == (5 - total, True)


def test_of_several_networks_nobody_knows_whose_the_lost_super_packets_were(make_engine: MakeEngine) -> None:
    engine = bound(make_engine)
    engine.add_network("other", 43, VTEP_B)
    doors = engine.underlay.super_doors = SuperDoorsDouble()
    engine.from_device(OUT)
    doors.lost = 1
    expired(engine)
    assert engine.drops(None) == {DropReason.UNDERLAY_ERROR: 1}
    assert engine.drops() == {}


def test_of_a_shared_port_nobody_knows_whose_the_lost_datagrams_were(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.add_network("other", 43)
    engine.port.lost = 4
    engine.datapath.expire(now=engine.clock.now)
    assert engine.drops(None) == {DropReason.RECEIVE_OVERRUN: 4}


# ── Seeing ──────────────────────────────────────────────────────────────────────────────────────────────


def test_an_observer_sees_each_frame_where_it_passes(make_engine: MakeEngine) -> None:
    engine = bound(make_engine)
    watcher = Watcher()
    engine.datapath.watch(watcher)
    engine.from_device(OUT)
    engine.from_underlay(IN)
    engine.from_underlay(IN, sender=STRANGER)
    engine.from_underlay(IN, vni=43)
    assert watcher.seen == [
        Seen(Point.DEVICE_READ, NETWORK, OUT, None),
        Seen(Point.UNDERLAY_SEND, NETWORK, OUT, None),
        Seen(Point.UNDERLAY_RECEIVE, NETWORK, IN, None),
        Seen(Point.DEVICE_WRITE, NETWORK, IN, None),
        Seen(Point.UNDERLAY_RECEIVE, NETWORK, IN, None),
        Seen(Point.DROP, NETWORK, IN, Drop(DropReason.UNKNOWN_VTEP)),
        Seen(Point.UNDERLAY_RECEIVE, None, IN, None),
        Seen(Point.DROP, None, IN, Drop(DropReason.UNKNOWN_VNI)),
    ]


def test_an_observer_sees_what_was_made_here(make_engine: MakeEngine) -> None:
    engine = make_engine(vteps=(VTEP_B, VTEP_C))
    watcher = Watcher()
    engine.datapath.watch(watcher)
    engine.from_device(frame(BROADCAST, LOCAL))
    engine.bind(MAC_B)
    engine.from_device(long_echo(1451))
    assert watcher.points() == [
        Point.DEVICE_READ,
        Point.UNDERLAY_SEND,
        Point.UNDERLAY_SEND,
        Point.DEVICE_READ,
        Point.DROP,
        Point.DEVICE_WRITE,
    ]


def test_who_stopped_watching_sees_nothing_more(make_engine: MakeEngine) -> None:
    engine = bound(make_engine)
    watchers = [Watcher(), Watcher()]
    for watcher in watchers:
        engine.datapath.watch(watcher)
    engine.from_device(OUT)
    engine.datapath.unwatch(watchers[0])
    engine.from_device(OUT)
    assert len(watchers[1].seen) == 2 * len(watchers[0].seen) > 0


def test_while_nobody_watches_nobody_is_called(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def called(*_: object) -> None:
        raise AssertionError("expected no call while nobody watches")

    monkeypatch.setattr(Recorder, "show", called)
    engine = bound(make_engine)
    engine.from_device(OUT, frame(BROADCAST, LOCAL), b"")
    engine.from_underlay(IN, IN, sender=STRANGER)


PASS_SECONDS = pytest.mark.parametrize("seconds", [0.0, 0.0005], ids=["quick", "longer than a pause"])


@by_the_clock
@PASS_SECONDS
def test_after_a_quiet_time_one_frame_is_asked_for_and_then_all(
    make_engine: MakeEngine, seconds: float
) -> None:
    engine = bound(make_engine)
    engine.from_device(OUT)
    engine.clock.advance(1.0)
    for _ in range(3):
        engine.device.transmit(OUT)
    sent_before: list[int] = []  # each read
    plain_read = engine.device.read_into

    def read_into(buffers: Any) -> int:
        sent_before.append(len(engine.sent))
        engine.clock.advance(seconds)
        return plain_read(buffers)

    engine.device.read_into = read_into  # type: ignore[method-assign]
    engine.reactor.run_until(lambda: len(engine.sent) == 4, within=1.0)
    assert sent_before[:3] == [1, 2, 2], "expected one frame on its way, and then a burst"


@by_the_clock
@PASS_SECONDS
def test_after_a_quiet_time_one_datagram_is_asked_for_and_then_all(
    make_engine: MakeEngine, seconds: float
) -> None:
    engine = bound(make_engine)
    engine.from_underlay(IN)
    engine.clock.advance(1.0)
    reads: list[int] = []
    plain_read = engine.port.receive_into

    def receive_into(buffers: Any, room: int) -> Any:
        reads.append(len(engine.device.frames))
        engine.clock.advance(seconds)
        return plain_read(buffers, room)

    engine.port.receive_into = receive_into  # type: ignore[method-assign]
    engine.from_underlay(IN, IN)
    assert engine.device.frames == [IN] * 3
    assert reads == [1, 2, 3], "expected a read that finds nothing, which only a burst makes"


# ── Many ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_thousand_vteps_are_known_apart(make_engine: MakeEngine) -> None:
    vteps = [ip_address(f"198.18.{number // 250}.{number % 250 + 1}") for number in range(1000)]
    engine = make_engine(vteps=vteps)
    for number, vtep in enumerate(vteps):
        engine.from_underlay(frame(LOCAL, mac(number)), sender=vtep)
    engine.from_device(*(frame(mac(number), LOCAL) for number in range(1000)))
    assert [sent.to[0] for sent in engine.sent] == [str(vtep) for vtep in vteps]
    engine.apply(*(VtepRemove(NETWORK, vtep) for vtep in vteps))
    assert (engine.flow_count, len(engine.tables[NETWORK].fdb)) == (0, 0)


def test_ten_thousand_macs_behind_one_vtep_are_all_remembered(make_engine: MakeEngine) -> None:
    engine = make_engine(policy=BridgePolicy(NETWORK, OWN_MAC, fdb_max=10_000))
    for start in range(0, 10_000, 1000):
        engine.from_underlay(*(frame(LOCAL, mac(number)) for number in range(start, start + 1000)))
        engine.clock.advance(1.0)
    assert len(engine.tables[NETWORK].fdb) == engine.flow_count == 10_000
    upcalls = engine.statistics().upcalls
    engine.from_underlay(*(frame(LOCAL, mac(number)) for number in range(0, 10_000, 100)))
    assert engine.statistics().upcalls == upcalls
    assert len(engine.device.frames) == 10_100


# ── Whatever arrives ────────────────────────────────────────────────────────────────────────────────────

DATAGRAMS = st.lists(
    st.one_of(
        st.binary(max_size=120),
        st.binary(max_size=120).map(lambda rest: HEADER + rest),
        st.binary(max_size=120).map(lambda rest: HEADER + IN[:12] + rest),
        st.sampled_from([HEADER + IN, HEADER + arp_request(), HEADER + unfinished_tcp(3000)]),
    ),
    max_size=12,
)
FRAMES = st.lists(
    st.one_of(
        st.binary(max_size=120),
        st.binary(max_size=120).map(lambda rest: OUT[:12] + rest),
        st.sampled_from([OUT, arp_request(), neighbor_solicitation(), long_echo(1500)]),
    ),
    max_size=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    arriving=st.lists(
        st.tuples(st.sampled_from([VTEP_B, STRANGER]), DATAGRAMS, st.integers(0, 3)), max_size=3
    ),
    leaving=FRAMES,
)
def test_whatever_arrives_is_accounted_for_and_the_next_frame_passes(
    make_engine: MakeEngine, arriving: list[tuple[Any, list[bytes], int]], leaving: list[bytes]
) -> None:
    engine = bound(make_engine)
    for sender, datagrams, tos in arriving:
        engine.datagrams(*datagrams, sender=sender, tos=tos)
    engine.from_device(*leaving)
    assert engine.statistics().ledger.balances
    before = len(engine.sent), len(engine.device.frames)
    engine.from_device(OUT)
    engine.from_underlay(frame(LOCAL, REMOTE, b"after"))
    assert engine.sent[-1].frame == OUT
    assert engine.device.frames[-1] == frame(LOCAL, REMOTE, b"after")
    assert (len(engine.sent), len(engine.device.frames)) == (before[0] + 1, before[1] + 1)


@pytest.mark.parametrize("datagram", [b"", HEADER, bytes(65000), HEADER + IN + bytes(60000)])
@pytest.mark.parametrize("sender", [VTEP_B, STRANGER])
def test_empty_and_giant_datagrams_are_carried_or_named(
    make_engine: MakeEngine, datagram: bytes, sender: Any
) -> None:
    engine = bound(make_engine)
    engine.datagrams(datagram, sender=sender)
    engine.from_underlay(IN)
    assert engine.device.frames[-1] == IN
    assert engine.statistics().ledger.received == 2
