"""A flood list holds each VTEP once, in the order it was programmed."""

from __future__ import annotations

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from overlay.addr import VtepId
from overlay.flood import FloodList

VTEPS = st.integers(1, 5).map(lambda host: ip_address(f"192.0.2.{host}"))


def without_repetitions(vteps: list[VtepId]) -> tuple[VtepId, ...]:
    kept: list[VtepId] = []
    for vtep in vteps:
        if vtep not in kept:
            kept.append(vtep)
    return tuple(kept)


@given(st.lists(VTEPS), st.lists(VTEPS))
def test_each_vtep_gets_one_copy_in_the_order_programmed(first: list[VtepId], second: list[VtepId]) -> None:
    flood = FloodList()
    assert flood.replace(tuple(first)) == bool(first)
    assert flood.vteps() == without_repetitions(first)
    assert flood.replace(tuple(second)) == (without_repetitions(first) != without_repetitions(second))
    assert flood.vteps() == without_repetitions(second)
    assert len(flood) == len(set(second))


@given(st.lists(VTEPS), VTEPS)
def test_a_vtep_taken_out_leaves_the_others_in_their_order(vteps: list[VtepId], gone: VtepId) -> None:
    flood = FloodList()
    flood.replace(tuple(vteps))
    assert flood.remove(gone) == (gone in vteps)
    assert flood.vteps() == tuple(vtep for vtep in without_repetitions(vteps) if vtep != gone)


def test_an_empty_list_is_false() -> None:
    assert not FloodList()
