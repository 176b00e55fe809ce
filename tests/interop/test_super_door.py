"""Rung 2 for real: super-frames leave whole through the inject TAP, and by the lower door when they must.

    n1  weft ── eth0 ═══ veth ═══ eth0 ── n2  kernel VXLAN, or weft
        └ weft-inject0 ─tc─▶ eth0

Whether they leave whole is asked of the filter on the inject TAP, which counts what it redirects.
"""

from __future__ import annotations

import shutil
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from support.engines import ON_BOTH
from support.lab import LAB_TIMEOUT_S, ROOT, BuildLab
from support.rungs import injected
from support.serving import StartLab, await_ready, drops, eventually, exit_status, serve, start, view
from support.traffic import (
    checksum_errors,
    inside,
    mac_of,
    open_in,
    send_segmented,
    tcp_counts,
    transfer,
    type_in,
)

from bench.lab import checks
from bench.lab.commands import LabError
from bench.lab.namespaces import Daemon, Lab, Place
from bench.lab.topology import NodeKind, Underlay, UnderlayKind, segment
from overlay.verdict import DropReason

pytestmark = [*ROOT, pytest.mark.interop, ON_BOTH]

WEFT, KERNEL, BARE = NodeKind.WEFT, NodeKind.KERNEL_VXLAN, NodeKind.BARE
N1, N2 = ip_address("10.9.0.1"), ip_address("10.9.0.2")
OCTETS = 8_000_000
A_FEW = 5  # segments: a late acknowledgement has one sent again
LOWER_WITHIN_S = 2.0
SHUT_S = 4  # instead of a minute
SOL_PACKET, PACKET_VNET_HDR = 263, 15  # <linux/if_packet.h>
SOON = (f"tunnel.injector.RETRY_SECONDS={SHUT_S}",)
PAIR = segment("pair", WEFT, KERNEL)
FLAGS = ["--underlay", "192.0.2.1", "--peer", "192.0.2.2", "--vni", "42"]
FLAGS += ["--address", "10.9.0.1/24", "--device", "weft0"]


def rungs(daemon: Daemon) -> dict[str, str]:
    (underlay,) = view(daemon, "status")["underlays"]
    told: dict[str, str] = underlay["rungs"]
    return told


def goes_whole(source: Place, sink: Place) -> bool:
    """Whether a transfer from there arrives, most of it in super-packets."""
    before = injected(source)
    carried = transfer(source, sink, N2, OCTETS)
    assert carried.is_intact
    return injected(source) - before > OCTETS // 2


def is_in_order(source: Place, sink: Place, transfers: Callable[[], object]) -> bool:
    """Whether next to no segment of these transfers came late or was sent again."""
    sent_again, late = tcp_counts(source)["RetransSegs"], tcp_counts(sink)["TCPOFOQueue"]
    transfers()
    sent_again = tcp_counts(source)["RetransSegs"] - sent_again
    late = tcp_counts(sink)["TCPOFOQueue"] - late
    return sent_again < A_FEW and late < A_FEW


@pytest.fixture
def pair(start_lab: StartLab) -> Lab:
    """A weft node and a kernel node, with a door that has been opened."""
    lab = start_lab(PAIR, constants=SOON)
    open_door(lab)
    return lab


def open_door(lab: Lab) -> None:
    """The first super-frames ask for the door; those after it take it."""
    eventually("super-frames leave whole", lambda: goes_whole(lab["n1"], lab["n2"]))


