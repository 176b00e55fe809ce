//! Super-frames and unfinished checksums: what to write before a frame, so that the host mends it
//! (`tunnel.offload`, which says why).
//!
//! Where a TCP or UDP checksum field *equals* the folded pseudo-header sum the frame is unfinished, and the
//! header asks the host to finish it.  An oversized one is cut by the host as well, at the size its sender
//! gave, or at a safe guess.

use crate::checksum::{WORD_MAX, folded, word_sum};
use crate::octets::{
    CWR, ETHERNET_LENGTH, FRAGMENT, IPV4, IPV6, SYN, TAGS_MAX, TCP, TCP_CHECKSUM, TCP_LENGTH, UDP,
    UDP_CHECKSUM, UDP_LENGTH, is_tag, octet, word,
};
use crate::reason::Reason;
use crate::vnet::{GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, Vnet};

/// UDP_MAX_SEGMENTS before Linux 6.9, and a bound on what one datagram can make us write.
pub const SEGMENTS_MAX: usize = 64;
const GUESS_MTU: usize = 1280; // every IPv6 link carries it (RFC 8200 section 5)
const FRAME_LENGTH_MIN: usize = 60; // octets to which senders pad (IEEE 802.3-2018 section 4.4.2)
const IPV6_OPTIONS_MAX: usize = 3; // hop-by-hop and twice destination (RFC 8200 section 4.1)

/// What is known of the way behind the device.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// Octets of packet the device carries.
    pub overlay_mtu: usize,
    /// The `UDP_GRO` value of the datagram the frame filled.
    pub segment_size: Option<usize>,
    /// The smallest segment the flow's receiver is known to need.
    pub mss: Option<u16>,
}

/// Where things are in an inner frame; `protocol` is 0 in an IPv4 fragment.
struct Packet {
    version: u8,
    protocol: u8,
    network_at: usize,
    l4_at: usize,
    end: usize,
    addresses: u64,
}

enum Found {
    NoPacket,
    Contradiction,
    Packet(Packet),
}

impl Packet {
    fn l4_length(&self) -> usize {
        self.end - self.l4_at
    }

    fn is_unfinished(&self, field: u16) -> bool {
        field == folded(self.addresses + u64::from(self.protocol) + self.l4_length() as u64)
    }

    /// Whether the packet reaches the frame's end, or the padding of a short frame begins there.
    fn fills(&self, length: usize) -> bool {
        let tags = self.network_at - ETHERNET_LENGTH;
        self.end == length || (self.end < length && length <= FRAME_LENGTH_MIN + tags)
    }
}

/// The header to write before a received frame, or why it is not written.
pub fn repair_untrusted(frame: &[u8], way: Way) -> Result<Vnet, Reason> {
    let (packet, network_at) = match dissect(frame) {
        Found::NoPacket => return Ok(Vnet::default()),
        Found::Contradiction => (None, ETHERNET_LENGTH),
        Found::Packet(packet) => {
            let network_at = packet.network_at;
            (Some(packet).filter(|packet| packet.fills(frame.len())), network_at)
        }
    };
    match packet {
        // Not ours to judge while it is a frame like any other; its receiver will.  A super-frame is ours.
        None if frame.len() > way.overlay_mtu + network_at => Err(Reason::INNER_MALFORMED),
        None => Ok(Vnet::default()),
        Some(packet) if packet.protocol == TCP => repair_tcp(frame, &packet, way),
        Some(packet) if packet.protocol == UDP => repair_udp(frame, &packet, way),
        Some(_) => Ok(Vnet::default()),
    }
}

fn repair_tcp(frame: &[u8], packet: &Packet, way: Way) -> Result<Vnet, Reason> {
    let is_oversized = packet.end > way.overlay_mtu + packet.network_at;
    let malformed = if is_oversized { Err(Reason::INNER_MALFORMED) } else { Ok(Vnet::default()) };
    let l4_at = packet.l4_at;
    if packet.l4_length() < TCP_LENGTH {
        return malformed;
    }
    let tcp_length = usize::from(frame[l4_at + 12] >> 4) * 4;
    if !(TCP_LENGTH..=packet.l4_length()).contains(&tcp_length) {
        return malformed;
    }
    if !packet.is_unfinished(word(frame, l4_at + TCP_CHECKSUM).unwrap_or(0)) {
        return Ok(Vnet::default());
    }
    let payload = packet.l4_length() - tcp_length;
    let size = match way.segment_size {
        Some(size) => size as i64,
        None => {
            let headers = l4_at - packet.network_at + tcp_length;
            let guess = way.overlay_mtu.min(GUESS_MTU) as i64 - headers as i64;
            // RFC 9293 section 3.7.1: an MSS does not count TCP's options, a segment does.
            way.mss.map_or(guess, |mss| guess.min(i64::from(mss) - (tcp_length - TCP_LENGTH) as i64))
        }
    };
    // A stranger's SYN may ask for segments of one octet, and one datagram would become 65 000 frames.
    let size = size.max(payload.div_ceil(SEGMENTS_MAX) as i64) as usize;
    if !is_oversized || payload <= size {
        return Ok(Vnet::finish(l4_at, TCP_CHECKSUM));
    }
    let gso_type = if packet.version == 4 { GSO_TCPV4 } else { GSO_TCPV6 };
    let has_cwr = frame[l4_at + 13] & CWR != 0;
    Ok(Vnet {
        flags: NEEDS_CSUM,
        gso_type: if has_cwr { gso_type | GSO_ECN } else { gso_type },
        header_length: (l4_at + tcp_length) as u16,
        gso_size: size as u16,
        checksum_start: l4_at as u16,
        checksum_offset: TCP_CHECKSUM as u16,
    })
}

