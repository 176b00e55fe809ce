"""What the table commands print, letter by letter, and their JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from control.operator.client import Client

Run = Callable[..., Result]

PEERS = """\
PEER  UNDERLAY            STATE    NETWORKS  RX      TX
n2    192.0.2.2:4789      alive    lab       8.8 GB  9.1 GB
n3    [2001:db8::3]:4789  suspect  lab,pods  0 B     1.5 kB
"""
FDB = """\
02:00:00:00:00:02 dev weft0 dst 192.0.2.2 vni 42 self
02:00:00:00:00:03 dev weft0 dst 192.0.2.3 port 8472 vni 42 self extern_learn static
02:00:00:00:00:04 dev flannel0 dst 192.0.2.4 self permanent
"""
NEIGH = """\
10.9.0.2 dev weft0 lladdr 02:00:00:00:00:02 REACHABLE
10.5.2.0 dev flannel0 lladdr 02:00:00:00:00:04 PERMANENT
"""
ROUTES = """\
NETWORK  SUBNET       VTEP       VIA       MAC                DEV       STATE
pods     10.5.1.0/24  -          -         -                  flannel0  local
pods     10.5.2.0/24  192.0.2.4  10.5.2.0  02:00:00:00:00:04  flannel0  static
"""
FLOWS = """\
NETWORK  DIRECTION  SOURCE             DESTINATION        VERDICT                FRAMES  OCTETS  IDLE
lab      egress     02:00:00:00:00:01  02:00:00:00:00:02  encapsulate 192.0.2.2  12      18 kB   0s
"""
DROPS = """\
FRAMES  REASON        MEANING
40      BAD_FLAGS     the VXLAN header's I flag is clear: no valid VNI [ingress]
5       UNKNOWN_VTEP  the sender is not a VTEP of this network [ingress]
"""


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("peers", PEERS),
        ("fdb", FDB),
        ("neigh", NEIGH),
        ("routes", ROUTES),
        ("flows", FLOWS),
        ("drops", DROPS),
    ],
)
def test_a_table_is_printed_like_this(run: Run, command: str, expected: str) -> None:
    result = run(command)
    assert (result.exit_code, result.stdout, result.stderr) == (0, expected, "")


@pytest.mark.parametrize("command", ["peers", "fdb", "neigh", "routes", "flows", "drops", "status"])
def test_json_is_the_daemons_data_in_an_envelope(run: Run, api: Path, command: str) -> None:
    result = run(command, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "schema": f"weft.{command}/1",
        "data": Client(str(api)).ask(command),
    }


@pytest.mark.usefixtures("api")
def test_a_table_can_be_of_one_network(run: Run) -> None:
    assert run("fdb", "--network", "pods").stdout == FDB.splitlines(keepends=True)[2]


@pytest.mark.usefixtures("api")
def test_an_empty_table_says_so_on_stderr(run: Run) -> None:
    result = run("flows", "--network", "pods")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "no flows\n")


@pytest.mark.usefixtures("api")
def test_a_network_nobody_knows_is_exit_5(run: Run) -> None:
    result = run("drops", "--network", "nope")
    assert (result.exit_code, result.stdout) == (5, "")
    assert result.stderr.splitlines() == [
        "weft: error: no such network: nope",
        "  why: there is lab, pods",
        "  try: weft status",
    ]


@pytest.mark.parametrize("command", ["status", "peers", "fdb", "neigh", "routes", "flows", "drops", "watch"])
def test_without_a_daemon_every_command_that_asks_it_is_exit_3(run: Run, command: str) -> None:
    result = run(command)
    assert (result.exit_code, result.stdout) == (3, "")
    assert [line[:7] for line in result.stderr.splitlines()] == ["weft: e", "  why: ", "  try: "]


def test_with_json_the_error_is_the_object_on_stdout(run: Run, socket_path: Path) -> None:
    result = run("peers", "--json")
    assert (result.exit_code, result.stderr) == (3, "")
    answer = json.loads(result.stdout)
    assert answer["schema"] == "weft.error/1"
    assert answer["data"].keys() == {"error", "why", "try"}
    assert str(socket_path) in answer["data"]["error"]


def test_the_socket_can_be_named(run: Run, api: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEFT_SOCKET")
    assert run("fdb", "--socket", str(api)).stdout == FDB
    monkeypatch.setenv("WEFT_NODE_SOCKET", str(api))
    assert run("fdb").stdout == FDB
