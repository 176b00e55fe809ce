"""Who counts, and when; what our devices show of what is behind them."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from support.doubles import mac
from support.gossip_world import believes, weft_tags, world
from support.records import network, peer, say

from control.intent.desired import Node, NodeSubnet
from control.intent.localmacs import LOCAL_MACS_MAX
from control.membership.member import MemberState
from control.membership.peer import Peer
from control.membership.recordbody import LocalMac
from control.steering import (
    FLOWS_PER_LOOK,
    HOLD_DOWN_SECONDS,
    Steering,
    next_release,
    nodes_that_count,
)
from overlay.addr import BROADCAST, Mac, NetworkId, Vtep
from overlay.route import IpNetwork
from overlay.verdict import Deliver, Direction
from tunnel.interfaces import FlowStatistics

LAB = NetworkId("lab")
OWN = mac(0)


@dataclass(frozen=True)
class Intent:
    id: NetworkId = LAB
    mode: str = "bridge"
    encap: str = "vxlan"
    vni: int | None = 42
    port: int = 4789
    vteps: tuple[Vtep, ...] = ()
    network: IpNetwork | None = None
    subnet: IpNetwork | None = None
    nodes: tuple[NodeSubnet, ...] = ()


def test_the_suspected_count_the_dead_do_for_a_while_and_who_left_does_not() -> None:
    with world(1, "steering", core=Peer) as made:
        one = made.add("n1", tags=weft_tags("id1"))
        victim, leaver = (
            made.add(f"n{number}", tags=weft_tags(f"id{number}"), seeds=(one.endpoint,)) for number in (2, 3)
        )
        for number, actor in enumerate((one, victim, leaver), 1):
            say(made, actor, network(number))

        def count() -> set[str]:
            return {node.name for node in nodes_that_count(peer(one), now=one.clock(made.now))}

        made.run_until(lambda: count() == {"n2", "n3"}, within=5.0)
        leaver.core.leave(now=leaver.clock(made.now))
        made.settle(leaver)
        made.run_until(lambda: believes(one, "n3", MemberState.LEFT), within=5.0)
        assert count() == {"n2"}

        made.kill(victim)
        made.run_until(lambda: believes(one, "n2", MemberState.SUSPECT), within=10.0)
        assert count() == {"n2"}
        made.run_until(lambda: believes(one, "n2", MemberState.DEAD), within=20.0, step=0.01)
        assert count() == {"n2"}
        due = next_release(peer(one).members, now=one.clock(made.now))
        assert due is not None
        assert 0 < due - one.clock(made.now) <= HOLD_DOWN_SECONDS
        made.run(HOLD_DOWN_SECONDS + 0.01)
        assert count() == set()
        assert next_release(peer(one).members, now=one.clock(made.now)) is None


def flow(source: Mac, *, used_at: float, direction: Direction = Direction.EGRESS) -> FlowStatistics:
    return FlowStatistics(LAB, direction, None, mac(99) + source, Deliver(), 1, 60, used_at)


def seen(steering: Steering, *flows: FlowStatistics, now: float) -> set[Mac]:
    steering.see(flows, [Intent()], now=now)
    (said,) = steering.own([Intent()], now=now)
    return {local.mac for local in said.macs}


def served() -> Steering:
    steering = Steering([ip_address("192.0.2.1")])
    steering.serve(Intent(), OWN, [ip_address("fe80::1"), ip_address("10.9.0.1")], ageing=300)
    return steering


def test_our_record_has_the_device_its_addresses_and_who_sent_through_it() -> None:
    steering = served()
    (said,) = steering.own([Intent()], now=1.0)
    assert (said.mac, said.macs) == (OWN, (LocalMac(OWN),))
    assert said.ips == ((ip_address("10.9.0.1"), OWN), (ip_address("fe80::1"), OWN))
    assert said.vteps == (ip_address("192.0.2.1"),)
    assert seen(steering, flow(mac(1), used_at=2.0), now=2.0) == {OWN, mac(1)}


def test_what_came_from_the_tunnel_or_from_a_group_is_not_behind_us() -> None:
    strange = flow(mac(1), used_at=2.0, direction=Direction.INGRESS)
    assert seen(
        served(), strange, flow(BROADCAST, used_at=2.0), flow(Mac(bytes(6)), used_at=2.0), now=2.0
    ) == {OWN}


def test_of_very_many_flows_a_slice_is_read_at_a_time() -> None:
    steering = served()
    many = [flow(mac(1), used_at=2.0)] * FLOWS_PER_LOOK + [flow(mac(2), used_at=2.0)]
    assert mac(2) not in seen(steering, *many, now=2.0)
    assert mac(2) in seen(steering, *many, now=3.0)


def test_a_device_that_is_replaced_starts_with_nothing_behind_it() -> None:
    steering = served()
    assert mac(1) in seen(steering, flow(mac(1), used_at=2.0), now=2.0)
    steering.serve(Intent(), mac(7), [], ageing=300)
    (said,) = steering.own([Intent()], now=3.0)
    assert said.macs == (LocalMac(mac(7)),)


def test_what_nodes_disagree_about_is_kept_until_the_next_look() -> None:
    steering = served()
    steering.look([Intent()], (Node("n2", (network(2, vni=43),)),), now=1.0)
    assert ["VNI 42 here, 43 on n2" in trouble.problem for trouble in steering.troubles] == [True]
    steering.look([Intent()], (), now=2.0)
    assert steering.troubles == ()


def test_more_macs_than_are_told_are_a_trouble() -> None:
    steering = served()
    flows = [flow(mac(number), used_at=2.0) for number in range(1, LOCAL_MACS_MAX + 2)]
    assert len(seen(steering, *flows, now=2.0)) == LOCAL_MACS_MAX + 1
    steering.look([Intent()], (), now=2.0)
    assert [f"more than {LOCAL_MACS_MAX} MACs" in trouble.problem for trouble in steering.troubles] == [True]
    seen(steering, now=400.0)
    steering.look([Intent()], (), now=400.0)
    assert steering.troubles == ()
