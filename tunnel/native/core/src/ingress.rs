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
use crate::lane::{Book, Drops, HEADER_LENGTH, Lane, Point, Work};
use crate::merge::{MergeLimits, Sink, merge_untrusted};
use crate::octets::{ETHERNET_LENGTH, UDP, long, octet};
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
/// Of UDP in one turn: with what the kernel counts beside them half of a program's receive buffer (`rmem_default`), which
/// it must have time to read.  Short datagrams are no flood here: to nap for them gained nothing.
const FLOOD_OCTETS: usize = 64 << 10;
/// A VXLAN header's first word with nothing reserved set (RFC 7348 section 5).
const I_WORD: u32 = 0x0800_0000;
/// Of a datagram: VXLAN header, both MACs, EtherType.
const FLOW_END: usize = HEADER_LENGTH + 14;

/// What is known of a datagram beside its octets.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Sender {
    port: u32,
    host: Host,
    is_marked: bool,
}

/// Datagrams side by side in the buffer that agree in sender, VXLAN header, MACs and EtherType: one flow's.
#[derive(Clone, Copy)]
pub(crate) struct Group {
    at: usize,
    end: usize,
    /// Octets of each datagram, the last perhaps shorter.
    stride: usize,
    sender: Sender,
    /// The size its sender cut a super-frame to, which fills the group.
    segment_size: Option<usize>,
}

impl Group {
    fn count(&self) -> usize {
        (self.end - self.at).div_ceil(self.stride)
    }

    /// Whether the other group may be carried together with this one.  Longer frames may not: the first one carried is
    /// the longest, by which it is told whether there is a segment limit to heed.
    fn goes_with(&self, other: &Group, buffer: &[u8]) -> bool {
        let head = |group: &Group| &buffer[group.at..group.at + FLOW_END];
        let is_longer = other.stride.min(other.end - other.at) > self.stride.min(self.end - self.at);
        other.may_join() && !is_longer && self.sender == other.sender && head(self) == head(other)
    }

    fn may_join(&self) -> bool {
        let is_whole = self.stride >= FLOW_END && self.end - self.at >= FLOW_END;
        is_whole && self.segment_size.is_none() && !self.sender.is_marked
    }
}

/// Whether a datagram carries UDP, untagged, which unlike TCP need not heed how fast it is read.  A guess: nothing hangs
/// on it but a nap.
fn carries_udp(datagram: &[u8], is_packet: bool) -> bool {
    let before = if is_packet { 0 } else { HEADER_LENGTH + ETHERNET_LENGTH };
    let packet = datagram.get(before..).unwrap_or_default();
    let protocol_at = match packet.first().map(|octet| octet >> 4) {
        Some(4) => 9,
        Some(6) => 6,
        _ => return false,
    };
    octet(packet, protocol_at) == Some(UDP)
}

impl Lane {
    /// Reads a turn's datagrams from a port.
    pub fn drain_port(&mut self, port: u32, now: f64) -> Work {
        let Some(port_) = self.ports.get(port as usize).and_then(Option::as_ref) else {
            return Work::default();
        };
        let (fd, of_packets, sends_for) = (port_.fd, port_.of_packets(), port_.sends_for);
        let mut buffer = mem::take(&mut self.received);
        let mut groups = mem::take(&mut self.groups);
        let mut arrived = [Arrived { length: 0, host: [0; 16], stride: None, ecn: 0 }; READS_PER_TURN];
        let count = sys::receive_many(fd, &mut buffer, DATAGRAM_ROOM, &mut arrived).unwrap_or_else(|_| {
            // A socket that sends as well is readable, too, while an ICMP error waits: until that is taken.
            if let Some(underlay) = sends_for {
                self.hear_refusals(underlay);
            }
            0
        });
        let mut udp_octets = 0;
        for (index, read) in arrived[..count].iter().enumerate() {
            let start = index * DATAGRAM_ROOM;
            if carries_udp(&buffer[start..start + read.length], of_packets.is_some()) {
                udp_octets += read.length;
            }
            if let Some(network) = of_packets {
                self.receive_packets(network, &buffer[start..start + read.length], read, now);
                continue;
            }
            self.group(&buffer, start, read, port, &mut groups);
        }
        self.receive_groups(&mut buffer, &groups, now);
        groups.clear();
        (self.received, self.groups) = (buffer, groups);
        let run_octets = arrived[..count].iter().filter(|read| read.is_run()).map(|read| read.length).sum();
        Work { arrivals: count, run_octets, is_flooded: udp_octets >= FLOOD_OCTETS, ..Work::default() }
    }

