"""Whole daemons are one pool: by one `--join`, through deaths and partitions, beside stock Serf agents.

    n1  weft ──┐
    n2  weft ──┼── hub        nobody is told of anybody but n1; every node but n1 is told `--join 192.0.2.1`
    n3  … ─────┘

What the pool holds of somebody is asked as an operator asks, and waited for; no time is asserted.
"""

from __future__ import annotations

import json
import random
import signal
import socket
import stat
import statistics
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from support.lab import ROOT, BuildLab, leaves_no_trace
from support.pools import SEED, heal, in_pool, part, pool_of
from support.serf_agent import GOSSIP_PORT, needs_serf
from support.serving import (
    StartLab,
    await_ready,
    eventually,
    exit_status,
    refused,
    start,
    start_daemons,
    view,
)
from support.traffic import any_address, open_in

from bench.lab import checks
from bench.lab.commands import LabError
from bench.lab.namespaces import Daemon, Lab, Place
from bench.lab.topology import NodeKind, segment
from control.membership.config import PROBE_INTERVAL, SUSPICION_MULT, suspicion_min
from control.membership.keys import format_key
from control.membership.secure import Envelope, Keyring
from control.membership.wire import Ping, encode, encode_push_pull
from control.operator.client import Client
from overlay.addr import IpAddress

pytestmark = [*ROOT, pytest.mark.interop]

JOIN_S = 3.0  # what is promised of a pool of five
EXPECTED_DETECTION = 1.58  # seconds to the first suspicion: e / (e - 1) probe intervals, the SWIM paper
TOLERANCE = 1.2
DETECTION_S = 45.0  # a death in a pool this small takes seconds; this machine may have others to serve
HEALING_S = 60.0
TWO_MINUTES_S = 120.0
USAGE = 2
OLD_KEY, NEW_KEY, NEWER_KEY = (format_key(bytes([number]) * 32) for number in (1, 2, 3))


# ── A pool ──────────────────────────────────────────────────────────────────────────────────────────────


def states(daemon: Daemon) -> dict[str, str]:
    return {member["name"]: member["state"] for member in view(daemon, "members")}


def member(daemon: Daemon, name: str) -> dict[str, Any]:
    return next(each for each in view(daemon, "members") if each["name"] == name)


def await_state(lab: Lab, name: str, state: str, *, by: list[str], within_s: float = DETECTION_S) -> None:
    """Waits until all these hold the member to be in that state."""
    for node in by:
        daemon = lab.daemons[node]
        claim = f"{node} holds {name} {state}"
        eventually(claim, partial(holds, daemon, {name: state}), within_s=within_s)


def holds(daemon: Daemon, expected: dict[str, str]) -> bool:
    """Whether it holds these members to be in these states; others may be anything."""
    return expected.items() <= states(daemon).items()


def others(lab: Lab, name: str) -> list[str]:
    return [node for node in lab.daemons if node != name]


def await_peers(lab: Lab, count: int) -> None:
    for daemon in lab.daemons.values():
        daemon.ask("wait", "--peers", str(count), "--timeout", str(DETECTION_S), timeout=2 * DETECTION_S)


def test_five_are_one_pool_by_one_join_and_each_fate_is_known_to_all(start_lab: StartLab) -> None:
    lab = start_lab(pool_of("five", *[NodeKind.WEFT] * 5))
    await_peers(lab, 4)
    names = {f"n{number}" for number in range(1, 6)}
    for daemon in lab.daemons.values():
        assert states(daemon) == dict.fromkeys(names, "alive")
        assert {peer["name"] for peer in view(daemon, "peers")} == names - {daemon.node.name}
    before = member(lab.daemons["n1"], "n5")
    assert before["address"] == f"192.0.2.5:{GOSSIP_PORT}"
    assert before.keys() == {"name", "address", "state", "incarnation", "tags"}

    killed = lab.daemons.pop("n5")
    killed.process.kill()
    assert exit_status(killed) == -signal.SIGKILL
    await_state(lab, "n5", "dead", by=others(lab, "n5"))

    start_daemons(lab, "n5")
    await_state(lab, "n5", "alive", by=others(lab, "n5"))
    await_peers(lab, 4)
    after = member(lab.daemons["n1"], "n5")
    assert after["tags"]["weft_id"] == before["tags"]["weft_id"]
    assert int(after["tags"]["weft_epoch"]) > int(before["tags"]["weft_epoch"])
    assert after["incarnation"] > before["incarnation"]

    leaver = lab.daemons.pop("n4")
    leaver.process.terminate()
    assert exit_status(leaver) == 0, leaver.read_output()
    await_state(lab, "n4", "left", by=others(lab, "n4"))


