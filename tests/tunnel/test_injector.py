"""Rung 2 of one underlay: the life of its doors against surveys of our own making, and the real thing.

The model knows three things of a VTEP: whether it was asked for, what it was last told, and when it was shut.
"""

from __future__ import annotations

import errno
import math
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from scapy.layers.l2 import Ether
from support.clock import Clock
from support.doubles import HOP, VTEP_B, VTEP_C, InjectTapDouble, MakeEngine, SuperSent, UnderlayDouble
from support.frames import MAC_B
from support.namespace import Namespace, eventually, exit_status_as_nobody, needs_namespaces
from support.super_frames import Burst

from bench.lab.virtual import VirtualReactor
from overlay.addr import IpAddress, Mac, Vni, VtepId
from overlay.errors import DeviceError
from tunnel import bpf, netlink
from tunnel import injector as injector_module
from tunnel.injector import (
    BYPASSES,
    INJECT_MTU,
    LOWER_DOOR_SECONDS,
    SEGMENTS_TUNNELS,
    SEGMENTS_TUNNELS_WITH_CHECKSUM,
    Door,
    Injector,
    InjectTap,
    InjectTaps,
    Rest,
    Survey,
)
from tunnel.interfaces import Hop, SuperDoor, SuperDoors
from tunnel.ladder import RETRY_SECONDS, Feature, Ladder, Switch
from tunnel.split import locate_untrusted
from tunnel.super_packet import OuterHeader
from tunnel.underlay import UdpUnderlay
from tunnel.vxlan import build_header

VTEPS: tuple[VtepId, ...] = (VTEP_B, VTEP_C, ip_address("2001:db8::7"))
HOPS = (HOP, replace(HOP, destination=Mac(b"\x02\x5e\0\0\0\x22")), "its route has several next hops")
BURST = Burst(octets=5000, size=1000)


def serves_as_doors(injector: Injector, door: Door) -> tuple[SuperDoors, SuperDoor]:
    return injector, door  # mypy is the test: every member of the protocols is there


class World:
    """An injector whose underlay, TAP and bell are doubles."""

    def __init__(self, switch: Switch = Switch.AUTO) -> None:
        self.underlay = UnderlayDouble(VirtualReactor(), ip_address("192.0.2.1"))
        self.underlay.ladder = self.ladder = Ladder({Feature.TUNNEL_GSO: switch})
        self.ladder.probed(Feature.TAP_GSO, None)
        self.rings = 0
        self.injector = Injector(self.underlay, InjectTaps(), ring=self.ring)
        self.tap = tap_double()

    def ring(self) -> None:
        self.rings += 1

    def open(self, *vteps: VtepId, now: float = 0.0) -> None:
        for vtep in vteps:
            self.injector.want(vtep)
        self.injector.take(Survey(self.tap, None, dict.fromkeys(vteps, HOP)), now=now)

    def is_open(self, vtep: VtepId) -> bool:
        return self.injector.door(vtep) is not None


def tap_double(log: list[Any] | None = None) -> InjectTap:
    return cast("InjectTap", InjectTapDouble(log=log))


# ── The life of doors ───────────────────────────────────────────────────────────────────────────────────


@dataclass
class Known:
    """What the model knows of a VTEP that was asked for."""

    hop: Hop | None = None
    tap: InjectTap | None = None
    why: str = "not looked at yet"
    is_told: bool = False
    shut_until: float | None = None

    def shut(self, why: str, now: float) -> None:
        self.hop, self.tap, self.why, self.is_told = None, None, why, True
        self.shut_until = now + RETRY_SECONDS


