"""Whole states: what is told to whom, who is called, and what a stranger's stream can cost."""

from __future__ import annotations

from itertools import pairwise

from support.membership import STRANGER, US, Bench, alive, at, dead, left, state_of

from control.membership.config import STREAM_TIMEOUT, STREAMS_MAX
from control.membership.events import Answer, JoinFailed, JoinSucceeded, Refusal
from control.membership.member import Endpoint, MemberState
from control.membership.stream import parse_stream_untrusted
from control.membership.wire import Ack, Alive, Ping, PushPull, encode, encode_error

SEED = Endpoint("198.51.100.7", 7946)


def answer_to(bench: Bench, *numbers_alive: int) -> PushPull:
    answer = parse_stream_untrusted(
        bench.push_pull(*(state_of(number, MemberState.ALIVE) for number in numbers_alive))
    )
    assert isinstance(answer, PushPull)
    return answer


def names(exchange: PushPull) -> dict[str, MemberState]:
    return {state.alive.node: state.state for state in exchange.nodes}


def test_an_exchange_tells_each_what_the_other_knows() -> None:
    bench = Bench(2)
    told = answer_to(bench, 3)
    assert names(told) == dict.fromkeys(("us", "m1", "m2", "m3"), MemberState.ALIVE)
    assert bench.state(3) is MemberState.ALIVE


def test_what_an_exchange_accuses_us_of_the_answer_already_refutes() -> None:
    bench = Bench(2)
    accusation = state_of(0, MemberState.DEAD)
    we = bench.core.ourselves
    accused = type(accusation)(Alive(we.incarnation, "us", US, we.meta, we.versions), MemberState.DEAD)
    answer = parse_stream_untrusted(bench.push_pull(accused))
    assert isinstance(answer, PushPull)
    (ours,) = [state for state in answer.nodes if state.alive.node == "us"]
    assert (ours.state, ours.alive.incarnation) == (MemberState.ALIVE, 2)


def test_the_long_gone_are_told_of_to_themselves_alone() -> None:
    bench = Bench(6)
    bench.receive(dead(1), left(2))
    assert names(answer_to(bench, 3)).keys() >= {"m1", "m2"}
    bench.run_quietly(120.0)
    assert not names(answer_to(bench, 3)).keys() & {"m1", "m2"}
    # Back after a restart without memory: it must hear of its death, to outbid it.
    assert names(answer_to(bench, 1))["m1"] is MemberState.DEAD


def test_a_ping_over_tcp_is_answered() -> None:
    bench = Bench()
    assert parse_stream_untrusted(bench.stream(encode(Ping(7, "us")))) == Ack(7)
    assert bench.stream(encode(Ping(7, "other"))) == encode_error("not the node you ping")


def test_a_wrong_key_on_a_stream_is_named() -> None:
    bench = Bench(keys=(bytes(32),))
    assert bench.stream(encode(Ping(7, "us"))) == b""
    assert bench.refused(Refusal.WRONG_KEY) == 1
    labelled = Bench(label="pool")
    labelled.stream(encode(Ping(7, "us")))
    assert labelled.refused(Refusal.WRONG_LABEL) == 1


# Joining and calling the lost.


def opened(bench: Bench, seconds: float = 0.0) -> list[Endpoint]:
    bench.run(seconds)
    return [opening.to for opening in bench.core.streams_to_open(now=bench.now)]


def test_seeds_are_called_at_once_then_ever_more_patiently_while_we_are_alone() -> None:
    bench = Bench(seeds=(SEED,))
    calls = []
    for _ in range(1200):
        for opening in bench.core.streams_to_open(now=bench.now):
            calls.append(round(bench.now - 100.0))
            bench.core.stream_closed(opening.stream, now=bench.now, why="refused")
        bench.run(0.1)
    assert calls[:4] == [0, 1, 3, 7]
    assert all(22 <= later - earlier <= 30 for earlier, later in pairwise(calls[6:]))


def test_a_seed_that_does_not_answer_is_told_of() -> None:
    bench = Bench(seeds=(SEED,))
    assert opened(bench, 0.1) == [SEED]
    bench.run(STREAM_TIMEOUT)
    assert JoinFailed(SEED, "timed out", Answer.NOTHING) in bench.take_events()


