//! Split: a super-frame the host left to its network card becomes the segments that card would have made
//! (`tunnel.split`, which draws it).
//!
//! There the kernel gathers headers and payload.  Here segments are made one behind the other and leave as one slice:
//! to copy a payload that is in the cache costs less (docs/performance.md).  From one segment to the next these octets
//! of the header change, and nothing else:
//!
//! ```text
//! IPv4   identification + 1; total length and so the checksum
//! IPv6   payload length
//! TCP    sequence number; FIN and PSH on the last only, CWR on the first only; checksum
//! UDP    length; checksum
//! ```
//!
//! What stays is summed once.  The frame must agree with the virtio header in every length, or it is dropped;
//! `hdr_len` is not believed at all.

use crate::checksum::{negative, word_sum};
use crate::octets::{
    CWR, FIN, FRAGMENT, IPV4, IPV6, PSH, TAGS_MAX, TCP, TCP_CHECKSUM, TCP_LENGTH, UDP, UDP_CHECKSUM,
    UDP_LENGTH, is_tag, long, octet, put_long, put_word, word,
};
use crate::reason::Reason;
use crate::vnet::{GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, Vnet};

/// A stranger's SYN can talk our host into segments of eight octets; an MSS below 64 is nobody's honest need.
pub const SUPER_SEGMENTS_MAX: usize = 1024;
const EXTENSIONS_MAX: usize = 8;

/// What is to be done with a frame from the device.
#[derive(Clone, Copy, Debug)]
pub enum Plan {
    /// It leaves whole; a checksum that was missing is in place now.
    Whole,
    /// It leaves in segments.
    Segments(Cut),
}

/// How a super-frame is cut.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    version: u8,
    protocol: u8,
    /// Where the IP header begins, in octets from the frame's first.
    pub network_at: usize,
    /// Where TCP's or UDP's begins.
    pub l4_at: usize,
    /// Where what is cut begins.
    pub payload_at: usize,
    /// Octets of payload in each segment but the last.
    pub size: usize,
}

/// What to do with a frame, or why it is not sent.  `payload_max` counts the prefix too, and is of segments: whether a
/// whole frame is too long is for whoever sends it, its checksum being finished by then.
pub fn plan_untrusted(
    vnet: &Vnet,
    frame: &mut [u8],
    prefix: usize,
    payload_max: usize,
) -> Result<Plan, Reason> {
    if vnet.gso_type == GSO_NONE {
        if vnet.flags & NEEDS_CSUM != 0 {
            finish_checksum(frame, usize::from(vnet.checksum_start), usize::from(vnet.checksum_offset))?;
        }
        return Ok(Plan::Whole);
    }
    let cut = locate_untrusted(vnet, frame).ok_or(Reason::INNER_MALFORMED)?;
    if prefix + frame.len().min(cut.payload_at + cut.size) > payload_max {
        return Err(Reason::MTU_EXCEEDED);
    }
    Ok(Plan::Segments(cut))
}

/// How a super-frame is to be cut; None where it and its virtio header disagree.
pub fn locate_untrusted(vnet: &Vnet, frame: &[u8]) -> Option<Cut> {
    let (version, protocol, checksum_offset) = kind(vnet.gso_type)?;
    let size = usize::from(vnet.gso_size);
    if vnet.flags & NEEDS_CSUM == 0 || size == 0 || usize::from(vnet.checksum_offset) != checksum_offset {
        return None;
    }
    let cut = locate(frame, version, protocol, usize::from(vnet.checksum_start), size)?;
    (frame.len() - cut.payload_at <= size * SUPER_SEGMENTS_MAX).then_some(cut)
}

/// What a super-frame is made of: IP version (0: either), protocol, where its checksum goes.
fn kind(gso_type: u8) -> Option<(u8, u8, usize)> {
    const ECN_TCPV4: u8 = GSO_TCPV4 | GSO_ECN;
    const ECN_TCPV6: u8 = GSO_TCPV6 | GSO_ECN;
    match gso_type {
        GSO_TCPV4 | ECN_TCPV4 => Some((4, TCP, TCP_CHECKSUM)),
        GSO_TCPV6 | ECN_TCPV6 => Some((6, TCP, TCP_CHECKSUM)),
        GSO_UDP_L4 => Some((0, UDP, UDP_CHECKSUM)),
        _ => None,
    }
}