fn repair_udp(frame: &[u8], packet: &Packet, way: Way) -> Result<Vnet, Reason> {
    let is_oversized = packet.end > way.overlay_mtu + packet.network_at;
    let malformed = if is_oversized { Err(Reason::INNER_MALFORMED) } else { Ok(Vnet::default()) };
    let l4_at = packet.l4_at;
    if packet.l4_length() < UDP_LENGTH
        || usize::from(word(frame, l4_at + 4).unwrap_or(0)) != packet.l4_length()
    {
        return malformed;
    }
    if !packet.is_unfinished(word(frame, l4_at + UDP_CHECKSUM).unwrap_or(0)) {
        return Ok(Vnet::default());
    }
    let payload = packet.l4_length() - UDP_LENGTH;
    // Its segments are messages: without their size they cannot be told apart, and with it they must be.
    match way.segment_size {
        Some(size) if 0 < size && size < payload => {
            if payload > size * SEGMENTS_MAX {
                return Err(Reason::INNER_MALFORMED);
            }
            Ok(Vnet {
                flags: NEEDS_CSUM,
                gso_type: GSO_UDP_L4,
                header_length: (l4_at + UDP_LENGTH) as u16,
                gso_size: size as u16,
                checksum_start: l4_at as u16,
                checksum_offset: UDP_CHECKSUM as u16,
            })
        }
        _ => Ok(Vnet::finish(l4_at, UDP_CHECKSUM)),
    }
}

/// Whether what came with a `UDP_GRO` value is one super-frame, and no run of datagrams.
///
/// The inner length tells: a super-frame's IP packet ends where what was read does.  Who writes that length may lie: the
/// caller looks whether a further datagram begins where the second of a run would.
pub fn is_super_frame_untrusted(frame: &[u8]) -> bool {
    let length = frame.len();
    let mut at = ETHERNET_LENGTH;
    for _ in 0..TAGS_MAX {
        match word(frame, at - 2) {
            Some(ethertype) if is_tag(ethertype) => at += 4,
            _ => break,
        }
    }
    if length < at + 6 {
        return false;
    }
    match word(frame, at - 2) {
        Some(IPV4) => word(frame, at + 2).is_some_and(|total| at + usize::from(total) == length),
        Some(IPV6) => word(frame, at + 4).is_some_and(|payload| at + 40 + usize::from(payload) == length),
        _ => false,
    }
}

/// The MSS a SYN announces, None for any other frame: it bounds the flow's other direction.
pub fn syn_mss_untrusted(frame: &[u8]) -> Option<u16> {
    if frame.len() < ETHERNET_LENGTH + 20 + TCP_LENGTH {
        return None;
    }
    let Found::Packet(packet) = dissect(frame) else { return None };
    if packet.protocol != TCP || packet.l4_at + TCP_LENGTH > packet.end {
        return None;
    }
    let options_end = packet.l4_at + usize::from(frame[packet.l4_at + 12] >> 4) * 4;
    if frame[packet.l4_at + 13] & SYN == 0 || options_end > packet.end {
        return None;
    }
    mss_option(frame.get(packet.l4_at + TCP_LENGTH..options_end)?)
}

fn mss_option(options: &[u8]) -> Option<u16> {
    let mut at = 0;
    while at < options.len() && options[at] != 0 {
        // RFC 9293 section 3.1: 0 ends the list, 1 is padding.
        let size = if options[at] == 1 { 1 } else { usize::from(octet(options, at + 1)?) };
        if size == 0 || at + size > options.len() {
            return None;
        }
        if options[at] == 2 && size == 4 {
            return word(options, at + 2);
        }
        at += size;
    }
    None
}

fn dissect(frame: &[u8]) -> Found {
    let mut type_at = 12;
    for _ in 0..=TAGS_MAX {
        match word(frame, type_at) {
            None => return Found::Contradiction,
            Some(ethertype) if is_tag(ethertype) => type_at += 4,
            Some(IPV4) => {
                return dissect_ipv4(frame, type_at + 2).map_or(Found::Contradiction, Found::Packet);
            }
            Some(IPV6) => {
                return dissect_ipv6(frame, type_at + 2).map_or(Found::Contradiction, Found::Packet);
            }
            Some(_) => return Found::NoPacket,
        }
    }
    Found::NoPacket
}

