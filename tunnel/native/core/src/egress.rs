//! Egress: device → underlay (`tunnel.egress`).  The functions stand in the order the frame meets them.
//! Over 500 lines: every branch of the way out, and what a refused send comes to, is one walk.
//!
//! ```text
//! drain ─▶ flow remembered? ─▶ offer ─▶ door ─▶ flush ─▶ one sendmmsg
//!            └▶ ask               └▶ a super-frame ─▶ whole, by the super door
//!                                                   └▶ cut ─▶ its segments to the same door
//! ```
//!
//! Frames are read one behind the other into the arena, each where its VXLAN header can be written over the end of
//! the virtio header that came before it:
//!
//! ```text
//! read      … frame n │vnet 10        │frame n+1
//! afterwards… frame n │  VXLAN 8      │frame n+1        the vnet header's first two octets lay over frame n's
//!                                                       last two, which are put back
//! ```
//!
//! so equal frames of a burst are neighbours and leave as one slice.  A super-frame's last segments stay in the door
//! for the next one's to join.  Whatever waits when the drain ends is flushed.

use std::io::{Error, IoSlice};
use std::mem;

use crate::batch::{Buffers, Fill, Message, Piece, Place};
use crate::bucket::Source;
use crate::ecn::inner_ecn_untrusted;
use crate::entropy::flow_hash_untrusted;
use crate::flows::{Key, NO_PORTS, Owner, Selector, Verdict};
use crate::lane::{HEADER_LENGTH, Lane, Network, Point, Work};
use crate::octets::{ETHERNET_LENGTH, FRAGMENT, IPV4, NO_OPTIONS, SYN, TCP, octet, word};
use crate::packet::{LEAD, source_of_untrusted};
use crate::reason::Reason;
use crate::repair::syn_mss_untrusted;
use crate::split::{Plan, locate_untrusted, plan_untrusted};
use crate::sys::{self, MESSAGES_MAX, Outgoing, errno};
use crate::upcalls::{Held, Notice, source_mac};
use crate::vnet::{GSO_NONE, VNET_LENGTH, Vnet};

/// A drain ends after so many reads, for which two sends of 63 do, or one of 127 …
const READS_PER_TURN: usize = 126;
/// … or so many octets, so that the other direction gets its turn.
pub(crate) const OCTETS_PER_TURN: usize = 128 << 10;
/// So many waited for one turn: most likely whoever sends them does not stop for us.
pub(crate) const FLOOD_FRAMES: usize = 64;
/// Since the last drain: so long a pause is no burst.
const QUIET_SECONDS: f64 = 0.000_2;
/// Octets of the longest frame a device gives.
pub(crate) const FRAME_MAX: usize = 65_535 + ETHERNET_LENGTH + 4;
/// Room for a turn's frames and one more that began just before its end.
pub const ARENA_OCTETS: usize = OCTETS_PER_TURN + LEAD + FRAME_MAX;
/// Segments made since the last flush; what one super-frame comes to beyond that is less than 16 MiB.
const SCRATCH_OCTETS: usize = 1 << 20;
/// What is full leaves at once, so that the other end works while we do; what a burst leaves over goes with it.
const FLUSH_MESSAGES: usize = 3;
/// Tries of a send; each that fails may tell of an earlier datagram.
const SEND_TRIES: usize = 8;

/// Where the octets of one datagram lie in the arena: its VXLAN header and its frame.
#[derive(Clone, Copy)]
pub(crate) struct Datagram {
    pub at: usize,
    pub end: usize,
}

impl Datagram {
    fn octets(self) -> usize {
        self.end - self.at
    }

    pub fn frame(self) -> std::ops::Range<usize> {
        self.at + HEADER_LENGTH..self.end
    }
}

impl Network {
    /// How many frames the drain that begins now reads at most.
    ///
    /// Who was quiet has most likely one to say: asking for more costs a system call on a cold cache, and the worker
    /// comes back at once if there is more.
    pub(crate) fn reads_of_turn(&mut self, now: f64) -> usize {
        let was_quiet = now - mem::replace(&mut self.drained_at, now) > QUIET_SECONDS;
        if was_quiet { 1 } else { READS_PER_TURN }
    }
}

/// What a frame is sent with.
#[derive(Clone, Copy)]
pub(crate) struct Mark {
    pub entropy: u32,
    pub ecn: u8,
}

impl Mark {
    fn of(frame: &[u8]) -> Mark {
        Mark { entropy: flow_hash_untrusted(frame), ecn: inner_ecn_untrusted(frame) }
    }
}

