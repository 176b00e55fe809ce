"""Commands and processes of a lab: run with their output kept, ended by their id, waited for by condition.

Every command can be told to an `Echo` before it runs, with its purpose: `weft demo --verbose` shows a lab
being built as one would type it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Protocol

# Ours
COMMAND_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5.0
POLL_S = 0.02  # between two looks at a condition
SOURCE_ROOT = Path(__file__).parents[2]


class LabError(Exception):
    """A command of the lab failed, or something did not become true in time."""


class Echo(Protocol):
    """Told each command before it runs: its purpose, then its text as one could type it."""

    def __call__(self, why: str, command: str) -> None: ...


def run_command(
    argv: Sequence[str],
    *,
    why: str,
    echo: Echo | None = None,
    timeout: float = COMMAND_TIMEOUT_S,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """The finished command with its output as text.

    Raises:
        LabError: The tool is missing, it failed (and `check`), or it ran out of time.
    """
    if echo:
        echo(why, shlex.join(argv))
    try:
        done = subprocess.run(
            argv,
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            env=weft_environment(),
        )
    except FileNotFoundError:
        raise LabError(f"{argv[0]} is not installed (wanted for: {why})") from None
    except subprocess.TimeoutExpired:
        raise LabError(f"{shlex.join(argv)}: still running after {timeout:g} s") from None
    if check and done.returncode != 0:
        raise LabError(f"{shlex.join(argv)}: exit {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done


def weft_command() -> list[str]:
    """How this very installation of weft is started, whatever the PATH says."""
    script = Path(sys.executable).with_name("weft")
    if script.exists():
        return [str(script)]
    return [sys.executable, "-c", "from control.operator.cli.main import main; main()"]


def weft_environment() -> dict[str, str]:
    """The environment, without what would configure a daemon behind the topology's back."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WEFT_")}
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, [str(SOURCE_ROOT), kept.get("PYTHONPATH")]))}


def wait_until(
    condition: Callable[[], bool], claim: str, *, deadline: float, context: Callable[[], str] = lambda: ""
) -> None:
    """Returns when the condition holds.

    Args:
        condition: Looked at again and again.
        claim: What it means, for the error.
        deadline: Absolute monotonic seconds.
        context: What to show beside the error.

    Raises:
        LabError: It did not hold by the deadline.
    """
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"not in time: {claim}\n{context()}".rstrip())
        time.sleep(POLL_S)


def end_process(process: subprocess.Popen[str]) -> None:
    """SIGTERM, then SIGKILL to what has not ended after a while."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def ends_with_us() -> list[str]:
    """A prefix that has the kernel send SIGTERM to the daemon when we die, kill -9 included."""
    return ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []


@contextlib.contextmanager
def sigterm_as_exit() -> Iterator[None]:
    """SIGTERM unwinds the stack like Ctrl-C does, so that `with` blocks are left properly."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    try:
        previous = signal.signal(signal.SIGTERM, leave)
    except ValueError:  # not in the main thread: then signals are the main thread's affair
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Holds Ctrl-C and SIGTERM back: a second one must not interrupt the tidying the first one caused."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