class Doors(RuleBasedStateMachine):
    """Any sequence of what an engine, a survey and time can do, where the switch is on auto."""

    switch = Switch.AUTO

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.switch)
        self.injector = self.world.injector
        self.now = 1000.0
        self.known: dict[VtepId, Known] = {}
        self.obstacle: str | None = None
        self.is_suspended = True
        self.was_surveyed = False
        self.again_at: float | None = None

    @property
    def insists(self) -> bool:
        return self.switch is Switch.ON

    @rule(vtep=st.sampled_from(VTEPS))
    def want(self, vtep: VtepId) -> None:
        before = self.world.rings
        self.injector.want(vtep)
        assert self.world.rings - before == (vtep not in self.known)
        self.known.setdefault(vtep, Known())

    @rule(seconds=st.sampled_from([0.1, 1.0, RETRY_SECONDS - 1, RETRY_SECONDS, RETRY_SECONDS + 1]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def suspend(self) -> None:
        self.injector.suspend()
        self.is_suspended = True

    @rule(vtep=st.sampled_from(VTEPS), why=st.sampled_from(["a socket says: no", "the inject TAP: no"]))
    def shut(self, vtep: VtepId, why: str) -> None:
        self.injector.shut(vtep, why, now=self.now)
        known = self.known.get(vtep)
        if known is not None and known.hop is not None and not self.insists:
            known.shut(why, self.now)
            self.tell()

    @rule(
        hops=st.fixed_dictionaries({}, optional={vtep: st.sampled_from(HOPS) for vtep in VTEPS}),
        is_new_tap=st.booleans(),
    )
    def survey_finds_hops(self, hops: dict[VtepId, Hop | str], is_new_tap: bool) -> None:
        if is_new_tap:
            self.world.tap = tap_double()
        self.take(Survey(self.world.tap, None, hops))

    @rule(obstacle=st.sampled_from(["eth0 is down", "EPERM"]))
    def survey_finds_an_obstacle(self, obstacle: str) -> None:
        self.take(Survey(None, obstacle, {}))

    @rule(seconds=st.sampled_from([0.5, RETRY_SECONDS, math.inf]))
    def survey_finds_no_tap_for_a_while(self, seconds: float) -> None:
        self.take(Survey(None, "the tc filter of weft-inject0 was removed", {}, self.now + seconds))

    def take(self, found: Survey) -> None:
        self.injector.take(found, now=self.now)
        self.obstacle, self.is_suspended, self.was_surveyed = found.obstacle, False, True
        self.again_at = found.again_at
        for vtep, known in self.known.items():
            told = found.hops.get(vtep, found.obstacle or "not looked at yet")
            if known.hop is not None and (known.hop, known.tap) != (told, found.tap):
                known.shut(told if isinstance(told, str) else "the way to it has changed", self.now)
            if known.hop is None and (self.insists or not self.rests(known)):
                known.shut_until = None
                if isinstance(told, str):
                    known.why = told
                else:
                    known.hop, known.tap, known.why = told, found.tap, ""
        self.tell()

    def rests(self, known: Known) -> bool:
        return known.shut_until is not None and self.now < known.shut_until

    def tell(self) -> None:
        for known in self.known.values():
            known.is_told = True

    @invariant()
    def a_door_is_open_where_the_last_survey_allows_it_and_nowhere_else(self) -> None:
        for vtep in VTEPS:
            door, known = self.injector.door(vtep), self.known.get(vtep, Known())
            assert (door.hop if door else None) == known.hop
            assert door is None or door.tap is known.tap is self.world.tap
            assert door is None or self.insists or known.shut_until is None

    @invariant()
    def while_suspended_nothing_passes(self) -> None:
        doors = [door for vtep in VTEPS if (door := self.injector.door(vtep))]
        for door in doors:
            passed = [door.is_open(now=self.now), door.is_open(now=self.now)]
            assert passed[1] == (not self.is_suspended)

    @invariant()
    def it_is_due_when_a_door_was_shut_long_enough(self) -> None:
        shut = [known for known in self.known.values() if known.shut_until is not None]
        is_over = self.again_at is not None and self.now >= self.again_at and bool(self.known)
        assert self.injector.is_due(now=self.now) == (is_over or any(not self.rests(each) for each in shut))

    @precondition(lambda self: self.was_surveyed)
    @invariant()
    def every_reason_is_told(self) -> None:
        told = self.world.ladder.explain()
        if self.obstacle is not None:
            assert self.obstacle in told
            return
        for vtep, known in self.known.items():
            assert not (known.why and known.is_told) or f"{vtep}: {known.why}" in told
        closed = [known.hop is None for known in self.known.values() if known.is_told]
        is_on = self.world.ladder.is_on(Feature.TUNNEL_GSO)
        assert is_on == (not closed or not all(closed))
        assert (BYPASSES in told) == is_on


class InsistedDoors(Doors):
    """The same where the operator insists."""

    switch = Switch.ON


TestDoors = Doors.TestCase
TestInsistedDoors = InsistedDoors.TestCase


@pytest.mark.parametrize("seconds", [0.0, RETRY_SECONDS / 2, RETRY_SECONDS - 0.001])
def test_a_door_that_was_shut_stays_shut_for_a_minute_whatever_a_survey_says(seconds: float) -> None:
    world = World()
    world.open(VTEP_B)
    world.injector.shut(VTEP_B, "a socket says: Operation not permitted", now=100.0)
    world.open(VTEP_B, now=100.0 + seconds)
    assert not world.is_open(VTEP_B)
    assert f"{VTEP_B}: a socket says: Operation not permitted" in world.ladder.explain()
    assert not world.injector.is_due(now=100.0 + seconds)
    assert world.injector.is_due(now=100.0 + RETRY_SECONDS)
    world.open(VTEP_B, now=100.0 + RETRY_SECONDS)
    assert world.is_open(VTEP_B)
    assert not world.injector.is_due(now=1e9)


def test_where_the_operator_insists_a_door_is_not_shut() -> None:
    world = World(Switch.ON)
    world.open(VTEP_B)
    world.injector.shut(VTEP_B, "the inject TAP: Input/output error", now=1.0)
    assert world.is_open(VTEP_B)


def test_where_the_operator_wants_none_nothing_is_wanted_or_looked_at() -> None:
    world = World(Switch.OFF)
    world.injector.want(VTEP_B)
    assert world.rings == 0
    assert world.injector.survey() == Survey(None, None, {})
    world.injector.take(world.injector.survey(), now=0.0)
    assert not world.is_open(VTEP_B)
    assert world.ladder.reason(Feature.TUNNEL_GSO) == 'tunnel_gso = "off"'


def test_one_door_shut_leaves_the_others_and_the_rung() -> None:
    world = World()
    world.open(VTEP_B, VTEP_C)
    world.injector.shut(VTEP_B, "it answered: Connection refused", now=1.0)
    assert (world.is_open(VTEP_B), world.is_open(VTEP_C)) == (False, True)
    assert world.ladder.egress() == "super"
    assert f"not to {VTEP_B}: it answered: Connection refused" in world.ladder.explain()
    world.injector.shut(VTEP_C, "it answered too", now=1.0)
    assert not world.ladder.is_on(Feature.TUNNEL_GSO)


def test_a_door_opens_as_soon_as_there_is_a_tap_again() -> None:
    """The egress device was made anew while its inject TAP rested."""
    world = World()
    world.injector.want(VTEP_B)
    world.injector.take(Survey(None, "the tc filter of weft-inject0 was removed", {}, math.inf), now=1.0)
    world.open(VTEP_B, now=2.0)
    assert world.is_open(VTEP_B)


def test_what_never_had_a_door_cannot_be_shut() -> None:
    world = World()
    world.injector.shut(VTEP_B, "whatever", now=0.0)
    world.injector.want(VTEP_B)
    world.injector.shut(VTEP_B, "whatever", now=0.0)
    assert not world.injector.is_due(now=1e9)


@given(steps=st.lists(st.floats(0.0, 2.5), min_size=1, max_size=60))
def test_once_a_second_of_use_a_super_frame_takes_the_lower_door(steps: list[float]) -> None:
    world = World()
    world.open(VTEP_B)
    door = world.injector.door(VTEP_B)
    assert door is not None
    now, lower_at = 1000.0, None
    for step in steps:
        now += step
        if not door.is_open(now=now):
            assert lower_at is None or now - lower_at >= LOWER_DOOR_SECONDS
            lower_at = now
            assert world.injector.used_at == now
        assert lower_at is not None, "the first of all takes the lower door"
        assert now - lower_at < LOWER_DOOR_SECONDS


def test_each_door_takes_its_own_turn_at_the_lower_one() -> None:
    world = World()
    world.open(VTEP_B, VTEP_C)
    doors = [world.injector.door(vtep) for vtep in (VTEP_B, VTEP_C)]
    assert [door.is_open(now=5.0) for door in doors if door] == [False, False]
    assert [door.is_open(now=5.5) for door in doors if door] == [True, True]


def test_what_the_tap_lost_is_summed_over_polls_and_taps() -> None:
    world = World()
    world.injector.poll()
    assert world.injector.losses() == 0
    for lost, total in ((2, 2), (0, 2), (3, 5)):
        cast("InjectTapDouble", world.tap).lost = lost
        world.injector.take(Survey(world.tap, None, {}), now=0.0)
        world.injector.poll()
        assert world.injector.losses() == total
    world.tap = tap_double()
    cast("InjectTapDouble", world.tap).lost = 1
    world.open()
    world.injector.poll()
    assert world.injector.losses() == 6


def test_an_engine_uses_a_door_from_its_survey_to_its_failure(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.bind(MAC_B)
    log: list[SuperSent] = []
    tap = InjectTapDouble(log=log)
    rings: list[None] = []
    injector = Injector(engine.underlay, InjectTaps(), ring=lambda: rings.append(None))
    engine.underlay.super_doors = injector

    def goes_whole() -> bool:
        before = len(log)
        engine.device.transmit(BURST.whole, BURST.header)
        engine.settle()
        return len(log) > before

    def survey() -> None:
        injector.take(Survey(cast("InjectTap", tap), None, {VTEP_B: HOP}), now=engine.clock.now)
        engine.datapath.reroute()

    assert (goes_whole(), goes_whole(), len(rings)) == (False, False, 1)
    survey()
    assert [goes_whole() for _ in range(4)] == [False, True, True, True]
    engine.clock.advance(LOWER_DOOR_SECONDS)
    assert [goes_whole() for _ in range(3)] == [False, True, True]
    injector.suspend()
    assert not goes_whole()
    survey()
    assert goes_whole()
    tap.write_errors.append(OSError(errno.EIO, os.strerror(errno.EIO)))
    assert not goes_whole()
    assert "Input/output error" in engine.underlay.ladder.explain()
    engine.clock.advance(RETRY_SECONDS - 1)
    survey()
    assert not goes_whole()
    engine.clock.advance(1)
    survey()
    assert [goes_whole() for _ in range(2)] == [False, True]
    assert engine.drops() == {}


# ── For real ────────────────────────────────────────────────────────────────────────────────────────────

NEAR_4, FAR_4 = "192.0.2.1", "192.0.2.2"
NEAR_6, FAR_6 = "2001:db8::1", "2001:db8::2"
NEXT = Mac(b"\x02\x5e\0\0\0\x02")


@dataclass
class Host:
    """A namespace with wa0 cabled to wb0 of another, whose addresses it has learnt."""

    near: Namespace
    far: Namespace
    wire: socket.socket
    closed: list[InjectTap | InjectTaps | UdpUnderlay] = field(default_factory=list)

    def index(self) -> int:
        return socket.if_nametoindex("wa0")

    def arrived(self) -> list[bytes]:
        """What has arrived of super-packets: frames to the far end of more than a kilobyte."""
        found: list[bytes] = []
        while True:
            try:
                octets = self.wire.recv(70_000)
            except BlockingIOError:
                return found
            if octets[:6] == NEXT and len(octets) > 1000:
                found.append(octets)


def wire_up(near: Namespace, far: Namespace) -> None:
    near.add_veth("wa0", far, "wb0")
    far.run(f"ip link set wb0 address {NEXT.hex(':')}")
    for host, four, six in ((near, NEAR_4, NEAR_6), (far, FAR_4, FAR_6)):
        device = "wa0" if host is near else "wb0"
        host.run(f"ip addr add {four}/24 dev {device}", f"ip addr add {six}/64 dev {device}")
    for address in (FAR_4, FAR_6):
        near.run(f"ip neigh replace {address} lladdr {NEXT.hex(':')} dev wa0")


@pytest.fixture
def host() -> Iterator[Host]:
    near, far = Namespace(), Namespace()
    wire_up(near, far)
    with far:
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(3))
        wire.bind(("wb0", 3))
    made = Host(near, far, wire)
    with near:
        yield made
        for each in made.closed:
            each.close()
    wire.close()
    near.close()
    far.close()


def write(tap: InjectTap, hop: Hop, *, version: int = 4) -> None:
    """One super-packet from us to the far end."""
    pair = (NEAR_4, FAR_4) if version == 4 else (NEAR_6, FAR_6)
    addresses: list[IpAddress] = [ip_address(each) for each in pair]
    datagram = build_header(Vni(42)) + BURST.whole
    place = locate_untrusted(BURST.header, memoryview(BURST.whole))
    assert place is not None
    outer = OuterHeader(hop, addresses[0], addresses[1], 4789)
    tap.write((outer.fill(BURST.header[1], place, len(datagram), source_port=50_000, ecn=0), datagram))


def real(test: Any) -> Any:
    """A test that asks the kernel."""
    return needs_namespaces(pytest.mark.timeout(30)(pytest.mark.root(test)))


@pytest.fixture(params=["mirred", "bpf_redirect_neigh"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways from the TAP to the device; the second is taken where the first is refused."""
    redirect = netlink.redirect

    def refuse_mirred(name: str, device: str, *, program: int | None = None) -> None:
        if program is None:
            raise DeviceError(name, errno.ENOENT)
        redirect(name, device, program=program)

    if request.param != "mirred":
        monkeypatch.setattr(netlink, "redirect", refuse_mirred)
    return str(request.param)


@real
@pytest.mark.parametrize("version", [4, 6])
def test_what_is_written_leaves_by_the_egress_device_either_way(host: Host, way: str, version: int) -> None:
    tap = InjectTap("wa0", host.index())
    host.closed.append(tap)
    assert tap.way == way
    link = netlink.link("wa0")
    assert link is not None
    assert link.mac is not None
    # By the second way the kernel writes the Ethernet addresses itself, whatever stands there.
    hop = Hop(link.mac, NEXT, True) if way == "mirred" else Hop(NEXT, link.mac, True)
    write(tap, hop, version=version)
    (packet,) = host.arrived()  # a veth carries it uncut
    assert packet[:12] == NEXT + link.mac
    assert packet.endswith(BURST.whole[100:])
    ip = Ether(packet).payload
    assert (ip.src, ip.dst) == ((NEAR_4, FAR_4) if version == 4 else (NEAR_6, FAR_6))
    assert tap.look() is None
    assert tap.new_losses() == 0


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@real
@pytest.mark.usefixtures("way")
def test_closing_leaves_nothing_behind(host: Host) -> None:
    asked = ("ip -o link", "tc qdisc show", "ip -o addr", "ip -6 route show table all")

    def state() -> list[str]:
        return [line for each in asked for line in host.near.run(each).splitlines() if "wa0" not in line]

    before, descriptors = state(), open_descriptors()
    tap = InjectTap("wa0", host.index())
    assert tap.name in host.near.run("ip -o link")
    tap.close()
    tap.close()
    assert state() == before
    assert open_descriptors() == descriptors


@real
def test_the_tap_is_up_as_wide_as_one_may_be_and_gives_itself_no_address(host: Host) -> None:
    tap = InjectTap("wa0", host.index())
    host.closed.append(tap)
    link = netlink.link(tap.name)
    assert link is not None
    assert (link.mtu, link.up, link.name) == (INJECT_MTU, True, "weft-inject0")
    assert "LOWER_UP" in host.near.run(f"ip link show {tap.name}")
    assert "inet" not in host.near.run(f"ip -o addr show {tap.name}")


@real
def test_what_the_device_does_not_take_is_a_loss_once(host: Host) -> None:
    tap = InjectTap("wa0", host.index())
    host.closed.append(tap)
    host.near.run("ip link set wa0 down")
    for _ in range(3):
        write(tap, HOP)
    assert tap.look() is None
    assert (tap.new_losses(), tap.new_losses()) == (3, 0)


@real
def test_a_device_made_anew_gets_a_new_tap_and_the_same_one_the_same(host: Host) -> None:
    taps = InjectTaps()
    host.closed.append(taps)
    first = expect_tap(taps.ensure("wa0", host.index()))
    assert taps.ensure("wa0", host.index()) is first
    host.near.run("ip link del wa0")
    wire_up(host.near, host.far)
    second = expect_tap(taps.ensure("wa0", host.index()))
    assert second is not first
    with pytest.raises(OSError, match="Bad file descriptor"):
        write(first, HOP)
    with host.far, socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as wire:
        wire.bind(("wb0", 3))
        wire.settimeout(5)
        write(second, HOP)
        while len(packet := wire.recv(70_000)) < 1000:
            pass
    assert packet.endswith(BURST.whole[100:])
    taps.close()
    taps.close()
    assert "weft-inject" not in host.near.run("ip -o link")


def expect_tap(found: InjectTap | Rest) -> InjectTap:
    assert isinstance(found, InjectTap), found
    return found


FILTER_GONE = "the tc filter of weft-inject0 was removed or changed"
TAKEN_AWAY = {
    "tc qdisc del dev weft-inject0 clsact": FILTER_GONE,
    "tc filter del dev weft-inject0 ingress": FILTER_GONE,
    "ip link set weft-inject0 down": "weft-inject0 was set down",
    "ip link del weft-inject0": "weft-inject0 was deleted",
}


@real
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("change", TAKEN_AWAY)
def test_a_tap_that_others_have_changed_is_made_again_after_a_minute(
    host: Host, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(1000.0)
    taps = InjectTaps(clock)
    host.closed.append(taps)
    expect_tap(taps.ensure("wa0", host.index()))
    host.near.run(change)
    rest = Rest(TAKEN_AWAY[change], host.index(), 1000.0 + RETRY_SECONDS)
    assert taps.ensure("wa0", host.index()) == rest
    assert TAKEN_AWAY[change] in caplog.text
    assert "weft-inject" not in host.near.run("ip -o link")
    clock.now += RETRY_SECONDS - 1
    assert taps.ensure("wa0", host.index()) == rest
    clock.now += 1
    again = expect_tap(taps.ensure("wa0", host.index()))
    assert taps.ensure("wa0", host.index()) is again
    assert again.name == "weft-inject0"


@real
@pytest.mark.usefixtures("way")
def test_what_is_written_without_a_filter_is_a_loss_once_beside_what_was_lost_before(host: Host) -> None:
    tap = InjectTap("wa0", host.index())
    host.closed.append(tap)
    link = netlink.link("wa0")
    assert link is not None
    hop = Hop(link.mac or NEXT, NEXT, True)
    refused = 0
    if tap.way == "mirred":  # the other way counts nothing
        refused = 2
        host.near.run("ip link set wa0 down")
        for _ in range(refused):
            write(tap, hop)
        assert tap.look() is None
    host.near.run("tc qdisc del dev weft-inject0 clsact")
    for version in (4, 4, 6):
        write(tap, hop, version=version)
    assert tap.look() == FILTER_GONE
    assert (tap.new_losses(), tap.new_losses()) == (refused + 3, 0)


@real
def test_a_device_whose_tap_cannot_be_made_is_left_alone_for_a_minute_and_a_new_one_is_not(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[str] = []

    def refuse(name: str, *_devices: str, program: int | None = None) -> None:
        if program is None:
            attempts.append(name)
        raise DeviceError(name, errno.ENOENT)

    monkeypatch.setattr(netlink, "redirect", refuse)
    clock = Clock(1000.0)
    taps = InjectTaps(clock)
    bell = netlink.Doorbell()
    for seconds, made in ((0.0, 1), (0.25, 1), (RETRY_SECONDS, 2), (RETRY_SECONDS + 0.25, 2)):
        clock.now = 1000.0 + seconds
        assert isinstance(taps.ensure("wa0", host.index()), Rest)
        assert len(attempts) == made
        assert bell.ring() == (seconds in (0.0, RETRY_SECONDS)), "only what is done rings"
    assert isinstance(taps.ensure("wa0", host.index() + 1), Rest)
    assert len(attempts) == 3
    bell.close()


def test_a_kernel_that_is_too_old_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[str] = []

    def refuse(name: str, **_options: int) -> None:
        attempts.append(name)
        raise DeviceError(name, errno.EINVAL)

    monkeypatch.setattr(injector_module, "Tap", refuse)
    clock = Clock(1000.0)
    taps = InjectTaps(clock)
    for _ in range(3):
        rest = taps.ensure("eth0", 2)
        assert isinstance(rest, Rest)
        assert "6.17" in rest.why
        clock.now += 10 * RETRY_SECONDS
    assert len(attempts) == 1


@real
def test_where_neither_way_is_to_be_had_the_first_refusal_is_told_and_nothing_stays(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_names: str, program: int | None = None) -> None:
        raise DeviceError("mirred", errno.ENOENT, why=f"program {program}")

    def refuse_program(_index: int) -> int:
        raise DeviceError("bpf", errno.EPERM)

    monkeypatch.setattr(netlink, "redirect", refuse)
    monkeypatch.setattr(bpf, "load_redirect", refuse_program)
    with pytest.raises(DeviceError) as caught:
        InjectTap("wa0", host.index())
    assert (caught.value.device, caught.value.errno) == ("mirred", errno.ENOENT)
    assert "weft-inject" not in host.near.run("ip -o link")


def test_a_kernel_that_refuses_the_offloads_is_said_to_be_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, **_options: int) -> None:
        raise DeviceError(name, errno.EINVAL)

    monkeypatch.setattr(injector_module, "Tap", refuse)
    with pytest.raises(DeviceError) as caught:
        InjectTap("eth0", 2)
    assert (caught.value.device, caught.value.errno) == ("eth0", errno.EINVAL)
    assert "6.17" in caught.value.why


@real
@pytest.mark.usefixtures("host")
def test_without_the_right_to_make_the_tap_the_kernels_errno_is_told() -> None:
    def open_one() -> int:
        try:
            InjectTap("wa0", 1)
        except DeviceError as error:
            return error.errno
        return 0

    assert exit_status_as_nobody(open_one) in (errno.EPERM, errno.EACCES)


# ── Surveys of a real host ──────────────────────────────────────────────────────────────────────────────


@dataclass
class Surveyor:
    """A real underlay on wa0 and its injector."""

    host: Host
    injector: Injector
    underlay: UdpUnderlay
    clock: Clock

    def told(self, vtep: str = FAR_4) -> Hop | str:
        """What a survey says of the VTEP: its hop, or the obstacle."""
        address = ip_address(vtep)
        self.injector.want(address)
        found = self.injector.survey()
        self.injector.take(found, now=self.clock.now)
        return found.hops.get(address, found.obstacle or "nothing")


@pytest.fixture(params=[4, 6])
def surveyor(host: Host, request: pytest.FixtureRequest) -> Surveyor:
    underlay = UdpUnderlay(ip_address(NEAR_4 if request.param == 4 else NEAR_6), "wa0", 1500)
    underlay.ladder.probed(Feature.TAP_GSO, None)
    clock = Clock(0.0)
    taps = InjectTaps(clock)
    host.closed.extend((underlay, taps))
    return Surveyor(host, Injector(underlay, taps, ring=lambda: None), underlay, clock)


def far_of(surveyor: Surveyor) -> str:
    return FAR_4 if surveyor.underlay.address.version == 4 else FAR_6


@real
def test_a_survey_finds_the_next_hop_and_opens_the_door(surveyor: Surveyor) -> None:
    link = netlink.link("wa0")
    assert link is not None
    assert surveyor.told(far_of(surveyor)) == Hop(link.mac or NEXT, NEXT, True)
    assert surveyor.injector.door(ip_address(far_of(surveyor))) is not None
    assert surveyor.underlay.ladder.egress() == "super"
    assert BYPASSES in surveyor.underlay.ladder.explain()


@real
@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (("ip link set wa0 down",), "wa0 is down"),
        (("ip link del wa0",), "there is no device wa0"),
        ((f"ip neigh del {FAR_4} dev wa0", f"ip neigh del {FAR_6} dev wa0"), "is not known yet"),
        (
            (f"ip route add unreachable {FAR_4}", f"ip route add unreachable {FAR_6}"),
            "no route",
        ),
        (
            (
                "ip xfrm policy add src 0.0.0.0/0 dst 192.0.2.0/24 dir out",
                "ip xfrm policy add src ::/0 dst 2001:db8::/64 dir out",
            ),
            "an XFRM policy applies",
        ),
        (
            (
                "ip link add wc0 type veth peer name wd0",
                "ip link set wc0 up",
                "ip link set wd0 up",
                f"ip route add {FAR_4} dev wc0",
                f"ip -6 route add {FAR_6} dev wc0",
                f"ip neigh add {FAR_4} lladdr 02:00:00:00:00:09 dev wc0",
                f"ip neigh add {FAR_6} lladdr 02:00:00:00:00:09 dev wc0",
            ),
            "its route leaves by wc0",
        ),
    ],
)
def test_whatever_is_in_the_way_shuts_the_door_with_its_name(
    surveyor: Surveyor, changes: tuple[str, ...], why: str
) -> None:
    far = far_of(surveyor)
    assert isinstance(surveyor.told(far), Hop)
    surveyor.host.near.run(*changes)
    assert why in str(surveyor.told(far))
    assert surveyor.injector.door(ip_address(far)) is None
    assert why in surveyor.underlay.ladder.explain()
    assert surveyor.underlay.ladder.egress() != "super"


@real
@pytest.mark.parametrize("change", TAKEN_AWAY)
def test_a_tap_that_others_have_changed_shuts_every_door_for_a_minute(
    surveyor: Surveyor, change: str
) -> None:
    far, injector = ip_address(far_of(surveyor)), surveyor.injector
    assert isinstance(surveyor.told(str(far)), Hop)
    door = injector.door(far)
    assert door is not None
    surveyor.host.near.run(change)
    lost = 0
    if TAKEN_AWAY[change] is FILTER_GONE:
        write(door.tap, door.hop, version=far.version)
        lost = 1
    surveyor.clock.now = 10.0
    assert surveyor.told(str(far)) == TAKEN_AWAY[change]
    assert injector.door(far) is None
    assert injector.losses() == lost
    assert f"tunnel_gso: {TAKEN_AWAY[change]}" in surveyor.underlay.ladder.explain()
    # A VTEP that is wanted only now is looked at again no later than the others, though nobody rings for it.
    late = "192.0.2.77" if far.version == 4 else "2001:db8::77"
    surveyor.clock.now = 40.0
    assert surveyor.told(late) == TAKEN_AWAY[change]
    assert not injector.is_due(now=69.9)
    assert injector.is_due(now=70.0)
    surveyor.clock.now = 70.0
    assert isinstance(surveyor.told(str(far)), Hop)
    assert injector.door(far) is not None
    assert not injector.is_due(now=1e9)
    assert surveyor.underlay.ladder.egress() == "super"


@real
def test_a_policy_for_somebody_else_closes_no_door(surveyor: Surveyor) -> None:
    surveyor.host.near.run(
        "ip xfrm policy add src 0.0.0.0/0 dst 192.0.2.77/32 dir out",
        f"ip xfrm policy add src 0.0.0.0/0 dst {FAR_4}/32 proto tcp dir out",
        "ip xfrm policy add src 0.0.0.0/0 dst 0.0.0.0/0 dir in",
    )
    assert isinstance(surveyor.told(far_of(surveyor)), Hop)


@real
def test_a_device_that_segments_without_checksums_serves_ipv4_alone(surveyor: Surveyor) -> None:
    surveyor.host.near.run(f"ethtool -K wa0 {SEGMENTS_TUNNELS_WITH_CHECKSUM} off")
    found = surveyor.told(far_of(surveyor))
    if surveyor.underlay.address.version == 4:
        assert isinstance(found, Hop)
        assert not found.has_checksum
    else:
        assert found == f"wa0 has {SEGMENTS_TUNNELS_WITH_CHECKSUM} off"


@real
def test_a_device_that_does_not_segment_tunnels_serves_no_ipv4(surveyor: Surveyor) -> None:
    surveyor.host.near.run(f"ethtool -K wa0 {SEGMENTS_TUNNELS} off")
    if surveyor.underlay.address.version == 4:
        assert surveyor.told() == f"wa0 has {SEGMENTS_TUNNELS} off"
        assert "weft-inject" not in surveyor.host.near.run("ip -o link")


@real
def test_a_neighbor_with_another_address_is_another_hop_after_a_minute(surveyor: Surveyor) -> None:
    far = far_of(surveyor)
    first = surveyor.told(far)
    surveyor.host.near.run(f"ip neigh replace {far} lladdr 02:5e:00:00:00:99 dev wa0")
    second = surveyor.told(far)
    assert isinstance(first, Hop)
    assert second == replace(first, destination=Mac(b"\x02\x5e\0\0\0\x99"))
    assert surveyor.injector.door(ip_address(far)) is None
    assert "the way to it has changed" in surveyor.underlay.ladder.explain()
    surveyor.injector.take(surveyor.injector.survey(), now=RETRY_SECONDS)
    door = surveyor.injector.door(ip_address(far))
    assert door is not None
    assert door.hop == second


@real
def test_every_change_that_matters_rings_the_bell(surveyor: Surveyor) -> None:
    far = far_of(surveyor)
    surveyor.told(far)
    bell = netlink.Doorbell()
    for change in (
        f"ip neigh replace {far} lladdr 02:5e:00:00:00:99 dev wa0",
        f"ip route add unreachable {far}",
        f"ethtool -K wa0 {SEGMENTS_TUNNELS} off",
        "ip link set wa0 address 02:5e:00:00:00:77",
        "tc filter del dev weft-inject0 ingress",
        "tc qdisc del dev weft-inject0 clsact",
        "ip link set weft-inject0 down",
        "ip link del weft-inject0",
        "ip link set wa0 down",
        "ip link del wa0",
    ):
        while bell.ring():
            pass
        surveyor.host.near.run(change)
        eventually(bell.ring)
    bell.close()