def test_a_seed_with_another_key_is_told_from_nobody() -> None:
    hung_up, under_its_own = (Bench(seeds=(SEED,), keys=(bytes(32),)) for _ in range(2))
    for bench in (hung_up, under_its_own):
        bench.run(0.1)
    (opening,) = hung_up.core.streams_to_open(now=hung_up.now)
    hung_up.core.stream_closed(opening.stream, now=hung_up.now, why="closed", was_open=True)
    assert JoinFailed(SEED, "closed", Answer.CLOSED) in hung_up.take_events()
    (opening,) = under_its_own.core.streams_to_open(now=under_its_own.now)
    stranger = Bench(keys=(bytes([1]) * 32,)).envelope.seal_stream(encode_error("no key"))
    under_its_own.core.receive_stream(opening.stream, stranger, now=under_its_own.now)
    assert {event.answer for event in under_its_own.take_events() if isinstance(event, JoinFailed)} == {
        Answer.OTHER_KEY
    }


def test_a_seed_that_is_here_is_not_called_again() -> None:
    bench = Bench(1, seeds=(at(1), US))
    opened(bench, 0.1)
    bench.run_quietly(0.1)
    for _ in range(20):
        bench.run_quietly(10.0)
    assert bench.take_events() == []


def test_a_successful_join_is_told_of_and_announced() -> None:
    bench = Bench(seeds=(SEED,))
    bench.run(0.1)
    (opening,) = bench.core.streams_to_open(now=bench.now)
    other = Bench(3)
    bench.core.receive_stream(opening.stream, other.stream(opening.data), now=bench.now)
    assert JoinSucceeded(SEED) in bench.take_events()
    assert bench.state(1) is bench.state(3) is MemberState.ALIVE
    bench.run(0.5)
    assert any(isinstance(message, Alive) and message.node == "us" for message in bench.take_messages())


def test_the_dead_are_called_within_half_a_minute_and_the_left_are_not() -> None:
    bench = Bench(6)
    bench.receive(dead(1), left(2))
    bench.opened.clear()
    bench.run_quietly(60.0)
    assert bench.opened.count(at(1)) >= 2
    assert at(2) not in bench.opened


def test_who_was_remembered_is_called_while_we_are_alone() -> None:
    assert set(opened(Bench(remembered=(at(3), at(4))), 0.1)) == {at(3), at(4)}


# What a stream can cost.


def test_there_are_only_so_many_streams_and_they_end() -> None:
    bench = Bench()
    numbers = [bench.core.accept_stream(STRANGER, now=bench.now) for _ in range(STREAMS_MAX + 5)]
    assert numbers[STREAMS_MAX:] == [None] * 5
    assert bench.refused(Refusal.STREAMS_FULL) == 5
    bench.core.join(SEED, now=bench.now)
    assert opened(bench) == [SEED], "strangers' streams do not crowd out our own"
    bench.run(STREAM_TIMEOUT)
    closed = {write.stream for write in bench.core.streams_to_write(now=bench.now)}
    assert closed >= {number for number in numbers if number is not None}
    assert bench.core.accept_stream(STRANGER, now=bench.now) is not None


def test_what_all_streams_hold_together_is_bounded() -> None:
    bench = Bench()
    numbers = [bench.core.accept_stream(STRANGER, now=bench.now) for _ in range(STREAMS_MAX)]
    taken = 0
    for number in numbers:
        assert number is not None
        bench.core.receive_stream(
            number, b"\x09\x81\xa3Buf\xdb\x00\x3f\xff\xff" + bytes(1 << 20), now=bench.now
        )
        if not bench.core.streams_to_write(now=bench.now):
            taken += 1
    assert taken <= 17


def test_an_answer_to_something_else_ends_the_stream() -> None:
    bench = Bench(seeds=(SEED,))
    bench.run(0.1)
    (opening,) = bench.core.streams_to_open(now=bench.now)
    bench.core.receive_stream(opening.stream, encode(Ack(1)), now=bench.now)
    assert JoinFailed(SEED, "an answer to something else", Answer.REFUSED) in bench.take_events()


def test_octets_for_a_stream_that_ended_are_nothing() -> None:
    bench = Bench()
    bench.core.receive_stream(99, b"x", now=bench.now)
    bench.core.stream_closed(99, now=bench.now)
    assert alive(1) not in bench.take_messages()
