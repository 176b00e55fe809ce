"""Rung 2 of one underlay: the inject TAP, and a door through it to each VTEP that may have one.

    super-frame ──▶ inject TAP ──tc──▶ egress device ──▶ the wire, cut there or never      one write
                    └ sockets, `UDP_SEGMENT` ─▶ the host's stack ─▶ egress device          the lower door

What is written to the inject TAP leaves by the egress device as it is.  No socket, route, neighbour or
firewall of the host is asked, so all of that is ours to know beforehand, for each VTEP: its route is one
unicast next hop on this device, whose Ethernet address the kernel knows, and no XFRM policy applies.

    wanted ──survey says yes──▶ open ──anything changed, or failed──▶ shut, for RETRY_SECONDS, with the reason
       ▲                                                                │
       └────────────────────────────────────────────────────────────────┘

Whenever the doorbell rings every door is suspended until the survey that follows has been taken: frames
take the lower door meanwhile.  The survey looks at the TAP itself, too: others may have removed its filter,
set it down or deleted it, and no write tells of the first.  Two threads meet here: `survey` and `poll`
block for netlink and touch no door; all else runs on the loop.

Heads up: there is no back-pressure from beyond the egress device.  What is under way is bounded by the
TAP's own send buffer, which its packets occupy until the last of the stack has let go of them.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from overlay.addr import VtepId
from overlay.errors import DeviceError
from tunnel import bpf, netlink, xfrm
from tunnel.interfaces import Buffer, Hop, Underlay
from tunnel.ladder import RETRY_SECONDS, Feature
from tunnel.super_packet import TUNNEL_HEADER_LENGTH
from tunnel.tap import SUPER_PACKETS, Tap

log = logging.getLogger("weft.injector")

# From the specification
SEGMENTS_TUNNELS = "tx-udp_tnl-segmentation"  # ethtool's names, as the kernel's netdev features are called
SEGMENTS_TUNNELS_WITH_CHECKSUM = "tx-udp_tnl-csum-segmentation"

# Ours
INJECT_NAME = "weft-inject%d"  # the kernel puts the number
INJECT_MTU = 65521  # the most a TAP may have
IN_FLIGHT_OCTETS = 8 << 20
LOWER_DOOR_SECONDS = 1.0  # how often a super-frame takes the lower door: what forbids sockets must be seen
TOO_OLD = "it takes Linux ≥ 6.17"  # and so it stays: no TAP is tried again
BYPASSES = "tunnel_gso goes past the host's OUTPUT rules"


class InjectTap:
    """The TAP whose every packet leaves by one egress device.

    Raises:
        DeviceError: A kernel before 6.17, no right to make it, or no way from it to the device.
    """

    def __init__(self, device: str, index: int) -> None:
        try:
            self._tap = Tap(INJECT_NAME, offload_mask=SUPER_PACKETS, header_length=TUNNEL_HEADER_LENGTH)
        except DeviceError as error:
            if error.errno == errno.EINVAL:
                raise DeviceError(device, error.errno, why=TOO_OLD) from error
            raise
        self.device = device
        self.index = index
        self._refused = self._strayed = self._told = 0
        try:
            self._tap.bound_writes(IN_FLIGHT_OCTETS)
            netlink.without_addresses(self._tap.name)
            netlink.ensure_link(self._tap.name, mtu=INJECT_MTU, up=True)
            self.way = self._lead_to(device, index)
            self._tap.set_carrier(up=True)
        except (DeviceError, OSError):
            self._tap.close()
            raise

    def _lead_to(self, device: str, index: int) -> str:
        """Makes the first of the ways that this host lets us; which one that was."""
        try:
            netlink.redirect(self._tap.name, device)
        except DeviceError as refused:
            try:
                program = bpf.load_redirect(index)
            except DeviceError:
                raise refused from None
            try:
                netlink.redirect(self._tap.name, device, program=program)
            finally:
                os.close(program)  # the filter holds it
            return "bpf_redirect_neigh"
        return "mirred"

    @property
    def name(self) -> str:
        return self._tap.name

    @property
    def write(self) -> Callable[[Sequence[Buffer]], int]:
        return self._tap.write

    def fileno(self) -> int:
        return self._tap.fileno()

    def look(self) -> str | None:
        """Notes what got lost; what others have changed of it, or None.  Blocks for netlink.

        A packet written while the filter is not there ends in the host's stack, which finds it to be for
        somebody else and says nothing but a number.
        """
        found = netlink.redirection(self.name, self.index)
        if found is None:
            return f"{self.name} was deleted"
        self._refused = max(self._refused, found.refused)  # a filter takes its numbers with it
        self._strayed = max(self._strayed, found.strayed)
        if not found.up:
            return f"{self.name} was set down"
        return None if found.leads else f"the tc filter of {self.name} was removed or changed"

    def new_losses(self) -> int:
        """Super-packets that got no further than the TAP, as of the last `look`, since the last call."""
        before, self._told = self._told, self._refused + self._strayed
        return max(0, self._told - before)

    def close(self) -> None:
        """Closes the TAP, with which it, its filter and its qdisc go.  Idempotent."""
        self._tap.close()


@dataclass(frozen=True, slots=True)
class Rest:
    """Why an egress device has no inject TAP, and until when none is made.

    Making one rings the doorbell, and so does unmaking it: whoever did so at every ring would never cease.
    """

    why: str
    index: int
    until: float


class InjectTaps:
    """The inject TAPs of this daemon, one for each egress device.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._taps: dict[str, InjectTap] = {}
        self._rests: dict[str, Rest] = {}

    def ensure(self, device: str, index: int) -> InjectTap | Rest:
        """The TAP that leads to the device of this name and index, as it was made; or why there is none.

        A device made anew gets a new TAP at once, one whose TAP others have changed after RETRY_SECONDS.
        """
        tap = self._taps.get(device)
        if tap is None or tap.index != index:
            self._remove(device)
            return self._make(device, index)
        changed = tap.look()
        if changed is None:
            return tap
        log.warning("%s; another inject TAP is made in %g s", changed, RETRY_SECONDS)
        self._remove(device)
        return self._rest(device, index, changed, RETRY_SECONDS)

    def _make(self, device: str, index: int) -> InjectTap | Rest:
        rest = self._rests.get(device)
        if rest is not None and rest.index == index and self._clock() < rest.until:
            return rest
        try:
            tap = self._taps[device] = InjectTap(device, index)
        except (DeviceError, OSError) as error:
            why = _words(error)
            return self._rest(device, index, why, math.inf if why == TOO_OLD else RETRY_SECONDS)
        return tap

    def _rest(self, device: str, index: int, why: str, seconds: float) -> Rest:
        rest = self._rests[device] = Rest(why, index, self._clock() + seconds)
        return rest

    def _remove(self, device: str) -> None:
        if tap := self._taps.pop(device, None):
            tap.close()

    def close(self) -> None:
        """Closes them all.  Idempotent."""
        for device in tuple(self._taps):
            self._remove(device)


