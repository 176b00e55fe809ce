"""TCP and UDP headers, against scapy's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import TCP
from support.frames import tcp4, udp4, udp6

from overlay.errors import MalformedError, TruncatedError
from overlay.frame import TCP_SYN, parse_tcp_untrusted, parse_udp_untrusted

ports = st.integers(0, 0xFFFF)
u32 = st.integers(0, 2**32 - 1)


@given(ports, ports, u32, u32, st.integers(0, 255), ports)
def test_scapys_tcp_is_read(sport: int, dport: int, seq: int, ack: int, flags: int, window: int) -> None:
    segment = bytes(TCP(sport=sport, dport=dport, seq=seq, ack=ack, flags=flags, window=window))
    tcp = parse_tcp_untrusted(segment)
    assert (tcp.source_port, tcp.destination_port, tcp.sequence, tcp.acknowledgment) == (
        sport,
        dport,
        seq,
        ack,
    )
    assert (tcp.flags, tcp.window, tcp.header_length, tcp.mss) == (flags, window, 20, None)


def test_a_syns_mss_is_read_behind_other_options() -> None:
    options = [("NOP", None), ("SAckOK", b""), ("Timestamp", (1, 0)), ("MSS", 1360), ("WScale", 7)]
    tcp = parse_tcp_untrusted(tcp4(flags="S", options=options)[34:])
    assert (tcp.flags, tcp.mss) == (TCP_SYN, 1360)
    assert tcp.header_length == 20 + 20


def test_an_mss_outside_a_syn_means_nothing() -> None:
    assert parse_tcp_untrusted(tcp4(flags="A", options=[("MSS", 1360)])[34:]).mss is None


def test_nothing_is_read_behind_the_end_of_options() -> None:
    assert parse_tcp_untrusted(tcp4(flags="S", options=[("EOL", None), ("MSS", 1360)])[34:]).mss is None


def syn_with(options: bytes) -> bytes:
    words = 5 + len(options) // 4
    return bytes(12) + bytes([words << 4, TCP_SYN]) + bytes(6) + options


@pytest.mark.parametrize(
    "options", [b"\x02\x00\x05\x50", b"\x02\x01\x05\x50", b"\x01\x01\x02\x04", b"\x01\x01\x01\x02"]
)
def test_an_option_that_does_not_fit_is_malformed(options: bytes) -> None:
    with pytest.raises(MalformedError, match="TCP option 2"):
        parse_tcp_untrusted(syn_with(options))


def test_a_data_offset_below_five_is_malformed() -> None:
    with pytest.raises(MalformedError, match="at least 5 words, found 4"):
        parse_tcp_untrusted(bytes(12) + b"\x40" + bytes(7))


def test_a_data_offset_past_the_end_is_truncated() -> None:
    with pytest.raises(TruncatedError, match="expected at least 60 octets, found 20"):
        parse_tcp_untrusted(bytes(12) + b"\xf0" + bytes(7))


@given(st.binary(max_size=80), ports)
def test_scapys_udp_is_read(payload: bytes, port: int) -> None:
    for datagram in (udp4(payload, dport=port)[34:], udp6(payload, dport=port)[54:]):
        udp = parse_udp_untrusted(datagram + b"padding")
        assert (udp.source_port, udp.destination_port, udp.length) == (40000, port, 8 + len(payload))


def test_a_udp_length_below_its_header_is_malformed() -> None:
    with pytest.raises(MalformedError, match="at least 8 octets, found 7"):
        parse_udp_untrusted(b"\0\1\0\2\0\7\0\0")
