//! Remembered verdicts: flow tables, what they rest on, and exact forgetting (`tunnel.flows`).
//!
//! A flow rests on every table place that was looked up for its verdict; when a place changes `Dependents` names the
//! flows to forget, no more and no fewer.  Tables are bounded, one for each direction and VTEP; a full one remembers
//! nothing new.

use std::collections::{HashMap, HashSet};

use crate::hash::Seeded;
use crate::reason::Reason;

/// Destination and source MAC, as they stand in the frame.
pub type Key = [u8; 12];

/// Flows per network, egress.
pub const EGRESS_FLOWS_MAX: usize = 1 << 16;
/// Flows per VTEP of a network, ingress.
pub const INGRESS_FLOWS_MAX: usize = 1 << 15;
const IDLE_SECONDS: f64 = 60.0;
const EXPIRE_SLICE: usize = 4096; // flows looked at in one call of `due`

/// What becomes of a flow's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// To the network's own device.
    Deliver,
    /// To the VTEP of that number.
    Encapsulate(u32),
    /// A copy to every VTEP of the flood list.
    Replicate,
    /// Nowhere.
    Drop(Reason),
}

/// Whose table: a network's egress, or a VTEP's ingress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// Of the network of that number.
    Egress(u32),
    /// Of the VTEP of that number.
    Ingress(u32),
}

/// What tells a frame's flow from others of its MAC pair: protocol, addresses and ports.
pub type Selector = [u8; 13];
/// That of a frame that has no addresses and ports where most have them: nothing to go by.
pub const NO_PORTS: Selector = [0; 13];

/// A verdict remembered, and what it has carried.
///
/// HOT PATH: what a frame reads and writes is one line of the cache; key and end of its time lie behind.
#[repr(C, align(64))]
pub struct Flow {
    /// What was decided.
    pub verdict: Verdict,
    /// As much of the flow hash as chooses a sender.
    pub entropy: u16,
    /// Of the last frame, or NO_PORTS; while it stays, so does `entropy`.
    pub selector: Selector,
    /// When it last carried.
    pub used_at: f64,
    /// Frames carried.
    pub frames: u64,
    /// Octets of frame carried.
    pub octets: u64,
    places: Box<[u32]>,
    /// Its key.
    pub key: Key,
    /// When a verdict made under a limit ends; infinite for others.
    pub expires_at: f64,
}

/// The flows of one direction of one network (ingress: of one VTEP), and those pending.
pub struct FlowTable {
    owner: Owner,
    capacity: usize,
    index: HashMap<Key, u32, Seeded>,
    flows: Vec<Option<Flow>>,
    free: Vec<u32>,
    sweep: usize,
    /// Key of a pending flow → its question.
    pub pending: HashMap<Key, u64, Seeded>,
}

impl FlowTable {
    /// An empty one.
    pub fn new(owner: Owner, capacity: usize) -> FlowTable {
        let (index, pending) = (HashMap::with_hasher(Seeded::new()), HashMap::with_hasher(Seeded::new()));
        FlowTable { owner, capacity, index, flows: vec![], free: vec![], sweep: 0, pending }
    }

    /// The flow with this key.  HOT PATH: once per frame.
    #[inline]
    pub fn find(&mut self, key: &Key) -> Option<&mut Flow> {
        let slot = *self.index.get(key)?;
        self.flows.get_mut(slot as usize)?.as_mut()
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Remembers the verdict; None: the table is full and does not.
    pub fn activate(&mut self, dependents: &mut Dependents, remembered: Remembered<'_>) -> Option<&mut Flow> {
        let Remembered { key, verdict, expires_at, places, now } = remembered;
        if self.index.contains_key(&key) {
            self.forget(dependents, &key);
        } else if self.index.len() >= self.capacity {
            return None;
        }
        let places = places.iter().map(|place| dependents.add(place, self.owner, key)).collect();
        let flow = Flow {
            key,
            verdict,
            expires_at,
            used_at: now,
            frames: 0,
            octets: 0,
            selector: NO_PORTS,
            entropy: 0,
            places,
        };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.flows.push(None);
            (self.flows.len() - 1) as u32
        });
        self.index.insert(key, slot);
        Some(self.flows[slot as usize].insert(flow))
    }

    /// Remembers it no more.  Idempotent.
    pub fn forget(&mut self, dependents: &mut Dependents, key: &Key) {
        let Some(slot) = self.index.remove(key) else { return };
        if let Some(flow) = self.flows[slot as usize].take() {
            for place in &flow.places {
                dependents.remove(*place, self.owner, key);
            }
        }
        self.free.push(slot);
    }

    /// Forgets everything that is remembered (what is pending stays pending).
    pub fn clear(&mut self, dependents: &mut Dependents) {
        let keys: Vec<Key> = self.index.keys().copied().collect();
        for key in keys {
            self.forget(dependents, &key);
        }
        self.flows.clear();
        self.free.clear();
    }

    /// Forgets the flows that are idle or whose verdict's own time is over, a slice at each call.
    pub fn expire(&mut self, dependents: &mut Dependents, now: f64) {
        let end = self.flows.len().min(self.sweep + EXPIRE_SLICE);
        let is_over = |flow: &&Flow| now - flow.used_at >= IDLE_SECONDS || now >= flow.expires_at;
        let over: Vec<Key> = self.flows[self.sweep.min(end)..end]
            .iter()
            .flatten()
            .filter(is_over)
            .map(|flow| flow.key)
            .collect();
        for key in over {
            self.forget(dependents, &key);
        }
        self.sweep = if end >= self.flows.len() { 0 } else { end };
    }

    /// The flows in the slots from there on, and where to go on, None at the end.
    pub fn slice(&self, from: usize, count: usize) -> (impl Iterator<Item = &Flow>, Option<usize>) {
        let end = self.flows.len().min(from + count);
        let next = (end < self.flows.len()).then_some(end);
        (self.flows[from.min(end)..end].iter().flatten(), next)
    }
}

