"""Remembered verdicts: flow tables, what they rest on, and exact forgetting.

A flow is a key with the verdict that was decided for it.  It rests on every table place that was looked
up for the decision, found or not; when `Tables.apply` touches one of these places, `Dependents` names the
flows to forget, no more and no fewer.  While its verdict is being decided a flow is *pending*: a bounded
number of its frames wait in order.

Tables are bounded, one for each direction and VTEP: whoever fills one harms himself alone.  A full table
remembers nothing new rather than evicting what is in use; the flow is then decided frame by frame, under
the meter for new flows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from overlay.verdict import Decision, TableKey, Verdict
from tunnel.offload import PLAIN

if TYPE_CHECKING:
    from tunnel.carriage import VtepCarriage


# Ours
EGRESS_FLOWS_MAX = 1 << 16  # per network
INGRESS_FLOWS_MAX = 1 << 15  # per VTEP of a network
PENDING_FRAMES_MAX = 64
PENDING_OCTETS_MAX = 256 * 1024
IDLE_SECONDS = 60.0
EXPIRE_SLICE = 4096  # flows looked at in one call of `FlowTable.expire`: well under a millisecond


class Flow:
    """A verdict remembered under a key, and what it has carried.  Mutable: the hot path counts in it.

    Attributes:
        target: The VTEP of an `Encapsulate`, else None: what the hot path carries the verdict out with.
        selector: The addresses and ports of the last frame, empty if it had none; while they and `protocol`
            stay, so does `entropy`.
        protocol: Of the last frame, as IPv4 has it.
        entropy: The flow hash that chose the sender.
    """

    __slots__ = (
        "entropy",
        "expires_at",
        "frames",
        "key",
        "octets",
        "protocol",
        "rests_on",
        "selector",
        "target",
        "used_at",
        "verdict",
    )

    def __init__(self, key: bytes, decision: Decision, *, target: VtepCarriage | None, now: float) -> None:
        self.key = key
        self.verdict: Verdict = decision.verdict
        self.rests_on: tuple[TableKey, ...] = decision.rests_on
        self.expires_at = decision.expires_at
        self.target = target
        self.selector = b""
        self.protocol = 0
        self.entropy = 0
        self.used_at = now
        self.frames = 0
        self.octets = 0


class Held(NamedTuple):
    """A frame that waits, with what was known of it beside its octets.

    Attributes:
        header: The `virtio_net_hdr` a device gave it: checksum to finish, segments to cut.
        segment_size: Ingress: the size its sender's `UDP_SEGMENT` cut a super-frame to; None: it is none.
    """

    frame: bytes
    header: bytes = PLAIN
    segment_size: int | None = None


class PendingFlow:
    """Frames of one flow that wait, in order, for its verdict."""

    __slots__ = ("asked_at", "frames", "key", "octets")

    def __init__(self, key: bytes | None, *, now: float) -> None:
        self.key = key
        self.asked_at = now
        self.frames: deque[Held] = deque()
        self.octets = 0

    def hold(self, held: Held) -> bool:
        """Takes one more frame; False: that would be too many."""
        octets = len(held.frame)
        if len(self.frames) >= PENDING_FRAMES_MAX or self.octets + octets > PENDING_OCTETS_MAX:
            return False
        self.frames.append(held)
        self.octets += octets
        return True


class FlowTable:
    """The flows of one direction of one network (ingress: of one VTEP), and those pending.

    Attributes:
        active: Key → flow.  The hot path's one look-up.
    """

    def __init__(self, capacity: int, dependents: Dependents) -> None:
        self.active: dict[bytes, Flow] = {}
        self.pending: dict[bytes, PendingFlow] = {}
        self._capacity = capacity
        self._dependents = dependents
        self._sweep: Iterator[Flow] = iter(())

    def activate(self, flow: Flow) -> bool:
        """Remembers the flow; False: the table is full and does not."""
        replaced = self.active.get(flow.key)
        if replaced is None and len(self.active) >= self._capacity:
            return False
        if replaced is not None:
            self._dependents.remove(self, replaced)
        self.active[flow.key] = flow
        self._dependents.add(self, flow)
        return True

    def forget(self, flow: Flow) -> None:
        """Remembers it no more.  Idempotent."""
        if self.active.get(flow.key) is flow:
            del self.active[flow.key]
            self._dependents.remove(self, flow)

    def clear(self) -> None:
        """Forgets everything that is remembered (what is pending stays pending)."""
        for flow in tuple(self.active.values()):
            self.forget(flow)

    def expire(self, *, now: float) -> None:
        """Forgets the flows that are idle or whose verdict's own time is over, a slice at each call."""
        for _ in range(EXPIRE_SLICE):
            flow = next(self._sweep, None)
            if flow is None:
                self._sweep = iter(tuple(self.active.values()))
                return
            if now - flow.used_at >= IDLE_SECONDS or (flow.expires_at is not None and now >= flow.expires_at):
                self.forget(flow)


class Dependents:
    """Table place → the flows whose verdict rests on it."""

    def __init__(self) -> None:
        self._flows: dict[TableKey, dict[tuple[int, bytes], tuple[FlowTable, Flow]]] = {}

    def add(self, table: FlowTable, flow: Flow) -> None:
        """Notes what the flow rests on."""
        for place in flow.rests_on:
            self._flows.setdefault(place, {})[id(table), flow.key] = (table, flow)

    def remove(self, table: FlowTable, flow: Flow) -> None:
        """Forgets what the flow rested on."""
        for place in flow.rests_on:
            flows = self._flows.get(place)
            if flows is not None:
                flows.pop((id(table), flow.key), None)
                if not flows:
                    del self._flows[place]

    def forget(self, touched: Iterable[TableKey]) -> int:
        """Forgets every flow that rests on one of these places; how many that were."""
        forgotten = 0
        for place in touched:
            for table, flow in tuple(self._flows.get(place, {}).values()):
                table.forget(flow)
                forgotten += 1
        return forgotten
