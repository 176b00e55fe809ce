"""Claims, accusations and strangers: every weakness known of memberlist is a test here."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.membership import STRANGER, US, Bench, alive, at, dead, left, state_of, suspect

from control.membership.events import MemberChanged, MemberReaped, NameConflict, Refusal
from control.membership.member import VERSIONS, Endpoint, MemberState
from control.membership.tags import encode_tags
from control.membership.wire import (
    Ack,
    Alive,
    Dead,
    IndirectPing,
    Nack,
    Ping,
    Suspect,
    compound,
    encode,
    with_crc,
)

KEY = bytes(32)


def us_suspected(incarnation: int) -> Suspect:
    return Suspect(incarnation, "us", "m1")


# Accusations of others.


def test_a_suspect_that_refutes_is_alive() -> None:
    bench = Bench(6)
    bench.receive(suspect(1))
    assert bench.state(1) is MemberState.SUSPECT
    bench.receive(alive(1, 2))
    bench.run_quietly(60.0)
    assert bench.state(1) is MemberState.ALIVE


def test_a_suspect_dies_sooner_the_more_accuse_it() -> None:
    times = []
    for accusers in (["m2"], ["m2", "m3"], ["m2", "m3", "m4"]):
        bench = Bench(6)
        for accuser in accusers:
            bench.receive(suspect(1, accuser=accuser))
        start = bench.now
        while bench.state(1) is MemberState.SUSPECT:
            bench.run_quietly(0.25)
        assert bench.state(1) is MemberState.DEAD
        times.append(bench.now - start)
    assert times[2] == pytest.approx(4.0, abs=0.3)
    assert times[0] > times[1] > times[2]


def test_a_lonely_suspicion_is_put_to_the_suspect_before_it_is_acted_upon() -> None:
    bench = Bench(6)
    bench.receive(suspect(1, accuser="m2"))
    told: list[Endpoint] = []
    while bench.state(1) is MemberState.SUSPECT:
        bench.run(0.25)
        told = [to for to, messages in bench.take_datagrams() if suspect(1, accuser="us") in messages] or told
        bench.core.streams_to_open(now=bench.now)
    assert at(1) in told


def test_who_is_heard_dead_by_hearsay_is_only_suspected() -> None:
    bench = Bench(6)
    bench.push_pull(
        state_of(1, MemberState.DEAD), state_of(2, MemberState.LEFT), state_of(3, MemberState.SUSPECT)
    )
    assert [bench.state(number) for number in (1, 2, 3)] == [
        MemberState.SUSPECT,
        MemberState.LEFT,
        MemberState.SUSPECT,
    ]


def test_a_suspect_nobody_knew_is_met_and_suspected() -> None:
    bench = Bench()
    bench.push_pull(state_of(1, MemberState.SUSPECT), state_of(2, MemberState.DEAD))
    assert [bench.state(number) for number in (1, 2)] == [MemberState.SUSPECT, None]


# Accusations of ourselves.


@pytest.mark.parametrize("accused", [1, 2, 70_000])
def test_we_outbid_what_is_said_of_us(accused: int) -> None:
    bench = Bench(3)
    for claim in (us_suspected(accused), Dead(accused, "us", "m1"), Dead(accused, "us", "us")):
        bench = Bench(3)
        bench.receive(claim)
        assert bench.core.ourselves.incarnation == accused + 1
        assert bench.core.ourselves.state is MemberState.ALIVE
        bench.run(1.0)
        words = [
            message
            for message in bench.take_messages()
            if isinstance(message, Alive) and message.node == "us"
        ]
        assert words
        assert {word.incarnation for word in words} == {accused + 1}


def test_restart_amnesia_is_cured_by_the_first_exchange() -> None:
    # The pool knows us under 7 from before a restart; we start at 1 and hear it in the answer to our join.
    bench = Bench()
    word = Alive(7, "us", US, encode_tags({"weft_id": "before"}), VERSIONS)
    bench.receive(word)
    assert bench.core.ourselves.incarnation == 8
    assert bench.core.ourselves.meta == encode_tags({"weft_id": "us"})


def test_a_word_under_our_own_incarnation_that_is_not_ours_is_outbid() -> None:
    bench = Bench()
    bench.receive(Alive(1, "us", US, encode_tags({"weft_id": "before"}), VERSIONS))
    assert bench.core.ourselves.incarnation == 2


def test_our_own_word_coming_back_is_nothing() -> None:
    bench = Bench()
    we = bench.core.ourselves
    bench.receive(Alive(we.incarnation, "us", US, we.meta, we.versions))
    assert bench.core.ourselves.incarnation == 1


# Huge incarnations.


@pytest.mark.parametrize("incarnation", [(1 << 31) + 2, (1 << 32) - 1])
def test_an_incarnation_that_jumps_too_far_is_refused(incarnation: int) -> None:
    bench = Bench(3)
    bench.receive(alive(1, incarnation), suspect(1, incarnation), dead(2, incarnation), left(3, incarnation))
    bench.receive(us_suspected(incarnation), alive(9, incarnation))
    assert [bench.state(number) for number in (1, 2, 3, 9)] == [MemberState.ALIVE] * 3 + [None]
    assert bench.core.ourselves.incarnation == 1
    assert bench.refused(Refusal.INCARNATION_JUMP) == 6


def test_a_jump_of_half_the_range_is_followed() -> None:
    bench = Bench(3)
    bench.receive(alive(1, 1 + (1 << 31)))
    member = bench.core.lookup("m1")
    assert member is not None
    assert member.incarnation == 1 + (1 << 31)


def test_the_last_incarnation_is_not_outbid_and_does_not_wrap() -> None:
    bench = Bench(incarnation=(1 << 32) - 1)
    bench.receive(us_suspected((1 << 32) - 1))
    assert bench.core.ourselves.incarnation == (1 << 32) - 1


# Names and addresses.


ELSEWHERE = Endpoint("198.51.100.1", 7946)


def test_a_live_members_name_at_another_address_is_a_conflict() -> None:
    bench = Bench(3)
    for _ in range(5):
        bench.receive(alive(1, 9, endpoint=ELSEWHERE))
    assert bench.core.lookup("m1").endpoint == at(1)  # type: ignore[union-attr]
    assert bench.take_events() == [NameConflict("m1", at(1), ELSEWHERE)]
    assert bench.refused(Refusal.NAME_CONFLICT) == 5


@pytest.mark.parametrize("end", [left(1, 1), dead(1, 1)], ids=["left", "dead"])
def test_who_is_gone_may_come_back_elsewhere_under_a_newer_incarnation(end: Dead) -> None:
    bench = Bench(3)
    bench.receive(end, alive(1, 1, endpoint=ELSEWHERE))
    assert bench.state(1) is not MemberState.ALIVE
    bench.receive(alive(1, 2, endpoint=ELSEWHERE))
    assert bench.state(1) is MemberState.ALIVE
    assert bench.core.lookup("m1").endpoint == ELSEWHERE  # type: ignore[union-attr]


def test_a_later_start_of_the_same_weft_node_wins_at_once() -> None:
    bench = Bench()
    first, second, other = (
        encode_tags({"weft_id": weft_id, "weft_epoch": epoch})
        for weft_id, epoch in (("a", "1"), ("a", "2"), ("b", "9"))
    )
    bench.receive(alive(1, 1, meta=first))
    bench.receive(alive(1, 2, meta=other, endpoint=ELSEWHERE))
    assert bench.core.lookup("m1").endpoint == at(1)  # type: ignore[union-attr]
    bench.receive(alive(1, 2, meta=second, endpoint=ELSEWHERE))
    assert bench.core.lookup("m1").endpoint == ELSEWHERE  # type: ignore[union-attr]


def test_our_own_name_elsewhere_is_an_alarm_and_not_a_contest() -> None:
    bench = Bench(3)
    bench.receive(Alive(50, "us", ELSEWHERE, b"", VERSIONS))
    assert NameConflict("us", US, ELSEWHERE) in bench.take_events()
    assert bench.core.ourselves.incarnation == 1


def test_we_leave_where_we_were_before_we_are_where_we_are() -> None:
    bench = Bench(3, former=ELSEWHERE)
    bench.run(3.0)
    bench.take_datagrams()
    bench.receive(Alive(50, "us", ELSEWHERE, b"", VERSIONS))
    bench.run(1.0)
    farewells = [message for message in bench.take_messages() if isinstance(message, Dead)]
    assert set(farewells) == {Dead(50, "us", "us")}
    bench.run(2.0)
    words = {message for message in bench.take_messages() if isinstance(message, Alive)}
    assert {(word.incarnation, word.endpoint) for word in words if word.node == "us"} == {(51, US)}


# Ghosts and tombstones.


def test_a_late_word_of_the_dead_is_not_a_new_member() -> None:
    bench = Bench(6)
    bench.receive(alive(1, 5), dead(1, 5))
    bench.run_quietly(3600.0)
    bench.receive(alive(1, 3), alive(1, 5))
    assert bench.state(1) is MemberState.DEAD
    assert bench.refused(Refusal.STALE) == 2


def test_a_tombstone_is_forgotten_after_a_day() -> None:
    bench = Bench(1)
    bench.receive(dead(1))
    bench.take_events()
    bench.run(24 * 3600.0 - 120.0)
    assert bench.state(1) is MemberState.DEAD
    bench.run(240.0)
    assert bench.state(1) is None
    assert [event.member.name for event in bench.take_events() if isinstance(event, MemberReaped)] == ["m1"]


def test_a_full_roster_takes_nobody_in() -> None:
    bench = Bench(5, members_max=6)
    bench.receive(alive(6))
    assert bench.state(6) is None
    assert bench.refused(Refusal.ROSTER_FULL) == 1
    bench.receive(dead(1), alive(6))
    assert [bench.state(1), bench.state(6)] == [None, MemberState.ALIVE]


# No reflection, no amplification.


def test_an_ack_goes_to_the_sender_and_nowhere_else() -> None:
    bench = Bench(3)
    ping = encode(Ping(7, "us"))[:1] + b"\x85" + encode(Ping(7, "us"))[2:]
    ping += b"\xaaSourceAddr\xa4\xc6\x33\x64\x01\xaaSourcePort\xcd\x1f\x0a\xaaSourceNode\xa2m1"
    bench.receive_octets(ping)
    ((to, messages),) = bench.take_datagrams()
    assert to == STRANGER
    assert messages[0] == Ack(7)


def test_a_ping_for_somebody_else_is_not_answered() -> None:
    bench = Bench(3)
    bench.receive(Ping(7, "m1"))
    assert bench.take_datagrams() == []
    assert bench.refused(Refusal.NOT_FOR_US) == 1


@pytest.mark.parametrize("keys", [(), (KEY,)], ids=["plain", "encrypted"])
@pytest.mark.parametrize("pings", [1, 2, 50])
def test_answers_stay_within_three_times_the_question(keys: tuple[bytes, ...], pings: int) -> None:
    bench = Bench(3, keys=keys)
    for number in range(10, 60):  # plenty of rumors to ride along
        bench.receive(alive(number))
    bench.take_datagrams()
    question = bench.envelope.seal(compound([encode(Ping(seq, "")) for seq in range(pings)]))
    for sender in (STRANGER, at(1)):
        bench.receive_octets(question, sender)
        answered = bench.core.datagrams_to_send(now=bench.now)
        assert {datagram.to for datagram in answered} <= {sender}
        assert answered
        assert sum(len(datagram.data) for datagram in answered) <= 3 * len(question)


@pytest.mark.parametrize(
    ("end", "told"), [(left(1), left(1)), (dead(1), dead(1, accuser="us"))], ids=["left", "dead"]
)
def test_who_is_held_to_be_gone_and_pings_hears_of_it_with_the_ack(end: Dead, told: Dead) -> None:
    bench = Bench(3)
    bench.receive(end)
    question = with_crc(encode(Ping(7, "us")))
    bench.receive_octets(question, at(1))
    answered = bench.core.datagrams_to_send(now=bench.now)
    assert [(each.to, bench.open(each.data)) for each in answered] == [(at(1), [Ack(7)]), (at(1), [told])]
    assert sum(len(each.data) for each in answered) <= 3 * len(question)


def test_an_indirect_probe_of_a_stranger_is_refused() -> None:
    bench = Bench(3)
    bench.receive(
        IndirectPing(1, ELSEWHERE, "m1", wants_nack=True), IndirectPing(2, at(1), "m2", wants_nack=True)
    )
    assert bench.take_datagrams() == []
    assert bench.refused(Refusal.UNKNOWN_TARGET) == 2


def test_an_indirect_probe_is_made_and_its_end_is_told() -> None:
    bench = Bench(3)
    bench.receive(IndirectPing(5, at(1), "m1", wants_nack=True), sender=at(2))
    ((to, (ping, *_)),) = bench.take_datagrams()
    assert to == at(1)
    assert isinstance(ping, Ping)
    bench.receive(Ack(ping.seq), sender=at(1))
    assert (at(2), [Ack(5)]) in bench.take_datagrams()
    bench.receive(IndirectPing(6, at(1), "m1", wants_nack=True), sender=at(2))
    bench.run(0.5)
    assert (at(2), [Nack(6)]) in bench.take_datagrams()


def test_a_nack_is_back_before_the_askers_interval_ends() -> None:
    # It asks others after half of its interval of a second, and takes a nack that comes later for none.
    bench = Bench(3)
    bench.receive(IndirectPing(6, at(1), "m1", wants_nack=True), sender=at(2))
    bench.run(0.4)
    assert (at(2), [Nack(6)]) in bench.take_datagrams()


def test_one_requester_gets_so_many_relays_a_second() -> None:
    bench = Bench(3)
    for seq in range(100):
        bench.receive(IndirectPing(seq, at(1), "m1", wants_nack=False), sender=at(2))
    assert len(bench.take_datagrams()) == 10
    assert bench.refused(Refusal.RELAY_LIMIT) == 90


# Octets.


@pytest.mark.parametrize(
    ("ours", "data", "reason"),
    [
        ({}, b"\xff", Refusal.MALFORMED),
        ({}, b"\x0c\0\0\0\0x", Refusal.MALFORMED),
        ({"keys": (KEY,)}, encode(Ping(1, "us")), Refusal.WRONG_KEY),
        ({"label": "pool"}, encode(Ping(1, "us")), Refusal.WRONG_LABEL),
        ({}, b"\xf4\x04pool" + encode(Ping(1, "us")), Refusal.WRONG_LABEL),
    ],
)
def test_what_is_not_for_this_pool_is_named_and_has_no_effect(
    ours: dict[str, object], data: bytes, reason: Refusal
) -> None:
    bench = Bench(2, **ours)  # type: ignore[arg-type]
    bench.receive_octets(data)
    assert bench.take_datagrams() == []
    assert bench.refused(reason) == 1


def test_one_message_that_is_malformed_does_not_spoil_those_beside_it() -> None:
    bench = Bench(1)
    bench.receive_octets(compound([b"\xff", encode(alive(2)), b"\x03\xc0"]))
    assert bench.state(2) is MemberState.ALIVE
    assert bench.refused(Refusal.MALFORMED) == 2


@given(st.lists(st.binary(max_size=120), max_size=10))
@settings(max_examples=100)
def test_no_octets_stop_a_core(datagrams: list[bytes]) -> None:
    bench = Bench(2)
    for data in datagrams:
        for kind in (b"", b"\x00", b"\x01", b"\x03", b"\x04", b"\x07\x02", b"\x08\x04", b"\x08\x03"):
            bench.receive_octets(kind + data)
        bench.stream(data or b"\x06")
        bench.run(0.3)
    bench.receive(Ping(1, "us"))
    assert any(Ack(1) in messages for _, messages in bench.take_datagrams())


CLAIMS = st.builds(
    lambda kind, number, incarnation: kind(number, incarnation),
    st.sampled_from([alive, suspect, dead, left]),
    st.integers(1, 3),
    st.integers(0, 4),
)


@given(st.lists(CLAIMS | st.floats(0.0, 40.0), max_size=40))
@settings(max_examples=100)
def test_whatever_is_claimed_incarnations_only_rise(story: list[object]) -> None:
    bench = Bench(2)
    held: dict[str, int] = {}
    for step in story:
        if isinstance(step, float):
            bench.run(step)
        else:
            bench.receive(step)  # type: ignore[arg-type]
        for member in bench.core.members:
            assert member.incarnation >= held.get(member.name, 0)
            held[member.name] = member.incarnation
        statistics = bench.core.statistics()
        assert statistics.alive + statistics.suspect + statistics.dead + statistics.left == len(
            bench.core.members
        )
        assert bench.core.ourselves.state is MemberState.ALIVE


def test_a_change_is_told_once_and_a_repetition_is_not() -> None:
    bench = Bench()
    bench.receive(alive(1), alive(1), suspect(1), suspect(1), dead(1), dead(1))
    told = [
        (event.member.state, event.before)
        for event in bench.take_events()
        if isinstance(event, MemberChanged)
    ]
    assert told == [
        (MemberState.ALIVE, None),
        (MemberState.SUSPECT, MemberState.ALIVE),
        (MemberState.DEAD, MemberState.SUSPECT),
    ]


def test_an_accusation_heard_after_standing_still_does_not_find_the_suspects_time_gone() -> None:
    bench = Bench(6)
    bench.receive(suspect(1, accuser="m2"))
    bench.now += 60.0
    bench.receive(suspect(1, accuser="m3"), suspect(1, accuser="m4"))
    bench.core.handle_timer(now=bench.now)
    assert bench.state(1) is MemberState.SUSPECT
    assert bench.core.statistics().paused > 50.0