impl Lane {
    /// Reads a turn's frames from a network's device.
    ///
    /// HOT PATH: copies nothing but into segments, and builds nothing for a flow that is known.
    pub fn drain_device(&mut self, network: u32, now: f64) -> Work {
        let Some(network_) = self.network_mut(network) else { return Work::default() };
        if network_.subnets.is_some() {
            return self.drain_packets(network, now);
        }
        let (fd, header, reads) = (network_.device, network_.header, network_.reads_of_turn(now));
        let mut arena = mem::take(&mut self.arena);
        let (mut at, mut frames, mut octets_read) = (2, 0, 0);
        while frames < reads && octets_read < OCTETS_PER_TURN {
            let start = at - 2;
            let before = [arena[start], arena[start + 1]];
            let read = sys::read(fd, &mut arena[start..start + VNET_LENGTH + FRAME_MAX]);
            let mut vnet = [0; VNET_LENGTH];
            vnet.copy_from_slice(&arena[start..start + VNET_LENGTH]);
            arena[start..at].copy_from_slice(&before);
            let octets = match read {
                Ok(octets) if octets >= VNET_LENGTH => octets - VNET_LENGTH,
                Ok(_) => 0,
                Err(error) => {
                    self.stop_if_gone(network, &error);
                    break;
                }
            };
            frames += 1;
            arena[at..at + HEADER_LENGTH].copy_from_slice(&header);
            let datagram = Datagram { at, end: at + HEADER_LENGTH + octets };
            self.meet(network, &mut arena, datagram, Vnet::parse(&vnet), now);
            octets_read += datagram.octets();
            // Only what waits in a door keeps its place.  A super-frame has left or was cut: the next one finds that
            // memory in the cache, which 64 KB at several places would empty of everything else.
            at = if self.arena_waits { datagram.end } else { 2 };
        }
        self.flush_all(&arena);
        self.arena = arena;
        Work { frames, is_flooded: frames >= FLOOD_FRAMES, ..Work::default() }
    }

    /// A device that is gone would wake us without end.
    pub(crate) fn stop_if_gone(&mut self, network: u32, error: &Error) {
        if matches!(errno(error), libc::EBADFD | libc::EBADF | libc::ENODEV | libc::ENXIO)
            && let Some(network) = self.network(network)
        {
            self.waiter.unwatch(network.device);
        }
    }

    fn meet(&mut self, network: u32, arena: &mut [u8], datagram: Datagram, vnet: Vnet, now: f64) {
        self.book.received += 1;
        let frame = &arena[datagram.frame()];
        if self.book.is_watched {
            self.book.show(Point::DeviceRead, Some(network), frame.to_vec(), None);
        }
        let Some(network_) = self.networks.get_mut(network as usize).and_then(Option::as_mut) else { return };
        // IPv4 without options, untagged: where everything stands is known.  Any other wants a closer look.
        let is_plain = word(frame, 12) == Some(IPV4) && octet(frame, 14) == Some(NO_OPTIONS);
        let is_syn = octet(frame, 23) == Some(TCP) && octet(frame, 47).is_some_and(|flags| flags & SYN != 0);
        if (is_syn || !is_plain)
            && let Some(mss) = syn_mss_untrusted(frame)
        {
            network_.limits.segments.hold().note(turned(frame), mss);
        }
        let is_group = frame.first().is_some_and(|octet| octet & 1 != 0);
        let is_asked = frame.len() < ETHERNET_LENGTH
            || (is_group && network_.suppresses && crate::discovery::may_be_discovery_untrusted(frame));
        let key = frame.first_chunk::<12>();
        let flow = if is_asked { None } else { key.and_then(|key| network_.egress.find(key)) };
        let Some(flow) = flow else {
            let held = Held { frame: frame.to_vec(), vnet, segment_size: None };
            return self.ask(Owner::Egress(network), network, held, now);
        };
        flow.frames += 1;
        flow.octets += frame.len() as u64;
        flow.used_at = now;
        let verdict = flow.verdict;
        if let Verdict::Encapsulate(vtep) = verdict {
            let is_whole = word(frame, 20).is_some_and(|field| field & FRAGMENT == 0);
            let selector = if is_plain && is_whole { selector_of(frame) } else { None }.unwrap_or(NO_PORTS);
            if selector == NO_PORTS || selector != flow.selector {
                flow.selector = selector;
                flow.entropy = flow_hash_untrusted(frame) as u16;
            }
            let mark = Mark { entropy: flow.entropy.into(), ecn: inner_ecn_untrusted(frame) };
            self.offer(network, vtep, arena, datagram, vnet, mark);
        } else {
            self.carry_verdict(network, verdict, arena, datagram, vnet, now);
        }
    }

