"""Records are reported, compared and embedded; what is none, and what cannot be written, is three lines."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.bench import a_record, runs_of
from support.source import ROOT

from bench.command import bench
from bench.record import SCHEMA, Record, as_document, read_record
from bench.recordcommands import COMPARE_SCHEMA, writing
from bench.report import BEGIN, END
from bench.results import Results, read_results
from control.operator.cli.main import weft
from control.operator.failure import ExitCode, Failure

DATA = ROOT / "tests" / "data" / "bench"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(bench, [str(argument) for argument in arguments])


def record_of(weft_figures: list[float]) -> Record:
    runs = [
        *runs_of("tcp-1", "kernel", gbit_s=[10.0, 11.0, 10.5]),
        *runs_of("tcp-1", "weft:python", gbit_s=weft_figures),
    ]
    return replace(a_record(), runs=runs)


def written(record: Record, path: Path) -> Path:
    path.write_text(json.dumps(as_document(record)))
    return path


def test_an_old_record_is_reported_again() -> None:
    found = run("report", DATA / "record.json")
    assert (found.exit_code, found.output) == (0, (DATA / "report.md").read_text())


def test_a_directory_is_reported_like_a_file(tmp_path: Path) -> None:
    record = read_results(DATA / "record.json")
    found = run("report", Results(tmp_path, record).directory)
    assert found.output == (DATA / "report.md").read_text()


def test_a_directory_becomes_one_document_for_the_history(tmp_path: Path) -> None:
    record = read_results(DATA / "record.json")
    found = run("report", Results(tmp_path, record).directory, "--json")
    assert json.loads(found.output)["schema"] == SCHEMA
    assert read_record(found.output) == record


def test_the_readmes_table_and_plots_come_from_the_record(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    readme = tmp_path / "README.md"
    readme.write_text(f"# weft\n{BEGIN}\n{END}\n")
    plots = tmp_path / "docs" / "plots"
    assert run("report", DATA / "record.json", "--readme", readme, "--plots", plots).exit_code == 0
    said = readme.read_text()
    assert "| TCP, 1 stream, Gb/s" in said
    assert "![bars-veth-tcp-1](docs/plots/bars-veth-tcp-1.svg)" in said
    assert (plots / "bars-veth-tcp-1.svg").exists()


def test_a_document_may_have_several_blocks(tmp_path: Path) -> None:
    page = tmp_path / "scaling.md"
    named = BEGIN.replace(" -->", " mtu -->")
    page.write_text(f"{BEGIN}\nkept\n{END}\n{named}\nold\n{END}\n")
    assert run("report", DATA / "record.json", "--readme", page, "--block", "mtu").exit_code == 0
    said = page.read_text()
    assert f"{BEGIN}\nkept\n{END}\n" in said
    assert "old" not in said
    assert "| TCP, 1 stream, Gb/s" in said.split(named)[1]


def test_a_document_without_markers_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("# weft\n")
    failure = run("report", DATA / "record.json", "--readme", page).exception
    assert isinstance(failure, Failure)
    assert BEGIN in failure.reasons[0]


@pytest.mark.parametrize("text", ["", "[]", '{"schema": "weft.peers/1", "data": []}', "\x00\xff"])
def test_what_is_no_record_is_refused_in_three_lines(text: str, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(text)
    for arguments in (("report", other), ("compare", other, other)):
        failure = run(*arguments).exception
        assert isinstance(failure, Failure)
        assert failure.code == ExitCode.USAGE
        assert "expected a record" in failure.reasons[0]


def test_a_regression_is_the_exit_code(tmp_path: Path) -> None:
    before = written(record_of([5.0, 5.5, 5.25]), tmp_path / "before.json")
    after = written(record_of([4.0, 4.4, 4.2]), tmp_path / "after.json")
    arguments = ["bench", "compare", str(before), str(after)]
    assert weft.main(arguments, standalone_mode=False) == ExitCode.CHECK_FAILED
    assert weft.main([*arguments, "--threshold", "25"], standalone_mode=False) == ExitCode.OK
    assert weft.main(["bench", "compare", str(after), str(before)], standalone_mode=False) == ExitCode.OK


def test_a_comparison_is_json_for_a_script(tmp_path: Path) -> None:
    path = written(record_of([5.0, 5.5, 5.25]), tmp_path / "record.json")
    found = json.loads(run("compare", path, path, "--json").output)
    assert found["schema"] == COMPARE_SCHEMA
    assert [row["change"] for row in found["data"]] == ["reference", "steady"]


def test_a_station_that_cannot_listen_says_where(tmp_path: Path) -> None:
    failure = run("serve", tmp_path / "no" / "such" / "place.sock").exception
    assert isinstance(failure, Failure)
    assert failure.error.endswith("No such file or directory")


@pytest.mark.parametrize(
    ("number", "said", "code"),
    [
        (errno.ENOSPC, "No space left on device", ExitCode.CHECK_FAILED),
        (errno.EROFS, "Read-only file system", ExitCode.PERMISSION),
        (errno.EACCES, "Permission denied", ExitCode.PERMISSION),
    ],
)
def test_what_cannot_be_written_is_three_lines(number: int, said: str, code: ExitCode) -> None:
    with pytest.raises(Failure) as caught, writing(Path("results")):
        raise OSError(number, "as the system says", "results/env.json")
    assert caught.value.error == f"cannot write results/env.json: {said}"
    assert caught.value.code == code
    assert "--out" in caught.value.advice
