"""Masquerade is one nftables table of a device's: replaced whole, removed, and swept after a crash."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.namespace import Namespace, needs_namespaces

from overlay.errors import DeviceError
from tunnel.masquerade import (
    device_of,
    ensure_masquerade,
    remove_masquerade,
    ruleset,
    sweep_masquerade,
    table_name,
)

NETWORK, SUBNET = ip_network("10.5.0.0/16"), ip_network("10.5.1.0/24")


def test_the_rules_are_flannels_in_flannels_order() -> None:
    rules = [line.strip() for line in ruleset("flannel0", NETWORK, SUBNET).splitlines()]
    assert rules[5:11] == [
        "meta mark & 0x4000 == 0x4000 return",
        "ip saddr 10.5.1.0/24 ip daddr 10.5.0.0/16 return",
        "ip saddr 10.5.0.0/16 ip daddr 10.5.1.0/24 return",
        "ip saddr != 10.5.0.0/16 ip daddr 10.5.1.0/24 return",
        "ip saddr 10.5.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random",
        "ip saddr != 10.5.0.0/16 ip daddr 10.5.0.0/16 masquerade fully-random",
    ]


def test_ipv6_has_a_family_and_groups_of_its_own() -> None:
    rules = ruleset("flannel0", ip_network("fd05::/48"), ip_network("fd05:0:0:1::/64"))
    assert "table ip6 weft-masquerade-flannel0 {" in rules
    assert "ip6 daddr != ff00::/8 masquerade" in rules


@given(st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=15))
def test_a_table_tells_its_device(device: str) -> None:
    assert device_of(table_name(device)) == device


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    here = Namespace()
    with here:
        yield here
    here.close()


@pytest.mark.root
@needs_namespaces
@pytest.mark.parametrize("device", ["flannel.1", "wéft,0"])
def test_a_table_comes_once_and_goes(namespace: Namespace, device: str) -> None:
    for _ in range(2):
        ensure_masquerade(device, NETWORK, SUBNET)
    told = namespace.run("nft list ruleset")
    assert told.count("masquerade fully-random") == 2
    for _ in range(2):
        remove_masquerade(device)
    assert namespace.run("nft list ruleset") == ""


@pytest.mark.root
@needs_namespaces
def test_a_sweep_takes_what_nobody_stands_for_and_nothing_else(namespace: Namespace) -> None:
    namespace.run("ip link add alive type veth peer name other")
    namespace.run("nft add table ip somebodys")
    for device in ("gone", "ours", "alive"):
        ensure_masquerade(device, NETWORK, SUBNET)
    sweep_masquerade({"ours"})
    tables = namespace.run("nft list tables").split("\n")
    assert tables[:-1] == ["table ip somebodys", "table ip weft-masquerade-alive"]


def test_without_nft_it_is_said_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DeviceError) as caught:
        ensure_masquerade("flannel0", NETWORK, SUBNET)
    assert "apt install nftables" in caught.value.advice
    remove_masquerade("flannel0")
    sweep_masquerade(())