fn dissect_ipv4(frame: &[u8], at: usize) -> Option<Packet> {
    let header = frame.get(at..at + 20)?;
    let header_length = usize::from(header[0] & 0x0F) * 4;
    let total = usize::from(word(header, 2)?);
    if header[0] >> 4 != 4 || header_length < 20 || header_length > total || total > frame.len() - at {
        return None;
    }
    let is_fragment = word(header, 6)? & FRAGMENT != 0;
    Some(Packet {
        version: 4,
        protocol: if is_fragment { 0 } else { header[9] },
        network_at: at,
        l4_at: at + header_length,
        end: at + total,
        addresses: word_sum(&header[12..20]),
    })
}

fn dissect_ipv6(frame: &[u8], at: usize) -> Option<Packet> {
    let header = frame.get(at..at + 40)?;
    let end = at + 40 + usize::from(word(header, 4)?);
    if header[0] >> 4 != 6 || end > frame.len() {
        return None;
    }
    let (mut protocol, mut l4_at) = (header[6], at + 40);
    for _ in 0..IPV6_OPTIONS_MAX {
        // Hop-by-hop and destination options leave the pseudo-header alone.  Any other ends the walk: behind a
        // routing header another destination counts (RFC 8200 section 8.1).
        if protocol != 0 && protocol != 60 {
            break;
        }
        if l4_at + 8 > end {
            return None;
        }
        protocol = frame[l4_at];
        l4_at += (usize::from(frame[l4_at + 1]) + 1) * 8;
        if l4_at > end {
            return None;
        }
    }
    Some(Packet {
        version: 6,
        protocol,
        network_at: at,
        l4_at,
        end,
        addresses: word_sum(&header[8..40]) % WORD_MAX,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Made, Octets};

    const WAY: Way = Way { overlay_mtu: 1450, segment_size: None, mss: None };

    #[test]
    fn an_unfinished_frame_is_finished_and_a_finished_one_stands() {
        for version in [4, 6] {
            for made in
                [Made { version, ..Made::tcp(1, vec![5; 300]) }, Made { version, ..Made::udp(vec![5; 300]) }]
            {
                assert_eq!(repair_untrusted(&made.build(), WAY), Ok(Vnet::default()));
                let offset = if made.protocol == TCP { TCP_CHECKSUM } else { UDP_CHECKSUM };
                let unfinished = Made { is_unfinished: true, ..made };
                let expected = Ok(Vnet::finish(unfinished.l4_at(), offset));
                assert_eq!(repair_untrusted(&unfinished.build(), WAY), expected);
            }
        }
    }

    #[test]
    fn a_super_frame_is_cut_at_a_guess_that_a_small_receiver_lowers() {
        let made = Made { is_unfinished: true, ..Made::tcp(1, vec![5; 20_000]) };
        let vnet = repair_untrusted(&made.build(), WAY).unwrap();
        assert_eq!((vnet.gso_type, vnet.gso_size), (GSO_TCPV4, 1280 - 20 - 32));
        let small = repair_untrusted(&made.build(), Way { mss: Some(512), ..WAY }).unwrap();
        assert_eq!(small.gso_size, 512 - 12);
        let hostile = repair_untrusted(&made.build(), Way { mss: Some(1), ..WAY }).unwrap();
        assert_eq!(hostile.gso_size, 20_000u16.div_ceil(64));
    }

    #[test]
    fn the_mss_of_a_syn_is_found() {
        let mut syn = Made { flags: SYN, ..Made::tcp(1, vec![]) }.build();
        assert_eq!(syn_mss_untrusted(&syn), None);
        let at = syn.len() - 12;
        syn[at..at + 4].copy_from_slice(&[2, 4, 5, 0xB4]);
        assert_eq!(syn_mss_untrusted(&syn), Some(1460));
    }

    #[test]
    fn any_octets_are_repaired_or_refused() {
        let mut random = Octets::new(4);
        for round in 0..40_000 {
            let made = Made {
                version: 4 + 2 * (round % 2) as u8,
                tags: random.below(3),
                is_unfinished: true,
                ..Made::tcp(1, vec![0; 2000])
            };
            let mut frame =
                if round % 3 == 0 { Made { protocol: UDP, ..made }.build() } else { made.build() };
            for _ in 0..random.below(4) {
                let at = random.below(90);
                frame[at] = random.number() as u8;
            }
            frame.truncate(random.below(frame.len() + 1));
            let way = Way { segment_size: [None, Some(random.below(3000))][random.below(2)], ..WAY };
            let _ = repair_untrusted(&frame, way);
            is_super_frame_untrusted(&frame);
            syn_mss_untrusted(&frame);
        }
    }
}
