"""A real daemon comes up or says why not, ends as it is told to, and either way leaves nothing behind.

n1  where the daemon is ──── n2  somebody on the other end of the underlay
"""

from __future__ import annotations

import asyncio
import errno
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest
from support.lab import ROOT, BuildLab, leaves_no_trace
from support.serving import PATIENCE_S, await_ready, eventually, exit_status, refused, serve, start, view
from support.traffic import mac_of, open_in, type_in

from bench.lab import checks
from bench.lab.commands import run_command, weft_environment
from bench.lab.namespaces import Daemon, Lab, Place
from bench.lab.topology import NodeKind, segment
from control import daemon as daemon_module
from control.network import UnderlaySurvey
from control.operator.config import load
from overlay.errors import DeviceError

pytestmark = ROOT

UNDERLAY = ip_address("192.0.2.1")
FLAGS = (
    *("--name", "n1", "--underlay", str(UNDERLAY), "--vni", "42", "--device", "weft0"),
    *("--address", "10.9.0.1/24", "--address", "fd09::1/64", "--peer", "192.0.2.2"),
)
USAGE, PERMISSION, INTERRUPTED = 2, 4, 130
THREE_LINES = re.compile(r"^weft: error: .+\n  why: .+\n  try: .+\n\Z", re.MULTILINE)


@pytest.fixture
def lab(build_lab: BuildLab) -> Lab:
    return build_lab(segment("daemon", NodeKind.BARE, NodeKind.BARE))


@pytest.fixture
def n1(lab: Lab) -> Place:
    return lab["n1"]


@contextmanager
def nothing_left(lab: Lab, home: Path, *, stale_socket: bool = False) -> Iterator[None]:
    """Devices, addresses, routes, rules, filters, sockets, processes and files are afterwards as before."""
    n1 = lab["n1"]
    before = sockets(n1)
    with leaves_no_trace(lab, "n1"):
        yield
    assert sockets(n1) == before
    assert run_command(["ip", "netns", "pids", n1.namespace], why="who is left").stdout.split() == []
    assert (home / "weft.sock").exists() is stale_socket


def sockets(place: Place) -> set[str]:
    """UDP, TCP and raw sockets, bound or listening, without their queues."""
    told = place.run(["ss", "-Huawnt"]).stdout.splitlines()
    return {" ".join(line.split()[:2] + line.split()[4:6]) for line in told}


# ── It can be ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("underlay", ["2001:db8::1", "eth0"])
def test_on_a_host_without_ipv4_a_seed_is_all_a_pool_needs(
    build_lab: BuildLab, tmp_path: Path, underlay: str
) -> None:
    lab = build_lab(segment("six", NodeKind.BARE, NodeKind.BARE, underlay_version=6))
    first = ("--name", "n1", "--underlay", underlay, "--vni", "42", "--join", "2001:db8::2")
    second = ("--name", "n2", "--underlay", "2001:db8::2", "--vni", "42", "--join", "2001:db8::1")
    with serve(lab["n1"], tmp_path / "n1", *first) as n1, serve(lab["n2"], tmp_path / "n2", *second) as n2:
        eventually("n1 has n2", lambda: view(n1, "status")["peers"]["alive"] == 1)
        eventually("n2 has n1", lambda: view(n2, "status")["peers"]["alive"] == 1)
        assert view(n1, "status")["gossip"]["address"] == "[2001:db8::1]:7946"


# ── It cannot be ────────────────────────────────────────────────────────────────────────────────────────


def hidden_tun() -> tuple[str, ...]:
    """Runs a command where there is no /dev/net/tun."""
    return ("unshare", "--mount", "sh", "-ec", 'mount -t tmpfs none /dev/net; exec "$@"', "sh")


@pytest.mark.parametrize(
    ("prefix", "status", "names"),
    [
        pytest.param(hidden_tun(), USAGE, ("/dev/net/tun", "modprobe tun"), id="no-tun"),
        pytest.param(
            ("setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"),
            PERMISSION,
            ("/dev/net/tun", "CAP_NET_ADMIN", "sudo"),
            id="no-cap-net-admin",
        ),
    ],
)
def test_a_host_that_grants_no_tap_is_named(
    lab: Lab, tmp_path: Path, prefix: tuple[str, ...], status: int, names: tuple[str, ...]
) -> None:
    with nothing_left(lab, tmp_path):
        found, said = refused(lab["n1"], tmp_path, *FLAGS, prefix=prefix)
    assert found == status, said
    assert THREE_LINES.search(said), said
    assert all(name in said for name in names), said


