"""Old-specification msgpack, and fields taken from strangers' maps."""

from __future__ import annotations

from contextlib import suppress

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.membership.pack import (
    DEPTH_MAX,
    Fields,
    fields_untrusted,
    name_untrusted,
    pack,
    unpack_untrusted,
)
from overlay.errors import MalformedError, WireError


def nested(levels: int) -> bytes:
    return b"\x91" * levels + b"\xc0"


def test_texts_and_octets_are_raw_and_never_str8_or_bin() -> None:
    assert pack("a" * 40)[:1] == b"\xda"
    assert pack(b"a" * 40)[:1] == b"\xda"
    assert pack(b"") == b"\xa0"


def test_newer_forms_are_read_all_the_same() -> None:
    newer = msgpack.packb({"Node": "n1", "Meta": b"x" * 40}, use_bin_type=True)
    fields = fields_untrusted(newer, "map")
    assert (fields.text(b"Node"), fields.octets(b"Meta", 40)) == ("n1", b"x" * 40)


@pytest.mark.parametrize(
    "form", [b"\x07", b"\xcc\x07", b"\xcd\0\x07", b"\xd1\0\x07", b"\xd3" + bytes(7) + b"\x07"]
)
def test_every_form_of_an_integer_is_read(form: bytes) -> None:
    assert fields_untrusted(b"\x81\xa1n" + form, "map").number(b"n", 255) == 7


@given(st.binary(max_size=400))
def test_any_octets_are_a_value_or_a_wire_error(data: bytes) -> None:
    with suppress(WireError):
        unpack_untrusted(data, "value")


def test_six_levels_pass_and_too_many_do_not() -> None:
    # A stock agent's push-pull nests its events five deep.
    unpack_untrusted(nested(6), "value")
    unpack_untrusted(nested(DEPTH_MAX), "value")
    with pytest.raises(MalformedError, match="levels of nesting"):
        unpack_untrusted(nested(DEPTH_MAX + 1), "value")
    with pytest.raises(MalformedError):
        unpack_untrusted(nested(100_000), "value")


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc0\xc0", b"\x81\x90\x01"]
)
def test_what_lies_about_its_length_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        unpack_untrusted(data, "value")


def test_fields_are_what_they_should_be_or_refused() -> None:
    fields = Fields(
        {b"n": -1, b"big": 1 << 40, b"yes": 1, b"text": b"\xff", b"long": b"xx", b"list": {}}, "map"
    )
    for take in (
        lambda: fields.number(b"n", 10),
        lambda: fields.number(b"big", 10),
        lambda: fields.number(b"text", 10),
        lambda: fields.truth(b"yes"),
        lambda: fields.text(b"text"),
        lambda: fields.octets(b"long", 1),
        lambda: fields.items(b"list"),
        lambda: fields.mapping(b"n"),
        lambda: fields.name(b"absent"),
        lambda: Fields([], "map"),
    ):
        with pytest.raises(MalformedError):
            take()


def test_absent_fields_are_zero_as_in_go() -> None:
    fields = Fields({b"nil": None}, "map")
    assert (fields.number(b"n", 1), fields.truth(b"n"), fields.octets(b"nil", 1), fields.items(b"nil")) == (
        0,
        False,
        b"",
        [],
    )


@pytest.mark.parametrize("name", [b"", b"a" * 129, b"esc\x1b[2J", b"\xff", 7])
def test_a_name_is_short_and_harmless_on_a_terminal(name: object) -> None:
    with pytest.raises(MalformedError):
        name_untrusted(name, "name")
