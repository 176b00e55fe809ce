//! Upcalls: what a lane does not remember is asked, and the frames wait for the answer, in order.
//! Over 500 lines: how a question is asked, waits and is answered is read in one piece, its tests beside it.
//!
//! ```text
//! ask ─▶ metered ─▶ pending flow ─▶ bell ─▶ the loop thread decides ─▶ answer: remember, carry what waited
//! ```
//!
//! A question carries the headers only; everything that waits is bounded, per flow and in all.

use std::mem;

use crate::bucket::Source;
use crate::discovery::may_be_discovery_untrusted;
use crate::flows::{FlowTable, Key, Owner, Remembered, Verdict};
use crate::lane::Lane;
use crate::octets::ETHERNET_LENGTH;
use crate::reason::Reason;
use crate::vnet::Vnet;

const PENDING_FRAMES_MAX: usize = 64;
const PENDING_OCTETS_MAX: usize = 256 * 1024;
/// Octets that may wait in all pending flows of a lane together, and questions that may be open.
const HELD_OCTETS_MAX: usize = 32 << 20;
const QUESTIONS_MAX: usize = 1 << 16;
const TIMEOUT_SECONDS: f64 = 1.0;
/// Octets of a frame that a question carries: every header a decision reads.
pub const HEADERS_MAX: usize = 2048;
/// Notices of frames that may wait; what is beyond is counted as a drop already and merely not told.
const NOTICES_MAX: usize = 1024;

/// A frame that waits, with what was known of it beside its octets.
#[derive(Debug)]
pub struct Held {
    /// The frame.
    pub frame: Vec<u8>,
    /// Egress: what the device said of it.
    pub vnet: Vnet,
    /// Ingress: the size its sender cut a super-frame to.
    pub segment_size: Option<usize>,
}

/// A pending flow.
pub struct Question {
    /// The network asked about.
    pub network: u32,
    /// The VTEP it came from; None on egress.
    pub vtep: Option<u32>,
    about: About,
    asked_at: f64,
    held: std::collections::VecDeque<Held>,
    octets: usize,
}

/// What a question is about.
#[derive(Clone, Copy)]
pub(crate) struct About {
    /// Of the flow; None: the answer is true of one frame alone.
    pub key: Option<Key>,
    /// Whose share of questions it takes.
    pub source: Source,
    /// Whether it is ARP or ND, which have a share of their own.
    pub is_discovery: bool,
}

/// What the loop thread has to know besides questions.
#[derive(Debug)]
pub enum Notice {
    /// A frame did not fit the path: its sender may be told.  With `is_news` the kernel said so.
    TooBig {
        /// Towards this VTEP.
        vtep: u32,
        /// The whole of it: its length is what the answer is about.
        frame: Vec<u8>,
        /// Whether its sender may be told (within the meter).
        is_answered: bool,
        /// Whether the path is narrower than was known.
        is_news: bool,
    },
    /// Super-frames are there for a VTEP that has no super door.
    WantsDoor {
        /// Which.
        vtep: u32,
    },
    /// A VTEP's super door was shut: it failed, or a socket towards the VTEP did.
    ShutDoor {
        /// Which.
        vtep: u32,
        /// With this errno.
        errno: i32,
        /// Whether a socket said so.
        is_socket: bool,
    },
    /// A packet was dropped whose sender a router tells (within the meter).
    Refused {
        /// Of this network.
        network: u32,
        /// From this VTEP; None: from the device.
        vtep: Option<u32>,
        /// Why.
        reason: Reason,
        /// The whole of it, behind an Ethernet header.
        frame: Vec<u8>,
    },
    /// A socket failed, perhaps for what befell an earlier datagram: ICMP errors wait.
    IcmpErrors {
        /// Of this underlay.
        underlay: u32,
    },
    /// Several datagrams in one send were refused where single ones go through.
    NoSegmentation {
        /// By this underlay.
        underlay: u32,
        /// With this errno.
        errno: i32,
    },
}

/// What became of a question.
pub enum Answer {
    /// A verdict that a flow can have.
    Verdict(Verdict),
    /// The frame ends here and this one goes to the device.
    Reply(Vec<u8>),
}

