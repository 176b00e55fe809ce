//! RFC 1071 sums, and the arithmetic modulo 65535 that makes one from another.
//!
//! The sum of 16-bit words with end-around carry is the number the octets spell, modulo 65535; it can be
//! taken in words of any size and in either byte order (RFC 1071 section 2).  Here that is 32-bit words
//! added in 64-bit lanes, which cannot overflow below 16 GiB and which the compiler turns into vector
//! instructions: twice as wide where the processor has AVX2, asked at run time.  It does so only where an overflow is
//! not looked for, as it is everywhere else in this engine: hence `wrapping_add`.

/// Sums are modulo this (RFC 1071 section 1).
pub const WORD_MAX: u64 = 0xFFFF;

/// A number congruent to the sum of the octets' 16-bit big-endian words modulo 65535, at most 65535.
///
/// An odd last octet counts as if a zero octet followed.
// HOT PATH: every octet sent or merged passes here.
#[inline]
pub fn word_sum(octets: &[u8]) -> u64 {
    // Below this asking the processor costs more than it saves.
    if octets.len() < 64 {
        return fold(add_lanes(octets));
    }
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, which is all the function asks for.
        return fold(unsafe { add_lanes_avx2(octets) });
    }
    fold(add_lanes(octets))
}

/// The negative of a sum: what a checksum field takes (0 to 65534).
#[inline]
pub fn negative(sum: i64) -> u16 {
    (-sum).rem_euclid(WORD_MAX as i64) as u16
}

/// The sum as a field would hold it folded, never 0: a pseudo-header's, whose protocol is not 0.
#[inline]
pub fn folded(sum: u64) -> u16 {
    match sum % WORD_MAX {
        0 => 0xFFFF,
        rest => rest as u16,
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn add_lanes_avx2(octets: &[u8]) -> u64 {
    add_lanes(octets)
}

/// The sum of the 32-bit words in the machine's own byte order.
#[inline(always)]
fn add_lanes(octets: &[u8]) -> u64 {
    let mut lanes = [0u64; 16];
    let (blocks, rest) = octets.as_chunks::<64>();
    for block in blocks {
        let (words, _) = block.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane = lane.wrapping_add(u64::from(u32::from_ne_bytes(*word)));
        }
    }
    let mut total = lanes.iter().fold(0, |total: u64, lane| total.wrapping_add(*lane));
    let (words, tail) = rest.as_chunks::<4>();
    for word in words {
        total = total.wrapping_add(u64::from(u32::from_ne_bytes(*word)));
    }
    let mut last = [0u8; 4];
    last[..tail.len()].copy_from_slice(tail);
    total.wrapping_add(u64::from(u32::from_ne_bytes(last)))
}

/// 64 bits to 16, and from the machine's byte order to the network's.
#[inline]
fn fold(total: u64) -> u64 {
    let mut sum = (total >> 32) + (total & 0xFFFF_FFFF);
    sum = (sum >> 32) + (sum & 0xFFFF_FFFF);
    sum = (sum >> 16) + (sum & 0xFFFF);
    sum = (sum >> 16) + (sum & 0xFFFF);
    sum = (sum >> 16) + (sum & 0xFFFF);
    u64::from(u16::from_be(sum as u16))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Octets;

    /// As RFC 1071 section 4.1 writes it down.
    fn naive(octets: &[u8]) -> u64 {
        octets
            .chunks(2)
            .map(|pair| u64::from(pair[0]) * 256 + u64::from(*pair.get(1).unwrap_or(&0)))
            .sum::<u64>()
            % WORD_MAX
    }

    #[test]
    fn every_length_and_alignment_sums_as_the_naive_way() {
        let mut random = Octets::new(1);
        let octets = random.take(4096 + 9);
        for length in (0..300).chain([1398, 1399, 4095, 4096]) {
            for start in 0..8 {
                let piece = &octets[start..start + length];
                assert_eq!(word_sum(piece) % WORD_MAX, naive(piece), "{length} octets at {start}");
            }
        }
    }

    #[test]
    fn the_largest_words_do_not_overflow() {
        let octets = vec![0xFF; 65_536];
        assert_eq!(word_sum(&octets) % WORD_MAX, 0);
        assert_eq!(word_sum(&octets[..65_535]) % WORD_MAX, naive(&octets[..65_535]));
    }

    #[test]
    fn vector_and_plain_lanes_agree() {
        let octets = Octets::new(2).take(70_000);
        for length in [0, 63, 64, 65, 1460, 65_535] {
            assert_eq!(word_sum(&octets[..length]), fold(add_lanes(&octets[..length])));
        }
    }

    #[test]
    fn a_sum_and_its_negative_cancel() {
        for sum in [0, 1, 65_534, 65_535, 65_536, 1 << 40] {
            assert_eq!((sum + i64::from(negative(sum))) % WORD_MAX as i64, 0);
            assert_ne!(negative(sum), 0xFFFF);
        }
        assert_eq!((folded(0), folded(65_535), folded(65_536)), (0xFFFF, 0xFFFF, 1));
    }
}
