"""Token buckets, alone and shared fairly by source.

A bucket holds up to `burst` tokens and gains `rate` a second.  `FairBuckets` gives every source a bucket
of its own beneath one for all: a source that floods empties its own and leaves the others' alone.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

# Ours
SOURCES_MAX = 4096  # buckets remembered; beyond that the longest-idle one is forgotten (it was full anyway)


@dataclass(slots=True)
class TokenBucket:
    """`rate` tokens a second, `burst` at most."""

    rate: float
    burst: float
    tokens: float
    filled_at: float

    @classmethod
    def full(cls, rate: float, burst: float, *, now: float) -> TokenBucket:
        """A bucket that starts with its whole burst."""
        return cls(rate, burst, burst, now)

    def take(self, tokens: float, *, now: float) -> bool:
        """Whether that many were there; they are gone then.  A clock that went back refills nothing."""
        self.tokens = min(self.burst, self.tokens + max(0.0, now - self.filled_at) * self.rate)
        self.filled_at = max(self.filled_at, now)
        if self.tokens < tokens:
            return False
        self.tokens -= tokens
        return True


class FairBuckets:
    """One bucket for each source beneath one for all of them."""

    def __init__(self, *, rate: float, burst: float, share: float, now: float) -> None:
        """Buckets of `rate` and `burst` in all, of which any one source gets at most `share` (0 … 1)."""
        self._all = TokenBucket.full(rate, burst, now=now)
        self._share = share
        self._sources: dict[Hashable, TokenBucket] = {}

    def take(self, source: Hashable, *, now: float) -> bool:
        """Whether this source may have one more token."""
        bucket = self._sources.pop(source, None)
        if bucket is None:
            if len(self._sources) >= SOURCES_MAX:
                del self._sources[next(iter(self._sources))]
            bucket = TokenBucket.full(self._all.rate * self._share, self._all.burst * self._share, now=now)
        self._sources[source] = bucket  # last in the order: forgotten last
        return bucket.take(1, now=now) and self._all.take(1, now=now)
