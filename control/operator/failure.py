"""How a command ends when it cannot do what was asked: three lines for a person, one code for a script.

    weft: error: cannot open /dev/net/tun: Permission denied
      why: creating a TAP device needs CAP_NET_ADMIN
      try: sudo weft run …

`overlay.errors` says whose fault something is; here that becomes what the operator reads and what the
shell gets.  A `Failure` is not a `WeftError`: nobody handles it, it is what is left to say at the end.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from enum import IntEnum

from overlay.errors import (
    ConfigError,
    DatapathUnavailableError,
    DeviceError,
    Ground,
    Problem,
    RefusedError,
    WeftError,
)


class ExitCode(IntEnum):
    """What the shell gets."""

    OK = 0
    CHECK_FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    PERMISSION = 4
    NO_SUCH_OBJECT = 5
    TIME_OUT = 6
    INTERRUPTED = 130  # 128 and SIGINT, as a shell tells it
    READER_GONE = 141  # 128 and SIGPIPE: as of any tool a shell has in a pipe, `weft watch | head -1`


class Failure(Exception):  # noqa: N818 - the end of a command, not an error of weft's
    """What could not be done, why, and what to do about it."""

    def __init__(
        self,
        error: str,
        *,
        why: str | Sequence[str],
        advice: str,
        code: ExitCode = ExitCode.USAGE,
    ) -> None:
        super().__init__(error)
        self.error = error
        self.reasons = (why,) if isinstance(why, str) and why else tuple(why)
        self.advice = advice
        self.code = code

    def as_text(self) -> str:
        """The three lines; a configuration with several problems has one `why` each."""
        lines = [f"weft: error: {self.error}"]
        lines += [f"  why: {reason}" for reason in self.reasons]
        lines += [f"  try: {self.advice}"] if self.advice else []
        return "\n".join(lines)

    def as_data(self) -> dict[str, str]:
        """The data of weft.error/1."""
        return {"error": self.error, "why": "\n".join(self.reasons), "try": self.advice}


CODES = {
    Ground.STATE: ExitCode.CHECK_FAILED,
    Ground.QUESTION: ExitCode.USAGE,
    Ground.ABSENT: ExitCode.NO_SUCH_OBJECT,
    Ground.TIME: ExitCode.TIME_OUT,
}
"""What the shell gets of a refusal."""


def failure_of(error: WeftError) -> Failure:
    """The error as the operator is told of it."""
    match error:
        case ConfigError():
            return _configuration(error.problems)
        case DeviceError():
            refused = error.errno in (errno.EPERM, errno.EACCES)
            code = ExitCode.PERMISSION if refused else ExitCode.USAGE
            why, advice = error.why or "the kernel refused it", error.advice or "dmesg may tell more"
            return Failure(str(error), why=why, advice=advice, code=code)
        case DatapathUnavailableError():
            return Failure(str(error), why=error.why, advice="weft run --engine python")
        case RefusedError():
            return Failure(str(error), why=error.why, advice=error.advice, code=CODES[error.ground])
        case _:
            why = f"a mistake of weft's own: nothing here expects a {type(error).__name__}"
            return Failure(str(error), why=why, advice="the same again with --log debug, and report it")


def _configuration(problems: Sequence[Problem]) -> Failure:
    count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
    reasons = [str(problem) for problem in problems]
    advice = "mend each line above; `weft config schema` lists every key"
    return Failure(f"the configuration has {count}", why=reasons, advice=advice)