/// For how long a verdict holds, and what it rests on.
pub struct Memory<'a> {
    /// Of the flow.
    pub key: Key,
    /// Infinite where it has no own end.
    pub expires_at: f64,
    /// As octets.
    pub places: &'a [Vec<u8>],
}

impl Lane {
    /// Holds the frame until its flow's verdict is there; asks for it unless that is under way.
    pub(crate) fn ask(&mut self, owner: Owner, network: u32, held: Held, now: f64) {
        let vtep = match owner {
            Owner::Egress(_) => None,
            Owner::Ingress(vtep) => Some(vtep),
        };
        let suppresses = self.network(network).is_some_and(|network| network.suppresses);
        let frame = &held.frame;
        let is_group = frame.first().is_some_and(|octet| octet & 1 != 0);
        let is_discovery = suppresses && is_group && may_be_discovery_untrusted(frame);
        // Each question is another one, and what is torn is no frame of the flow it seems to belong to.
        let is_flow = !is_discovery && frame.len() >= ETHERNET_LENGTH;
        let key = if is_flow { frame.first_chunk::<12>().copied() } else { None };
        let from = vtep.and_then(|vtep| self.vtep(vtep));
        let source = from.map_or_else(|| Source::Mac(source_mac(frame)), |vtep| Source::Vtep(vtep.host));
        self.ask_about(owner, network, About { key, source, is_discovery }, held, now);
    }

    /// The same for a frame of which that much is known already.
    pub(crate) fn ask_about(&mut self, owner: Owner, network: u32, about: About, held: Held, now: f64) {
        let vtep = match owner {
            Owner::Egress(_) => None,
            Owner::Ingress(vtep) => Some(vtep),
        };
        let known = about.key.and_then(|key| self.table(owner)?.pending.get(&key).copied());
        let number = match known {
            Some(number) => number,
            None => {
                if !self.may_ask(&about, now) {
                    return self.drop_held(Reason::UPCALL_LIMIT, network, vtep, &held);
                }
                if self.questions.len() >= QUESTIONS_MAX {
                    return self.drop_held(Reason::UPCALL_OVERFLOW, network, vtep, &held);
                }
                self.open_question(owner, network, about, now)
            }
        };
        let octets = held.frame.len();
        let has_room = self.held_octets + octets <= HELD_OCTETS_MAX;
        match self.questions.get_mut(&number) {
            Some(question)
                if has_room
                    && question.held.len() < PENDING_FRAMES_MAX
                    && question.octets + octets <= PENDING_OCTETS_MAX =>
            {
                question.octets += octets;
                question.held.push_back(held);
                self.held_octets += octets;
                self.held_frames += 1;
            }
            _ => self.drop_held(Reason::UPCALL_OVERFLOW, network, vtep, &held),
        }
    }

    fn may_ask(&self, about: &About, now: f64) -> bool {
        let mut meter = self.meter.hold();
        let bucket = if about.is_discovery { &mut meter.discovery } else { &mut meter.new_flows };
        bucket.take(about.source, now)
    }

    fn open_question(&mut self, owner: Owner, network: u32, about: About, now: f64) -> u64 {
        self.question_number += 1;
        let number = self.question_number;
        let vtep = if let Owner::Ingress(vtep) = owner { Some(vtep) } else { None };
        let question = Question { network, vtep, about, asked_at: now, held: Default::default(), octets: 0 };
        self.questions.insert(number, question);
        if let (Some(key), Some(table)) = (about.key, self.table(owner)) {
            table.pending.insert(key, number);
        }
        if self.asked.is_empty() {
            self.bell.ring();
        }
        self.asked.push_back(number);
        number
    }

    /// Tells the loop thread something; what is not about a frame comes once, and is never left out.
    pub(crate) fn notice(&mut self, notice: Notice) {
        let is_of_a_frame = matches!(notice, Notice::TooBig { .. } | Notice::Refused { .. });
        if !is_of_a_frame || self.notices.len() < NOTICES_MAX {
            // Each kind by itself: the loop thread takes questions first, and new ones may come before it takes these.
            if self.notices.is_empty() {
                self.bell.ring();
            }
            self.notices.push_back(notice);
        }
    }

