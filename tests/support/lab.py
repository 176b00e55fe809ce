"""Labs for tests: built on demand, torn down whatever happens, and looked after for leaks.

Use as a fixture (`from support.lab import build_lab`, in a conftest) beside `pytestmark = ROOT`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
from support.netns import kernel_state

from bench.lab.abilities import why_no_kernel_vxlan, why_no_namespaces, why_no_tap
from bench.lab.commands import wait_until
from bench.lab.namespaces import Lab, Place, namespaces
from bench.lab.topology import UNDERLAY_DEVICE, NodeKind, Topology

LAB_TIMEOUT_S = 60
NO_CARRIER = "NO-CARRIER"
ROOT = [pytest.mark.root, pytest.mark.timeout(LAB_TIMEOUT_S)]


class BuildLab(Protocol):
    """Builds a lab that lives until the end of the test."""

    def __call__(self, topology: Topology) -> Lab: ...


@pytest.fixture
def build_lab() -> Iterator[BuildLab]:
    """Labs for one test; skips it, with the reason, where the machine cannot hold them."""
    with contextlib.ExitStack() as labs:
        built: list[Lab] = []

        def build(topology: Topology) -> Lab:
            skip_unless_possible(topology)
            built.append(labs.enter_context(Lab(topology)))
            return built[-1]

        yield build
        labs.close()
        left = [leak for lab in built for leak in leaks(lab)]
        if left:
            pytest.fail("\n".join(left))


def skip_unless_possible(topology: Topology) -> None:
    """Skips the test where this machine has no namespaces, TAP devices or kernel VXLAN for the topology."""
    obstacles = [why_no_namespaces()]
    if topology.of_kind(NodeKind.WEFT):
        obstacles.append(why_no_tap())
    if topology.of_kind(NodeKind.KERNEL_VXLAN) and obstacles == [None]:
        obstacles.append(why_no_kernel_vxlan())
    for why in obstacles:
        if why is not None:
            pytest.skip(why)


def leaks(lab: Lab) -> list[str]:
    """What a lab that was torn down has left behind: namespaces, processes, files."""
    # Labs make nothing outside their namespaces, so no device, route, rule or filter can outlive them.
    left = [f"namespace {name}" for name in namespaces(f"{lab.prefix}-")]
    left += [f"directory {path}" for path in Path(tempfile.gettempdir()).glob(f"{lab.prefix}-*")]
    left += [f"process {pid}: {command}" for pid, command in _processes_that_name(lab.prefix)]
    return left


def _processes_that_name(prefix: str) -> Iterator[tuple[int, str]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if f"{prefix}-" in command:
                    yield int(entry.name), command


def processes_with(word: bytes, prefix: str) -> list[int]:
    """The processes in the namespaces of that prefix that have the word on their command line."""
    found = []
    for name in namespaces(prefix):
        told = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
        for pid in map(int, told.stdout.split()):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                if word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    found.append(pid)
    return found


def settled_state(place: Place) -> frozenset[str]:
    """Its kernel state once it stands still: a cable that was just plugged in takes a moment to come up."""
    seen = [kernel_state(place)]

    def stands_still() -> bool:
        seen.append(kernel_state(place))
        has_carrier = not any(NO_CARRIER in line and UNDERLAY_DEVICE in line for line in seen[-1])
        return has_carrier and seen[-1] == seen[-2]

    deadline = time.monotonic() + LAB_TIMEOUT_S / 4
    wait_until(stands_still, f"{place.name} stands still", deadline=deadline)
    return seen[-1]


@contextlib.contextmanager
def leaves_no_trace(lab: Lab, *names: str) -> Iterator[None]:
    """Checks that the block leaves the kernel state of these nodes as it found it.

    For what happens inside a lab, a daemon started and stopped: the lab itself takes its namespaces along.
    """
    before = {name: settled_state(lab[name]) for name in names}
    yield
    after = {name: kernel_state(lab[name]) for name in names}
    traces = [f"{name}: left behind: {line}" for name in names for line in after[name] - before[name]]
    traces += [f"{name}: taken away: {line}" for name in names for line in before[name] - after[name]]
    if traces:
        pytest.fail("\n".join(sorted(traces)))
