"""What a node in a pool keeps on disk: who it is, where the others were, and the pool's keys.

    state_dir/pool.json      `membership.snapshot`: weft_id, epoch, incarnation, clock, the others' addresses
    keyring                  Serf's format, a JSON list of base64 keys; rewritten when the pool rotates them

The directory is held by one daemon at a time: two with one identity would be one node in two places.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from control.membership.config import MEMBERS_MAX
from control.membership.keys import format_keyring, parse_keyring_untrusted
from control.membership.member import MemberState
from control.membership.secure import Keyring
from control.membership.snapshot import Snapshot, encode_snapshot, parse_snapshot_untrusted, snapshot_of
from control.state import KeptFile, hold_directory, read_file
from overlay.errors import ConfigError, DeviceError, Problem, WireError

if TYPE_CHECKING:
    from control.membership.serf import Serf

# Ours
SNAPSHOT_FILE = "pool.json"


class PoolFiles:
    """The files of one daemon, from the start until `close`.

    Attributes:
        start: The memory of this start: a new epoch.
        keyring: The keys; the core changes it, and `keep_keyring` follows.
    """

    def __init__(
        self, start: Snapshot, snapshot_file: KeptFile, keyring: Keyring, keyring_file: KeptFile | None
    ) -> None:
        self.start = start
        self.keyring = keyring
        self._snapshot_file = snapshot_file
        self._keyring_file = keyring_file
        self._closing = ExitStack()

    @classmethod
    def open(cls, state_dir: Path, keyring_path: str | None) -> PoolFiles:
        """Holds the directory and reads what is there; writes nothing.

        Raises:
            ConfigError: The snapshot or the keyring is not one.
            DeviceError: Another daemon holds the directory, or it cannot be read.
        """
        with ExitStack() as undo:
            undo.callback(os.close, hold_directory(state_dir))
            path = state_dir / SNAPSHOT_FILE
            start = _remembered(path).next_start()
            keyring, keyring_file = Keyring(), None
            if keyring_path is not None:
                keyring = read_keyring(Path(keyring_path))
                keyring_file = KeptFile(Path(keyring_path), on_disk=format_keyring(keyring.keys))
            files = cls(start, KeptFile(path), keyring, keyring_file)
            files._closing = undo.pop_all()
        return files

    def close(self) -> None:
        """Lets another daemon have the directory.  Idempotent."""
        self._closing.close()

    def begin(self) -> None:
        """Has the disk know of this start; nothing may be said before.

        Raises:
            DeviceError: It cannot be written.
        """
        self._snapshot_file.write(encode_snapshot(self.start))

    def note_epoch(self, epoch: int) -> None:
        """The pool has heard of a start of ours that we know nothing of: the next one is to be later."""
        self.start = replace(self.start, epoch=max(self.start.epoch, epoch))

    def keep(self, core: Serf) -> None:
        """Writes down what changed since the last time."""
        self._snapshot_file.keep(self._snapshot_of(core))
        self.keep_keyring()

    async def keep_in_thread(self, core: Serf) -> None:
        """As `keep`, without making the loop wait for the disk."""
        # The core belongs to the loop: only the text leaves it.
        await asyncio.to_thread(self._snapshot_file.keep, self._snapshot_of(core))
        if self._keyring_file is not None:
            await asyncio.to_thread(self._keyring_file.keep, format_keyring(self.keyring.keys))

    def keep_keyring(self) -> None:
        """Has the disk hold the keys in use: after a restart they are what lets us in."""
        if self._keyring_file is not None:
            self._keyring_file.keep(format_keyring(self.keyring.keys))

    @property
    def problems(self) -> list[DeviceError]:
        """Why the disk does not hold what it should."""
        kept = (self._snapshot_file, self._keyring_file)
        return [file.problem for file in kept if file is not None and file.problem is not None]

    def _snapshot_of(self, core: Serf) -> str:
        snapshot = snapshot_of(core, self.start.weft_id, self.start.epoch)
        # Whoever is cut off holds the others dead, or has not met them: a restart then must not forget them.
        lost = [(m.name, m.endpoint) for m in core.members if m.state is MemberState.DEAD]
        if not snapshot.members:
            known = {member.name for member in core.members}
            lost += [(name, endpoint) for name, endpoint in self.start.members if name not in known]
        members = (*snapshot.members, *lost)[:MEMBERS_MAX]
        return encode_snapshot(replace(snapshot, members=members))


def read_keyring(path: Path) -> Keyring:
    """The keys in the file, the encrypting one first.

    Raises:
        ConfigError: There is no file, or it is no list of keys.
        DeviceError: It cannot be read.
    """
    text = read_file(path)
    if text is None:
        raise ConfigError(Problem("gossip.keyring", f"expected a file at {path}, found none"))
    try:
        return Keyring(parse_keyring_untrusted(text))
    except WireError as error:
        raise ConfigError(Problem("gossip.keyring", f"{path}: {error}")) from None


def _remembered(path: Path) -> Snapshot:
    """What the disk knows of us; a new identity where it knows nothing."""
    text = read_file(path)
    if text is None:
        return Snapshot(weft_id=secrets.token_hex(16), epoch=0)
    try:
        return parse_snapshot_untrusted(text)
    except WireError as error:
        why = f"{path}: {error}; torn, edited, or of a later weft: move it away and this node is a new one"
        raise ConfigError(Problem("node.state_dir", why)) from None
