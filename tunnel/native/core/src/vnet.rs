//! The ten octets before each frame of a TAP: VIRTIO 1.2 section 5.1.6, `struct virtio_net_hdr`.
//!
//! ```text
//!  0        1        2                 4                 6                 8                 10
//! +--------+--------+-----------------+-----------------+-----------------+-----------------+------
//! | flags  |gso_type|     hdr_len     |    gso_size     |   csum_start    |   csum_offset   | frame
//! +--------+--------+-----------------+-----------------+-----------------+-----------------+------
//! ```
//!
//! Native-endian; offsets are from the frame's first octet.  Ten zeros mean: as it stands.

use crate::octets::ETHERNET_LENGTH;

/// Octets of the header.
pub const VNET_LENGTH: usize = 10;
/// Nothing to finish, nothing to cut.
pub const PLAIN: [u8; VNET_LENGTH] = [0; VNET_LENGTH];
/// Flag: the checksum field holds the pseudo-header's sum, finish it.
pub const NEEDS_CSUM: u8 = 1;
/// One frame.
pub const GSO_NONE: u8 = 0;
/// TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// UDP, whose segments are messages (Linux 6.2).
pub const GSO_UDP_L4: u8 = 5;
/// Beside a TCP type: the first segment carries CWR.
pub const GSO_ECN: u8 = 0x80;

/// A `virtio_net_hdr` taken apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vnet {
    /// NEEDS_CSUM, or nothing we act on.
    pub flags: u8,
    /// One of the GSO types.
    pub gso_type: u8,
    /// Octets of all headers.
    pub header_length: u16,
    /// Octets of payload in one segment.
    pub gso_size: u16,
    /// Where the checksum's range begins.
    pub checksum_start: u16,
    /// Where it goes, from there.
    pub checksum_offset: u16,
}

impl Vnet {
    /// The header these ten octets are.
    #[inline]
    pub fn parse(octets: &[u8; VNET_LENGTH]) -> Vnet {
        let word = |at: usize| u16::from_ne_bytes([octets[at], octets[at + 1]]);
        Vnet {
            flags: octets[0],
            gso_type: octets[1],
            header_length: word(2),
            gso_size: word(4),
            checksum_start: word(6),
            checksum_offset: word(8),
        }
    }

    /// What a TUN gave, whose offsets count from the IP header, for a frame.
    pub fn with_ethernet(self) -> Vnet {
        self.shifted(|offset| offset.saturating_add(ETHERNET_LENGTH as u16))
    }

    /// What a TUN takes for a frame.
    pub fn without_ethernet(self) -> Vnet {
        self.shifted(|offset| offset.saturating_sub(ETHERNET_LENGTH as u16))
    }

    fn shifted(self, shift: impl Fn(u16) -> u16) -> Vnet {
        if self == Vnet::default() {
            return self;
        }
        let (header_length, checksum_start) = (shift(self.header_length), shift(self.checksum_start));
        Vnet { header_length, checksum_start, ..self }
    }

    /// The ten octets.
    #[inline]
    pub fn build(&self) -> [u8; VNET_LENGTH] {
        let mut octets = [self.flags, self.gso_type, 0, 0, 0, 0, 0, 0, 0, 0];
        let words = [self.header_length, self.gso_size, self.checksum_start, self.checksum_offset];
        for (at, word) in words.into_iter().enumerate() {
            octets[2 + 2 * at..4 + 2 * at].copy_from_slice(&word.to_ne_bytes());
        }
        octets
    }

    /// Asks for a checksum and nothing more.
    ///
    /// The header length is the least the kernel would raise it to.
    #[inline]
    pub fn finish(l4_at: usize, checksum_offset: usize) -> Vnet {
        Vnet {
            flags: NEEDS_CSUM,
            header_length: (l4_at + checksum_offset + 2) as u16,
            checksum_start: l4_at as u16,
            checksum_offset: checksum_offset as u16,
            ..Vnet::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_parsed_again() {
        let vnet = Vnet {
            flags: 1,
            gso_type: 0x81,
            header_length: 66,
            gso_size: 1398,
            checksum_start: 34,
            checksum_offset: 16,
        };
        assert_eq!(Vnet::parse(&vnet.build()), vnet);
        assert_eq!(Vnet::parse(&PLAIN), Vnet::default());
    }
}