    /// Carries what was read: neighbouring groups of one flow together, even from different reads.
    fn receive_groups(&mut self, buffer: &mut [u8], groups: &[Group], now: f64) {
        let mut at = 0;
        while let Some(first) = groups.get(at) {
            let mut end = at + 1;
            if first.may_join() && !self.book.is_watched {
                end += groups[end..].iter().take_while(|group| first.goes_with(group, buffer)).count();
            }
            let alike = &groups[at..end];
            at = end;
            if self.receive_alike(buffer, alike, now) {
                continue;
            }
            for group in alike {
                if group.at == group.end {
                    self.receive(group.sender, &mut [], None, now); // an empty datagram is one, too
                }
                for datagram in buffer[group.at..group.end].chunks_mut(group.stride) {
                    self.receive(group.sender, datagram, group.segment_size, now);
                }
            }
        }
    }

    /// Datagrams of one flow, carried together; false where each has to be looked at closer.
    ///
    /// HOT PATH: they are looked up at once.
    fn receive_alike(&mut self, buffer: &[u8], groups: &[Group], now: f64) -> bool {
        let count: usize = groups.iter().map(Group::count).sum();
        if count < 2 || !groups[0].may_join() || self.book.is_watched {
            return false;
        }
        let octets: usize = groups.iter().map(|group| group.end - group.at).sum();
        let frame_octets = octets.saturating_sub(HEADER_LENGTH * count) as u64;
        let Some(known) = self.note_known(&groups[0], buffer, (count as u64, frame_octets), now) else {
            return false;
        };
        let datagrams = groups.iter().flat_map(|group| buffer[group.at..group.end].chunks(group.stride));
        let frames: Vec<&[u8]> =
            datagrams.map(|datagram| &datagram[HEADER_LENGTH.min(datagram.len())..]).collect();
        self.carry_together(known, &frames);
        true
    }

