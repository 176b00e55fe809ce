//! What the lanes of one engine have in common: limits that hold for all of them together.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::bucket::TokenBucket;
use crate::flows::Key;
use crate::hash::Seeded;

/// MAC pairs whose smallest MSS is remembered.
const SEGMENT_LIMITS_MAX: usize = 4096;

/// One thing that every lane uses now and then, for a moment.
pub struct Shared<T>(Arc<Mutex<T>>);

impl<T> Shared<T> {
    /// To be cloned, one for each lane.
    pub fn new(value: T) -> Shared<T> {
        Shared(Arc::new(Mutex::new(value)))
    }

    /// It, for as long as the guard lives.  After a panic too: nobody carries by it any more.
    pub fn hold(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Shared<T> {
        Shared(self.0.clone())
    }
}

/// The limits of one network.
#[derive(Clone)]
pub struct NetworkLimits {
    /// Of the copies of replicated frames.
    pub copies: Shared<TokenBucket>,
    /// Of TCP segments.
    pub segments: Shared<SegmentLimits>,
}

impl NetworkLimits {
    /// Those of a network that carried nothing yet.
    pub fn new(now: f64) -> NetworkLimits {
        let segments =
            SegmentLimits { limits: HashMap::with_hasher(Seeded::new()), in_order: VecDeque::new() };
        NetworkLimits { copies: Shared::new(TokenBucket::of_copies(now)), segments: Shared::new(segments) }
    }
}

/// The smallest MSS heard of each MAC pair's receivers, by their ingress key.
///
/// What a SYN says on its way out holds for what comes in, by whichever lane.
pub struct SegmentLimits {
    limits: HashMap<Key, u16, Seeded>,
    in_order: VecDeque<Key>,
}

impl SegmentLimits {
    /// A receiver takes no TCP segment above `mss` octets.
    pub fn note(&mut self, ingress_key: Key, mss: u16) {
        match self.limits.get_mut(&ingress_key) {
            Some(known) => *known = mss.min(*known),
            None => {
                if self.limits.len() >= SEGMENT_LIMITS_MAX
                    && let Some(oldest) = self.in_order.pop_front()
                {
                    self.limits.remove(&oldest);
                }
                self.limits.insert(ingress_key, mss);
                self.in_order.push_back(ingress_key);
            }
        }
    }

    /// The smallest segment the receivers of this flow are known to need.
    pub fn of(&self, ingress_key: &Key) -> Option<u16> {
        self.limits.get(ingress_key).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_mss_of_a_pair_counts_for_every_lane() {
        let limits = NetworkLimits::new(0.0);
        let other = limits.clone();
        limits.segments.hold().note([1; 12], 1400);
        other.segments.hold().note([1; 12], 1200);
        limits.segments.hold().note([1; 12], 1300);
        assert_eq!(other.segments.hold().of(&[1; 12]), Some(1200));
        assert_eq!(other.segments.hold().of(&[2; 12]), None);
    }

    #[test]
    fn however_many_pairs_so_many_are_remembered() {
        let limits = NetworkLimits::new(0.0);
        let mut segments = limits.segments.hold();
        for number in 0..2 * SEGMENT_LIMITS_MAX as u32 {
            let mut key = [0; 12];
            key[..4].copy_from_slice(&number.to_be_bytes());
            segments.note(key, 1000);
        }
        assert_eq!(
            (segments.limits.len(), segments.in_order.len()),
            (SEGMENT_LIMITS_MAX, SEGMENT_LIMITS_MAX)
        );
        assert_eq!(segments.of(&[0; 12]), None, "the oldest is forgotten");
    }
}