    /// Has the ICMP errors read that wait on an underlay's sockets; once is enough.
    pub(crate) fn hear_refusals(&mut self, underlay: u32) {
        let Some(own) = self.underlays.get_mut(underlay as usize) else { return };
        if !std::mem::replace(&mut own.is_told_of, true) {
            self.notice(Notice::IcmpErrors { underlay });
        }
    }

    /// The next question that is still open: its number, network, VTEP and the headers of its first frame.
    pub fn next_question(&mut self) -> Option<(u64, u32, Option<u32>, Vec<u8>)> {
        while let Some(number) = self.asked.pop_front() {
            let Some(question) = self.questions.get(&number) else { continue };
            let (network, vtep) = (question.network, question.vtep);
            if vtep.is_some_and(|vtep| self.vtep(vtep).is_none()) {
                self.abandon_question(number, Reason::UNKNOWN_VTEP);
                continue;
            }
            if let Some(first) = question.held.front() {
                return Some((number, network, vtep, self.told_of(network, &first.frame)));
            }
            self.abandon_question(number, Reason::UPCALL_OVERFLOW); // nothing waits: its one frame had no room
        }
        None
    }

    /// What else there is to tell, oldest first.
    pub fn take_notices(&mut self) -> std::collections::VecDeque<Notice> {
        for own in &mut self.underlays {
            own.is_told_of = false;
        }
        mem::take(&mut self.notices)
    }

    /// Does what was decided with what waited.
    ///
    /// Without a memory the verdict was true of the first frame alone: the headers of the next one that waits come
    /// back, to be asked about, which is metered as a question of its own; what comes later asks anew.  With one the
    /// flow is remembered and all is carried.
    pub fn answer(
        &mut self,
        number: u64,
        answer: &Answer,
        memory: Option<Memory<'_>>,
        now: f64,
    ) -> Option<Vec<u8>> {
        let question = self.questions.get_mut(&number)?;
        let (network, vtep) = (question.network, question.vtep);
        if vtep.is_some_and(|vtep| self.vtep(vtep).is_none()) {
            self.abandon_question(number, Reason::UNKNOWN_VTEP);
            return None;
        }
        let owner = vtep.map_or(Owner::Egress(network), Owner::Ingress);
        let Some(memory) = memory else {
            self.wait_no_more(number);
            if let Some(held) = self.take_first(number) {
                self.carry(network, vtep, answer, held, now);
            }
            return self.next_of(number, now);
        };
        let mut question = self.close_question(number)?;
        // What has come behind an answer for one frame alone asks anew, and goes before whatever finds the flow.
        if let Some(later) = self.table(owner).and_then(|table| table.pending.get(&memory.key).copied())
            && let Some(later) = self.close_question(later)
        {
            question.octets += later.octets;
            question.held.extend(later.held);
        }
        if let Answer::Verdict(verdict) = answer {
            let Memory { key, expires_at, places } = memory;
            let remembered = Remembered { key, verdict: *verdict, expires_at, places, now };
            let frames = question.held.len() as u64;
            // What bare packets wear is none of theirs.
            let is_packet = self.network(network).is_some_and(|network| network.subnets.is_some());
            let worn = if is_packet { ETHERNET_LENGTH as u64 } else { 0 };
            let octets = question.octets as u64 - worn * frames;
            let Lane { networks, vteps, dependents, .. } = self;
            let table = match owner {
                Owner::Egress(network) => {
                    networks.get_mut(network as usize)?.as_mut().map(|network| &mut network.egress)
                }
                Owner::Ingress(vtep) => vteps.get_mut(vtep as usize)?.as_mut().map(|vtep| &mut vtep.ingress),
            };
            if let Some(flow) = table.and_then(|table| table.activate(dependents, remembered)) {
                flow.frames += frames;
                flow.octets += octets;
            }
        }
        // A full table remembers nothing and carries what waited all the same.
        for held in question.held {
            self.release(&held);
            self.carry(network, vtep, answer, held, now);
        }
        None
    }

    /// The headers of the next frame that waits and may ask; those before it that may not are dropped.  None: none does.
    fn next_of(&mut self, number: u64, now: f64) -> Option<Vec<u8>> {
        while let Some(question) = self.questions.get(&number)
            && !question.held.is_empty()
        {
            let (network, vtep, about) = (question.network, question.vtep, question.about);
            if self.may_ask(&about, now) {
                let next = self.questions.get(&number)?.held.front()?;
                return Some(self.told_of(network, &next.frame));
            }
            if let Some(held) = self.take_first(number) {
                self.drop_held(Reason::UPCALL_LIMIT, network, vtep, &held);
            }
        }
        self.close_question(number);
        None
    }

