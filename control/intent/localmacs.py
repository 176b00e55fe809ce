"""What is behind our device: the MACs seen there, and who is right when another node says the same.

A MAC that moves from one node to another is claimed by the new one under a higher sequence number, and the
old one lets go (RFC 7432 section 7.7).  One that is claimed back and forth is there twice: after a few moves
within minutes nobody claims it any more, and both sides say so (section 7.7's duplicate detection).

    seen ──▶ claimed elsewhere?   no ─▶ ours, sequence 0
                                  yes ─▶ ours, one higher ──▶ too often? ─▶ twice there: frozen
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from control.membership.recordbody import LocalMac
from overlay.addr import Mac

# From the specification: RFC 7432 section 15.1
MOVES_MAX = 5
MOVES_SECONDS = 180.0

# Ours
LOCAL_MACS_MAX = 512  # of one network; a record holds twice as many of all networks of a node
FROZEN_SECONDS = 1800.0
SEQUENCE_MAX = (1 << 32) - 1


@dataclass(slots=True)
class _Claim:
    """One MAC of ours."""

    seen_at: float
    sequence: int = 0
    moves: deque[float] = field(default_factory=deque)
    frozen_until: float = 0.0


class LocalMacs:
    """The MACs behind one device.

    Args:
        own: The device's own, which is always there.
        ageing: Seconds after which one that is not seen is forgotten.
    """

    def __init__(self, own: Mac, *, ageing: float) -> None:
        self._own = own
        self._ageing = ageing
        self._claims: dict[Mac, _Claim] = {}
        self._is_full = False

    def see(self, seen: Mapping[Mac, float], elsewhere: Mapping[Mac, int], *, now: float) -> None:
        """These sent something through our device, last at that time.

        Args:
            elsewhere: What other nodes claim, and by which sequence.
        """
        for mac, at in sorted(seen.items()):
            claim = self._claims.get(mac)
            if mac == self._own or (claim is not None and at <= claim.seen_at):
                continue  # what it sent before it moved is no sign that it came back
            if claim is None:
                if len(self._claims) >= LOCAL_MACS_MAX:
                    self._is_full = True
                    continue
                claim = self._claims[mac] = _Claim(at)
                is_moving = mac in elsewhere
            else:
                is_moving = elsewhere.get(mac, -1) >= claim.sequence and now >= claim.frozen_until
            claim.seen_at = at
            if is_moving:
                self._move(claim, elsewhere[mac], now)

    @staticmethod
    def _move(claim: _Claim, sequence: int, now: float) -> None:
        while claim.moves and now - claim.moves[0] > MOVES_SECONDS:
            claim.moves.popleft()
        claim.moves.append(now)
        if len(claim.moves) > MOVES_MAX:
            claim.frozen_until = now + FROZEN_SECONDS
        else:
            claim.sequence = min(sequence + 1, SEQUENCE_MAX)

    def forget(self, *, now: float) -> None:
        """Forgets what was not seen for long; one that may be there twice is remembered a while longer."""
        for mac, claim in tuple(self._claims.items()):
            is_old = now - claim.seen_at >= self._ageing and now >= claim.frozen_until
            if is_old and not self._moved_lately(claim, now):
                del self._claims[mac]
                self._is_full = False

    @staticmethod
    def _moved_lately(claim: _Claim, now: float) -> bool:
        return bool(claim.moves) and now - claim.moves[-1] <= MOVES_SECONDS

    def claims(self, elsewhere: Mapping[Mac, int], *, now: float) -> tuple[LocalMac, ...]:
        """What we say is behind us, the device's own first."""
        ours = [
            LocalMac(mac, claim.sequence)
            for mac, claim in sorted(self._claims.items())
            if now - claim.seen_at < self._ageing and elsewhere.get(mac, -1) <= claim.sequence
        ]
        return (LocalMac(self._own), *ours)

    @property
    def is_full(self) -> bool:
        """Whether there are more than we say."""
        return self._is_full

    def doubles(self, *, now: float) -> list[Mac]:
        """Those that are here and elsewhere at once."""
        return sorted(mac for mac, claim in self._claims.items() if now < claim.frozen_until)
