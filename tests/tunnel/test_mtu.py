"""What encapsulation costs, checked against datagrams somebody else builds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw

from tunnel.mtu import Encap, overhead, overlay_mtu, versions_not_carried


@pytest.mark.parametrize(
    ("encap", "version", "expected"),
    [
        (Encap.VXLAN, 4, 50),
        (Encap.VXLAN, 6, 70),
        (Encap.FLANNEL_UDP, 4, 28),
        (Encap.FLANNEL_UDP, 6, 48),
    ],
)
def test_the_overhead_is_what_scapy_puts_around_a_packet(encap: Encap, version: int, expected: int) -> None:
    outer: Any = IP() if version == 4 else IPv6()
    outer /= UDP(sport=50000, dport=4789)
    if encap is Encap.VXLAN:
        outer /= VXLAN(vni=1, flags=8) / Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02", type=0x0800)
    assert len(outer / Raw(bytes(100))) - 100 == expected
    assert overhead(encap, version) == expected


@pytest.mark.parametrize(
    ("underlay", "encap", "version", "expected"),
    [
        (1500, Encap.VXLAN, 4, 1450),
        (1500, Encap.VXLAN, 6, 1430),
        (1500, Encap.FLANNEL_UDP, 4, 1472),
        (9000, Encap.VXLAN, 4, 8950),
        (1280, Encap.VXLAN, 6, 1210),
        (65536, Encap.VXLAN, 4, 65485),
        (65536, Encap.VXLAN, 6, 65466),
        (100000, Encap.VXLAN, 6, 65505),
    ],
)
def test_the_overlay_mtu_is_what_remains(underlay: int, encap: Encap, version: int, expected: int) -> None:
    assert overlay_mtu(underlay, encap, version) == expected


@given(st.integers(1, 200_000), st.sampled_from(Encap), st.sampled_from([4, 6]))
def test_a_full_overlay_packet_fits_one_underlay_packet(underlay: int, encap: Encap, version: int) -> None:
    outer = overlay_mtu(underlay, encap, version) + overhead(encap, version)
    assert outer <= underlay
    assert outer <= (65535 if version == 4 else 65575)
    assert outer in (underlay, 65535, 65575)


@pytest.mark.parametrize(
    ("mtu", "expected"),
    [(1500, ()), (1280, ()), (1279, (6,)), (68, (6,)), (67, (4, 6)), (0, (4, 6)), (-50, (4, 6))],
)
def test_versions_whose_minimum_is_not_reached_are_flagged(mtu: int, expected: tuple[int, ...]) -> None:
    assert versions_not_carried(mtu) == expected


def test_the_operator_writes_what_the_enum_says() -> None:
    assert [Encap("vxlan"), Encap("flannel-udp")] == [Encap.VXLAN, Encap.FLANNEL_UDP]