@pytest.mark.long_sim  # a minute: pytest -m long_sim tests/interop/test_pool.py
@pytest.mark.timeout(300)
def test_five_are_a_pool_in_three_seconds_and_a_death_is_known_within_the_model(start_lab: StartLab) -> None:
    lab = start_lab(pool_of("swift", *[NodeKind.WEFT] * 5))
    all_ready_at = time.monotonic()
    everybody = dict.fromkeys((f"n{number}" for number in range(1, 6)), "alive")
    for daemon in lab.daemons.values():
        eventually("all are here", partial(holds, daemon, everybody))
    assert time.monotonic() - all_ready_at < JOIN_S

    took = []
    for name in ("n5", "n4", "n3", "n2", "n5"):
        eventually("all are here", lambda: all(holds(each, everybody) for each in lab.daemons.values()))
        killed = lab.daemons.pop(name)
        killed.process.kill()
        killed_at = time.monotonic()
        await_state(lab, name, "dead", by=others(lab, name))
        took.append(time.monotonic() - killed_at)
        start_daemons(lab, name)
    model = EXPECTED_DETECTION + suspicion_min(SUSPICION_MULT, 5, PROBE_INTERVAL)
    assert statistics.median(took) < TOLERANCE * model, took


# ── Partitions ──────────────────────────────────────────────────────────────────────────────────────────


def await_parted(lab: Lab, ours: list[str], theirs: list[str]) -> None:
    for one_side, other_side in ((ours, theirs), (theirs, ours)):
        for name in other_side:
            await_state(lab, name, "dead", by=one_side)


def test_a_healed_partition_is_one_pool_again_with_no_operator(start_lab: StartLab) -> None:
    lab = start_lab(pool_of("parted", *[NodeKind.WEFT] * 3))
    await_peers(lab, 2)
    # Not the seed: whoever is cut off knows nobody's address but by having met them.
    part(lab, "n3")
    await_parted(lab, ["n1", "n2"], ["n3"])
    heal(lab, "n3")
    for name in lab.daemons:
        await_state(lab, name, "alive", by=others(lab, name), within_s=HEALING_S)


@pytest.mark.long_sim  # three minutes: pytest -m long_sim tests/interop/test_pool.py
@pytest.mark.timeout(400)
def test_halves_of_two_minutes_are_one_pool_again(start_lab: StartLab) -> None:
    lab = start_lab(pool_of("halves", *[NodeKind.WEFT] * 4))
    await_peers(lab, 3)
    over_at = time.monotonic() + TWO_MINUTES_S
    part(lab, "n3", "n4")
    await_parted(lab, ["n1", "n2"], ["n3", "n4"])
    eventually("two minutes are over", lambda: time.monotonic() > over_at, within_s=2 * TWO_MINUTES_S)
    assert states(lab.daemons["n1"])["n3"] == "dead"
    heal(lab, "n3", "n4")
    healed_at = time.monotonic()
    for name in lab.daemons:
        await_state(lab, name, "alive", by=others(lab, name), within_s=HEALING_S)
    assert time.monotonic() - healed_at < 35.0  # what is promised of healing; rejoining is every 30 s


# ── Stock agents ────────────────────────────────────────────────────────────────────────────────────────


class Stock:
    """A stock agent in a bare node's namespace."""

    def __init__(self, lab: Lab, name: str, folder: Path, *arguments: str) -> None:
        self._place = lab[name]
        address = lab.topology.node(name).vtep
        self._log = folder / f"{name}.serf"
        command = ["serf", "agent", f"-node={name}", f"-bind={address}:{GOSSIP_PORT}", *arguments]
        with self._log.open("w") as log:
            self._place.popen(command, stdout=log)
        eventually(f"the agent on {name} answers", lambda: self.states() != {})

    def holds(self, expected: dict[str, str]) -> bool:
        return expected.items() <= self.states().items()

    def states(self) -> dict[str, str]:
        return {name: each["status"] for name, each in self.members().items()}

    def members(self) -> dict[str, dict[str, Any]]:
        told = self._place.run(["serf", "members", "-format=json"]).stdout
        return {each["name"]: each for each in json.loads(told)["members"]}

    def keys(self, *arguments: str) -> None:
        """A step of a rotation; `serf` fails unless every member has taken it."""
        told = self._place.run(["serf", "keys", *arguments]).stdout
        assert "Successfully" in told or "Keys gathered" in told, told + self._log.read_text()

    def trouble(self) -> list[str]:
        lines = self._log.read_text().splitlines()
        return [line for line in lines if "[WARN]" in line or "[ERR]" in line]


