//! Merge: the segments of a flow that arrive together are written to the device as the one frame they were
//! (`tunnel.merge`, which lists what may be merged and why).
//!
//! Every checksum is verified, none taken on trust; unfinished segments merge among themselves only.  A run
//! stands where its first segment stood, and what cannot be merged ends the run of its flow, so nothing overtakes
//! within a flow and nothing is kept for a later call.  What is merged is put together in one buffer, where
//! `tunnel.merge` has the kernel gather it: to copy what is in the cache costs less (docs/performance.md).

use crate::checksum::{WORD_MAX, folded, negative, word_sum};
use crate::octets::{
    ACK, ETHERNET_LENGTH, FRAGMENT, IPV4, IPV6, NO_OPTIONS, PSH, TAGS_MAX, TCP, TCP_CHECKSUM, TCP_LENGTH,
    UDP, UDP_CHECKSUM, UDP_LENGTH, is_tag, long, octet, put_word, word,
};
use crate::reason::Reason;
use crate::repair::{Way, repair_untrusted};
use crate::vnet::{GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, Vnet};

const DF: u8 = 0x40; // in the first octet of IPv4's fragment field (RFC 791 section 3.1)
const PACKET_MAX: usize = 65_535; // octets of IP (RFC 791 section 3.1)
/// QUIRK(linux): a UDP super-frame on its way into a vxlan or geneve device of the host is cut there frame by
/// frame, slowly.  RFC 7348, Linux's older default, RFC 8926.
const TUNNEL_PORTS: [u16; 3] = [4789, 8472, 6081];
/// Octets of Ethernet, IPv4 and TCP with timestamps, and nothing in it.
const ACKNOWLEDGMENT_LENGTH: usize = 66;
/// Flows merged at once, among which each frame's is looked for; one more ends the oldest run.
const OPEN_RUNS_MAX: usize = 64;
const NONE: u32 = u32::MAX;

/// What bounds a run.
#[derive(Clone, Copy, Debug)]
pub struct MergeLimits {
    /// Of the device the frames are for.
    pub overlay_mtu: usize,
    /// Whether its kernel takes UDP super-frames (Linux 6.2).
    pub udp: bool,
    /// As for `repair_untrusted`, through which goes whatever is not merged.
    pub mss: Option<u16>,
    /// Segments in one write.
    pub segments_max: usize,
}

/// Who takes what came of a merge, in order.
pub trait Sink {
    /// One write to the device, which stands for so many frames.
    fn write(&mut self, vnet: Vnet, frame: &[u8], frames: usize);
    /// A frame that is not written.
    fn lose(&mut self, reason: Reason, frame: &[u8]);
}

/// Where things are in a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    version: u8,
    protocol: u8,
    network_at: usize,
    l4_at: usize,
    payload_at: usize,
}

impl Shape {
    fn length_at(&self) -> usize {
        self.network_at + if self.version == 4 { 2 } else { 4 }
    }

    fn checksum_at(&self) -> usize {
        self.l4_at + if self.protocol == TCP { TCP_CHECKSUM } else { UDP_CHECKSUM }
    }

    fn addresses_at(&self) -> usize {
        self.network_at + if self.version == 4 { 12 } else { 8 }
    }
}

/// A TCP or UDP frame whose lengths are exact; without a shape it is not to be merged.
struct Segment<'a> {
    flow: &'a [u8],
    shape: Option<Shape>,
    is_pushed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Checksum {
    Right,
    Unfinished,
    Wrong,
}

struct Run {
    first: usize,
    last: usize,
    frames: usize,
    shape: Shape,
    size: usize,
    room: usize,
    next_sequence: u32,
    next_identification: u16,
    identification_step: u16,
    checksum: Option<Checksum>,
    is_pushed: bool,
    is_over: bool,
}

