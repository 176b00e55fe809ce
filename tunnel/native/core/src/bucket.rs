//! Token buckets, alone and shared fairly by source (`overlay.bucket`), and the limits kept with them
//! (`tunnel.meter`).

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use crate::hash::Seeded;
use crate::sys::Host;

/// Buckets remembered; beyond that the longest-idle one is forgotten (it was full anyway).
const SOURCES_MAX: usize = 4096;
/// The most that one source gets of what all share.
const SHARE: f64 = 0.5;
/// Copies of replicated frames a second, per network; and at once.
const COPIES: (f64, f64) = (100_000.0, 20_000.0);

/// `rate` tokens a second, `burst` at most.
pub struct TokenBucket {
    rate: f64,
    burst: f64,
    tokens: f64,
    filled_at: f64,
}

impl TokenBucket {
    /// One that starts with its whole burst.
    pub fn full(rate: f64, burst: f64, now: f64) -> TokenBucket {
        TokenBucket { rate, burst, tokens: burst, filled_at: now }
    }

    /// The copies of one network.
    pub fn of_copies(now: f64) -> TokenBucket {
        TokenBucket::full(COPIES.0, COPIES.1, now)
    }

    /// Whether that many were there; they are gone then.  A clock that went back refills nothing.
    pub fn take(&mut self, tokens: f64, now: f64) -> bool {
        self.tokens = self.burst.min(self.tokens + (now - self.filled_at).max(0.0) * self.rate);
        self.filled_at = self.filled_at.max(now); // another lane's turn may have begun before
        let is_there = self.tokens >= tokens;
        if is_there {
            self.tokens -= tokens;
        }
        is_there
    }
}

/// One bucket for each source beneath one for all of them.
pub struct FairBuckets<S> {
    all: TokenBucket,
    sources: HashMap<S, (TokenBucket, u64), Seeded>,
    /// Sources as they were used, oldest first; an entry counts only while its number is the source's last.
    used: VecDeque<(S, u64)>,
    number: u64,
}

impl<S: Copy + Eq + Hash> FairBuckets<S> {
    /// Of `rate` and `burst` in all, of which any one source gets at most its share.
    pub fn new((rate, burst): (f64, f64), now: f64) -> FairBuckets<S> {
        let sources = HashMap::with_hasher(Seeded::new());
        FairBuckets { all: TokenBucket::full(rate, burst, now), sources, used: VecDeque::new(), number: 0 }
    }

    /// Whether this source may have one more token.
    pub fn take(&mut self, source: S, now: f64) -> bool {
        self.number += 1;
        if !self.sources.contains_key(&source) && self.sources.len() >= SOURCES_MAX {
            self.forget_oldest();
        }
        let (rate, burst) = (self.all.rate * SHARE, self.all.burst * SHARE);
        let fresh = || (TokenBucket::full(rate, burst, now), 0);
        let (bucket, number) = self.sources.entry(source).or_insert_with(fresh);
        *number = self.number;
        let is_there = bucket.take(1.0, now);
        self.used.push_back((source, self.number));
        if self.used.len() > 4 * SOURCES_MAX {
            let sources = &self.sources;
            self.used.retain(|(source, number)| sources.get(source).is_some_and(|(_, last)| last == number));
        }
        is_there && self.all.take(1.0, now)
    }

    fn forget_oldest(&mut self) {
        while let Some((source, number)) = self.used.pop_front() {
            if self.sources.get(&source).is_some_and(|(_, last)| *last == number) {
                self.sources.remove(&source);
                return;
            }
        }
    }
}

/// Who asks: a station behind the device, or a VTEP, whatever it asks about several networks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Source {
    /// Behind the device.
    Mac([u8; 6]),
    /// Behind the device of a network of bare packets.
    Address([u8; 4]),
    /// Behind the tunnel.
    Vtep(Host),
}

/// Separate limits for three kinds of upcalls, fair by source.
pub struct Meter {
    /// Frames of flows nobody remembers.
    pub new_flows: FairBuckets<Source>,
    /// ARP and ND.
    pub discovery: FairBuckets<Source>,
    /// Frames too long for the path.
    pub errors: FairBuckets<Source>,
}

impl Meter {
    /// (rate a second, burst) that all sources share, as `tunnel.meter.UpcallKind` has them.
    pub fn new(now: f64) -> Meter {
        Meter {
            new_flows: FairBuckets::new((20_000.0, 40_000.0), now),
            discovery: FairBuckets::new((4_000.0, 4_000.0), now),
            errors: FairBuckets::new((200.0, 100.0), now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_floods_empties_its_own_bucket() {
        let mut buckets = FairBuckets::new((10.0, 100.0), 0.0);
        let granted = (0..1000).filter(|_| buckets.take(1, 0.0)).count();
        assert_eq!(granted, 50);
        assert!(buckets.take(2, 0.0));
        assert!(buckets.take(1, 1.0));
    }

    #[test]
    fn a_turn_that_began_earlier_refills_nothing_twice() {
        let mut bucket = TokenBucket::full(10.0, 100.0, 0.0);
        assert!(bucket.take(100.0, 0.0));
        assert!(bucket.take(10.0, 1.0));
        assert!(!bucket.take(1.0, 0.5));
        assert!(!bucket.take(1.0, 1.0));
    }

    #[test]
    fn however_many_sources_so_many_are_remembered() {
        let mut buckets = FairBuckets::new((1e9, 1e9), 0.0);
        for source in 0..200_000 {
            assert!(buckets.take(source, 0.0));
            buckets.take(0, 0.0);
        }
        assert_eq!(buckets.sources.len(), SOURCES_MAX);
        assert!(buckets.sources.contains_key(&0), "it was in use all the time");
        assert!(buckets.used.len() <= 4 * SOURCES_MAX);
    }
}
