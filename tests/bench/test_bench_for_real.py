"""`weft bench` as a person runs it: a tiny one end to end, and one interrupted in the middle."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.lab import ROOT, processes_with

from bench.lab.abilities import why_no_kernel_vxlan, why_no_namespaces, why_no_tap
from bench.lab.commands import wait_until, weft_command, weft_environment
from bench.lab.namespaces import namespaces
from bench.plots import plots
from bench.record import as_data
from bench.report import render
from bench.results import PLOTS, SHEET, SUMMARY, read_results, sheet

pytestmark = ROOT

END_WITHIN_S = 50
WHATEVER_IS_STOLEN = ("--steal", "100")  # what is shown here is that it measures, not how well


@contextmanager
def running(arguments: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*weft_command(), "bench", *WHATEVER_IS_STOLEN, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=weft_environment(),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def skip_unless_possible() -> None:
    for why in (why_no_namespaces(), why_no_tap(), why_no_kernel_vxlan()):
        if why is not None:
            pytest.skip(why)


def traces_of(process: subprocess.Popen[str]) -> list[str]:
    directories = [path.name for path in Path(tempfile.gettempdir()).glob(f"weft-{process.pid}*")]
    return namespaces(f"weft-{process.pid}") + directories


def the_record(directory: Path) -> dict[str, Any]:
    (path,) = directory.iterdir()
    record = read_results(path)
    assert (path / SUMMARY).read_text() == render(record)
    assert (path / SHEET).read_text() == sheet(record)
    assert sorted(each.stem for each in (path / PLOTS).iterdir()) == sorted(name for name, _ in plots(record))
    data: dict[str, Any] = json.loads(json.dumps(as_data(record)))
    return data


def test_a_tiny_bench_measures_and_leaves_nothing_behind(tmp_path: Path) -> None:
    skip_unless_possible()
    forwarders = ["--forwarder", "bare", "--forwarder", "kernel", "--forwarder", "weft:python"]
    arguments = [
        "--scenario",
        "udp-64",
        "--pairs",
        "1",
        "--seconds",
        "1",
        "--out",
        str(tmp_path),
        *forwarders,
    ]
    with running([*arguments, "--json"]) as process:
        said, complained = process.communicate(timeout=END_WITHIN_S)
        assert process.returncode == 0, complained
        data = json.loads(said)["data"]
        assert data == the_record(tmp_path)
        assert not data["partial"]
        assert [entry["why"] for entry in data["entries"]] == [None, None, None]
        assert [run["forwarder"] for run in data["runs"]] == ["kernel", "bare", "weft:python", "kernel#again"]
        for run in data["runs"]:
            assert run["error"] is None
            assert run["measures"]["kpps"] > 0
            assert 0 <= run["measures"]["loss"] <= 1
            assert run["measures"]["cpu_s"] > 0
        (weft,) = (entry for entry in data["entries"] if entry["name"] == "weft:python")
        assert weft["facts"]["engine"] == "python"
        assert weft["facts"]["resident_mb"] > 0
        assert data["machine"]["wake_us"] is None or data["machine"]["wake_us"] > 0
        assert traces_of(process) == []


def test_tcp_and_latency_are_measured_too(tmp_path: Path) -> None:
    skip_unless_possible()
    if shutil.which("iperf3") is None:
        pytest.skip("not installed: iperf3")
    names = ["tcp-1", "tcp-both-ways", "rr"]
    scenarios = [word for name in names for word in ("--scenario", name)]
    arguments = ["--forwarder", "kernel", "--pairs", "1", "--seconds", "1", "--out", str(tmp_path)]
    with running([*arguments, *scenarios, "--underlay", "wire-like"]) as process:
        said, complained = process.communicate(timeout=END_WITHIN_S)
        assert process.returncode == 0, complained
        data = the_record(tmp_path)
        assert [run["scenario"] for run in data["runs"]] == [name for name in names for _ in range(2)]
        assert [run["error"] for run in data["runs"]] == [None] * 6
        assert all(run["measures"].get("gbit_s", 1) > 0 for run in data["runs"])
        assert 0 < data["runs"][-1]["measures"]["p50_us"] <= data["runs"][-1]["measures"]["p99_us"]
        assert data["stages"]["wire-like, 2 nodes"]["offloads"]["tx-udp_tnl-segmentation"] == "off"
        assert "TCP, 1 stream each way" in said


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_tears_down_and_keeps_what_it_has(
    number: signal.Signals, status: int, tmp_path: Path
) -> None:
    skip_unless_possible()
    arguments = ["--scenario", "udp-64", "--scenario", "tcp-1", "--forwarder", "bare", "--pairs", "1"]
    with running([*arguments, "--seconds", "30", "--out", str(tmp_path)]) as process:
        deadline = time.monotonic() + END_WITHIN_S
        prefix = f"weft-{process.pid}"
        wait_until(lambda: bool(processes_with(b"send", prefix)), "traffic flows", deadline=deadline)
        process.send_signal(number)
        said, _ = process.communicate(timeout=END_WITHIN_S)
        assert process.returncode == status
        assert "**Partial" in said
        assert the_record(tmp_path)["partial"] is True
        assert traces_of(process) == []
