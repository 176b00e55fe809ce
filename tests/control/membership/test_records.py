"""Who may say what of whom, what is told on, and what anti-entropy finds: one core on a desk, or two."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.records import Desk, key, mac, member, network, rumor, talk

from control.membership.events import Cloned, RecordChanged, RecordEvent, RecordForked
from control.membership.member import MemberState
from control.membership.recordbody import MACS_MAX, RECORD_OCTETS, encode_networks
from control.membership.recordpages import ASSEMBLIES_MAX, RETRY_SECONDS, TRIES, WINDOW_PAGES
from control.membership.records import (
    EARLY_MAX,
    EARLY_SECONDS,
    MESSAGES_PER_SECOND,
    QUESTIONS_PER_SECOND,
    TIDY_SECONDS,
    UPDATES_PER_SECOND,
    Refused,
    Spread,
    Tell,
)
from control.membership.recordwire import (
    PAGE_OCTETS,
    Announcement,
    Buckets,
    Page,
    RecordMessage,
    Rumor,
    Summary,
    Want,
    Wants,
    encode_message,
)
from overlay.errors import MembershipError

M1, M2 = member("m1"), member("m2")


@pytest.fixture
def desk() -> Desk:
    """Us, with m1 and m2."""
    made = Desk()
    made.change(M1)
    made.change(M2)
    made.said()
    return made


def events(desk: Desk) -> list[RecordEvent]:
    told = []
    while (event := desk.records.next_event()) is not None:
        told.append(event)
    return told


# ── Our own word ────────────────────────────────────────────────────────────────────────────────────────


def test_what_we_say_is_spread_and_counted(desk: Desk) -> None:
    assert desk.records.publish([network(1)], now=desk.now)
    (said,) = desk.said()
    assert isinstance(said, Spread)
    assert said.body == encode_message(Rumor(key("us", 1), encode_networks([network(1)])))
    assert not desk.records.publish([network(1)], now=desk.now), "it is what we said last"
    assert desk.said() == []
    assert desk.records.publish([network(2)], now=desk.now)
    assert desk.held("us") == key("us", 2)
    assert events(desk) == [RecordChanged("us"), RecordChanged("us")]


def test_we_do_not_say_more_than_we_would_take(desk: Desk) -> None:
    with pytest.raises(MembershipError, match="MACs"):
        desk.records.publish([network(macs=MACS_MAX + 1)], now=desk.now)
    assert desk.held("us") is None


# ── Who may say what ────────────────────────────────────────────────────────────────────────────────────


def test_news_is_taken_and_told_on_once(desk: Desk) -> None:
    desk.hear(rumor(key("m1")), sender="m2")
    (said,) = desk.said()
    assert isinstance(said, Spread)
    assert events(desk) == [RecordChanged("m1")]
    desk.hear(rumor(key("m1")), sender="m1")
    assert desk.said() == []
    assert desk.refused(Refused.REPEATED) == 1


def test_an_answer_is_taken_and_not_told_on(desk: Desk) -> None:
    desk.hear(rumor(key("m1"), is_answer=True))
    assert desk.held("m1") == key("m1")
    assert desk.said() == []


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (rumor(key("us", 1, weft_id="another")), Refused.OURS),
        (rumor(key("m1", weft_id="another")), Refused.WRONG_OWNER),
        (rumor(key("m1", epoch=4)), Refused.OLD_EPOCH),
        (rumor(key("stock")), Refused.NOT_A_PEER),
        (rumor(key("left", epoch=5)), Refused.GONE),
        (rumor(key("m1", 1, epoch=6)), Refused.STALE),
        (rumor(key("m1", 9, epoch=5)), Refused.OLD_EPOCH),
        (rumor(key("m1", 2, epoch=6)), Refused.REPEATED),
        (rumor(key("m1", 3, epoch=6), network(macs=MACS_MAX + 1)), Refused.TOO_MANY),
        (Rumor(key("m1", 3, epoch=6), b"\xc1"), Refused.MALFORMED),
        (Announcement(key("m1", 3, epoch=6), 10 << 20), Refused.TOO_LARGE),
        (Page(key("m1", 3, epoch=6), 5000, 0, bytes(PAGE_OCTETS)), Refused.UNASKED),
    ],
    ids=lambda each: each.name if isinstance(each, Refused) else "",
)
def test_what_may_not_be_said_changes_nothing_and_is_counted(message: RecordMessage, reason: Refused) -> None:
    desk = Desk()
    desk.change(member("m1", epoch=5))
    desk.change(member("stock", is_peer=False))
    desk.change(member("left", epoch=5, state=MemberState.LEFT))
    desk.records.publish([network(1)], now=desk.now)
    desk.hear(rumor(key("m1", 2, epoch=6)))
    desk.said()
    before = {name: desk.held(name) for name in ("us", "m1", "stock", "left")}
    desk.hear(message)
    assert desk.refused(reason) == 1
    is_to_blame = reason in (Refused.TOO_MANY, Refused.TOO_LARGE, Refused.MALFORMED)
    assert desk.records.statistics().blamed == ({reason: "m1"} if is_to_blame else {})
    assert desk.said() == []
    assert {name: desk.held(name) for name in before} == before


def test_a_newer_word_and_a_newer_start_win(desk: Desk) -> None:
    for newer in (key("m1", 2), key("m1", 7), key("m1", 1, epoch=2)):
        desk.hear(rumor(newer))
        assert desk.held("m1") == newer


def test_of_two_words_under_one_version_everybody_keeps_the_same(desk: Desk) -> None:
    other = Desk(M1)
    one, two = rumor(key("m1"), network(1)), rumor(key("m1"), network(2))
    desk.hear(one, two)
    other.hear(two, one)
    held, elsewhere = desk.records.lookup("m1"), other.records.lookup("m1")
    assert held is not None
    assert elsewhere is not None
    assert held.body == elsewhere.body
    assert RecordForked("m1") in events(desk)
    assert RecordForked("m1") in events(other)
    assert desk.refused(Refused.FORKED) == other.refused(Refused.FORKED) == 1


@pytest.mark.parametrize("later", [key("us", 2), key("us", 1, epoch=2)], ids=["version", "epoch"])
def test_a_word_of_ours_that_we_never_said_is_an_alarm(desk: Desk, later: object) -> None:
    desk.records.publish([network(1)], now=desk.now)
    events(desk)
    assert isinstance(later, type(key("us")))
    desk.hear(rumor(later, network(9)))
    assert events(desk) == [Cloned(later.epoch, later.version)]
    assert desk.refused(Refused.OURS) == 1
    assert desk.held("us") == key("us", 1)


def test_our_own_word_heard_again_is_no_alarm(desk: Desk) -> None:
    desk.records.publish([network(1)], now=desk.now)
    events(desk)
    desk.hear(rumor(key("us"), network(1)), rumor(key("us", 40, epoch=0), network(9)))
    assert events(desk) == []
    assert desk.refused(Refused.OURS) == 0


# ── Members come and go ─────────────────────────────────────────────────────────────────────────────────


def test_a_record_may_come_before_its_member(desk: Desk) -> None:
    before = desk.records.hash
    desk.hear(rumor(key("m3")))
    assert desk.held("m3") == key("m3")
    assert desk.records.hash == before, "nobody compares what is of nobody"
    desk.change(member("m3"))
    assert desk.records.hash != before
    desk.run(EARLY_SECONDS + TIDY_SECONDS)
    assert desk.held("m3") == key("m3")


def test_a_record_whose_member_never_comes_is_forgotten(desk: Desk) -> None:
    desk.hear(rumor(key("nobody")))
    desk.run(EARLY_SECONDS + TIDY_SECONDS)
    assert desk.held("nobody") is None
    desk.hear(rumor(key("nobody")))
    assert desk.refused(Refused.STALE) == 1


def test_records_of_nobody_fill_their_own_room_alone(desk: Desk) -> None:
    for number in range(EARLY_MAX + 5):
        desk.now += 0.01
        desk.hear(rumor(key(f"x{number}")))
    assert desk.refused(Refused.FULL) == 5
    desk.hear(rumor(key("m1")))
    assert desk.held("m1") == key("m1")


def test_the_dead_keep_their_record_and_are_not_compared(desk: Desk) -> None:
    before = desk.records.hash
    desk.hear(rumor(key("m1")))
    shown = desk.records.hash
    desk.change(replace(M1, state=MemberState.SUSPECT))
    assert desk.records.hash == shown
    desk.change(replace(M1, state=MemberState.DEAD))
    assert desk.records.hash == before
    assert desk.held("m1") == key("m1")
    desk.change(M1)
    assert desk.records.hash == shown


def test_who_left_is_forgotten_and_old_copies_do_not_revive_him(desk: Desk) -> None:
    desk.hear(rumor(key("m1", 5)))
    desk.change(replace(M1, state=MemberState.LEFT))
    assert desk.held("m1") is None
    desk.hear(rumor(key("m1", 6)))
    assert desk.refused(Refused.GONE) == 1
    desk.records.member_reaped("m1", now=desk.now)
    del desk.crowd.members["m1"]
    desk.hear(rumor(key("m1", 5)))
    assert desk.refused(Refused.STALE) == 1
    desk.hear(rumor(key("m1", 1, epoch=2)))
    assert desk.held("m1") == key("m1", 1, epoch=2), "a later start is no ghost"


def test_another_node_under_the_name_takes_its_place(desk: Desk) -> None:
    desk.hear(rumor(key("m1", 5)))
    desk.change(member("m1", weft_id="other"))
    assert desk.held("m1") is None
    desk.hear(rumor(key("m1", 1, weft_id="other")))
    assert desk.held("m1") == key("m1", 1, weft_id="other")


def test_a_newcomer_is_compared_with_at_once(desk: Desk) -> None:
    desk.change(member("m3"))
    assert [type(message) for message in desk.told("m3")] == [Summary]
    desk.change(member("stock", is_peer=False))
    assert desk.told("stock") == []


# ── Too often ───────────────────────────────────────────────────────────────────────────────────────────


def test_one_writer_has_so_much_news_a_second_and_no_more(desk: Desk) -> None:
    for version in range(1, UPDATES_PER_SECOND + 4):
        desk.hear(rumor(key("m1", version)))
    assert desk.refused(Refused.TOO_OFTEN) == 3
    desk.hear(rumor(key("m2")))
    assert desk.held("m2") == key("m2")
    desk.now += 1.0
    desk.hear(rumor(key("m1", UPDATES_PER_SECOND + 3)))
    assert desk.held("m1") == key("m1", UPDATES_PER_SECOND + 3)


def test_a_storm_from_one_peer_costs_the_others_nothing(desk: Desk) -> None:
    for _ in range(MESSAGES_PER_SECOND + 10):
        desk.hear(rumor(key("us", weft_id="x")), sender="m2")
    assert desk.refused(Refused.TOO_OFTEN) == 10
    desk.hear(rumor(key("m1")), sender="m1")
    assert desk.held("m1") == key("m1")


def test_only_so_many_questions_of_one_peer_are_answered(desk: Desk) -> None:
    for _ in range(QUESTIONS_PER_SECOND + 10):
        desk.hear(Summary(bytes(range(16))))
    assert len(desk.told("m1")) == QUESTIONS_PER_SECOND


# ── Anti-entropy ────────────────────────────────────────────────────────────────────────────────────────


def test_every_second_one_peer_is_compared_with(desk: Desk) -> None:
    desk.run(60.0)
    assert 48 <= len([message for message in desk.told("m1") if isinstance(message, Summary)]) <= 80


def test_equal_sets_say_no_more_than_a_summary(desk: Desk) -> None:
    desk.hear(Summary(desk.records.hash))
    assert desk.said() == []
    desk.hear(Summary(bytes(range(16))))
    assert [type(message) for message in desk.told()] == [Buckets]


def pair(room: int = 1300) -> tuple[Desk, Desk]:
    """Two desks that are m1 and m2 to one another, and both know the writers w0 … w99."""
    one, other = Desk(room=room), Desk(room=room)
    writers = [member(f"w{number}") for number in range(100)]
    for desk in (one, other):
        for each in (M1, M2, *writers):
            desk.crowd.members[each.name] = each
    return one, other


@settings(deadline=None, max_examples=40)
@given(
    st.dictionaries(st.integers(0, 99), st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=60),
    st.sampled_from([600, 1300]),
)
def test_two_that_talk_end_with_the_newest_of_both(versions: dict[int, tuple[int, int]], room: int) -> None:
    one, other = pair(room)
    for number, of in versions.items():
        for desk, version in zip((one, other), of, strict=True):
            if version:
                desk.hear(rumor(key(f"w{number}", version), network(version), is_answer=True))
        one.now += 0.01
        other.now += 0.01
    one.said(), other.said()
    for _ in range(3):
        one.records._compare_with("m2")
        talk(one, other, ("m1", "m2"))
    assert one.records.hash == other.records.hash
    for number, of in versions.items():
        expected = key(f"w{number}", max(of)) if max(of) else None
        assert one.held(f"w{number}") == other.held(f"w{number}") == expected


def test_one_difference_among_many_costs_little() -> None:
    one, other = pair()
    for number in range(100):
        for desk in (one, other):
            desk.now += 0.01
            desk.hear(rumor(key(f"w{number}"), is_answer=True))
    one.hear(rumor(key("w7", 2), is_answer=True))
    one.said(), other.said()
    before = one.records.statistics().told_octets + other.records.statistics().told_octets
    one.records._compare_with("m2")
    talk(one, other, ("m1", "m2"))
    assert other.held("w7") == key("w7", 2)
    assert one.records.statistics().told_octets + other.records.statistics().told_octets - before < 1500


def test_a_bucket_too_large_for_a_message_is_told_in_pieces() -> None:
    one, other = Desk(room=400), Desk(room=400)
    names = [f"w{number:03}" for number in range(400)]
    for desk in (one, other):
        desk.crowd.members |= {name: member(name) for name in (*names, "m1", "m2")}
    for index, name in enumerate(names):
        for desk in (one, other)[: 1 + (index % 2)]:
            desk.now += 0.01
            desk.hear(rumor(key(name), is_answer=True))
    one.said(), other.said()
    for _ in range(30):
        one.now += 1.0
        other.now += 1.0
        one.records._compare_with("m2")
        talk(one, other, ("m1", "m2"))
    assert one.records.hash == other.records.hash


# ── Long records ────────────────────────────────────────────────────────────────────────────────────────

LONG = network(3, macs=MACS_MAX)
LONG_OCTETS = len(encode_networks([LONG]))


def test_a_long_record_is_announced_and_fetched_page_by_page() -> None:
    one, other = pair()
    one.records.publish([LONG], now=one.now)
    (said,) = one.said()
    assert isinstance(said, Spread)
    assert len(said.body) < 100
    other.crowd.members["us"] = member("us")
    # `us` is m1's own name on its desk: hear it at the other as news of a third.
    other.records._own = replace(other.records._own, name="other")
    other.records.receive(said.body, "m1", now=other.now)
    talk(one, other, ("m1", "m2"))
    held = other.records.lookup("us")
    assert held is not None
    assert held.networks == (LONG,)
    assert RecordChanged("us") in events(other)


@pytest.mark.parametrize("nodes", [(3, 4), (4, 3)])
def test_of_two_long_words_under_one_version_everybody_keeps_the_same(nodes: tuple[int, int]) -> None:
    one, other = pair()
    for desk, said in zip((one, other), (network(node, macs=MACS_MAX) for node in nodes), strict=True):
        desk.hear(rumor(key("w1"), said, is_answer=True))
        desk.said()
    assert one.records.hash != other.records.hash
    one.records._compare_with("m2")
    talk(one, other, ("m1", "m2"))
    assert one.records.hash == other.records.hash
    assert RecordForked("w1") in [*events(one), *events(other)]


def test_pages_that_are_lost_are_asked_for_again_and_then_given_up(desk: Desk) -> None:
    desk.hear(Announcement(key("m1"), LONG_OCTETS))
    assert [type(message) for message in desk.told()] == [Wants]
    asked = 1
    for _ in range(TRIES + 2):
        desk.run(RETRY_SECONDS)
        wants = [message for message in desk.told() if isinstance(message, Wants)]
        assert all(len(want.pages) <= WINDOW_PAGES for message in wants for want in message.wants)
        asked += len(wants)
    assert asked == TRIES
    assert len(desk.records._assemblies) == 0


def test_only_who_was_asked_may_send_pages(desk: Desk) -> None:
    desk.hear(Announcement(key("m1"), LONG_OCTETS), sender="m1")
    page = Page(key("m1"), LONG_OCTETS, 0, bytes(PAGE_OCTETS))
    desk.hear(page, sender="m2")
    assert desk.refused(Refused.UNASKED) == 1
    desk.hear(page, page, sender="m1")
    assert desk.refused(Refused.UNASKED) == 2, "a page is taken once"


def test_only_so_many_long_records_are_under_way(desk: Desk) -> None:
    for number in range(ASSEMBLIES_MAX + 3):
        desk.hear(Announcement(key(f"x{number}"), LONG_OCTETS))
    assert desk.refused(Refused.FULL) == 3


def test_pages_that_make_no_record_are_refused_whole(desk: Desk) -> None:
    desk.hear(Announcement(key("m1"), 2000))
    desk.hear(Page(key("m1"), 2000, 0, b"\xff" * 1024), Page(key("m1"), 2000, 1, b"\xff" * 976))
    assert desk.refused(Refused.MALFORMED) == 1
    assert desk.held("m1") is None
    assert len(desk.records._assemblies) == 0


def test_wants_are_answered_with_a_window_and_no_more(desk: Desk) -> None:
    desk.records.publish([LONG], now=desk.now)
    desk.said()
    everything = tuple(range(RECORD_OCTETS // PAGE_OCTETS))
    desk.hear(Wants((Want(key("us", 1), everything), Want(key("nobody")), Want(key("us", 9), (0,)))))
    pages = [message for message in desk.told() if isinstance(message, Page)]
    assert b"".join(page.data for page in pages) == encode_networks([LONG])


# ── Any state, any input ────────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.tuples(st.sampled_from(b"RrAaWPSBDx"), st.binary(max_size=60)), max_size=10))
def test_any_octets_leave_a_core_that_lives_on(inputs: list[tuple[int, bytes]]) -> None:
    desk = Desk(M1, M2)
    desk.records.publish([network(1)], now=desk.now)
    for kind, octets in inputs:
        desk.records.receive(bytes((kind,)) + octets, "m1", now=desk.now)
    desk.run(3.0)
    assert desk.held("us") == key("us", 1)
    for said in desk.said():
        if isinstance(said, Tell):
            assert sum(len(body) + 4 for body in said.bodies) <= 1300 or len(said.bodies) == 1


def test_a_stations_address_is_not_mistaken(desk: Desk) -> None:
    desk.hear(rumor(key("m1"), network(4, macs=2)))
    record = desk.records.lookup("m1")
    assert record is not None
    assert [each.mac for each in record.networks[0].macs] == [mac(0, 4), mac(1, 4)]