    /// The flow of a group with nothing to object to, counted with so many frames and octets.
    fn note_known(
        &mut self,
        group: &Group,
        buffer: &[u8],
        (frames, octets): (u64, u64),
        now: f64,
    ) -> Option<(u32, u32, Verdict)> {
        let first = &buffer[group.at..group.end];
        let vni_word = long(first, 4)?;
        if long(first, 0)? != I_WORD || vni_word & 0xFF != 0 {
            return None;
        }
        let Lane { networks, vteps, ports, book, .. } = self;
        let network = *ports.get(group.sender.port as usize)?.as_ref()?.networks.get(&(vni_word >> 8))?;
        let network_ = networks.get(network as usize)?.as_ref()?;
        let vtep = *network_.hosts.get(&group.sender.host)?;
        let vtep_ = vteps.get_mut(vtep as usize)?.as_mut()?;
        let key: &Key = first[HEADER_LENGTH..].first_chunk()?;
        if key[0] & 1 != 0 {
            return None;
        }
        let flow = vtep_.ingress.find(key)?;
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

    /// Sorts what one read gave into groups: a datagram, a super-frame, or a run of equal datagrams cut where the flow
    /// changes.
    fn group(&mut self, buffer: &[u8], start: usize, read: &Arrived, port: u32, groups: &mut Vec<Group>) {
        let sender = Sender { port, host: read.host, is_marked: read.ecn == CE };
        let end = start + read.length;
        let octets = &buffer[start..end];
        let Some(stride) = read.stride.filter(|stride| *stride < read.length) else {
            let stride = read.length.max(1);
            return groups.push(Group { at: start, end, stride, sender, segment_size: None });
        };
        if is_super_frame_untrusted(octets.get(HEADER_LENGTH..).unwrap_or(&[])) {
            if self.begins_datagram(port, &octets[stride..]) {
                return self.refuse_ambiguous(sender, octets, stride);
            }
            let segment_size = Some(stride);
            return groups.push(Group { at: start, end, stride: read.length, sender, segment_size });
        }
        let mut at = start;
        while at < end {
            let first = &buffer[at..end.min(at + FLOW_END)];
            let mut after = at + stride;
            while after < end && &buffer[after..end.min(after + FLOW_END)] == first {
                after += stride;
            }
            groups.push(Group { at, end: end.min(after), stride, sender, segment_size: None });
            at = after;
        }
    }

    /// Drops what may be a super-frame or a run, each of its datagrams counted.
    ///
    /// Whoever wrote it made it so: a length that lies would take others' datagrams along, and a payload that looks
    /// like a datagram would be taken for one of another network.
    fn refuse_ambiguous(&mut self, sender: Sender, octets: &[u8], stride: usize) {
        let (network, count) = (self.network_of(sender.port, octets), octets.len().div_ceil(stride) as u64);
        let vtep = network.and_then(|network| self.network(network)?.hosts.get(&sender.host).copied());
        let frame = &octets[HEADER_LENGTH..];
        let Lane { vteps, book, .. } = self;
        let drops = vtep.and_then(|vtep| Some(&mut vteps.get_mut(vtep as usize)?.as_mut()?.drops));
        book.received += count;
        if book.is_watched {
            book.show(Point::UnderlayReceive, network, frame.to_vec(), None);
        }
        book.drop(Reason::INNER_MALFORMED, network, frame, drops, count);
    }

    /// Whether a datagram for one of the port's networks may begin there: a VXLAN header of theirs does.  One with nothing
    /// reserved set: where payload may be anything, less would be found by chance.
    fn begins_datagram(&self, port: u32, octets: &[u8]) -> bool {
        long(octets, 0) == Some(I_WORD) && self.network_of(port, octets).is_some()
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
    pub(crate) fn carry_one(
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
        let hidden = network_.hidden().saturating_sub(HEADER_LENGTH);
        let mut writer = Writer { fd: network_.device, network, book, drops, hidden };
        if let Err(reason) = delivered(verdict) {
            return writer.lose(reason, frame);
        }
        if !network_.repairs {
            return writer.write(Vnet::default(), frame, 1);
        }
        let way = Way { overlay_mtu: network_.overlay_mtu, segment_size, mss: network_.segment_limit(frame) };
        match repair_untrusted(frame, way) {
            Ok(vnet) => writer.write(vnet, frame, 1),
            Err(reason) => writer.lose(reason, frame),
        }
    }

    /// HOT PATH: frames of one flow that came in one turn, merged where TCP and UDP allow it.
    pub(crate) fn carry_together(&mut self, (network, vtep, verdict): (u32, u32, Verdict), frames: &[&[u8]]) {
        let Lane { networks, vteps, book, bounds, merged, .. } = self;
        let Some(network_) = networks.get(network as usize).and_then(Option::as_ref) else { return };
        let drops = vteps.get_mut(vtep as usize).and_then(Option::as_mut).map(|vtep| &mut vtep.drops);
        let hidden = network_.hidden().saturating_sub(HEADER_LENGTH);
        let mut writer = Writer { fd: network_.device, network, book, drops, hidden };
        if let Err(reason) = delivered(verdict) {
            return frames.iter().for_each(|frame| writer.lose(reason, frame));
        }
        if !network_.repairs {
            return frames.iter().for_each(|frame| writer.write(Vnet::default(), frame, 1));
        }
        let limits = MergeLimits {
            overlay_mtu: network_.overlay_mtu,
            udp: network_.merges_udp,
            mss: network_.segment_limit(frames[0]),
            segments_max: bounds.write_segments,
        };
        merge_untrusted(frames, limits, merged, &mut writer);
    }
}

/// Why a frame from the tunnel is not delivered, if it is not: no verdict sends it back there.
pub(crate) fn delivered(verdict: Verdict) -> Result<(), Reason> {
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
    /// How many of a frame's first octets the device does not take: a TUN no Ethernet header.
    pub hidden: usize,
}

impl Writer<'_> {
    /// HOT PATH: one frame, or one that stands for several, to the device.
    pub fn put(&mut self, vnet: Vnet, frame: &[u8], frames: usize) {
        let header = if self.hidden > 0 { vnet.without_ethernet() } else { vnet }.build();
        let result = sys::write(self.fd, &[IoSlice::new(&header), IoSlice::new(&frame[self.hidden..])]);
        match result {
            Ok(_) => {
                self.book.delivered += frames as u64;
                if self.book.is_watched {
                    self.book.show(Point::DeviceWrite, Some(self.network), frame.to_vec(), None);
                }
            }
            Err(error) => {
                // EINVAL is about the frame's contents, which a stranger chose; the rest is the device's.
                let is_frame = errno(&error) == libc::EINVAL;
                let reason = if is_frame { Reason::INNER_MALFORMED } else { Reason::DEVICE_FULL };
                let drops = self.drops.as_deref_mut();
                self.book.drop(reason, Some(self.network), frame, drops, frames as u64);
            }
        }
    }
}

impl Sink for Writer<'_> {
    fn write(&mut self, vnet: Vnet, frame: &[u8], frames: usize) {
        self.put(vnet, frame, frames);
    }

