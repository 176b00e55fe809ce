"""What a claim about a member does: one table.

A claim is a state, asserted of a name under an incarnation.  What it does depends on what we hold of that
name (the columns) and on whether its incarnation is older than, equal to, or newer than the one we hold
(the rows).

<table>

Only its subject raises an incarnation, so a claim can be outbid by the one it is about and by nobody else:
that is what REFUTE does.  A suspicion of a known suspect CONFIRMs it.  An old `alive` of somebody we hold
gone is either a ghost, a datagram long delayed, or a node restarted without its memory: we do not believe
it, and REMIND the pool with a suspicion under the incarnation we remember, which a living node will outbid.
(memberlist forgets the dead and takes ghosts for new members.)
"""

from __future__ import annotations

from enum import Enum

from control.membership.member import MemberState


class Standing(Enum):
    """What we hold of the name a claim is about."""

    ABSENT = "nobody"
    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"
    OURSELVES = "ourselves"


class Order(Enum):
    """A claim's incarnation, beside the one we hold.  For nobody, every claim is newer."""

    OLDER = "older"
    EQUAL = "equal"
    NEWER = "newer"


class Outcome(Enum):
    """What a claim does."""

    IGNORE = "·"
    WELCOME = "WELCOME"  # alive, with everything the claim says
    SUSPECT = "SUSPECT"
    CONFIRM = "CONFIRM"
    BURY = "BURY"  # dead
    DEPART = "DEPART"  # left
    REMIND = "REMIND"
    REFUTE = "REFUTE"


_TEXT = """
                 nobody   alive    suspect  dead     left     ourselves
alive   older    ·        ·        ·        REMIND   REMIND   ·
alive   equal    ·        ·        ·        REMIND   REMIND   ·
alive   newer    WELCOME  WELCOME  WELCOME  WELCOME  WELCOME  REFUTE
suspect older    ·        ·        ·        ·        ·        ·
suspect equal    ·        SUSPECT  CONFIRM  ·        ·        REFUTE
suspect newer    ·        SUSPECT  CONFIRM  ·        ·        REFUTE
dead    older    ·        ·        ·        ·        ·        ·
dead    equal    ·        BURY     BURY     ·        ·        REFUTE
dead    newer    ·        BURY     BURY     ·        ·        REFUTE
left    older    ·        ·        ·        ·        ·        ·
left    equal    ·        DEPART   DEPART   ·        ·        REFUTE
left    newer    ·        DEPART   DEPART   ·        ·        REFUTE
"""


def _read(text: str) -> dict[tuple[MemberState, Order, Standing], Outcome]:
    head, *rows = (line.split() for line in text.strip().splitlines())
    return {
        (MemberState[claim.upper()], Order(order), Standing(standing)): Outcome(cell)
        for claim, order, *cells in rows
        for standing, cell in zip(head, cells, strict=True)
    }


TRANSITIONS = _read(_TEXT)

if __doc__:
    __doc__ = __doc__.replace("<table>", "\n".join("    " + line for line in _TEXT.strip("\n").splitlines()))


def order_of(claimed: int, held: int | None) -> Order:
    """Where a claim's incarnation stands to the one we hold, None if we hold nobody."""
    if held is None or claimed > held:
        return Order.NEWER
    return Order.EQUAL if claimed == held else Order.OLDER
