//! Numbers in frames: big-endian, read by offset, None where the frame ends before.
//!
//! Everything that reads strangers' octets reads them through here, so nothing can index past an end.

/// EtherTypes (IEEE 802.3), and the two of tags (IEEE 802.1Q-2018 table 9-1).
pub const IPV4: u16 = 0x0800;
/// IPv6.
pub const IPV6: u16 = 0x86DD;
/// ARP (RFC 826).
pub const ARP: u16 = 0x0806;

/// Octets of an Ethernet header without tags.
pub const ETHERNET_LENGTH: usize = 14;
/// As deep as tags are looked through.
pub const TAGS_MAX: usize = 8;

/// Version 4, and five words of header: IPv4 without options (RFC 791 section 3.1).
pub const NO_OPTIONS: u8 = 0x45;

/// Protocol numbers.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// Octets of a TCP header without options.
pub const TCP_LENGTH: usize = 20;
/// Octets of a UDP header.
pub const UDP_LENGTH: usize = 8;
/// Where in their headers the checksums are.
pub const TCP_CHECKSUM: usize = 16;
/// UDP's.
pub const UDP_CHECKSUM: usize = 6;

/// TCP flags (RFC 9293 section 3.1).
pub const FIN: u8 = 0x01;
/// SYN.
pub const SYN: u8 = 0x02;
/// PSH.
pub const PSH: u8 = 0x08;
/// ACK.
pub const ACK: u8 = 0x10;
/// CWR.
pub const CWR: u8 = 0x80;

/// IPv4's fragment field: more fragments, or an offset (RFC 791 section 3.1).
pub const FRAGMENT: u16 = 0x3FFF;

/// The octet there.
#[inline]
pub fn octet(frame: &[u8], at: usize) -> Option<u8> {
    frame.get(at).copied()
}

/// The 16-bit number there.
#[inline]
pub fn word(frame: &[u8], at: usize) -> Option<u16> {
    let octets = frame.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(octets.try_into().ok()?))
}

/// The 32-bit number there.
#[inline]
pub fn long(frame: &[u8], at: usize) -> Option<u32> {
    let octets = frame.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(octets.try_into().ok()?))
}

/// Writes the 16-bit number there; the place is known to be in the frame.
#[inline]
pub fn put_word(frame: &mut [u8], at: usize, value: u16) {
    frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Writes the 32-bit number there; the place is known to be in the frame.
#[inline]
pub fn put_long(frame: &mut [u8], at: usize, value: u32) {
    frame[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// Whether an EtherType is a tag's.
#[inline]
pub fn is_tag(ethertype: u16) -> bool {
    ethertype == 0x8100 || ethertype == 0x88A8
}
