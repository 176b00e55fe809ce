"""What is written down is read back, and a damaged file is refused, not obeyed."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.membership import US, Bench, at

from control.membership.member import Endpoint
from control.membership.snapshot import (
    Snapshot,
    encode_snapshot,
    parse_endpoint_untrusted,
    parse_snapshot_untrusted,
    snapshot_of,
)
from overlay.errors import WireError

SNAPSHOT = Snapshot("c0de", 4, 7, 112, US, (("n2", at(2)), ("n6", Endpoint("2001:db8::6", 7946))))


def test_a_snapshot_comes_back_as_it_went() -> None:
    assert parse_snapshot_untrusted(encode_snapshot(SNAPSHOT)) == SNAPSHOT
    assert parse_snapshot_untrusted(encode_snapshot(Snapshot("a", 1))) == Snapshot("a", 1)


def test_it_holds_who_is_here() -> None:
    bench = Bench(3)
    assert snapshot_of(bench.core, "c0de", 2).members == tuple(
        (f"m{number}", at(number)) for number in (1, 2, 3)
    )
    assert snapshot_of(bench.core, "c0de", 2).endpoint == US


def test_the_next_start_outbids_the_last() -> None:
    start = SNAPSHOT.next_start()
    assert (start.epoch, start.incarnation) == (5, 8)


@given(st.text(max_size=200) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_any_text_is_a_snapshot_or_a_wire_error(text: str) -> None:
    with suppress(WireError):
        parse_snapshot_untrusted(text)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "weft.snapshot/9"},
        {"weft_id": ""},
        {"weft_id": "\x1b"},
        {"epoch": -1},
        {"epoch": True},
        {"incarnation": 1 << 32},
        {"endpoint": "here"},
        {"members": {}},
        {"members": [7]},
        {"members": [{"name": "a", "endpoint": "192.0.2.1:0"}]},
    ],
)
def test_a_damaged_snapshot_is_refused(change: dict[str, Any]) -> None:
    document = json.loads(encode_snapshot(SNAPSHOT)) | change
    with pytest.raises(WireError):
        parse_snapshot_untrusted(json.dumps(document))


@pytest.mark.parametrize(
    "text", ["", "192.0.2.1", "192.0.2.1:", "192.0.2.1:65536", "n1:7946", "[::1]:١", None]
)
def test_an_endpoint_is_an_address_and_a_port(text: object) -> None:
    with pytest.raises(WireError):
        parse_endpoint_untrusted(text)
