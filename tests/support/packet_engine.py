"""A `PythonDatapath` that carries one network of bare packets, between the doubles of `support.doubles`.

    PacketEngine.from_device ─▶ TunDouble ─▶ PythonDatapath ─▶ UnderlayDouble.sent
    TunDouble.packets, .answers ◀─ PythonDatapath ◀─ UnderlayDouble ◀─ PacketEngine.from_underlay

Routes and decisions are the real ones: our subnet is `OURS`, `B` and `C` are behind two VTEPs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, ip_address
from typing import Any

from support.clock import Clock
from support.doubles import Sent, UnderlayDouble, os_error
from support.packets import OURS, B, C

from bench.lab.host import NO_OFFLOAD, SimulatedDevice
from bench.lab.virtual import VirtualReactor
from bench.lab.wire import Datagram
from overlay.addr import IpAddress, Mac, NetworkId, Vtep
from overlay.fdb import Origin
from overlay.router import Router, RouterPolicy
from overlay.tables import Change, RouteReplace, TableDelta, Tables, VtepReplace
from overlay.verdict import DropReason
from tunnel.interfaces import Attachment, Buffer, DatapathStatistics
from tunnel.pydatapath import PythonDatapath

PODS = NetworkId("pods")
PORT = 8285
OUR_VTEP, VTEP_B, VTEP_C, STRANGER = (ip_address(f"192.0.2.{host}") for host in (1, 2, 3, 99))
OUR_ADDRESS = IPv4Address("10.5.1.0")
MTU = 1472


class TunDouble(SimulatedDevice):
    """A TUN that keeps what is written to it, and what it answers.

    Attributes:
        written: (virtio header, packet) of every write.
        answers: Packets of this node's own making.
        errno: What writes and answers are refused with, 0: nothing.
    """

    def __init__(self, reactor: VirtualReactor) -> None:
        super().__init__(reactor, "flannel0", Mac(bytes(6)), mtu=MTU)
        self.written: list[tuple[bytes, bytes]] = []
        self.answers: list[bytes] = []
        self.errno = 0
        self.set_carrier(up=True)

    @property
    def packets(self) -> list[bytes]:
        return [packet for _, packet in self.written]

    def write(self, buffers: Any) -> int:
        if self.errno:
            raise os_error(self.errno)
        octets = b"".join(bytes(buffer) for buffer in buffers)
        self.written.append((octets[: len(NO_OFFLOAD)], octets[len(NO_OFFLOAD) :]))
        return len(octets)

    def answer(self, packet: bytes) -> int:
        if self.errno:
            raise os_error(self.errno)
        self.answers.append(packet)
        return len(packet)


class PacketEngine:
    """The engine, its doubles, its clock and its tables."""

    def __init__(self, **others: Any) -> None:
        self.reactor, self.clock, self.tables = VirtualReactor(), Clock(), Tables()
        self.underlay = UnderlayDouble(self.reactor, OUR_VTEP)
        self.datapath = PythonDatapath(
            self.tables,
            [self.underlay],
            reactor=self.reactor,
            clock=self.clock,
            choose_underlay=lambda _: self.underlay,
        )
        self.device = TunDouble(self.reactor)
        self.tables.add_network(PODS)
        router = Router(RouterPolicy(PODS, OUR_ADDRESS), self.tables)
        self.datapath.attach(
            Attachment(
                **{
                    "network": PODS,
                    "vni": None,
                    "port": PORT,
                    "device": self.device,
                    "decider": router,
                    "overlay_mtu": MTU,
                    **others,
                }
            )
        )
        self.apply(VtepReplace(PODS, Vtep(VTEP_B, PORT)), VtepReplace(PODS, Vtep(VTEP_C, PORT)))
        for subnet, vtep in ((OURS, None), (B, VTEP_B), (C, VTEP_C)):
            self.apply(RouteReplace(PODS, subnet, vtep, Origin.STATIC))

    @property
    def sent(self) -> list[Sent]:
        return self.underlay.sent

    def apply(self, *changes: Change) -> None:
        self.tables.apply(TableDelta(changes))

    def from_device(self, *packets: bytes) -> None:
        """The host sends these, in one burst, and all that follows from it happens."""
        for packet in packets:
            self.device.transmit(packet)
        self.settle()

    def from_underlay(
        self, *payloads: Buffer, sender: IpAddress = VTEP_B, merge: bool = False, tos: int = 0
    ) -> None:
        """A VTEP sends these datagrams; `merge`: the kernel joins them."""
        for payload in payloads:
            arriving = Datagram(sender, PORT, OUR_VTEP, PORT, bytes(payload), tos)
            self.underlay.ports[PORT].enqueue(arriving, merge=merge)
        self.settle()

    def settle(self) -> None:
        self.reactor.run_for(0.0)

    def statistics(self) -> DatapathStatistics:
        return self.datapath.statistics()

    @property
    def flow_count(self) -> int:
        return sum(self.statistics().flows.values())

    def drops(self) -> dict[DropReason, int]:
        return {reason: count for reason, count in self.statistics().drops.get(PODS, {}).items() if count}


@contextmanager
def balanced_packet_engine(**others: Any) -> Iterator[PacketEngine]:
    """An engine that must have accounted for every packet in the end, and after it is closed."""
    engine = PacketEngine(**others)
    yield engine
    for _ in range(2):
        statistics = engine.statistics()
        assert statistics.ledger.balances, statistics.ledger
        assert statistics.ledger.dropped == sum(sum(each.values()) for each in statistics.drops.values())
        engine.datapath.close()
    assert engine.statistics().ledger.held == 0
