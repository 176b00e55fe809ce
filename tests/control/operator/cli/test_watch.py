"""Events as they happen, until the daemon or the operator has had enough."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from support.introspection import FakeDaemon

Run = Callable[..., Result]


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


@pytest.mark.usefixtures("api", "utc")
def test_events_are_lines_and_the_end_of_the_daemon_is_exit_3(run: Run, daemon: FakeDaemon) -> None:
    daemon.watch_ends = True
    result = run("watch")
    assert result.stdout.splitlines() == [
        "22:13:20.250 drop   lab  UNKNOWN_VTEP from 192.0.2.9",
        "22:13:21.500 peer   -  n3 is suspect",
    ]
    assert result.exit_code == 3
    assert result.stderr.splitlines() == [
        "weft: error: the daemon has stopped",
        "  why: it was told to end, or failed: its log says which",
        "  try: weft status",
    ]


@pytest.mark.usefixtures("api")
def test_with_json_each_line_is_an_object_of_its_own(run: Run, daemon: FakeDaemon) -> None:
    daemon.watch_ends = True
    objects = [json.loads(line) for line in run("watch", "--json", "--type", "peer").stdout.splitlines()]
    assert [(each["schema"], each["data"].get("kind")) for each in objects] == [
        ("weft.watch/1", "peer"),
        ("weft.error/1", None),
    ]


def test_ctrl_c_is_exit_130_and_ends_the_watch(daemon: FakeDaemon, api: Path) -> None:
    program = "from control.operator.cli.main import main; main()"
    command = [sys.executable, "-c", program, "watch", "--json", "--socket", str(api)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["data"]["kind"] == "drop"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr is not None
        assert process.stderr.read() == "\n"
    assert daemon.watch_closed.wait(10)
