"""What is told next, and how often: against a naive queue, and by the rules one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from control.membership.rumors import Audience, RumorQueue


def take(queue: RumorQueue, budget: int = 1000, *, limit: int = 3, is_peer: bool = True) -> list[bytes]:
    return queue.take(budget, overhead=2, limit=limit, count=255, is_peer=is_peer)


def test_sent_least_then_larger_then_newer_goes_first() -> None:
    queue = RumorQueue(100)
    queue.add(("a",), b"old")
    assert take(queue) == [b"old"]
    for name, message in (("b", b"tiny"), ("c", b"largest"), ("d", b"tidy")):
        queue.add((name,), message)
    assert take(queue) == [b"largest", b"tidy", b"tiny", b"old"]


def test_small_ones_fill_what_is_left() -> None:
    queue = RumorQueue(100)
    for size in (50, 30, 10):
        queue.add((str(size),), b"x" * size)
    assert [len(message) for message in take(queue, 65)] == [50, 10]


def test_a_newer_word_about_a_subject_replaces_the_older() -> None:
    queue = RumorQueue(100)
    queue.add(("member", "a"), b"suspect")
    take(queue)
    queue.add(("member", "a"), b"alive")
    assert take(queue) == [b"alive"]
    assert len(queue) == 1


def test_what_is_for_peers_is_not_told_to_others() -> None:
    queue = RumorQueue(100)
    queue.add(("weft",), b"ours", Audience.PEERS)
    queue.add(("member",), b"everyones")
    assert take(queue, is_peer=False) == [b"everyones"]
    assert take(queue, is_peer=True) == [b"ours", b"everyones"]


def test_a_full_queue_forgets_what_was_sent_most() -> None:
    queue = RumorQueue(2)
    queue.add(("a",), b"a")
    take(queue)
    queue.add(("b",), b"b")
    queue.add(("c",), b"c")
    assert sorted(take(queue)) == [b"b", b"c"]
    assert queue.forgotten == 1


def test_a_withdrawn_rumor_is_not_told() -> None:
    queue = RumorQueue(2)
    queue.add(("a",), b"a")
    queue.withdraw(("a",))
    assert take(queue) == []


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 40)), max_size=30),
    st.integers(1, 6),
    st.integers(3, 200),
)
def test_every_rumor_is_told_exactly_as_often_as_the_limit(
    adds: list[tuple[int, int]], limit: int, budget: int
) -> None:
    queue, last = RumorQueue(100), {}
    for order, (subject, size) in enumerate(adds):
        message = order.to_bytes(2, "big") + b"x" * size
        queue.add((str(subject),), message)
        last[subject] = message
    told: list[bytes] = []
    while taken := take(queue, budget, limit=limit):
        assert sum(len(message) + 2 for message in taken) <= budget
        assert len(set(taken)) == len(taken)
        told += taken
    for message in last.values():
        assert told.count(message) == (limit if len(message) + 2 <= budget else 0)
    assert set(told) <= set(last.values())