/// Puts the checksum where its seed stands.
fn finish_checksum(frame: &mut [u8], start: usize, offset: usize) -> Result<(), Reason> {
    if start + offset + 2 > frame.len() {
        return Err(Reason::INNER_MALFORMED);
    }
    // Not 0, which in UDP says "no checksum" (RFC 768) and elsewhere means the same as 0xffff.
    let field = negative(word_sum(&frame[start..]) as i64);
    put_word(frame, start + offset, if field == 0 { 0xFFFF } else { field });
    Ok(())
}

// ── Where things are ────────────────────────────────────────────────────────────────────────────────────

fn locate(frame: &[u8], version: u8, protocol: u8, l4_at: usize, size: usize) -> Option<Cut> {
    let length = frame.len();
    let least = if protocol == TCP { TCP_LENGTH } else { UDP_LENGTH };
    if l4_at + least > length {
        return None;
    }
    let (ethertype, network_at) = ethertype(frame, l4_at)?;
    let version = match ethertype {
        IPV4 if version != 6 && is_ipv4(frame, network_at, protocol, l4_at)? => 4,
        IPV6 if version != 4 && is_ipv6(frame, network_at, protocol, l4_at)? => 6,
        _ => return None,
    };
    let l4_length = if protocol == TCP {
        usize::from(octet(frame, l4_at + 12)? >> 4) * 4
    } else {
        if usize::from(word(frame, l4_at + 4)?) != length - l4_at {
            return None;
        }
        UDP_LENGTH
    };
    let is_sound = (least..=length - l4_at).contains(&l4_length);
    is_sound.then_some(Cut { version, protocol, network_at, l4_at, payload_at: l4_at + l4_length, size })
}

/// The EtherType behind the VLAN tags, and where its packet begins, which is before `end`.
fn ethertype(frame: &[u8], end: usize) -> Option<(u16, usize)> {
    let last = (12 + 4 * TAGS_MAX).min(end.checked_sub(2)?);
    (12..=last)
        .step_by(4)
        .map_while(|at| word(frame, at).map(|found| (found, at + 2)))
        .find(|(found, _)| !is_tag(*found))
}

/// Whether the IPv4 header ends where the virtio header says, and the packet where the frame does.
fn is_ipv4(frame: &[u8], at: usize, protocol: u8, l4_at: usize) -> Option<bool> {
    let header_length = l4_at.checked_sub(at)?;
    if !(20..=60).contains(&header_length) || header_length % 4 != 0 {
        return None;
    }
    Some(
        usize::from(octet(frame, at)?) == 0x40 | (header_length / 4)
            && at + usize::from(word(frame, at + 2)?) == frame.len()
            && word(frame, at + 6)? & FRAGMENT == 0
            && octet(frame, at + 9)? == protocol,
    )
}

/// The same for IPv6 and its extension headers, among which a fragment header is not.
fn is_ipv6(frame: &[u8], at: usize, protocol: u8, l4_at: usize) -> Option<bool> {
    if l4_at.checked_sub(at)? < 40 || octet(frame, at)? >> 4 != 6 {
        return None;
    }
    if at + 40 + usize::from(word(frame, at + 4)?) != frame.len() {
        return None;
    }
    let (mut found, mut end) = (octet(frame, at + 6)?, at + 40);
    for _ in 0..EXTENSIONS_MAX {
        // Hop-by-hop, routing, destination: those a super-frame may have.
        if end >= l4_at || !matches!(found, 0 | 43 | 60) {
            break;
        }
        found = octet(frame, end)?;
        end += (usize::from(octet(frame, end + 1)?) + 1) * 8;
    }
    Some(end == l4_at && found == protocol)
}

// ── Cutting ─────────────────────────────────────────────────────────────────────────────────────────────

impl Cut {
    /// Where the checksum stands in the TCP or UDP header.
    pub fn checksum_offset(&self) -> usize {
        if self.protocol == TCP { TCP_CHECKSUM } else { UDP_CHECKSUM }
    }

    /// How many segments it makes of a frame of that length: one even of no payload.
    pub fn segments(&self, frame_length: usize) -> usize {
        (frame_length - self.payload_at).div_ceil(self.size).max(1)
    }

    /// The same cut, of the frame without its first octets.
    pub fn behind(&self, octets: usize) -> Cut {
        Cut {
            network_at: self.network_at - octets,
            l4_at: self.l4_at - octets,
            payload_at: self.payload_at - octets,
            ..*self
        }
    }