/// Merges frames of one read that go to one device; tells the sink what to write, in order.  `merged` is where frames
/// are put together; it loses what it held.
pub fn merge_untrusted(frames: &[&[u8]], limits: MergeLimits, merged: &mut Vec<u8>, sink: &mut impl Sink) {
    let mut merge =
        Merge { frames, next: vec![NONE; frames.len()], runs: vec![], places: Vec::with_capacity(4) };
    merge.sort(limits);
    merge.tell(limits, merged, sink);
}

#[derive(Clone, Copy)]
enum Place {
    Frame(usize),
    Run(usize),
}

struct Merge<'a> {
    frames: &'a [&'a [u8]],
    /// Behind which frame of its run each frame's payload comes.
    next: Vec<u32>,
    runs: Vec<Run>,
    places: Vec<Place>,
}

impl<'a> Merge<'a> {
    fn sort(&mut self, limits: MergeLimits) {
        let mut open: Vec<(&'a [u8], usize)> = vec![];
        for at in 0..self.frames.len() {
            let frame = self.frames[at];
            // The last frame starts no run, and an acknowledgment is not worth the look.
            let is_alone =
                open.is_empty() && (at + 1 == self.frames.len() || frame.len() <= ACKNOWLEDGMENT_LENGTH);
            let segment = if is_alone { None } else { dissect(frame, limits) };
            let Some(segment) = segment else {
                open.clear();
                self.places.push(Place::Frame(at));
                continue;
            };
            let found = open.iter().position(|(flow, _)| *flow == segment.flow);
            if let Some(place) = found {
                let run = open[place].1;
                if self.join(run, at, &segment) {
                    if self.runs[run].is_over {
                        open.remove(place);
                    }
                    continue;
                }
                open.remove(place);
            }
            match segment.shape {
                Some(shape) if !segment.is_pushed => {
                    let run = self.start(at, shape, limits.segments_max);
                    if open.len() == OPEN_RUNS_MAX {
                        open.remove(0);
                    }
                    if !self.runs[run].is_over {
                        open.push((segment.flow, run));
                    }
                }
                _ => self.places.push(Place::Frame(at)),
            }
        }
    }

    fn start(&mut self, at: usize, shape: Shape, segments_max: usize) -> usize {
        let frame = self.frames[at];
        let size = frame.len() - shape.payload_at;
        let sequence = long(frame, shape.l4_at + 4).unwrap_or(0);
        let room = segments_max.min((PACKET_MAX - shape.payload_at + shape.network_at) / size);
        self.runs.push(Run {
            first: at,
            last: at,
            frames: 1,
            shape,
            size,
            room,
            next_sequence: sequence.wrapping_add(size as u32),
            next_identification: 0,
            identification_step: 0,
            checksum: None, // judged when a second segment turns up: most stay alone
            is_pushed: false,
            is_over: room < 2,
        });
        self.places.push(Place::Run(self.runs.len() - 1));
        self.runs.len() - 1
    }

    /// HOT PATH: once per segment merged.  Takes it if it is the next one, the last of a run included.
    fn join(&mut self, run: usize, at: usize, segment: &Segment<'_>) -> bool {
        let run = &mut self.runs[run];
        let (frame, first, shape) = (self.frames[at], self.frames[run.first], run.shape);
        let octets = frame.len() - shape.payload_at.min(frame.len());
        if segment.shape != Some(shape) || octets > run.size {
            return false;
        }
        if run.frames == 1 && shape.version == 4 {
            run.learn_identifications(first, frame);
        }
        if !run.is_alike(first, frame) {
            return false;
        }
        let judged = *run.checksum.get_or_insert_with(|| verify(first, &shape));
        if judged == Checksum::Wrong || verify(frame, &shape) != judged {
            run.is_over |= judged == Checksum::Wrong;
            return false;
        }
        self.next[run.last] = at as u32;
        run.last = at;
        run.frames += 1;
        if shape.protocol == TCP {
            run.next_sequence = run.next_sequence.wrapping_add(run.size as u32);
        }
        run.next_identification = run.next_identification.wrapping_add(run.identification_step);
        run.is_pushed = segment.is_pushed;
        run.is_over |= segment.is_pushed || octets < run.size || run.frames == run.room;
        true
    }

    fn tell(&self, limits: MergeLimits, merged: &mut Vec<u8>, sink: &mut impl Sink) {
        for place in &self.places {
            match *place {
                Place::Run(run) if self.runs[run].frames > 1 => {
                    let run = &self.runs[run];
                    let vnet = self.put_together(run, merged);
                    sink.write(vnet, merged, run.frames);
                }
                Place::Run(run) => tell_plain(self.frames[self.runs[run].first], limits, sink),
                Place::Frame(at) => tell_plain(self.frames[at], limits, sink),
            }
        }
    }

    /// Puts together the one frame the segments were; its virtio header.
    fn put_together(&self, run: &Run, merged: &mut Vec<u8>) -> Vnet {
        let shape = run.shape;
        merged.clear();
        merged.extend_from_slice(&self.frames[run.first][..shape.payload_at]);
        let mut at = run.first as u32;
        while at != NONE {
            merged.extend_from_slice(&self.frames[at as usize][shape.payload_at..]);
            at = self.next[at as usize];
        }
        let (header, payload) = merged.split_at_mut(shape.payload_at);
        let l4_length = shape.payload_at - shape.l4_at + payload.len();
        if shape.version == 4 {
            put_word(header, shape.length_at(), (shape.l4_at - shape.network_at + l4_length) as u16);
            put_word(header, shape.network_at + 10, 0);
            let sum = word_sum(&header[shape.network_at..shape.l4_at]) as i64;
            put_word(header, shape.network_at + 10, negative(sum));
        } else {
            put_word(header, shape.length_at(), l4_length as u16);
        }
        if shape.protocol == UDP {
            put_word(header, shape.l4_at + 4, l4_length as u16);
        } else if run.is_pushed {
            header[shape.l4_at + 13] |= PSH;
        }
        let pseudo = pseudo_header_sum(header, &shape, l4_length);
        put_word(header, shape.checksum_at(), pseudo);
        Vnet {
            flags: NEEDS_CSUM,
            gso_type: match (shape.protocol, shape.version) {
                (UDP, _) => GSO_UDP_L4,
                (_, 4) => GSO_TCPV4,
                _ => GSO_TCPV6,
            },
            header_length: shape.payload_at as u16,
            gso_size: run.size as u16,
            checksum_start: shape.l4_at as u16,
            checksum_offset: (shape.checksum_at() - shape.l4_at) as u16,
        }
    }
}

fn tell_plain(frame: &[u8], limits: MergeLimits, sink: &mut impl Sink) {
    let way = Way { overlay_mtu: limits.overlay_mtu, segment_size: None, mss: limits.mss };
    match repair_untrusted(frame, way) {
        Ok(vnet) => sink.write(vnet, frame, 1),
        Err(reason) => sink.lose(reason, frame),
    }
}

impl Run {
    /// Whether identifications go up or stay, which the second segment says (RFC 6864 section 4.1).
    fn learn_identifications(&mut self, first: &[u8], second: &[u8]) {
        let at = self.shape.network_at + 4;
        let (one, two) = (word(first, at).unwrap_or(0), word(second, at).unwrap_or(0));
        let has_df = first[self.shape.network_at + 6] & DF != 0;
        self.identification_step = if has_df && one == two { 0 } else { 1 };
        self.next_identification = one.wrapping_add(self.identification_step);
    }

