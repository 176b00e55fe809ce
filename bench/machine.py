"""On what it was measured: kernel, processor, programs, revision, and the price of a wake-up.

A figure without these is no figure: the next machine has another.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from bench.lab.commands import SOURCE_ROOT, LabError, run_command, weft_command, weft_environment

# Ours
DEAR_WAKE_UP_US = 20.0  # above: the floors for machines where waking another core is dear
REVISION = "WEFT_BENCH_REVISION"  # where there is no repository: an image is told what it was built from
CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")
LAYOUT = "unpinned: the scheduler places senders, receivers and daemons"
VERSION_COMMANDS = {
    "iperf3": ["iperf3", "--version"],
    "fastd": ["fastd", "--version"],
    "ovs-vswitchd": ["ovs-vswitchd", "--version"],
    "iproute2": ["ip", "-V"],
}


@dataclass(frozen=True, slots=True)
class Machine:
    """The facts of one machine.

    Attributes:
        wake_us: A byte there and back between processes on the first two cores; None: there is one core.
        wake_same_core_us: The same between two processes on one core.
        versions: Of the programs that took part; those not installed are left out.
        revision: Of weft's source, with `+` where it was changed since; empty outside a repository.
        load: One minute's average before the first run: somebody else's work is a reason for doubt.
        congestion_control: What TCP paces or fills queues by, unless a scenario says another.
    """

    kernel: str
    cpu: str
    cores: int
    python: str
    revision: str
    native: str
    wake_us: float | None
    wake_same_core_us: float | None
    load: float
    layout: str = LAYOUT
    congestion_control: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def wakes_dearly(self) -> bool:
        return self.wake_us is not None and self.wake_us > DEAR_WAKE_UP_US


def describe_machine() -> Machine:
    """This machine, measured where it has to be; takes a second."""
    load = os.getloadavg()[0]
    cores = sorted(os.sched_getaffinity(0))
    return Machine(
        kernel=platform.release(),
        cpu=parse_cpu_model(Path("/proc/cpuinfo").read_text()),
        cores=len(cores),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        revision=_revision(),
        native=_native_engine(),
        wake_us=_wake_us(cores[0], cores[1]) if len(cores) > 1 else None,
        wake_same_core_us=_wake_us(cores[0], cores[0]),
        load=round(load, 2),
        congestion_control=CONGESTION_CONTROL.read_text().strip(),
        versions={name: version for name in VERSION_COMMANDS if (version := _version(name))},
    )


def parse_cpu_model(text: str) -> str:
    """The first core's name, from /proc/cpuinfo; arm64 kernels give none."""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def _revision() -> str:
    if (told := os.environ.get(REVISION)) is not None:
        return told
    if shutil.which("git") is None:
        return ""
    git = ["git", "-C", str(SOURCE_ROOT)]
    named = subprocess.run(
        [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False
    )
    if named.returncode != 0:
        return ""
    changed = subprocess.run(
        [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False
    )
    return named.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _native_engine() -> str:
    try:
        said = run_command([*weft_command(), "version", "--json"], why="is the native engine built").stdout
        native = json.loads(said)["data"]["native"]
    except (LabError, json.JSONDecodeError, KeyError) as error:
        return f"unknown: {error}"
    return "built" if native["built"] else f"not built: {native['reason']}"


def _wake_us(first: int, second: int) -> float:
    argv = [sys.executable, "-m", "bench.traffic.wake", str(first), str(second)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=weft_environment())
    return round(float(json.loads(done.stdout)["wake_us"]), 1)


def _version(program: str) -> str:
    if shutil.which(program) is None and program != "iproute2":
        return ""
    try:
        done = run_command(VERSION_COMMANDS[program], why="which version", check=False)
    except LabError:
        return ""
    return (done.stdout or done.stderr).splitlines()[0].strip() if (done.stdout or done.stderr) else ""
