"""The virtual clock keeps an event loop's promises, and its seed decides what no loop promises."""

from __future__ import annotations

from functools import partial

import pytest

from bench.lab.virtual import VirtualReactor


def test_timers_run_in_the_order_of_their_time_whatever_the_order_they_were_set() -> None:
    reactor = VirtualReactor()
    ran: list[tuple[str, float]] = []
    for delay in (3.0, 1.0, 2.0):
        reactor.call_later(delay, lambda delay=delay: ran.append((f"{delay}", reactor.time())))
    reactor.run_for(2.5)
    assert ran == [("1.0", 1.0), ("2.0", 2.0)]
    assert reactor.time() == 2.5


def test_timers_of_one_instant_run_in_the_order_they_were_set() -> None:
    reactor = VirtualReactor()
    ran: list[int] = []
    for number in range(20):
        reactor.call_later(1.0, ran.append, number)
    reactor.run_for(1.0)
    assert ran == list(range(20))


def test_a_cancelled_callback_does_not_run() -> None:
    reactor = VirtualReactor()
    ran: list[str] = []
    reactor.call_soon(ran.append, "soon").cancel()
    reactor.call_later(1.0, ran.append, "later").cancel()
    reactor.run_for(2.0)
    assert ran == []


def test_what_is_scheduled_in_a_turn_waits_for_the_next() -> None:
    reactor = VirtualReactor()
    ran: list[str] = []

    def first() -> None:
        reactor.call_soon(ran.append, "third")
        ran.append("first")

    reactor.call_soon(first)
    reactor.call_soon(ran.append, "second")
    reactor.run_for(0)
    assert ran == ["first", "second", "third"]


def test_an_endless_chain_of_callbacks_gives_the_condition_its_turn() -> None:
    reactor = VirtualReactor()
    ran: list[int] = []

    def again() -> None:
        ran.append(1)
        reactor.call_soon(again)

    reactor.call_soon(again)
    assert reactor.run_until(lambda: len(ran) >= 10, within=1.0)
    with pytest.raises(RuntimeError, match="spinning"):
        reactor.run_for(1.0)


def test_time_stands_still_while_there_is_something_to_do() -> None:
    reactor = VirtualReactor()
    at: list[float] = []

    def again(left: int) -> None:
        at.append(reactor.time())
        if left:
            reactor.call_soon(again, left - 1)

    reactor.call_later(1.0, again, 50)
    reactor.call_later(1.5, at.append, -1.0)
    reactor.run_for(2.0)
    assert at == [1.0] * 51 + [-1.0]


def test_a_reader_is_called_until_nothing_is_left_to_read() -> None:
    reactor = VirtualReactor()
    unread, read = ["c", "b", "a"], list[str]()
    fd = reactor.open_descriptor(lambda: bool(unread))
    reactor.add_reader(fd, lambda: read.append(unread.pop()))
    reactor.run_for(0)
    assert read == ["a", "b", "c"]


def test_a_removed_reader_is_not_called() -> None:
    reactor = VirtualReactor()
    fd = reactor.open_descriptor(lambda: True)
    reactor.add_reader(fd, lambda: pytest.fail("called"))
    assert reactor.remove_reader(fd)
    assert not reactor.remove_reader(fd)
    reactor.run_for(1.0)


def test_a_reader_that_never_reads_is_named_instead_of_hanging() -> None:
    reactor = VirtualReactor()
    reactor.add_reader(reactor.open_descriptor(lambda: True), list)
    with pytest.raises(RuntimeError, match=r"spinning at 0.0 s"):
        reactor.run_for(1.0)


def test_the_seed_decides_which_ready_reader_comes_first() -> None:
    def order(seed: int) -> tuple[int, ...]:
        reactor, waiting, came = VirtualReactor(seed), set(range(8)), list[int]()

        def read(number: int) -> None:
            waiting.remove(number)
            came.append(number)

        for number in range(8):
            fd = reactor.open_descriptor(partial(waiting.__contains__, number))
            reactor.add_reader(fd, read, number)
        reactor.run_for(0)
        return tuple(came)

    assert order(1) == order(1)
    assert len({order(seed) for seed in range(10)}) > 5


def test_run_until_tells_whether_the_condition_came_true_in_time() -> None:
    reactor = VirtualReactor()
    happened: list[int] = []
    reactor.call_later(5.0, happened.append, 1)
    assert not reactor.run_until(lambda: bool(happened), within=4.0)
    assert reactor.time() == 4.0
    assert reactor.run_until(lambda: bool(happened), within=4.0)
    assert reactor.time() == 5.0
