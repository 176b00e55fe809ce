"""Pages of a long record, in any order and with gaps, make the record or nothing."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st
from support.records import key

from control.membership.recordpages import ASSEMBLIES_MAX, RETRY_SECONDS, TRIES, WINDOW_PAGES, Assemblies
from control.membership.recordwire import PAGE_OCTETS, Announcement, Page


def page(body: bytes, number: int) -> Page:
    at = number * PAGE_OCTETS
    return Page(key("m1"), len(body), number, body[at : at + PAGE_OCTETS])


@given(st.integers(1, 40_000), st.floats(0.0, 0.6), st.integers(0, 1000))
def test_whatever_is_lost_and_in_whatever_order_the_body_comes_whole(
    octets: int, loss: float, seed: int
) -> None:
    rng, now = Random(seed), 0.0
    body = rng.randbytes(octets)
    assemblies = Assemblies()
    assembly = assemblies.begin(Announcement(key("m1"), octets), "m1")
    assert assembly is not None
    for _ in range(1000):
        if assembly.is_complete:
            break
        want = assembly.next_want(now=now)
        assert len(want.pages) <= WINDOW_PAGES
        for number in rng.sample(want.pages, len(want.pages)):
            if rng.random() >= loss:
                assert assemblies.take(page(body, number), "m1") is assembly
                assert assemblies.take(page(body, number), "m1") is None, "once is enough"
    assert assembly.body == body


def test_an_older_record_gives_way_and_is_not_begun_again() -> None:
    assemblies = Assemblies()
    assemblies.begin(Announcement(key("m1", 1), 5000), "m1")
    newer = assemblies.begin(Announcement(key("m1", 2), 5000), "m2")
    assert assemblies.is_under_way(key("m1", 1))
    assert assemblies.is_under_way(key("m1", 2))
    assert not assemblies.is_under_way(key("m1", 3))
    assert not assemblies.is_under_way(key("m1", 1, weft_id="other"))
    assert len(assemblies) == 1
    assert newer is not None
    assert newer.source == "m2"


def test_there_is_room_for_so_many() -> None:
    assemblies = Assemblies()
    for number in range(ASSEMBLIES_MAX):
        assert assemblies.begin(Announcement(key(f"m{number}"), 5000), "m1") is not None
    assert assemblies.begin(Announcement(key("another"), 5000), "m1") is None
    assert assemblies.begin(Announcement(key("m3", 2), 5000), "m1") is not None, "its place is taken already"


def test_what_does_not_come_is_given_up() -> None:
    assemblies, now = Assemblies(), 0.0
    assembly = assemblies.begin(Announcement(key("m1"), 5000), "m1")
    assert assembly is not None
    assembly.next_want(now=now)
    for _ in range(TRIES - 1):
        now += RETRY_SECONDS
        assert assemblies.due(now=now) == [assembly]
        assembly.next_want(now=now)
    now += RETRY_SECONDS
    assert assemblies.due(now=now) == []
    assert assemblies.next_at is None
