"""What is compared: no overlay, the kernel's VXLAN, weft on every engine and rung, fastd, Open vSwitch.

A forwarder is named as on the command line:

    bare                         the underlay itself
    kernel[:noudpcsum]           ip link … type vxlan
    weft[:python|:native][:rung0|:rung1|:rung2|:tap_gso=off,udp_gro=on,…][:vteps=1000][:workers=2]
    fastd                        TAP mode, method null: what a user would take from Debian
    ovs                          Open vSwitch with its userspace datapath
    nodes                        docker-compose only: the nodes' own overlay, as they run it

One that cannot run here stays in the report, as a row that says why.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, ip_interface
from pathlib import Path
from typing import Any

from bench.lab.abilities import why_no_kernel_vxlan, why_no_tap
from bench.lab.commands import LabError, run_command, weft_command
from bench.lab.plan import WIRE_LIKE_FEATURES, configuration
from bench.lab.topology import UNDERLAY_DEVICE, Address, NodeKind, Setting, UnderlayKind
from bench.stage import LabStage, Overlay, Stage

# Ours
SWITCHES = ("tap_gso", "udp_gso", "udp_gro", "tunnel_gso", "rx_repair")
RUNGS: Mapping[str, Mapping[str, str]] = {
    "rung0": {"tap_gso": "off", "udp_gso": "off", "udp_gro": "off", "tunnel_gso": "off"},
    "rung1": {"tap_gso": "on", "udp_gso": "on", "udp_gro": "on", "tunnel_gso": "off"},
    "rung2": {"tap_gso": "on", "udp_gso": "on", "udp_gro": "on", "tunnel_gso": "on"},
}
VTEPS = re.compile(r"vteps=([1-9]\d{0,4})")
WORKERS = re.compile(r"workers=([1-9]\d?)")
FIRST_SILENT = IPv4Address("198.18.0.1")  # RFC 2544: for benchmarks; nobody there
WEFT_FDB_MAX = 32768  # room for the many MAC pairs; the others have no limit, or a larger one
NODES_DEVICE = "weft0"  # of docker-compose.yml, as the next
NODES_NETWORK = IPv4Address("10.9.0.0")
OVS_DATA = Path("/usr/share/openvswitch")  # or where OVS_PKGDATADIR says, as for its own programs
OVS_PROGRAMS = ("ovsdb-tool", "ovsdb-server", "ovs-vswitchd", "ovs-vsctl")


@dataclass(frozen=True, slots=True)
class Forwarder:
    """One row of the report.

    Attributes:
        name: As on the command line.
        title: As in the report.
        why_not: Why it cannot run here; None: as far as one can tell beforehand, it can.
    """

    name: str
    title: str
    build: Callable[[Stage, int], Overlay]
    why_not: Callable[[], str | None]


def parse_forwarder(text: str) -> Forwarder:
    """The forwarder of that name.

    Raises:
        ValueError: There is none; says which there are.
    """
    kind, *options = text.split(":")
    match kind, options:
        case "bare", []:
            return Forwarder(text, "no overlay", Bare, lambda: None)
        case "kernel", []:
            return Forwarder(text, "kernel VXLAN", KernelVxlan, why_no_kernel_vxlan)
        case "kernel", ["noudpcsum"]:
            title = "kernel VXLAN, no outer checksum"
            return Forwarder(text, title, lambda s, n: KernelVxlan(s, n, udpcsum=False), why_no_kernel_vxlan)
        case "weft", _:
            return _parse_weft(text, options)
        case "fastd", []:
            return Forwarder(text, "fastd, method null", Fastd, lambda: _why_not_installed("fastd"))
        case "ovs", []:
            title = "Open vSwitch, userspace datapath"
            return Forwarder(text, title, OpenVSwitch, lambda: _why_not_installed(*OVS_PROGRAMS))
        case "nodes", []:
            return Forwarder(text, "weft, the nodes themselves", Nodes, lambda: None)
        case _:
            raise ValueError(
                f"expected bare, kernel[:noudpcsum], weft[:engine][:rung], fastd, ovs, nodes, found {text!r}"
            )


def _parse_weft(text: str, options: list[str]) -> Forwarder:
    engine, settings, silent = "auto", dict[str, Setting](), 0
    words = ["weft"]
    for option in options:
        if option in ("python", "native"):
            engine = option
            words.append(option)
        elif (found := VTEPS.fullmatch(option)) is not None:
            silent = int(found[1])
            words.append(f"{silent} more VTEPs")
        elif (found := WORKERS.fullmatch(option)) is not None:
            settings["node.workers"] = int(found[1])
            words.append(f"{found[1]} workers")
        elif option in RUNGS:
            settings |= {f"offload.{switch}": position for switch, position in RUNGS[option].items()}
            words.append(option.replace("rung", "rung "))
        else:
            settings |= _parse_switches(option)
            words.append(option.replace(",", ", "))
    settings["node.engine"] = engine
    return Forwarder(
        text,
        ", ".join(words),
        lambda stage, number: Weft(stage, number, settings, silent=silent),
        _why_no_weft(engine),
    )


def _parse_switches(option: str) -> dict[str, Setting]:
    found: dict[str, Setting] = {}
    for part in option.split(","):
        switch, _, position = part.partition("=")
        if switch not in SWITCHES or position not in ("auto", "on", "off"):
            raise ValueError(
                f"expected an engine, rung0 to rung2, or {'|'.join(SWITCHES)}=auto|on|off, found {part!r}"
            )
        found[f"offload.{switch}"] = position
    return found


def _why_not_installed(*programs: str) -> str | None:
    missing = [program for program in programs if shutil.which(program) is None]
    return f"not installed: {', '.join(missing)}" if missing else why_no_tap()


def _why_no_weft(engine: str) -> Callable[[], str | None]:
    def why_not() -> str | None:
        if engine == "native":
            said = run_command(
                [*weft_command(), "version", "--json"], why="is the native engine built"
            ).stdout
            native = json.loads(said)["data"]["native"]
            if not native["built"]:
                return f"not built: {native['reason']}"
        return why_no_tap()

    return why_not


def status_facts(where: list[str]) -> Mapping[str, Any]:
    """Engine and underlays, with their rungs, of the daemon that is asked."""
    argv = [*weft_command(), "status", "--json", *where]
    status = json.loads(run_command(argv, why="which engine and rungs").stdout)["data"]
    return {key: status[key] for key in ("engine", "underlays") if key in status}


class Bare(Overlay):
    """The yardstick: nothing is added to the underlay."""

    most_nodes = 2

    @property
    def device(self) -> str:
        return UNDERLAY_DEVICE

    @property
    def mtu(self) -> int:
        return self.stage.mtu

    def address(self, index: int) -> Address:
        return self.stage.vtep(index)

    def start_node(self, index: int) -> None:
        pass

    def stop_node(self, index: int) -> None:
        pass


class KernelVxlan(Overlay):
    """The kernel's own VXLAN device, learning, with the other VTEPs as its flood list."""

    device_prefix = "vx"

    def __init__(self, stage: Stage, number: int, *, udpcsum: bool = True) -> None:
        super().__init__(stage, number)
        self._checksum = "udpcsum" if udpcsum else "noudpcsum"

    def start_node(self, index: int) -> None:
        options = ["id", str(self.vni), "dstport", str(self.port), "local", str(self.stage.vtep(index))]
        name = ["link", "add", self.device, "mtu", str(self.mtu), "type", "vxlan"]
        self._run(index, "ip", *name, *options, self._checksum)
        self._run(index, "ip", "address", "add", f"{self.address(index)}/24", "dev", self.device)
        for other in self.stage.others(index):
            entry = ["00:00:00:00:00:00", "dev", self.device, "dst", str(self.stage.vtep(other))]
            self._run(index, "bridge", "fdb", "append", *entry)
        self._run(index, "ip", "link", "set", self.device, "up")

    def stop_node(self, index: int) -> None:
        self._run(index, "ip", "link", "delete", self.device)