    /// Does what the verdict says with one frame that has waited for it.
    pub(crate) fn carry_out(&mut self, network: u32, verdict: Verdict, held: Held, now: f64) {
        let Some(network_) = self.network(network) else { return };
        let header = network_.header;
        let mut arena = mem::take(&mut self.arena);
        let datagram = Datagram { at: 0, end: HEADER_LENGTH + held.frame.len() };
        arena[..HEADER_LENGTH].copy_from_slice(&header);
        arena[datagram.frame()].copy_from_slice(&held.frame);
        self.carry_verdict(network, verdict, &mut arena, datagram, held.vnet, now);
        self.flush_all(&arena);
        self.arena = arena;
    }

    pub(crate) fn carry_verdict(
        &mut self,
        network: u32,
        verdict: Verdict,
        arena: &mut [u8],
        datagram: Datagram,
        vnet: Vnet,
        now: f64,
    ) {
        match verdict {
            Verdict::Encapsulate(vtep) => {
                let mark = Mark::of(&arena[datagram.frame()]);
                self.offer(network, vtep, arena, datagram, vnet, mark);
            }
            Verdict::Replicate => self.replicate(network, arena, datagram, vnet, now),
            Verdict::Drop(reason)
                if self.network(network).is_some_and(|network| network.subnets.is_some()) =>
            {
                self.refuse_packet(network, reason, &arena[datagram.frame()], now);
            }
            Verdict::Drop(reason) => self.book.drop(reason, Some(network), &arena[datagram.frame()], None, 1),
            // Never decided for egress; a frame that came from the device does not go back there.
            Verdict::Deliver => {
                self.book.drop(Reason::SPLIT_HORIZON, Some(network), &arena[datagram.frame()], None, 1);
            }
        }
    }

    /// A copy to every VTEP of the flood list: one received frame, the further copies generated.
    fn replicate(&mut self, network: u32, arena: &mut [u8], datagram: Datagram, vnet: Vnet, now: f64) {
        let Some(network_) = self.networks.get_mut(network as usize).and_then(Option::as_mut) else { return };
        let vteps = network_.flood.clone();
        let frame = &arena[datagram.frame()];
        if vteps.is_empty() {
            return self.book.drop(Reason::NO_VTEP, Some(network), frame, None, 1);
        }
        if !network_.limits.copies.hold().take(vteps.len() as f64, now) {
            return self.book.drop(Reason::BUM_LIMIT, Some(network), frame, None, 1);
        }
        self.book.generated += vteps.len() as u64 - 1;
        let mark = Mark::of(frame);
        let mut vnet = vnet;
        for vtep in vteps {
            vnet = self.offer(network, vtep, arena, datagram, vnet, mark);
        }
    }

    // ── Super-frames and unfinished checksums ───────────────────────────────────────────────────────────

    /// One frame for one VTEP; what its virtio header is now, its checksum perhaps being finished.
    pub(crate) fn offer(
        &mut self,
        network: u32,
        vtep: u32,
        arena: &mut [u8],
        datagram: Datagram,
        vnet: Vnet,
        mark: Mark,
    ) -> Vnet {
        let Some(vtep_) = self.vteps.get(vtep as usize).and_then(Option::as_ref) else {
            // It left, and the verdict with it; what is under way ends as a stranger's.
            self.book.drop(Reason::UNKNOWN_VTEP, Some(network), &arena[datagram.frame()], None, 1);
            return vnet;
        };
        let payload_max = HEADER_LENGTH + vtep_.frame_max;
        let hidden = self.network(network).map_or(0, Network::hidden);
        if vnet == Vnet::default() {
            if datagram.octets() > payload_max {
                self.too_big(vtep, &arena[datagram.frame()], false);
            } else {
                let (at, octets) = (datagram.at + hidden, datagram.octets() - hidden);
                let piece = Piece { place: Place::Arena, at: at as u32, length: octets as u32 };
                self.put(vtep, piece, mark, arena);
            }
            return vnet;
        }
        if vnet.gso_type != GSO_NONE && self.goes_whole(network, vtep, arena, datagram, vnet, mark) {
            return vnet;
        }
        match plan_untrusted(&vnet, &mut arena[datagram.frame()], HEADER_LENGTH, payload_max) {
            Ok(Plan::Whole) => self.offer(network, vtep, arena, datagram, Vnet::default(), mark),
            Ok(Plan::Segments(cut)) => {
                self.cut(vtep, arena, datagram, &cut, mark);
                vnet
            }
            Err(Reason::MTU_EXCEEDED) => {
                self.too_big(vtep, &arena[datagram.frame()], false);
                vnet
            }
            Err(reason) => {
                let drops = self.vteps[vtep as usize].as_mut().map(|vtep| &mut vtep.drops);
                self.book.drop(reason, Some(network), &arena[datagram.frame()], drops, 1);
                vnet
            }
        }
    }

