"""What a node remembers of its leases comes back as it was; a torn file is no memory and no harm."""

from __future__ import annotations

import json
from contextlib import suppress
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.intent.leasememory import LeaseMemory, encode_memory, parse_memory_untrusted
from control.membership.recordbody import Grant, Holding
from overlay.errors import WireError

MEMORY = {
    "pods": LeaseMemory(
        bytes(range(16)),
        is_founder=True,
        number=7,
        endpoint="192.0.2.1:7946",
        fence="lost",
        grants=(
            Grant(ip_network("10.5.1.0/24"), "n1", "id1", 1),
            Grant(ip_network("10.5.2.0/24"), "n2", "id2", 7, is_released=True),
        ),
        held=Holding(ip_network("10.5.1.0/24"), "n1", "id1", 1),
        within=(ip_network("10.5.1.0/24"), ip_network("10.5.9.0/24")),
    ),
    "other": LeaseMemory(bytes(16)),
}


def test_it_comes_back_as_it_was() -> None:
    assert parse_memory_untrusted(encode_memory(MEMORY)) == MEMORY


def test_where_there_is_no_range_nothing_is_said_of_one() -> None:
    document = json.loads(encode_memory(MEMORY))
    assert [name for name, told in document["networks"].items() if "range" in told] == ["pods"]


def test_cut_anywhere_it_is_no_memory() -> None:
    text = encode_memory(MEMORY).rstrip()
    for length in range(len(text)):
        with pytest.raises(WireError):
            parse_memory_untrusted(text[:length])


PLACES = st.sampled_from(["pool", "is_founder", "number", "endpoint", "fence", "grants", "held", "range"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=6),
    max_leaves=10,
)


@given(st.dictionaries(PLACES, VALUES))
def test_any_values_are_a_memory_or_a_wire_error(changes: dict[str, object]) -> None:
    document = json.loads(encode_memory(MEMORY))
    document["networks"]["pods"] |= changes
    with suppress(WireError):
        parse_memory_untrusted(json.dumps(document))


@given(st.text(max_size=100))
def test_any_text_is_a_memory_or_a_wire_error(text: str) -> None:
    with suppress(WireError):
        parse_memory_untrusted(text)
