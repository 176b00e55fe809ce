//! Flannel's UDP format: an IPv4 packet, and nothing before it (`tunnel.flannel_udp`, which draws it).
//!
//! Inside the engine a packet wears an Ethernet header of zeros, so that what cuts, merges and mends super-frames need
//! not know.  It is put on where a packet is read and taken off where it is sent or written.

use std::collections::HashMap;

use crate::checksum::{WORD_MAX, word_sum};
use crate::flows::Key;
use crate::hash::Seeded;
use crate::lane::HEADER_LENGTH;
use crate::octets::{ETHERNET_LENGTH, octet, put_word, word};
use crate::reason::Reason;

/// What a packet wears inside the engine: it is IPv4, and of no two stations.
pub const ETHERNET: [u8; ETHERNET_LENGTH] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x08, 0x00];
/// What stands before a packet in its slot: room for a VXLAN header that is not sent, and `ETHERNET`.
pub const LEAD: usize = HEADER_LENGTH + ETHERNET_LENGTH;
/// Nothing in a datagram names the network: the port carries one, and no VNI is this.
pub const WIRE_ID: u32 = 1 << 24;
/// Octets of an IPv4 header without options (RFC 791 section 3.1).
const IPV4_LENGTH: usize = 20;
const TTL_AT: usize = 8;
const CHECKSUM_AT: usize = 10;
const SOURCE_AT: usize = ETHERNET_LENGTH + 12;
const DESTINATION_AT: usize = ETHERNET_LENGTH + 16;

/// Takes one off the time to live of a packet, in place; its length as a frame, or why it goes nowhere.
///
/// The header is looked at first, as every router does (RFC 1812 section 5.2.2).  Octets behind the packet's own
/// length are no part of it.
///
/// HOT PATH: once per packet, whichever way.
pub fn forward_untrusted(frame: &mut [u8]) -> Result<usize, Reason> {
    let octets = frame.len().saturating_sub(ETHERNET_LENGTH);
    if octets < IPV4_LENGTH {
        return Err(Reason::TRUNCATED);
    }
    let packet = &mut frame[ETHERNET_LENGTH..];
    let length = usize::from(packet[0] & 0x0F) * 4;
    let total = usize::from(word(packet, 2).unwrap_or(0));
    if packet[0] >> 4 != 4 || !(IPV4_LENGTH..=total).contains(&length) {
        return Err(Reason::INNER_MALFORMED);
    }
    if total > octets {
        return Err(Reason::TRUNCATED); // a proxy whose buffer is its MTU has cut it
    }
    // All words together are 0xffff modulo 65535 (RFC 1071); they are never 0, since the version is not.
    if !word_sum(&packet[..length]).is_multiple_of(WORD_MAX) {
        return Err(Reason::INNER_MALFORMED);
    }
    if packet[TTL_AT] <= 1 {
        return Err(Reason::TTL_EXPIRED);
    }
    // RFC 1624 equation 3 comes to HC + 0x0100 modulo 65535: the sum of a header is never 0, so 0 is the right zero.
    let checksum = u64::from(word(packet, CHECKSUM_AT).unwrap_or(0));
    packet[TTL_AT] -= 1;
    put_word(packet, CHECKSUM_AT, ((checksum + 0x0100) % WORD_MAX) as u16);
    Ok(ETHERNET_LENGTH + total)
}

/// Whether a packet is IPv6, for which the format has no way.
pub fn is_ipv6_untrusted(frame: &[u8]) -> bool {
    octet(frame, ETHERNET_LENGTH).is_some_and(|octet| octet >> 4 == 6)
}

/// The address of whoever sent a packet, as much of it as there is.
pub fn source_of_untrusted(frame: &[u8]) -> [u8; 4] {
    let mut address = [0; 4];
    for (octet, found) in address.iter_mut().zip(frame.iter().skip(SOURCE_AT)) {
        *octet = *found;
    }
    address
}

/// A subnet: its base, then its prefix length.
pub type Subnet = [u8; 5];
/// Every address that is in no subnet: no prefix is that long.
const NOWHERE: Subnet = [0, 0, 0, 0, 0xFF];

/// In which subnet is this address?  The longest prefix that holds it (RFC 1812 section 5.2.4.3).
#[derive(Default)]
pub struct Subnets {
    /// Bits to shift an address by, what is left of it; the longest prefix first.
    levels: Vec<(u32, HashMap<u32, Subnet, Seeded>)>,
}

