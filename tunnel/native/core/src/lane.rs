//! One lane: everything a worker touches, and the changes the loop thread makes to it.
//! Over 500 lines: what one lock guards stands in one file.
//!
//! ```text
//! worker        lock ─▶ drain devices and ports ─▶ unlock ─▶ poll or nap, then sleep
//! loop thread   lock ─▶ program, answer, forget, look ─▶ unlock
//! ```
//!
//! A lane is behind one lock, held for a turn at a time.  Whatever the loop thread changes is therefore in place, for
//! every later frame and before the call returns: the lock is the queue of changes, and holding it is the
//! acknowledgement of all of them.  The decision was made on that same thread, so between deciding and remembering
//! nothing can be forgotten.
//!
//! Networks, VTEPs and ports are named by numbers that are never used twice, so a question about a VTEP that left
//! cannot be answered for another.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::fd::RawFd;
use std::sync::Arc;

use crate::batch::Door;
use crate::bucket::Meter;
use crate::flows::{Dependents, EGRESS_FLOWS_MAX, FlowTable, INGRESS_FLOWS_MAX, Owner};
use crate::hash::Seeded;
use crate::limits::{NetworkLimits, Shared};
use crate::packet::{ETHERNET, LEAD, Subnet, Subnets, WIRE_ID};
use crate::reason::{REASONS_MAX, Reason};
use crate::super_packet::SuperDoor;
use crate::sys::{Address, Bell, Host, Waiter};
use crate::upcalls::{Notice, Question};

/// Octets of a VXLAN header (RFC 7348 section 5).
pub const HEADER_LENGTH: usize = 8;
/// Octets of memory that frames shown to observers may take while they wait; and what each takes beside its own.
const SHOWN_OCTETS_MAX: usize = 8 << 20;
const SHOWN_OCTETS: usize = size_of::<Shown>() + 32;

/// Drops by reason.
pub type Drops = [u64; REASONS_MAX];

/// What `Waiter` tokens mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// Somebody wants the worker to look up.
    Wake,
    /// A network's device is readable.
    Device(u32),
    /// A port is readable.
    Port(u32),
}

impl Token {
    /// As a number.
    pub fn number(self) -> u64 {
        match self {
            Token::Wake => 0,
            Token::Device(network) => 1 << 32 | u64::from(network),
            Token::Port(port) => 2 << 32 | u64::from(port),
        }
    }

    /// From a number.
    pub fn of(number: u64) -> Token {
        match number >> 32 {
            1 => Token::Device(number as u32),
            2 => Token::Port(number as u32),
            _ => Token::Wake,
        }
    }
}

/// One network as it is carried.
pub struct Network {
    /// Before every frame.
    pub header: [u8; HEADER_LENGTH],
    /// Its device.
    pub device: RawFd,
    /// Octets of packet the device carries.
    pub overlay_mtu: usize,
    /// Whether reserved bits are refused.
    pub is_strict: bool,
    /// Whether neighbor discovery must be asked about frame by frame.
    pub suppresses: bool,
    /// Whether unfinished checksums and super-frames from the underlay are completed.
    pub repairs: bool,
    /// Whether the device takes UDP segments joined into one frame.
    pub merges_udp: bool,
    /// Whose subnets are where; None: the network carries frames.
    pub subnets: Option<Subnets>,
    /// When its device was last drained.
    pub(crate) drained_at: f64,
    /// Egress flows.
    pub egress: FlowTable,
    /// Sender's host → VTEP.
    pub hosts: HashMap<Host, u32, Seeded>,
    /// The flood list.
    pub flood: Vec<u32>,
    /// What holds for all lanes together.
    pub limits: NetworkLimits,
}

impl Network {
    /// Octets of a datagram in its slot before what is sent: of a bare packet all its lead.
    pub(crate) fn hidden(&self) -> usize {
        if self.subnets.is_some() { LEAD } else { 0 }
    }

    /// A frame as the engine holds it, from what was sent of it.
    pub(crate) fn frame_of(&self, sent: &[u8]) -> Vec<u8> {
        if self.subnets.is_some() { [&ETHERNET[..], sent].concat() } else { sent[HEADER_LENGTH..].to_vec() }
    }

