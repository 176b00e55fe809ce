"""`weft demo` as a person runs it: as root, in a user namespace, and interrupted in the middle."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.lab import ROOT, processes_with, skip_unless_possible

from bench.lab.abilities import why_no_kernel_vxlan
from bench.lab.commands import wait_until, weft_command, weft_environment
from bench.lab.demo import demo_topology
from bench.lab.namespaces import namespaces
from bench.lab.unprivileged import UNSHARE, why_no_user_namespace

pytestmark = ROOT

DEMO_TIMEOUT_S = 50


@contextmanager
def running(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """The demo under way, ended at the latest with the block."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=weft_environment()
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def report_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    said, complained = process.communicate(timeout=DEMO_TIMEOUT_S)
    assert process.returncode == 0, said + complained
    data: dict[str, Any] = json.loads(said)["data"]
    return data


def traces_of(process: subprocess.Popen[str]) -> list[str]:
    directories = [path.name for path in Path(tempfile.gettempdir()).glob(f"weft-{process.pid}-*")]
    return namespaces(f"weft-{process.pid}-") + directories


def test_weft_and_kernel_nodes_reach_each_other() -> None:
    has_kernel_vxlan = why_no_kernel_vxlan() is None
    skip_unless_possible(demo_topology(has_kernel_vxlan=has_kernel_vxlan))
    with running([*weft_command(), "demo", "--seconds", "1", "--json"]) as process:
        data = report_of(process)
        assert data["stage"] == "namespaces"
        assert data["all_reached"] is True
        assert ("kernel vxlan" in data["nodes"].values()) == has_kernel_vxlan
        assert all(line["gbit_s"] > 0 for line in data["tcp"])
        assert {entry["dst"] for entry in data["fdb"]} == {"192.0.2.2", "192.0.2.3", "192.0.2.4"}
        assert traces_of(process) == []


def test_in_a_user_namespace_it_is_for_real_too() -> None:
    skip_unless_possible(demo_topology(has_kernel_vxlan=False))
    if (why_not := why_no_user_namespace()) is not None:
        pytest.skip(why_not)
    inside = [*UNSHARE, *weft_command(), "demo", "--inside-user-namespace", "--seconds", "1", "--json"]
    with running(inside) as process:
        data = report_of(process)
        assert (data["stage"], data["all_reached"]) == ("user namespace", True)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_takes_everything_away(number: signal.Signals, status: int) -> None:
    skip_unless_possible(demo_topology(has_kernel_vxlan=False))
    with running([*weft_command(), "demo", "--verbose"]) as process:
        assert process.stderr is not None
        for line in process.stderr:  # until the first daemon is started
            if "weft run" in line or "main() run" in line:
                break
        assert len(traces_of(process)) == 6
        process.send_signal(number)
        process.communicate(timeout=DEMO_TIMEOUT_S)
        assert process.returncode == status
        assert traces_of(process) == []


def test_killed_it_is_swept_away_by_the_next_and_its_daemons_end_by_themselves() -> None:
    skip_unless_possible(demo_topology(has_kernel_vxlan=False))
    with running([*weft_command(), "demo", "--seconds", "30"]) as process:
        prefix = f"weft-{process.pid}-"
        deadline = time.monotonic() + DEMO_TIMEOUT_S
        wait_until(lambda: len(daemons_of(prefix)) == 3, "three daemons run", deadline=deadline)
        process.kill()
        process.wait()
        wait_until(lambda: not daemons_of(prefix), "the daemons end by themselves", deadline=deadline)
        with running([*weft_command(), "demo", "--seconds", "1", "--json"]) as following:
            assert report_of(following)["all_reached"] is True
        assert traces_of(process) == []


def daemons_of(prefix: str) -> list[int]:
    return processes_with(b"--state-dir", prefix)
