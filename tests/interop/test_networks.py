"""Two networks on one daemon share a port and a wire, and nothing else.

n1  weft: red VNI 42 on weft0, blue VNI 43 on weft1 ──── n2  kernel: vxlan42, vxlan43
"""

from __future__ import annotations

import pytest
from support.engines import ON_BOTH
from support.lab import ROOT
from support.serving import drops, view
from support.traffic import mac_of, ports, transfer, type_in
from support.two_networks import BLUE, DEVICES, RED, Two, address_of

from bench.lab import checks
from overlay.addr import BROADCAST, parse_mac
from overlay.verdict import DropReason

pytestmark = [*ROOT, pytest.mark.interop, ON_BOTH]

ETHERTYPE = b"\x88\xb5"  # IEEE 802 local experimental 1
MOVER = parse_mac("02:00:00:00:00:99")


def frame(text: bytes, *, source: bytes = MOVER, destination: bytes = BROADCAST) -> bytes:
    return destination + source + ETHERTYPE + text


def test_both_networks_carry_at_once(two: Two) -> None:
    n1, n2 = two.lab["n1"], two.lab["n2"]
    pairs = [(n1, address_of(2, vni)) for vni in DEVICES] + [(n2, address_of(1, vni)) for vni in DEVICES]
    assert all(ping.complete for ping in checks.ping_all(pairs))
    for vni in DEVICES:
        assert transfer(n2, n1, address_of(1, vni), 1_000_000).is_intact


@pytest.mark.parametrize(("vni", "other"), [(RED, BLUE), (BLUE, RED)])
def test_a_broadcast_arrives_in_its_network_alone(two: Two, vni: int, other: int) -> None:
    n1, n2 = two.lab["n1"], two.lab["n2"]
    inbound = ((n2, f"vxlan{vni}"), (n2, f"vxlan{other}"), (n1, DEVICES[vni]), (n1, DEVICES[other]))
    with ports(*inbound) as (mine, its, here, elsewhere):
        mine.send(frame(b"first"))
        here.arrivals_until(b"first")
        its.send(frame(b"then"))
        seen = elsewhere.arrivals_until(b"then")
        assert not [each for each in seen if b"first" in each]

        here.send(frame(b"back"))
        mine.arrivals_until(b"back")
        elsewhere.send(frame(b"last"))
        seen = its.arrivals_until(b"last")
        assert not [each for each in seen if b"back" in each]


def test_each_datagram_on_the_wire_names_its_network(two: Two) -> None:
    n1 = two.lab["n1"]
    wire, red, blue = (n1, "eth0"), (n1, DEVICES[RED]), (n1, DEVICES[BLUE])
    with ports(wire, red, blue) as (eth0, weft0, weft1):
        for vni, device in ((RED, weft0), (BLUE, weft1)):
            device.send(frame(b"who am i"))
            datagram = eth0.departures_until(b"who am i")[-1]
            # Ethernet 14, IPv4 20, UDP 8: then RFC 7348 section 5.
            assert datagram[42:50] == b"\x08\0\0\0" + vni.to_bytes(3, "big") + b"\0"


def test_one_mac_may_be_in_both_networks(two: Two) -> None:
    n1, n2 = two.lab["n1"], two.lab["n2"]
    with ports((n2, "vxlan42"), (n1, "weft0"), (n1, "weft1")) as (red, weft0, weft1):
        red.send(frame(b"i am red"))
        weft0.arrivals_until(b"i am red")
        # Blue has never heard of it, so blue floods; in red it is known.
        weft1.send(frame(b"blue", source=weft1.mac, destination=MOVER))
        weft0.send(frame(b"red", source=weft0.mac, destination=MOVER))
        red.arrivals_until(b"red")
    learned = {entry["ifname"] for entry in view(two.daemon, "fdb") if entry["mac"] == MOVER.hex(":")}
    assert learned == {"weft0"}
    verdicts = {
        flow["network"]: flow["verdict"]
        for flow in view(two.daemon, "flows")
        if flow["dst"] == MOVER.hex(":")
    }
    assert verdicts == {"red": "encapsulate 192.0.2.2", "blue": "replicate"}


def test_a_network_nobody_serves_here_is_counted_and_not_delivered(two: Two) -> None:
    n2 = two.lab["n2"]
    before = drops(two.daemon)[DropReason.UNKNOWN_VNI]
    type_in(
        n2,
        "ip link add vxlan44 type vxlan id 44 dstport 4789 local 192.0.2.2 remote 192.0.2.1",
        "ip link set vxlan44 up",
    )
    with ports((n2, "vxlan44"), (n2, "vxlan42"), (two.lab["n1"], "weft0")) as (stray, red, weft0):
        stray.send(frame(b"stray"))
        red.send(frame(b"proper"))
        assert not [each for each in weft0.arrivals_until(b"proper") if b"stray" in each]
    assert drops(two.daemon)[DropReason.UNKNOWN_VNI] > before
    assert mac_of(n2, "vxlan44") not in {entry["mac"] for entry in view(two.daemon, "fdb")}