class Weft(Overlay):
    """`weft run` on a configuration file; what is not set there is at its default.

    Args:
        settings: Dotted keys of the file (`offload.udp_gso`).
        silent: So many VTEPs more than there are, which nobody reaches.
    """

    device_prefix = "weft"

    def __init__(
        self, stage: Stage, number: int, settings: Mapping[str, Setting], *, silent: int = 0
    ) -> None:
        super().__init__(stage, number)
        nobody = [str(FIRST_SILENT + far) for far in range(silent)]
        own: dict[str, Setting] = {"network.device": self.device, "network.fdb_max": WEFT_FDB_MAX}
        self._topology = replace(
            stage.topology,
            vni=self.vni,
            port=self.port,
            nodes=tuple(
                replace(
                    node,
                    kind=NodeKind.WEFT,
                    overlay_addresses=(ip_interface(f"{self.address(index)}/24"),),
                    settings={**own, "network.peers": self._real_peers(index) + nobody, **settings},
                )
                for index, node in enumerate(stage.topology.nodes)
            ),
        )

    def _real_peers(self, index: int) -> list[str]:
        return [str(self.stage.vtep(other)) for other in self.stage.others(index)]

    def start_node(self, index: int) -> None:
        home = self.home(index)
        (home / "weft.toml").write_text(configuration(self._topology, self._topology.nodes[index]))
        paths = ["--socket", str(home / "weft.sock"), "--state-dir", str(home / "state")]
        argv = [*weft_command(), "run", *paths, "--config", str(home / "weft.toml")]
        self._start_service(index, argv, "weft")

    def stop_node(self, index: int) -> None:
        self._stop_services(index)

    def await_reachable(self) -> None:
        """As for any; and every daemon has all open, which comes after its first frame."""
        super().await_reachable()
        for index in range(self.stage.size):
            self._await_file(index, "weft.sock")

    def facts(self) -> Mapping[str, Any]:
        """Its engine, and the rungs it chose with its reasons."""
        return status_facts(["--socket", str(self.home(0) / "weft.sock")])


