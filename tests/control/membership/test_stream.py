"""A stream's one message is read from any pieces; its promises are checked before memory is spent on them."""

from __future__ import annotations

import itertools
import os
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.membership import compress_lzw, encode_state, state_of, stock

from control.membership.member import MemberState
from control.membership.pack import pack
from control.membership.secure import Envelope, Keyring
from control.membership.stream import (
    MAP_OCTETS,
    SLICE_OCTETS,
    StreamMessage,
    StreamReader,
    parse_stream_untrusted,
)
from control.membership.wire import Ack, ErrorReply, Ping, PushPull, encode, encode_error, encode_push_pull
from overlay.errors import WireError

KEY = bytes(range(32))
STATES = (state_of(1, MemberState.ALIVE), state_of(2, MemberState.DEAD, 7), state_of(3, MemberState.LEFT))
WHOLE = encode_push_pull([encode_state(state) for state in STATES], b"user state", join=True)
MESSAGE = PushPull(STATES, b"user state", join=True)


def reader(*keys: bytes, label: str = "") -> StreamReader:
    return StreamReader(Envelope(Keyring(keys), label, nonce=os.urandom))


def fed(into: StreamReader, pieces: list[bytes]) -> StreamMessage | None:
    message = None
    for piece in pieces:
        assert message is None, "octets after the message"
        message = into.receive_untrusted(piece)
    return message


@given(st.lists(st.integers(1, len(WHOLE) - 1), max_size=12), st.booleans(), st.sampled_from(["", "pool"]))
def test_a_push_pull_is_read_from_any_pieces(cuts: list[int], sealed: bool, label: str) -> None:
    keys = (KEY,) if sealed else ()
    data = Envelope(Keyring(keys), label, nonce=os.urandom).seal_stream(WHOLE)
    edges = [0, *sorted({cut for cut in cuts if cut < len(data)}), len(data)]
    pieces = [data[start:end] for start, end in itertools.pairwise(edges)]
    assert fed(reader(*keys, label=label), pieces) == MESSAGE


@pytest.mark.parametrize("message", [Ping(3, "n1"), Ack(3)], ids=["ping", "ack"])
def test_small_messages_are_read(message: Ping | Ack) -> None:
    assert reader().receive_untrusted(encode(message)) == message


def test_an_error_is_read() -> None:
    assert reader().receive_untrusted(encode_error("no")) == ErrorReply("no")


@pytest.mark.parametrize("name", ["push-pull", "push-pull-plain"])
def test_a_stock_agents_push_pull_is_read(name: str) -> None:
    (data,) = stock(name)
    message = reader().receive_untrusted(data)
    assert isinstance(message, PushPull)
    assert message.join
    assert [state.alive.node for state in message.nodes] == ["s1"]
    # Serf's own state: 512 events, mostly nil, nested five deep.
    assert message.user_state[0] == 2


@given(st.binary(max_size=600))
@settings(max_examples=300)
def test_any_octets_are_a_message_nothing_yet_or_a_wire_error(data: bytes) -> None:
    for start in (b"", b"\x06", b"\x09", b"\x0a\0\0\0", b"\xf4"):
        for into in (reader(), reader(KEY), reader(label="pool")):
            with suppress(WireError):
                into.receive_untrusted(start + data)


def test_no_truncation_is_a_message() -> None:
    for cut in range(len(WHOLE)):
        assert reader().receive_untrusted(WHOLE[:cut]) is None
        with pytest.raises(WireError):
            parse_stream_untrusted(WHOLE[:cut])


def head(nodes: int, user_octets: int) -> bytes:
    return b"\x06" + pack({"Nodes": nodes, "UserStateLen": user_octets, "Join": False})


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (head(1 << 20, 0), "members"),
        (head(0, 20 << 20), "user state"),
        (b"\x06" + b"\xc0", "map"),
        (b"\x06" + pack({"Nodes": 1}) + b"\x90", "map"),
        (b"\x06" + pack({"Nodes": 1}) + pack({"Name": []}), "numbers and octets"),
        (b"\x08user", "type"),
        (b"\x09" + pack({"Algo": 1, "Buf": b""}), "LZW"),
        (b"\x09" + pack({"Algo": 0, "Buf": compress_lzw(b"\x09" + pack({"Algo": 0, "Buf": b""}))}), "type"),
        (b"\x09" + pack({"Algo": 0, "Buf": compress_lzw(WHOLE[:-1])}), "more than"),
    ],
)
def test_promises_that_cannot_be_kept_are_refused(data: bytes, complaint: str) -> None:
    with pytest.raises(WireError, match=complaint):
        reader().receive_untrusted(data)


def test_an_announced_record_of_twenty_mebioctets_is_refused_at_its_head() -> None:
    with pytest.raises(WireError, match="announced"):
        reader(KEY).receive_untrusted(b"\x0a" + (20 << 20).to_bytes(4, "big"))


def test_twenty_mebioctets_are_never_held() -> None:
    into, piece = reader(), b"\xa0" * 65536
    into.receive_untrusted(b"\x06" + pack({"Nodes": 8000, "UserStateLen": 0}))
    taken = 0
    with suppress(WireError):
        while taken < 20 << 20:
            into.receive_untrusted(piece)
            taken += len(piece)
    assert taken <= 4 << 20


def test_one_members_map_cannot_be_large() -> None:
    into = reader()
    into.receive_untrusted(b"\x06" + pack({"Nodes": 1, "UserStateLen": 0}))
    with pytest.raises(WireError, match="map of at most"):
        into.receive_untrusted(b"\x81\xa1x\xdc\xff\xff" + b"\x90" * (MAP_OCTETS + 2 * SLICE_OCTETS))


def test_a_plain_stream_is_refused_where_there_are_keys() -> None:
    with pytest.raises(WireError, match="encrypted"):
        reader(KEY).receive_untrusted(WHOLE)