    fn take_first(&mut self, number: u64) -> Option<Held> {
        let question = self.questions.get_mut(&number)?;
        let held = question.held.pop_front()?;
        question.octets -= held.frame.len();
        self.release(&held);
        Some(held)
    }

    /// Further frames of the question's flow open another one.
    fn wait_no_more(&mut self, number: u64) {
        let Some(question) = self.questions.get_mut(&number) else { return };
        let owner = question.vtep.map_or(Owner::Egress(question.network), Owner::Ingress);
        if let Some(key) = question.about.key.take()
            && let Some(table) = self.table(owner)
        {
            table.pending.remove(&key);
        }
    }

    fn carry(&mut self, network: u32, vtep: Option<u32>, answer: &Answer, held: Held, now: f64) {
        match (answer, vtep) {
            (Answer::Reply(frame), _) => self.write_own(network, frame),
            (Answer::Verdict(verdict), None) => self.carry_out(network, *verdict, held, now),
            (Answer::Verdict(verdict), Some(vtep)) => self.carry_in(network, vtep, *verdict, &held),
        }
    }

    /// Gives up on questions that were not answered in time.
    pub(crate) fn give_up(&mut self, now: f64) {
        while let Some((number, question)) = self.questions.first_key_value() {
            if now - question.asked_at < TIMEOUT_SECONDS {
                break;
            }
            self.abandon_question(*number, Reason::UPCALL_TIMEOUT);
        }
    }

    /// Gives up on every question of a network that is no longer carried.
    pub(crate) fn abandon(&mut self, network: u32) {
        let own = self.questions.iter().filter(|(_, question)| question.network == network);
        let own: Vec<u64> = own.map(|(number, _)| *number).collect();
        for number in own {
            self.abandon_question(number, Reason::UPCALL_TIMEOUT);
        }
    }

    fn abandon_question(&mut self, number: u64, reason: Reason) {
        let Some(question) = self.close_question(number) else { return };
        for held in question.held {
            self.release(&held);
            self.drop_held(reason, question.network, question.vtep, &held);
        }
    }

    fn close_question(&mut self, number: u64) -> Option<Question> {
        self.wait_no_more(number);
        self.questions.remove(&number)
    }

    fn release(&mut self, held: &Held) {
        self.held_frames -= 1;
        self.held_octets -= held.frame.len();
    }

    fn drop_held(&mut self, reason: Reason, network: u32, vtep: Option<u32>, held: &Held) {
        let vtep = vtep.and_then(|vtep| self.vteps.get_mut(vtep as usize)?.as_mut());
        self.book.drop(reason, Some(network), &held.frame, vtep.map(|vtep| &mut vtep.drops), 1);
    }

    /// What a question carries of a frame: its headers; of a bare packet all, which must be as long as it says.
    fn told_of(&self, network: u32, frame: &[u8]) -> Vec<u8> {
        let is_packet = self.network(network).is_some_and(|network| network.subnets.is_some());
        let end = if is_packet { frame.len() } else { frame.len().min(HEADERS_MAX) };
        frame[..end].to_vec()
    }

    fn table(&mut self, owner: Owner) -> Option<&mut FlowTable> {
        match owner {
            Owner::Egress(network) => Some(&mut self.networks.get_mut(network as usize)?.as_mut()?.egress),
            Owner::Ingress(vtep) => Some(&mut self.vteps.get_mut(vtep as usize)?.as_mut()?.ingress),
        }
    }
}