@needs_serf
def test_weft_daemons_join_a_stock_pool(build_lab: BuildLab, tmp_path: Path) -> None:
    lab = build_lab(pool_of("stock", NodeKind.BARE, NodeKind.BARE, NodeKind.WEFT, NodeKind.WEFT))
    first = Stock(lab, "n1", tmp_path, "-tag", "role=db")
    second = Stock(lab, "n2", tmp_path, f"-join={SEED}")
    start_daemons(lab)
    everybody = dict.fromkeys(("n1", "n2", "n3", "n4"), "alive")
    for agent in (first, second):
        eventually("an agent sees all", partial(agent.holds, everybody))
    for daemon in lab.daemons.values():
        eventually("a daemon sees all", partial(holds, daemon, everybody))
        assert member(daemon, "n1")["tags"] == {"role": "db"}
        # Agents are members and no peers: they carry nothing.
        assert len(view(daemon, "peers")) == 1
    tags = first.members()["n3"]["tags"]
    assert tags == member(lab.daemons["n4"], "n3")["tags"]
    assert tags.keys() >= {"weft_id", "weft_epoch"}
    leaver, victim = lab.daemons["n3"], lab.daemons.pop("n4")
    leaver.process.terminate()
    assert exit_status(leaver) == 0, leaver.read_output()
    for agent in (first, second):
        eventually("it has left", partial(agent.holds, {"n3": "left"}))
    assert first.trouble() == []
    victim.process.kill()
    for agent in (first, second):
        fates = {"n1": "alive", "n2": "alive", "n3": "left", "n4": "failed"}
        eventually("it has failed", partial(agent.holds, fates), within_s=DETECTION_S)


@needs_serf
def test_an_agent_joins_an_encrypted_pool_and_both_rotate_its_key(
    start_lab: StartLab, tmp_path: Path
) -> None:
    keyrings = [keyring(tmp_path / f"n{number}.keys", OLD_KEY) for number in (1, 2, 3)]
    topology = segment("rotation", NodeKind.WEFT, NodeKind.WEFT, NodeKind.BARE)
    nodes = [in_pool(node, keyring=str(path)) for node, path in zip(topology.nodes, keyrings, strict=True)]
    lab = start_lab(replace(topology, nodes=tuple(nodes)))
    agent = Stock(lab, "n3", tmp_path, f"-keyring-file={keyrings[2]}", f"-join={SEED}")
    n1, n2 = lab.daemons["n1"], lab.daemons["n2"]

    def all_are_here() -> bool:
        everybody = dict.fromkeys(("n1", "n2", "n3"), "alive")
        return all(seen == everybody for seen in (states(n1), states(n2), agent.states()))

    eventually("everybody sees everybody", all_are_here)
    assert view(n1, "status")["gossip"]["encrypted"]

    for step in (("install", NEW_KEY), ("use", NEW_KEY), ("remove", OLD_KEY)):
        assert n1.ask_json("keys", *step)["responses"] == 3
    assert n2.ask_json("keys", "list")["keys"] == {NEW_KEY: 3}
    for step in (("-install", NEWER_KEY), ("-use", NEWER_KEY), ("-remove", NEW_KEY)):
        agent.keys(*step)
    assert n2.ask_json("keys", "list")["keys"] == {NEWER_KEY: 3}
    assert all_are_here()

    for path in keyrings[:2]:
        assert json.loads(path.read_text()) == [NEWER_KEY]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    n2.process.terminate()
    assert exit_status(n2) == 0, n2.read_output()
    start_daemons(lab, "n2")
    n2 = lab.daemons["n2"]
    eventually("n2 is back with the newest key", all_are_here)


def keyring(path: Path, *keys: str) -> Path:
    path.write_text(json.dumps(keys))
    path.chmod(0o644)  # whatever the operator gave it, the daemon keeps it private
    return path