impl Subnets {
    /// Of these.
    pub fn new(subnets: impl IntoIterator<Item = Subnet>) -> Subnets {
        let mut levels: Vec<(u32, HashMap<u32, Subnet, Seeded>)> = vec![];
        for subnet in subnets {
            let [a, b, c, d, length] = subnet;
            let shift = 32u32.saturating_sub(u32::from(length));
            let place = levels.iter().position(|(other, _)| *other == shift).unwrap_or_else(|| {
                levels.push((shift, HashMap::with_hasher(Seeded::new())));
                levels.len() - 1
            });
            levels[place].1.insert(shifted(u32::from_be_bytes([a, b, c, d]), shift), subnet);
        }
        levels.sort_by_key(|(shift, _)| *shift);
        Subnets { levels }
    }

    fn find(&self, address: u32) -> Subnet {
        let found = self.levels.iter().find_map(|(shift, subnets)| subnets.get(&shifted(address, *shift)));
        found.copied().unwrap_or(NOWHERE)
    }

    /// What an egress flow is remembered under.
    ///
    /// HOT PATH: once per packet.  The frame was forwarded, so both addresses are there.
    pub fn egress_key(&self, frame: &[u8]) -> Key {
        let mut key = Key::default();
        key[..5].copy_from_slice(&self.find(address(frame, DESTINATION_AT)));
        key
    }

    /// What an ingress flow is remembered under.
    ///
    /// HOT PATH: once per packet.
    pub fn ingress_key(&self, frame: &[u8]) -> Key {
        let mut key = Key::default();
        key[..5].copy_from_slice(&self.find(address(frame, SOURCE_AT)));
        key[5..10].copy_from_slice(&self.find(address(frame, DESTINATION_AT)));
        key
    }
}

/// The prefix of an address: of a prefix of no length it is nothing.
fn shifted(address: u32, shift: u32) -> u32 {
    address.checked_shr(shift).unwrap_or(0)
}

fn address(frame: &[u8], at: usize) -> u32 {
    crate::octets::long(frame, at).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Octets;

    fn packet(destination: [u8; 4], ttl: u8, payload: usize) -> Vec<u8> {
        let mut frame = ETHERNET.to_vec();
        frame.extend([0x45, 0, 0, 0, 0, 7, 0, 0, ttl, 17, 0, 0, 10, 5, 1, 9]);
        frame.extend(destination);
        frame.extend(vec![0xA5; payload]);
        put_word(&mut frame, ETHERNET_LENGTH + 2, (20 + payload) as u16);
        let sum = crate::checksum::negative(word_sum(&frame[ETHERNET_LENGTH..ETHERNET_LENGTH + 20]) as i64);
        put_word(&mut frame, ETHERNET_LENGTH + CHECKSUM_AT, sum);
        frame
    }

    #[test]
    fn a_packet_is_one_hop_older_and_its_checksum_right() {
        for ttl in 2..=255 {
            let mut frame = packet([10, 5, 2, 7], ttl, 30);
            assert_eq!(forward_untrusted(&mut frame), Ok(64));
            assert_eq!(frame, packet([10, 5, 2, 7], ttl - 1, 30));
        }
        assert_eq!(forward_untrusted(&mut packet([10, 5, 2, 7], 1, 0)), Err(Reason::TTL_EXPIRED));
    }

    #[test]
    fn what_is_torn_or_false_goes_nowhere() {
        let whole = packet([10, 5, 2, 7], 9, 30);
        for end in 0..whole.len() {
            assert_eq!(forward_untrusted(&mut whole.clone()[..end]), Err(Reason::TRUNCATED));
        }
        for bit in 0..20 * 8 {
            let mut frame = whole.clone();
            frame[ETHERNET_LENGTH + bit / 8] ^= 1 << (bit % 8);
            assert!(forward_untrusted(&mut frame).is_err(), "bit {bit}");
        }
        let mut octets = Octets::new(3);
        for _ in 0..20_000 {
            let length = octets.below(80);
            let mut frame = octets.take(length);
            let _ = forward_untrusted(&mut frame);
        }
    }

    #[test]
    fn the_longest_prefix_wins() {
        let subnets =
            Subnets::new([[10, 5, 0, 0, 16], [10, 5, 2, 0, 24], [10, 5, 2, 7, 32], [10, 6, 0, 0, 16]]);
        let key = |host: [u8; 4]| subnets.egress_key(&packet(host, 9, 0))[..5].to_vec();
        assert_eq!(key([10, 5, 2, 7]), [10, 5, 2, 7, 32]);
        assert_eq!(key([10, 5, 2, 8]), [10, 5, 2, 0, 24]);
        assert_eq!(key([10, 5, 3, 8]), [10, 5, 0, 0, 16]);
        assert_eq!(key([10, 7, 0, 1]), NOWHERE);
        assert_eq!(Subnets::new([[0, 0, 0, 0, 0]]).egress_key(&packet([9, 9, 9, 9], 9, 0))[4], 0);
        let both = subnets.ingress_key(&packet([10, 6, 0, 1], 9, 0));
        assert_eq!(both, [10, 5, 0, 0, 16, 10, 6, 0, 0, 16, 0, 0]);
    }
}
