//! The flow hash: which of the outer source ports a frame's flow leaves from (`tunnel.entropy`).
//!
//! CRC-32 over protocol, addresses and ports; of a fragment over protocol and addresses only, so that all
//! fragments go one way; of anything else over MAC addresses and EtherType.

use crate::octets::{IPV4, IPV6, TAGS_MAX, is_tag, octet, word};

const IPV6_FRAGMENT: u8 = 44; // RFC 8200 section 4.5
const AUTHENTICATION: u8 = 51; // its length counts fours, not eights
const EXTENSIONS_MAX: usize = 8;

const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let (mut value, mut bit) = (index as u32, 0);
        while bit < 8 {
            value = if value & 1 == 1 { 0xEDB8_8320 ^ (value >> 1) } else { value >> 1 };
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
};

/// CRC-32 (IEEE 802.3) going on from an earlier value, as zlib's `crc32(octets, value)`.
fn crc32(octets: &[u8], value: u32) -> u32 {
    !octets
        .iter()
        .fold(!value, |crc, &octet| CRC_TABLE[((crc ^ u32::from(octet)) & 0xFF) as usize] ^ (crc >> 8))
}

/// TCP, UDP, DCCP, SCTP, UDP-Lite: ports come first in all.
fn has_ports(protocol: u8) -> bool {
    matches!(protocol, 6 | 17 | 33 | 132 | 136)
}

/// As a Python slice: what of the range is there.
fn slice(frame: &[u8], start: usize, end: usize) -> &[u8] {
    &frame[start.min(frame.len())..end.min(frame.len())]
}

/// 32 bits, the same for every frame of a flow.  Any octets have one, malformed ones too.
pub fn flow_hash_untrusted(frame: &[u8]) -> u32 {
    let mut at = 12;
    for _ in 0..TAGS_MAX {
        match word(frame, at) {
            Some(ethertype) if is_tag(ethertype) => at += 4,
            _ => break,
        }
    }
    let ethertype = word(frame, at);
    at += 2;
    match ethertype {
        Some(IPV4) if frame.len() >= at + 20 => ipv4_hash(frame, at),
        Some(IPV6) if frame.len() >= at + 40 => ipv6_hash(frame, at),
        _ => crc32(slice(frame, at - 2, at), crc32(slice(frame, 0, 12), 0)),
    }
}

fn ipv4_hash(frame: &[u8], at: usize) -> u32 {
    let protocol = frame[at + 9];
    let addresses = crc32(&frame[at + 12..at + 20], u32::from(protocol));
    let is_fragment = frame[at + 6] & 0x3F != 0 || frame[at + 7] != 0; // RFC 791 section 3.1: MF, or an offset
    if !has_ports(protocol) || is_fragment {
        return addresses;
    }
    let transport_at = at + usize::from(frame[at] & 0x0F) * 4;
    crc32(slice(frame, transport_at, transport_at + 4), addresses)
}

fn ipv6_hash(frame: &[u8], at: usize) -> u32 {
    let (mut protocol, mut transport_at) = (frame[at + 6], at + 40);
    for _ in 0..EXTENSIONS_MAX {
        if !matches!(protocol, 0 | 43 | 51 | 60) || frame.len() < transport_at + 8 {
            break;
        }
        let (unit, unwritten) = if protocol == AUTHENTICATION { (4, 2) } else { (8, 1) };
        protocol = frame[transport_at];
        transport_at += (usize::from(frame[transport_at + 1]) + unwritten) * unit;
    }
    let addresses = &frame[at + 8..at + 40];
    if protocol == IPV6_FRAGMENT && frame.len() >= transport_at + 8 {
        // Every fragment names the same protocol here (RFC 8200 section 4.5), even one with no ports in it.
        return crc32(addresses, u32::from(octet(frame, transport_at).unwrap_or(0)));
    }
    let hash = crc32(addresses, u32::from(protocol));
    if has_ports(protocol) { crc32(slice(frame, transport_at, transport_at + 4), hash) } else { hash }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Made, Octets};

    #[test]
    fn the_crc_is_the_one_of_ieee_802_3() {
        assert_eq!(crc32(b"123456789", 0), 0xCBF4_3926);
        assert_eq!(crc32(b"6789", crc32(b"12345", 0)), 0xCBF4_3926);
    }

    #[test]
    fn all_frames_of_a_flow_have_one_hash_and_its_fragments_another() {
        let first = Made::tcp(1, vec![1; 100]).build();
        assert_eq!(flow_hash_untrusted(&first), flow_hash_untrusted(&Made::tcp(900, vec![7; 9]).build()));
        let mut fragment = first.clone();
        fragment[20] = 0x20;
        assert_ne!(flow_hash_untrusted(&fragment), flow_hash_untrusted(&first));
    }

    #[test]
    fn any_octets_have_a_hash() {
        let mut random = Octets::new(3);
        for round in 0..20_000 {
            let mut frame =
                Made { version: if round % 2 == 0 { 4 } else { 6 }, ..Made::udp(vec![0; 80]) }.build();
            for _ in 0..3 {
                let at = random.below(frame.len());
                frame[at] = random.number() as u8;
            }
            frame.truncate(random.below(frame.len() + 1));
            flow_hash_untrusted(&frame);
        }
    }
}