def _words(error: DeviceError | OSError) -> str:
    return getattr(error, "why", "") or str(error)


class Door:
    """The `SuperDoor` to one VTEP."""

    def __init__(self, hop: Hop, tap: InjectTap, injector: Injector) -> None:
        self.hop = hop
        self.tap = tap
        self._injector = injector
        self._rests_at = 0.0

    @property
    def write(self) -> Callable[[Sequence[Buffer]], int]:
        return self.tap.write  # asked anew each time: a TAP that was closed has another

    def fileno(self) -> int:
        return self.tap.fileno()

    def is_open(self, *, now: float) -> bool:
        """HOT PATH: whether a super-frame may take it now."""
        if self._injector.is_suspended:
            return False
        if now >= self._rests_at:
            self._rests_at = now + LOWER_DOOR_SECONDS
            self._injector.used_at = now
            return False
        return True


@dataclass(slots=True)
class _Standing:
    """How one VTEP stands: its door, or why it has none, and until when it shall not."""

    door: Door | None = None
    why: str = ""
    shut_until: float | None = None


@dataclass(frozen=True, slots=True)
class Survey:
    """What the kernel says now of an egress device, and of the way to each VTEP: a hop, or an obstacle.

    Attributes:
        again_at: When to look again at an obstacle that nobody rings for when it ends.
    """

    tap: InjectTap | None
    obstacle: str | None
    hops: Mapping[VtepId, Hop | str]
    again_at: float | None = None


