"""LZW is read as Go writes it, and a bomb is refused before it goes off."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.membership import compress_lzw

from control.membership.lzw import decompress_untrusted
from overlay.errors import MalformedError, TruncatedError, WireError


@given(st.binary(max_size=4000) | st.binary(max_size=8).map(lambda piece: piece * 900))
def test_what_was_compressed_comes_back(plain: bytes) -> None:
    assert decompress_untrusted(compress_lzw(plain), limit=len(plain)) == plain


def test_the_table_is_cleared_when_it_is_full() -> None:
    plain = bytes((number * number >> 3) & 255 for number in range(40000))
    assert decompress_untrusted(compress_lzw(plain), limit=40000) == plain


def test_a_string_may_be_used_by_the_code_that_defines_it() -> None:
    assert decompress_untrusted(compress_lzw(b"aaaaaaa"), limit=7) == b"aaaaaaa"


@given(st.binary(max_size=300))
def test_any_octets_are_a_value_or_a_wire_error(data: bytes) -> None:
    with suppress(WireError):
        assert len(decompress_untrusted(data, limit=1000)) <= 1000


@given(st.data())
def test_every_truncation_is_refused(data: st.DataObject) -> None:
    whole = compress_lzw(b"Incarnation Node From Incarnation")
    cut = data.draw(st.integers(0, len(whole) - 2))
    with pytest.raises(TruncatedError):
        decompress_untrusted(whole[:cut], limit=100)


def test_a_bomb_is_refused_at_the_cap() -> None:
    bomb = compress_lzw(bytes(1 << 20))
    assert len(bomb) < 3000
    with pytest.raises(MalformedError, match="at most 65536"):
        decompress_untrusted(bomb, limit=65536)


def test_a_code_nobody_defined_is_refused() -> None:
    with pytest.raises(MalformedError, match="found 300"):
        decompress_untrusted((300).to_bytes(2, "little"), limit=10)
