"""What we say of ourselves: that we are here, that we are not dead, that we go, that we moved.

Only we raise our incarnation, and every word of ours outbids what was said of us before.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from control.membership.config import ADDRESS_CHANGE_DELAY
from control.membership.events import Refusal
from control.membership.member import Endpoint, MemberState
from control.membership.pack import U32
from control.membership.timers import Alarm
from control.membership.wire import Alive, Dead, encode

if TYPE_CHECKING:
    from control.membership.context import Context


class Presence:
    """Our own place in the pool."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._roster = context.roster
        self._subject = ("member", context.name)
        self.is_leaving = False
        self.is_moving = False
        self.refutations = 0

    def word(self) -> bytes:
        """That we are alive, as we are now."""
        we = self._roster.ourselves
        return encode(Alive(we.incarnation, we.name, we.endpoint, we.meta, we.versions))

    def farewell(self) -> bytes:
        """That we left: a death reported by its own subject."""
        we = self._roster.ourselves
        return encode(Dead(we.incarnation, we.name, we.name))

    def announce(self) -> None:
        """Spread our word, unless we are between two addresses or on our way out."""
        if not self.is_moving and not self.is_leaving:
            self._context.spread(self._subject, self.word())

    def refute(self, accused_incarnation: int) -> None:
        """Outbid whatever was said of us under that incarnation, and think a little less of our health."""
        if self.is_leaving or self.is_moving:
            return
        we = self._roster.ourselves
        incarnation = max(we.incarnation, accused_incarnation) + 1
        if incarnation > U32:
            self._context.refuse(Refusal.INCARNATION_JUMP)
            return
        self.refutations += 1
        self._context.awareness.apply(1)
        self._roster.put(replace(we, incarnation=incarnation))
        self.announce()

    def change_tags(self, meta: bytes) -> None:
        """Our tags are these from now on."""
        we = self._roster.ourselves
        self._roster.put(replace(we, meta=meta, incarnation=we.incarnation + 1))
        self.announce()

    def leave(self) -> None:
        """Tell the pool that we go."""
        self.is_leaving = True
        self._roster.put(
            replace(self._roster.ourselves, state=MemberState.LEFT, changed_at=self._context.now)
        )
        self._context.spread(self._subject, self.farewell())

    def move(self, endpoint: Endpoint) -> None:
        """We are to be reached elsewhere from now on.

        A live member with another address is refused everywhere as a conflict of names; one that left may
        come back anywhere.  So we leave, give that rumor time to arrive, and come back.
        """
        farewell = self.farewell()
        self._roster.put(replace(self._roster.ourselves, endpoint=endpoint))
        self.be_on_the_way()
        self._context.spread(self._subject, farewell)

    def be_on_the_way(self) -> None:
        """Be gone until our farewell has overtaken our return."""
        now = self._context.now
        self.is_moving = True
        self._roster.put(replace(self._roster.ourselves, state=MemberState.LEFT, changed_at=now))
        self._context.timers.set(now + ADDRESS_CHANGE_DELAY, Alarm.MOVE)

    def arrive(self) -> None:
        """Be here again, under the next incarnation."""
        if not self.is_moving or self.is_leaving:
            return
        self.is_moving = False
        we, now = self._roster.ourselves, self._context.now
        self._roster.put(replace(we, state=MemberState.ALIVE, incarnation=we.incarnation + 1, changed_at=now))
        self.announce()

    def overtake(self, incarnation: int) -> None:
        """The pool still believes us at our last address: leave it under that incarnation, then come back."""
        if self.is_leaving:
            return
        self._roster.put(replace(self._roster.ourselves, incarnation=incarnation))
        self.move(self._roster.ourselves.endpoint)
