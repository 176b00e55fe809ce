"""Whole daemons that know one seed carry for one another: what a node says of itself becomes tables.

    n1  weft ──┐
    n2  weft ──┼── hub        nobody is told of anybody but n1; nobody has a static peer
    n3  … ─────┘

Frames are looked at where they cross: on `eth0`, between the nodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from ipaddress import ip_interface

import pytest
from support.lab import ROOT, BuildLab
from support.pools import in_pool, pool_of
from support.serving import StartLab, drops, eventually, exit_status, start_daemons, view
from support.traffic import Port, mac_of, pinging, ports, type_in

from bench.lab import checks
from bench.lab.namespaces import Daemon, Lab
from bench.lab.topology import Address, NodeKind, Setting, Topology, segment
from overlay.addr import Mac, parse_mac
from overlay.verdict import DropReason

pytestmark = [*ROOT, pytest.mark.interop]

TRAFFIC_WITHIN_S = 3.0
DETECTION_S = 45.0
# 1.58 probe periods to the first accusation, 4 to the verdict, 0.2 for it to spread; then the hold-down.
MODEL_S = 1.58 + 4.0 + 0.2 + 3.0
MARGIN = 2.0  # this machine may have others to serve
ARP, NEIGHBOR_SOLICITATION = b"\x08\x06", 135
INNER = 42 + 8  # octets before the inner frame, over IPv4


def addresses(topology: Topology) -> dict[str, Address]:
    return {node.name: node.overlay_addresses[0].ip for node in topology.nodes}


def pairs_of(names: Iterable[str]) -> list[tuple[str, str]]:
    return [(here, there) for here in names for there in names if here != there]


def seconds_until_all_ping(lab: Lab, names: list[str], *, since: float, within_s: float = 15.0) -> float:
    """From that moment until every one of these has had an answer from every other."""
    whom = addresses(lab.topology)
    waiting = pairs_of(names)
    while waiting:
        pinged = checks.ping_all([(lab[here], whom[there]) for here, there in waiting], count=1)
        waiting = [pair for pair, ping in zip(waiting, pinged, strict=True) if not ping.complete]
        if waiting and time.monotonic() - since > within_s:
            pytest.fail(f"after {within_s} s: {waiting}")
    return time.monotonic() - since


def kill(lab: Lab, name: str) -> Daemon:
    daemon = lab.daemons.pop(name)
    daemon.process.kill()
    exit_status(daemon)
    return daemon


def behind(daemon: Daemon, vtep: str) -> list[str]:
    """What a daemon holds to be behind a VTEP, floods as all-zero MACs."""
    return [entry["mac"] for entry in view(daemon, "fdb") if entry["dst"] == vtep]


def ailments(daemon: Daemon) -> list[str]:
    return [each["problem"] for each in view(daemon, "status")["health"]]


def names(topology: Topology) -> list[str]:
    return [node.name for node in topology.nodes]


@contextmanager
def all_the_while(lab: Lab, *pairs: tuple[str, str]) -> Iterator[None]:
    """Each of these pairs pings, fifty times a second, and nothing is lost."""
    whom = addresses(lab.topology)
    with ExitStack() as stack:
        for here, there in pairs:
            stack.enter_context(pinging(lab[here], whom[there]))
        yield


def test_five_by_one_join_ping_at_once_and_outlive_one(
    build_lab: BuildLab, capsys: pytest.CaptureFixture[str]
) -> None:
    topology = pool_of("records", *[NodeKind.WEFT] * 5)
    lab = build_lab(topology)
    try:
        start_daemons(lab, "n1", "n2", "n3", "n4")
        started_at = time.monotonic()
        start_daemons(lab, "n5")
        ready_at = time.monotonic()
        took = seconds_until_all_ping(lab, names(topology), since=ready_at)
        told = f"five: all pairs ping {took:.2f} s after n5 was ready, {took + ready_at - started_at:.2f} s"
        with capsys.disabled():
            print(f"\n[{told} after it was started")
        assert took <= TRAFFIC_WITHIN_S

        mac, lost = mac_of(lab["n5"], "weft0"), "192.0.2.5"
        with all_the_while(lab, ("n1", "n2"), ("n3", "n4"), ("n4", "n1")):
            kill(lab, "n5")
            killed_at = time.monotonic()
            for daemon in lab.daemons.values():
                eventually("n5 is gone", partial(_is_gone, daemon, lost), within_s=DETECTION_S)
            gone_after = time.monotonic() - killed_at
        with capsys.disabled():
            print(f" kill -9: gone everywhere after {gone_after:.2f} s, model {MODEL_S:.2f} s")
        assert gone_after <= MARGIN * MODEL_S

        with all_the_while(lab, ("n1", "n2"), ("n3", "n4")):
            start_daemons(lab, "n5")
            took = seconds_until_all_ping(lab, names(topology), since=time.monotonic())
        with capsys.disabled():
            print(f" restart: all pairs ping after {took:.2f} s]")
        assert took <= TRAFFIC_WITHIN_S
        assert mac_of(lab["n5"], "weft0") == mac
    finally:
        lab.stop()


def _is_gone(daemon: Daemon, vtep: str) -> bool:
    return behind(daemon, vtep) == []


def test_a_node_at_another_address_is_reached_there(build_lab: BuildLab) -> None:
    topology = pool_of("moved", *[NodeKind.WEFT] * 3)
    lab = build_lab(topology)
    start_daemons(lab)
    seconds_until_all_ping(lab, names(topology), since=time.monotonic())
    kill(lab, "n3")
    type_in(lab["n3"], "ip addr del 192.0.2.3/24 dev eth0", "ip addr add 192.0.2.33/24 dev eth0")
    moved = replace(topology.node("n3"), underlay_addresses=(ip_interface("192.0.2.33/24"),))
    lab.topology = replace(topology, nodes=(*topology.nodes[:2], moved))
    start_daemons(lab, "n3")
    took = seconds_until_all_ping(lab, names(topology), since=time.monotonic())
    assert took <= TRAFFIC_WITHIN_S
    for name in ("n1", "n2"):
        daemon = lab.daemons[name]
        eventually("nothing is where it was", partial(_is_gone, daemon, "192.0.2.3"))
        assert behind(daemon, "192.0.2.33")
    lab.stop()


def test_who_leaves_is_gone_at_once(start_lab: StartLab) -> None:
    lab = start_lab(pool_of("left", *[NodeKind.WEFT] * 3))
    seconds_until_all_ping(lab, names(lab.topology), since=time.monotonic())
    leaver = lab.daemons.pop("n3")
    leaver.process.terminate()
    assert exit_status(leaver) == 0
    for daemon in lab.daemons.values():
        eventually("n3 is gone", partial(_is_gone, daemon, "192.0.2.3"), within_s=5.0)


# ── Neighbor discovery ──────────────────────────────────────────────────────────────────────────────────


def asks_for_a_neighbor(frame: bytes) -> bool:
    """Whether a VXLAN datagram carries an ARP request or a neighbor solicitation."""
    if frame[23:24] != b"\x11" or frame[36:38] != (4789).to_bytes(2, "big"):
        return False
    inner = frame[INNER:]
    if inner[12:14] == ARP:
        return inner[21] == 1
    return inner[12:14] == b"\x86\xdd" and inner[20] == 58 and inner[54] == NEIGHBOR_SOLICITATION


def test_known_endpoints_are_answered_for_and_no_question_crosses(start_lab: StartLab) -> None:
    lab = start_lab(pool_of("answered", *[NodeKind.WEFT] * 3))
    seconds_until_all_ping(lab, names(lab.topology), since=time.monotonic())
    whom = {node.name: node.overlay_addresses for node in lab.topology.nodes}
    for name, daemon in lab.daemons.items():
        others = {str(each.ip) for other in whom if other != name for each in whom[other]}
        eventually("every address is known", lambda: others <= {each["ip"] for each in view(daemon, "neigh")})  # noqa: B023
    with ports(*((lab[name], "eth0") for name in lab.daemons)) as listening:
        for name in lab.daemons:
            type_in(lab[name], "ip neigh flush dev weft0")
        # An answered ping has crossed, and so has whatever had to be asked before it.
        for here, there in pairs_of(list(lab.daemons)):
            for address in whom[there]:
                assert checks.ping(lab[here], address.ip, count=1).complete
        crossed = [frame for port in listening for frame in _seen(port)]
    assert [frame for frame in crossed if frame[36:38] == (4789).to_bytes(2, "big")], (
        "nothing was seen at all"
    )
    assert [frame.hex() for frame in crossed if asks_for_a_neighbor(frame)] == []


def _seen(port: Port) -> list[bytes]:
    """Everything that has passed so far."""
    frames: list[bytes] = []
    port._socket.setblocking(False)
    while True:
        try:
            frames.append(port._socket.recv(1 << 17))
        except BlockingIOError:
            return frames


# ── What does not fit together ──────────────────────────────────────────────────────────────────────────


def unlike(name: str, **settings: Setting) -> Topology:
    """Two nodes, the second with these settings of its network."""
    topology = segment(name, NodeKind.WEFT, NodeKind.WEFT)
    first, second = (in_pool(node) for node in topology.nodes)
    changed = {f"network.{key}": value for key, value in settings.items()}
    odd = replace(second, settings={**second.settings, **changed})
    return replace(topology, nodes=(first, odd))


def both_say(lab: Lab, words: Callable[[str], str]) -> None:
    for daemon, other in ((lab.daemons["n1"], "n2"), (lab.daemons["n2"], "n1")):
        wanted = words(other)

        def says(daemon: Daemon = daemon, wanted: str = wanted) -> bool:
            return any(wanted in each for each in ailments(daemon))

        eventually(f"{daemon.node.name} says: {wanted}", says)
        fixes = [each["fix"] for each in view(daemon, "status")["health"] if wanted in each["problem"]]
        assert all(fixes)


def test_another_vni_is_named_on_both_sides(start_lab: StartLab) -> None:
    lab = start_lab(unlike("vni", vni=43))
    both_say(lab, lambda other: f"on {other}")
    assert any("VNI 42 here, 43 on n2" in each for each in ailments(lab.daemons["n1"]))
    assert behind(lab.daemons["n1"], "192.0.2.2") == []


def test_another_port_is_named_on_both_sides_and_carried(start_lab: StartLab) -> None:
    lab = start_lab(unlike("port", port=4790))
    both_say(lab, lambda other: f"on {other}")
    assert any("port 4789 here, 4790 on n2" in each for each in ailments(lab.daemons["n1"]))
    seconds_until_all_ping(lab, ["n1", "n2"], since=time.monotonic())


def test_an_address_two_nodes_have_is_named_on_both_sides(start_lab: StartLab) -> None:
    lab = start_lab(unlike("address", address=["10.9.0.1/24"]))
    both_say(lab, lambda other: f"{other} and this node both have the address 10.9.0.1")


def test_a_device_mac_two_nodes_have_is_named_on_both_sides(build_lab: BuildLab) -> None:
    lab = build_lab(pool_of("twins", NodeKind.WEFT, NodeKind.WEFT))
    start_daemons(lab, "n1")
    mac = mac_of(lab["n1"], "weft0")
    # A device that is found keeps its MAC: here that of a machine it was copied from.
    type_in(lab["n2"], "ip tuntap add weft0 mode tap", f"ip link set weft0 address {mac}")
    start_daemons(lab, "n2")
    both_say(lab, lambda other: f"{other} and this node both have the device MAC {mac}")
    lab.stop()


# ── What is behind a node ───────────────────────────────────────────────────────────────────────────────


def test_a_mac_that_moves_is_followed_by_everybody(start_lab: StartLab) -> None:
    lab = start_lab(pool_of("mover", *[NodeKind.WEFT] * 3))
    seconds_until_all_ping(lab, names(lab.topology), since=time.monotonic())
    mover = parse_mac("02:00:00:00:00:99")
    station = {name: Mac(parse_mac(mac_of(lab[name], "weft0"))) for name in lab.daemons}
    with ports(*((lab[name], "weft0") for name in lab.daemons)) as (one, two, _):
        for port, vtep in ((one, "192.0.2.1"), (two, "192.0.2.2"), (one, "192.0.2.1")):

            def is_there(port: Port = port, vtep: str = vtep) -> bool:
                port.send(station["n3"] + mover + b"\x88\xb5moved")
                told = [
                    entry for entry in view(lab.daemons["n3"], "fdb") if entry["mac"] == "02:00:00:00:00:99"
                ]
                return [(each["dst"], "extern_learn" in each["flags"]) for each in told] == [(vtep, True)]

            eventually(f"n3 is told that it is behind {vtep}", is_there)
    assert drops(lab.daemons["n3"])[DropReason.OWN_MAC] == 0


# ── Beside static peers ─────────────────────────────────────────────────────────────────────────────────


def test_static_peers_and_the_pools_live_together(start_lab: StartLab) -> None:
    topology = segment("both", NodeKind.WEFT, NodeKind.WEFT, NodeKind.KERNEL_VXLAN)
    pooled = [in_pool(node) for node in topology.nodes]
    static = [
        replace(node, settings={**node.settings, "network.peers": ["192.0.2.3"]})
        if node.kind is NodeKind.WEFT
        else node
        for node in pooled
    ]
    lab = start_lab(replace(topology, nodes=tuple(static)))
    seconds_until_all_ping(lab, names(topology), since=time.monotonic())
    for name, other in (("n1", "192.0.2.2"), ("n2", "192.0.2.1")):
        floods = [
            each["dst"] for each in view(lab.daemons[name], "fdb") if each["mac"] == "00:00:00:00:00:00"
        ]
        assert sorted(floods) == sorted([other, "192.0.2.3"])