    /// Whether a super-frame left as one super-packet; if not, it takes the lower door.
    ///
    /// Frames that are no super-frames take the sockets all the while, from the same thread and port, to the same
    /// device: a flow whose bursts come this way was never seen out of order there.
    fn goes_whole(
        &mut self,
        network: u32,
        vtep: u32,
        arena: &[u8],
        datagram: Datagram,
        vnet: Vnet,
        mark: Mark,
    ) -> bool {
        let Some(vtep_) = self.vteps.get_mut(vtep as usize).and_then(Option::as_mut) else { return false };
        let Some(door) = vtep_.super_door.as_mut() else {
            if mem::take(&mut vtep_.wants_door) {
                self.notice(Notice::WantsDoor { vtep });
            }
            return false;
        };
        let Some(cut) = locate_untrusted(&vnet, &arena[datagram.frame()]) else { return false };
        if !door.takes(&cut, datagram.octets(), vtep_.frame_max) || !door.is_open(sys::now()) {
            return false;
        }
        let index = mark.entropy as usize & (vtep_.doors.len() - 1);
        let waiting = vtep_.doors[index].len();
        if waiting > 0 {
            self.flush(vtep, index, waiting, arena); // what the flow sent before stays before
        }
        let Lane { vteps, book, .. } = self;
        let Some(vtep_) = vteps.get_mut(vtep as usize).and_then(Option::as_mut) else { return false };
        let Some(door) = vtep_.super_door.as_mut() else { return false };
        let fd = door.fd();
        let before = door.fill(vnet.gso_type, &cut, datagram.octets(), index, mark.ecn);
        match sys::write(fd, &[IoSlice::new(before), IoSlice::new(&arena[datagram.at..datagram.end])]) {
            Ok(_) => {
                book.sent += 1;
                vtep_.traffic.sent_frames += 1;
                vtep_.traffic.sent_octets += (datagram.octets() - HEADER_LENGTH) as u64;
                if book.is_watched {
                    book.show(Point::UnderlaySend, Some(network), arena[datagram.frame()].to_vec(), None);
                }
                true
            }
            Err(error) if is_full(errno(&error)) => {
                let drops = Some(&mut vtep_.drops);
                book.drop(Reason::UNDERLAY_FULL, Some(network), &arena[datagram.frame()], drops, 1);
                true
            }
            Err(error) => {
                if errno(&error) != libc::EINVAL {
                    // That one the frame's contents can cause: it changes no rung.
                    self.shut_door(vtep, errno(&error), false);
                }
                false
            }
        }
    }

    /// Has no super door to the VTEP any more, which has failed, or a socket towards it has.
    fn shut_door(&mut self, vtep: u32, errno: i32, is_socket: bool) {
        let Some(vtep_) = self.vteps.get_mut(vtep as usize).and_then(Option::as_mut) else { return };
        if vtep_.super_door.take().is_some() {
            self.notice(Notice::ShutDoor { vtep, errno, is_socket });
        }
    }

    fn cut(&mut self, vtep: u32, arena: &[u8], datagram: Datagram, cut: &crate::split::Cut, mark: Mark) {
        if self.scratch.len() > SCRATCH_OCTETS {
            self.flush_all(arena); // a super-frame for hundreds of VTEPs
        }
        let hidden = self.vtep(vtep).and_then(|vtep| self.network(vtep.network)).map_or(0, Network::hidden);
        let left_out = hidden.saturating_sub(HEADER_LENGTH);
        let prefix = &arena[datagram.at + hidden.min(HEADER_LENGTH)..datagram.at + HEADER_LENGTH];
        let frame = &arena[datagram.frame()][left_out..];
        let cut = cut.behind(left_out);
        self.book.generated += cut.segments(frame.len()) as u64 - 1;
        let start = self.scratch.len();
        let stride = cut.make(frame, prefix, &mut self.scratch);
        let end = self.scratch.len();
        for at in (start..end).step_by(stride) {
            let octets = stride.min(end - at);
            let segment = Piece { place: Place::Scratch, at: at as u32, length: octets as u32 };
            self.put(vtep, segment, mark, arena);
        }
    }