@pytest.mark.parametrize(
    ("obstacle", "names"),
    [
        pytest.param(
            "ip link add other type vxlan id 9 dstport 4789 local 192.0.2.1",
            ("udp 192.0.2.1:4789", "kernel vxlan device", "ip -d link show type vxlan"),
            id="port-of-a-kernel-vxlan",
        ),
        pytest.param(
            "ip link add weft0 type veth peer name other",
            ("weft0: ", "a device that is no TAP", "ip -d link show weft0"),
            id="name-of-a-veth",
        ),
    ],
)
def test_what_is_taken_is_named(lab: Lab, tmp_path: Path, obstacle: str, names: tuple[str, ...]) -> None:
    type_in(lab["n1"], obstacle, "ip link set other up")
    with nothing_left(lab, tmp_path):
        status, said = refused(lab["n1"], tmp_path, *FLAGS)
    assert status == USAGE, said
    assert THREE_LINES.search(said), said
    assert all(name in said for name in names), said


def test_a_port_that_a_socket_has_is_named(lab: Lab, tmp_path: Path) -> None:
    with open_in(lab["n1"], UNDERLAY, socket.SOCK_DGRAM, 4789), nothing_left(lab, tmp_path):
        status, said = refused(lab["n1"], tmp_path, *FLAGS)
    assert status == USAGE, said
    assert THREE_LINES.search(said), said
    assert "udp 192.0.2.1:4789: Address already in use" in said


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        pytest.param(("--underlay", "192.0.2.99"), ("192.0.2.99", "which has 192.0.2.1"), id="address"),
        pytest.param(("--underlay", "eth7"), ("eth7", "No such device"), id="device"),
    ],
)
def test_an_underlay_that_is_not_there_is_named(
    lab: Lab, tmp_path: Path, flags: tuple[str, ...], names: tuple[str, ...]
) -> None:
    rest = tuple(flag for flag in FLAGS if flag not in ("--underlay", str(UNDERLAY)))
    with nothing_left(lab, tmp_path):
        status, said = refused(lab["n1"], tmp_path, *rest, *flags)
    assert status == USAGE, said
    assert THREE_LINES.search(said), said
    assert all(name in said for name in names), said


def test_a_second_daemon_leaves_the_first_alone(lab: Lab, n1: Place, tmp_path: Path) -> None:
    with serve(n1, tmp_path, *FLAGS) as first, leaves_no_trace(lab, "n1"):
        other = ("--name", "n1", "--underlay", str(UNDERLAY), "--vni", "43", "--port", "4790")
        same_socket = refused(n1, tmp_path, *other, "--device", "weft1")
        same_device = refused(n1, tmp_path / "other", *other, "--device", "weft0")
        for status, said in (same_socket, same_device):
            assert status == USAGE, said
            assert THREE_LINES.search(said), said
        assert "another weft answers on it" in same_socket[1]
        assert "another process holds this TAP device" in same_device[1]
        assert view(first, "status")["node"] == "n1"


def test_a_file_in_the_place_of_the_socket_is_not_removed(lab: Lab, n1: Place, tmp_path: Path) -> None:
    (tmp_path / "weft.sock").write_text("precious")
    with nothing_left(lab, tmp_path, stale_socket=True):
        status, said = refused(n1, tmp_path, *FLAGS)
    assert status == USAGE, said
    assert THREE_LINES.search(said), said
    assert (tmp_path / "weft.sock").read_text() == "precious"


WRONG = """\
[node]
underlya = ["192.0.2.1"]
log = "loud"

[[network]]
vni = 16777216
port = 0
device = "a-name-too-long-for-linux"
address = ["10.9.0.1/33"]
peers = ["192.0.2.256"]
"""


def test_every_mistake_of_a_configuration_is_named_at_once(lab: Lab, n1: Place, tmp_path: Path) -> None:
    with nothing_left(lab, tmp_path):
        status, said = refused(n1, tmp_path, configuration=WRONG)
    assert status == USAGE, said
    wrong = {"underlya": 2, "log": 3, "vni": 6, "port": 7, "device": 8, "address": 9, "peers": 10}
    for key, line in wrong.items():
        assert re.search(rf"line {line}: \S*{key}", said), f"{key} in line {line} is not named:\n{said}"
    assert "did you mean underlay?" in said
    assert said.splitlines()[-1].startswith("  try: ")


# ── It comes up ─────────────────────────────────────────────────────────────────────────────────────────

# A `sitecustomize` with which whoever imports the local API's library waits until a file is there.
HELD_BACK = """
import sys, time
from pathlib import Path

class Gate:
    def find_spec(name, path=None, target=None):
        while name == "aiohttp" and not Path({gate!r}).exists():
            time.sleep(0.01)

sys.meta_path.insert(0, Gate)
"""