    /// Whether a segment of the run's shape follows it, its lengths and PSH left out.
    fn is_alike(&self, first: &[u8], frame: &[u8]) -> bool {
        let Shape { version, protocol, network_at, l4_at, payload_at } = self.shape;
        let same = |from: usize, to: usize| first[from..to] == frame[from..to];
        let network = if version == 4 {
            same(0, network_at + 2)
                && word(frame, network_at + 4) == Some(self.next_identification)
                && same(network_at + 6, network_at + 10)
                && same(network_at + 12, l4_at + 4)
        } else {
            same(0, network_at + 4) && same(network_at + 6, l4_at + 4)
        };
        if !network || protocol == UDP {
            return network;
        }
        long(frame, l4_at + 4) == Some(self.next_sequence)
            && same(l4_at + 8, l4_at + 12) // flags and offset were looked at: shape and ACK are the same
            && same(l4_at + 14, l4_at + 16)
            && same(l4_at + 18, payload_at)
    }
}

// ── Where things are ────────────────────────────────────────────────────────────────────────────────────

/// The frame as a segment, None where its flow cannot be told.
fn dissect(frame: &[u8], limits: MergeLimits) -> Option<Segment<'_>> {
    let (version, protocol, network_at, l4_at) = locate(frame)?;
    let length = frame.len();
    let (l4_length, may_merge, is_pushed) = if protocol == TCP && length >= l4_at + TCP_LENGTH {
        let (offset, flags) = (frame[l4_at + 12], frame[l4_at + 13]);
        let l4_length = usize::from(offset >> 4) * 4;
        (l4_length, flags & !PSH == ACK && l4_length >= TCP_LENGTH && offset & 0x0F == 0, flags & PSH != 0)
    } else if protocol == UDP {
        let port = word(frame, l4_at + 2)?;
        let is_exact = usize::from(word(frame, l4_at + 4)?) == length - l4_at;
        let may_merge =
            limits.udp && !TUNNEL_PORTS.contains(&port) && is_exact && word(frame, l4_at + 6)? != 0;
        (UDP_LENGTH, may_merge, false)
    } else {
        return None;
    };
    let addresses_at = l4_at - if version == 4 { 8 } else { 32 };
    let flow = &frame[addresses_at..l4_at + 4];
    let is_whole = l4_at + l4_length < length && length <= limits.overlay_mtu + network_at;
    let shape = Shape { version, protocol, network_at, l4_at, payload_at: l4_at + l4_length };
    Some(Segment { flow, shape: (may_merge && is_whole).then_some(shape), is_pushed })
}