    // ── Doors ───────────────────────────────────────────────────────────────────────────────────────────

    /// HOT PATH: one finished datagram joins the door of its VTEP and source port.
    fn put(&mut self, vtep: u32, datagram: Piece, mark: Mark, arena: &[u8]) {
        let Lane { vteps, underlays, open, arena_waits, bounds, .. } = self;
        let Some(vtep_) = vteps.get_mut(vtep as usize).and_then(Option::as_mut) else { return };
        let has_gso =
            vtep_.underlay.and_then(|number| underlays.get(number as usize)).is_some_and(|own| own.has_gso);
        let index = mark.entropy as usize & (vtep_.doors.len() - 1);
        let door = &mut vtep_.doors[index];
        if door.is_empty() {
            open.push((vtep, index));
        }
        *arena_waits |= datagram.place == Place::Arena;
        door.add(datagram, mark.ecn, Fill { has_gso, segments_max: bounds.send_segments });
        let (waiting, is_full) = (door.len(), door.messages()[0].octets > crate::batch::SEND_MAX / 2);
        if waiting >= MESSAGES_MAX || (waiting >= FLUSH_MESSAGES && is_full) {
            self.flush(vtep, index, waiting - 1, arena); // the last one may still grow
        }
    }

    /// Sends whatever waits.
    pub(crate) fn flush_all(&mut self, arena: &[u8]) {
        let mut open = mem::take(&mut self.open);
        for (vtep, index) in open.drain(..) {
            let waiting = self.vtep(vtep).and_then(|vtep| vtep.doors.get(index)).map_or(0, |door| door.len());
            self.flush(vtep, index, waiting, arena);
        }
        self.open = open;
        self.scratch.clear();
        self.arena_waits = false;
    }

    /// HOT PATH: sends the first messages of a door, and takes them out whatever comes of that.
    fn flush(&mut self, vtep: u32, index: usize, count: usize, arena: &[u8]) {
        let Lane { vteps, underlays, .. } = self;
        let Some(vtep_) = vteps.get_mut(vtep as usize).and_then(Option::as_mut) else { return };
        let mut door = mem::take(&mut vtep_.doors[index]);
        let pool = vtep_.underlay.and_then(|number| underlays.get(number as usize)).map(|own| &own.senders);
        let (sender, address) = (pool.and_then(|pool| pool.get(index).copied()), vtep_.address);
        let underlay = vtep_.underlay;
        let scratch = mem::take(&mut self.scratch);
        let buffers = Buffers { arena, scratch: &scratch };
        let mut at = 0;
        while at < count {
            let end = count.min(at + MESSAGES_MAX);
            match send(sender, &address, &door.messages()[at..end], buffers) {
                Ok(sent) => {
                    for message in &door.messages()[at..at + sent] {
                        self.sent(vtep, message, buffers);
                    }
                    at += sent.max(1);
                    if let (true, Some(underlay)) = (at < end, underlay) {
                        self.hear_refusals(underlay); // the next one failed, and will not say so again
                    }
                }
                Err(error) => {
                    self.send_again(vtep, sender, &door.messages()[at], buffers, error);
                    at += 1;
                }
            }
        }
        door.remove(count);
        self.scratch = scratch;
        if let Some(vtep) = self.vteps[vtep as usize].as_mut() {
            vtep.doors[index] = door;
        }
    }

    fn sent(&mut self, vtep: u32, message: &Message, buffers: Buffers<'_>) {
        let Lane { vteps, networks, book, .. } = self;
        let Some(vtep) = vteps.get_mut(vtep as usize).and_then(Option::as_mut) else { return };
        let Some(network) = networks.get(vtep.network as usize).and_then(Option::as_ref) else { return };
        let prefix = if network.subnets.is_some() { 0 } else { HEADER_LENGTH };
        book.sent += message.count as u64;
        vtep.traffic.sent_frames += message.count as u64;
        vtep.traffic.sent_octets += (message.octets - prefix * message.count) as u64;
        if book.is_watched {
            for datagram in message.datagrams(buffers) {
                book.show(Point::UnderlaySend, Some(vtep.network), network.frame_of(&datagram), None);
            }
        }
    }

