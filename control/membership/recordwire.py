"""weft's own messages among peers: records, and what anti-entropy says of a set of them, octet for octet.

Each is the body of a weft message (`serfwire.WeftMessage`), so label, encryption and checksum are the pool's:

    ┌───┬──────────────────────────────────────────────────────────┐
    │ R │ map {Name, Id, Epoch, Version, Body}                     │  rumor: a record, to be told on
    │ r │ the same                                                 │  answer: a record that was missing
    │ A │ map {Name, Id, Epoch, Version, Octets, Hash}             │  announcement of one too long for that
    │ a │ the same                                                 │  the same, as an answer
    │ W │ list of [Name, Id, Epoch, Version, [page, …]]            │  wanted: whole, or these pages
    │ P │ map {Name, Id, Epoch, Version, Octets, Page, Data}       │  1024 octets of a long record's body
    │ S │ 16 octets                                                │  summary: the hash of the whole set
    │ B │ 64 × 8 octets                                            │  buckets: the hash of each part of it
    │ D │ map {Buckets, After, Until, Digests}                     │  digests: what a part consists of
    └───┴──────────────────────────────────────────────────────────┘

A record's body is `recordbody`'s.  Everything here has a bound and is refused beyond it, whoever sent it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from control.membership.pack import (
    NAME_OCTETS,
    U32,
    U64,
    Fields,
    fields_untrusted,
    name_untrusted,
    pack,
    unpack_untrusted,
)
from control.membership.recordbody import (
    ID_OCTETS,
    RECORD_OCTETS,
    cut,
    exactly_untrusted,
    id_untrusted,
    list_of_untrusted,
    list_untrusted,
    number_untrusted,
)
from overlay.errors import MalformedError, TruncatedError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Sequence

# Ours
PAGE_OCTETS = 1024
PAGES_MAX = RECORD_OCTETS // PAGE_OCTETS
WANTS_MAX = 64
DIGESTS_MAX = 256
BUCKETS = 64
SUMMARY_OCTETS = 16
BUCKET_OCTETS = 8


@dataclass(frozen=True, slots=True, order=True)
class RecordKey:
    """Which record: its one writer, which start of it, and which word of that start."""

    name: str
    weft_id: str
    epoch: int
    version: int

    @property
    def age(self) -> tuple[int, int]:
        """What decides between two records of one writer: the greater is the newer."""
        return self.epoch, self.version


@dataclass(frozen=True, slots=True)
class Rumor:
    """A record whole.  `is_answer`: it was missing somewhere, and is no news to anybody else."""

    key: RecordKey
    body: bytes
    is_answer: bool = False


@dataclass(frozen=True, slots=True)
class Announcement:
    """There is such a record, too long for a datagram: whoever wants it asks.

    Attributes:
        hash: The record's, by which one that says something else under the same key is told; or empty.
    """

    key: RecordKey
    octets: int
    is_answer: bool = False
    hash: bytes = b""


@dataclass(frozen=True, slots=True)
class Want:
    """Tell me that record, or one newer; only these pages of it, if any are named."""

    key: RecordKey
    pages: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Wants:
    """Everything one message asks for."""

    wants: tuple[Want, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a long record's body, counted from 0."""

    key: RecordKey
    octets: int
    number: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Summary:
    """The hash of the whole set."""

    whole: bytes


@dataclass(frozen=True, slots=True)
class Buckets:
    """The hash of each part of the set."""

    hashes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Digest:
    """That the sender holds this record, and the hash of its body."""

    key: RecordKey
    hash: bytes


@dataclass(frozen=True, slots=True)
class Digests:
    """All the sender holds in these buckets, of names after `after` and up to `until` (empty: no bound)."""

    buckets: tuple[int, ...]
    after: str
    until: str
    digests: tuple[Digest, ...]


RecordMessage = Rumor | Announcement | Wants | Page | Summary | Buckets | Digests


# Writing.


def encode_message(message: RecordMessage) -> bytes:
    """The body of a weft message."""
    match message:
        case Rumor(key, body, is_answer):
            return (b"r" if is_answer else b"R") + pack(_key(key) | {"Body": body})
        case Announcement(key, octets, is_answer, said):
            return (b"a" if is_answer else b"A") + pack(_key(key) | {"Octets": octets, "Hash": said})
        case Wants(wants):
            return b"W" + pack([[*_key(want.key).values(), list(want.pages)] for want in wants])
        case Page(key, octets, number, data):
            return b"P" + pack(_key(key) | {"Octets": octets, "Page": number, "Data": data})
        case Summary(whole):
            return b"S" + whole
        case Buckets(hashes):
            return b"B" + b"".join(hashes)
        case Digests(buckets, after, until, digests):
            listed = [[*_key(each.key).values(), each.hash] for each in digests]
            told = {"Buckets": bytes(buckets), "After": after, "Until": until, "Digests": listed}
            return b"D" + pack(told)


