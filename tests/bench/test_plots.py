"""The same record is the same picture, octet for octet; and a picture shows who was there."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from support.bench import VETH, a_record, runs_of
from support.source import ROOT

from bench.plots import colours_of, draw, middle_curve, plots, slug, why_no_plots
from bench.record import Record, Run
from bench.results import read_results

GOLDEN = ROOT / "tests" / "data" / "bench" / "record.json"

pytest.importorskip("matplotlib", reason="not installed: matplotlib (pip install 'weft[bench]')")


def record_with_curves() -> Record:
    record = a_record()
    record.runs = runs_of("tcp-1", "kernel", gbit_s=[10.0, 11.0])
    for name, slower in (("bare", 1.0), ("weft:python", 3.0)):
        cdf = [[0.0, 40 * slower], [50.0, 65 * slower], [100.0, 500 * slower]]
        record.runs.append(Run(VETH, "rr", name, 0, {"p50_us": 65 * slower}, curves={"cdf_us": cdf}))
        knee = [[50.0, 0.0], [60.0, 0.002], [90.0, 0.4]]
        record.runs.append(Run(VETH, "rate-64", name, 0, {"kpps": 50.0}, curves={"loss_at_kpps": knee}))
    return record


def test_each_scenario_has_its_bars_and_each_curve_its_plot(tmp_path: Path) -> None:
    written = draw(record_with_curves(), tmp_path / "plots")
    assert sorted(path.name for path in written) == [
        "bars-veth-rate-64.svg",
        "bars-veth-rr.svg",
        "bars-veth-tcp-1.svg",
        "cdf-veth-rr.svg",
        "knee-veth-rate-64.svg",
    ]


def test_every_plot_is_svg_and_names_who_is_in_it() -> None:
    for name, svg in plots(record_with_curves()):
        assert ET.fromstring(svg.encode()).tag == "{http://www.w3.org/2000/svg}svg"
        expected = "kernel VXLAN" if "tcp" in name else "weft, python"
        assert expected in svg


def test_who_did_not_run_is_not_in_the_picture() -> None:
    found = dict(plots(record_with_curves()))
    assert "weft, python" not in found["bars-veth-tcp-1"]


def test_another_process_on_another_day_draws_the_same_octets(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from bench.results import read_results; "
        "from bench.plots import draw; draw(read_results(Path(sys.argv[1])), Path(sys.argv[2]))"
    )
    pictures = []
    for number, seed in enumerate(("1", "2")):
        directory = tmp_path / str(number)
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT), "TZ": f"UTC+{number}"}
        argv = [sys.executable, "-c", program, str(GOLDEN), str(directory)]
        subprocess.run(argv, check=True, env=environment)
        pictures.append({path.name: path.read_bytes() for path in directory.iterdir()})
    assert pictures[0] == pictures[1] != {}
    for octets in pictures[0].values():
        assert b"202" not in octets.split(b"</metadata>")[0].split(b"<metadata>")[1]  # no year


def test_a_record_without_figures_has_no_plots() -> None:
    assert list(plots(a_record())) == []
    assert [name for name, _ in plots(read_results(GOLDEN))] != []


def test_a_failed_run_does_not_stand_in_the_way() -> None:
    record = record_with_curves()
    record.runs.append(Run(VETH, "tcp-1", "weft:python", 0, error="iperf3: connection refused"))
    assert "bars-veth-tcp-1" in dict(plots(record))


def test_a_forwarder_keeps_its_colour_whoever_else_is_there() -> None:
    few, many = (
        colours_of(["kernel", "weft:python"]),
        colours_of(["bare", "kernel", "weft:python", "weft:native", "fastd"]),
    )
    assert {name: many[name] for name in few} == few
    assert len(set(many.values())) == 5


def test_the_middle_curve_is_the_median_at_each_point_all_have() -> None:
    curves = [[(0.0, 1.0), (50.0, 5.0)], [(0.0, 2.0), (50.0, 6.0)], [(0.0, 9.0), (50.0, 7.0), (99.0, 8.0)]]
    assert middle_curve(curves) == [(0.0, 2.0), (50.0, 6.0)]


def test_names_are_fit_for_files() -> None:
    assert slug("wire-like, MTU 9000-tcp-1") == "wire-like-mtu-9000-tcp-1"
    assert slug("../µ") == ""


def test_where_matplotlib_is_missing_that_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_no_plots() is None
    really_import = builtins.__import__

    def without(
        name: str,
        globals_: Mapping[str, object] | None = None,
        locals_: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        if name == "matplotlib":
            raise ImportError("No module named 'matplotlib'")
        return really_import(name, globals_, locals_, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", without)
    assert why_no_plots() == "matplotlib cannot be imported: No module named 'matplotlib'"