    /// The smallest segment the receivers of this flow are known to need; of no use for a short frame.
    pub fn segment_limit(&self, frame: &[u8]) -> Option<u16> {
        let is_short = frame.len() <= self.overlay_mtu + 14;
        if is_short { None } else { self.limits.segments.hold().of(frame.first_chunk()?) }
    }
}

/// How one VTEP of one network is reached, and what came from it.
pub struct Vtep {
    /// Whose.
    pub network: u32,
    /// Where to send.
    pub address: Address,
    /// How its datagrams name it.
    pub host: Host,
    /// Through which underlay; None: none of its family here.
    pub underlay: Option<u32>,
    /// The longest frame the path carries, Ethernet header included.
    pub frame_max: usize,
    /// Ingress flows.
    pub ingress: FlowTable,
    /// What waits to be sent, by sender of the pool.
    pub doors: Vec<Door>,
    /// Where super-frames leave whole, if they may.
    pub super_door: Option<SuperDoor>,
    /// Whether somebody shall be told when there are super-frames without such a door.
    pub wants_door: bool,
    /// What went and came.
    pub traffic: Traffic,
    /// What was dropped of it.
    pub drops: Drops,
}

/// What went to and came from one VTEP, in octets of frame.
#[derive(Clone, Copy, Default)]
#[allow(missing_docs)] // the names say it
pub struct Traffic {
    pub sent_frames: u64,
    pub sent_octets: u64,
    pub received_frames: u64,
    pub received_octets: u64,
}

/// One underlay address: the sockets that send.
pub struct Underlay {
    /// The pool; its size is a power of two.
    pub senders: Vec<RawFd>,
    /// Whether several datagrams may leave in one send.
    pub has_gso: bool,
    /// Whether it has been said that ICMP errors may wait.
    pub(crate) is_told_of: bool,
}

/// One receiving socket and the networks that share it, by VNI.
pub struct Port {
    /// The socket.
    pub fd: RawFd,
    /// The underlay whose only sender it is as well, if any.
    pub sends_for: Option<u32>,
    /// VNI → network.
    pub networks: HashMap<u32, u32, Seeded>,
}

impl Port {
    /// The network of bare packets that has the port for itself.
    pub(crate) fn of_packets(&self) -> Option<u32> {
        self.networks.get(&WIRE_ID).copied()
    }
}

/// Where an observer sees a frame, as `tunnel.interfaces.Point` has them, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Point {
    DeviceRead,
    UnderlaySend,
    UnderlayReceive,
    DeviceWrite,
    Drop,
}

/// One frame for observers to see.
#[derive(Debug)]
pub struct Shown {
    /// Where it was.
    pub point: Point,
    /// On which network.
    pub network: Option<u32>,
    /// Its octets.
    pub frame: Vec<u8>,
    /// Why it was dropped.
    pub reason: Option<Reason>,
}

/// The book: a frame enters it once and leaves it once.
pub struct Book {
    /// Read, or lost on our behalf.
    pub received: u64,
    /// Made here.
    pub generated: u64,
    /// Left for a VTEP.
    pub sent: u64,
    /// Of those that left, by this lane or another: were reported undeliverable.
    pub returned: u64,
    /// Written to a device.
    pub delivered: u64,
    /// Ended here, for a reason.
    pub dropped: u64,
    /// By reason: of no network, then of each by its number; None: nothing was dropped of it.
    pub drops: Vec<Option<Box<Drops>>>,
    /// Whether anybody watches.
    pub is_watched: bool,
    /// Frames that waited for an observer in vain: too many at once.
    pub unseen: u64,
    pub(crate) shown: VecDeque<Shown>,
    shown_octets: usize,
    bell: Arc<Bell>,
}

impl Book {
    fn new(bell: Arc<Bell>) -> Book {
        Book {
            received: 0,
            generated: 0,
            sent: 0,
            returned: 0,
            delivered: 0,
            dropped: 0,
            drops: vec![None],
            is_watched: false,
            unseen: 0,
            shown: VecDeque::new(),
            shown_octets: 0,
            bell,
        }
    }