    /// Makes the segments, one behind the other, each with the prefix before it, behind what `made` holds already.
    /// Gives the stride: octets of each but the last, its prefix with it.
    ///
    /// HOT PATH: once per segment sent.
    pub fn make(&self, frame: &[u8], prefix: &[u8], made: &mut Vec<u8>) -> usize {
        let Cut { network_at, l4_at, payload_at, size, .. } = *self;
        let last = self.segments(frame.len()) - 1;
        let network = self.network_base(frame);
        let transport = self.transport_base(frame);
        let identification = word(frame, network_at + 4).unwrap_or(0);
        let sequence = long(frame, l4_at + 4).unwrap_or(0);
        let flags = frame[l4_at + 13 - if self.protocol == UDP { 8 } else { 0 }];
        for index in 0..=last {
            let start = payload_at + index * size;
            let end = frame.len().min(start + size);
            made.extend_from_slice(prefix);
            let segment_at = made.len();
            made.extend_from_slice(&frame[..payload_at]);
            made.extend_from_slice(&frame[start..end]);
            let segment = &mut made[segment_at..];
            let length = segment.len();
            if self.version == 4 {
                let number = identification.wrapping_add(index as u16);
                let total = length - network_at;
                put_word(segment, network_at + 2, total as u16);
                put_word(segment, network_at + 4, number);
                put_word(segment, network_at + 10, negative(network + total as i64 + i64::from(number)));
            } else {
                put_word(segment, network_at + 4, (length - network_at - 40) as u16);
            }
            let total = word_sum(&segment[payload_at..]) as i64;
            let l4_length = (length - l4_at) as i64;
            if self.protocol == TCP {
                let number = sequence.wrapping_add((index * size) as u32);
                let own = segment_flags(flags, index, last);
                put_long(segment, l4_at + 4, number);
                segment[l4_at + 13] = own;
                let sum = transport + i64::from(own) + l4_length + i64::from(number) + total;
                put_word(segment, l4_at + TCP_CHECKSUM, negative(sum));
            } else {
                put_word(segment, l4_at + 4, l4_length as u16);
                // Never 0: that says "no checksum" (RFC 768).
                let field = negative(transport + 2 * l4_length + total);
                put_word(segment, l4_at + UDP_CHECKSUM, if field == 0 { 0xFFFF } else { field });
            }
        }
        prefix.len() + payload_at + size
    }

    /// The sum of an IPv4 header less its total length, identification and checksum.
    fn network_base(&self, frame: &[u8]) -> i64 {
        if self.version == 6 {
            return 0;
        }
        let at = self.network_at;
        let changing: u64 =
            [2, 4, 10].iter().map(|offset| u64::from(word(frame, at + offset).unwrap_or(0))).sum();
        word_sum(&frame[at..self.l4_at]) as i64 - changing as i64
    }

    /// The sum of the transport header, the pseudo-header's in its checksum field, less what changes.
    fn transport_base(&self, frame: &[u8]) -> i64 {
        let l4_at = self.l4_at;
        let sum = word_sum(&frame[l4_at..self.payload_at]) as i64;
        let length = (frame.len() - l4_at) as i64;
        if self.protocol == TCP {
            sum - length - i64::from(long(frame, l4_at + 4).unwrap_or(0)) - i64::from(frame[l4_at + 13])
        } else {
            // The length stands in the header and in the pseudo-header.
            sum - 2 * length
        }
    }
}

