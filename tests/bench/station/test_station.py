"""A station runs what it is asked for, passes streams and signals on, and ends what nobody awaits."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.lab.commands import LabError, wait_until
from bench.station import stage
from bench.station.inside import UNREACHABLE
from bench.station.serve import NOT_FOUND, Station
from bench.station.stage import FarPlace, parse_underlay, why_no_stations
from bench.traffic.tool import Tool

WITHIN_S = 10.0


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    found = tmp_path / "far.sock"
    station = Station(found)
    thread = threading.Thread(target=station.serve)
    thread.start()
    yield found
    station.close()
    thread.join(WITHIN_S)
    assert not thread.is_alive()


@pytest.fixture
def place(path: Path) -> Iterator[FarPlace]:
    found = FarPlace("n2", path)
    yield found
    found.end_processes()


def eventually(condition: Callable[[], bool], claim: str) -> None:
    wait_until(condition, claim, deadline=time.monotonic() + WITHIN_S)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_output_errors_and_exit_codes_are_those_of_the_command(place: FarPlace) -> None:
    done = place.run(["sh", "-c", "echo out; echo err >&2; exit 7"], check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 7)


def test_a_command_that_fails_is_an_error_with_its_words(place: FarPlace) -> None:
    with pytest.raises(LabError, match="no such thing"):
        place.run(["sh", "-c", "echo no such thing >&2; exit 1"])


def test_a_program_that_is_missing_is_named(place: FarPlace) -> None:
    done = place.run(["no-such-program"], check=False)
    assert done.returncode == NOT_FOUND
    assert "no-such-program: No such file" in done.stderr


def test_many_commands_run_at_once(place: FarPlace) -> None:
    processes = [place.popen(["sh", "-c", f"echo {number}"]) for number in range(20)]
    said = [process.communicate(timeout=WITHIN_S)[0] for process in processes]
    assert said == [f"{number}\n" for number in range(20)]


def test_a_signal_reaches_the_command_and_how_it_died_comes_back(place: FarPlace) -> None:
    process = place.popen(["sleep", "60"])
    eventually(lambda: bool(pids_of(place, process)), "the command runs")
    process.terminate()
    assert process.wait(WITHIN_S) == 128 + signal.SIGTERM


def test_traffic_programs_get_their_cue(place: FarPlace) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.bind(("127.0.0.1", 0))
        address, port = sink.getsockname()
        with Tool(place, "udp", "send", address, port, "--seconds", 0.05, "--rate", 100) as sender:
            sender.begin()
            assert sender.result(within=WITHIN_S)["seconds"] >= 0.05


def test_who_asks_and_dies_takes_the_command_along(place: FarPlace, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    process = place.popen(["sh", "-c", f"echo $$ > {note}.new; mv {note}.new {note}; exec sleep 60"])
    eventually(note.exists, "the command runs")
    pid = int(note.read_text())
    process.kill()
    eventually(lambda: not is_alive(pid), "the command is gone")


def pids_of(place: FarPlace, process: subprocess.Popen[str]) -> float:
    return place.resident_octets([process.pid])


def test_what_a_command_has_used_is_told_under_the_askers_id(place: FarPlace) -> None:
    burn = "import time\nwhile time.process_time() < 0.2: pass\nprint('done', flush=True); time.sleep(60)"
    process = place.popen([sys.executable, "-c", burn])
    assert process.stdout is not None
    assert process.stdout.readline() == "done\n"
    assert place.work_of([process.pid]).cpu_s >= 0.15
    assert place.resident_octets([process.pid]) > 1_000_000
    assert place.work_of([process.pid + 1]).cpu_s == 0


def test_only_root_may_ask(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_socket_left_behind_is_replaced(tmp_path: Path) -> None:
    left = tmp_path / "far.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(left))
    Station(left).close()
    assert not left.exists()


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=200), st.sampled_from([b"{}", b"[]", b'{"run": []}', b'{"work": 7}'])))
def test_whatever_a_message_says_the_next_one_is_served(path: Path, message: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(str(path))
        client.send(message)
    assert FarPlace("n2", path).work_of([]).cpu_s == 0


def test_where_nobody_serves_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "SERVES_WITHIN_S", 0.1)
    place = FarPlace("n2", tmp_path / "nobody.sock")
    done = place.run(["true"], check=False)
    assert done.returncode == UNREACHABLE
    assert "cannot reach the station" in done.stderr
    with pytest.raises(LabError, match="does not answer"):
        place.work_of([])
    why = why_no_stations([tmp_path / "nobody.sock"])
    assert why is not None
    assert "does not answer" in why


def test_stations_that_answer_are_enough(path: Path) -> None:
    assert why_no_stations([path]) is None
    assert why_no_stations([]) == "no station was named: weft bench serve SOCKET makes one"


def test_the_underlay_is_read_from_what_ip_prints() -> None:
    text = (
        '[{"ifname": "eth0", "mtu": 1500, "addr_info": ['
        '{"family": "inet6", "local": "fe80::1", "prefixlen": 64}, '
        '{"family": "inet", "local": "198.19.250.11", "prefixlen": 24}]}]'
    )
    assert parse_underlay(text) == ("198.19.250.11/24", 1500)


@pytest.mark.parametrize("text", ["", "[]", "{}", "[{}]", '[{"mtu": 1500, "addr_info": []}]'])
def test_an_underlay_without_an_address_is_refused(text: str) -> None:
    with pytest.raises(LabError, match="expected an IPv4 address on eth0"):
        parse_underlay(text)
