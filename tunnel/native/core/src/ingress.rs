//! Ingress: underlay → device (`tunnel.ingress`).  The functions stand in the order the datagram meets them.
//!
//! ```text
//! drain ─▶ one recvmmsg ─▶ datagrams ─▶ header, network, VTEP ─▶ flow remembered? ─▶ carry ─▶ one writev
//!                                                                  └▶ ask       merge ─┘
//! ```

use std::io::IoSlice;
use std::mem;

use crate::discovery::may_be_discovery_untrusted;
use crate::ecn::{CE, mark_congested_untrusted};
use crate::flows::{Key, Owner, Verdict};
use crate::lane::{Book, Drops, HEADER_LENGTH, Lane, Point};
use crate::merge::{MergeLimits, Sink, merge_untrusted};
use crate::octets::long;
use crate::reason::Reason;
use crate::repair::{Way, is_super_frame_untrusted, repair_untrusted};
use crate::sys::{self, Arrived, Host, errno};
use crate::upcalls::Held;
use crate::vnet::Vnet;

/// What a receive buffer must hold, or the end of a super-datagram is lost; a multiple of a page.
const DATAGRAM_ROOM: usize = 65_536;
/// Datagrams, or runs of them, in one system call.
const READS_PER_TURN: usize = 8;
/// Octets of the receive buffer.
pub const BUFFER_OCTETS: usize = READS_PER_TURN * DATAGRAM_ROOM;
/// A VXLAN header's first word with nothing reserved set (RFC 7348 section 5).
const I_WORD: u32 = 0x0800_0000;
/// Of a datagram: VXLAN header, both MACs, EtherType.
const FLOW_END: usize = HEADER_LENGTH + 14;

/// What is known of a datagram beside its octets.
#[derive(Clone, Copy)]
struct Sender {
    port: u32,
    host: Host,
    is_marked: bool,
}

impl Lane {
    /// Reads a turn's datagrams from a port; how many reads gave something.
    pub fn drain_port(&mut self, port: u32, now: f64) -> usize {
        let Some(fd) = self.ports.get(port as usize).and_then(Option::as_ref).map(|port| port.fd) else {
            return 0;
        };
        let mut buffer = mem::take(&mut self.received);
        let mut arrived = [Arrived { length: 0, host: [0; 16], stride: None, ecn: 0 }; READS_PER_TURN];
        // An error here is an old send's misfortune; the next call goes on.
        let count = sys::receive_many(fd, &mut buffer, DATAGRAM_ROOM, &mut arrived).unwrap_or(0);
        for (part, arrived) in buffer.chunks_exact_mut(DATAGRAM_ROOM).zip(&arrived[..count]) {
            let octets = &mut part[..arrived.length];
            let sender = Sender { port, host: arrived.host, is_marked: arrived.ecn == CE };
            match arrived.stride {
                Some(stride) if stride < octets.len() => {
                    let frame = octets.get(HEADER_LENGTH..).unwrap_or(&[]);
                    if is_super_frame_untrusted(frame) {
                        self.receive(sender, octets, Some(stride), now);
                    } else {
                        self.receive_run(sender, octets, stride, now);
                    }
                }
                _ => self.receive(sender, octets, None, now),
            }
        }
        self.received = buffer;
        count
    }

    /// A run of datagrams of `stride` octets, the last perhaps shorter, all from one sender.
    ///
    /// HOT PATH: neighbours that agree in VXLAN header, MACs and EtherType are one flow's, and are looked at once.
    fn receive_run(&mut self, sender: Sender, run: &mut [u8], stride: usize, now: f64) {
        let (mut at, end) = (0, run.len());
        while at < end {
            let mut after = at + stride;
            let first = &run[at..end.min(at + FLOW_END)];
            while after < end && &run[after..end.min(after + FLOW_END)] == first {
                after += stride;
            }
            self.receive_group(sender, &mut run[at..end.min(after)], stride, now);
            at = after;
        }
    }

    /// Datagrams of one flow: carried together where its verdict is to deliver, else one by one.
    fn receive_group(&mut self, sender: Sender, group: &mut [u8], stride: usize, now: f64) {
        if group.len() > stride
            && !sender.is_marked
            && !self.book.is_watched
            && let Some((network, vtep, verdict)) = self.note_known(sender, group, stride, now)
        {
            return self.carry_together(network, vtep, verdict, group, stride);
        }
        for datagram in group.chunks_mut(stride) {
            self.receive(sender, datagram, None, now);
        }
    }

