"""Every rung forced on and off, and the segment works on each: who is slower is still right.

    n1  weft, [offload] as told ──── veth pair, or wire-like ──── n2  weft as told, or kernel VXLAN

Frames are exchanged for super-frames at four places (read from the device, sent, received, written to it), so
each is switched off alone, and all of them: what one end joins the other may have to take apart.  And each is
insisted on, with all the others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address

import pytest
from support.engines import ON_BOTH
from support.lab import ROOT, leaks, skip_unless_possible
from support.serving import drops, expect_clean_exits, start_daemons, view
from support.traffic import checksum_errors, echo_over_udp, send_segmented, transfer

from bench.lab import checks
from bench.lab.namespaces import Lab, Place
from bench.lab.topology import NodeKind, Topology, Underlay, UnderlayKind, segment
from overlay.verdict import DropReason

pytestmark = [*ROOT, pytest.mark.interop, ON_BOTH]

FEATURES = ("tap_gso", "udp_gso", "udp_gro", "tunnel_gso")
WEFT, KERNEL = NodeKind.WEFT, NodeKind.KERNEL_VXLAN
VETH, WIRE = UnderlayKind.VETH, UnderlayKind.WIRE_LIKE
ADDRESSES = {"n1": ip_address("10.9.0.1"), "n2": ip_address("10.9.0.2")}
WAYS = (("n1", "n2"), ("n2", "n1"))
TRANSFER_OCTETS = 3_000_000
FAULTS = (DropReason.INNER_MALFORMED, DropReason.MTU_EXCEEDED, DropReason.TRUNCATED, DropReason.BAD_FLAGS)


@dataclass(frozen=True, slots=True)
class World:
    """What n1 does without, who n2 is, and what is between them.  A weft n2 does without nothing."""

    off: tuple[str, ...]
    peer: NodeKind
    kind: UnderlayKind
    version: int = 4
    otherwise: str = "auto"

    def __str__(self) -> str:
        off = "all" if len(self.off) == len(FEATURES) else "+".join(self.off) or "none"
        switches = f"off={off}-otherwise={self.otherwise}"
        return f"{switches}-{self.peer.value.replace(' ', '-')}-{self.kind.value}-ipv{self.version}"

    @property
    def egress(self) -> str:
        """The rung n1 must be on."""
        if "udp_gso" in self.off:
            return "plain"
        is_super = self.kind is VETH and not {"tap_gso", "tunnel_gso"} & set(self.off)
        return "super" if is_super else "batch"

    @property
    def topology(self) -> Topology:
        made = segment("rungs", WEFT, self.peer, underlay=Underlay(self.kind), underlay_version=self.version)
        n1, *others = made.nodes
        settings = {f"offload.{each}": "off" if each in self.off else self.otherwise for each in FEATURES}
        return replace(made, nodes=(replace(n1, settings=settings), *others))


WORLDS = [World((), peer, kind) for peer in (WEFT, KERNEL) for kind in (VETH, WIRE)]
WORLDS += [World(FEATURES, peer, kind) for peer in (WEFT, KERNEL) for kind in (VETH, WIRE)]
WORLDS += [World((feature,), WEFT, WIRE) for feature in FEATURES]
WORLDS += [World((feature,), KERNEL, VETH) for feature in FEATURES]
WORLDS += [World((), WEFT, WIRE, version=6), World(FEATURES, KERNEL, VETH, version=6)]
WORLDS += [World((), KERNEL, VETH, otherwise="on"), World((), WEFT, VETH, version=6, otherwise="on")]


@pytest.fixture(scope="module", params=WORLDS, ids=str)
def world(request: pytest.FixtureRequest) -> World:
    """One combination."""
    chosen: World = request.param
    return chosen


@pytest.fixture(scope="module")
def lab(world: World, engine: str) -> Iterator[Lab]:  # noqa: ARG001  (chosen before it starts)
    """The two nodes, running; the tests of this file share them for each world."""
    skip_unless_possible(world.topology)
    with Lab(world.topology) as lab:
        start_daemons(lab)
        yield lab
        expect_clean_exits(lab)
    assert not leaks(lab)


def test_the_status_tells_the_rungs_and_what_keeps_them_low(world: World, lab: Lab) -> None:
    (underlay,) = view(lab.daemons["n1"], "status")["underlays"]
    rungs = underlay["rungs"]
    assert rungs["egress"] == world.egress
    assert rungs["ingress"] == ("plain" if "udp_gro" in world.off else "batch")
    for feature in FEATURES:
        assert (f'{feature} = "off"' in rungs["reason"]) == (feature in world.off)


@pytest.mark.parametrize(("source", "sink"), WAYS)
def test_every_octet_crosses(lab: Lab, source: str, sink: str) -> None:
    address = ADDRESSES[sink]
    assert checks.ping(lab[source], address, count=2).complete
    carried = transfer(lab[source], lab[sink], address, TRANSFER_OCTETS)
    assert (carried.received, carried.is_intact) == (TRANSFER_OCTETS, True)
    payloads = [os.urandom(octets) for octets in (0, 1, 1400, 1401, 20_000)]
    assert echo_over_udp(lab[source], lab[sink], address, payloads) == payloads
    size, payload = 1000, os.urandom(20_300)
    arrived = send_segmented(lab[source], lab[sink], address, payload, size)
    assert arrived == [payload[at : at + size] for at in range(0, len(payload), size)]


def test_what_the_status_tells_is_what_is_done(world: World, lab: Lab) -> None:
    before = datagrams_sent(lab["n1"])
    assert transfer(lab["n1"], lab["n2"], ADDRESSES["n2"], TRANSFER_OCTETS).is_intact
    sends = datagrams_sent(lab["n1"]) - before
    frames = TRANSFER_OCTETS // lab.topology.overlay_mtu(lab.topology.node("n1"))
    if "udp_gso" in world.off:
        assert sends >= frames
    elif not world.off:
        assert sends < frames / 2


def datagrams_sent(place: Place) -> int:
    """How many UDP sends the place's stack has taken: one, however many segments it was told to make."""
    told = place.run(["cat", "/proc/net/snmp"]).stdout.splitlines()
    names, values = (line.split() for line in told if line.startswith("Udp:"))
    sent_v6 = place.run(["awk", '$1 == "Udp6OutDatagrams" {print $2}', "/proc/net/snmp6"]).stdout
    return int(values[names.index("OutDatagrams")]) + int(sent_v6)


def test_nothing_was_wrong_with_what_crossed(world: World, lab: Lab) -> None:
    assert {name: checksum_errors(lab[name]) for name in ADDRESSES} == {name: {} for name in ADDRESSES}
    for daemon in lab.daemons.values():
        told = drops(daemon)
        assert {reason: count for reason, count in told.items() if count and reason in FAULTS} == {}
    (underlay,) = view(lab.daemons["n1"], "status")["underlays"]
    assert underlay["rungs"]["egress"] == world.egress, "was lowered"
