//! Explicit congestion notification across the tunnel: RFC 6040 sections 4.1 and 4.2 (`tunnel.ecn`).

use crate::checksum::folded;
use crate::octets::{IPV4, IPV6, is_tag, put_word, word};
use crate::reason::Reason;

/// The ECN field that says congestion experienced (RFC 3168 section 5).
pub const CE: u8 = 0b11;

/// The ECN field of the packet inside, Not-ECT where there is none.
#[inline]
pub fn inner_ecn_untrusted(frame: &[u8]) -> u8 {
    match ip_at(frame) {
        Some((4, at)) => frame[at + 1] & 0b11,
        Some((_, at)) => (frame[at + 1] >> 4) & 0b11,
        None => 0,
    }
}

/// Marks the packet inside CE in place, for an outer header that was; the reason to drop it, if any.
///
/// What is no IP has no field to mark, and nobody who could heed it: it goes on, as Linux has it.
pub fn mark_congested_untrusted(frame: &mut [u8]) -> Result<(), Reason> {
    match ip_at(frame) {
        Some(_) if inner_ecn_untrusted(frame) == 0 => return Err(Reason::ECN_CONGESTED),
        Some((4, at)) => {
            let before = word(frame, at).unwrap_or(0);
            let after = before | u16::from(CE);
            let checksum = word(frame, at + 10).unwrap_or(0);
            put_word(frame, at, after);
            put_word(frame, at + 10, updated(checksum, before, after));
        }
        Some((_, at)) => frame[at + 1] |= CE << 4,
        None => {}
    }
    Ok(())
}

/// RFC 1624 section 3: the checksum after one word of what it covers was changed.
fn updated(checksum: u16, before: u16, after: u16) -> u16 {
    let sum = u64::from(!checksum) + u64::from(!before) + u64::from(after);
    if sum == 0 { 0xFFFF } else { !folded(sum) }
}

/// The IP version and where its header begins, where a whole fixed header of it is there.
#[inline]
fn ip_at(frame: &[u8]) -> Option<(u8, usize)> {
    let mut at = 12;
    while is_tag(word(frame, at)?) {
        at += 4;
    }
    let ethertype = word(frame, at)?;
    at += 2;
    let version = frame.get(at)? >> 4;
    match ethertype {
        IPV4 if frame.len() >= at + 20 && version == 4 => Some((4, at)),
        IPV6 if frame.len() >= at + 40 && version == 6 => Some((6, at)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::{WORD_MAX, negative, word_sum};
    use crate::testing::Made;

    #[test]
    fn a_mark_goes_inside_and_the_header_still_sums() {
        for version in [4, 6] {
            let made = Made { version, tags: 1, ..Made::udp(vec![0; 40]) };
            let mut frame = made.build();
            assert_eq!(mark_congested_untrusted(&mut frame.clone()), Err(Reason::ECN_CONGESTED));
            let at = made.network_at();
            if version == 4 {
                frame[at + 1] |= 0b10;
                put_word(&mut frame, at + 10, 0);
                let sum = word_sum(&frame[at..at + 20]) as i64;
                put_word(&mut frame, at + 10, negative(sum));
            } else {
                frame[at + 1] |= 0b10 << 4;
            }
            assert_eq!(mark_congested_untrusted(&mut frame), Ok(()));
            assert_eq!(inner_ecn_untrusted(&frame), CE);
            assert!(version == 6 || word_sum(&frame[at..at + 20]).is_multiple_of(WORD_MAX));
        }
    }
}
