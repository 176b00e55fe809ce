"""memberlist's messages come back as they went, a stock agent's are understood, and no octets do harm."""

from __future__ import annotations

import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.membership import alive, compress_lzw, stock

from control.membership.member import VERSIONS, Endpoint
from control.membership.pack import pack
from control.membership.wire import (
    Ack,
    Alive,
    Dead,
    IndirectPing,
    Message,
    Nack,
    Ping,
    Suspect,
    User,
    compound,
    encode,
    host_untrusted,
    parse_untrusted,
    unwrap_untrusted,
    with_crc,
)
from overlay.errors import MalformedError, WireError

MESSAGES: list[Message] = [
    Ping(7, "n1"),
    IndirectPing(8, Endpoint("192.0.2.7", 7946), "n7", wants_nack=True),
    IndirectPing(8, Endpoint("2001:db8::7", 7946), "n7", wants_nack=False),
    Ack(9),
    Nack(10),
    Suspect((1 << 32) - 1, "n1", "n2"),
    Dead(3, "n1", "n1"),
    alive(1),
    Alive(1 << 31, "n" * 128, Endpoint("2001:db8::1", 1), bytes(512), VERSIONS),
    User(b"\x04anything"),
    User(b""),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_comes_back_as_it_went(message: Message) -> None:
    assert parse_untrusted(encode(message)) == message


def test_octets_are_memberlists() -> None:
    assert encode(Nack(1)) == b"\x0b\x81\xa5SeqNo\x01"
    # Anything in the payload would log an error at a stock agent on every probe.
    assert encode(Ack(1)) == b"\x02\x82\xa5SeqNo\x01\xa7Payload\xa0"
    assert bytes((1, 5, 2, 2, 5, 5)) == VERSIONS
    assert encode(alive(1)).endswith(b"\xa3Vsn\xa6\x01\x05\x02\x02\x05\x05")


@pytest.mark.parametrize("message", MESSAGES[:9], ids=lambda message: type(message).__name__)
def test_every_truncation_is_refused(message: Message) -> None:
    whole = encode(message)
    for cut in range(len(whole)):
        with pytest.raises(WireError):
            parse_untrusted(whole[:cut])


@given(st.lists(st.sampled_from(MESSAGES), min_size=1, max_size=20), st.booleans(), st.booleans())
def test_wrappings_come_off_in_order(messages: list[Message], checked: bool, compressed: bool) -> None:
    packet = compound([encode(message) for message in messages])
    if compressed:
        packet = b"\x09" + pack({"Algo": 0, "Buf": compress_lzw(packet)})
    if checked:
        packet = with_crc(packet)
    assert [parse_untrusted(raw) for raw in unwrap_untrusted(packet)] == messages


@given(st.binary(max_size=400))
def test_any_octets_are_messages_or_a_wire_error(data: bytes) -> None:
    for start in (b"", b"\x07", b"\x09", b"\x0c", b"\x04", b"\x00", b"\x01"):
        with suppress(WireError):
            for raw in unwrap_untrusted(start + data):
                parse_untrusted(raw)


@given(st.sampled_from(MESSAGES), st.data())
def test_any_flipped_octet_is_a_message_or_a_wire_error(message: Message, data: st.DataObject) -> None:
    octets = bytearray(encode(message))
    octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    with suppress(WireError):
        parse_untrusted(bytes(octets))


def test_a_stock_agents_datagrams_are_understood() -> None:
    messages = [parse_untrusted(raw) for packet in stock("datagrams") for raw in unwrap_untrusted(packet)]
    kinds = {type(message) for message in messages}
    assert kinds == {Alive, Ping, Suspect, User, Dead}
    (word,) = {message for message in messages if isinstance(message, Alive) and message.node == "s1"}
    assert (word.endpoint.port, word.versions) == (7946, VERSIONS)


@pytest.mark.parametrize(
    ("packet", "complaint"),
    [
        (b"\x0c\0\0\0", "at least 5"),
        (b"\x0c" + zlib.crc32(b"x").to_bytes(4, "big") + b"y", "CRC"),
        (b"\x07\x02\0\x01", "at least 6"),
        (b"\x07\x01\xff\xffx", "at least 65539"),
        (b"\x09" + pack({"Algo": 1, "Buf": b""}), "LZW"),
        (b"\x09" + pack({"Algo": 0, "Buf": compress_lzw(bytes(1 << 20))}), "at most 65536"),
    ],
)
def test_wrappings_that_lie_are_refused(packet: bytes, complaint: str) -> None:
    with pytest.raises(WireError, match=complaint):
        unwrap_untrusted(packet)


@pytest.mark.parametrize("kind", [6, 7, 9, 10, 12, 13, 14, 244, 255])
def test_wrappings_inside_wrappings_and_unknown_types_are_refused(kind: int) -> None:
    with pytest.raises(WireError):
        parse_untrusted(bytes((kind,)) + pack({}))


def test_an_empty_compound_is_nothing() -> None:
    assert unwrap_untrusted(b"\x07\x00") == []


@pytest.mark.parametrize(
    "packed", [b"", bytes(4), bytes(3), b"\xe0\0\0\1", b"\xff" * 4, bytes(16), b"\xff" + bytes(15)]
)
def test_an_address_nobody_can_have_is_refused(packed: bytes) -> None:
    with pytest.raises(MalformedError):
        host_untrusted(packed)


def test_a_mapped_address_is_the_one_it_maps() -> None:
    assert host_untrusted(bytes(10) + b"\xff\xff\xc0\0\2\1") == "192.0.2.1"


def test_a_port_of_zero_is_refused() -> None:
    with pytest.raises(MalformedError, match="port"):
        parse_untrusted(encode(alive(1, endpoint=Endpoint("192.0.2.1", 0))))


def test_a_node_name_cannot_write_to_the_terminal() -> None:
    with pytest.raises(MalformedError, match="printable"):
        parse_untrusted(encode(Suspect(1, "\x1b[31mred", "n1")))
