"""Every error weft raises, in one tree: whose fault is it, and who can act?

Drops are values (`overlay.verdict.DropReason`), never exceptions.  Exceptions are for strangers'
bytes at the door, and for our own or the operator's mistakes:

    WeftError
    ├── WireError                   a stranger's bytes; caught where they came in
    │   ├── TruncatedError
    │   ├── MalformedError
    │   └── UnsupportedError
    ├── ConfigError                 the operator's file, flag or variable
    ├── TableError                  our own mistake: a delta the tables cannot take
    ├── RefusedError                what was asked for is not done, and on what ground
    │   ├── MembershipError
    │   └── LeaseError
    ├── DeviceError                 the kernel refused a device, a socket or a side effect
    └── DatapathUnavailableError    the engine asked for cannot run here

A test compares this drawing with `__subclasses__()`.  Every message says what was expected, what was
found, and where; to a person it is printed in three lines (`error`, `why`, `try`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum


class WeftError(Exception):
    """The root: anything weft raises on purpose."""


class WireError(WeftError):
    """Bytes from outside that are not what they should be.  Raised only by `*_untrusted` functions."""


class TruncatedError(WireError):
    """The bytes end before the structure they announce does."""

    def __init__(self, what: str, *, expected: int, found: int) -> None:
        super().__init__(f"{what}: expected at least {expected} octets, found {found}")
        self.what = what
        self.expected = expected
        self.found = found


class MalformedError(WireError):
    """The bytes are all there and contradict their format."""


class UnsupportedError(WireError):
    """Well formed, and something weft does not speak."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the operator's configuration.

    Attributes:
        path: Where, as the operator wrote it (`network[0].vni`, `--vni`, `WEFT_VNI`).
        why: What was expected and what was found.
        line: The line in the file, or None for flags and variables.
        suggestion: What to write instead, or None.
    """

    path: str
    why: str
    line: int | None = None
    suggestion: str | None = None

    def __str__(self) -> str:
        where = f"line {self.line}: {self.path}" if self.line is not None else self.path
        hint = f" (did you mean {self.suggestion}?)" if self.suggestion else ""
        return f"{where}: {self.why}{hint}"


class ConfigError(WeftError):
    """The configuration cannot be used.  Carries every problem found, not only the first."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = problems


class TableError(WeftError):
    """A delta names something the tables do not hold, or contradicts itself."""


class Ground(Enum):
    """On what ground a thing is refused; a command's exit code and an API's status follow from it."""

    STATE = "it is not to be done as things are"
    QUESTION = "what was asked is not a question"
    ABSENT = "there is no such object here"
    TIME = "nobody answered in time"


class RefusedError(WeftError):
    """What was asked for is not done.

    Args:
        message: What was expected and what was found.
        why: What is behind it, in one sentence.
        advice: The command or change that mends it.
        ground: On what ground.
    """

    def __init__(
        self, message: str, *, why: str = "", advice: str = "", ground: Ground = Ground.STATE
    ) -> None:
        super().__init__(message)
        self.why = why
        self.advice = advice
        self.ground = ground


class MembershipError(RefusedError):
    """The pool refuses what was asked of it."""


class LeaseError(RefusedError):
    """A lease cannot be granted, kept or released."""


class DeviceError(WeftError):
    """The kernel refused a device, a socket or a netlink request.

    Args:
        device: The thing refused, as the operator knows it (`/dev/net/tun`, `weft0`, `udp 192.0.2.1:4789`).
        errno: The kernel's error number.
        why: What usually causes this, in one sentence.
        advice: The command or change that mends it.
    """

    def __init__(self, device: str, errno: int, *, why: str = "", advice: str = "") -> None:
        super().__init__(f"{device}: {os.strerror(errno)}")
        self.device = device
        self.errno = errno
        self.why = why
        self.advice = advice


class DatapathUnavailableError(WeftError):
    """The engine asked for cannot run here."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(f"{kind} engine: {why}")
        self.kind = kind
        self.why = why
