"""What we say of ourselves fits a record, whatever we have."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st
from support.doubles import mac

from control.intent.desired import NodeSubnet, Ours, OwnPart
from control.intent.own import Routed, own_networks
from control.membership.recordbody import LeaseWord, LocalMac, encode_networks, parse_networks_untrusted
from overlay.addr import NetworkId, Vtep
from overlay.route import IpNetwork


@dataclass(frozen=True)
class Intent:
    id: NetworkId
    mode: str = "bridge"
    encap: str = "vxlan"
    vni: int | None = 42
    port: int = 4789
    vteps: tuple[Vtep, ...] = ()
    network: IpNetwork | None = None
    subnet: IpNetwork | None = None
    nodes: tuple[NodeSubnet, ...] = ()


LAB, PODS = NetworkId("lab"), NetworkId("pods")
UNDERLAYS = (ip_address("192.0.2.1"), ip_address("2001:db8::1"))


def test_a_bridged_network_says_where_it_is_and_what_is_behind_it() -> None:
    macs = (LocalMac(mac(0)), LocalMac(mac(1), 3))
    ips = ((ip_address("10.9.0.1"), mac(0)),)
    (said,) = own_networks([Intent(LAB)], Ours(UNDERLAYS, {LAB: OwnPart(macs, ips)}))
    assert (said.name, said.vteps, said.mac, said.macs, said.ips) == (LAB, UNDERLAYS, mac(0), macs, ips)
    assert (said.mode, said.encap, said.vni, said.port) == ("bridge", "vxlan", 42, 4789)
    assert (said.subnets, said.leases) == ((), None)


def test_a_routed_network_says_its_subnet_and_its_leases() -> None:
    subnet, word = ip_network("10.5.1.0/24"), LeaseWord(bytes(16))
    intent = Intent(PODS, "routed", "flannel-udp", None, 8285, network=ip_network("10.5.0.0/16"))
    (said,) = own_networks([intent], Ours(UNDERLAYS), {PODS: Routed((subnet,), word)})
    assert (said.subnets, said.leases, said.mac, said.vni) == ((subnet,), word, None, None)
    assert said.network == intent.network


@given(st.lists(st.integers(0, 1500), max_size=70))
def test_however_much_there_is_others_can_read_it(counts: list[int]) -> None:
    networks = [Intent(NetworkId(f"net{number}"), vni=number + 1) for number in range(len(counts))]
    parts = {
        each.id: OwnPart(
            tuple(LocalMac(mac(number)) for number in range(count)),
            tuple((ip_address(0x0A000001 + number), mac(0)) for number in range(count)),
        )
        for each, count in zip(networks, counts, strict=True)
    }
    said = own_networks(networks, Ours(UNDERLAYS * 20, parts))
    assert parse_networks_untrusted(encode_networks(said)) == said