class Injector:
    """The `SuperDoors` of one underlay, whose ladder is told how the feature stands.

    Args:
        ring: Called when a survey is wanted.

    Attributes:
        is_suspended: Something may have changed; every door is closed until a survey has been taken.
        used_at: When a door was last used, to a second or so; absolute seconds.
    """

    def __init__(self, underlay: Underlay, taps: InjectTaps, *, ring: Callable[[], None]) -> None:
        self._again_at: float | None = None
        self.is_suspended = True
        self.used_at = 0.0
        self._underlay = underlay
        self._ladder = underlay.ladder
        self._taps = taps
        self._ring = ring
        self._standings: dict[VtepId, _Standing] = {}
        self._tap: InjectTap | None = None
        self._losses = 0
        self._suspended: list[Callable[[], object]] = []

    # ── What an engine sees ─────────────────────────────────────────────────────────────────────────────

    def door(self, vtep: VtepId) -> Door | None:
        """The door to this VTEP, or None."""
        standing = self._standings.get(vtep)
        return None if standing is None else standing.door

    def want(self, vtep: VtepId) -> None:
        """Super-frames for this VTEP are there."""
        if vtep not in self._standings and self._ladder.wants(Feature.TUNNEL_GSO):
            self._standings[vtep] = _Standing(why="not looked at yet")
            self._ring()

    def shut(self, vtep: VtepId, why: str, *, now: float) -> None:
        """Closes the door to this VTEP for a minute.  Where the operator insists, it stays open."""
        standing = self._standings.get(vtep)
        if standing is None or standing.door is None:
            return
        if not self._ladder.insists(Feature.TUNNEL_GSO):
            self._shut(standing, why, now=now)
            self._tell(None)

    def heed(self, suspended: Callable[[], object]) -> None:
        """Has it called whenever all doors are suspended."""
        self._suspended.append(suspended)

    def note_use(self, *, now: float) -> None:
        """A door is in use."""
        self.used_at = now

    def losses(self) -> int:
        """Super-packets that did not reach the egress device, as of the last `poll` or survey."""
        self._claim_losses()
        return self._losses

    def _claim_losses(self) -> None:
        if self._tap is not None:
            self._losses += self._tap.new_losses()

    # ── Upkeep ──────────────────────────────────────────────────────────────────────────────────────────

    def suspend(self) -> None:
        """Closes every door until the next survey."""
        self.is_suspended = True
        for suspended in self._suspended:
            suspended()

    def is_due(self, *, now: float) -> bool:
        """Whether a door has been shut, or an obstacle been there, long enough to be looked at again."""
        times = [standing.shut_until for standing in self._standings.values()]
        if self._standings:
            times.append(self._again_at)
        return any(each is not None and now >= each for each in times)

    def survey(self) -> Survey:
        """Looks at the device and at the way to every VTEP that wants a door.  Blocks for netlink."""
        if not self._ladder.wants(Feature.TUNNEL_GSO):
            return Survey(None, None, {})
        device = self._underlay.device
        try:
            facts = netlink.link(device)
            if facts is None:
                return Survey(None, f"there is no device {device}", {})
            offloads = netlink.features(device)
            obstacle = self._obstacle(facts, offloads)
            if obstacle is not None:
                return Survey(None, obstacle, {})
            tap = self._taps.ensure(device, facts.index)
            if isinstance(tap, Rest):
                return Survey(None, tap.why, {}, tap.until)
            has_checksum = SEGMENTS_TUNNELS_WITH_CHECKSUM in offloads
            return Survey(tap, None, self._hops(facts, has_checksum=has_checksum))
        except (DeviceError, OSError) as error:
            return Survey(None, _words(error), {})

    def _obstacle(self, facts: netlink.LinkFacts, offloads: frozenset[str]) -> str | None:
        """What of the egress device is in the way."""
        if not facts.up:
            return f"{facts.name} is down"
        if facts.mac is None:
            return f"{facts.name} has no Ethernet address"
        needed = SEGMENTS_TUNNELS if self._underlay.address.version == 4 else SEGMENTS_TUNNELS_WITH_CHECKSUM
        return None if needed in offloads else f"{facts.name} has {needed} off"

    def _hops(self, egress: netlink.LinkFacts, *, has_checksum: bool) -> dict[VtepId, Hop | str]:
        wanted = tuple(self._standings)
        policies = xfrm.outgoing() if wanted else ()
        found: dict[VtepId, Hop | str] = {}
        for vtep, hop in netlink.next_hops(wanted).items():
            if isinstance(hop, str):
                found[vtep] = hop
            elif hop.device != egress.name or egress.mac is None:
                found[vtep] = f"its route leaves by {hop.device}"
            elif any(policy.applies(self._underlay.address, vtep) for policy in policies):
                found[vtep] = "an XFRM policy applies"
            else:
                found[vtep] = Hop(egress.mac, hop.mac, has_checksum)
        return found

    def take(self, found: Survey, *, now: float) -> None:
        """Opens, keeps and shuts doors as a survey says."""
        self._claim_losses()
        self._tap = found.tap
        for vtep, standing in self._standings.items():
            hop = found.hops.get(vtep, found.obstacle or "not looked at yet")
            self._settle(standing, hop, now=now)
        self._again_at = found.again_at
        self.is_suspended = False
        self._tell(found.obstacle)

    def _settle(self, standing: _Standing, hop: Hop | str, *, now: float) -> None:
        insists = self._ladder.insists(Feature.TUNNEL_GSO)
        if standing.door is not None:
            if hop == standing.door.hop and self._tap is standing.door.tap:
                return
            why = hop if isinstance(hop, str) else "the way to it has changed"
            self._shut(standing, why, now=now)
        if standing.shut_until is not None and now < standing.shut_until and not insists:
            return
        standing.shut_until = None
        if isinstance(hop, str) or self._tap is None:
            standing.why = hop if isinstance(hop, str) else "no inject TAP"
        else:
            standing.door, standing.why = Door(hop, self._tap, self), ""

    @staticmethod
    def _shut(standing: _Standing, why: str, *, now: float) -> None:
        standing.door, standing.why, standing.shut_until = None, why, now + RETRY_SECONDS

    def _tell(self, obstacle: str | None) -> None:
        """How the feature stands, in the ladder's words."""
        shut = [f"{vtep}: {standing.why}" for vtep, standing in self._standings.items() if standing.why]
        if obstacle is None and shut and len(shut) == len(self._standings):
            obstacle = ", ".join(shut)
        self._ladder.probed(Feature.TUNNEL_GSO, obstacle)
        remarks = [BYPASSES, *(f"not to {each}" for each in shut)]
        self._ladder.remark(Feature.TUNNEL_GSO, "; ".join(remarks))

    def poll(self) -> None:
        """Asks what got lost behind the TAP.  Blocks for netlink."""
        if (tap := self._tap) is not None:
            tap.look()
