"""What keeps a command from its answer is told with the exit code that says so."""

from __future__ import annotations

import errno
import os
import socket
import threading
from pathlib import Path

import pytest

from control.operator.client import Client
from control.operator.failure import ExitCode, Failure


def failure(client: Client) -> Failure:
    with pytest.raises(Failure) as caught:
        client.ask("status")
    return caught.value


def test_no_socket_is_unreachable(tmp_path: Path) -> None:
    told = failure(Client(str(tmp_path / "none")))
    assert told.code is ExitCode.UNREACHABLE
    assert told.as_text().splitlines() == [
        f"weft: error: cannot reach the daemon at {tmp_path}/none: {os.strerror(errno.ENOENT)}",
        "  why: it is not running, or listens on another socket",
        "  try: sudo weft run …, or name its socket with --socket or WEFT_SOCKET",
    ]


def test_a_socket_nobody_listens_on_is_unreachable(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    assert failure(Client(str(tmp_path / "dead"))).code is ExitCode.UNREACHABLE


def test_a_socket_one_may_not_open_is_a_matter_of_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: socket.socket, __: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert failure(Client(str(tmp_path / "s"))).code is ExitCode.PERMISSION


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", ExitCode.UNREACHABLE),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 5\r\n\r\nsorry", ExitCode.UNREACHABLE),
        (b"SSH-2.0-OpenSSH\r\n", ExitCode.UNREACHABLE),
        (b"", ExitCode.UNREACHABLE),
        (None, ExitCode.TIME_OUT),
    ],
)
def test_a_stranger_on_the_socket_is_not_taken_for_the_daemon(
    tmp_path: Path, answer: bytes | None, code: ExitCode
) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(path)
        door.listen()
        stranger = threading.Thread(target=_answer, args=(door, answer))
        if answer is not None:
            stranger.start()
        assert failure(Client(path, timeout=5.0 if answer is not None else 0.01)).code is code
        if answer is not None:
            stranger.join(10)


def _answer(door: socket.socket, answer: bytes) -> None:
    connection, _ = door.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(answer)