/// IP version, protocol, where the IP header and the transport's begin; eight octets of that are there.
///
/// None where it is neither IPv4 without options nor IPv6 without extension headers, or its length is not
/// exactly the frame's, or it is a fragment.
fn locate(frame: &[u8]) -> Option<(u8, u8, usize, usize)> {
    let length = frame.len();
    for at in (ETHERNET_LENGTH..ETHERNET_LENGTH + 4 * TAGS_MAX).step_by(4) {
        if length < at + 20 + UDP_LENGTH {
            return None;
        }
        let ethertype = word(frame, at - 2)?;
        if ethertype == IPV4 {
            let is_sound = frame[at] == NO_OPTIONS
                && word(frame, at + 6)? & FRAGMENT == 0
                && at + usize::from(word(frame, at + 2)?) == length;
            return is_sound.then_some((4, frame[at + 9], at, at + 20));
        }
        if ethertype == IPV6 {
            let is_sound = length >= at + 40 + UDP_LENGTH
                && frame[at] >> 4 == 6
                && at + 40 + usize::from(word(frame, at + 4)?) == length;
            return if is_sound { Some((6, octet(frame, at + 6)?, at, at + 40)) } else { None };
        }
        if !is_tag(ethertype) {
            return None;
        }
    }
    None
}

// ── Checksums ───────────────────────────────────────────────────────────────────────────────────────────

/// Judges the checksums of a frame by itself.
fn verify(frame: &[u8], shape: &Shape) -> Checksum {
    if shape.version == 4 && !word_sum(&frame[shape.network_at..shape.l4_at]).is_multiple_of(WORD_MAX) {
        return Checksum::Wrong;
    }
    let pseudo = pseudo_header_sum(frame, shape, frame.len() - shape.l4_at);
    if word(frame, shape.checksum_at()) == Some(pseudo) {
        return Checksum::Unfinished;
    }
    match (u64::from(pseudo) + word_sum(&frame[shape.l4_at..])) % WORD_MAX {
        0 => Checksum::Right,
        _ => Checksum::Wrong,
    }
}