def test_frames_cross_while_the_local_api_is_being_imported(build_lab: BuildLab, tmp_path: Path) -> None:
    n1 = build_lab(segment("daemon", NodeKind.BARE, NodeKind.KERNEL_VXLAN))["n1"]
    gate = tmp_path / "open"
    (tmp_path / "sitecustomize.py").write_text(HELD_BACK.format(gate=str(gate)))
    path = f"PYTHONPATH={tmp_path}:{weft_environment()['PYTHONPATH']}"
    daemon = start(n1, tmp_path / "n1", *FLAGS, prefix=("env", path))

    def crosses() -> bool:
        assert daemon.process.poll() is None, daemon.read_output()
        return checks.ping(n1, ip_address("10.9.0.2"), count=1).complete

    eventually("a frame crosses", crosses)
    assert not daemon.socket.exists()
    gate.touch()
    await_ready(daemon)
    daemon.process.terminate()
    assert exit_status(daemon) == 0, daemon.read_output()


# Another, with which each collection of garbage makes a file.
TOLD_OF = """
import gc
from pathlib import Path

gc.callbacks.append(lambda *_: Path({sign!r}).touch())
"""


def test_garbage_is_collected_again_once_all_is_open(n1: Place, tmp_path: Path) -> None:
    sign = tmp_path / "collected"
    (tmp_path / "sitecustomize.py").write_text(TOLD_OF.format(sign=str(sign)))
    path = f"PYTHONPATH={tmp_path}:{weft_environment()['PYTHONPATH']}"
    daemon = start(n1, tmp_path / "n1", *FLAGS, prefix=("env", path))
    await_ready(daemon)
    sign.unlink(missing_ok=True)  # before the daemon puts it off there are some
    eventually("garbage is collected", lambda: bool(view(daemon, "status")) and sign.exists())
    daemon.process.terminate()
    assert exit_status(daemon) == 0, daemon.read_output()


# ── It ends ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, INTERRUPTED)], ids=["SIGTERM", "SIGINT"]
)
def test_a_signal_ends_it_and_nothing_is_left(
    lab: Lab, n1: Place, tmp_path: Path, number: int, status: int
) -> None:
    with nothing_left(lab, tmp_path):
        daemon = start(n1, tmp_path, *FLAGS)
        await_ready(daemon)
        daemon.process.send_signal(number)
        assert exit_status(daemon) == status, daemon.read_output()


def test_whoever_still_asks_does_not_keep_it(lab: Lab, n1: Place, tmp_path: Path) -> None:
    with nothing_left(lab, tmp_path), ExitStack() as doors:
        daemon = start(n1, tmp_path, *FLAGS)
        await_ready(daemon)
        for said in (b"", b"GET /v1/sta", b"GET /v1/watch HTTP/1.1\r\nHost: weft\r\n\r\n"):
            door = doors.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            door.connect(str(daemon.socket))
            door.sendall(said)
        view(daemon, "status")  # by then it has seen the others
        daemon.process.terminate()
        assert exit_status(daemon) == 0, daemon.read_output()


def test_a_signal_that_comes_while_it_starts_is_heeded(lab: Lab, n1: Place, tmp_path: Path) -> None:
    with nothing_left(lab, tmp_path):
        daemon = start(n1, tmp_path, *FLAGS)
        eventually("the device is there", lambda: "weft0" in n1.run(["ip", "-br", "link"]).stdout)
        daemon.process.terminate()
        assert exit_status(daemon) == 0, daemon.read_output()


def test_after_kill_9_the_next_one_starts_and_leaves_nothing(lab: Lab, n1: Place, tmp_path: Path) -> None:
    with nothing_left(lab, tmp_path):
        with nothing_left(lab, tmp_path, stale_socket=True):
            killed = start(n1, tmp_path, *FLAGS)
            await_ready(killed)
            killed.process.kill()
            assert exit_status(killed) == -signal.SIGKILL
        with serve(n1, tmp_path, *FLAGS) as daemon:
            assert view(daemon, "status")["networks"][0]["device"] == "weft0"


# ── It comes back ───────────────────────────────────────────────────────────────────────────────────────


def test_a_node_that_comes_back_has_the_mac_it_had(n1: Place, tmp_path: Path) -> None:
    macs = set()
    for _ in range(2):
        with serve(n1, tmp_path, *FLAGS):
            macs.add(mac_of(n1, "weft0"))
    [mac] = macs
    with serve(n1, tmp_path, *FLAGS, "--vni", "43"):
        assert mac_of(n1, "weft0") != mac


def test_a_persistent_tap_keeps_its_mac_and_is_given_back_without_our_addresses(
    n1: Place, tmp_path: Path
) -> None:
    type_in(n1, "ip tuntap add weft0 mode tap", "ip address add 10.9.0.200/24 dev weft0")
    mac = mac_of(n1, "weft0")
    with serve(n1, tmp_path, *FLAGS):
        assert mac_of(n1, "weft0") == mac
        assert "10.9.0.1/24" in n1.run(["ip", "address", "show", "weft0"]).stdout
    left = n1.run(["ip", "-o", "address", "show", "weft0"]).stdout
    assert "10.9.0.200/24" in left
    assert "10.9.0.1/24" not in left
    assert "fd09::1" not in left


