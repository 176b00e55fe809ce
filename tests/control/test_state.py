"""What the daemon writes down is there whole or as it was before, and belongs to one daemon."""

from __future__ import annotations

import errno
import os
import signal
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from support.disk import full_disk

from control.state import KeptFile, hold_directory, read_file, replace_file
from overlay.errors import DeviceError

LONG = "x" * 1000


def in_child(act: Callable[[], int]) -> int:
    """The status of a child process that ends with what `act` returns, if it comes to that."""
    child = os.fork()
    if child == 0:
        status = 255
        with suppress(BaseException):
            status = act()
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ── Files ───────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_written_is_read_and_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state" / "pool.json"
    umask = os.umask(0)
    try:
        replace_file(path, "first")
    finally:
        os.umask(umask)
    assert (read_file(path), mode_of(path)) == ("first", 0o600)
    path.chmod(0o644)
    replace_file(path, "zweites — größer")
    assert (read_file(path), mode_of(path)) == ("zweites — größer", 0o600)
    assert [each.name for each in path.parent.iterdir()] == ["pool.json"]


def test_there_being_no_file_is_no_error(tmp_path: Path) -> None:
    assert read_file(tmp_path / "none") is None


@pytest.mark.parametrize("step", ["fchmod", "fsync", "replace"])
def test_who_dies_while_writing_leaves_the_old_content(tmp_path: Path, step: str) -> None:
    path = tmp_path / "pool.json"
    replace_file(path, "old")

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def write_and_die() -> int:
        setattr(Path if step == "replace" else os, step, die)
        replace_file(path, "new" * 1000)
        return 0

    assert in_child(write_and_die) == -signal.SIGKILL
    assert read_file(path) == "old"
    replace_file(path, "after")  # what the dead one left beside it is in nobody's way
    assert read_file(path) == "after"
    assert [each.name for each in tmp_path.iterdir()] == ["pool.json"]


def test_the_content_is_on_disk_before_it_has_the_name_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pool.json"
    steps: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        kind = os.fstat(descriptor).st_mode
        steps.append(
            "sync directory" if stat.S_ISDIR(kind) else f"sync {os.fstat(descriptor).st_size} octets"
        )
        fsync(descriptor)

    def noted_rename(self: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_rename)
    replace_file(path, "12345")
    assert steps == ["sync 5 octets", "rename", "sync directory"]


def test_a_full_disk_is_an_error_and_the_old_content_stands(tmp_path: Path) -> None:
    path = tmp_path / "pool.json"
    replace_file(path, "old")
    with full_disk(), pytest.raises(DeviceError, match=r"pool\.json: File too large") as caught:
        replace_file(path, LONG)
    assert caught.value.why
    assert caught.value.advice
    assert read_file(path) == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["pool.json"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "keys", tmp_path / "keys"
    target.write_text("old")
    link.symlink_to(target)
    replace_file(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


@pytest.mark.parametrize(
    ("content", "number"), [(b"\xff\xfe\x00", errno.EILSEQ), (None, errno.EISDIR)], ids=["torn", "directory"]
)
def test_what_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, number: int) -> None:
    path = tmp_path / "pool.json"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(DeviceError, match=r"pool\.json: ") as caught:
        read_file(path)
    assert caught.value.errno == number
    assert caught.value.advice


def test_where_no_directory_can_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for refused in (
        lambda: replace_file(tmp_path / "file" / "pool.json", "x"),
        lambda: hold_directory(tmp_path / "file"),
    ):
        with pytest.raises(DeviceError, match="file"):
            refused()


# ── Kept files ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_kept_file_is_written_when_it_changed_and_only_then(tmp_path: Path) -> None:
    path = tmp_path / "pool.json"
    path.write_text("there already")
    kept = KeptFile(path, on_disk="there already")
    inodes = []
    for text in ("there already", "new", "new", "newer"):
        kept.keep(text)
        inodes.append(path.stat().st_ino)
    assert path.read_text() == "newer"
    before, new, same, newer = inodes
    assert before != new == same != newer


def test_a_refusal_is_told_once_and_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "pool.json"
    kept = KeptFile(path)
    kept.keep("old")
    with full_disk():
        for number in range(3):
            kept.keep(f"{number}{LONG}")
            assert kept.problem is not None
            assert path.read_text() == "old"
    assert len(caplog.records) == 1
    kept.keep("new")
    assert (kept.problem, path.read_text()) == (None, "new")
    with full_disk():
        kept.keep(LONG)
        kept.keep("new")  # what the disk holds is wanted again
    assert kept.problem is None


def test_a_start_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    kept = KeptFile(tmp_path / "pool.json")
    with full_disk(), pytest.raises(DeviceError):
        kept.write(LONG)


# ── One daemon ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_directory_is_one_processs_until_it_lets_go_or_dies(tmp_path: Path) -> None:
    directory = tmp_path / "state"

    def held_elsewhere() -> int:
        try:
            hold_directory(directory)
        except DeviceError as error:
            return error.errno
        return 0

    def hold_and_die() -> int:
        hold_directory(directory)
        os.kill(os.getpid(), signal.SIGKILL)
        return 1

    descriptor = hold_directory(directory)
    assert in_child(held_elsewhere) == errno.EBUSY
    os.close(descriptor)
    assert in_child(hold_and_die) == -signal.SIGKILL
    assert in_child(held_elsewhere) == 0