# ── That it works ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("peer", [WEFT, KERNEL], ids=lambda peer: peer.value)
def test_super_frames_leave_whole_and_arrive_in_order(
    start_lab: StartLab, peer: NodeKind, version: int
) -> None:
    lab = start_lab(segment("super", WEFT, peer, underlay_version=version))
    n1, n2 = lab["n1"], lab["n2"]
    # From before the door opens, which it does in the middle of a transfer: none may overtake another then.
    assert is_in_order(n1, n2, lambda: open_door(lab))

    def come_back() -> None:
        assert transfer(n2, n1, N1, OCTETS).is_intact

    if peer is WEFT:
        assert is_in_order(n2, n1, come_back)
    else:
        # QUIRK(linux 6.18): a kernel node's own segments overtake each other; two kernel nodes alone had up
        # to 230 of these sent again.
        come_back()
    for place in (n1, n2):
        assert checksum_errors(place) == {}
    payload = bytes(range(256)) * 200
    assert b"".join(send_segmented(n1, n2, N2, payload, 1000)) == payload
    told = rungs(lab.daemons["n1"])
    assert told["egress"] == "super"
    assert "goes past the host's OUTPUT rules" in told["reason"]


def test_a_wire_like_underlay_keeps_to_batches_and_says_why(start_lab: StartLab) -> None:
    lab = start_lab(segment("wire", WEFT, KERNEL, underlay=Underlay(UnderlayKind.WIRE_LIKE)))
    assert transfer(lab["n1"], lab["n2"], N2, OCTETS).is_intact
    told = rungs(lab.daemons["n1"])
    assert told["egress"] == "batch"
    assert "tunnel_gso: eth0 has tx-udp_tnl-segmentation off" in told["reason"]
    assert injected(lab["n1"]) == 0


@pytest.mark.parametrize("mtu", [1280, 9000])
def test_any_underlay_mtu_will_do(start_lab: StartLab, mtu: int) -> None:
    made = segment("mtu", WEFT, KERNEL, underlay=Underlay(mtu=mtu))
    only_ipv4 = [replace(node, overlay_addresses=node.overlay_addresses[:1]) for node in made.nodes]
    lab = start_lab(replace(made, nodes=tuple(only_ipv4)))  # 1230 octets are too few for IPv6
    open_door(lab)
    assert checks.ping(lab["n2"], N1, count=1, size=mtu - 50 - 28, options=("-M", "do")).complete


def test_the_operators_switch_keeps_the_inject_tap_away(start_lab: StartLab) -> None:
    n1, n2 = PAIR.nodes
    lab = start_lab(replace(PAIR, nodes=(replace(n1, settings={"offload.tunnel_gso": "off"}), n2)))
    assert transfer(lab["n1"], lab["n2"], N2, OCTETS).is_intact
    assert 'tunnel_gso = "off"' in rungs(lab.daemons["n1"])["reason"]
    assert "weft-inject" not in lab["n1"].run(["ip", "link"]).stdout


def test_cap_net_admin_alone_will_do(build_lab: BuildLab, tmp_path: Path) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("not installed: setpriv")
    lab = build_lab(segment("poor", BARE, KERNEL))
    poor = ("setpriv", "--no-new-privs", "--bounding-set", "-all,+net_admin", "--inh-caps", "-all")
    daemon = start(lab["n1"], tmp_path / "n1", *FLAGS, prefix=poor)
    await_ready(daemon)
    open_door(lab)
    daemon.process.terminate()
    assert exit_status(daemon) == 0
    assert "weft-inject" not in lab["n1"].run(["ip", "link"]).stdout


@pytest.mark.parametrize("kind", ["bridge", "vlan"])
def test_a_bridge_or_a_vlan_device_is_an_underlay_too(build_lab: BuildLab, tmp_path: Path, kind: str) -> None:
    lab = build_lab(segment("stacked", BARE, BARE))
    device = stack(lab, kind)
    type_in(
        lab["n2"],
        "ip link add vxlan0 mtu 1450 type vxlan id 42 dstport 4789 local 192.0.2.2 remote 192.0.2.1",
        "ip address add 10.9.0.2/24 dev vxlan0",
        "ip link set vxlan0 up",
    )
    with serve(lab["n1"], tmp_path / "n1", *FLAGS) as daemon:
        assert checks.ping(lab["n1"], N2, count=1).complete
        (underlay,) = view(daemon, "status")["underlays"]
        assert underlay["device"] == device
        eventually("the rung is known", lambda: "not probed" not in rungs(daemon)["reason"])
        if rungs(daemon)["egress"] == "super":
            open_door(lab)
        else:  # a kernel whose stacked device does not segment tunnels
            assert f"{device} has tx-udp_tnl-segmentation off" in rungs(daemon)["reason"]
        assert transfer(lab["n1"], lab["n2"], N2, OCTETS).is_intact
        assert transfer(lab["n2"], lab["n1"], N1, OCTETS).is_intact