/// What `FlowTable::activate` remembers.
pub struct Remembered<'a> {
    /// Its key.
    pub key: Key,
    /// What was decided.
    pub verdict: Verdict,
    /// Infinite where it has no own end.
    pub expires_at: f64,
    /// Every table place looked up, as octets.
    pub places: &'a [Vec<u8>],
    /// When.
    pub now: f64,
}

/// Table place → the flows whose verdict rests on it.
#[derive(Default)]
pub struct Dependents {
    numbers: HashMap<Vec<u8>, u32, Seeded>,
    places: Vec<Place>,
    free: Vec<u32>,
}

#[derive(Default)]
struct Place {
    name: Vec<u8>,
    flows: HashSet<(Owner, Key), Seeded>,
}

impl Dependents {
    fn add(&mut self, name: &[u8], owner: Owner, key: Key) -> u32 {
        let number = match self.numbers.get(name) {
            Some(number) => *number,
            None => {
                let number = self.free.pop().unwrap_or_else(|| {
                    self.places.push(Place::default());
                    (self.places.len() - 1) as u32
                });
                self.numbers.insert(name.to_vec(), number);
                self.places[number as usize].name = name.to_vec();
                number
            }
        };
        self.places[number as usize].flows.insert((owner, key));
        number
    }

    fn remove(&mut self, number: u32, owner: Owner, key: &Key) {
        let place = &mut self.places[number as usize];
        if place.flows.remove(&(owner, *key)) && place.flows.is_empty() {
            let place = std::mem::take(place);
            self.numbers.remove(&place.name);
            self.free.push(number);
        }
    }

    /// The flows that rest on one of these places.
    pub fn resting_on(&self, places: &[Vec<u8>]) -> Vec<(Owner, Key)> {
        let numbers = places.iter().filter_map(|place| self.numbers.get(place));
        numbers.flat_map(|number| self.places[*number as usize].flows.iter().copied()).collect()
    }

    /// How many places something rests on.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Octets;
    use std::mem::{offset_of, size_of};

    #[test]
    fn what_a_frame_touches_of_a_flow_is_one_line_of_the_cache() {
        assert!(offset_of!(Flow, places) + size_of::<Box<[u32]>>() <= 64);
        assert_eq!(size_of::<Option<Flow>>(), 128); // that there is one at all is seen by `places`
    }

    fn key(number: usize) -> Key {
        let mut key = [2; 12];
        key[4..].copy_from_slice(&(number as u64).to_be_bytes());
        key
    }

    /// Against a naive twin: a list of (key, places), searched through.
    #[test]
    fn exactly_the_flows_that_rest_on_a_place_are_forgotten() {
        let mut random = Octets::new(9);
        let mut dependents = Dependents::default();
        let mut table = FlowTable::new(Owner::Egress(0), 40);
        let mut naive: Vec<(Key, Vec<Vec<u8>>)> = vec![];
        for step in 0..20_000 {
            let (key, now) = (key(random.below(60)), f64::from(step));
            let places: Vec<Vec<u8>> = (0..random.below(3)).map(|_| vec![random.below(30) as u8]).collect();
            match random.below(4) {
                0 => {
                    table.forget(&mut dependents, &key);
                    naive.retain(|(other, _)| *other != key);
                }
                1 => {
                    for (_, key) in dependents.resting_on(&places) {
                        table.forget(&mut dependents, &key);
                    }
                    naive.retain(|(_, rests_on)| !rests_on.iter().any(|place| places.contains(place)));
                }
                _ => {
                    let verdict = Verdict::Replicate;
                    let remembered =
                        Remembered { key, verdict, expires_at: f64::INFINITY, places: &places, now };
                    let is_known = naive.iter().any(|(other, _)| *other == key);
                    assert_eq!(
                        table.activate(&mut dependents, remembered).is_some(),
                        is_known || naive.len() < 40
                    );
                    if is_known || naive.len() < 40 {
                        naive.retain(|(other, _)| *other != key);
                        naive.push((key, places));
                    }
                }
            }
            assert_eq!(table.len(), naive.len());
            assert!(naive.iter().all(|(key, _)| table.find(key).is_some()));
        }
        table.clear(&mut dependents);
        assert!(dependents.is_empty() && table.is_empty());
    }

    #[test]
    fn idle_flows_leave_and_busy_ones_stay() {
        let mut dependents = Dependents::default();
        let mut table = FlowTable::new(Owner::Ingress(0), 1 << 15);
        for number in 0..10_000 {
            let expires_at = if number == 7 { 10.0 } else { f64::INFINITY };
            let remembered =
                Remembered { key: key(number), verdict: Verdict::Deliver, expires_at, places: &[], now: 0.0 };
            table.activate(&mut dependents, remembered);
        }
        table.find(&key(5)).unwrap().used_at = 50.0;
        table.expire(&mut dependents, 11.0);
        assert_eq!(table.len(), 9_999);
        for _ in 0..4 {
            table.expire(&mut dependents, 70.0);
        }
        assert_eq!(table.len(), 1);
        assert!(table.find(&key(5)).is_some());
    }
}
