"""Where every frame is noted: counted in the book, and shown to whoever watches.

Free when nobody does: a frame carried costs one look at an empty list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from overlay.verdict import Drop, DropReason, Verdict
from tunnel.counters import Counters
from tunnel.interfaces import Buffer, Observer, Point

if TYPE_CHECKING:
    from tunnel.carriage import NetworkCarriage, VtepCarriage


class Recorder:
    """The book of one engine and its observers.

    Attributes:
        observers: Who watches; read by the hot paths to know whether anybody does.
    """

    def __init__(self) -> None:
        self.counters = Counters()
        self.observers: list[Observer] = []

    def drop(
        self,
        reason: DropReason,
        network: NetworkCarriage | None,
        frame: Buffer,
        vtep: VtepCarriage | None = None,
        *,
        frames: int = 1,
    ) -> None:
        """A frame ends here, for this reason.  `frames`: how many entered the book for it."""
        network_id = None if network is None else network.id
        self.counters.drop(reason, network_id, None if vtep is None else vtep.drops, frames=frames)
        if self.observers:
            self.show(Point.DROP, network, frame, Drop(reason))

    def show(
        self, point: Point, network: NetworkCarriage | None, frame: Buffer, verdict: Verdict | None = None
    ) -> None:
        """Shows one frame to every observer."""
        for observer in tuple(self.observers):
            observer.observe(point, None if network is None else network.id, frame, verdict)