    /// Frames end here, for this reason.  `of_vtep`: the counts of the VTEP they came from or were for.
    pub fn drop(
        &mut self,
        reason: Reason,
        network: Option<u32>,
        frame: &[u8],
        of_vtep: Option<&mut Drops>,
        frames: u64,
    ) {
        self.count(reason, network, frames);
        if let Some(drops) = of_vtep {
            drops[usize::from(reason.0)] += frames;
        }
        if self.is_watched {
            self.show(Point::Drop, network, frame.to_vec(), Some(reason));
        }
    }

    fn count(&mut self, reason: Reason, network: Option<u32>, frames: u64) {
        self.dropped += frames;
        let drops = &mut self.drops[network.map_or(0, |network| network as usize + 1)];
        drops.get_or_insert_with(|| Box::new([0; REASONS_MAX]))[usize::from(reason.0)] += frames;
    }

    /// Keeps one frame for the observers, if there is room.
    pub fn show(&mut self, point: Point, network: Option<u32>, frame: Vec<u8>, reason: Option<Reason>) {
        let octets = frame.len() + SHOWN_OCTETS;
        if self.shown_octets + octets > SHOWN_OCTETS_MAX {
            self.unseen += 1;
            return;
        }
        if self.shown.is_empty() {
            self.bell.ring();
        }
        self.shown_octets += octets;
        self.shown.push_back(Shown { point, network, frame, reason });
    }

    /// What is to be shown, oldest first, and so many at most.
    pub fn take_shown(&mut self, most: usize) -> VecDeque<Shown> {
        let shown: VecDeque<Shown> = self.shown.drain(..most.min(self.shown.len())).collect();
        self.shown_octets -= shown.iter().map(|each| each.frame.len() + SHOWN_OCTETS).sum::<usize>();
        shown
    }
}

/// A device as one lane uses it.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// One of its queues.
    pub fd: RawFd,
    /// Whether what comes out of that queue is this lane's to carry.
    pub is_heard: bool,
    /// Octets of packet it carries.
    pub overlay_mtu: usize,
    /// Whether it takes UDP segments joined into one frame.
    pub merges_udp: bool,
}

/// How a lane is bounded; tests make it small.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Datagrams in one send.
    pub send_segments: usize,
    /// Segments in one write to a device.
    pub write_segments: usize,
}

/// What a turn, or a part of one, has done.
#[derive(Clone, Copy, Default)]
pub struct Work {
    /// Reads of devices.
    pub frames: usize,
    /// Reads of ports: datagrams, or runs of them.
    pub arrivals: usize,
    /// Octets of those that were runs.
    pub run_octets: usize,
    /// A device gave FLOOD_FRAMES or more, or a port FLOOD_OCTETS of UDP.
    pub is_flooded: bool,
}

impl Work {
    /// Whether there was nothing to do.
    pub fn is_idle(&self) -> bool {
        self.frames + self.arrivals == 0
    }
}

impl std::ops::AddAssign for Work {
    fn add_assign(&mut self, other: Work) {
        self.frames += other.frames;
        self.arrivals += other.arrivals;
        self.run_octets += other.run_octets;
        self.is_flooded |= other.is_flooded;
    }
}

/// Everything a worker touches.
pub struct Lane {
    /// What was counted.
    pub book: Book,
    /// By number; None: it left.  Numbers only grow, so what left keeps no more room than a pointer.
    pub networks: Vec<Option<Box<Network>>>,
    /// By number; None: it left.
    pub vteps: Vec<Option<Box<Vtep>>>,
    /// By number.
    pub underlays: Vec<Underlay>,
    /// By number; None: it left.
    pub ports: Vec<Option<Port>>,
    pub(crate) dependents: Dependents,
    pub(crate) meter: Shared<Meter>,
    pub(crate) bounds: Bounds,
    pub(crate) waiter: Arc<Waiter>,
    pub(crate) bell: Arc<Bell>,
    // Upcalls.
    pub(crate) questions: BTreeMap<u64, Question>,
    pub(crate) question_number: u64,
    pub(crate) asked: VecDeque<u64>,
    pub(crate) notices: VecDeque<Notice>,
    pub(crate) held_frames: usize,
    pub(crate) held_octets: usize,
    // Egress.
    pub(crate) arena: Vec<u8>,
    pub(crate) scratch: Vec<u8>,
    /// Whether anything in a door lies in the arena.
    pub(crate) arena_waits: bool,
    pub(crate) open: Vec<(u32, usize)>,
    // Ingress.
    pub(crate) received: Vec<u8>,
    pub(crate) groups: Vec<crate::ingress::Group>,
    pub(crate) apart: Vec<u8>,
    pub(crate) merged: Vec<u8>,
}