class Nodes(Overlay):
    """What runs on the stage anyway: nodes somebody else has started, measured as they are."""

    @property
    def device(self) -> str:
        return NODES_DEVICE

    def address(self, index: int) -> Address:
        return NODES_NETWORK + index + 1

    def start_node(self, index: int) -> None:
        if isinstance(self.stage, LabStage):
            raise LabError("only under docker-compose are there nodes besides the bench's own")
        self._run(index, "ip", "link", "show", "dev", self.device)

    def stop_node(self, index: int) -> None:
        pass

    def facts(self) -> Mapping[str, Any]:
        """Engine and rungs of the first; its control socket lies where a daemon's does."""
        return status_facts([])


class Fastd(Overlay):
    """fastd in TAP mode with method null: it authenticates its peers, and encrypts nothing afterwards."""

    device_prefix = "fastd"

    def __init__(self, stage: Stage, number: int) -> None:
        super().__init__(stage, number)
        self._keys = [self._new_key(index) for index in range(stage.size)]

    def start_node(self, index: int) -> None:
        secret, _ = self._keys[index]
        home = self.home(index)
        (home / "fastd.conf").write_text(self._configuration(index, secret))
        self._start_service(index, ["fastd", "-c", str(home / "fastd.conf")], "fastd")

    def stop_node(self, index: int) -> None:
        self._stop_services(index)

    def _configuration(self, index: int, secret: str) -> str:
        up = f"ip address add {self.address(index)}/24 dev {self.device}; ip link set {self.device} up"
        lines = [
            "mode tap;",
            'method "null";',
            f'interface "{self.device}";',
            f"bind {self.stage.vtep(index)}:{self.port};",
            f"mtu {self.mtu};",
            "log level warn;",
            f'secret "{secret}";',
            f'on up "{up}";',
        ]
        for other in self.stage.others(index):
            remote = f"remote {self.stage.vtep(other)}:{self.port};"
            lines.append(f'peer "n{other + 1}" {{ key "{self._keys[other][1]}"; {remote} }}')
        return "\n".join([*lines, ""])

    def _new_key(self, index: int) -> tuple[str, str]:
        """A pair of its own for each node: secret, public."""
        argv = ["fastd", "--generate-key", "--machine-readable"]
        secret = run_command(argv, why="a key for fastd").stdout.strip()
        file = self.home(index) / "key.conf"
        file.write_text(f'secret "{secret}";\n')
        argv = ["fastd", "--show-key", "--machine-readable", "--config", str(file)]
        return secret, run_command(argv, why="its public half").stdout.strip()