    fn lose(&mut self, reason: Reason, frame: &[u8]) {
        self.book.drop(reason, Some(self.network), frame, self.drops.as_deref_mut(), 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::WIRE_ID;
    use crate::sys::{Address, Outgoing, send_many};
    use crate::testing::lane_of;
    use std::io::IoSlice;
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_turns_work_names_the_octets_of_runs_alone() {
        const RUN: usize = 300;
        let (sender, port) =
            (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        sys::hear_runs(port.as_raw_fd()).unwrap();
        let to = Address::new(&[127, 0, 0, 1], port.local_addr().unwrap().port(), 0).unwrap();
        let (mut lane, _) = lane_of(Some(7));
        let number = lane.add_port(port.as_raw_fd(), None);
        let octets = [7; 1000];
        for (length, segment) in [(1000, None), (RUN, Some(100))] {
            let slices = [IoSlice::new(&octets[..length])];
            let sent = send_many(sender.as_raw_fd(), &to, &[Outgoing { slices: &slices, segment, ecn: 0 }]);
            assert_eq!(sent.unwrap(), 1);
        }
        let mut work = Work::default();
        let deadline = sys::now() + 5.0;
        while work.arrivals < 2 && sys::now() < deadline {
            work += lane.drain_port(number, 0.0);
        }
        assert_eq!((work.arrivals, work.run_octets), (2, RUN));
    }

    #[test]
    fn a_socket_that_sends_as_well_tells_of_its_own_underlay() {
        let port = UdpSocket::bind("127.0.0.1:0").unwrap();
        port.set_nonblocking(true).unwrap();
        let (mut lane, network) = lane_of(None);
        let [gone, own] = [(); 2].map(|()| lane.add_underlay(vec![port.as_raw_fd()], true)); // a number used again
        let number = lane.add_port(port.as_raw_fd(), Some(own));
        lane.bind(number, WIRE_ID, network).unwrap();
        lane.drain_port(number, 0.0);
        let told = [gone, own].map(|underlay| lane.underlays[underlay as usize].is_told_of);
        assert_eq!(told, [false, true]);
    }

    #[test]
    fn a_port_that_brings_much_of_udp_is_flooded() {
        const LENGTH: usize = FLOOD_OCTETS / 2;
        const TCP: u8 = 6;
        let (sender, port) =
            (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        sender.connect(port.local_addr().unwrap()).unwrap();
        port.set_nonblocking(true).unwrap();
        for is_packet in [false, true] {
            let at = if is_packet { 0 } else { HEADER_LENGTH + ETHERNET_LENGTH };
            let datagram = |version: u8, protocol: u8, length: usize| {
                let mut octets = vec![0; length];
                octets[at] = version << 4;
                octets[at + if version == 4 { 9 } else { 6 }] = protocol;
                octets
            };
            let cases = [
                (datagram(4, UDP, LENGTH), datagram(6, UDP, LENGTH), true),
                (datagram(4, UDP, LENGTH), datagram(4, UDP, LENGTH - 1), false),
                (datagram(4, UDP, LENGTH), datagram(4, TCP, LENGTH), false),
                (datagram(6, UDP, LENGTH), datagram(6, TCP, LENGTH), false),
                (datagram(4, UDP, LENGTH), datagram(5, UDP, LENGTH), false),
                (datagram(4, UDP, LENGTH), vec![0; 3], false),
            ];
            for (first, second, expected) in cases {
                let (mut lane, network) = lane_of(if is_packet { None } else { Some(7) });
                let number = lane.add_port(port.as_raw_fd(), None);
                if is_packet {
                    lane.bind(number, WIRE_ID, network).unwrap();
                }
                for octets in [&first, &second] {
                    sender.send(octets).unwrap();
                }
                let work = lane.drain_port(number, 0.0);
                assert_eq!((work.arrivals, work.is_flooded), (2, expected), "{} {}", second[0], second.len());
            }
        }
    }
}