# ── It is told anew ─────────────────────────────────────────────────────────────────────────────────────

FILE = """\
[node]
name = "n1"
underlay = ["192.0.2.1"]

[[network]]
name = "lab"
vni = 42
device = "weft0"
mtu = {mtu}
peers = {peers}
"""


def peers_of(daemon: Daemon) -> set[str]:
    return {peer["name"] for peer in view(daemon, "peers")}


def test_sighup_takes_over_changed_peers_and_names_what_needs_a_restart(n1: Place, tmp_path: Path) -> None:
    file = tmp_path / "weft.toml"
    with serve(n1, tmp_path, configuration=FILE.format(mtu=1400, peers='["192.0.2.2"]')) as daemon:
        assert peers_of(daemon) == {"192.0.2.2"}
        file.write_text(FILE.format(mtu=1300, peers='["192.0.2.3", "192.0.2.4"]'))
        daemon.process.send_signal(signal.SIGHUP)
        eventually("the peers are the new ones", lambda: peers_of(daemon) == {"192.0.2.3", "192.0.2.4"})
        assert "needs a restart: network[0].mtu\n" in daemon.read_output()
        assert view(daemon, "status")["networks"][0]["mtu"] == 1400

        file.write_text(FILE.format(mtu=1300, peers='["nobody"]'))
        daemon.process.send_signal(signal.SIGHUP)
        eventually("it refuses", lambda: "configuration not reloaded: " in daemon.read_output())
        assert peers_of(daemon) == {"192.0.2.3", "192.0.2.4"}
        assert daemon.is_ready()


OTHER = """\

[[network]]
name = "{name}"
vni = {vni}
device = "weft{vni}"
"""


def test_sighup_takes_over_peers_beside_networks_that_come_and_go(n1: Place, tmp_path: Path) -> None:
    file = tmp_path / "weft.toml"
    first = FILE.format(mtu=1400, peers='["192.0.2.2"]') + OTHER.format(name="red", vni=7)
    with serve(n1, tmp_path, configuration=first) as daemon:
        second = FILE.format(mtu=1400, peers='["192.0.2.3"]') + OTHER.format(name="blue", vni=8)
        file.write_text(second)
        daemon.process.send_signal(signal.SIGHUP)
        eventually("the peers are the new ones", lambda: peers_of(daemon) == {"192.0.2.3"})
        assert "needs a restart: network blue (added), network red (removed)\n" in daemon.read_output()
        assert [network["name"] for network in view(daemon, "status")["networks"]] == ["lab", "red"]
        assert daemon.is_ready()


def test_systemd_hears_that_it_is_ready_is_reloading_and_ends(
    n1: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        daemon = start(n1, tmp_path, *FLAGS)
        assert systemd.recv(100) == b"READY=1"
        # Ready means that all of it is there, the API too.
        assert view(daemon, "status")["networks"][0]["device"] == "weft0"
        daemon.process.send_signal(signal.SIGHUP)
        assert systemd.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert systemd.recv(100) == b"READY=1"
        daemon.process.terminate()
        assert systemd.recv(100) == b"STOPPING=1"
        assert exit_status(daemon) == 0, daemon.read_output()


def test_what_of_a_net_conf_is_not_used_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Silent:
        def __init__(self, _: object) -> None: ...

        async def serve(self) -> int:
            return 0

    monkeypatch.setattr(daemon_module, "Daemon", Silent)
    conf, file = tmp_path / "net-conf.json", tmp_path / "weft.toml"
    conf.write_text('{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00::/48"}')
    file.write_text(f'[[network]]\nnet_conf = "{conf}"\nsubnet = "10.5.1.0/24"\n')
    assert daemon_module.run(load(file, {}, {})) == 0
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "EnableIPv6 beside IPv4: only the IPv4 network is used" in record.getMessage()


def test_a_list_that_changes_while_it_is_read_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[DeviceError | tuple[UnderlaySurvey, ...]] = [DeviceError("netlink", errno.EINTR), ()]

    def survey(_: object) -> tuple[UnderlaySurvey, ...]:
        answer = answers.pop(0)
        if isinstance(answer, DeviceError):
            raise answer
        return answer

    monkeypatch.setattr(daemon_module, "survey", survey)
    told = {"underlay": [str(UNDERLAY)], "vni": "42", "device": "weft0"}

    async def ask() -> tuple[UnderlaySurvey, ...]:
        return await daemon_module.Daemon(load(None, told, {}))._survey()

    assert asyncio.run(ask()) == ()
    assert answers == []
