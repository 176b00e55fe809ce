"""Real daemons for tests: started with an audited ledger, waited for, stopped, their exit statuses checked.

start_lab       a topology with all its weft nodes running (a fixture)
serve           one more daemon, in any namespace of a lab, told anything
halted          a daemon that stands still for a while
refused         a daemon that must not come up: its exit status and what it said
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
from support import engines
from support.lab import BuildLab
from support.weft_with import UNBALANCED

from bench.lab import namespaces
from bench.lab.commands import LabError, ends_with_us, wait_until, weft_environment
from bench.lab.namespaces import Daemon, Lab, Place
from bench.lab.topology import Node, NodeKind, Topology, numbered_node
from control.operator.client import Client
from overlay.verdict import DropReason

LAUNCHER = Path(__file__).with_name("weft_with.py")
PATIENCE_S = 15.0


class StartLab(Protocol):
    """Builds a lab with all its weft nodes running; `constants` are `weft_with`'s assignments."""

    def __call__(self, topology: Topology, *, constants: tuple[str, ...] = ()) -> Lab: ...


@pytest.fixture
def start_lab(build_lab: BuildLab) -> Iterator[StartLab]:
    """Labs that run.  What still runs when the test is over is stopped, and must exit with 0."""
    started: list[Lab] = []

    def start(topology: Topology, *, constants: tuple[str, ...] = ()) -> Lab:
        lab = build_lab(topology)
        started.append(lab)
        start_daemons(lab, constants=constants)
        return lab

    yield start
    for lab in started:
        expect_clean_exits(lab)


def start_daemons(lab: Lab, *names: str, constants: tuple[str, ...] = ()) -> None:
    """As `Lab.start`, with the ledger audited at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(namespaces, "weft_command", lambda: launch(*constants))
        lab.start(*names)


def expect_clean_exits(lab: Lab) -> None:
    """Stops what runs; fails for a ledger that does not balance, and for any exit status but 0."""
    running = {name: daemon for name, daemon in lab.daemons.items() if daemon.process.poll() is None}
    for daemon in running.values():
        daemon.process.terminate()
    statuses = {name: exit_status(daemon) for name, daemon in running.items()}
    wrong = {name: status for name, status in statuses.items() if status != 0}
    if wrong:
        told = "\n".join(running[name].read_output() for name in wrong)
        pytest.fail(f"exit statuses {wrong} ({UNBALANCED}: the ledger does not balance):\n{told}")


def exit_status(daemon: Daemon) -> int:
    """Its exit status, waited for.  Whoever wants it gone has told it once, as an operator does.

    Raises:
        LabError: It does not end.
    """
    wait_until(
        lambda: daemon.process.poll() is not None,
        f"weft of {daemon.node.name} ends",
        deadline=time.monotonic() + PATIENCE_S,
        context=daemon.read_output,
    )
    return daemon.process.returncode


def launch(*constants: str) -> list[str]:
    """What stands for `weft` on a command line."""
    engine = [f"engine={chosen}"] if (chosen := engines.chosen()) else []
    return [sys.executable, str(LAUNCHER), *engine, *constants, "--"]


@contextmanager
def serve(place: Place, home: Path, *argv: str, configuration: str = "") -> Iterator[Daemon]:
    """A daemon that is ready, in the place's namespace; stopped afterwards, and its exit status checked."""
    daemon = start(place, home, *argv, configuration=configuration)
    try:
        await_ready(daemon)
        yield daemon
    finally:
        is_running = daemon.process.poll() is None
        daemon.process.terminate()
        status = exit_status(daemon)
    if is_running and status != 0:
        pytest.fail(f"exit status {status}:\n{daemon.read_output()}")


def start(
    place: Place, home: Path, *argv: str, configuration: str = "", prefix: tuple[str, ...] = ()
) -> Daemon:
    """A daemon that has been started; the lab ends it at the latest.

    Args:
        place: Where.
        home: Its socket, state, configuration and log.
        argv: More for `weft run`.
        configuration: Its file, or "": flags alone.
        prefix: A command that runs commands (`setpriv …`).
    """
    home.mkdir(exist_ok=True)
    told = ["run", "--socket", str(home / "weft.sock"), "--state-dir", str(home / "state"), *argv]
    if configuration:
        (home / "weft.toml").write_text(configuration)
        told += ["--config", str(home / "weft.toml")]
    with (home / "weft.log").open("w") as output:
        process = place.popen(
            [*ends_with_us(), *prefix, *launch(), *told], stdout=output, env=weft_environment()
        )
    return Daemon(_somebody(place), process, home / "weft.sock", home / "weft.log")


def _somebody(place: Place) -> Node:
    """A node to name the daemon after; its addresses are told by `argv` alone."""
    node = numbered_node(1, NodeKind.WEFT)
    return Node(place.name, node.kind, node.underlay_addresses)


def await_ready(daemon: Daemon) -> None:
    wait_until(
        daemon.is_ready,
        f"weft of {daemon.node.name} is ready",
        deadline=time.monotonic() + PATIENCE_S,
        context=daemon.read_output,
    )


@contextmanager
def halted(daemon: Daemon) -> Iterator[None]:
    """The daemon gets no turn while the block lasts."""
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        daemon.process.send_signal(signal.SIGCONT)


def refused(
    place: Place, home: Path, *argv: str, configuration: str = "", prefix: tuple[str, ...] = ()
) -> tuple[int, str]:
    """The exit status and the words of a daemon that cannot be."""
    daemon = start(place, home, *argv, configuration=configuration, prefix=prefix)
    return exit_status(daemon), daemon.read_output()


def eventually(claim: str, condition: Callable[[], bool], *, within_s: float = PATIENCE_S) -> None:
    """Returns when the condition holds; a condition that cannot be asked just now does not hold."""

    def holds() -> bool:
        try:
            return condition()
        except LabError:
            return False

    wait_until(holds, claim, deadline=time.monotonic() + within_s)


def view(daemon: Daemon, what: str) -> Any:
    """What `weft <what> --json` shows as data, without the start of an interpreter."""
    return Client(str(daemon.socket)).ask(what)


def drops(daemon: Daemon) -> dict[DropReason, int]:
    """What was dropped so far, by reason; the reasons that never occurred read 0."""
    told: dict[str, int] = view(daemon, "drops")
    return {reason: told.get(reason.name, 0) for reason in DropReason}