/// Folded; never 0, for its protocol is not.
fn pseudo_header_sum(frame: &[u8], shape: &Shape, l4_length: usize) -> u16 {
    let addresses = word_sum(&frame[shape.addresses_at()..shape.l4_at]);
    folded(addresses + u64::from(shape.protocol) + l4_length as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Made, Octets};

    #[derive(Default)]
    struct Told {
        writes: Vec<(Vnet, Vec<u8>, usize)>,
        lost: usize,
    }

    impl Sink for Told {
        fn write(&mut self, vnet: Vnet, frame: &[u8], frames: usize) {
            self.writes.push((vnet, frame.to_vec(), frames));
        }

        fn lose(&mut self, _: Reason, _: &[u8]) {
            self.lost += 1;
        }
    }

    const LIMITS: MergeLimits = MergeLimits { overlay_mtu: 1450, udp: true, mss: None, segments_max: 64 };

    fn merged(frames: &[Vec<u8>]) -> Told {
        let views: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        let mut told = Told::default();
        merge_untrusted(&views, LIMITS, &mut vec![], &mut told);
        told
    }

    fn segments(made: &Made, size: usize) -> Vec<Vec<u8>> {
        made.segments(size).collect()
    }

    #[test]
    fn merged_segments_are_the_super_frame_they_were_cut_from() {
        let mut random = Octets::new(7);
        for round in 0..300 {
            let size = 40 + random.below(1300);
            let count = size * 2 + random.below(size * 20);
            let payload = random.take(count);
            let base = if round % 3 == 0 { Made::udp(payload) } else { Made::tcp(u32::MAX - 900, payload) };
            let is_unfinished = round % 5 == 0;
            let made =
                Made { version: 4 + 2 * (round % 2) as u8, tags: random.below(2), is_unfinished, ..base };
            let told = merged(&segments(&made, size));
            assert_eq!((told.writes.len(), told.lost), (1, 0));
            let (vnet, octets, frames) = &told.writes[0];
            assert_eq!(*octets, Made { is_unfinished: true, ..made.clone() }.build());
            assert_eq!((usize::from(vnet.gso_size), *frames), (size, made.payload.len().div_ceil(size)));
        }
    }

    #[test]
    fn a_wrong_checksum_is_written_as_it_came_and_lends_nothing_its_trust() {
        let made = Made::tcp(1, vec![3; 5000]);
        let mut frames = segments(&made, 1000);
        frames[2][90] ^= 1;
        let told = merged(&frames);
        let counts: Vec<usize> = told.writes.iter().map(|(_, _, frames)| *frames).collect();
        assert_eq!(counts, [2, 1, 2]);
        assert_eq!(told.writes[1].1, frames[2]);
    }

    #[test]
    fn interleaved_flows_are_merged_each_for_itself() {
        let one = segments(&Made::tcp(1, vec![3; 3000]), 1000);
        let other = segments(&Made { version: 6, ..Made::tcp(9, vec![4; 3000]) }, 1000);
        let frames: Vec<Vec<u8>> = one.into_iter().zip(other).flat_map(|(a, b)| [a, b]).collect();
        assert_eq!(merged(&frames).writes.iter().map(|write| write.2).collect::<Vec<_>>(), [3, 3]);
    }

    #[test]
    fn any_octets_are_written_or_lost_and_none_twice() {
        let mut random = Octets::new(8);
        for _ in 0..4000 {
            let made = Made { version: 4 + 2 * random.below(2) as u8, ..Made::tcp(1, vec![0; 900]) };
            let mut frames = segments(&made, 100);
            for _ in 0..random.below(12) {
                let victim = random.below(frames.len());
                let at = random.below(frames[victim].len().max(1));
                match random.below(4) {
                    0 => frames[victim].truncate(at),
                    1 => frames.swap(victim, 0),
                    _ => {
                        if let Some(octet) = frames[victim].get_mut(at) {
                            *octet = random.number() as u8;
                        }
                    }
                }
            }
            let told = merged(&frames);
            assert_eq!(told.writes.iter().map(|write| write.2).sum::<usize>() + told.lost, frames.len());
        }
    }
}