    /// What a refused send comes to: another try, the same in pieces, or drops with their reason.
    ///
    /// QUIRK(linux): with IP_RECVERR a send may report what befell an earlier datagram, its own not having been
    /// tried.  The report clears the error, but the next one may be there already: what every one of SEND_TRIES says is
    /// believed.  A rule's EPERM is never another's, and EMSGSIZE hardly twice.
    fn send_again(
        &mut self,
        vtep: u32,
        sender: Option<i32>,
        message: &Message,
        buffers: Buffers<'_>,
        error: Error,
    ) {
        let Some((address, underlay)) = self.vtep(vtep).map(|vtep| (vtep.address, vtep.underlay)) else {
            return;
        };
        let mut number = errno(&error);
        if let (Some(underlay), false) = (underlay, is_full(number) || number == libc::EPERM) {
            self.hear_refusals(underlay);
        }
        let is_several = message.count > 1;
        let tries = if sender.is_some() { SEND_TRIES } else { 1 };
        for _ in 1..tries {
            if is_full(number) || number == libc::EPERM || (is_several && is_no_segmentation(number)) {
                break;
            }
            match send(sender, &address, std::slice::from_ref(message), buffers) {
                Ok(_) => return self.sent(vtep, message, buffers),
                Err(another) => {
                    let before = std::mem::replace(&mut number, errno(&another));
                    if (before, number) == (libc::EMSGSIZE, libc::EMSGSIZE) {
                        break;
                    }
                }
            }
        }
        let datagrams = message.datagrams(buffers);
        if is_several && (is_no_segmentation(number) || number == libc::EMSGSIZE) {
            return self.send_singly(vtep, sender, message.ecn, &datagrams, number);
        }
        for datagram in datagrams {
            self.refuse(vtep, &datagram, number);
        }
    }

    /// One datagram is not sent, for that errno.
    fn refuse(&mut self, vtep: u32, datagram: &[u8], number: i32) {
        let network = self.vtep(vtep).and_then(|vtep| self.network(vtep.network));
        let Some(frame) = network.map(|network| network.frame_of(datagram)) else { return };
        let frame = &frame[..];
        if number == libc::EMSGSIZE {
            return self.too_big(vtep, frame, true);
        }
        let mut reason = Reason::UNDERLAY_FULL;
        if !is_full(number) {
            // A rule against it, no route, nobody there: not past the host's back.
            reason = Reason::UNDERLAY_ERROR;
            self.shut_door(vtep, number, true);
        }
        let Some(vtep) = self.vteps.get_mut(vtep as usize).and_then(Option::as_mut) else { return };
        self.book.drop(reason, Some(vtep.network), frame, Some(&mut vtep.drops), 1);
    }

    /// The message in single sends.  Where these go through, it was segmentation that did not.
    ///
    /// QUIRK(linux): to many kernels segments longer than the path are EINVAL too.  So the first one judges, which
    /// has their full length: a shorter last one goes through where they do not.
    fn send_singly(&mut self, vtep: u32, sender: Option<i32>, ecn: u8, datagrams: &[Vec<u8>], number: i32) {
        let mut is_segmentation = false;
        for (index, datagram) in datagrams.iter().enumerate() {
            let sent_before = self.book.sent;
            let mut single = crate::batch::Door::default();
            let piece = Piece { place: Place::Arena, at: 0, length: datagram.len() as u32 };
            single.add(piece, ecn, Fill { has_gso: false, segments_max: 1 });
            let buffers = Buffers { arena: datagram, scratch: &[] };
            let Some(address) = self.vtep(vtep).map(|vtep| vtep.address) else { return };
            match send(sender, &address, single.messages(), buffers) {
                Ok(_) => self.sent(vtep, &single.messages()[0], buffers),
                Err(error) => self.send_again(vtep, sender, &single.messages()[0], buffers, error),
            }
            is_segmentation |= index == 0 && self.book.sent > sent_before && is_no_segmentation(number);
        }
        let underlay = self.vtep(vtep).and_then(|vtep| vtep.underlay);
        if let (true, Some(underlay)) = (is_segmentation, underlay) {
            self.underlays[underlay as usize].has_gso = false;
            self.notice(Notice::NoSegmentation { underlay, errno: number });
        }
    }

    // ── What the path does not carry ────────────────────────────────────────────────────────────────────

