//! What stands before a super-packet: a VXLAN datagram the kernel itself cuts into segments, inside and out
//! (`tunnel.super_packet`, which draws it).
//!
//! Written to an inject TAP in one go: 24 octets of `virtio_net_hdr_v1_hash_tunnel`, outer Ethernet, IP and UDP, then
//! what a socket would send.  Outer UDP checksum: the folded pseudo-header sum where the card finishes it, else zero.

use std::os::fd::RawFd;
use std::sync::Arc;

use crate::checksum::{WORD_MAX, folded, negative, word_sum};
use crate::lane::HEADER_LENGTH;
use crate::octets::{ETHERNET_LENGTH, IPV4, IPV6, NO_OPTIONS, UDP, put_word};
use crate::split::Cut;
use crate::sys::Owned;
use crate::vnet::{NEEDS_CSUM, Vnet};

/// Octets of `struct virtio_net_hdr_v1_hash_tunnel` (Linux ≥ 6.17).
const TUNNEL_HEADER_LENGTH: usize = 24;
const UDP_TUNNEL_CSUM: u8 = 0x08;
const UDP_LENGTH: usize = 8;
const PACKET_MAX: usize = 65_535;
const DONT_FRAGMENT: u16 = 0x4000;
const HOP_LIMIT: u8 = 64;
/// How often a super-frame takes the lower door: what forbids sockets must be seen.
const LOWER_DOOR_SECONDS: f64 = 1.0;
const LENGTH_MAX: usize = TUNNEL_HEADER_LENGTH + ETHERNET_LENGTH + 40 + UDP_LENGTH;

/// Where super-packets to one VTEP go.
#[derive(Clone)]
pub struct Hop {
    /// Outer Ethernet source: the egress device's.
    pub source_mac: [u8; 6],
    /// Outer Ethernet destination: the next hop's.
    pub destination_mac: [u8; 6],
    /// Whether the egress device segments datagrams that bear an outer UDP checksum.
    pub has_checksum: bool,
    /// Underlay address of ours, 4 or 16 octets.
    pub source: Vec<u8>,
    /// The VTEP's, of the same version.
    pub destination: Vec<u8>,
    /// UDP port of the VTEP.
    pub port: u16,
    /// UDP ports of the pool: the source port of a flow is its socket's.
    pub source_ports: Vec<u16>,
}

/// The super door to one VTEP: a descriptor of our own to the inject TAP, and the headers.
pub struct SuperDoor {
    tap: Arc<Owned>,
    hop: Hop,
    header: [u8; LENGTH_MAX],
    length: usize,
    flags: u8,
    pseudo: u64,
    ip_base: u64,
    rests_at: f64,
    /// Whether it was used since somebody asked.
    pub was_used: bool,
}

impl SuperDoor {
    /// As many doors through this TAP, whose descriptor is duplicated: it may be closed at any time.
    pub fn open(tap: RawFd, hop: &Hop, doors: usize) -> std::io::Result<Vec<SuperDoor>> {
        let tap = Arc::new(Owned::duplicate(tap)?);
        Ok((0..doors).map(|_| SuperDoor::new(tap.clone(), hop.clone())).collect())
    }

    fn new(tap: Arc<Owned>, hop: Hop) -> SuperDoor {
        let flags = NEEDS_CSUM | if hop.has_checksum { UDP_TUNNEL_CSUM } else { 0 };
        let addresses = word_sum(&hop.source) + word_sum(&hop.destination);
        let mut door = SuperDoor {
            tap,
            length: 0,
            header: [0; LENGTH_MAX],
            flags,
            pseudo: addresses + u64::from(UDP),
            ip_base: 0,
            rests_at: 0.0,
            was_used: false,
            hop,
        };
        door.put_fixed();
        door
    }

    fn is_v4(&self) -> bool {
        self.hop.source.len() == 4
    }

    fn ip_length(&self) -> usize {
        if self.is_v4() { 20 } else { 40 }
    }

    fn put_fixed(&mut self) {
        let ip_at = TUNNEL_HEADER_LENGTH + ETHERNET_LENGTH;
        let udp_at = ip_at + self.ip_length();
        self.length = udp_at + UDP_LENGTH;
        let outer_udp_at = (udp_at - TUNNEL_HEADER_LENGTH) as u16;
        let inner_ip_at = outer_udp_at + (UDP_LENGTH + HEADER_LENGTH + ETHERNET_LENGTH) as u16;
        let header = &mut self.header;
        header[20..22].copy_from_slice(&outer_udp_at.to_ne_bytes());
        header[22..24].copy_from_slice(&inner_ip_at.to_ne_bytes());
        header[24..30].copy_from_slice(&self.hop.destination_mac);
        header[30..36].copy_from_slice(&self.hop.source_mac);
        let is_v4 = self.hop.source.len() == 4;
        put_word(header, 36, if is_v4 { IPV4 } else { IPV6 });
        let addresses_at = if is_v4 {
            header[ip_at] = NO_OPTIONS;
            put_word(header, ip_at + 6, DONT_FRAGMENT);
            (header[ip_at + 8], header[ip_at + 9]) = (HOP_LIMIT, UDP);
            ip_at + 12
        } else {
            header[ip_at] = 0x60;
            (header[ip_at + 6], header[ip_at + 7]) = (UDP, HOP_LIMIT);
            ip_at + 8
        };
        let middle = addresses_at + self.hop.source.len();
        header[addresses_at..middle].copy_from_slice(&self.hop.source);
        header[middle..udp_at].copy_from_slice(&self.hop.destination);
        self.ip_base = word_sum(&header[ip_at..udp_at]);
        put_word(header, udp_at + 2, self.hop.port);
    }

