"""Tags travel as Serf writes them, and a meta that is none is a member without tags."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.membership.tags import encode_tags, identity_of, is_peer_meta, parse_tags_untrusted, tags_of
from overlay.errors import MembershipError, WireError

TEXTS = st.text(max_size=20)


@given(st.dictionaries(TEXTS, TEXTS, max_size=5))
def test_tags_come_back_as_they_went(tags: dict[str, str]) -> None:
    assert parse_tags_untrusted(encode_tags(tags)) == tags


def test_the_octets_are_serfs() -> None:
    assert encode_tags({"role": "db"}) == b"\xff\x81\xa4role\xa2db"


def test_more_than_512_octets_are_refused() -> None:
    fits = {"a": "x" * (512 - 1 - 1 - 2 - 3)}
    assert len(encode_tags(fits)) == 512
    with pytest.raises(MembershipError, match="512"):
        encode_tags({"a": fits["a"] + "x"})


@given(st.binary(max_size=600))
def test_any_octets_are_tags_or_a_wire_error(data: bytes) -> None:
    for meta in (data, b"\xff" + data):
        with suppress(WireError):
            parse_tags_untrusted(meta)
        tags_of(meta)
        identity_of(meta)


def test_a_peer_is_who_carries_our_tags() -> None:
    assert is_peer_meta(encode_tags({"weft_id": "a"}))
    assert not is_peer_meta(encode_tags({"id": "a", "dc": "weft_"}))
    assert not is_peer_meta(b"anything")


@pytest.mark.parametrize(("epoch", "read"), [("7", 7), ("", 0), ("-1", 0), ("²", 0), ("9" * 30, 0)])
def test_an_epoch_is_a_number_or_none(epoch: str, read: int) -> None:
    assert identity_of(encode_tags({"weft_id": "a", "weft_epoch": epoch})) == ("a", read)
