"""`weft demo` shows what it saw, exits by it, and leaves nothing behind."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

import pytest
from click.testing import CliRunner
from rich.console import Console

from bench.lab import demo as demo_module
from bench.lab.demo import PairPing, Report, demo, show


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(demo, arguments)
    return result.exit_code, result.stdout


def test_simulated_every_pair_is_reached_and_the_reason_is_said() -> None:
    code, said = invoke("--simulated")
    assert code == 0
    assert said.startswith("simulated in one process, in virtual time: as asked\n")
    assert "12 of 12 pairs reach each other." in said
    assert "02:00:00:00:00:01 dev weft0 dst 192.0.2.2 self" in said


def test_the_json_report_has_its_schema_and_all_it_saw() -> None:
    code, said = invoke("--simulated", "--json")
    report = json.loads(said)
    assert code == 0
    assert report["schema"] == "weft.demo/1"
    data = report["data"]
    assert data["stage"] == "simulated"
    assert data["all_reached"] is True
    assert len(data["pings"]) == 12
    assert {entry["dst"] for entry in data["fdb"]} == {"192.0.2.2", "192.0.2.3", "192.0.2.4"}
    assert data["drops"] == {}


@pytest.mark.parametrize(
    ("no_tap", "no_user_namespace", "said_too"),
    [
        (None, "no user namespace: refused", "no user namespace: refused"),
        ("cannot open /dev/net/tun: Permission denied", None, "cannot open /dev/net/tun: Permission denied"),
    ],
    ids=["no-user-namespace", "no-tap"],
)
def test_without_privileges_it_is_simulated_and_says_why(
    monkeypatch: pytest.MonkeyPatch, no_tap: str | None, no_user_namespace: str | None, said_too: str
) -> None:
    monkeypatch.setattr(demo_module, "why_no_namespaces", lambda: "no network namespaces: not permitted")
    monkeypatch.setattr(demo_module, "why_no_tap", lambda: no_tap)
    monkeypatch.setattr(demo_module, "why_no_user_namespace", lambda: no_user_namespace)
    code, said = invoke()
    assert code == 0
    assert f"virtual time: no network namespaces: not permitted; {said_too}\n" in said


def test_a_user_namespace_is_tried_with_the_same_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Sequence[str]] = []

    def note(arguments: Sequence[str]) -> None:
        tried.append(arguments)
        raise SystemExit(0)

    monkeypatch.setattr(demo_module, "why_no_namespaces", lambda: "no network namespaces: not permitted")
    monkeypatch.setattr(demo_module, "why_no_user_namespace", lambda: None)
    monkeypatch.setattr(demo_module, "why_no_tap", lambda: None)
    monkeypatch.setattr(demo_module, "continue_in_user_namespace", note)
    invoke("--seconds", "7", "--json")
    assert tried == [["demo", "--seconds", "7", "--json", "--inside-user-namespace"]]


def test_a_missing_tool_is_not_looked_for_in_a_user_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_module, "why_no_namespaces", lambda: "not installed: ethtool")
    monkeypatch.setattr(demo_module, "continue_in_user_namespace", lambda _: pytest.fail("tried"))
    assert "not installed: ethtool" in invoke()[1]


def test_a_lost_pair_is_shown_and_decides_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def perform(why: str, _tell: demo_module.Tell) -> Report:
        pings = [PairPing("n1", "n2", 3, 0, None), PairPing("n2", "n1", 3, 2, 0.5)]
        drops = {"n1": {"NO_VTEP": 3}}
        return Report("simulated", {"n1": "weft", "n2": "weft"}, pings, [why], drops=drops)

    monkeypatch.setattr(demo_module, "perform_simulated", perform)
    code, said = invoke("--simulated")
    assert code == 1
    assert "lost" in said
    assert "0.50 2/3" in said
    assert "n1 NO_VTEP 3: there is no VTEP to send to [egress]" in said
    assert "0 of 2 pairs reach each other." in said
    assert json.loads(invoke("--simulated", "--json")[1])["data"]["all_reached"] is False


def test_a_mac_is_no_emoji(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"mac": "6a:ed:49:cd:1b:0e", "ifname": "weft0", "dst": "192.0.2.2", "state": "permanent"}

    def perform(_why: str, _tell: demo_module.Tell) -> Report:
        return Report("simulated", {"n1": "weft"}, [], fdb=[dict(entry)])

    monkeypatch.setattr(demo_module, "perform_simulated", perform)
    assert "6a:ed:49:cd:1b:0e dev weft0 dst 192.0.2.2 self permanent\n" in invoke("--simulated")[1]


def test_no_colour_reaches_a_pipe() -> None:
    out = io.StringIO()
    show(Report("simulated", {"n1": "weft"}, [PairPing("n1", "n1", 1, 0, None)]), Console(file=out))
    assert "\x1b" not in out.getvalue()
