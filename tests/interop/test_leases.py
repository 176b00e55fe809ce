"""Subnets are leased in real pools: one founder, and nodes that are told nothing but `--join`.

n1  founder ──┐
n2            ┼── hub       routed, in both formats; nobody has a static peer, n1 alone has `founders`
n3 n4 n5      ┘
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network
from pathlib import Path

import pytest
from support.lab import ROOT, BuildLab
from support.pools import SEED, heal, part
from support.serving import await_ready, eventually, exit_status, start, view
from support.traffic import mac_of, pinging, type_in

from bench.lab.namespaces import Daemon, Lab
from bench.lab.topology import NodeKind, segment
from control.operator.client import Client
from control.operator.failure import Failure

pytestmark = [*ROOT, pytest.mark.interop]

TRAFFIC_WITHIN_S = 3.0
START_S = 2.0  # an interpreter and its libraries, where others have to be served too
DETECTION_S = 45.0
HEALING_S = 60.0
TWO_MINUTES_S = 120.0
NAMES = tuple(f"n{number}" for number in range(1, 6))
NETWORK = "10.5.0.0/16"
FOUNDER = f"""
[[network]]
name = "pods"
mode = "routed"
encap = "{{encap}}"
device = "flannel0"
network = "{NETWORK}"
founders = {{founders}}
subnet_file = "{{home}}/subnet.env"
"""


class Routed:
    """Daemons of one routed network in a lab of bare nodes."""

    def __init__(self, lab: Lab, folder: Path, encap: str) -> None:
        self.lab = lab
        self.folder = folder
        self.encap = encap
        self.founders = ["n1"]
        self.daemons: dict[str, Daemon] = {}

    def home(self, name: str) -> Path:
        return self.folder / name

    def start(self, *names: str) -> None:
        """Starts these; returns when each has its subnet and carries."""
        for name in names:
            self.launch(name)
        for name in names:
            await_ready(self.daemons[name])

    def launch(self, name: str, *, at: str = "", seed: str = SEED) -> None:
        told = ["--name", name, "--underlay", at or f"192.0.2.{name[1:]}"]
        told += ["--gossip-bind", "0.0.0.0"] if name == "n1" else ["--join", seed]
        configuration = ""
        if name in self.founders:
            configuration = self.founders_file(name, self.founders)
        else:
            told += ["--mode", "routed", "--encap", self.encap, "--device", "flannel0", "--network", NETWORK]
        self.daemons[name] = start(self.lab[name], self.home(name), *told, configuration=configuration)

    def founders_file(self, name: str, founders: list[str]) -> str:
        return FOUNDER.format(encap=self.encap, founders=json.dumps(founders), home=self.home(name))

    def kill(self, name: str) -> None:
        daemon = self.daemons.pop(name)
        daemon.process.kill()
        exit_status(daemon)

    def stop(self) -> None:
        for daemon in self.daemons.values():
            daemon.process.terminate()
        assert {name: exit_status(daemon) for name, daemon in self.daemons.items()} == dict.fromkeys(
            self.daemons, 0
        )

    def leases(self, name: str = "n1") -> dict[str, str]:
        """Node → the subnet it holds, as that node knows."""
        return {
            each["node"]: each["subnet"]
            for each in view(self.daemons[name], "leases")
            if each["state"] == "held"
        }

    def base(self, name: str) -> IPv4Address:
        return IPv4Network(self.leases(name)[name]).network_address

    def seconds_until_all_ping(self, *names: str, since: float, within_s: float = 20.0) -> float:
        waiting = [(here, self.base(there)) for here in names for there in names if here != there]
        while waiting:
            pings = [self.lab[here].popen(["ping", "-c1", "-W0.25", str(there)]) for here, there in waiting]
            for ping in pings:
                ping.communicate(timeout=10)
            waiting = [pair for pair, ping in zip(waiting, pings, strict=True) if ping.returncode != 0]
            if waiting and time.monotonic() - since > within_s:
                pytest.fail(f"after {within_s} s: {waiting}\n{self.daemons['n1'].read_output()}")
        return time.monotonic() - since

    @contextmanager
    def all_the_while(self, *pairs: tuple[str, str]) -> Iterator[None]:
        """Each of these pairs pings, fifty times a second, and nothing is lost."""
        with ExitStack() as stack:
            for here, there in pairs:
                stack.enter_context(pinging(self.lab[here], self.base(there)))
            yield

    def says(self, name: str, words: str) -> bool:
        """Whether a daemon has that to say about its health; one that is not there yet says nothing."""
        with suppress(Failure):
            return any(words in each["problem"] for each in view(self.daemons[name], "status")["health"])
        return False

    def is_in_a_pool_of(self, name: str, count: int) -> bool:
        with suppress(Failure):
            return len(view(self.daemons[name], "members")) == count
        return False

    def knows(self, name: str, held: dict[str, str]) -> bool:
        return self.leases(name) == held

    def has_no_route(self, name: str, subnet: str) -> bool:
        """Neither in its tables nor in its kernel."""
        known = [each["subnet"] for each in view(self.daemons[name], "routes")]
        return subnet not in known and subnet not in self.lab[name].run(["ip", "route"]).stdout


@pytest.fixture(params=["vxlan", "flannel-udp"])
def routed(request: pytest.FixtureRequest, build_lab: BuildLab, tmp_path: Path) -> Iterator[Routed]:
    lab = build_lab(segment("leases", *[NodeKind.BARE] * 5))
    made = Routed(lab, tmp_path, request.param)
    yield made
    made.stop()


def test_five_by_one_join_lease_and_ping_at_once_and_outlive_one(
    routed: Routed, capsys: pytest.CaptureFixture[str]
) -> None:
    routed.start("n1", "n2", "n3", "n4")
    launched_at = time.monotonic()
    routed.start("n5")
    took = routed.seconds_until_all_ping(*NAMES, since=launched_at)
    subnets = [ip_network(subnet) for subnet in routed.leases().values()]
    assert len(set(subnets)) == 5
    assert all(isinstance(each, IPv4Network) and each.prefixlen == 24 for each in subnets)
    with capsys.disabled():
        print(f"\n[{routed.encap}: leased and all pairs ping {took:.2f} s after n5 was started")
    assert took <= TRAFFIC_WITHIN_S + START_S
    own = ip_network(routed.leases()["n1"])
    env = (routed.home("n1") / "subnet.env").read_text()
    assert f"FLANNEL_SUBNET={own.network_address + 1}/24" in env

    before = routed.leases("n5")["n5"]
    has_mac = routed.encap == "vxlan"
    mac = mac_of(routed.lab["n5"], "flannel0") if has_mac else ""
    with routed.all_the_while(("n1", "n2"), ("n3", "n4"), ("n4", "n1")):
        routed.kill("n5")
        killed_at = time.monotonic()
        for name in NAMES[:4]:
            gone = partial(routed.has_no_route, name, before)
            eventually(f"{name} has no route to n5", gone, within_s=DETECTION_S)
        gone_after = time.monotonic() - killed_at
        routed.launch("n5")
        await_ready(routed.daemons["n5"])
        took = routed.seconds_until_all_ping(*NAMES, since=time.monotonic())
    with capsys.disabled():
        print(f" kill -9: gone after {gone_after:.2f} s")
        print(f" restart: all pairs ping {took:.2f} s after it was ready]")
    assert took <= TRAFFIC_WITHIN_S
    assert routed.leases("n5")["n5"] == before
    assert not has_mac or mac_of(routed.lab["n5"], "flannel0") == mac


def test_a_node_at_another_address_keeps_its_subnet_and_is_reached_there(
    routed: Routed, capsys: pytest.CaptureFixture[str]
) -> None:
    routed.start("n1", "n2", "n3")
    routed.seconds_until_all_ping("n1", "n2", "n3", since=time.monotonic())
    held = routed.leases("n3")["n3"]
    routed.kill("n3")
    type_in(routed.lab["n3"], "ip addr del 192.0.2.3/24 dev eth0", "ip addr add 192.0.2.33/24 dev eth0")
    routed.launch("n3", at="192.0.2.33")
    await_ready(routed.daemons["n3"])
    took = routed.seconds_until_all_ping("n1", "n2", "n3", since=time.monotonic())
    with capsys.disabled():
        print(f"\n[{routed.encap}: at another address all pairs ping {took:.2f} s after it was ready]")
    assert took <= TRAFFIC_WITHIN_S
    assert routed.leases("n3")["n3"] == held
    for name in ("n1", "n2"):
        told = {each["subnet"]: each["vtep"] for each in view(routed.daemons[name], "routes")}
        assert told[held].startswith("192.0.2.33")


def test_a_founder_that_lost_its_disk_grants_nothing_until_it_is_adopted(routed: Routed) -> None:
    routed.start("n1", "n2", "n3")
    eventually("all three are known to hold one", lambda: len(routed.leases()) == 3)
    held = routed.leases()
    routed.kill("n1")
    shutil.rmtree(routed.home("n1") / "state")
    routed.launch("n1")
    eventually("it says what it lost", lambda: routed.says("n1", "grants no leases"), within_s=DETECTION_S)
    routed.launch("n4")
    eventually("n4 is in the pool", lambda: routed.is_in_a_pool_of("n4", 4))
    assert "n4" not in routed.leases("n2")
    assert {name: subnet for name, subnet in routed.leases("n2").items() if name != "n1"} == {
        name: subnet for name, subnet in held.items() if name != "n1"
    }
    asked = Client(str(routed.daemons["n1"].socket))

    def adopted() -> bool:
        with suppress(Failure):  # somebody has not heard it yet
            asked.tell("leases/adopt", {"without": []}, timeout=30.0)
            return True
        return False

    eventually("it is adopted", adopted)
    for name in ("n1", "n4"):
        await_ready(routed.daemons[name])
    eventually("all four are known to hold one", lambda: len(set(routed.leases().values())) == 4)
    now = routed.leases()
    assert {name: now[name] for name in ("n2", "n3")} == {name: held[name] for name in ("n2", "n3")}
    routed.seconds_until_all_ping("n1", "n2", "n3", "n4", since=time.monotonic())


def test_only_the_subnet_of_one_that_is_gone_is_taken_back(routed: Routed) -> None:
    routed.start("n1", "n2")
    founder = Client(str(routed.daemons["n1"].socket))
    held = routed.leases("n2")["n2"]
    eventually("n1 has heard of it", lambda: routed.leases().get("n2") == held)
    with pytest.raises(Failure, match="n2 is alive"):
        founder.tell("leases/release", {"subnet": held}, timeout=30.0)
    routed.kill("n2")

    def released() -> bool:
        with suppress(Failure):
            founder.tell("leases/release", {"subnet": held}, timeout=30.0)
            return True
        return False

    eventually("its holder is dead, and it is released", released, within_s=DETECTION_S)
    assert [each["state"] for each in view(routed.daemons["n1"], "leases") if each["subnet"] == held] != []


def test_nodes_whose_founders_differ_do_not_mix(routed: Routed) -> None:
    routed.start("n1", "n2")
    odd = routed.founders_file("n3", ["n3", "n1"])
    told = ["--name", "n3", "--underlay", "192.0.2.3", "--join", SEED]
    routed.daemons["n3"] = start(routed.lab["n3"], routed.home("n3"), *told, configuration=odd)

    for name, other in (("n1", "n3"), ("n3", "n1")):
        words = f"{other} is of another pool"
        eventually(f"{name}: {words}", partial(routed.says, name, words))
    subnets = {each["subnet"] for each in view(routed.daemons["n1"], "routes")}
    assert not any(ip_address(subnet.split("/")[0]) in ip_network("10.5.128.0/17") for subnet in subnets)


@pytest.mark.timeout(120)
def test_a_copy_of_a_founders_disk_is_named_grants_nothing_and_harms_nobody_else(routed: Routed) -> None:
    routed.start("n1", "n2", "n3")
    routed.seconds_until_all_ping("n1", "n2", "n3", since=time.monotonic())
    held = routed.leases()
    routed.home("n4").mkdir()
    shutil.copytree(routed.home("n1") / "state", routed.home("n4") / "state")
    with routed.all_the_while(("n2", "n3"), ("n3", "n2")):
        told = ["--name", "n1", "--underlay", "192.0.2.4", "--join", "192.0.2.2"]
        copy = routed.founders_file("n4", ["n1"])
        routed.daemons["n4"] = start(routed.lab["n4"], routed.home("n4"), *told, configuration=copy)
        eventually("the copy grants nothing", lambda: routed.says("n4", "this founder grants no leases"))
        # It hears of the copy when it next compares members with somebody: every half minute.
        named = partial(routed.says, "n1", "name conflict: n1 is used at")
        eventually("the first names it", named, within_s=DETECTION_S)
        routed.launch("n5", seed="192.0.2.2")
        eventually("n5 asks in vain", lambda: routed.says("n5", "no founder here to lease a subnet of"))
    for name in ("n2", "n3"):
        assert routed.leases(name)[name] == held[name]


def test_a_subnet_file_that_cannot_be_written_is_named_until_it_is(routed: Routed) -> None:
    file = routed.home("n1") / "subnet.env"
    file.mkdir(parents=True)  # a directory in its place
    routed.start("n1", "n2")
    eventually("it is named", partial(routed.says, "n1", f"not on disk: {file}"))
    routed.seconds_until_all_ping("n1", "n2", since=time.monotonic())
    file.rmdir()
    eventually("it is written", file.is_file)
    eventually("it is no longer named", lambda: not routed.says("n1", "not on disk"))


@pytest.mark.long_sim  # three minutes: pytest -m long_sim tests/interop/test_leases.py
@pytest.mark.timeout(400)
def test_halves_that_lease_apart_for_two_minutes_are_one_and_share_no_subnet(routed: Routed) -> None:
    routed.founders = ["n1", "n3"]
    routed.start("n1", "n2", "n3", "n4")
    over_at = time.monotonic() + TWO_MINUTES_S
    part(routed.lab, "n3", "n4", "n5")
    # One that is new, and one that comes back as a stranger: each side has a founder to ask.
    routed.launch("n5", seed="192.0.2.3")
    await_ready(routed.daemons["n5"])
    former = routed.leases("n2")["n2"]
    routed.kill("n2")
    shutil.rmtree(routed.home("n2") / "state")
    routed.launch("n2")
    await_ready(routed.daemons["n2"])
    eventually("two minutes are over", lambda: time.monotonic() > over_at, within_s=2 * TWO_MINUTES_S)
    apart = {name: routed.leases(name)[name] for name in NAMES}
    heal(routed.lab, "n3", "n4", "n5")
    for name in NAMES:
        eventually(f"{name} knows all", partial(routed.knows, name, apart), within_s=HEALING_S)
    assert len({*apart.values(), former}) == 6
    assert IPv4Network(apart["n5"]).subnet_of(IPv4Network("10.5.128.0/17"))
    routed.seconds_until_all_ping(*NAMES, since=time.monotonic())
    assert not any(routed.says(name, "both have the subnet") for name in NAMES)