def _key(key: RecordKey) -> dict[str, object]:
    return {"Name": key.name, "Id": key.weft_id, "Epoch": key.epoch, "Version": key.version}


def pages_of(body: bytes) -> int:
    """How many pages a body of that length has."""
    return -(-len(body) // PAGE_OCTETS)


# Reading.


@lru_cache(maxsize=4096)  # a rumor is heard many times on its way round, in the same octets
def parse_message_untrusted(data: bytes) -> RecordMessage:
    """One message; of a record only the envelope is read, `parse_networks_untrusted` reads its body.

    Raises:
        WireError: Empty, of a kind we do not know, or with fields that cannot be.
    """
    if not data:
        raise TruncatedError("record message", expected=1, found=0)
    kind, rest = data[:1], data[1:]
    match kind:
        case b"R" | b"r":
            fields = fields_untrusted(rest, "record")
            return Rumor(_key_untrusted(fields), fields.octets(b"Body", RECORD_OCTETS), kind == b"r")
        case b"A" | b"a":
            return _announcement_untrusted(fields_untrusted(rest, "announcement"), is_answer=kind == b"a")
        case b"W":
            return Wants(_wants_untrusted(unpack_untrusted(rest, "wants")))
        case b"P":
            return _page_untrusted(fields_untrusted(rest, "page"))
        case b"S":
            return Summary(exactly_untrusted(rest, SUMMARY_OCTETS, "summary"))
        case b"B":
            exactly_untrusted(rest, BUCKETS * BUCKET_OCTETS, "buckets")
            return Buckets(cut(rest, BUCKET_OCTETS))
        case b"D":
            return _digests_untrusted(fields_untrusted(rest, "digests"))
        case _:
            raise UnsupportedError(f"record message: expected one of R r A a W P S B D, found {kind!r}")


def _key_untrusted(fields: Fields) -> RecordKey:
    return RecordKey(
        fields.name(b"Name"),
        id_untrusted(fields.octets(b"Id", ID_OCTETS)),
        fields.number(b"Epoch", U64),
        fields.number(b"Version", U64),
    )


def _listed_key_untrusted(items: Sequence[Any]) -> RecordKey:
    name, weft_id, epoch, version = items
    return RecordKey(
        name_untrusted(name, "name"),
        id_untrusted(weft_id),
        number_untrusted(epoch, U64, "epoch"),
        number_untrusted(version, U64, "version"),
    )


def _announcement_untrusted(fields: Fields, *, is_answer: bool) -> Announcement:
    said = fields.octets(b"Hash", SUMMARY_OCTETS)
    if said:
        exactly_untrusted(said, SUMMARY_OCTETS, "announcement.hash")
    return Announcement(_key_untrusted(fields), _octets_untrusted(fields), is_answer, said)


def _octets_untrusted(fields: Fields) -> int:
    """The length announced; one beyond `RECORD_OCTETS` is refused by name, where it would be asked for."""
    octets = fields.number(b"Octets", U32)
    if octets == 0:
        raise MalformedError("octets: expected a body, found none")
    return octets


def _wants_untrusted(value: object) -> tuple[Want, ...]:
    wants = []
    for item in list_untrusted(value, WANTS_MAX, "wants"):
        *key, pages = list_of_untrusted(item, 5, "want")
        numbers = (
            number_untrusted(each, PAGES_MAX - 1, "page")
            for each in list_untrusted(pages, PAGES_MAX, "pages")
        )
        wants.append(Want(_listed_key_untrusted(key), tuple(numbers)))
    return tuple(wants)


def _page_untrusted(fields: Fields) -> Page:
    octets, number = _octets_untrusted(fields), fields.number(b"Page", PAGES_MAX - 1)
    data = fields.octets(b"Data", PAGE_OCTETS)
    expected = min(PAGE_OCTETS, octets - number * PAGE_OCTETS)
    if len(data) != expected:
        raise MalformedError(f"page {number}: expected {expected} octets, found {len(data)}")
    return Page(_key_untrusted(fields), octets, number, data)


def _digests_untrusted(fields: Fields) -> Digests:
    buckets = tuple(fields.octets(b"Buckets", BUCKETS))
    if any(bucket >= BUCKETS for bucket in buckets):
        raise MalformedError(f"digests: expected buckets below {BUCKETS}, found {max(buckets)}")
    digests = []
    for item in list_untrusted(fields.items(b"Digests"), DIGESTS_MAX, "digests"):
        *key, said = list_of_untrusted(item, 5, "digest")
        if type(said) is not bytes or len(said) != BUCKET_OCTETS:
            raise MalformedError(f"digest: expected a hash of {BUCKET_OCTETS} octets, found {said!r:.40}")
        digests.append(Digest(_listed_key_untrusted(key), said))
    after, until = fields.text(b"After", NAME_OCTETS), fields.text(b"Until", NAME_OCTETS)
    return Digests(buckets, after, until, tuple(digests))