    /// The path does not carry it: counted, and its sender told (within the meter).
    fn too_big(&mut self, vtep: u32, frame: &[u8], is_news: bool) {
        let Some(vtep_) = self.vteps.get_mut(vtep as usize).and_then(Option::as_mut) else { return };
        self.book.drop(Reason::MTU_EXCEEDED, Some(vtep_.network), frame, Some(&mut vtep_.drops), 1);
        let is_packet =
            self.networks[vtep_.network as usize].as_ref().is_some_and(|network| network.subnets.is_some());
        let source = if is_packet {
            Source::Address(source_of_untrusted(frame))
        } else {
            Source::Mac(source_mac(frame))
        };
        let is_answered = self.meter.hold().errors.take(source, sys::now());
        if is_answered || is_news {
            self.notice(Notice::TooBig { vtep, frame: frame.to_vec(), is_answered, is_news });
        }
    }

    /// Gives the network's device a frame of our own making.
    pub fn write_own(&mut self, network: u32, frame: &[u8]) {
        let Some(fd) = self.network(network).map(|network| network.device) else { return };
        let mut writer = crate::ingress::Writer { fd, network, book: &mut self.book, drops: None, hidden: 0 };
        writer.put(Vnet::default(), frame, 1);
    }
}

/// The selector of a frame of IPv4 without options, untagged.
fn selector_of(frame: &[u8]) -> Option<Selector> {
    let mut selector = [octet(frame, 23)?; 13];
    selector[1..].copy_from_slice(frame.get(26..38)?);
    Some(selector)
}

/// Sends messages; how many were taken, or why the first was not.
fn send(
    sender: Option<i32>,
    to: &sys::Address,
    messages: &[Message],
    buffers: Buffers<'_>,
) -> std::io::Result<usize> {
    let Some(fd) = sender else { return Err(Error::from_raw_os_error(libc::ENETUNREACH)) };
    let mut slices = Vec::with_capacity(2 * MESSAGES_MAX);
    let mut ends = [0; MESSAGES_MAX];
    for (message, end) in messages.iter().zip(&mut ends) {
        message.slices(buffers, &mut slices);
        *end = slices.len();
    }
    let outgoing = |index: usize| {
        let message = &messages[index];
        let start = if index == 0 { 0 } else { ends[index - 1] };
        let segment = (message.count > 1).then_some(message.segment_size as u16);
        Outgoing { slices: &slices[start..ends[index]], segment, ecn: message.ecn }
    };
    if messages.len() == 1 {
        return sys::send_many(fd, to, &[outgoing(0)]);
    }
    let outgoing: Vec<Outgoing<'_>> = (0..messages.len()).map(outgoing).collect();
    sys::send_many(fd, to, &outgoing)
}

/// The key of the other direction.
fn turned(frame: &[u8]) -> Key {
    let mut key = [0; 12];
    key[..6].copy_from_slice(&frame[6..12]);
    key[6..].copy_from_slice(&frame[..6]);
    key
}

/// What a full queue looks like.
fn is_full(number: i32) -> bool {
    matches!(number, libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM)
}

