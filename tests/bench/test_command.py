"""`weft bench` understands what it is asked for, and says what it does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.source import ROOT

from bench import command
from bench.command import SUITES, Lines, bench
from bench.forwarders import parse_forwarder
from bench.report import BEGIN, END
from bench.runner import Plan
from bench.scenarios import parse_scenario
from control.operator.failure import ExitCode, Failure

DATA = ROOT / "tests" / "data" / "bench"


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """The plans that would be carried out."""
    found: list[Plan] = []
    monkeypatch.setattr(command, "why_no_namespaces", lambda: None)
    monkeypatch.setattr(command, "_measure", lambda plan, _out, **_options: found.append(plan))
    return found


def run(*arguments: str) -> Result:
    return CliRunner().invoke(bench, arguments)


def test_without_options_it_is_the_quick_suite(plans: list[Plan]) -> None:
    assert run().exit_code == 0
    (plan,) = plans
    quick = SUITES["quick"]
    assert (plan.suite, plan.pairs, plan.seconds) == ("quick", quick.pairs, quick.seconds)
    assert tuple(each.name for each in plan.forwarders) == quick.forwarders


def test_options_replace_what_the_suite_says(plans: list[Plan]) -> None:
    chosen = ["--scenario", "tcp-1", "--scenario", "rr", "--forwarder", "weft:rung0", "--underlay", "both"]
    assert run("--suite", "full", *chosen, "--pairs", "4", "--seconds", "1.5").exit_code == 0
    (plan,) = plans
    assert [each.name for each in plan.scenarios] == ["tcp-1", "rr"]
    assert [each.name for each in plan.forwarders] == ["weft:rung0"]
    assert [each.value for each in plan.underlays] == ["veth", "wire-like"]
    assert (plan.pairs, plan.seconds) == (4, 1.5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--scenario", "udp-65"), "udp-65"),
        (("--forwarder", "wireguard"), "wireguard"),
        (("--underlay", "moon"), "moon"),
        (("--pairs", "0"), "0"),
    ],
)
def test_what_there_is_not_is_a_usage_error(arguments: tuple[str, str], said: str, plans: list[Plan]) -> None:
    found = run(*arguments)
    assert found.exit_code == 2
    assert said in found.output
    assert plans == []


def test_where_no_lab_can_be_built_that_is_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "why_no_namespaces", lambda: "not installed: ip")
    failure = run().exception
    assert isinstance(failure, Failure)
    assert failure.reasons == ("not installed: ip",)


def test_suites_name_only_what_there_is() -> None:
    for suite in SUITES.values():
        assert [parse_scenario(name).name for name in suite.scenarios] == list(suite.scenarios)
        assert [parse_forwarder(name).name for name in suite.forwarders] == list(suite.forwarders)


def test_the_quick_suite_is_over_in_some_minutes(plans: list[Plan]) -> None:
    run()
    assert plans[0].cost() < 300


def test_an_old_record_is_reported_again() -> None:
    found = run("report", str(DATA / "record.json"))
    assert (found.exit_code, found.output) == (0, (DATA / "report.md").read_text())


def test_the_readmes_table_comes_from_the_record(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"# weft\n{BEGIN}\n{END}\n")
    assert run("report", str(DATA / "record.json"), "--readme", str(readme)).exit_code == 0
    assert "| TCP, 1 stream, Gb/s" in readme.read_text()


def test_what_is_no_record_is_refused_in_three_lines(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"schema": "weft.peers/1", "data": []}))
    failure = run("report", str(other)).exception
    assert isinstance(failure, Failure)
    assert failure.code == ExitCode.USAGE
    assert "weft.peers/1" in failure.reasons[0]


def test_the_time_left_follows_the_pace_and_is_not_said_too_often() -> None:
    now = 100.0
    said: list[str] = []
    lines = Lines(total_s=100.0, say=said.append, clock=lambda: now)
    lines.doing("first")
    lines.done(10.0)
    now += 20.0  # twice as long as planned
    lines.doing("second")
    now += 1.0
    lines.doing("third")
    assert said == ["first (about 1m40s left)", "second (about 3m00s left)"]
