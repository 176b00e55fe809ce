//! Which frames are neighbor discovery, so that each is asked about (`overlay.discovery`).

use crate::octets::{ARP, ETHERNET_LENGTH, IPV6, octet, word};

const ICMPV6: u8 = 58; // RFC 4443 section 2.1
const IPV6_LENGTH: usize = 40;

/// Whether a frame is worth reading as neighbor discovery.  One of a VLAN is not.
pub fn may_be_discovery_untrusted(frame: &[u8]) -> bool {
    match word(frame, 12) {
        Some(ARP) => true,
        // RFC 4861 sections 4.3 and 4.4: solicitation and advertisement.
        Some(IPV6) => {
            octet(frame, ETHERNET_LENGTH + 6) == Some(ICMPV6)
                && matches!(octet(frame, ETHERNET_LENGTH + IPV6_LENGTH), Some(135 | 136))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arp_and_solicitations_are_found_untagged_and_nothing_else_is() {
        let arp = |tags: usize| [&[0; 12][..], &b"\x81\0\0\x05".repeat(tags), b"\x08\x06"].concat();
        for tags in 0..3 {
            assert_eq!(may_be_discovery_untrusted(&arp(tags)), tags == 0, "{tags} tags");
        }
        let mut nd = vec![0; 14 + 40 + 8];
        nd[12..14].copy_from_slice(b"\x86\xdd");
        nd[20] = ICMPV6;
        for (kind, expected) in [(134, false), (135, true), (136, true), (137, false)] {
            nd[54] = kind;
            assert_eq!(may_be_discovery_untrusted(&nd), expected);
        }
        assert!(!may_be_discovery_untrusted(&nd[..54]));
        assert!(!may_be_discovery_untrusted(b""));
    }
}
