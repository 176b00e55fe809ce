"""Serf's layer: every line of what a stock agent needs is a test."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.membership import (
    STOCK_META,
    STRANGER,
    US,
    Bench,
    alive,
    at,
    compress_lzw,
    dead,
    left,
    state_of,
    stock,
)

from control.membership.events import Departed, KeyringChanged, KeysAnswered, PeerMessage, Refusal
from control.membership.keyquery import PLAIN_POOL, KeyQuery, KeyStep, perform_untrusted
from control.membership.keys import format_key
from control.membership.member import Endpoint, MemberState
from control.membership.pack import Fields, fields_untrusted, pack
from control.membership.secure import Keyring
from control.membership.serfwire import (
    CONFLICT,
    FLAG_ACK,
    FLAG_NO_BROADCAST,
    Intent,
    KeyAnswer,
    Query,
    QueryResponse,
    SerfState,
    UserEvent,
    encode_intent,
    encode_key_answer,
    encode_key_request,
    encode_query,
    encode_query_response,
    encode_state,
    encode_weft,
    parse_serf_untrusted,
    parse_state_untrusted,
)
from control.membership.stream import StreamReader, parse_stream_untrusted
from control.membership.wire import Ack, Dead, Ping, PushPull, User, compound, encode
from overlay.errors import MembershipError, WireError

OLD, NEW = bytes(range(32)), bytes(range(32, 64))


def serf_messages(bench: Bench) -> list[Any]:
    """The Serf messages sent since, receivers left out."""
    return [
        parse_serf_untrusted(message.body) for message in bench.take_messages() if isinstance(message, User)
    ]


def query(
    number: int = 1,
    *,
    name: str = "load",
    payload: bytes = b"",
    source: Endpoint | None = None,
    **changes: Any,
) -> Query:
    fields: dict[str, Any] = {
        "time": 5,
        "number": number,
        "source": source or at(1),
        "source_node": "m1",
        "nodes": frozenset(),
        "has_tag_filter": False,
        "flags": 0,
        "timeout": 10**9,
        "name": name,
        "payload": payload,
    }
    return Query(**(fields | changes))


def ask(bench: Bench, question: Query) -> list[tuple[Endpoint, QueryResponse]]:
    """Ask, and return what is answered at once, with where it goes."""
    bench.take_datagrams()
    bench.receive(User(encode_query(question)), sender=at(2))
    return [
        (to, response)
        for to, messages in bench.take_datagrams()
        for message in messages
        if isinstance(message, User)
        and isinstance(response := parse_serf_untrusted(message.body), QueryResponse)
    ]


# Wire.


@pytest.mark.parametrize(
    "message",
    [
        Intent(7, "n1", is_leave=False),
        Intent(1 << 63, "n1", is_leave=True, prune=True),
        query(nodes=frozenset(), flags=FLAG_ACK, payload=b"x"),
        QueryResponse(7, 9, "n1", 1, b"x"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_messages_come_back_as_they_went(message: Any) -> None:
    encoders: dict[type, Any] = {
        Intent: encode_intent,
        Query: encode_query,
        QueryResponse: encode_query_response,
    }
    assert parse_serf_untrusted(encoders[type(message)](message)) == message


@given(st.binary(max_size=300))
def test_any_octets_are_messages_or_a_wire_error(data: bytes) -> None:
    for kind in (b"", *(bytes((kind,)) for kind in range(10))):
        with suppress(WireError):
            parse_serf_untrusted(kind + data)
        with suppress(WireError):
            parse_state_untrusted(kind + data)
        with suppress(WireError):
            perform_untrusted(KeyStep.INSTALL, kind + data, Keyring([OLD]))
        KeyQuery(1, 1, 3).receive_untrusted("m1", kind + data)


def test_a_stock_agents_state_with_its_512_events_is_read() -> None:
    (data,) = stock("push-pull-plain")
    exchange = StreamReader(Bench().envelope).receive_untrusted(data)
    assert isinstance(exchange, PushPull)
    state = parse_state_untrusted(exchange.user_state)
    assert state.statuses.keys() == {"s1"}
    # And with events in it, nested five deep.
    event = {"LTime": 3, "Events": [{"Name": b"deploy", "Payload": b"x"}]}
    full = b"\x02" + pack({"LTime": 9, "StatusLTimes": {}, "Events": [event] + [None] * 511})
    assert parse_state_untrusted(full).time == 9


def test_filters_are_read_and_regular_expressions_only_noticed() -> None:
    by_node, by_tag = b"\x00" + pack(["us", "m1"]), b"\x01" + pack({"Tag": "role", "Expr": "(a+)+$"})
    body = {"LTime": 1, "ID": 1, "Addr": bytes((192, 0, 2, 2)), "Port": 7946, "Filters": [by_node, by_tag]}
    parsed = parse_serf_untrusted(b"\x04" + pack(body))
    assert isinstance(parsed, Query)
    assert (parsed.nodes, parsed.has_tag_filter) == (frozenset({"us", "m1"}), True)


# Tags.


def test_tags_are_ours_to_change() -> None:
    bench = Bench(1)
    bench.core.set_tags({"weft_id": "us", "weft_state": "ready"}, now=bench.now)
    assert bench.core.tags("us")["weft_state"] == "ready"
    assert bench.core.ourselves.incarnation == 2
    with pytest.raises(MembershipError):
        bench.core.set_tags({"a": "x" * 512}, now=bench.now)


# Leaving.


def test_we_leave_by_intent_then_by_death_notice_and_go_on_acking() -> None:
    bench = Bench(2)
    bench.run_quietly(3.0)
    joined_at = bench.core.lamport
    bench.core.leave(now=bench.now)
    story: list[str] = []
    acked_after_death = False
    while Departed() not in bench.take_events():
        bench.run(0.1)
        for message in bench.take_messages():
            if isinstance(message, Dead):
                story.append("dead")
                assert message == Dead(bench.core.ourselves.incarnation, "us", "us")
                bench.receive(Ping(9, "us"))
            elif isinstance(message, Ack):
                acked_after_death = True
            elif isinstance(message, User) and isinstance(
                intent := parse_serf_untrusted(message.body), Intent
            ):
                story.append("intent")
                assert intent.is_leave
                assert joined_at <= intent.time
        assert bench.now < 115.0
    assert story.index("dead") > story.index("intent")
    assert "intent" not in story[story.index("dead") :]
    assert acked_after_death


def test_a_leave_intent_is_later_than_our_join() -> None:
    bench = Bench(1, lamport=40)
    bench.receive(User(encode_intent(Intent(90, "m1", is_leave=False))))
    bench.core.leave(now=bench.now)
    bench.run(0.3)
    (*_, intent) = [
        message for message in serf_messages(bench) if isinstance(message, Intent) and message.node == "us"
    ]
    assert intent.time > 90


def test_a_leave_intent_about_us_is_refuted() -> None:
    bench = Bench(2)
    bench.receive(User(encode_intent(Intent(70, "us", is_leave=True))))
    bench.run(0.3)
    ours = {
        message for message in serf_messages(bench) if isinstance(message, Intent) and message.node == "us"
    }
    assert {(intent.is_leave, intent.time > 70) for intent in ours} == {(False, True)}


def test_who_announced_its_leave_and_fell_silent_has_left() -> None:
    bench = Bench(6)
    bench.receive(User(encode_intent(Intent(7, "m1", is_leave=True))), dead(1), dead(2))
    assert [bench.state(number) for number in (1, 2)] == [MemberState.LEFT, MemberState.DEAD]


def test_a_join_intent_takes_a_leave_back() -> None:
    bench = Bench(6)
    for time, is_leave in ((7, True), (8, False), (6, True)):
        bench.receive(User(encode_intent(Intent(time, "m1", is_leave=is_leave))))
    bench.receive(dead(1))
    assert bench.state(1) is MemberState.DEAD


def test_an_intent_about_somebody_not_met_yet_waits_for_it() -> None:
    bench = Bench(6)
    bench.receive(User(encode_intent(Intent(7, "m8", is_leave=True))), alive(8), dead(8))
    assert bench.state(8) is MemberState.LEFT


# Passing on, once.


@pytest.mark.parametrize(
    "body",
    [
        encode_intent(Intent(7, "m1", is_leave=True)),
        encode_intent(Intent(7, "nobody", is_leave=True)),
        b"\x03" + pack({"LTime": 7, "Name": b"deploy", "Payload": b"x", "CC": True}),
        encode_query(query()),
        encode_query(query(name="anything", has_tag_filter=False, source=STRANGER)),
    ],
    ids=["leave", "unknown", "event", "query", "strange query"],
)
def test_what_serf_gossips_is_gossiped_on_once(body: bytes) -> None:
    bench = Bench(3)
    bench.forget_rumors()
    bench.receive(User(body))
    assert len(bench.core._swim.context.rumors) == 1
    bench.run(0.3)
    assert User(body) in bench.take_messages()
    bench.forget_rumors()
    bench.receive(User(body))
    assert len(bench.core._swim.context.rumors) == 0
    assert bench.refused(Refusal.STALE) + (body[0] == 3) >= 1


def test_a_leave_intent_that_changes_nothing_is_not_passed_on_for_ever() -> None:
    bench = Bench(2)
    bench.receive(left(1))
    bench.forget_rumors()
    body = User(encode_intent(Intent(7, "m1", is_leave=True)))
    bench.receive(body)
    bench.forget_rumors()
    bench.receive(body, body)
    assert len(bench.core._swim.context.rumors) == 0


def test_a_query_not_to_be_broadcast_is_not() -> None:
    bench = Bench(2)
    bench.forget_rumors()
    bench.receive(User(encode_query(query(flags=FLAG_NO_BROADCAST))))
    assert len(bench.core._swim.context.rumors) == 0


def test_a_lamport_time_too_far_ahead_moves_no_clock() -> None:
    bench = Bench(2)
    far = (1 << 64) - 1
    event = b"\x03" + pack({"LTime": far, "Name": b"a", "Payload": b""})
    bench.receive(
        User(encode_intent(Intent(far, "m1", is_leave=True))),
        User(event),
        User(encode_query(query(time=far))),
    )
    bench.push_pull(state_of(1, MemberState.ALIVE), user_state=encode_state(SerfState(far, far, far)))
    assert bench.refused(Refusal.CLOCK_JUMP) == 4
    assert bench.core.lamport < 10


# weft's own messages.


def test_our_messages_reach_peers_and_never_others() -> None:
    bench = Bench()
    bench.receive(alive(1), alive(2, meta=STOCK_META))
    bench.forget_rumors()
    bench.core.spread("record", b"mine", now=bench.now)
    bench.run(5.0)
    told = {to for to, messages in bench.take_datagrams() if User(encode_weft(b"mine")) in messages}
    assert told == {at(1)}
    assert bench.core.tell("m1", b"hello", now=bench.now)
    assert not bench.core.tell("m2", b"hello", now=bench.now)
    assert not bench.core.tell("nobody", b"hello", now=bench.now)
    assert [member.name for member in bench.core.peers()] == ["m1"]


def test_our_messages_are_taken_from_peers_alone() -> None:
    bench = Bench()
    bench.receive(alive(1), alive(2, meta=STOCK_META))
    bench.take_events()
    for sender in (at(1), at(2), STRANGER):
        bench.receive(User(encode_weft(b"hello")), sender=sender)
    assert bench.take_events() == [PeerMessage(at(1), b"hello")]
    assert bench.refused(Refusal.NOT_A_PEER) == 2


def test_what_does_not_fit_a_datagram_is_refused_to_its_sender() -> None:
    bench = Bench(1, keys=(OLD,), label="pool")
    room = bench.core.room()
    assert bench.core.tell("m1", bytes(room), now=bench.now)
    (datagram,) = bench.core.datagrams_to_send(now=bench.now)
    assert len(datagram.data) <= 1400
    with pytest.raises(MembershipError):
        bench.core.tell("m1", bytes(room + 1), now=bench.now)


# Queries.


def test_a_conflict_is_answered_by_who_knows_the_name() -> None:
    bench = Bench(3)
    question = query(name=CONFLICT, payload=b"m2")
    ((to, response),) = ask(bench, question)
    assert to == at(1)
    assert (response.time, response.number, response.sender) == (5, 1, "us")
    answer = fields_untrusted(response.payload[1:], "member")
    assert response.payload[0] == 6
    assert (answer.text(b"Name"), answer.number(b"Port", 65535)) == ("m2", 7946)
    assert answer.octets(b"Addr", 16) == bytes((192, 0, 2, 3))
    assert len(response.payload) < 3 * len(encode_query(question))


@pytest.mark.parametrize("disputed", [b"us", b"nobody", b"\xff"])
def test_who_is_in_the_dispute_or_does_not_know_stays_silent(disputed: bytes) -> None:
    assert ask(Bench(3), query(name=CONFLICT, payload=disputed)) == []


@pytest.mark.parametrize(
    "change",
    [
        {"source": STRANGER},
        {"source": Endpoint(at(1).host, 53)},
        {"source_node": "m2"},
        {"has_tag_filter": True},
        {"nodes": frozenset({"m2"})},
    ],
    ids=["stranger", "other port", "other name", "regular expression", "not asked"],
)
def test_an_answer_goes_to_one_known_member_or_nowhere(change: dict[str, Any]) -> None:
    body = encode_query(
        query(
            name=CONFLICT,
            payload=b"m2",
            flags=FLAG_ACK,
            **{k: v for k, v in change.items() if k in ("source", "source_node")},
        )
    )
    bench = Bench(3)
    if "has_tag_filter" in change or "nodes" in change:
        fields = {
            "LTime": 5,
            "ID": 1,
            "Addr": bytes((192, 0, 2, 2)),
            "Port": 7946,
            "Name": CONFLICT,
            "Payload": b"m2",
        }
        filters = (
            [b"\x01" + pack({"Tag": "weft_id", "Expr": ".*"})]
            if "has_tag_filter" in change
            else [b"\x00" + pack(["m2"])]
        )
        body = b"\x04" + pack(fields | {"Filters": filters})
    bench.receive(User(body), sender=at(1))
    sent = [parse_serf_untrusted(m.body) for m in bench.take_messages() if isinstance(m, User)]
    assert [message for message in sent if isinstance(message, QueryResponse)] == []


def test_answers_to_queries_stay_within_three_times_the_octets_that_asked() -> None:
    # As terse as a query can be, receipts wanted, and many in one datagram that compression makes small.
    brief = {"Addr": bytes((192, 0, 2, 2)), "Port": 7946, "Name": CONFLICT, "Payload": b"m2", "Flags": 1}
    queries = [b"\x08\x04" + pack({"LTime": 5, "ID": number, **brief}) for number in range(1, 33)]
    compressed = b"\x09" + pack({"Algo": 0, "Buf": compress_lzw(compound(queries))})
    refused = 0
    for question in (queries[0], compressed):
        bench = Bench(3)
        bench.forget_rumors()
        bench.receive_octets(question)
        answered = bench.core.datagrams_to_send(now=bench.now)
        assert answered
        assert {datagram.to for datagram in answered} == {at(1)}
        assert sum(len(datagram.data) for datagram in answered) <= 3 * len(question)
        refused = bench.refused(Refusal.ANSWER_LIMIT)
    assert refused > 0


def test_rumors_beside_an_ack_leave_room_for_the_answer_to_a_query_behind_the_ping() -> None:
    bench = Bench(3)
    for number in range(10, 60):  # plenty of rumors to ride along
        bench.receive(alive(number))
    bench.take_datagrams()
    question = User(encode_query(query(name=CONFLICT, payload=b"m2")))
    bench.receive_octets(compound([encode(Ping(7, "us")), encode(question)]), at(1))
    messages = bench.take_messages()
    assert Ack(7) in messages
    users = [parse_serf_untrusted(each.body) for each in messages if isinstance(each, User)]
    assert [each for each in users if isinstance(each, QueryResponse)]


def test_an_older_agents_query_without_a_name_is_answered_by_its_place() -> None:
    assert len(ask(Bench(3), query(name=CONFLICT, payload=b"m2", source_node=""))) == 1


def test_a_receipt_is_given_where_it_is_asked_for() -> None:
    ((_, receipt),) = ask(Bench(3), query(flags=FLAG_ACK))
    assert (receipt.flags, receipt.payload) == (FLAG_ACK, b"")


# Keys.


def test_the_four_steps_are_answered_and_taken() -> None:
    bench, answers = Bench(3, keys=(OLD,)), list[Fields]()
    for number, (step, key) in enumerate(
        [(KeyStep.INSTALL, NEW), (KeyStep.USE, NEW), (KeyStep.REMOVE, OLD), (KeyStep.LIST, b"")], 1
    ):
        ((_, response),) = ask(bench, query(number, name=step.value, payload=encode_key_request(key)))
        answers.append(fields_untrusted(response.payload[1:], "answer"))
        assert answers[-1].truth(b"Result"), answers[-1].text(b"Message")
    assert answers[-1].items(b"Keys") == [format_key(NEW).encode()]
    assert bench.keyring.keys == (NEW,)
    assert bench.take_events().count(KeyringChanged()) == 3


@pytest.mark.parametrize(
    ("keys", "step", "key", "why"),
    [
        ((), KeyStep.LIST, b"", PLAIN_POOL),
        ((OLD,), KeyStep.USE, NEW, "not in the keyring"),
        ((OLD,), KeyStep.REMOVE, OLD, "primary"),
        ((OLD,), KeyStep.INSTALL, b"short", "octets"),
    ],
)
def test_a_step_that_cannot_be_taken_says_why(
    keys: tuple[bytes, ...], step: KeyStep, key: bytes, why: str
) -> None:
    bench = Bench(3, keys=keys)
    ((_, response),) = ask(bench, query(name=step.value, payload=encode_key_request(key)))
    answer = fields_untrusted(response.payload[1:], "answer")
    assert not answer.truth(b"Result")
    assert why in answer.text(b"Message")
    assert bench.keyring.keys == keys


def test_our_own_step_collects_what_everybody_answers() -> None:
    bench = Bench(3, keys=(OLD,))
    number = bench.core.ask_keys(KeyStep.INSTALL, NEW, now=bench.now)
    assert bench.keyring.keys == (OLD, NEW)
    bench.run(0.3)
    (asked, *_) = [message for message in serf_messages(bench) if isinstance(message, Query)]
    assert (asked.source, asked.source_node, asked.number) == (US, "us", number)
    for name, answer in (("m1", KeyAnswer(is_done=True)), ("m2", KeyAnswer(is_done=False, message="full"))):
        response = QueryResponse(asked.time, asked.number, name, 0, encode_key_answer(answer))
        bench.receive(User(encode_query_response(response)), User(encode_query_response(response)))
    stranger = QueryResponse(
        asked.time, asked.number, "stranger", 0, encode_key_answer(KeyAnswer(is_done=True))
    )
    bench.receive(User(encode_query_response(stranger)))
    bench.run(10.0)
    (told,) = [event for event in bench.take_events() if isinstance(event, KeysAnswered)]
    assert (told.members, told.responses, told.errors, told.is_complete) == (4, 3, {"m2": "full"}, False)


def test_half_rotated_a_pool_still_talks() -> None:
    bench, other = Bench(keys=(OLD, NEW)), Bench(keys=(NEW, OLD))
    bench.receive_octets(other.envelope.seal(b"\x00" + pack({"SeqNo": 7, "Node": "us"})))
    (datagram,) = bench.core.datagrams_to_send(now=bench.now)
    assert Ack(7) in other.open(datagram.data)


# Push-pull.


def test_our_state_is_serfs_and_carries_no_events() -> None:
    bench = Bench(2)
    bench.receive(User(encode_intent(Intent(7, "m1", is_leave=False))), left(2))
    answer = parse_stream_untrusted(bench.push_pull())
    assert isinstance(answer, PushPull)
    state = parse_state_untrusted(answer.user_state)
    assert state.time > 7
    assert state.statuses["m1"] == 7
    assert state.left == ("m2",)


def test_theirs_moves_our_clocks_and_tells_who_left() -> None:
    bench = Bench(6)
    theirs = SerfState(50, 60, 70, {"m1": 40, "m2": 41}, ("m1",))
    bench.push_pull(user_state=encode_state(theirs))
    assert bench.core.lamport >= 50
    bench.receive(dead(1), dead(2))
    assert [bench.state(1), bench.state(2)] == [MemberState.LEFT, MemberState.DEAD]


@given(st.lists(st.binary(max_size=80), max_size=8))
@settings(max_examples=50)
def test_no_octets_stop_serf(bodies: list[bytes]) -> None:
    bench = Bench(2)
    for body in bodies:
        for kind in range(9):
            bench.receive(User(bytes((kind,)) + body), sender=at(1))
        bench.push_pull(user_state=b"\x02" + body)
    bench.run(1.0)
    assert bench.core.ourselves.state is MemberState.ALIVE


def test_events_are_read() -> None:
    event = parse_serf_untrusted(b"\x03" + pack({"LTime": 7, "Name": b"deploy", "Payload": b"x", "CC": True}))
    assert event == UserEvent(7, "deploy", b"x")
