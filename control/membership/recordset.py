"""The records one node holds, and the hashes by which two nodes find out that they hold the same.

    set      the xor of every record's hash                      16 octets, compared every second
    bucket   the same of the records whose owner's name falls into it, cut to 8 octets    64 of them
    digest   one record's key and hash

A record counts for the hashes while its owner is here: of the dead and the gone everybody forgets in his own
time, and that is no difference worth talking about.  What is taken out leaves a tombstone, so that an old
copy on its way round cannot bring it back.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING

from control.membership.config import MEMBERS_MAX, TOMBSTONE_AGE
from control.membership.recordbody import NetworkRecord
from control.membership.recordwire import BUCKET_OCTETS, BUCKETS, SUMMARY_OCTETS, Digest, RecordKey

if TYPE_CHECKING:
    from collections.abc import Iterator

# Ours
RECORDS_MAX = MEMBERS_MAX
TOMBSTONES_MAX = MEMBERS_MAX


@dataclass(frozen=True, slots=True)
class Record:
    """One node's word about itself.

    Attributes:
        body: `networks`, in the octets in which they came and go on.
        hash: Of key and body, 16 octets.
    """

    key: RecordKey
    networks: tuple[NetworkRecord, ...]
    body: bytes
    hash: bytes

    @property
    def name(self) -> str:
        """Its writer's."""
        return self.key.name

    @property
    def digest(self) -> Digest:
        """That we hold it."""
        return Digest(self.key, self.hash[:BUCKET_OCTETS])


@lru_cache(maxsize=4096)  # the same records are hashed by everybody: it matters to a thousand in one process
def hash_of(key: RecordKey, body: bytes) -> bytes:
    """The hash of one record."""
    head = f"{key.name}\0{key.weft_id}\0{key.epoch}\0{key.version}\0".encode()
    return blake2b(head + body, digest_size=SUMMARY_OCTETS).digest()


@lru_cache(maxsize=2 * MEMBERS_MAX)
def bucket_of(name: str) -> int:
    """Which part of the set a node's record is in."""
    return blake2b(name.encode(), digest_size=1).digest()[0] % BUCKETS


class RecordSet:
    """Records by their writer's name."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._tombstones: OrderedDict[str, tuple[RecordKey, float]] = OrderedDict()
        self._shown: list[dict[str, Record]] = [{} for _ in range(BUCKETS)]
        self._hash = 0
        self._bucket_hashes = [0] * BUCKETS

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records.values())

    def lookup(self, name: str) -> Record | None:
        """The record of that node."""
        return self._records.get(name)

    def tombstone(self, name: str) -> RecordKey | None:
        """The last word of one that is gone."""
        entry = self._tombstones.get(name)
        return entry[0] if entry else None

    @property
    def hash(self) -> bytes:
        """Of the records shown."""
        return self._hash.to_bytes(SUMMARY_OCTETS, "big")

    @property
    def bucket_hashes(self) -> tuple[bytes, ...]:
        """Of each part of them."""
        return tuple(value.to_bytes(BUCKET_OCTETS, "big") for value in self._bucket_hashes)

    def shown(self, bucket: int) -> list[Record]:
        """The records shown in that part, by name."""
        return [record for _, record in sorted(self._shown[bucket].items())]

    def put(self, record: Record, *, is_shown: bool) -> None:
        """Hold this record; it replaces the writer's last."""
        self._tombstones.pop(record.name, None)
        self.show(record.name, is_shown=False)
        self._records[record.name] = record
        self.show(record.name, is_shown=is_shown)

    def show(self, name: str, *, is_shown: bool) -> None:
        """Have the record count for the hashes, or not.  Idempotent; nothing where there is no record."""
        record = self._records.get(name)
        bucket = bucket_of(name)
        shown = self._shown[bucket]
        if record is None or (name in shown) == is_shown:
            return
        if is_shown:
            shown[name] = record
        else:
            del shown[name]
        self._hash ^= int.from_bytes(record.hash, "big")
        self._bucket_hashes[bucket] ^= int.from_bytes(record.hash[:BUCKET_OCTETS], "big")

    def remove(self, name: str, *, now: float) -> Record | None:
        """Forget the record, but not that it was there.  Returns it."""
        self.show(name, is_shown=False)
        record = self._records.pop(name, None)
        if record is not None:
            self._tombstones[name] = record.key, now
            if len(self._tombstones) > TOMBSTONES_MAX:
                self._tombstones.popitem(last=False)
        return record

    def expire(self, *, now: float) -> None:
        """Forget the tombstones that are older than any copy can be."""
        while self._tombstones:
            name, (_, since) = next(iter(self._tombstones.items()))
            if now - since < TOMBSTONE_AGE:
                return
            del self._tombstones[name]