impl Lane {
    /// One that carries nothing yet.  `bell` rings when there is something for the loop thread.
    pub fn new(waiter: Arc<Waiter>, bell: Arc<Bell>, meter: Shared<Meter>, bounds: Bounds) -> Lane {
        Lane {
            book: Book::new(bell.clone()),
            networks: vec![],
            vteps: vec![],
            underlays: vec![],
            ports: vec![],
            dependents: Dependents::default(),
            meter,
            bounds,
            waiter,
            bell,
            questions: BTreeMap::new(),
            question_number: 0,
            asked: VecDeque::new(),
            notices: VecDeque::new(),
            held_frames: 0,
            held_octets: 0,
            arena: vec![0; crate::egress::ARENA_OCTETS],
            scratch: Vec::with_capacity(1 << 17),
            arena_waits: false,
            open: vec![],
            received: vec![0; crate::ingress::BUFFER_OCTETS],
            groups: vec![],
            apart: vec![],
            merged: vec![],
        }
    }

    // ── Networks come and go ────────────────────────────────────────────────────────────────────────────

    /// Carries one more network, its device not listened to yet; its number.
    pub fn add_network(&mut self, settings: NetworkSettings, limits: NetworkLimits, now: f64) -> u32 {
        let number = self.networks.len() as u32;
        let mut header = [0x08, 0, 0, 0, 0, 0, 0, 0];
        if let Some(vni) = settings.vni {
            header[4..].copy_from_slice(&(vni << 8).to_be_bytes());
        }
        self.networks.push(Some(Box::new(Network {
            header,
            device: -1,
            overlay_mtu: 0,
            is_strict: settings.is_strict,
            suppresses: settings.suppresses,
            repairs: settings.repairs,
            merges_udp: false,
            subnets: settings.vni.is_none().then(Subnets::default),
            drained_at: now,
            egress: FlowTable::new(Owner::Egress(number), EGRESS_FLOWS_MAX),
            hosts: HashMap::with_hasher(Seeded::new()),
            flood: vec![],
            limits,
        })));
        self.book.drops.push(None);
        number
    }

    /// Goes on with this device: writes to it, and hears what comes unless another lane does.
    pub fn use_device(&mut self, network: u32, device: Device) -> std::io::Result<()> {
        let waiter = self.waiter.clone();
        let Some(network_) = self.network_mut(network) else { return Ok(()) };
        waiter.unwatch(network_.device);
        let Device { fd, is_heard, overlay_mtu, merges_udp } = device;
        (network_.device, network_.overlay_mtu, network_.merges_udp) = (fd, overlay_mtu, merges_udp);
        if is_heard { waiter.watch(fd, Token::Device(network).number()) } else { Ok(()) }
    }

    /// Carries it no more: its device, its VTEPs, its flows and what waits of it.
    pub fn remove_network(&mut self, network: u32) {
        if let Some(network) = self.network(network) {
            self.waiter.unwatch(network.device);
        }
        self.abandon(network);
        for port in self.ports.iter_mut().flatten() {
            port.networks.retain(|_, other| *other != network);
        }
        let vteps = 0..self.vteps.len() as u32;
        let own: Vec<u32> =
            vteps.filter(|vtep| self.vtep(*vtep).is_some_and(|vtep| vtep.network == network)).collect();
        for vtep in own {
            self.withdraw_vtep(vtep);
        }
        if let Some(mut network) = self.networks.get_mut(network as usize).and_then(Option::take) {
            network.egress.clear(&mut self.dependents);
        }
    }

    /// One more underlay; its number.
    pub fn add_underlay(&mut self, senders: Vec<RawFd>, has_gso: bool) -> u32 {
        self.underlays.push(Underlay { senders, has_gso, is_told_of: false });
        (self.underlays.len() - 1) as u32
    }

