//! Numbers and frames from the octets libFuzzer draws, from the first to the last; then there are only zeros.

use weft_core::octets::{TCP, UDP};
use weft_core::testing::Made;

/// What is left of the drawn octets.
pub struct Draw<'a>(&'a [u8]);

impl<'a> Draw<'a> {
    /// All of them.
    pub fn new(octets: &'a [u8]) -> Draw<'a> {
        Draw(octets)
    }

    /// Whether there are none left.
    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// So many octets, or what is left.
    pub fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// One octet.
    pub fn octet(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// A 16-bit number.
    pub fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.octet(), self.octet()])
    }

    /// A number below `end`, which is at most 65 536.
    pub fn below(&mut self, end: usize) -> usize {
        usize::from(if end > 256 { self.word() } else { u16::from(self.octet()) }) % end
    }

    /// One of these.
    pub fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// So many octets that repeat a few drawn ones, no period of theirs a power of two.
    pub fn payload(&mut self, count: usize) -> Vec<u8> {
        let length = 1 + self.below(15);
        let pattern = self.take(length);
        let octets = |index: usize| pattern.get(index % 17).copied().unwrap_or(index as u8);
        (0..count).map(octets).collect()
    }

    /// How a flow's frames are made, its checksums finished.
    pub fn flow(&mut self, payload_max: usize) -> Made {
        let how = self.octet();
        let count = self.below(payload_max);
        Made {
            version: if how & 1 == 0 { 4 } else { 6 },
            protocol: if how & 2 == 0 { TCP } else { UDP },
            tags: [0, 0, 1, 7][usize::from(how >> 2 & 3)],
            options: self.below(11) * 4,
            flags: if how & 0x10 == 0 { 0x10 } else { self.octet() },
            sequence: u32::from(self.word()).wrapping_sub(1 << 15),
            identification: self.word(),
            payload: self.payload(count),
            is_unfinished: how & 0x20 != 0,
        }
    }

    /// Damages a frame here and there: octets changed, the end cut off.
    pub fn damage(&mut self, frame: &mut Vec<u8>) {
        let at = self.word() as usize;
        match self.octet() {
            0 => frame.truncate(at),
            value => {
                let length = frame.len().clamp(1, 128); // headers are worth more than payload
                if let Some(octet) = frame.get_mut(at % length) {
                    *octet = octet.wrapping_add(value);
                }
            }
        }
    }
}