def stack(lab: Lab, kind: str) -> str:
    """Moves both underlay addresses to a device on top of eth0; its name."""
    device = {"bridge": "br0", "vlan": "eth0.7"}[kind]
    for node in lab.topology.nodes:
        type_in(lab[node.name], "ip address flush dev eth0")
        if kind == "bridge":
            type_in(lab[node.name], "ip link add br0 type bridge", "ip link set eth0 master br0")
        else:
            try:
                type_in(lab[node.name], "ip link add link eth0 name eth0.7 type vlan id 7")
            except LabError as error:
                pytest.skip(f"this kernel has no VLAN devices: {error}")
        type_in(
            lab[node.name],
            f"ip address add {node.underlay_addresses[0]} dev {device}",
            f"ip link set {device} up",
        )
    return device


# ── That it steps down, and up again ────────────────────────────────────────────────────────────────────


@contextmanager
def other_address(lab: Lab) -> Iterator[str]:
    type_in(lab["n2"], "ip link set eth0 address 02:00:00:00:00:99")
    # With it n2 has forgotten its neighbours: the first it says is to ask for n1, which so learns of it.
    type_in(lab["n2"], "ping -c 1 -W 2 192.0.2.1")
    yield "the way to it has changed"


@contextmanager
def other_route(lab: Lab) -> Iterator[str]:
    type_in(lab["n1"], "ip route add 192.0.2.2/32 encap ip id 7 dst 192.0.2.2 dev eth0")
    yield "its route is not a plain one"
    type_in(lab["n1"], "ip route delete 192.0.2.2/32")


@contextmanager
def several_next_hops(lab: Lab) -> Iterator[str]:
    type_in(lab["n1"], "ip address add 198.51.100.1/24 dev eth0")
    type_in(lab["n2"], "ip address add 198.51.100.2/24 dev eth0")
    type_in(lab["n1"], "ip route add 192.0.2.2/32 nexthop via 198.51.100.2 nexthop via 192.0.2.2")
    yield "its route has several next hops"
    type_in(lab["n1"], "ip route delete 192.0.2.2/32")


@contextmanager
def ipsec_policy(lab: Lab) -> Iterator[str]:
    policy = "src 192.0.2.1 dst 192.0.2.2 proto udp dir out"
    type_in(lab["n1"], f"ip xfrm policy add {policy} action allow")
    yield "an XFRM policy applies"
    type_in(lab["n1"], f"ip xfrm policy delete {policy}")


@contextmanager
def no_tunnel_offload(lab: Lab) -> Iterator[str]:
    type_in(lab["n1"], "ethtool -K eth0 tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off")
    yield "eth0 has tx-udp_tnl-segmentation off"
    type_in(lab["n1"], "ethtool -K eth0 tx-udp_tnl-segmentation on tx-udp_tnl-csum-segmentation on")


@contextmanager
def device_made_anew(lab: Lab) -> Iterator[str]:
    n1, n2 = lab["n1"], lab["n2"]
    type_in(n1, "ip link delete eth0")
    type_in(n1, f"ip link add eth0 type veth peer name eth0 netns {n2.namespace}")
    for place, address in ((n1, "192.0.2.1/24"), (n2, "192.0.2.2/24")):
        type_in(place, f"ip address add {address} dev eth0", "ip link set eth0 up")
    yield ""


