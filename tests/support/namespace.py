"""Network namespaces inside the test process: a world of one's own that vanishes with its last descriptor.

A `Namespace` is a descriptor and nothing else: no name under /run/netns, no child process.  Entering it
moves the calling thread; sockets and devices opened there stay there after leaving.  When it is closed
(or the process dies, however) the kernel removes every device in it, so nothing needs clearing up.

Heads up: `/proc/net` shows the namespace of the process's *main* thread; enter on that one, as pytest does.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

# From <sched.h>; CPython has os.setns and os.unshare only from 3.12.
CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)

needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/net/tun").exists(),
    reason="needs root and /dev/net/tun: makes network namespaces and TAP devices",
)


class Namespace:
    """A fresh network namespace with its loopback up.  `with` moves this thread into it, and back.

    IPv6 addresses are usable at once: a test of duplicate address detection calls `detect_duplicates`.
    """

    def __init__(self) -> None:
        home = _current()
        try:
            _check(_libc.unshare(CLONE_NEWNET))
            self._fd = _current()
            self._homes: list[int] = []
            _set(home)
        finally:
            os.close(home)
        with self:
            self.run("ip link set lo up")
            self.sysctl("net/ipv6/conf/default/accept_dad", 0)

    def __enter__(self) -> Self:
        self._homes.append(_current())
        _set(self._fd)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        home = self._homes.pop()
        _set(home)
        os.close(home)

    def run(self, *commands: str) -> str:
        """What the commands print, run in here one after the other; a failing one raises."""
        with self:
            return "".join(_output(command) for command in commands)

    def sysctl(self, path: str, value: int) -> None:
        with self:
            Path("/proc/sys", path).write_text(f"{value}\n", encoding="ascii")

    def detect_duplicates(self, device: str) -> None:
        """From now on an address added to the device is tentative for a second or two (RFC 4862)."""
        self.sysctl(f"net/ipv6/conf/{device}/accept_dad", 1)

    def add_veth(self, name: str, other: Namespace, other_name: str, *, mtu: int = 1500) -> None:
        """A cable: `name` in here, `other_name` in the other, both up."""
        target = f"/proc/{os.getpid()}/fd/{other._fd}"
        self.run(f"ip link add {name} mtu {mtu} type veth peer name {other_name} mtu {mtu} netns {target}")
        self.run(f"ip link set {name} up")
        other.run(f"ip link set {other_name} up")

    def close(self) -> None:
        os.close(self._fd)


def exit_status_as_nobody(call: Callable[[], int]) -> int:
    """What the call returns (0 to 255) in a child process without any rights."""
    child = os.fork()
    if child == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            os._exit(call())
        finally:
            os._exit(255)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def eventually(claim: Callable[[], object], *, within: float = 10.0) -> None:
    """Waits until the claim holds; for what the kernel does in its own time."""
    deadline = time.monotonic() + within
    while not claim():
        if time.monotonic() > deadline:
            pytest.fail(f"it did not come to be within {within} s")
        time.sleep(0.01)


def _output(command: str) -> str:
    done = subprocess.run(command.split(), check=False, capture_output=True, text=True, timeout=20)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr.strip()}")
    return done.stdout


def _current() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _set(fd: int) -> None:
    _check(_libc.setns(fd, CLONE_NEWNET))


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