    /// Whether a datagram of so many octets, its super-frame cut like this, may leave as one super-packet.
    pub fn takes(&self, cut: &Cut, octets: usize, frame_max: usize) -> bool {
        // The kernel must find the inner IP header where `inner_nh_offset` says: a tag would move it.
        cut.network_at == ETHERNET_LENGTH
            && octets <= PACKET_MAX - self.ip_length() - UDP_LENGTH
            && cut.payload_at + cut.size <= frame_max
    }

    /// Whether this super-frame may take it now: once a second one may not.
    pub fn is_open(&mut self, now: f64) -> bool {
        let rests = now >= self.rests_at;
        if rests {
            self.rests_at = now + LOWER_DOOR_SECONDS;
            self.was_used = true;
        }
        !rests
    }

    /// The TAP.
    pub fn fd(&self) -> RawFd {
        self.tap.fd()
    }

    /// HOT PATH: what to write before a VXLAN datagram of so many octets.
    ///
    /// `ecn` is the outer ECN field (RFC 6040 section 4.1); `sender` which socket of the pool is the flow's.
    pub fn fill(&mut self, gso_type: u8, cut: &Cut, octets: usize, sender: usize, ecn: u8) -> &[u8] {
        let is_v4 = self.is_v4();
        let ip_at = TUNNEL_HEADER_LENGTH + ETHERNET_LENGTH;
        let udp_at = ip_at + self.ip_length();
        let before = self.length - TUNNEL_HEADER_LENGTH + HEADER_LENGTH; // of the frame, from the outer Ethernet
        let vnet = Vnet {
            flags: self.flags,
            gso_type: gso_type | if is_v4 { 0x20 } else { 0x40 },
            header_length: (before + cut.payload_at) as u16,
            gso_size: cut.size as u16,
            checksum_start: (before + cut.l4_at) as u16,
            checksum_offset: cut.checksum_offset() as u16,
        };
        let header = &mut self.header;
        header[..10].copy_from_slice(&vnet.build());
        let udp_length = UDP_LENGTH + octets;
        if is_v4 {
            let total = 20 + udp_length;
            header[ip_at + 1] = ecn;
            put_word(header, ip_at + 2, total as u16);
            put_word(header, ip_at + 10, negative((self.ip_base + u64::from(ecn) + total as u64) as i64));
        } else {
            header[ip_at + 1] = ecn << 4;
            put_word(header, ip_at + 4, udp_length as u16);
        }
        let has_checksum = self.flags & UDP_TUNNEL_CSUM != 0;
        // A sum, not its complement: the seed the kernel goes on from.  It is never zero, which says "none".
        let seed = if has_checksum { folded(self.pseudo + udp_length as u64) } else { 0 };
        put_word(header, udp_at, self.hop.source_ports.get(sender).copied().unwrap_or(0));
        put_word(header, udp_at + 4, udp_length as u16);
        put_word(header, udp_at + 6, seed);
        debug_assert!(self.ip_base <= 4 * WORD_MAX);
        &self.header[..self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::WORD_MAX;
    use crate::octets::word;
    use crate::split::locate_untrusted;
    use crate::testing::Made;

    fn door(source: &[u8], destination: &[u8]) -> SuperDoor {
        let hop = Hop {
            source_mac: [2, 0, 0, 0, 0, 1],
            destination_mac: [2, 0, 0, 0, 0, 2],
            has_checksum: true,
            source: source.to_vec(),
            destination: destination.to_vec(),
            port: 4789,
            source_ports: vec![50_000, 50_001],
        };
        SuperDoor::open(0, &hop, 1).unwrap().remove(0)
    }

    #[test]
    fn lengths_offsets_and_checksums_are_those_of_the_whole() {
        let made = Made { is_unfinished: true, ..Made::tcp(1, vec![5; 20_000]) };
        let frame = made.build();
        let vnet = Vnet { gso_type: 1, gso_size: 1398, ..Vnet::finish(made.l4_at(), 16) };
        let cut = locate_untrusted(&vnet, &frame).unwrap();
        let octets = HEADER_LENGTH + frame.len();
        for (own, other, ip_length) in
            [(&[10, 0, 0, 1][..], &[10, 0, 0, 2][..], 20), (&[1; 16], &[2; 16], 40)]
        {
            let mut door = door(own, other);
            assert!(door.takes(&cut, octets, 1464) && !door.takes(&cut, 65_520, 1464));
            assert!(!door.takes(&cut, octets, 1463));
            let header = door.fill(1, &cut, octets, 1, 2).to_vec();
            let written = Vnet::parse(header[..10].try_into().unwrap());
            let before = 14 + ip_length + 8 + 8;
            assert_eq!(usize::from(written.checksum_start), before + 34);
            assert_eq!(usize::from(written.header_length), before + made.payload_at());
            let ip_at = 24 + 14;
            let udp_at = ip_at + ip_length;
            assert_eq!(word(&header, udp_at), Some(50_001));
            assert_eq!(usize::from(word(&header, udp_at + 4).unwrap()), 8 + octets);
            if ip_length == 20 {
                assert_eq!(word_sum(&header[ip_at..udp_at]) % WORD_MAX, 0);
                assert_eq!(usize::from(word(&header, ip_at + 2).unwrap()), 28 + octets);
            }
            let pseudo = word_sum(own) + word_sum(other) + 17 + 8 + octets as u64;
            assert_eq!(word(&header, udp_at + 6), Some(folded(pseudo)));
        }
    }

    #[test]
    fn once_a_second_it_rests() {
        let mut door = door(&[10, 0, 0, 1], &[10, 0, 0, 2]);
        let opened: Vec<bool> = [5.0, 5.1, 5.9, 6.0, 6.1].iter().map(|now| door.is_open(*now)).collect();
        assert_eq!(opened, [false, true, true, false, true]);
        assert!(door.was_used);
    }
}
