"""Three routers and a bad network: packets are lost by name, or come out where they belong, two hops older.

tun 1 ── PythonDatapath ──┐
tun 2 ── PythonDatapath ──┤  SimulatedWire: loss, duplication, delay, joined datagrams
tun 3 ── PythonDatapath ──┘
"""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address, ip_address, ip_network
from random import Random

import pytest
from support.packet_engine import PODS, PORT, TunDouble
from support.packets import aged, packet

from bench.lab.virtual import VirtualReactor
from bench.lab.wire import Impairment, SimulatedUnderlay, SimulatedWire
from overlay.addr import Vtep
from overlay.fdb import Origin
from overlay.router import Router, RouterPolicy
from overlay.tables import RouteReplace, TableDelta, Tables, VtepReplace
from overlay.verdict import DropReason
from tunnel.interfaces import Attachment
from tunnel.pydatapath import PythonDatapath

NODES = (1, 2, 3)


class Node:
    """One router on the wire."""

    def __init__(self, number: int, wire: SimulatedWire) -> None:
        reactor = wire.reactor
        self.tables = Tables()
        self.tables.add_network(PODS)
        underlay = SimulatedUnderlay(wire, ip_address(f"192.0.2.{number}"))
        self.datapath = PythonDatapath(
            self.tables,
            [underlay],
            reactor=reactor,
            clock=reactor.time,
            choose_underlay=lambda _: underlay,
        )
        self.device = TunDouble(reactor)
        router = Router(RouterPolicy(PODS, IPv4Address(f"10.5.{number}.0")), self.tables)
        self.datapath.attach(Attachment(PODS, None, PORT, self.device, router, 1472))
        for other in NODES:
            vtep = ip_address(f"192.0.2.{other}")
            changes = [RouteReplace(PODS, ip_network(f"10.5.{other}.0/24"), vtep, Origin.STATIC)]
            if other == number:
                changes = [RouteReplace(PODS, ip_network(f"10.5.{other}.0/24"), None, Origin.STATIC)]
            else:
                self.tables.apply(TableDelta((VtepReplace(PODS, Vtep(vtep, PORT)),)))
            self.tables.apply(TableDelta(tuple(changes)))


@pytest.mark.parametrize("seed", range(10))
def test_packets_come_out_where_their_subnet_is_or_are_lost_by_name(seed: int) -> None:
    random, reactor = Random(seed), VirtualReactor()
    impairment = Impairment(delay_s=0.001, jitter_s=0.002, loss=0.1, duplication=0.05, gro=seed % 2 == 0)
    wire = SimulatedWire(reactor, random, impairment)
    nodes = {number: Node(number, wire) for number in NODES}
    expected: dict[int, Counter[bytes]] = {number: Counter() for number in NODES}
    for serial in range(600):
        source, destination = random.sample(NODES, 2)
        to = random.choice((destination, destination, destination, 9))
        ttl = random.choice((0, 1, 2, 3, 64, 255))
        sent = packet(
            IPv4Address(f"10.5.{source}.7"), IPv4Address(f"10.5.{to}.7"), serial.to_bytes(2, "big"), ttl=ttl
        )
        nodes[source].device.transmit(sent)
        if to == destination and ttl > 2:
            expected[destination][aged(aged(sent))] += 1
        if random.random() < 0.3:
            reactor.run_for(0.001)
    reactor.run_for(5.0)

    delivered = Counter(dict.fromkeys(NODES, 0))
    for number, node in nodes.items():
        errors = [each for each in node.device.packets if each[9] == 1]  # told by the other end's router
        others = [each for each in node.device.packets if each[9] != 1]
        assert set(others) <= set(expected[number])
        assert all(each[20] == 11 for each in errors)
        delivered[number] = len(others)
        statistics = node.datapath.statistics()
        assert statistics.ledger.balances
        assert statistics.ledger.held == 0
        lost = {reason for reason, count in statistics.drops.get(PODS, {}).items() if count}
        assert lost <= {DropReason.NO_ROUTE, DropReason.TTL_EXPIRED}
        assert statistics.flows[PODS] <= 4 + 2 * 2
        node.datapath.close()
    wanted = sum(sum(each.values()) for each in expected.values())
    assert 0.8 * wanted < sum(delivered.values()) < 1.05 * wanted
