"""README's table and plots are those of the newest record in the history, octet for octet."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.source import ROOT

from bench.plots import plots
from bench.record import Record
from bench.report import embed
from bench.results import read_results

pytest.importorskip("matplotlib", reason="not installed: matplotlib (pip install 'weft[bench]')")


def version_of(path: Path) -> tuple[int, ...]:
    return tuple(map(int, path.stem.split(".")))


PLOTS = ROOT / "docs" / "plots"
HISTORY = sorted((ROOT / "bench" / "history").glob("*.json"), key=version_of)


@pytest.fixture
def newest() -> Record:
    return read_results(HISTORY[-1])


def test_every_record_in_the_history_is_whole() -> None:
    assert HISTORY
    for path in HISTORY:
        record = read_results(path)
        assert not record.partial
        assert {"kernel", "weft:python"} <= {run.forwarder for run in record.runs if run.measures}


def test_the_readmes_table_is_the_newest_records(newest: Record) -> None:
    readme = (ROOT / "README.md").read_text()
    links = [os.path.relpath(PLOTS / f"{name}.svg", ROOT) for name, _ in plots(newest)]
    assert embed(readme, newest, plots=links) == readme, "make history RECORD=bench/history/VERSION.json"


def test_the_plots_are_the_newest_records(newest: Record) -> None:
    drawn = {f"{name}.svg": svg for name, svg in plots(newest)}
    kept = {path.name: path.read_text() for path in PLOTS.iterdir()}
    assert kept == drawn, "make history RECORD=bench/history/VERSION.json"


@pytest.mark.parametrize(("folder", "block"), [("scaling", ""), ("mtu", "mtu")])
def test_the_scaling_pages_tables_are_the_newest_records(folder: str, block: str) -> None:
    page = (ROOT / "docs" / "scaling.md").read_text()
    newest = max((ROOT / "bench" / "history" / folder).glob("*.json"), key=version_of)
    command = f"weft bench report {newest.relative_to(ROOT)} --readme docs/scaling.md --block '{block}'"
    assert embed(page, read_results(newest), block=block) == page, command
