"""How a traffic program and its driver agree when to begin: `ready` on stdout, then SIGUSR1.

Interpreters start at their leisure; what is measured begins with the signal.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping

# Ours
READY = "ready"
GO = signal.SIGUSR1


def hold_cue() -> None:
    """Call first: a signal that comes early then waits until `await_cue`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {GO})


def say_ready() -> None:
    """Tells the driver that all is set up."""
    say(READY)


def await_cue() -> None:
    """Says ready, and returns when the driver gives the signal."""
    say_ready()
    signal.sigwait({GO})


def say_result(result: Mapping[str, object]) -> None:
    """The program's last line."""
    say(json.dumps(result))


def say(line: str) -> None:
    """One line, at once: the driver is waiting for it."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
