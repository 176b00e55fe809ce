"""One probe, from ping to verdict, and what it says about ourselves."""

from __future__ import annotations

from support.membership import Bench, alive, at

from control.membership.events import UdpBlocked
from control.membership.member import MemberState
from control.membership.wire import Ack, IndirectPing, Nack, Ping, encode, parse_untrusted


def pinged(bench: Bench) -> Ping:
    """Let time pass until the next ping of ours is out."""
    for _ in range(100):
        bench.run(0.1)
        for message in bench.take_messages():
            if isinstance(message, Ping):
                return message
    raise AssertionError("nobody was pinged within 10 s")


def asked(bench: Bench) -> dict[object, IndirectPing]:
    """Whom we asked to ping for us."""
    return {
        to: message
        for to, messages in bench.take_datagrams()
        for message in messages
        if isinstance(message, IndirectPing)
    }


def test_an_ack_ends_a_probe_well() -> None:
    bench = Bench(4)
    ping = pinged(bench)
    bench.receive(Ack(ping.seq))
    bench.run(1.0)
    statistics = bench.core.statistics()
    assert (statistics.probes_failed, statistics.suspect) == (0, 0)


def test_an_ack_for_another_ping_does_not() -> None:
    bench = Bench(4)
    bench.receive(Ack(pinged(bench).seq ^ 1))
    bench.run(1.0)
    assert bench.core.statistics().suspect == 1


def test_three_others_are_asked_and_tcp_is_tried() -> None:
    bench = Bench(6)
    ping = pinged(bench)
    bench.core.streams_to_open(now=bench.now)
    bench.run(0.5)
    requests = asked(bench)
    assert len(requests) == 3
    assert {request.node for request in requests.values()} == {ping.node}
    assert all(request.wants_nack for request in requests.values())
    (opening,) = bench.core.streams_to_open(now=bench.now)
    assert parse_untrusted(opening.data) == ping
    assert opening.to == at(int(ping.node[1:]))


def test_an_ack_by_way_of_another_counts_until_the_interval_ends() -> None:
    bench = Bench(6)
    ping = pinged(bench)
    bench.run(0.75)
    bench.receive(Ack(ping.seq), sender=at(9))
    bench.run(0.5)
    assert bench.core.statistics().suspect == 0


def test_who_answers_tcp_alone_is_reported_and_not_suspected() -> None:
    bench = Bench(6)
    bench.core.streams_to_open(now=bench.now)
    ping = pinged(bench)
    bench.run(0.5)
    (opening,) = bench.core.streams_to_open(now=bench.now)
    bench.core.receive_stream(
        opening.stream, bench.envelope.seal_stream(encode(Ack(ping.seq))), now=bench.now
    )
    bench.run(0.5)
    assert UdpBlocked(ping.node) in bench.take_events()
    assert bench.core.statistics().suspect == 0


def failed_probe(bench: Bench, nacks: int) -> int:
    """Fail a probe with so many nacks.  Returns our health score after it."""
    pinged(bench)
    bench.run(0.5)
    for to, request in list(asked(bench).items())[:nacks]:
        for _ in range(3):  # repeated nacks are one
            bench.receive(Nack(request.seq), sender=to)  # type: ignore[arg-type]
    bench.run(0.5)
    return bench.core.statistics().health


def test_nacks_that_do_not_come_are_held_against_ourselves() -> None:
    assert [failed_probe(Bench(6), nacks) for nacks in (3, 2, 0)] == [0, 1, 3]


def test_with_nobody_to_nack_a_failure_costs_one() -> None:
    assert failed_probe(Bench(1), 0) == 1


def test_ill_health_slows_our_probes_and_good_probes_mend_it() -> None:
    bench = Bench(6)
    failed_probe(bench, 0)
    bench.receive(Ack(pinged(bench).seq))  # begun at once; what follows it waits
    start = bench.now
    ping = pinged(bench)
    assert bench.now - start > 2.0
    before = bench.core.statistics().health
    bench.receive(Ack(ping.seq))
    pinged(bench)
    assert bench.core.statistics().health < before


def test_the_suspect_itself_is_told_with_the_ping() -> None:
    bench = Bench(1)
    pinged(bench)
    bench.run(1.0)
    assert bench.state(1) is MemberState.SUSPECT
    bench.take_datagrams()
    for _ in range(20):
        bench.run(0.1)
        for to, messages in bench.take_datagrams():
            if to == at(1) and isinstance(messages[0], Ping):
                assert [type(message).__name__ for message in messages[:2]] == ["Ping", "Suspect"]
                return
    raise AssertionError("the suspect was not probed again")


def test_an_alive_that_came_during_the_probe_has_refuted_its_failure() -> None:
    bench = Bench(1)
    pinged(bench)
    bench.receive(alive(1, 2))
    bench.run(1.0)
    assert bench.state(1) is MemberState.ALIVE