# ── Load and strangers ──────────────────────────────────────────────────────────────────────────────────


def test_a_flood_of_frames_makes_nobody_a_suspect(start_lab: StartLab) -> None:
    topology = segment("flood", *[NodeKind.WEFT] * 3)
    peers = {node.name: [str(vtep) for vtep in topology.vteps_seen_by(node)] for node in topology.nodes}
    nodes = (in_pool(node) for node in topology.nodes)
    static = (replace(each, settings={"network.peers": peers[each.name]}) for each in nodes)
    lab = start_lab(replace(topology, nodes=tuple(static)))
    for daemon in lab.daemons.values():
        eventually("all are here", partial(holds, daemon, dict.fromkeys(("n1", "n2", "n3"), "alive")))
    target = ip_address("10.9.0.2")
    assert checks.ping(lab["n1"], target, count=1).complete
    seen: set[str] = set()
    with open_in(lab["n1"], any_address(target), socket.SOCK_DGRAM) as flood:
        end = time.monotonic() + 5.0
        while time.monotonic() < end:
            for _ in range(2000):
                flood.sendto(bytes(64), (str(target), 9))
            for daemon in lab.daemons.values():
                seen |= set(states(daemon).values())
    carried = view(lab.daemons["n2"], "peers")
    assert sum(peer["rx_octets"] for peer in carried) > 1_000_000
    assert seen == {"alive"}
    assert {state for daemon in lab.daemons.values() for state in states(daemon).values()} == {"alive"}


def test_what_strangers_say_to_the_gossip_is_counted_and_changes_nothing(
    start_lab: StartLab, tmp_path: Path
) -> None:
    topology = segment("strangers", NodeKind.WEFT, NodeKind.WEFT, NodeKind.BARE)
    plain = in_pool(topology.node("n1"))
    secret = in_pool(topology.node("n1"), keyring=str(keyring(tmp_path / "keys", OLD_KEY)))
    secret = replace(topology.node("n2"), settings=secret.settings, flags=secret.flags)
    lab = start_lab(replace(topology, nodes=(plain, secret, topology.node("n3"))))
    n1, n2 = lab.daemons["n1"], lab.daemons["n2"]
    stranger = lab["n3"]

    garbage = random.Random(7)
    lengths = (0, 1, 5, 60, 1400, 60_000)

    def garbage_is_counted() -> bool:
        say(stranger, SEED, *(garbage.randbytes(garbage.choice(lengths)) for _ in range(100)))  # 1 MB
        return refusals(n1).get("MALFORMED", 0) >= 400

    eventually("garbage is counted", garbage_is_counted)

    for opening in (garbage.randbytes(100_000), b"GET / HTTP/1.1\r\n\r\n", b"\x06" + b"\xff" * 64):
        call(stranger, SEED, opening)
    before = refusals(n1)["MALFORMED"]
    call(stranger, SEED, encode_push_pull([], bytes(20 << 20), join=True))
    eventually("20 MiB of a push-pull are refused", lambda: refusals(n1)["MALFORMED"] > before)

    other = Envelope(Keyring([bytes(32)]), nonce=garbage.randbytes)
    say(stranger, "192.0.2.2", other.seal(encode(Ping(1, "n2"))), encode(Ping(2, "n2")))
    eventually("a wrong key and none are counted", lambda: refusals(n2).get("WRONG_KEY", 0) >= 2)
    assert any("none of our keys" in each["problem"] for each in view(n2, "status")["health"])
    assert "WRONG_KEY" in n2.ask("status")

    for daemon in (n1, n2):
        assert states(daemon) == {daemon.node.name: "alive"}


def test_streams_held_open_do_not_keep_members_out(start_lab: StartLab) -> None:
    lab = start_lab(pool_of("held", NodeKind.WEFT, NodeKind.WEFT, NodeKind.BARE))
    await_peers(lab, 1)
    held = [open_in(lab["n3"], any_address(ip_address(SEED)), socket.SOCK_STREAM) for _ in range(100)]
    try:
        for each in held:
            each.connect((SEED, GOSSIP_PORT))
        eventually("some are refused", lambda: refusals(lab.daemons["n1"]).get("STREAMS_FULL", 0) > 0)
        assert set(states(lab.daemons["n1"]).values()) == {"alive"}
        # Those opened from here are not crowded out by those that strangers opened.
        answers = lab.daemons["n1"].ask_json("join", "192.0.2.2")
        assert answers == [{"host": "192.0.2.2", "joined": True, "why": ""}]
    finally:
        for each in held:
            each.close()


