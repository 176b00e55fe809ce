"""The world changes under a running daemon: it recovers by itself, spares the others, counts the loss."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import pytest
from support.engines import ON_BOTH
from support.lab import ROOT, BuildLab
from support.serving import (
    StartLab,
    drops,
    eventually,
    exit_status,
    expect_clean_exits,
    halted,
    serve,
    start_daemons,
    view,
)
from support.traffic import any_address, mac_of, open_in, pinging, transfer, type_in
from support.two_networks import BLUE, RED, Two, address_of

from bench.lab import checks
from bench.lab.namespaces import Daemon, Lab, Place
from bench.lab.topology import Address, NodeKind, segment
from overlay.verdict import DropReason

pytestmark = [*ROOT, pytest.mark.interop, ON_BOTH]

N1, N2, N3 = (ip_address(f"10.9.0.{number}") for number in (1, 2, 3))
THREE = segment("three", NodeKind.WEFT, NodeKind.WEFT, NodeKind.WEFT)
PAIRS = {
    version: segment("pair", NodeKind.WEFT, NodeKind.KERNEL_VXLAN, underlay_version=version)
    for version in (4, 6)
}


def reaches(place: Place, address: Address) -> bool:
    return checks.ping(place, address, count=1).complete


def eventually_reaches(place: Place, address: Address) -> None:
    eventually(f"{place.name} reaches {address}", lambda: reaches(place, address))


def device_mtu(place: Place, device: str) -> int:
    return int(place.run(["cat", f"/sys/class/net/{device}/mtu"]).stdout)


def has_mtu(place: Place, device: str, mtu: int) -> bool:
    return device_mtu(place, device) == mtu


def ailments(daemon: Daemon) -> list[str]:
    return [each["problem"] for each in view(daemon, "status")["health"]]


# ── A start ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_node_that_starts_among_senders_takes_none_of_them_for_a_stranger(build_lab: BuildLab) -> None:
    lab = build_lab(segment("start", NodeKind.WEFT, NodeKind.WEFT))
    start_daemons(lab, "n1")
    n1 = lab["n1"]
    n1.run(["ip", "neigh", "replace", "10.9.0.2", "lladdr", "02:00:00:00:00:02", "dev", "weft0"])
    ping = n1.popen(["ping", "-n", "-q", "-f", "-i", "0", "10.9.0.2"])  # flooded: nobody has that MAC
    start_daemons(lab, "n2")
    started = drops(lab.daemons["n2"])
    ping.terminate()
    ping.wait()
    assert started[DropReason.UNKNOWN_VTEP] == 0
    assert sum(each["rx_octets"] for each in view(lab.daemons["n2"], "peers")) > 0
    expect_clean_exits(lab)


# ── The device ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "disturbance",
    [
        "ip link delete weft0",
        "ip link set weft0 down",
        "ip address flush dev weft0",
        "ip link set weft0 mtu 1000",
        "ip link set weft0 address 02:00:00:00:00:77",
        "ip link set weft0 name gone",
        "ip link set weft0 carrier off",
    ],
)
def test_a_device_that_is_disturbed_is_restored_and_the_other_network_goes_on(
    two: Two, disturbance: str
) -> None:
    n1, n2 = two.lab["n1"], two.lab["n2"]
    mac = mac_of(n1, "weft0")

    def is_restored() -> bool:
        return (mac_of(n1, "weft0"), device_mtu(n1, "weft0")) == (mac, 1450)

    with pinging(n2, address_of(1, BLUE)):
        for _ in range(3):  # what was restored once must be restorable again
            type_in(n1, disturbance)
            eventually("weft0 is as it was", is_restored)
            eventually_reaches(n2, address_of(1, RED))
            eventually_reaches(n1, address_of(2, RED))
    assert transfer(n2, n1, address_of(1, RED), 1_000_000).is_intact
    eventually("it is well", lambda: not ailments(two.daemon))


def test_a_device_that_cannot_be_made_again_is_told_of_and_retried(two: Two) -> None:
    n1, n2 = two.lab["n1"], two.lab["n2"]
    assert reaches(n2, address_of(1, RED))
    before = drops(two.daemon)[DropReason.DEVICE_FULL]
    with pinging(n2, address_of(1, BLUE)):
        with halted(two.daemon):  # so that nobody is quicker than the one who takes the name
            type_in(n1, "ip link delete weft0", "ip link add weft0 type veth peer name usurper")
        eventually("it says what is wrong", lambda: any("weft0" in each for each in ailments(two.daemon)))
        assert not two.daemon.is_ready()
        assert not reaches(n2, address_of(1, RED))
        assert drops(two.daemon)[DropReason.DEVICE_FULL] > before
        type_in(n1, "ip link delete weft0")
        eventually_reaches(n2, address_of(1, RED))
    eventually("it is well", two.daemon.is_ready)


# ── The underlay ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("version", [4, 6])
def test_an_underlay_address_that_goes_and_comes_back(start_lab: StartLab, version: int) -> None:
    lab = start_lab(PAIRS[version])
    n1, daemon = lab["n1"], lab.daemons["n1"]
    address = PAIRS[version].nodes[0].underlay_addresses[0]
    assert reaches(n1, N2)
    before = drops(daemon)[DropReason.UNDERLAY_ERROR]
    type_in(n1, f"ip address delete {address} dev eth0")
    eventually("it says what is gone", lambda: any(str(address.ip) in each for each in ailments(daemon)))
    assert not reaches(n1, N2)
    assert drops(daemon)[DropReason.UNDERLAY_ERROR] > before
    type_in(n1, f"ip address add {address} dev eth0")
    eventually_reaches(n1, N2)
    eventually_reaches(lab["n2"], N1)
    eventually("it is well", lambda: not ailments(daemon))


@pytest.mark.parametrize("version", [4, 6])
def test_an_underlay_device_that_is_made_anew(start_lab: StartLab, version: int) -> None:
    lab = start_lab(PAIRS[version])
    assert reaches(lab["n1"], N2)
    type_in(lab["n1"], "ip link delete eth0")
    assert not reaches(lab["n1"], N2)
    plug_in_again(lab)
    eventually_reaches(lab["n1"], N2)
    eventually_reaches(lab["n2"], N1)
    assert transfer(lab["n2"], lab["n1"], N1, 1_000_000).is_intact


def plug_in_again(lab: Lab) -> None:
    """The cable between n1 and n2, as the lab has made it."""
    type_in(lab["n1"], f"ip link add eth0 type veth peer name eth0 netns {lab['n2'].namespace}")
    for node in lab.topology.nodes:
        for address in node.underlay_addresses:
            nodad = " nodad" if address.version == 6 else ""
            type_in(lab[node.name], f"ip address add {address} dev eth0{nodad}")
        type_in(lab[node.name], "ip link set eth0 up")


def test_a_link_local_underlay_follows_its_device(build_lab: BuildLab, tmp_path: Path) -> None:
    lab = build_lab(segment("scoped", NodeKind.BARE, NodeKind.BARE))
    n1, n2 = lab["n1"], lab["n2"]

    def address_the_cable() -> None:
        type_in(n1, "ip address add fe80::1/64 dev eth0 nodad", "ip link set eth0 up")
        type_in(n2, "ip address add fe80::2/64 dev eth0 nodad", "ip link set eth0 up")

    def join() -> None:
        vxlan = "id 42 dstport 4789 local fe80::2 remote fe80::1 dev eth0"
        type_in(
            n2,
            f"ip link add vxlan0 address 02:00:00:00:00:02 mtu 1430 type vxlan {vxlan}",
            "ip address add 10.9.0.2/24 dev vxlan0",
            "ip link set vxlan0 up",
        )

    address_the_cable()
    join()
    flags = ["--underlay", "fe80::1%eth0", "--peer", "fe80::2%eth0", "--vni", "42"]
    flags += ["--address", "10.9.0.1/24", "--device", "weft0"]
    with serve(n1, tmp_path / "n1", *flags):
        eventually_reaches(n1, N2)
        type_in(n1, "ip link delete eth0")  # and with it n2's end, and n2's vxlan0
        type_in(n1, f"ip link add eth0 type veth peer name eth0 netns {n2.namespace}")
        address_the_cable()
        join()
        eventually_reaches(n1, N2)
        eventually_reaches(n2, N1)


def test_the_overlays_mtu_follows_the_underlays(start_lab: StartLab) -> None:
    lab = start_lab(PAIRS[4])
    n1, daemon = lab["n1"], lab.daemons["n1"]
    for underlay_mtu in (1400, 1500, 9000, 1300):
        type_in(n1, f"ip link set eth0 mtu {underlay_mtu}")
        type_in(
            lab["n2"], f"ip link set eth0 mtu {underlay_mtu}", f"ip link set vxlan0 mtu {underlay_mtu - 50}"
        )
        expected = underlay_mtu - 50
        eventually(f"weft0 has MTU {expected}", partial(has_mtu, n1, "weft0", expected))
        shown = view(daemon, "status")
        assert (shown["underlays"][0]["mtu"], shown["networks"][0]["mtu"]) == (underlay_mtu, expected)
        assert checks.ping(n1, N2, count=1, size=expected - 28, options=("-M", "do")).complete
        assert transfer(lab["n2"], n1, N1, 1_000_000).is_intact


# ── The peers ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_peer_that_refuses_costs_the_others_nothing(start_lab: StartLab) -> None:
    lab = start_lab(THREE)
    n1, daemon = lab["n1"], lab.daemons["n1"]
    assert reaches(n1, N3)
    with pinging(n1, N2):
        stopped = lab.daemons.pop("n3")
        stopped.process.terminate()
        assert exit_status(stopped) == 0
        before = drops(daemon)[DropReason.UNDERLAY_ERROR]
        assert not checks.ping(n1, N3, count=5, interval_s=0.01).received
        # How many, n3's kernel decides: it limits the ICMP errors it sends (icmp_ratelimit).
        eventually("n1 counts a loss", lambda: drops(daemon)[DropReason.UNDERLAY_ERROR] > before)
        start_daemons(lab, "n3")
        eventually_reaches(n1, N3)
        eventually_reaches(lab["n3"], N1)


def test_an_error_of_one_peers_never_fails_what_is_sent_to_another(start_lab: StartLab) -> None:
    lab = start_lab(THREE)
    n1 = lab["n1"]
    assert reaches(n1, N2)
    assert reaches(n1, N3)
    type_in(lab["n3"], "sysctl -qw net.ipv4.icmp_ratelimit=0")
    lab.daemons.pop("n3").process.terminate()
    # So many flows that each socket of the pool has some to either peer.  The error of the one before is
    # there when the next is sent: across a veth pair n3's kernel answers before sendto() has returned.
    with ExitStack() as opened:
        clients = [opened.enter_context(open_in(n1, N1, socket.SOCK_DGRAM)) for _ in range(64)]
        server = opened.enter_context(open_in(lab["n2"], N2, socket.SOCK_DGRAM))
        for _ in range(5):
            for client in clients:
                client.sendto(b"lost", (str(N3), 9))
                client.sendto(b"kept", server.getsockname())
            assert [server.recv(16) for _ in clients] == [b"kept"] * len(clients)


def test_a_full_underlay_is_counted_and_passes(start_lab: StartLab) -> None:
    lab = start_lab(PAIRS[4])
    n1, daemon = lab["n1"], lab.daemons["n1"]
    assert reaches(n1, N2)
    type_in(n1, "tc qdisc add dev eth0 root tbf rate 1mbit burst 2kb limit 3kb")
    with open_in(n1, any_address(N2), socket.SOCK_DGRAM) as flood:
        for _ in range(200):
            flood.sendto(bytes(1000), (str(N2), 9))
    eventually("the loss has a name", lambda: drops(daemon)[DropReason.UNDERLAY_FULL] > 0)
    type_in(n1, "tc qdisc delete dev eth0 root")
    eventually_reaches(n1, N2)


def test_a_rule_that_forbids_the_way_is_counted(start_lab: StartLab) -> None:
    lab = start_lab(PAIRS[4])
    n1, daemon = lab["n1"], lab.daemons["n1"]
    assert reaches(n1, N2)
    before = drops(daemon)[DropReason.UNDERLAY_ERROR]
    n1.run(["nft", "add table ip t; add chain ip t o { type filter hook output priority 0; }"])
    n1.run(["nft", "add rule ip t o udp dport 4789 drop"])
    assert not checks.ping(n1, N2, count=3, interval_s=0.01).received
    assert drops(daemon)[DropReason.UNDERLAY_ERROR] >= before + 3
    n1.run(["nft", "delete table ip t"])
    eventually_reaches(n1, N2)
