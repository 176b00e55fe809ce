"""A lab for real: the plan of a topology carried out in network namespaces, and undone without a trace.

    with Lab(topology) as lab:          # built; kernel nodes are up
        lab.start()                     # weft daemons run and are ready
        lab["n1"].run(["ping", "-c1", "10.9.0.2"])

What makes the undoing certain: nothing is ever created in the host's own namespace (veth pairs are born
with each end in its place), so deleting the namespaces deletes every device, address, route, rule and
filter with them.  A namespace lives as long as a process in it, though, so processes go first.

Names carry the maker's process id, `weft-<pid>-n1`.  A lab that was not undone, because its maker was
killed with -9, is recognised by its dead pid and swept away when the next lab starts.

Read `plan` first: it says which commands are run here.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.lab.commands import (
    COMMAND_TIMEOUT_S,
    POLL_S,
    STOP_TIMEOUT_S,
    Echo,
    LabError,
    end_process,
    ends_with_us,
    run_command,
    sigterm_as_exit,
    undisturbed,
    wait_until,
    weft_command,
    weft_environment,
)
from bench.lab.plan import Plan, Step, compile_plan, configuration, run_flags
from bench.lab.topology import Node, NodeKind, Topology
from bench.meter import ProcessWork, resident_octets, work_of

# Ours
LAB_NAME = re.compile(r"weft-(?P<pid>\d+)(\.\d+)?-[a-z0-9_-]+")  # of a namespace or a directory
READY_TIMEOUT_S = 15.0

_serials = itertools.count(1)


class Place:
    """A namespace of the lab, to run commands in."""

    def __init__(self, name: str, namespace: str, echo: Echo | None) -> None:
        self.name = name
        self.namespace = namespace
        self._echo = echo
        self._processes: list[subprocess.Popen[str]] = []

    def run(
        self, argv: Sequence[str], *, timeout: float = COMMAND_TIMEOUT_S, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """The finished command, run in this namespace, with its output.

        Raises:
            LabError: It failed (and `check`), or ran out of time.
        """
        return run_command(
            self._inside(argv), why=f"in {self.name}", echo=self._echo, timeout=timeout, check=check
        )

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """The started command; the lab ends it at the latest when it is torn down.

        It gets a session of its own: Ctrl-C reaches the lab, and the lab decides what ends when.
        """
        command = self._inside(argv)
        if self._echo:
            self._echo(f"in {self.name}", shlex.join(command))
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **options}
        process = subprocess.Popen(
            command, text=True, stdin=subprocess.DEVNULL, start_new_session=True, **options
        )
        self._processes.append(process)
        return process

    def work_of(self, pids: Iterable[int]) -> ProcessWork:
        """What processes started here have done, added up; their ids are those of `popen`."""
        return work_of(pids)

    def resident_octets(self, pids: Iterable[int]) -> int:
        """The memory they have, added up."""
        return sum(resident_octets(pid) for pid in pids)

    def end_processes(self) -> None:
        """Ends what `popen` started here, kindly first."""
        for process in reversed(self._processes):
            end_process(process)
            if process.stdout:
                process.stdout.close()
        self._processes.clear()

    def _inside(self, argv: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, *argv]


class Daemon:
    """A weft daemon of the lab, and what one asks of it."""

    def __init__(self, node: Node, process: subprocess.Popen[str], socket: Path, log: Path) -> None:
        self.node = node
        self.process = process
        self.socket = socket
        self.log = log

    def read_output(self) -> str:
        """All it has said so far, both streams."""
        return self.log.read_text(errors="replace")

    def ask(self, *argv: str, timeout: float = COMMAND_TIMEOUT_S, check: bool = True) -> str:
        """What `weft <argv> --socket …` prints.

        Raises:
            LabError: It failed, with the daemon's own words.
        """
        command = [*weft_command(), *argv, "--socket", str(self.socket)]
        return run_command(command, why=f"ask {self.node.name}", timeout=timeout, check=check).stdout

    def ask_json(self, *argv: str) -> Any:
        """The `data` of what the command prints with --json."""
        return json.loads(self.ask(*argv, "--json"))["data"]

    def is_ready(self) -> bool:
        """Whether `weft status --check ready` says so.

        Raises:
            LabError: The daemon is gone.
        """
        if self.process.poll() is not None:
            raise LabError(
                f"weft of {self.node.name} exited with {self.process.returncode}:\n{self.read_output()}"
            )
        if not self.socket.exists():  # spares the start of an interpreter
            return False
        command = [*weft_command(), "status", "--check", "ready", "--socket", str(self.socket)]
        return run_command(command, why=f"is {self.node.name} ready", check=False).returncode == 0

    def stop(self) -> int:
        """Its exit status after SIGTERM; SIGKILL follows where that is not heeded (then it is -9)."""
        end_process(self.process)
        return self.process.returncode


class Lab:
    """A topology, built while the `with` block lasts.

    Args:
        topology: What to build.
        echo: Told every command before it runs, or None.

    Raises:
        LabError: A command failed; what was already built is gone again.
    """

    def __init__(self, topology: Topology, *, echo: Echo | None = None) -> None:
        serial = next(_serials)
        self.topology = topology
        self.prefix = f"weft-{os.getpid()}" + (f".{serial}" if serial > 1 else "")
        self.plan: Plan = compile_plan(topology, self.prefix)
        self.daemons: dict[str, Daemon] = {}
        self._echo = echo
        self._places = {
            name: Place(name, namespace, echo) for name, namespace in self.plan.namespaces.items()
        }
        self._directory = Path()
        self._signals = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._signals.enter_context(sigterm_as_exit())
        try:
            sweep()
            self._directory = Path(tempfile.mkdtemp(prefix=f"{self.prefix}-"))
            self._run(self.plan.build)
            for node in self.topology.nodes:
                if node.kind is not NodeKind.WEFT:
                    self._run(self.plan.attach[node.name])
        except BaseException:
            self._tear_down()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tear_down()

    def __getitem__(self, name: str) -> Place:
        return self._places[name]

    def start(self, *names: str, ready_within_s: float = READY_TIMEOUT_S) -> None:
        """Starts the weft daemons (all, or those named), returns when each says it is ready.

        Raises:
            LabError: One exited, or was not ready in time; with what it printed.
        """
        nodes = [self.topology.node(name) for name in names] or self.topology.of_kind(NodeKind.WEFT)
        for node in nodes:
            self.daemons[node.name] = self._start_daemon(node)
        deadline = time.monotonic() + ready_within_s
        for node in nodes:
            daemon = self.daemons[node.name]
            wait_until(
                daemon.is_ready,
                f"weft of {node.name} is ready",
                deadline=deadline,
                context=daemon.read_output,
            )
            self._run(self.plan.attach[node.name])

    def stop(self, *names: str) -> dict[str, int]:
        """Stops the weft daemons (all, or those named) by SIGTERM: their exit statuses by node."""
        chosen = names or tuple(self.daemons)
        for name in chosen:
            self.daemons[name].process.send_signal(signal.SIGTERM)
        return {name: self.daemons.pop(name).stop() for name in chosen}

    def _start_daemon(self, node: Node) -> Daemon:
        home = self._directory / node.name
        home.mkdir(exist_ok=True)
        argv = ["run", "--socket", str(home / "weft.sock"), "--state-dir", str(home / "state"), *node.flags]
        if node.settings:
            (home / "weft.toml").write_text(configuration(self.topology, node))
            argv += ["--config", str(home / "weft.toml")]
        else:
            argv += run_flags(self.topology, node)
        log = home / "weft.log"
        with log.open("w") as output:
            process = self._places[node.name].popen(
                [*ends_with_us(), *weft_command(), *argv], stdout=output, env=weft_environment()
            )
        return Daemon(node, process, home / "weft.sock", log)

    def _run(self, steps: Iterable[Step]) -> None:
        for step in steps:
            run_command(step.argv, why=step.why, echo=self._echo)

    def _tear_down(self) -> None:
        with undisturbed():
            for place in self._places.values():
                place.end_processes()
            self.daemons.clear()
            remove_namespaces(self.plan.namespaces.values())
            if self._directory != Path():
                shutil.rmtree(self._directory, ignore_errors=True)
        self._signals.close()


# ── leftovers ───────────────────────────────────────────────────────────────────────────────────────────


def sweep() -> list[str]:
    """Removes the labs whose makers are gone; what was removed."""
    orphans = [name for name in namespaces() if _is_orphan(name)]
    remove_namespaces(orphans)
    for directory in Path(tempfile.gettempdir()).glob("weft-*"):
        if _is_orphan(directory.name):
            shutil.rmtree(directory, ignore_errors=True)
    return orphans


def namespaces(prefix: str = "weft-") -> list[str]:
    """The named network namespaces there are, of one lab or of all."""
    listed = run_command(["ip", "netns", "list"], why="which namespaces are there").stdout
    names = (line.split()[0] for line in listed.splitlines() if line.strip())
    return [name for name in names if name.startswith(prefix)]


def remove_namespaces(names: Iterable[str]) -> None:
    """Ends every process in the namespaces, then deletes them; those that are not there are passed over."""
    present = set(namespaces())
    for name in [name for name in names if name in present]:
        for pid in _processes_in(name):
            _end_pid(pid)
        run_command(["ip", "netns", "delete", name], why="", check=False)


def _is_orphan(name: str) -> bool:
    match = LAB_NAME.fullmatch(name)
    return match is not None and not _is_alive(int(match["pid"]))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _processes_in(namespace: str) -> list[int]:
    found = run_command(["ip", "netns", "pids", namespace], why="", check=False)
    return [int(pid) for pid in found.stdout.split()]


def _end_pid(pid: int) -> None:
    """SIGTERM, then SIGKILL.  It may be no child of ours, so it is watched instead of waited for."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while time.monotonic() < deadline and not _has_exited(pid):
            time.sleep(POLL_S)
        os.kill(pid, signal.SIGKILL)


def _has_exited(pid: int) -> bool:
    """Gone, or a zombie: its namespace is free of it although nobody has asked for its status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
