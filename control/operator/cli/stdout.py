"""A command's stdout, of which an error is known to be its own: a full disk, or a reader that has gone.

Python tells either as an `OSError` like any other, from wherever a line was written, and once more from the
flush at its end.  Here it becomes an error of its own, and what is left unwritten goes nowhere.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from control.operator.failure import ExitCode, Failure

# From the specification
STDOUT_FD = 1  # POSIX.1-2017, STDOUT_FILENO


class StdoutError(Exception):
    """What was to be printed could not be; `__cause__` says why."""


class _Watched:
    """The stream, telling its own errors."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with _as_its_own():
            return self._stream.write(text)

    def flush(self) -> None:
        with _as_its_own():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _as_its_own() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StdoutError from error


@contextmanager
def watched_stdout() -> Iterator[None]:
    """Whatever is printed meanwhile raises StdoutError where it cannot be written."""
    stream = sys.stdout
    if stream is None:  # closed by the shell (`>&-`): whoever did that wants nothing printed
        yield
        return
    sys.stdout = cast("TextIO", _Watched(stream))
    try:
        yield
    except StdoutError:
        if stream is sys.__stdout__:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, STDOUT_FD)  # for the flush at Python's end
            os.close(nowhere)
        raise
    finally:
        sys.stdout = stream


def failure_of_stdout(error: StdoutError) -> Failure | None:
    """What is to be told of it; None where the reader has gone, who knows."""
    cause = error.__cause__
    if not isinstance(cause, OSError) or cause.errno == errno.EPIPE:
        return None
    return Failure(
        f"cannot write to stdout: {cause.strerror}",
        why="what was printed is not complete",
        advice="write it elsewhere, or make room",
        code=ExitCode.CHECK_FAILED,
    )
