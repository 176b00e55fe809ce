"""Ethernet and ARP, against scapy's."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.l2 import ARP, Dot1Q, Ether
from support.frames import IP4_A, IP4_B, MAC_A, MAC_B, arp_request, udp4

from overlay.addr import ZERO_MAC, Mac
from overlay.errors import MalformedError, TruncatedError, UnsupportedError
from overlay.frame import ARP_REPLY, ARP_REQUEST, Arp, parse_arp_untrusted, parse_ethernet_untrusted

macs = st.binary(min_size=6, max_size=6).map(Mac)


@pytest.mark.parametrize("tags", [(), (7,), (100, 7), (1, 2, 3)])
def test_the_payload_is_found_behind_every_tag(tags: tuple[int, ...]) -> None:
    ethernet = parse_ethernet_untrusted(udp4(tags=tags))
    assert (ethernet.destination, ethernet.source) == (MAC_B, MAC_A)
    assert ethernet.ethertype == 0x0800
    assert ethernet.tags == tags
    assert ethernet.payload_at == 14 + 4 * len(tags)


def test_priority_bits_stay_in_the_tci() -> None:
    frame = bytes(Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / Dot1Q(vlan=7, prio=5) / ARP())
    assert parse_ethernet_untrusted(frame).tags == (5 << 13 | 7,)


def test_a_group_source_is_malformed() -> None:
    frame = MAC_B + b"\x01\x00\x5e\x00\x00\x01" + b"\x08\x00"
    with pytest.raises(MalformedError, match="01:00:5e:00:00:01"):
        parse_ethernet_untrusted(frame)


def test_a_group_destination_is_not() -> None:
    frame = b"\xff" * 6 + MAC_A + b"\x08\x06"
    assert parse_ethernet_untrusted(frame).payload_at == 14


def test_a_tag_without_a_type_behind_it_is_truncated() -> None:
    with pytest.raises(TruncatedError, match="tag: expected at least 18 octets, found 17"):
        parse_ethernet_untrusted(MAC_B + MAC_A + b"\x81\x00\x00\x07\x08")


def test_the_ninth_tag_is_payload() -> None:
    frame = MAC_B + MAC_A + b"\x81\x00\x00\x01" * 9 + b"\x08\x00"
    ethernet = parse_ethernet_untrusted(frame)
    assert (len(ethernet.tags), ethernet.ethertype, ethernet.payload_at) == (8, 0x8100, 46)


@pytest.mark.parametrize("tags", [(), (7,), (100, 7)])
def test_an_answer_goes_back_wearing_the_same_tags(tags: tuple[int, ...]) -> None:
    asked = udp4(tags=tags)
    ethernet = parse_ethernet_untrusted(asked)
    answer = ethernet.answer(MAC_B)
    assert answer[:12] == MAC_A + MAC_B
    assert answer[12:] == asked[12 : ethernet.payload_at]


def test_scapys_request_is_read() -> None:
    arp = parse_arp_untrusted(arp_request()[14:])
    assert arp == Arp(ARP_REQUEST, MAC_A, IPv4Address(IP4_A), ZERO_MAC, IPv4Address(IP4_B))


def test_padding_behind_an_arp_packet_is_no_part_of_it() -> None:
    packet = arp_request()[14:]
    assert parse_arp_untrusted(packet + bytes(18)) == parse_arp_untrusted(packet)


@given(macs, macs, st.ip_addresses(v=4), st.ip_addresses(v=4), st.integers(0, 0xFFFF))
def test_arp_round_trips_and_scapy_reads_it(
    sender: Mac, target: Mac, sender_ip: IPv4Address, target_ip: IPv4Address, operation: int
) -> None:
    arp = Arp(operation, sender, sender_ip, target, target_ip)
    assert parse_arp_untrusted(arp.build()) == arp
    read = ARP(arp.build())
    assert (read.op, read.psrc, read.pdst) == (operation, str(sender_ip), str(target_ip))
    assert (read.hwsrc, read.hwdst) == (sender.hex(":"), target.hex(":"))


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5])
def test_other_hardware_and_protocols_are_unsupported(at: int) -> None:
    packet = bytearray(Arp(ARP_REPLY, MAC_A, IPv4Address(IP4_A), MAC_B, IPv4Address(IP4_B)).build())
    packet[at] ^= 0x06
    with pytest.raises(UnsupportedError, match="expected Ethernet and IPv4"):
        parse_arp_untrusted(packet)