@contextmanager
def filter_removed(lab: Lab) -> Iterator[str]:
    type_in(lab["n1"], "tc qdisc del dev weft-inject0 clsact")
    yield "the tc filter of weft-inject0 was removed or changed"


@contextmanager
def inject_tap_down(lab: Lab) -> Iterator[str]:
    type_in(lab["n1"], "ip link set weft-inject0 down")
    yield "weft-inject0 was set down"


@contextmanager
def inject_tap_deleted(lab: Lab) -> Iterator[str]:
    type_in(lab["n1"], "ip link delete weft-inject0")
    yield "weft-inject0 was deleted"


Disturbance = Callable[[Lab], AbstractContextManager[str]]


@pytest.mark.parametrize(
    "disturb",
    [
        other_address,
        other_route,
        several_next_hops,
        ipsec_policy,
        no_tunnel_offload,
        device_made_anew,
        filter_removed,
        inject_tap_down,
        inject_tap_deleted,
    ],
    ids=lambda disturb: disturb.__name__,
)
def test_what_changes_the_way_shuts_the_door_and_traffic_goes_on(pair: Lab, disturb: Disturbance) -> None:
    n1, n2, daemon = pair["n1"], pair["n2"], pair.daemons["n1"]
    with disturb(pair) as reason:
        changed_at = time.monotonic()
        assert checks.ping(n1, N2, count=1).complete
        assert time.monotonic() - changed_at < LOWER_WITHIN_S
        eventually("it says why", lambda: reason in rungs(daemon)["reason"], within_s=LOWER_WITHIN_S)
        assert transfer(n1, n2, N2, 1_000_000).is_intact
    eventually("super-frames leave whole again", partial(goes_whole, n1, n2))
    eventually("the status says so", lambda: rungs(daemon)["egress"] == "super")


def test_a_rule_against_the_sockets_shuts_the_door(pair: Lab) -> None:
    n1, n2, daemon = pair["n1"], pair["n2"], pair.daemons["n1"]
    before = drops(daemon)[DropReason.UNDERLAY_ERROR]
    n1.run(["nft", "add table ip t; add chain ip t o { type filter hook output priority 0; }"])
    n1.run(["nft", "add rule ip t o udp dport 4789 drop"])
    with pytest.raises(TimeoutError):
        transfer(n1, n2, N2, OCTETS, patience_s=LOWER_WITHIN_S)
    assert drops(daemon)[DropReason.UNDERLAY_ERROR] > before
    n1.run(["nft", "delete table ip t"])
    assert transfer(n1, n2, N2, 1_000_000).is_intact
    eventually("super-frames leave whole again", partial(goes_whole, n1, n2))


def test_a_rule_that_comes_in_mid_transfer_is_not_gone_past(pair: Lab) -> None:
    n1, n2, daemon = pair["n1"], pair["n2"], pair.daemons["n1"]
    server = n2.popen(["iperf3", "-s", "-1", "-B", str(N2)])
    eventually("iperf3 listens", lambda: "5201" in n2.run(["ss", "-tln"]).stdout)
    client = n1.popen(["iperf3", "-c", str(N2), "-t", "30"])
    start_of_flow = injected(n1)
    eventually("it flows", lambda: injected(n1) > start_of_flow + OCTETS)
    n1.run(["nft", "add table ip t; add chain ip t o { type filter hook output priority 0; }"])
    n1.run(["nft", "add rule ip t o udp dport 4789 drop"])
    reason = "a socket says: Operation not permitted"
    eventually("the door is shut", lambda: reason in rungs(daemon)["reason"], within_s=LOWER_WITHIN_S + 1)
    whole = injected(n1)
    assert not checks.ping(n1, N2, count=3, interval_s=0.01).received
    assert injected(n1) == whole
    for process in (client, server):
        process.kill()


