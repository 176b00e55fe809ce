"""Whole bridged nodes in virtual time, hosts that speak and move, and a witness who remembers every frame.

    Speech      one frame a host sent: a number in its payload tells it from every other
    Witness     sees what leaves each device, crosses the wire, and arrives behind each device

What the witness holds at any moment, whatever the wire did: a frame crosses the wire from the node it was
spoken at and from no other; it arrives octet for octet; never where it was spoken, never in another network
than its own, and no more often than the wire made it.

`bridge_world` prints the seed of a failing run and leaves what was last on the wire in `tests/artifacts/`,
as a pcapng for a packet analyser and as a Mermaid sequence diagram for a reader.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from support.doubles import frame
from support.pcapng import write_pcapng

from bench.lab.host import SimulatedDevice
from bench.lab.simulated import NETWORK, SimulatedLab
from bench.lab.topology import NodeKind, segment
from bench.lab.wire import Datagram, Impairment
from overlay.addr import BROADCAST, Mac, NetworkId, Vni, Vtep
from overlay.bridge import Bridge, BridgePolicy
from overlay.tables import FloodReplace, TableDelta, VtepReplace
from tunnel.interfaces import Attachment

ARTIFACTS = Path(__file__).parents[1] / "artifacts"
REMEMBERED_DATAGRAMS = 4000
NUMBER_AT = slice(14, 18)  # of a speech's payload, behind the Ethernet header
ROUGH = Impairment(loss=0.2, duplication=0.2, jitter_s=0.02)  # jitter far above the gaps: it reorders
SECOND = NetworkId("second")


@dataclass(frozen=True)
class Speech:
    """A frame that was sent, where, and in which network."""

    node: str
    network: NetworkId
    octets: bytes


class BridgeWorld:
    """Nodes n1, n2, … of one segment, and perhaps of a second one.

    Attributes:
        heard: (node, network) → the numbers of the speeches that arrived there, in their order.
        crossed: Number → the datagrams that carried it.
    """

    def __init__(self, seed: int, nodes: int, *, underlay_version: int = 4) -> None:
        self.seed = seed
        self.random = Random(seed)
        topology = segment("world", *[NodeKind.WEFT] * nodes, underlay_version=underlay_version)
        self.lab = SimulatedLab(topology, seed=seed)
        self.speeches: list[Speech] = []
        self.heard: dict[tuple[str, NetworkId], list[int]] = {}
        self.crossed: Counter[int] = Counter()
        self.recent: deque[tuple[float, Datagram, str]] = deque(maxlen=REMEMBERED_DATAGRAMS)
        self.devices: dict[tuple[str, NetworkId], SimulatedDevice] = {}
        self._node_at = {node.node.vtep: name for name, node in self.lab.nodes.items()}
        self._vni_of = {NETWORK: topology.vni, SECOND: topology.vni + 1}
        for name, node in self.lab.nodes.items():
            self._listen(name, NETWORK, node.device)
        self.lab.wire.watch(self._on_wire)

    def add_second_network(self) -> None:
        """Another VNI on the same port of every node."""
        for name, node in self.lab.nodes.items():
            device = SimulatedDevice(self.lab.reactor, "weft1", node.device.mac, mtu=node.device.mtu)
            node.tables.add_network(SECOND)
            port = self.lab.topology.port
            vteps = [Vtep(address, port) for address in self.lab.topology.vteps_seen_by(node.node)]
            flood = FloodReplace(SECOND, tuple(vtep.address for vtep in vteps))
            node.tables.apply(TableDelta((*(VtepReplace(SECOND, vtep) for vtep in vteps), flood)))
            node.datapath.attach(
                Attachment(
                    network=SECOND,
                    vni=Vni(self._vni_of[SECOND]),
                    port=port,
                    device=device,
                    decider=Bridge(BridgePolicy(SECOND, device.mac), node.tables),
                    overlay_mtu=device.mtu,
                )
            )
            device.set_carrier(up=True)
            self._listen(name, SECOND, device)

    def speak(
        self, node: str, source: Mac, destination: bytes = BROADCAST, network: NetworkId = NETWORK
    ) -> int:
        """A host behind the node says something; the number of what it said."""
        number = len(self.speeches)
        octets = frame(destination, source, number.to_bytes(4, "big"))
        self.speeches.append(Speech(node, network, octets))
        self.devices[node, network].transmit(octets)
        return number

    def hearers(self, number: int) -> dict[str, int]:
        """Where it arrived, and how often."""
        times = {place: numbers.count(number) for place, numbers in self.heard.items()}
        return {node: count for (node, _), count in times.items() if count}

    def vtep(self, node: str) -> object:
        return self.lab[node].node.vtep

    def settle(self) -> None:
        """Lets everything under way arrive; then every ledger balances."""
        self.lab.settle()
        assert self.lab.unbalanced() == []

    # The witness.

    def _listen(self, node: str, network: NetworkId, device: SimulatedDevice) -> None:
        self.devices[node, network] = device
        self.heard[node, network] = []
        device.receiver = partial(self._hear, node, network)

    def _hear(self, node: str, network: NetworkId, octets: bytes) -> None:
        number = int.from_bytes(octets[NUMBER_AT], "big")
        speech = self.speeches[number]
        assert speech.octets == octets, f"{number} arrived at {node} as {octets.hex()}"
        assert speech.network == network, f"{number} of {speech.network} arrived in {network} at {node}"
        assert speech.node != node, f"{number} came back to {node}"
        self.heard[node, network].append(number)
        assert self.heard[node, network].count(number) <= 2, f"{number} arrived too often at {node}"

    def _on_wire(self, now: float, datagram: Datagram, fate: str) -> None:
        self.recent.append((now, datagram, fate))
        if fate != "sent":
            return
        octets = datagram.payload[8:]
        number = int.from_bytes(octets[NUMBER_AT], "big")
        speech = self.speeches[number]
        sender = self._node_at[datagram.source]
        assert speech.node == sender, f"{number} was spoken at {speech.node} and sent by {sender}"
        assert int.from_bytes(datagram.payload[4:7], "big") == self._vni_of[speech.network]
        self.crossed[number] += 1

    # After a failure.

    def write_artifacts(self, name: str) -> Path:
        """What was last on the wire, as pcapng and as Mermaid."""
        ARTIFACTS.mkdir(exist_ok=True)
        path = ARTIFACTS / f"{name}-seed{self.seed}"
        rows = [
            (
                at,
                str(sent.source),
                sent.source_port,
                str(sent.destination),
                sent.destination_port,
                sent.payload,
            )
            for at, sent, fate in self.recent
            if fate == "sent" and sent.source.version == 4
        ]
        write_pcapng(path.with_suffix(".pcapng"), rows)
        path.with_suffix(".mmd").write_text(self._flow_log())
        return path

    def _flow_log(self) -> str:
        lines = ["sequenceDiagram", f"    Note over n1: seed {self.seed}"]
        for at, datagram, fate in list(self.recent)[-200:]:
            number = int.from_bytes(datagram.payload[8:][NUMBER_AT], "big")
            ends = f"{self._node_at[datagram.source]}->>{self._node_at[datagram.destination]}"
            lines.append(f"    {ends}: {at:.4f} s, frame {number} {fate}")
        return "\n".join(lines) + "\n"


@contextmanager
def bridge_world(seed: int, nodes: int, *, underlay_version: int = 4) -> Iterator[BridgeWorld]:
    """A world that tells its seed and writes its artifacts when what is done in it fails."""
    world = BridgeWorld(seed, nodes, underlay_version=underlay_version)
    try:
        yield world
        world.settle()
    except BaseException as failure:
        failure.add_note(f"seed {seed}; what was on the wire: {world.write_artifacts('bridge')}.*")
        raise
    finally:
        world.lab.close()
