"""Members are found by name and by place, each is probed in turn, and tombstones make room."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from control.membership.member import VERSIONS, Endpoint, Member, MemberState
from control.membership.roster import Roster

STATES = st.sampled_from(MemberState)


def member(
    number: int, state: MemberState = MemberState.ALIVE, *, port: int = 7946, at: float = 0.0
) -> Member:
    return Member(f"m{number}", Endpoint(f"192.0.2.{number}", port), 1, state, b"", VERSIONS, at)


def roster(capacity: int = 100) -> Roster:
    return Roster(member(0), rng=Random(1), capacity=capacity)


@given(st.lists(st.tuples(st.integers(0, 6), STATES, st.integers(1, 2)), max_size=40))
def test_the_indexes_are_what_a_naive_roster_would_say(writes: list[tuple[int, MemberState, int]]) -> None:
    tested, naive = roster(), {"m0": member(0)}
    for number, state, port in writes:
        written = member(number, state, port=port)
        assert tested.put(written) == naive.get(written.name)
        naive[written.name] = written
    assert {each.name: each for each in tested} == naive
    assert tested.here == sum(each.is_here for each in naive.values())
    for each in naive.values():
        assert tested.lookup(each.name) == tested.at(each.endpoint) == each
    others = [each for each in naive.values() if each.name != "m0"]
    assert {each.name for each in tested.pick(100, lambda _: True)} == {each.name for each in others}
    assert tested.next_to_probe() is None or tested.next_to_probe() in [
        each for each in others if each.is_here
    ]


def test_everybody_is_probed_once_a_round() -> None:
    tested = roster()
    for number in range(1, 21):
        tested.put(member(number))
    for _ in range(20):
        tested.next_to_probe()  # the first round's order depends on who came when
    for _ in range(5):
        probed = Counter(each.name for _ in range(20) if (each := tested.next_to_probe()))
        assert set(probed.values()) == {1}


def test_the_gone_are_not_probed() -> None:
    tested = roster()
    tested.put(member(1, MemberState.DEAD))
    tested.put(member(2, MemberState.LEFT))
    assert tested.next_to_probe() is None
    tested.put(member(2, MemberState.SUSPECT))
    assert tested.next_to_probe() == member(2, MemberState.SUSPECT)


def test_two_at_one_endpoint_are_nobody_in_particular() -> None:
    tested = roster()
    tested.put(member(1))
    tested.put(replace(member(2), endpoint=member(1).endpoint))
    assert tested.at(member(1).endpoint) is None
    tested.remove("m1")
    assert tested.at(member(1).endpoint) is not None


def test_the_oldest_tombstone_makes_room_and_the_living_do_not() -> None:
    tested = roster(capacity=4)
    tested.put(member(1, MemberState.DEAD, at=5.0))
    tested.put(member(2, MemberState.LEFT, at=3.0))
    tested.put(member(3))
    assert tested.has_room()
    assert "m2" not in tested
    tested.put(member(4))
    assert tested.has_room()
    tested.put(member(5))
    assert not tested.has_room()


def test_picks_are_different_suitable_and_never_ourselves() -> None:
    tested = roster()
    for number in range(1, 50):
        tested.put(member(number, MemberState.ALIVE if number % 2 else MemberState.LEFT))
    for _ in range(50):
        picked = tested.pick(3, lambda each: each.is_here)
        assert len({each.name for each in picked}) == 3
        assert all(each.is_here and each.name != "m0" for each in picked)


def test_a_member_is_encoded_anew_when_it_changes() -> None:
    tested = roster()
    tested.put(member(1))
    before = tested.encoded(member(1))
    tested.put(member(1, MemberState.SUSPECT))
    assert tested.encoded(member(1, MemberState.SUSPECT)) != before


def test_a_newcomer_is_probed_anywhere_in_the_round_under_way() -> None:
    # At its end always, a newcomer in a growing pool would wait for ever.
    places = set()
    for seed in range(40):
        tested = Roster(member(0), rng=Random(seed), capacity=100)
        for number in range(1, 11):
            tested.put(member(number))
        tested.put(member(99))
        order = [each.name for _ in range(11) if (each := tested.next_to_probe())]
        places.add(order.index("m99"))
    assert len(places) > 6