    /// The flow of a group with nothing to object to, counted; None where each has to be looked at closer.
    fn note_known(
        &mut self,
        sender: Sender,
        group: &[u8],
        stride: usize,
        now: f64,
    ) -> Option<(u32, u32, Verdict)> {
        if stride < FLOW_END {
            return None;
        }
        let vni_word = long(group, 4)?;
        if long(group, 0)? != I_WORD || vni_word & 0xFF != 0 {
            return None;
        }
        let Lane { networks, vteps, ports, book, .. } = self;
        let network = *ports.get(sender.port as usize)?.as_ref()?.networks.get(&(vni_word >> 8))?;
        let network_ = networks.get(network as usize)?.as_ref()?;
        let vtep = *network_.hosts.get(&sender.host)?;
        let vtep_ = vteps.get_mut(vtep as usize)?.as_mut()?;
        let key: &Key = group[HEADER_LENGTH..].first_chunk()?;
        if key[0] & 1 != 0 {
            return None;
        }
        let flow = vtep_.ingress.find(key)?;
        let frames = group.len().div_ceil(stride) as u64;
        let octets = group.len() as u64 - HEADER_LENGTH as u64 * frames;
        book.received += frames;
        vtep_.traffic.received_frames += frames;
        vtep_.traffic.received_octets += octets;
        flow.frames += frames;
        flow.octets += octets;
        flow.used_at = now;
        Some((network, vtep, flow.verdict))
    }

    /// HOT PATH: one datagram, checked from the outside in: header, network, sender, flow.
    fn receive(&mut self, sender: Sender, datagram: &mut [u8], segment_size: Option<usize>, now: f64) {
        self.book.received += 1;
        let network = self.network_of(sender.port, datagram);
        if datagram.len() < FLOW_END {
            return self.book.drop(Reason::TRUNCATED, network, datagram, None, 1);
        }
        let (word, vni_word) = (long(datagram, 0).unwrap_or(0), long(datagram, 4).unwrap_or(0));
        let frame = &mut datagram[HEADER_LENGTH..];
        if self.book.is_watched {
            self.book.show(Point::UnderlayReceive, network, frame.to_vec(), None);
        }
        if word & I_WORD == 0 {
            return self.book.drop(Reason::BAD_FLAGS, None, frame, None, 1); // RFC 7348 section 5: I MUST be 1
        }
        let Lane { networks, vteps, book, .. } = self;
        let known = network.and_then(|number| Some((number, networks.get(number as usize)?.as_ref()?)));
        let Some((network, network_)) = known else {
            return book.drop(Reason::UNKNOWN_VNI, None, frame, None, 1);
        };
        if network_.is_strict && (word != I_WORD || vni_word & 0xFF != 0) {
            return book.drop(Reason::RESERVED_BITS, Some(network), frame, None, 1);
        }
        let vtep = network_.hosts.get(&sender.host).copied();
        let Some((vtep, vtep_)) = vtep.and_then(|vtep| Some((vtep, vteps.get_mut(vtep as usize)?.as_mut()?)))
        else {
            return book.drop(Reason::UNKNOWN_VTEP, Some(network), frame, None, 1);
        };
        if sender.is_marked
            && let Err(reason) = mark_congested_untrusted(frame)
        {
            return book.drop(reason, Some(network), frame, Some(&mut vtep_.drops), 1); // RFC 6040 section 4.2
        }
        vtep_.traffic.received_frames += 1;
        vtep_.traffic.received_octets += frame.len() as u64;
        let is_asked = frame[0] & 1 != 0 && network_.suppresses && may_be_discovery_untrusted(frame);
        let key = frame.first_chunk::<12>();
        let flow = if is_asked { None } else { key.and_then(|key| vtep_.ingress.find(key)) };
        let Some(flow) = flow else {
            let held = Held { frame: frame.to_vec(), vnet: Vnet::default(), segment_size };
            return self.ask(Owner::Ingress(vtep), network, held, now);
        };
        flow.frames += 1;
        flow.octets += frame.len() as u64;
        flow.used_at = now;
        let verdict = flow.verdict;
        self.carry_one(network, vtep, verdict, frame, segment_size);
    }

    fn network_of(&self, port: u32, datagram: &[u8]) -> Option<u32> {
        let vni_word = long(datagram, 4)?;
        self.ports.get(port as usize)?.as_ref()?.networks.get(&(vni_word >> 8)).copied()
    }

    /// Does what the verdict says with one frame that has waited for it.
    pub(crate) fn carry_in(&mut self, network: u32, vtep: u32, verdict: Verdict, held: &Held) {
        self.carry_one(network, vtep, verdict, &held.frame, held.segment_size);
    }

