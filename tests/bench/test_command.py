"""`weft bench` understands what it is asked for, and says what it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.bench import a_machine, a_record, runs_of

from bench import command
from bench.command import SUITES, Lines, bench
from bench.forwarders import parse_forwarder
from bench.record import Entry, Record
from bench.results import RUNS
from bench.runner import Plan
from bench.scenarios import parse_scenario
from bench.station import stage
from control.operator.failure import ExitCode, Failure


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
    assert [each.name for each in plan.underlays] == ["veth", "wire-like"]
    assert (plan.pairs, plan.seconds) == (4, 1.5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--scenario", "udp-65"), "udp-65"),
        (("--forwarder", "wireguard"), "wireguard"),
        (("--underlay", "moon"), "moon"),
        (("--pairs", "0"), "0"),
        (("--suite", "quik"), "quik"),
        (("--mtu", "576"), "576"),
        (("--far", "/run/far.sock"), "--underlay compose"),
        (("--underlay", "compose", "--mtu", "9000"), "--mtu"),
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


def test_the_quick_suite_is_over_in_three_minutes(plans: list[Plan]) -> None:
    run()
    assert plans[0].cost() < 170


def test_where_no_station_answers_that_is_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "SERVES_WITHIN_S", 0.1)
    for stations in ((), ("--far", str(tmp_path / "far2.sock"))):
        failure = run("--underlay", "compose", *stations).exception
        assert isinstance(failure, Failure)
        assert failure.error == "cannot measure between containers"
        assert "station" in failure.reasons[0]


def test_under_compose_the_nodes_themselves_are_measured_too(
    plans: list[Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "why_no_stations", lambda _stations: None)
    assert run("--underlay", "compose", "--far", "/run/a.sock", "--far", "/run/b.sock").exit_code == 0
    assert [(ground.name, ground.most_nodes) for ground in plans[0].underlays] == [("compose", 3)]
    assert plans[0].forwarders[-1].name == "nodes"


def test_each_mtu_is_an_underlay_of_its_own(plans: list[Plan]) -> None:
    assert run("--suite", "mtu").exit_code == 0
    assert run("--underlay", "wire-like", "--mtu", "9000").exit_code == 0
    assert [[each.name for each in plan.underlays] for plan in plans] == [
        ["veth, MTU 1280", "veth", "veth, MTU 9000"],
        ["wire-like, MTU 9000"],
    ]


def a_plan() -> Plan:
    return Plan("quick", (), (), (), pairs=1, seconds=1.0)


def test_a_full_disk_ends_a_bench_in_three_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def perform(_plan: Plan, record: Record, _watch: object, checkpoint: Callable[[], None]) -> None:
        record.entries = a_record().entries
        record.runs = runs_of("tcp-1", "kernel", gbit_s=[1.5])
        (directory,) = tmp_path.iterdir()
        (directory / RUNS).unlink()
        (directory / RUNS).symlink_to("/dev/full")
        checkpoint()

    monkeypatch.setattr(command, "describe_machine", a_machine)
    monkeypatch.setattr(command, "perform", perform)
    with pytest.raises(Failure, match="No space left on device") as caught:
        command._measure(a_plan(), tmp_path, as_json=False)
    assert caught.value.code == ExitCode.CHECK_FAILED


def test_a_bench_in_which_nobody_could_run_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def perform(_plan: Plan, record: Record, _watch: object, _checkpoint: Callable[[], None]) -> None:
        why = "cannot open /dev/net/tun: Operation not permitted"
        record.entries = [Entry("compose", 2, "weft", "weft", why)]

    monkeypatch.setattr(command, "describe_machine", a_machine)
    monkeypatch.setattr(command, "perform", perform)
    with pytest.raises(Failure, match="nothing was measured") as caught:
        command._measure(a_plan(), tmp_path, as_json=False)
    assert caught.value.reasons == ("weft: cannot open /dev/net/tun: Operation not permitted",)
    assert caught.value.code == ExitCode.CHECK_FAILED


def test_where_results_cannot_be_made_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "describe_machine", a_machine)
    (tmp_path / "results").write_text("a file")
    with pytest.raises(Failure, match="results"):
        command._measure(a_plan(), tmp_path / "results", as_json=False)


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
