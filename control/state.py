"""What outlives the daemon, on disk: written in one piece, read with a clear error, held by one daemon.

A file is replaced, never edited: a new one beside it, synced, renamed over it, the directory synced.  After
a crash at any moment the old content or the new one is there, whole.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from pathlib import Path

from overlay.errors import DeviceError

# Ours
PRIVATE_MODE = 0o600
LOCK_FILE = "lock"

log = logging.getLogger("weft.state")


class KeptFile:
    """A file that follows what its owner knows.  Its methods may be called from any thread.

    Attributes:
        problem: Why the disk does not hold what `keep` was last given, or None: it does.
    """

    def __init__(self, path: Path, *, on_disk: str | None = None, mode: int = PRIVATE_MODE) -> None:
        """`on_disk` is what the file holds now, in the words in which it would be written again."""
        self.problem: DeviceError | None = None
        self._path = path
        self._mode = mode
        self._on_disk = on_disk
        self._writing = threading.Lock()  # two writers would share the new file beside

    def write(self, text: str) -> None:
        """Has the disk hold this text when it returns.

        Raises:
            DeviceError: It does not; the old content stands.
        """
        with self._writing:
            if text != self._on_disk:
                replace_file(self._path, text, mode=self._mode)
                self._on_disk = text

    def keep(self, text: str) -> None:
        """As `write`, but a refusal becomes the `problem`, logged once: the owner tries again in its time."""
        try:
            self.write(text)
        except DeviceError as error:
            if self.problem is None:
                log.error("%s; %s", error, error.why)
            self.problem = error
        else:
            self.problem = None


def hold_directory(directory: Path) -> int:
    """A descriptor by which the directory is this process's alone until it is closed; made if missing.

    Raises:
        DeviceError: EBUSY, another daemon holds it; else what the kernel said.
    """
    path = directory / LOCK_FILE
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_MODE)
    except OSError as error:
        raise _refused(path, error, "kept") from error
    try:
        os.lockf(descriptor, os.F_TLOCK, 0)  # the kernel lets go of it when we die, however that is
    except OSError as error:
        os.close(descriptor)
        raise DeviceError(
            str(directory),
            errno.EBUSY,
            why="another weft keeps its state there, and two nodes must not be one",
            advice="give this one its own --state-dir",
        ) from error
    return descriptor


def replace_file(path: Path, text: str, *, mode: int = PRIVATE_MODE) -> None:
    """Makes the file hold this text, on disk when it returns; its directory is made if it is missing.

    Raises:
        DeviceError: The disk is full, or the file is not ours to write; the old content stands.
    """
    path = Path(os.path.realpath(path))  # a symbolic link stays one: what it points to is replaced
    beside = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(descriptor, "w") as file:
                os.fchmod(descriptor, mode)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
        _sync_directory(path.parent)
    except OSError as error:
        raise _refused(path, error, "written") from error


def read_file(path: Path) -> str | None:
    """The file's text, or None: there is none.

    Raises:
        DeviceError: It is there and cannot be read.
    """
    try:
        return path.read_text()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        why = "it is not text: torn, or not ours"
        raise DeviceError(str(path), errno.EILSEQ, why=why, advice=f"move {path} away") from error
    except OSError as error:
        raise _refused(path, error, "read") from error


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refused(path: Path, error: OSError, what: str) -> DeviceError:
    return DeviceError(
        str(path),
        error.errno or errno.EIO,
        why=f"what must outlive a restart could not be {what}",
        advice="free its disk, make it writable, or choose another --state-dir",
    )
