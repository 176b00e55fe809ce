"""Keys and keyrings are read as they were written, and nothing of a wrong one is told."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.membership.keys import (
    KEYS_MAX,
    format_key,
    format_keyring,
    parse_key_untrusted,
    parse_keyring_untrusted,
)
from overlay.errors import UnsupportedError, WireError

KEY = bytes(range(32))
KEYS = st.sampled_from((16, 24, 32)).flatmap(lambda octets: st.binary(min_size=octets, max_size=octets))


@given(st.lists(KEYS, min_size=1, max_size=KEYS_MAX))
def test_a_keyring_is_read_as_it_was_written(keys: list[bytes]) -> None:
    assert parse_keyring_untrusted(format_keyring(keys)) == tuple(keys)


@given(st.text(max_size=60))
def test_any_text_is_a_key_or_a_wire_error(text: str) -> None:
    with suppress(WireError):
        assert parse_key_untrusted(text)
    assert parse_key_untrusted(format_key(KEY)) == KEY


@given(st.one_of(st.text(max_size=60), st.recursive(st.text() | st.integers(), st.lists).map(json.dumps)))
def test_any_text_is_a_keyring_or_a_wire_error(text: str) -> None:
    with suppress(WireError):
        assert parse_keyring_untrusted(text)


@pytest.mark.parametrize("text", ['["{}", 7]', '"{}"', "{}", '["{}"', '{{"key": "{}"}}'])
def test_what_is_wrong_is_told_without_a_key(text: str) -> None:
    with pytest.raises(WireError) as caught:
        parse_keyring_untrusted(text.format(format_key(KEY)))
    assert format_key(KEY) not in str(caught.value)


def test_a_pool_has_so_many_keys() -> None:
    with pytest.raises(UnsupportedError, match="at most 16 keys, found 17"):
        parse_keyring_untrusted(format_keyring(bytes((each,)) * 16 for each in range(KEYS_MAX + 1)))