def refusals(daemon: Daemon) -> dict[str, int]:
    told: dict[str, int] = view(daemon, "status")["gossip"]["refused"]
    return told


def say(place: Place, host: str, *datagrams: bytes) -> None:
    address: IpAddress = ip_address(host)
    with open_in(place, any_address(address), socket.SOCK_DGRAM) as said:
        for datagram in datagrams:
            said.sendto(datagram, (host, GOSSIP_PORT))


def call(place: Place, host: str, octets: bytes) -> None:
    """Says it over TCP, and listens until the other side has had enough."""
    with open_in(place, any_address(ip_address(host)), socket.SOCK_STREAM) as door:
        door.connect((host, GOSSIP_PORT))
        with suppress(OSError):  # it has had enough
            door.sendall(octets)
            door.shutdown(socket.SHUT_WR)
            while door.recv(65536):
                pass


# ── Coming and going ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM], ids=["udp", "tcp"])
def test_a_gossip_port_that_is_taken_ends_the_start(
    build_lab: BuildLab, tmp_path: Path, kind: socket.SocketKind
) -> None:
    lab = build_lab(segment("taken", NodeKind.BARE, NodeKind.BARE))
    flags = ("--name", "n1", "--underlay", SEED, "--vni", "42", "--device", "weft0", "--gossip-bind", SEED)
    with open_in(lab["n1"], ip_address(SEED), kind, GOSSIP_PORT) as taken, leaves_no_trace(lab, "n1"):
        if kind is socket.SOCK_STREAM:
            taken.listen()
        status, said = refused(lab["n1"], tmp_path, *flags)
    assert status == USAGE, said
    assert f"weft: error: gossip {SEED}:{GOSSIP_PORT}: Address already in use" in said
    assert "  why: " in said
    assert "  try: " in said
    assert not (tmp_path / "weft.sock").exists()
    assert not (tmp_path / "state" / "pool.json").exists(), "it never spoke, so it was no start"


def test_one_alone_leaves_and_is_gone(build_lab: BuildLab, tmp_path: Path) -> None:
    lab = build_lab(segment("alone", NodeKind.BARE, NodeKind.BARE))
    flags = ("--name", "n1", "--underlay", SEED, "--vni", "42", "--device", "weft0", "--join", "192.0.2.2")
    with leaves_no_trace(lab, "n1"):
        daemon = start(lab["n1"], tmp_path, *flags)
        await_ready(daemon)
        daemon.process.terminate()
        assert exit_status(daemon) == 0, daemon.read_output()
    assert json.loads((tmp_path / "state" / "pool.json").read_text())["epoch"] == 1


def test_who_left_by_command_keeps_its_static_peers_and_says_what_brings_it_back(
    start_lab: StartLab,
) -> None:
    topology = segment("leave", NodeKind.WEFT, NodeKind.WEFT)
    static = {"n1": ["192.0.2.2"], "n2": [SEED]}
    nodes = (replace(in_pool(n), settings={"network.peers": static[n.name]}) for n in topology.nodes)
    lab = start_lab(replace(topology, nodes=tuple(nodes)))
    n1, n2 = lab.daemons["n1"], lab.daemons["n2"]
    eventually("they are one pool", partial(holds, n1, {"n1": "alive", "n2": "alive"}))
    n2.ask("leave")
    eventually("n1 holds n2 left", partial(holds, n1, {"n1": "alive", "n2": "left"}))
    assert states(n2) == {"n2": "left"}
    assert "left the pool" in n2.ask("status")
    assert checks.ping(lab["n2"], ip_address("10.9.0.1"), count=3).complete
    with pytest.raises(LabError, match=r"(?s)exit 1: .*restart weft to be in the pool again"):
        n2.ask("join", SEED)
    stopped = lab.daemons.pop("n2")
    stopped.process.terminate()
    assert exit_status(stopped) == 0, stopped.read_output()
    start_daemons(lab, "n2")
    eventually("a restart brings it back", partial(holds, n1, {"n1": "alive", "n2": "alive"}))
    assert Client(str(n1.socket)).ask("status")["peers"]["alive"] == 1
