"""One screen for a person, 0 or 1 for a health check, and a gate for scripts."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.introspection import FakeDaemon, served

from control.operator.cli import status
from control.operator.cli.main import weft

Run = Callable[..., Result]

SCREEN = """\
weft 0.1.0  n1  up 3h12m
engine      python  the native engine is not built
underlays   eth0 192.0.2.1 mtu 1500  egress batch, ingress plain: udp_gro is off
            eth1 2001:db8::1 mtu 9000  egress plain, ingress plain: udp_gso: EIO
networks    lab  bridge vxlan vni 42 port 4789  dev weft0 mtu 1450
            pods  routed flannel-udp port 8285  dev flannel0 mtu 1472
peers       3 (2 alive, 1 suspect, 0 dead)
traffic     egress 980 Mb/s 91 kpps   ingress 1.2 Gb/s 108 kpps   drops 12/s
# Health
#  WARN rmem_max 212992 < 4194304  Fix: sudo sysctl -w net.core.rmem_max=4194304
"""


@pytest.mark.usefixtures("api")
def test_status_is_this_screen(run: Run) -> None:
    result = run("status")
    assert (result.exit_code, result.stdout, result.stderr) == (0, SCREEN, "")


@pytest.mark.usefixtures("api")
def test_colour_is_for_terminals() -> None:
    coloured = CliRunner().invoke(weft, ["status"], color=True)
    assert "\x1b[" in coloured.stdout
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured.stdout) == SCREEN


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize("variable", ["NO_COLOR=1", "TERM=dumb"])
def test_who_wants_no_colour_gets_none(variable: str) -> None:
    name, _, value = variable.partition("=")
    assert CliRunner().invoke(weft, ["status"], color=True, env={name: value}).stdout == SCREEN


@pytest.fixture(autouse=True)
def environment(socket_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_SOCKET", str(socket_path))


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize("check", ["live", "ready"])
def test_a_check_is_silent_and_0_or_1(run: Run, daemon: FakeDaemon, check: str) -> None:
    result = run("status", "--check", check)
    assert (result.exit_code, result.output) == (0, "")
    setattr(daemon, check, False)
    result = run("status", "--check", check)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"not {check}\n")


def test_a_check_without_a_daemon_is_1_as_well(run: Run) -> None:
    assert run("status", "--check", "live").exit_code == 1


@pytest.mark.usefixtures("api")
def test_wait_returns_when_enough_peers_are_alive(run: Run) -> None:
    result = run("wait", "--peers", "2")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "2 of 2 peers alive\n")
    answer = json.loads(run("wait", "--peers", "1", "--json").stdout)
    assert answer == {"schema": "weft.wait/1", "data": {"alive": 2, "wanted": 1}}


@pytest.mark.usefixtures("api")
def test_wait_blocks_until_the_last_peer_comes(run: Run, daemon: FakeDaemon) -> None:
    asked = threading.Event()
    before = daemon.status

    def status() -> object:
        asked.set()
        return before()

    daemon.status = status  # type: ignore[method-assign, assignment]
    results: list[Result] = []
    waiting = threading.Thread(target=lambda: results.append(run("wait", "--peers", "3")))
    waiting.start()
    assert asked.wait(10)
    assert not results
    daemon.alive = 3
    waiting.join(10)
    assert results[0].exit_code == 0


@pytest.mark.usefixtures("api")
def test_wait_gives_up_with_exit_6(run: Run) -> None:
    result = run("wait", "--peers", "3", "--timeout", "0")
    assert (result.exit_code, result.stdout) == (6, "")
    assert result.stderr.startswith("weft: error: 2 of 3 peers alive after 0 s\n")


def test_wait_for_a_daemon_that_never_comes_is_exit_3_when_the_time_is_over(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "STARTING", math.inf)
    assert run("wait", "--peers", "1", "--timeout", "0").exit_code == 3


def test_wait_gives_a_daemon_time_to_start(run: Run, daemon: FakeDaemon, socket_path: Path) -> None:
    results: list[Result] = []
    waiting = threading.Thread(target=lambda: results.append(run("wait", "--peers", "2")))
    waiting.start()
    with served(daemon, socket_path):
        waiting.join(10)
    assert results[0].exit_code == 0