/// CWR is for the first new segment only (RFC 3168 section 6.1.2), FIN and PSH for the last.
fn segment_flags(flags: u8, index: usize, last: usize) -> u8 {
    let first = if index > 0 { flags & !CWR } else { flags };
    if index < last { first & !(FIN | PSH) } else { first }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::folded;
    use crate::testing::{Made, Octets};

    /// The segments of a super-frame, each put together.
    pub fn cut(made: &Made, size: usize) -> Vec<Vec<u8>> {
        let mut frame = Made { is_unfinished: true, ..made.clone() }.build();
        let Ok(Plan::Segments(cut)) = plan_untrusted(&made.vnet(size), &mut frame, 8, 65_535) else {
            panic!("not cut: {made:?}");
        };
        let mut made = vec![1, 2, 3];
        let stride = cut.make(&frame, b"VXLAN---", &mut made);
        let segments: Vec<&[u8]> = made[3..].chunks(stride).collect();
        assert_eq!(segments.len(), cut.segments(frame.len()));
        segments.iter().map(|segment| segment.strip_prefix(b"VXLAN---").unwrap().to_vec()).collect()
    }

    #[test]
    fn segments_are_what_the_sender_would_have_made_one_by_one() {
        let mut random = Octets::new(5);
        for round in 0..400 {
            let count = random.below(6000);
            let payload = random.take(count);
            let size = 1 + random.below(1500);
            if payload.len() > size * SUPER_SEGMENTS_MAX {
                continue;
            }
            let made = Made {
                version: 4 + 2 * (round % 2) as u8,
                tags: random.below(3),
                flags: 0x10 | FIN | PSH | CWR,
                sequence: u32::MAX - 500,
                identification: 65_534,
                ..if round % 3 == 0 { Made::udp(payload.clone()) } else { Made::tcp(1, payload.clone()) }
            };
            let mut expected = vec![];
            let last = payload.len().saturating_sub(1) / size;
            for index in 0..=last {
                let piece =
                    &payload[(index * size).min(payload.len())..((index + 1) * size).min(payload.len())];
                expected.push(
                    Made {
                        payload: piece.to_vec(),
                        sequence: made.sequence.wrapping_add((index * size) as u32),
                        identification: made.identification.wrapping_add(index as u16),
                        flags: segment_flags(made.flags, index, last),
                        ..made.clone()
                    }
                    .build(),
                );
            }
            let segments = cut(&made, size);
            assert_eq!(segments.len(), expected.len());
            for (at, (found, wanted)) in segments.iter().zip(&expected).enumerate() {
                // 0 and 0xffff are one sum; the naive maker writes the latter.
                let field = made.l4_at() + if made.protocol == TCP { 16 } else { 6 };
                let mut found = found.clone();
                if word(&found, field) == Some(0) {
                    put_word(&mut found, field, 0xFFFF);
                }
                assert_eq!(&found, wanted, "segment {at} of {made:?} by {size}");
            }
        }
    }

    #[test]
    fn a_missing_checksum_is_finished_in_place() {
        let made = Made { is_unfinished: true, ..Made::udp(vec![9; 77]) };
        let mut frame = made.build();
        let header = Vnet::finish(made.l4_at(), UDP_CHECKSUM);
        assert!(matches!(plan_untrusted(&header, &mut frame, 8, 2000), Ok(Plan::Whole)));
        assert_eq!(frame, Made { is_unfinished: false, ..made }.build());
        let beyond = Vnet::finish(frame.len() - 7, UDP_CHECKSUM);
        assert_eq!(plan_untrusted(&beyond, &mut frame, 8, 2000).err(), Some(Reason::INNER_MALFORMED));
    }

    #[test]
    fn what_is_longer_than_the_path_is_said_so() {
        let made = Made { is_unfinished: true, ..Made::tcp(1, vec![9; 3000]) };
        let mut frame = made.build();
        let longest = 8 + made.payload_at() + 1000;
        assert!(plan_untrusted(&made.vnet(1000), &mut frame, 8, longest).is_ok());
        let refused = plan_untrusted(&made.vnet(1000), &mut frame, 8, longest - 1);
        assert_eq!(refused.err(), Some(Reason::MTU_EXCEEDED));
    }

    #[test]
    fn any_octets_are_cut_or_refused() {
        let mut random = Octets::new(6);
        for round in 0..40_000 {
            let made = Made {
                version: 4 + 2 * (round % 2) as u8,
                tags: random.below(2),
                is_unfinished: true,
                ..Made::tcp(1, vec![0; 600])
            };
            let made = if round % 3 == 0 { Made { protocol: UDP, ..made } } else { made };
            let mut frame = made.build();
            let mut header = made.vnet(1 + random.below(700)).build();
            for _ in 0..random.below(3) {
                let at = random.below(80);
                frame[at] = random.number() as u8;
                header[random.below(10)] = random.number() as u8;
            }
            frame.truncate(random.below(frame.len() + 1));
            let planned = plan_untrusted(&Vnet::parse(&header), &mut frame, 8, 1480);
            if let Ok(Plan::Segments(cut)) = planned {
                let mut made = vec![];
                let stride = cut.make(&frame, b"12345678", &mut made);
                assert_eq!(made.len().div_ceil(stride), cut.segments(frame.len()));
            }
        }
    }

    #[test]
    fn a_cut_behind_some_octets_makes_the_same_without_them() {
        let made = Made { is_unfinished: true, ..Made::tcp(1, vec![5; 3000]) };
        let frame = made.build();
        let cut = locate_untrusted(&made.vnet(1000), &frame).unwrap();
        let (mut whole, mut packets) = (vec![], vec![]);
        let stride = cut.make(&frame, b"", &mut whole);
        assert_eq!(cut.behind(14).make(&frame[14..], b"", &mut packets), stride - 14);
        let without: Vec<&[u8]> = whole.chunks(stride).map(|segment| &segment[14..]).collect();
        assert_eq!(packets, without.concat());
    }

    #[test]
    fn the_seed_is_a_folded_sum() {
        assert_eq!(folded(0x1FFFE), 0xFFFF);
    }
}