    /// One more port, whose socket may be the sender of an underlay; its number.
    pub fn add_port(&mut self, fd: RawFd, sends_for: Option<u32>) -> u32 {
        self.ports.push(Some(Port { fd, sends_for, networks: HashMap::with_hasher(Seeded::new()) }));
        (self.ports.len() - 1) as u32
    }

    /// Listens to it no more.
    pub fn remove_port(&mut self, port: u32) {
        if let Some(port) = self.ports.get_mut(port as usize).and_then(Option::take) {
            self.waiter.unwatch(port.fd);
        }
    }

    /// What comes to the port with that VNI is the network's.  The port is listened to from its first network on.
    pub fn bind(&mut self, port: u32, vni: u32, network: u32) -> std::io::Result<()> {
        let Some(port_) = self.ports.get_mut(port as usize).and_then(Option::as_mut) else { return Ok(()) };
        if port_.networks.is_empty() {
            self.waiter.watch(port_.fd, Token::Port(port).number())?;
        }
        port_.networks.insert(vni, network);
        Ok(())
    }

    // ── What the tables say ─────────────────────────────────────────────────────────────────────────────

    /// One more VTEP of the network, not reached yet; its number.
    pub fn add_vtep(&mut self, network: u32, address: Address) -> u32 {
        let number = self.vteps.len() as u32;
        self.vteps.push(Some(Box::new(Vtep {
            network,
            address,
            host: address.host(),
            underlay: None,
            frame_max: 0,
            ingress: FlowTable::new(Owner::Ingress(number), INGRESS_FLOWS_MAX),
            doors: vec![Door::default()],
            super_door: None,
            // Of all that is carried, the kernel cuts VXLAN alone.
            wants_door: self.network(network).is_some_and(|network| network.subnets.is_none()),
            traffic: Traffic::default(),
            drops: [0; REASONS_MAX],
        })));
        number
    }

    /// Where and through which underlay a VTEP is reached from now on; flows stay.
    pub fn route_vtep(&mut self, vtep: u32, address: Address, underlay: Option<u32>, frame_max: usize) {
        let senders = underlay
            .and_then(|number| self.underlays.get(number as usize))
            .map_or(0, |own| own.senders.len());
        let Some(vtep_) = self.vteps.get_mut(vtep as usize).and_then(Option::as_mut) else { return };
        let before = vtep_.host;
        (vtep_.address, vtep_.host, vtep_.underlay, vtep_.frame_max) =
            (address, address.host(), underlay, frame_max);
        vtep_.doors.resize_with(senders.max(1), Door::default);
        let (network, host) = (vtep_.network, vtep_.host);
        if let Some(network) = self.network_mut(network) {
            if network.hosts.get(&before) == Some(&vtep) {
                network.hosts.remove(&before);
            }
            network.hosts.insert(host, vtep);
        }
    }

    /// Sets the longest frame a VTEP's path carries.
    pub fn limit_path(&mut self, vtep: u32, frame_max: usize) {
        if let Some(vtep) = self.vteps.get_mut(vtep as usize).and_then(Option::as_mut) {
            vtep.frame_max = frame_max;
        }
    }

    /// Has super-frames for the VTEP leave through this door from now on, or through none.
    pub fn use_door(&mut self, vtep: u32, door: Option<SuperDoor>) {
        if let Some(vtep) = self.vteps.get_mut(vtep as usize).and_then(Option::as_mut) {
            vtep.super_door = door;
        }
    }

    /// Shuts every super door of an underlay: each must be given again.  Nothing holds their TAP from then on.
    pub fn suspend(&mut self, underlay: u32) {
        for vtep in self.vteps.iter_mut().flatten().filter(|vtep| vtep.underlay == Some(underlay)) {
            vtep.super_door = None;
        }
    }

    /// Whether a super door of the underlay was used since the last call.
    pub fn take_use(&mut self, underlay: u32) -> bool {
        let own = self.vteps.iter_mut().flatten().filter(|vtep| vtep.underlay == Some(underlay));
        own.filter_map(|vtep| vtep.super_door.as_mut())
            .fold(false, |used, door| used | std::mem::take(&mut door.was_used))
    }

