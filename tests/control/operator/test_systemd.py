"""systemd hears what it is told, on either sort of socket; without systemd nothing happens."""

from __future__ import annotations

import re
import socket
from pathlib import Path

from control.operator.systemd import notify, reloading


def test_without_systemd_nobody_is_told() -> None:
    assert notify("READY=1", environ={}) is False


def test_assignments_reach_a_socket_with_a_path(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        assert notify("READY=1", "STATUS=3 peers", environ={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert systemd.recv(100) == b"READY=1\nSTATUS=3 peers"


def test_assignments_reach_an_abstract_socket(tmp_path: Path) -> None:
    name = f"weft-test-{tmp_path.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(f"\0{name}")
        assert notify("STOPPING=1", environ={"NOTIFY_SOCKET": f"@{name}"})
        assert systemd.recv(100) == b"STOPPING=1"


def test_a_systemd_that_has_gone_is_nobodys_problem(tmp_path: Path) -> None:
    assert notify("READY=1", environ={"NOTIFY_SOCKET": str(tmp_path / "gone")}) is False


def test_a_reload_begins_with_the_monotonic_time() -> None:
    assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", reloading())
