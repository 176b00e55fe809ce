"""Sums of words: the same by Python's numbers and by numpy, of any length, one piece or many."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.utils import checksum as scapy_checksum
from support.frames import naive_sum

from bench.lab.commands import weft_environment
from tunnel.sums import FEW_OCTETS, WORD_MAX, word_sums

LENGTHS = [0, 1, 2, 180, 181, FEW_OCTETS - 1, FEW_OCTETS, FEW_OCTETS + 1, 1440, 1441, 9000, 65534, 65535]


@given(st.binary(max_size=2100), st.integers(0, 50))
def test_the_sums_are_those_of_a_loop_over_words(octets: bytes, more: int) -> None:
    pieces = [octets] + [bytes(reversed(octets))] * more
    both = naive_sum(pieces[0]) % WORD_MAX, naive_sum(pieces[-1]) % WORD_MAX
    assert word_sums(pieces) == [both[0]] + [both[1]] * more


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("octet", [b"\0", b"\xff", b"\x5a"])
@pytest.mark.parametrize("count", [1, 2, 64])
def test_the_sums_agree_with_scapy_at_every_length(length: int, octet: bytes, count: int) -> None:
    octets = octet * length
    assert word_sums([octets] * count) == [(WORD_MAX - scapy_checksum(octets)) % WORD_MAX] * count


def test_pieces_may_be_views_of_a_buffer_at_any_place() -> None:
    octets = memoryview(bytearray(at * 7 & 0xFF for at in range(70_000)))
    pieces = [octets[at : at + 1389] for at in range(3, 60_000, 1409)]
    assert word_sums(pieces) == [naive_sum(bytes(piece)) % WORD_MAX for piece in pieces]


def test_of_nothing_there_are_no_sums() -> None:
    assert word_sums([]) == []


def test_a_daemon_whose_engine_sums_nothing_does_not_load_numpy() -> None:
    asked = "import sys, control.daemon; print('numpy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, check=True, env=weft_environment()
    )
    assert done.stdout == "False\n"