class OpenVSwitch(Overlay):
    """Open vSwitch in userspace: the packets of a VXLAN port leave through a bridge that owns the underlay.

    That bridge takes its underlay device away from the host's stack, so it gets a veth pair of its own,
    with the features of the stage's.  Two nodes only.
    """

    device_prefix = "ovs"
    most_nodes = 2

    def start_node(self, index: int) -> None:
        if index > 1:
            return
        if not isinstance(self.stage, LabStage):
            raise LabError("measured in namespaces only: it needs a veth pair of its own between them")
        if index == 0:
            self._add_underlay(self.stage)
        home = self.home(index)
        database = str(home / "conf.db")
        schema = str(Path(os.environ.get("OVS_PKGDATADIR", OVS_DATA)) / "vswitch.ovsschema")
        run_command(["ovsdb-tool", "create", database, schema], why="a database for Open vSwitch")
        where = [f"--unixctl={home}/db.ctl", f"--remote=punix:{home}/db.sock"]
        self._start_service(index, ["ovsdb-server", database, *where], "ovsdb-server")
        self._await_file(index, "db.sock")
        switch = ["ovs-vswitchd", f"unix:{home}/db.sock", f"--unixctl={home}/switch.ctl"]
        self._start_service(index, switch, "ovs-vswitchd")
        self._configure(index)

    def stop_node(self, index: int) -> None:
        self._stop_services(index)
        (self.home(index) / "conf.db").unlink(missing_ok=True)
        if index == 0:
            self._run(index, "ip", "link", "delete", self._wire)

    @property
    def _wire(self) -> str:
        return f"{self.device}w"

    @property
    def _carrier(self) -> str:
        return f"{self.device}u"

    def _vtep(self, index: int) -> str:
        # RFC 5737: an underlay of its own, beside the stage's.
        return f"198.51.100.{index + 1}"

    def _add_underlay(self, stage: LabStage) -> None:
        far_end = ["peer", "name", self._wire, "mtu", str(self.stage.mtu)]
        far_end += ["netns", stage.place(1).namespace]
        mtu = ["mtu", str(self.stage.mtu)]
        self._run(0, "ip", "link", "add", self._wire, *mtu, "type", "veth", *far_end)
        features = WIRE_LIKE_FEATURES if stage.kind is UnderlayKind.WIRE_LIKE else ()
        for index in (0, 1):
            # QUIRK: its packet sockets send what the stack has not finished the checksum of.
            self._run(index, "ethtool", "-K", self._wire, *features, "tx", "off")
            self._run(index, "ip", "link", "set", self._wire, "up")

    def _configure(self, index: int) -> None:
        userspace = "datapath_type=netdev"
        tunnel = f"{self.device}t"
        options = [f"options:remote_ip={self._vtep(1 - index)}", f"options:key={self.vni}"]
        options.append(f"options:dst_port={self.port}")
        vsctl = ["ovs-vsctl", f"--db=unix:{self.home(index)}/db.sock", "--timeout=10"]
        vsctl += ["--", "add-br", self._carrier, "--", "set", "bridge", self._carrier, userspace]
        vsctl += ["--", "add-port", self._carrier, self._wire]
        vsctl += ["--", "add-br", self.device, "--", "set", "bridge", self.device, userspace]
        vsctl += ["--", "add-port", self.device, tunnel]
        vsctl += ["--", "set", "interface", tunnel, "type=vxlan", *options]
        self._run(index, *vsctl)
        for device, address in ((self._carrier, self._vtep(index)), (self.device, str(self.address(index)))):
            self._run(index, "ip", "address", "add", f"{address}/24", "dev", device)
            self._run(index, "ethtool", "-K", device, "tx", "off")
            self._run(index, "ip", "link", "set", device, "up")
        self._run(index, "ip", "link", "set", self.device, "mtu", str(self.mtu))
