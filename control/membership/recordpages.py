"""Records too long for one datagram, fetched page by page from whoever announced them.

The asker sets the pace: a window of pages is asked for, and the next when all of it has come; what does not
come is asked for again, a few times.  So nobody can be made to send more than a window at once, nor to hold
more than `ASSEMBLIES_MAX` records under way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from control.membership.recordwire import PAGE_OCTETS, Want

if TYPE_CHECKING:
    from control.membership.recordwire import Announcement, Page, RecordKey

# Ours
ASSEMBLIES_MAX = 64
WINDOW_PAGES = 16
RETRY_SECONDS = 0.5
TRIES = 6


@dataclass(slots=True)
class Assembly:
    """One long record under way.

    Attributes:
        source: Whom we ask.
        is_answer: As of the announcement: whether the record is no news to anybody else.
        tries: How often in a row we asked in vain.
    """

    key: RecordKey
    octets: int
    source: str
    is_answer: bool
    pages: dict[int, bytes] = field(default_factory=dict)
    asked: frozenset[int] = frozenset()
    retry_at: float = 0.0
    tries: int = 0

    def next_want(self, *, now: float) -> Want:
        """The next window of pages that are missing."""
        missing = [number for number in range(-(-self.octets // PAGE_OCTETS)) if number not in self.pages]
        self.asked = frozenset(missing[:WINDOW_PAGES])
        self.retry_at = now + RETRY_SECONDS
        self.tries += 1
        return Want(self.key, tuple(sorted(self.asked)))

    @property
    def is_complete(self) -> bool:
        """Whether every page is here."""
        return len(self.pages) * PAGE_OCTETS >= self.octets

    @property
    def body(self) -> bytes:
        """The record's body, once it is complete."""
        return b"".join(data for _, data in sorted(self.pages.items()))


class Assemblies:
    """The long records under way, by their writer's name."""

    def __init__(self) -> None:
        self._by_name: dict[str, Assembly] = {}

    def __len__(self) -> int:
        return len(self._by_name)

    @property
    def next_at(self) -> float | None:
        """When the first of them is to be asked for again."""
        return min((each.retry_at for each in self._by_name.values()), default=None)

    def begin(self, announced: Announcement, source: str) -> Assembly | None:
        """A new assembly, in place of an older one of that node; None: too many are under way."""
        name = announced.key.name
        if name not in self._by_name and len(self._by_name) >= ASSEMBLIES_MAX:
            return None
        assembly = Assembly(announced.key, announced.octets, source, announced.is_answer)
        self._by_name[name] = assembly
        return assembly

    def is_under_way(self, key: RecordKey) -> bool:
        """Whether this record is, or a newer one of that writer."""
        assembly = self._by_name.get(key.name)
        return assembly is not None and assembly.key.weft_id == key.weft_id and assembly.key.age >= key.age

    def take(self, page: Page, sender: str) -> Assembly | None:
        """The assembly this page belongs to, with it; None: nobody asked for it there."""
        assembly = self._by_name.get(page.key.name)
        if assembly is None or (assembly.key, assembly.octets, assembly.source) != (
            page.key,
            page.octets,
            sender,
        ):
            return None
        if page.number not in assembly.asked:
            return None
        assembly.asked -= {page.number}
        assembly.pages[page.number] = page.data
        assembly.tries = 0
        return assembly

    def drop(self, name: str) -> None:
        """Nothing of that node is under way any more."""
        self._by_name.pop(name, None)

    def due(self, *, now: float) -> list[Assembly]:
        """Those to ask for again; the ones asked for in vain too often are given up."""
        late = [each for each in self._by_name.values() if each.retry_at <= now]
        for assembly in late:
            if assembly.tries >= TRIES:
                self.drop(assembly.key.name)
        return [each for each in late if each.tries < TRIES]