@pytest.mark.timeout(LAB_TIMEOUT_S + 90)
def test_a_door_that_was_shut_stays_so_for_a_minute(start_lab: StartLab) -> None:
    lab = start_lab(PAIR)
    n1, n2, daemon = lab["n1"], lab["n2"], lab.daemons["n1"]
    open_door(lab)
    with ipsec_policy(lab) as reason:
        eventually("it says why", lambda: reason in rungs(daemon)["reason"])
        shut_at = time.monotonic()
    assert not goes_whole(n1, n2)
    eventually("it is open again", lambda: rungs(daemon)["egress"] == "super", within_s=70)
    assert time.monotonic() - shut_at > 55
    assert goes_whole(n1, n2)


def test_hostile_contents_lower_no_rung(pair: Lab) -> None:
    n1, n2, daemon = pair["n1"], pair["n2"], pair.daemons["n1"]
    told = rungs(daemon)
    send_raw(n1, "weft0", hostile_super_frames(mac_of(n1, "weft0"), mac_of(n2, "vxlan0")))
    with open_in(n2, ip_address("192.0.2.2"), socket.SOCK_DGRAM) as stranger:
        for frame in hostile_frames(mac_of(n2, "vxlan0"), mac_of(n1, "weft0")):
            stranger.sendto(bytes.fromhex("0800000000002a00") + frame, ("192.0.2.1", 4789))
    eventually("they are dropped by name", lambda: drops(daemon)[DropReason.INNER_MALFORMED] > 0)
    assert rungs(daemon) == told
    assert goes_whole(n1, n2)


def hostile_super_frames(source: str, destination: str) -> Iterator[bytes]:
    """What a program on this host may give the device as a TCP burst, each behind a virtio header."""
    frame = bytes(Ether(src=source, dst=destination) / IP(src=str(N1), dst=str(N2)) / TCP(flags="A"))
    for offset in (0x00, 0x50, 0xF0):
        for size in (1, 500, 60000):
            torn = bytearray(frame + bytes(5000))
            torn[46] = offset
            yield struct.pack("=BBHHHH", 1, 1, 54, size, 34, 16) + torn


def hostile_frames(source: str, destination: str) -> Iterator[bytes]:
    """What a member may send: TCP whose header ends behind the frame, its checksum seeming unfinished."""
    for octets in (0, 100, 3000, 60000):
        frame = Ether(src=source, dst=destination) / IP(src=str(N2), dst=str(N1)) / TCP(flags="A")
        whole = bytearray(bytes(frame) + bytes(octets))
        whole[16:18] = (len(whole) - 14).to_bytes(2)
        whole[46] = 0xF0
        addresses = N2.packed + N1.packed
        seed = sum(struct.unpack("!4H", addresses)) + 6 + len(whole) - 34
        whole[50:52] = ((seed & 0xFFFF) + (seed >> 16)).to_bytes(2)
        yield bytes(whole)


def send_raw(place: Place, device: str, frames: Iterable[bytes]) -> None:
    """Frames as a program with CAP_NET_RAW sends them, each behind its virtio header."""
    with inside(place):
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with sender:
        sender.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        sender.bind((device, 0))
        for frame in frames:
            with suppress(OSError):  # what the kernel itself refuses never reaches the device
                sender.send(frame)


def test_what_the_redirection_loses_has_a_name(pair: Lab) -> None:
    n1, n2, daemon = pair["n1"], pair["n2"], pair.daemons["n1"]
    type_in(n1, "tc qdisc add dev eth0 root tbf rate 8mbit burst 70kb limit 200kb")
    transfer(n1, n2, N2, OCTETS, patience_s=3)
    told = drops(daemon)
    assert told[DropReason.UNDERLAY_ERROR] + told[DropReason.UNDERLAY_FULL] > 0
    type_in(n1, "tc qdisc delete dev eth0 root")
    eventually("super-frames leave whole again", partial(goes_whole, n1, n2))
