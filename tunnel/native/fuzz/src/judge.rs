//! Judges: they share no code with what they judge, and take the naive way.

use std::collections::{HashMap, VecDeque};

use weft_core::entropy::flow_hash_untrusted;
use weft_core::merge::Sink;
use weft_core::reason::Reason;
use weft_core::split::{Plan, plan_untrusted};
use weft_core::vnet::{GSO_NONE, Vnet};

const DF: u8 = 0x40;

/// The sum of 16-bit words modulo 65535, as RFC 1071 section 4.1 writes it down.
pub fn naive_sum(octets: &[u8]) -> u64 {
    let words = octets.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0)));
    words.sum::<u64>() % 0xFFFF
}

fn word(octets: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([octets[at], octets[at + 1]])
}

/// Where things are in a whole TCP or UDP frame without IP options or extension headers.
pub struct Places {
    /// Where the IP header begins.
    pub network_at: usize,
    /// Where TCP's or UDP's begins.
    pub l4_at: usize,
    /// Where its checksum is.
    pub checksum_at: usize,
    is_v4: bool,
}

impl Places {
    /// Of this frame.
    pub fn of(frame: &[u8]) -> Places {
        let mut at = 12;
        while matches!(word(frame, at), 0x8100 | 0x88A8) {
            at += 4;
        }
        let is_v4 = word(frame, at) == 0x0800;
        let (network_at, l4_at) = (at + 2, at + 2 + if is_v4 { 20 } else { 40 });
        let protocol = frame[network_at + if is_v4 { 9 } else { 6 }];
        let checksum_at = l4_at + if protocol == 6 { 16 } else { 6 };
        Places { network_at, l4_at, checksum_at, is_v4 }
    }

    /// The sum of the pseudo-header.
    pub fn pseudo(&self, frame: &[u8]) -> u64 {
        let (protocol_at, addresses_at) = if self.is_v4 { (9, self.l4_at - 8) } else { (6, self.l4_at - 32) };
        let protocol = u64::from(frame[self.network_at + protocol_at]);
        let length = (frame.len() - self.l4_at) as u64;
        (naive_sum(&frame[addresses_at..self.l4_at]) + protocol + length) % 0xFFFF
    }

    /// Whether the checksum field holds the pseudo-header's sum: the rest is left to a network card.
    pub fn is_unfinished(&self, frame: &[u8]) -> bool {
        let field = word(frame, self.checksum_at);
        field != 0 && u64::from(field) % 0xFFFF == self.pseudo(frame)
    }

    /// Whether lengths and checksums are as a receiver demands.
    pub fn are_right(&self, frame: &[u8]) -> bool {
        let total = usize::from(word(frame, self.network_at + if self.is_v4 { 2 } else { 4 }));
        let end = if self.is_v4 { self.network_at } else { self.l4_at } + total;
        let header = if self.is_v4 { naive_sum(&frame[self.network_at..self.l4_at]) } else { 0 };
        let sum = (self.pseudo(frame) + naive_sum(&frame[self.l4_at..])) % 0xFFFF;
        end == frame.len() && header == 0 && sum == 0
    }
}

/// The segments a super-frame is cut into, each put together; it must be one.
pub fn cut(vnet: &Vnet, frame: &[u8]) -> Vec<Vec<u8>> {
    const PREFIX: &[u8] = b"VXLAN---";
    let mut frame = frame.to_vec();
    let Ok(Plan::Segments(cut)) = plan_untrusted(vnet, &mut frame, PREFIX.len(), 1 << 17) else {
        panic!("not cut: {vnet:?} {frame:02x?}");
    };
    let mut made = vec![1, 2, 3];
    let stride = cut.make(&frame, PREFIX, &mut made);
    let segments = made[3..].chunks(stride);
    segments.map(|segment| segment.strip_prefix(PREFIX).expect("the prefix").to_vec()).collect()
}

/// What a merge told: writes with the frames they stand for, and frames that are lost (0).
#[derive(Default)]
pub struct Told(pub Vec<(Vnet, Vec<u8>, usize)>);

impl Sink for Told {
    fn write(&mut self, vnet: Vnet, frame: &[u8], frames: usize) {
        self.0.push((vnet, frame.to_vec(), frames));
    }

    fn lose(&mut self, reason: Reason, frame: &[u8]) {
        assert_eq!(reason, Reason::INNER_MALFORMED);
        self.0.push((Vnet::default(), frame.to_vec(), 0));
    }
}

impl Told {
    /// Each frame is told once, in order within its flow; cut again, what was merged is what it was made of.
    pub fn account_for(&self, frames: &[&[u8]]) {
        let mut flows: HashMap<u32, VecDeque<usize>> = HashMap::new();
        for (index, frame) in frames.iter().enumerate() {
            flows.entry(flow_hash_untrusted(frame)).or_default().push_back(index);
        }
        let mut next = |frame: &[u8]| {
            let index = flows.get_mut(&flow_hash_untrusted(frame)).and_then(VecDeque::pop_front);
            index.unwrap_or_else(|| panic!("nobody sent {frame:02x?}"))
        };
        let mut firsts = vec![];
        for (vnet, octets, count) in &self.0 {
            if *count < 2 {
                let index = next(octets);
                assert_eq!(frames[index], octets, "a frame alone is told as it came");
                firsts.push(index);
                continue;
            }
            assert_ne!(vnet.gso_type, GSO_NONE);
            let segments = cut(vnet, octets);
            assert_eq!(segments.len(), *count);
            let indices: Vec<usize> = segments.iter().map(|segment| next(segment)).collect();
            for (segment, index) in segments.iter().zip(&indices) {
                assert_same(segment, frames[*index]);
            }
            firsts.push(indices[0]);
        }
        assert!(firsts.is_sorted(), "a run stands where its first segment stood: {firsts:?}");
        assert!(flows.values().all(VecDeque::is_empty), "a frame is not told");
    }
}

/// The segment is the frame that came, but for what is free: a checksum that was left to the host, the two zeros of
/// checksums, and the identification of what is never fragmented (RFC 6864 section 4.1).
fn assert_same(segment: &[u8], frame: &[u8]) {
    let places = Places::of(segment);
    assert!(places.are_right(segment), "not right: {segment:02x?}");
    assert!(places.are_right(frame) || places.is_unfinished(frame), "merged on trust: {frame:02x?}");
    let (mut segment, mut frame) = (segment.to_vec(), frame.to_vec());
    let network_at = places.network_at;
    for octets in [&mut segment, &mut frame] {
        octets[places.checksum_at..places.checksum_at + 2].fill(0);
        if places.is_v4 {
            octets[network_at + 10..network_at + 12].fill(0);
            if octets[network_at + 6] & DF != 0 {
                octets[network_at + 4..network_at + 6].fill(0);
            }
        }
    }
    assert_eq!(segment, frame);
}