/// The source MAC, as much of it as there is.
pub(crate) fn source_mac(frame: &[u8]) -> [u8; 6] {
    let mut mac = [0; 6];
    for (octet, found) in mac.iter_mut().zip(frame.iter().skip(6)) {
        *octet = *found;
    }
    mac
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::{FairBuckets, Meter};
    use crate::limits::Shared;
    use crate::reason::Reason;
    use crate::sys::Address;
    use crate::testing::lane_of;

    fn ask(lane: &mut Lane, owner: Owner, network: u32, station: u8) {
        let frame = [&[2; 6][..], &[2, 0, 0, 0, 0, station], b"\x81\0"].concat();
        lane.book.received += 1;
        lane.ask(owner, network, Held { frame, vnet: Vnet::default(), segment_size: None }, 0.0);
    }

    fn drops(lane: &Lane, network: u32, reason: Reason) -> u64 {
        lane.book.drops[network as usize + 1].as_ref().map_or(0, |drops| drops[usize::from(reason.0)])
    }

    const MALFORMED: Answer = Answer::Verdict(Verdict::Drop(Reason::INNER_MALFORMED));

    #[test]
    fn behind_an_answer_for_one_frame_alone_nothing_joins_the_question() {
        let (mut lane, network) = lane_of(Some(7));
        let owner = Owner::Egress(network);
        ask(&mut lane, owner, network, 1);
        ask(&mut lane, owner, network, 1);
        let (first, ..) = lane.next_question().unwrap();
        assert!(lane.answer(first, &MALFORMED, None, 0.0).is_some(), "the second one waits");
        ask(&mut lane, owner, network, 1);
        assert!(lane.answer(first, &MALFORMED, None, 0.0).is_none(), "the third is another question's");
        let (second, ..) = lane.next_question().unwrap();
        assert_ne!(first, second);
        assert!(lane.answer(second, &MALFORMED, None, 0.0).is_none());
        assert_eq!((drops(&lane, network, Reason::INNER_MALFORMED), lane.held()), (3, 0));
    }

    #[test]
    fn who_asked_anew_goes_before_whatever_finds_the_flow() {
        let (mut lane, network) = lane_of(Some(7));
        let owner = Owner::Egress(network);
        let key = *[2, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0, 1].first_chunk().unwrap();
        ask(&mut lane, owner, network, 1);
        ask(&mut lane, owner, network, 1);
        let (first, ..) = lane.next_question().unwrap();
        assert!(lane.answer(first, &MALFORMED, None, 0.0).is_some());
        ask(&mut lane, owner, network, 1);
        let memory = Memory { key, expires_at: f64::INFINITY, places: &[] };
        let verdict = Answer::Verdict(Verdict::Drop(Reason::NO_VTEP));
        assert!(lane.answer(first, &verdict, Some(memory), 0.0).is_none());
        assert_eq!((drops(&lane, network, Reason::NO_VTEP), lane.held()), (2, 0));
        assert!(lane.next_question().is_none());
    }

    #[test]
    fn frames_whose_answers_hold_for_them_alone_are_metered_one_by_one() {
        let (mut lane, network) = lane_of(Some(7));
        let mut meter = Meter::new(0.0);
        meter.new_flows = FairBuckets::new((2.0, 4.0), 0.0); // half of it is one source's
        lane.meter = Shared::new(meter);
        for _ in 0..5 {
            ask(&mut lane, Owner::Egress(network), network, 1);
        }
        let (number, ..) = lane.next_question().unwrap();
        assert!(lane.answer(number, &MALFORMED, None, 0.0).is_some());
        assert!(lane.answer(number, &MALFORMED, None, 0.0).is_none());
        assert_eq!(drops(&lane, network, Reason::INNER_MALFORMED), 2);
        assert_eq!((drops(&lane, network, Reason::UPCALL_LIMIT), lane.held()), (3, 0));
    }

    #[test]
    fn a_vtep_has_one_share_whatever_networks_it_asks_about() {
        let (mut lane, network) = lane_of(Some(7));
        let mut meter = Meter::new(0.0);
        meter.new_flows = FairBuckets::new((2.0, 4.0), 0.0);
        lane.meter = Shared::new(meter);
        let vteps: Vec<u32> = [[192, 0, 2, 1], [192, 0, 2, 1], [192, 0, 2, 2]]
            .map(|host| lane.add_vtep(network, Address::new(&host, 4789, 0).unwrap()))
            .into();
        for (vtep, limited) in [(0, 0), (1, 0), (0, 1), (1, 2), (2, 2)] {
            ask(&mut lane, Owner::Ingress(vteps[vtep]), network, limited as u8 + 10 * vtep as u8);
            assert_eq!(drops(&lane, network, Reason::UPCALL_LIMIT), limited, "{vtep}");
        }
    }
}