    /// HOT PATH: one frame, repaired on the way.
    fn carry_one(
        &mut self,
        network: u32,
        vtep: u32,
        verdict: Verdict,
        frame: &[u8],
        segment_size: Option<usize>,
    ) {
        let Lane { networks, vteps, book, .. } = self;
        let Some(network_) = networks.get(network as usize).and_then(Option::as_ref) else { return };
        let drops = vteps.get_mut(vtep as usize).and_then(Option::as_mut).map(|vtep| &mut vtep.drops);
        let mut writer = Writer { fd: network_.device, network, book, drops };
        if let Err(reason) = delivered(verdict) {
            return writer.lose(reason, frame);
        }
        if !network_.repairs {
            return writer.write(Vnet::default(), &[IoSlice::new(frame)], 1);
        }
        let way = Way { overlay_mtu: network_.overlay_mtu, segment_size, mss: network_.segment_limit(frame) };
        match repair_untrusted(frame, way) {
            Ok(vnet) => writer.write(vnet, &[IoSlice::new(frame)], 1),
            Err(reason) => writer.lose(reason, frame),
        }
    }

    /// HOT PATH: frames of one flow that came in one read, merged where TCP and UDP allow it.
    fn carry_together(&mut self, network: u32, vtep: u32, verdict: Verdict, group: &[u8], stride: usize) {
        let Lane { networks, vteps, book, bounds, .. } = self;
        let Some(network_) = networks.get(network as usize).and_then(Option::as_ref) else { return };
        let drops = vteps.get_mut(vtep as usize).and_then(Option::as_mut).map(|vtep| &mut vtep.drops);
        let mut writer = Writer { fd: network_.device, network, book, drops };
        let frames: Vec<&[u8]> =
            group.chunks(stride).map(|datagram| &datagram[HEADER_LENGTH.min(datagram.len())..]).collect();
        if let Err(reason) = delivered(verdict) {
            return frames.iter().for_each(|frame| writer.lose(reason, frame));
        }
        if !network_.repairs {
            return frames.iter().for_each(|frame| writer.write(Vnet::default(), &[IoSlice::new(frame)], 1));
        }
        let limits = MergeLimits {
            overlay_mtu: network_.overlay_mtu,
            udp: network_.merges_udp,
            mss: network_.segment_limit(frames[0]),
            segments_max: bounds.write_segments,
        };
        merge_untrusted(&frames, limits, &mut writer);
    }
}

/// Why a frame from the tunnel is not delivered, if it is not: no verdict sends it back there.
fn delivered(verdict: Verdict) -> Result<(), Reason> {
    match verdict {
        Verdict::Deliver => Ok(()),
        Verdict::Drop(reason) => Err(reason),
        Verdict::Encapsulate(_) | Verdict::Replicate => Err(Reason::SPLIT_HORIZON),
    }
}

/// Writes to one device, and counts what comes of it.
pub(crate) struct Writer<'a> {
    pub fd: i32,
    pub network: u32,
    pub book: &'a mut Book,
    pub drops: Option<&'a mut Drops>,
}

impl Writer<'_> {
    /// HOT PATH: one frame, or one that stands for several, to the device.
    pub fn put(&mut self, vnet: Vnet, slices: &[IoSlice<'_>], frames: usize) {
        let header = vnet.build();
        let result = if let [frame] = slices {
            sys::write(self.fd, &[IoSlice::new(&header), *frame])
        } else {
            let mut gathered = Vec::with_capacity(slices.len() + 1);
            gathered.push(IoSlice::new(&header));
            gathered.extend_from_slice(slices);
            sys::write(self.fd, &gathered)
        };
        let whole = |slices: &[IoSlice<'_>]| {
            slices.iter().flat_map(|slice| slice.iter().copied()).collect::<Vec<u8>>()
        };
        match result {
            Ok(_) => {
                self.book.delivered += frames as u64;
                if self.book.is_watched {
                    self.book.show(Point::DeviceWrite, Some(self.network), whole(slices), None);
                }
            }
            Err(error) => {
                // EINVAL is about the frame's contents, which a stranger chose; the rest is the device's.
                let is_frame = errno(&error) == libc::EINVAL;
                let reason = if is_frame { Reason::INNER_MALFORMED } else { Reason::DEVICE_FULL };
                let drops = self.drops.as_deref_mut();
                self.book.drop(reason, Some(self.network), &whole(slices), drops, frames as u64);
            }
        }
    }
}

impl Sink for Writer<'_> {
    fn write(&mut self, vnet: Vnet, slices: &[IoSlice<'_>], frames: usize) {
        self.put(vnet, slices, frames);
    }

    fn lose(&mut self, reason: Reason, frame: &[u8]) {
        self.book.drop(reason, Some(self.network), frame, self.drops.as_deref_mut(), 1);
    }
}