/// No checksum offload on the way; a driver's refusal.
fn is_no_segmentation(number: i32) -> bool {
    matches!(number, libc::EIO | libc::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lane::Device;
    use crate::sys::Address;
    use crate::testing::{Made, Octets, lane_of, remember};
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn who_was_quiet_is_asked_for_one_frame_and_who_was_not_for_a_burst() {
        let (mut lane, network) = lane_of(Some(7));
        let network = lane.network_mut(network).unwrap();
        let asked = [1.0, 1.0001, 1.0002, 1.1].map(|now| network.reads_of_turn(now));
        assert_eq!(asked, [1, READS_PER_TURN, READS_PER_TURN, 1]);
    }

    #[test]
    fn a_device_that_has_many_frames_waiting_is_flooded() {
        let (host, device) =
            (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        host.connect(device.local_addr().unwrap()).unwrap();
        device.set_nonblocking(true).unwrap();
        for vni in [Some(7), None] {
            let (mut lane, network) = lane_of(vni);
            let given =
                Device { fd: device.as_raw_fd(), is_heard: false, overlay_mtu: 1450, merges_udp: false };
            lane.use_device(network, given).unwrap();
            let mut work_of = |frames| {
                for _ in 0..frames {
                    host.send(&[0; VNET_LENGTH + 60]).unwrap();
                }
                lane.drain_device(network, 0.0)
            };
            let (some, many) = (work_of(FLOOD_FRAMES - 1), work_of(FLOOD_FRAMES));
            assert_eq!((some.frames, some.is_flooded), (FLOOD_FRAMES - 1, false));
            assert_eq!((many.frames, many.is_flooded), (FLOOD_FRAMES, true));
        }
    }

    /// Reads what a device gives in one drain and sends it over loopback: whose octets they are stays right while
    /// segments and whole frames wait in two doors, and while more are made.
    #[test]
    fn a_bursts_frames_and_segments_leave_in_order_whichever_buffer_they_lie_in() {
        let (host, device) = UnixDatagram::pair().unwrap();
        device.set_nonblocking(true).unwrap();
        let (sender, other) =
            (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        receiver.set_nonblocking(true).unwrap();
        let (mut lane, network) = lane_of(Some(7));
        let given = Device { fd: device.as_raw_fd(), is_heard: false, overlay_mtu: 1450, merges_udp: false };
        lane.use_device(network, given).unwrap();
        let underlay = lane.add_underlay(vec![sender.as_raw_fd(), other.as_raw_fd()], true);
        let port = receiver.local_addr().unwrap().port();
        let address = Address::new(&[127, 0, 0, 1], port, 0).unwrap();
        let vtep = lane.add_vtep(network, address);
        lane.route_vtep(vtep, address, Some(underlay), 1464);
        let mut random = Octets::new(11);
        let (mut expected, mut frames) = ([vec![], vec![]], 0);
        for round in 0..5 {
            let count = [1, 70, 7, 3, 2][round] * 300 + random.below(300);
            let payload = random.take(count);
            let made = if round % 2 == 0 {
                Made::tcp(9, payload)
            } else {
                Made { version: 6, ..Made::udp(payload) }
            };
            let small = Made { payload: random.take(90), ..made.clone() };
            if round == 0 {
                let key = *made.build().first_chunk().unwrap();
                remember(&mut lane, network, key, Verdict::Encapsulate(vtep));
            }
            let super_frame = Made { is_unfinished: true, ..made.clone() }.build();
            host.send(&[&made.vnet(300).build()[..], &super_frame].concat()).unwrap();
            host.send(&[&Vnet::default().build()[..], &small.build()].concat()).unwrap();
            let of_flow = &mut expected[flow_hash_untrusted(&super_frame) as usize % 2];
            of_flow.extend(made.segments(300).chain([small.build()]));
            frames += made.payload.len().div_ceil(300) + 1;
        }
        lane.network_mut(network).unwrap().drained_at = 1.0;
        lane.drain_device(network, 1.0);
        let mut arrived = [vec![], vec![]];
        let mut datagram = [0; 2048];
        while let Ok((octets, from)) = receiver.recv_from(&mut datagram) {
            assert_eq!(datagram[..HEADER_LENGTH], [8, 0, 0, 0, 0, 0, 7, 0]);
            let is_other = from.port() == other.local_addr().unwrap().port();
            arrived[usize::from(is_other)].push(datagram[HEADER_LENGTH..octets].to_vec());
        }
        assert!(expected.iter().all(|of_door| !of_door.is_empty()), "two doors");
        assert_eq!(arrived, expected);
        assert_eq!(
            (lane.book.sent, lane.book.received + lane.book.generated),
            (frames as u64, frames as u64)
        );
    }

    /// What the segments of one super-frame for many VTEPs take is bounded: they leave while more are made.
    #[test]
    fn a_super_frame_for_many_vteps_is_not_all_cut_before_the_first_segment_leaves() {
        const VTEPS: usize = 64;
        let (mut lane, network) = lane_of(Some(7));
        let (sender, receiver) =
            (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let underlay = lane.add_underlay(vec![sender.as_raw_fd()], true);
        let address = Address::new(&[127, 0, 0, 1], receiver.local_addr().unwrap().port(), 0).unwrap();
        let vteps: Vec<u32> = (0..VTEPS).map(|_| lane.add_vtep(network, address)).collect();
        for vtep in &vteps {
            lane.route_vtep(*vtep, address, Some(underlay), 1464);
        }
        lane.program_flood(network, vteps);
        let made = Made { is_unfinished: true, ..Made::tcp(9, Octets::new(5).take(60_000)) };
        let frame = made.build();
        let mut arena = vec![0; ARENA_OCTETS];
        let datagram = Datagram { at: LEAD - HEADER_LENGTH, end: LEAD + frame.len() };
        arena[datagram.frame()].copy_from_slice(&frame);
        lane.replicate(network, &mut arena, datagram, made.vnet(1376), 1.0);
        let cut = made.payload.len().div_ceil(1376);
        assert!(lane.scratch.len() <= SCRATCH_OCTETS + 2 * frame.len(), "{}", lane.scratch.len());
        assert!(lane.book.sent > 0);
        lane.flush_all(&arena);
        assert_eq!(lane.book.sent, (VTEPS * cut) as u64);
    }
}
