"""The table, cell by cell: a core brought into each state, told each claim, does what the table says."""

from __future__ import annotations

from itertools import product

import pytest
from support.membership import Bench, alive, dead, left, suspect

from control.membership import transitions
from control.membership.member import VERSIONS, MemberState
from control.membership.tags import encode_tags
from control.membership.transitions import TRANSITIONS, Order, Outcome, Standing, order_of
from control.membership.wire import Alive, Dead, Message, Suspect

HELD = 5  # the incarnation everybody is held under
CLAIMED = {Order.OLDER: 4, Order.EQUAL: 5, Order.NEWER: 6}
SUBJECT = 1

ENDS = {  # what the subject is held to be after an outcome, None: as before
    Outcome.IGNORE: None,
    Outcome.WELCOME: MemberState.ALIVE,
    Outcome.SUSPECT: MemberState.SUSPECT,
    Outcome.CONFIRM: MemberState.SUSPECT,
    Outcome.BURY: MemberState.DEAD,
    Outcome.DEPART: MemberState.LEFT,
    Outcome.REMIND: None,
}


def standing(what: Standing) -> Bench:
    """A core that holds member 1 in that standing, under incarnation 5, since long ago."""
    bench = Bench(members=6, incarnation=HELD)
    if what in (Standing.OURSELVES, Standing.ABSENT):
        bench = Bench(members=6 if what is Standing.OURSELVES else 0, incarnation=HELD)
        bench.forget_rumors()
        return bench
    bench.receive(alive(SUBJECT, HELD))
    told: dict[Standing, Message] = {
        Standing.SUSPECT: suspect(SUBJECT, HELD, "m2"),
        Standing.DEAD: dead(SUBJECT, HELD, "m2"),
        Standing.LEFT: left(SUBJECT, HELD),
    }
    if what in told:
        bench.receive(told[what])
    if what in (Standing.DEAD, Standing.LEFT):
        bench.run_quietly(bench.core.ourselves.changed_at + 400.0 - bench.now)
    bench.forget_rumors()
    return bench


def claim(state: MemberState, order: Order, what: Standing) -> Message:
    incarnation = CLAIMED[order]
    if what is Standing.OURSELVES:
        bench = Bench()
        we = bench.core.ourselves
        words: dict[MemberState, Message] = {
            MemberState.ALIVE: Alive(
                incarnation, we.name, we.endpoint, encode_tags({"weft_id": "us"}), VERSIONS
            ),
            MemberState.SUSPECT: Suspect(incarnation, we.name, "m3"),
            MemberState.DEAD: Dead(incarnation, we.name, "m3"),
            MemberState.LEFT: Dead(incarnation, we.name, we.name),
        }
        return words[state]
    others: dict[MemberState, Message] = {
        MemberState.ALIVE: alive(SUBJECT, incarnation),
        MemberState.SUSPECT: suspect(SUBJECT, incarnation, "m3"),
        MemberState.DEAD: dead(SUBJECT, incarnation, "m3"),
        MemberState.LEFT: left(SUBJECT, incarnation),
    }
    return others[state]


CELLS = [
    (state, order, what)
    for state, order, what in product(MemberState, Order, Standing)
    if what is not Standing.ABSENT or order is Order.NEWER
]


@pytest.mark.parametrize(("state", "order", "what"), CELLS, ids=lambda value: value.name.lower())
def test_a_cell_is_what_happens(state: MemberState, order: Order, what: Standing) -> None:
    outcome = TRANSITIONS[state, order, what]
    bench = standing(what)
    before = bench.core.lookup("us" if what is Standing.OURSELVES else f"m{SUBJECT}")
    bench.receive(claim(state, order, what))
    after = bench.core.lookup("us" if what is Standing.OURSELVES else f"m{SUBJECT}")
    passed_on = len(bench.core._swim.context.rumors)
    if outcome is Outcome.REFUTE:
        assert before is not None
        assert after is not None
        assert after.incarnation > max(before.incarnation, CLAIMED[order])
        assert passed_on == 1
    elif outcome in (Outcome.IGNORE, Outcome.REMIND):
        assert after == before
        assert passed_on == (outcome is Outcome.REMIND)
    else:
        assert after is not None
        assert after.state is ENDS[outcome]
        assert passed_on == 1
        if outcome is not Outcome.CONFIRM:
            assert after.incarnation == CLAIMED[order]


def test_the_table_is_whole_and_drawn_into_the_docstring() -> None:
    assert len(TRANSITIONS) == len(MemberState) * len(Order) * len(Standing)
    drawing = [line.split() for line in (transitions.__doc__ or "").splitlines()]
    for state, order in product(MemberState, Order):
        row = [TRANSITIONS[state, order, what].value for what in Standing]
        assert [state.name.lower(), order.value, *row] in drawing


def test_for_nobody_every_claim_is_newer() -> None:
    assert [order_of(0, None), order_of(1, 2), order_of(2, 2), order_of(3, 2)] == [
        Order.NEWER,
        Order.OLDER,
        Order.EQUAL,
        Order.NEWER,
    ]
