"""What anti-entropy says of a set of records, cut to the size of datagrams; and what is missing by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from control.membership.recordset import bucket_of
from control.membership.recordwire import BUCKETS, Digests

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from control.membership.recordset import Record, RecordSet
    from control.membership.recordwire import Digest, RecordKey

# Ours
PER_DIGEST = 16  # octets of msgpack around a digest's name, weft_id, hash and numbers, at most
BUNDLE_MAX = 64  # messages in one datagram
PER_MESSAGE = 4  # octets each costs in a datagram beside its own


def pages_of_digests(held: RecordSet, buckets: Sequence[int], *, room: int) -> list[Digests]:
    """What these parts consist of, in as many messages as it takes; each says what it covers."""
    room -= 4 * PER_DIGEST - BUCKETS
    pages: list[Digests] = []
    covered: list[int] = []
    listed: list[Digest] = []
    left = room
    for bucket in buckets:
        records = held.shown(bucket)
        need = sum(_octets_of(record.key) for record in records)
        if need > left and covered:
            pages.append(Digests(tuple(covered), "", "", tuple(listed)))
            covered, listed, left = [], [], room
        if need > left:
            pages += _split(bucket, records, room)
            continue
        covered.append(bucket)
        listed += [record.digest for record in records]
        left -= need
    if covered:
        pages.append(Digests(tuple(covered), "", "", tuple(listed)))
    return pages


def _split(bucket: int, records: Sequence[Record], room: int) -> list[Digests]:
    """One part of the set that is too large for one message."""
    pages: list[Digests] = []
    listed: list[Digest] = []
    after, left = "", room
    for record in records:
        need = _octets_of(record.key)
        if need > left:
            pages.append(Digests((bucket,), after, listed[-1].key.name, tuple(listed)))
            after, listed, left = listed[-1].key.name, [], room
        listed.append(record.digest)
        left -= need
    pages.append(Digests((bucket,), after, "", tuple(listed)))
    return pages


def _octets_of(key: RecordKey) -> int:
    return len(key.name.encode()) + len(key.weft_id.encode()) + 2 * PER_DIGEST + 8


def is_covered(name: str, told: Digests) -> bool:
    """Whether the digests would tell of that node's record, if it were held there."""
    return name > told.after and (not told.until or name <= told.until) and bucket_of(name) in told.buckets


def is_newer(record: Record, theirs: Digest | None) -> bool:
    """Whether ours is worth telling to one who holds that."""
    if theirs is None or theirs.key.weft_id != record.key.weft_id:
        return True
    if theirs.key.age == record.key.age:
        return record.digest.hash > theirs.hash
    return record.key.age > theirs.key.age


def bundles(bodies: Sequence[bytes], room: int) -> Iterable[tuple[bytes, ...]]:
    """The bodies in as few datagrams as they fit in, in their order."""
    bundle: list[bytes] = []
    left = room
    for body in bodies:
        if bundle and (len(body) + PER_MESSAGE > left or len(bundle) == BUNDLE_MAX):
            yield tuple(bundle)
            bundle, left = [], room
        bundle.append(body)
        left -= len(body) + PER_MESSAGE
    if bundle:
        yield tuple(bundle)