    /// Has the VTEP no more.
    pub fn withdraw_vtep(&mut self, vtep: u32) {
        let Some(mut gone) = self.vteps.get_mut(vtep as usize).and_then(Option::take) else { return };
        gone.ingress.clear(&mut self.dependents);
        if let Some(network) = self.network_mut(gone.network) {
            if network.hosts.get(&gone.host) == Some(&vtep) {
                network.hosts.remove(&gone.host);
            }
            network.flood.retain(|other| *other != vtep);
        }
    }

    /// A network of bare packets has these subnets, ours and others'.
    pub fn program_subnets(&mut self, network: u32, subnets: Vec<Subnet>) {
        if let Some(network) = self.network_mut(network) {
            network.subnets = Some(Subnets::new(subnets));
        }
    }

    /// Floods to these.
    pub fn program_flood(&mut self, network: u32, vteps: Vec<u32>) {
        if let Some(network) = self.network_mut(network) {
            network.flood = vteps;
        }
    }

    /// Forgets every flow that rests on one of these places.
    pub fn forget(&mut self, places: &[Vec<u8>]) {
        for (owner, key) in self.dependents.resting_on(places) {
            let table = match owner {
                Owner::Egress(network) => self
                    .networks
                    .get_mut(network as usize)
                    .and_then(Option::as_mut)
                    .map(|network| &mut network.egress),
                Owner::Ingress(vtep) => {
                    self.vteps.get_mut(vtep as usize).and_then(Option::as_mut).map(|vtep| &mut vtep.ingress)
                }
            };
            if let Some(table) = table {
                table.forget(&mut self.dependents, &key);
            }
        }
    }

    // ── Every second ────────────────────────────────────────────────────────────────────────────────────

    /// Forgets what is idle or over, and gives up on old questions.
    pub fn expire(&mut self, now: f64) {
        self.give_up(now);
        for network in self.networks.iter_mut().flatten() {
            network.egress.expire(&mut self.dependents, now);
        }
        for vtep in self.vteps.iter_mut().flatten() {
            vtep.ingress.expire(&mut self.dependents, now);
        }
    }

    /// The kernel dropped these before we could read them: received on our behalf, and lost.
    pub fn lost_before(&mut self, reason: Reason, network: Option<u32>, frames: u64) {
        self.book.received += frames;
        self.book.count(reason, network, frames);
    }

    /// Frames counted as sent were reported undeliverable: they were not sent after all.
    pub fn lost_after(&mut self, reason: Reason, network: Option<u32>, vtep: Option<u32>, frames: u64) {
        self.book.returned += frames;
        self.book.count(reason, network, frames);
        if let Some(vtep) = vtep.and_then(|vtep| self.vteps.get_mut(vtep as usize)?.as_mut()) {
            vtep.drops[usize::from(reason.0)] += frames;
        }
    }

    /// Flows remembered of each network, by its number.
    pub fn flow_counts(&self) -> Vec<usize> {
        let mut counts: Vec<usize> = self
            .networks
            .iter()
            .map(|network| network.as_ref().map_or(0, |network| network.egress.len()))
            .collect();
        for vtep in self.vteps.iter().flatten() {
            counts[vtep.network as usize] += vtep.ingress.len();
        }
        counts
    }

    /// Frames that wait for a verdict.
    pub fn held(&self) -> usize {
        self.held_frames
    }

    /// The network of that number, unless it left.
    pub fn network(&self, number: u32) -> Option<&Network> {
        self.networks.get(number as usize)?.as_deref()
    }

    pub(crate) fn network_mut(&mut self, number: u32) -> Option<&mut Network> {
        self.networks.get_mut(number as usize)?.as_deref_mut()
    }

    /// The VTEP of that number, unless it left.
    pub fn vtep(&self, number: u32) -> Option<&Vtep> {
        self.vteps.get(number as usize)?.as_deref()
    }
}

/// What does not change of a network.
#[derive(Clone, Copy, Debug)]
pub struct NetworkSettings {
    /// Its VNI; None: it is one of bare packets.
    pub vni: Option<u32>,
    /// Whether reserved bits are refused.
    pub is_strict: bool,
    /// Whether neighbor discovery must be asked about frame by frame.
    pub suppresses: bool,
    /// Whether unfinished checksums and super-frames from the underlay are completed.
    pub repairs: bool,
}
