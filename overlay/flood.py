"""The flood list of one network: head-end replication and its split horizon.

RFC 7348 floods by IP multicast; a list of unicast copies does the same where the underlay carries none
(RFC 8365 section 5.1.2 calls it ingress replication).  The split horizon is what keeps a full mesh free
of loops: a frame from the tunnel is never replicated back into it.  Only egress ever reads this list.
"""

from __future__ import annotations

from overlay.addr import VtepId


class FloodList:
    """The VTEPs that get a copy, each once, in the order they were programmed."""

    def __init__(self) -> None:
        self._vteps: tuple[VtepId, ...] = ()

    def __len__(self) -> int:
        return len(self._vteps)

    def vteps(self) -> tuple[VtepId, ...]:
        """The list."""
        return self._vteps

    def replace(self, vteps: tuple[VtepId, ...]) -> bool:
        """Sets the list, repetitions removed; whether it changed."""
        unique = tuple(dict.fromkeys(vteps))
        changed = unique != self._vteps
        self._vteps = unique
        return changed

    def remove(self, vtep: VtepId) -> bool:
        """Takes one VTEP out; whether it was in."""
        return self.replace(tuple(other for other in self._vteps if other != vtep))
