//! Datagrams at a lane, through real sockets: all are accounted for, what is written the host can take, and the next
//! frame passes.
//!
//! ```text
//! member   127.0.0.1 ─┐  sendmsg, UDP_SEGMENT, ECN             ┌─▶ a TAP's double  (VXLAN: a lax network, a strict one)
//!                     ├────────────────────────────▶ the lane ─┤
//! stranger 127.0.0.2 ─┘              recvmmsg, UDP_GRO         └─▶ a TUN's double  (bare packets)
//! ```
//!
//! The lane lives on from one input to the next, as a daemon does.  Every so often a new one takes its place, so that
//! a find can be made again from its input.

#![no_main]

use std::cell::RefCell;
use std::io::{IoSlice, Read};
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use weft_core::bucket::Meter;
use weft_core::flows::{Key, Verdict};
use weft_core::lane::{Bounds, Device, Lane, NetworkSettings};
use weft_core::limits::{NetworkLimits, Shared};
use weft_core::octets::put_word;
use weft_core::packet::{ETHERNET, WIRE_ID};
use weft_core::reason::Reason;
use weft_core::split::locate_untrusted;
use weft_core::sys::{Address, Bell, Outgoing, Waiter, send_many};
use weft_core::upcalls::{Answer, Memory};
use weft_core::vnet::{GSO_NONE, VNET_LENGTH, Vnet};
use weft_fuzz::draw::Draw;
use weft_fuzz::judge::naive_sum;

const INPUTS_PER_LANE: usize = 50;
const PIECES_MAX: usize = 8;
const SEGMENTS_MAX: usize = 16;
const OVERLAY_MTU: usize = 1450;
const LAX: u32 = 7;
const STRICT: u32 = 8;
/// Decided, not the engine's own: any number behind those.
const DECIDED: Reason = Reason(40);
const PATIENCE: Duration = Duration::from_secs(5);

thread_local! {
    static BENCH: RefCell<Option<Bench>> = const { RefCell::new(None) };
}

fuzz_target!(|octets: &[u8]| {
    BENCH.with_borrow_mut(|bench| {
        if bench.as_ref().is_none_or(|bench| bench.inputs == INPUTS_PER_LANE) {
            *bench = Some(Bench::new());
        }
        if let Some(bench) = bench {
            bench.meet(&mut Draw::new(octets));
        }
    });
});

struct Bench {
    lane: Lane,
    /// The one for VXLAN, the one for bare packets.
    ports: [UdpSocket; 2],
    member: UdpSocket,
    stranger: UdpSocket,
    /// What the lane writes to, what we read from.
    tap: [OwnedFd; 2],
    tun: [OwnedFd; 2],
    buffer: Vec<u8>,
    now: f64,
    inputs: usize,
}

impl Bench {
    fn new() -> Bench {
        let (waiter, bell) = (Arc::new(Waiter::new().unwrap()), Arc::new(Bell::new().unwrap()));
        let bounds = Bounds { send_segments: 63, write_segments: 64 };
        let mut bench = Bench {
            lane: Lane::new(waiter, bell, Shared::new(Meter::new(0.0)), bounds),
            ports: [port(), port()],
            member: UdpSocket::bind("127.0.0.1:0").unwrap(),
            stranger: UdpSocket::bind("127.0.0.2:0").unwrap(),
            tap: device(),
            tun: device(),
            buffer: vec![0; 1 << 17],
            now: 0.0,
            inputs: 0,
        };
        bench.program();
        bench.expect_the_next_frames();
        bench
    }

    fn program(&mut self) {
        let Bench { lane, ports, tap, tun, .. } = self;
        let [vxlan, packets] = [&ports[0], &ports[1]].map(|port| lane.add_port(port.as_raw_fd(), None));
        for (port, vni, device) in
            [(vxlan, Some(LAX), Some(tap)), (vxlan, Some(STRICT), None), (packets, None, Some(tun))]
        {
            let is_strict = vni == Some(STRICT);
            let settings = NetworkSettings { vni, is_strict, suppresses: !is_strict, repairs: true };
            let network = lane.add_network(settings, NetworkLimits::new(0.0), 0.0);
            // The strict one has no device, as while it is made anew: a write fails.
            if let Some(device) = device {
                let fd = device[0].as_raw_fd();
                let device = Device { fd, is_heard: true, overlay_mtu: OVERLAY_MTU, merges_udp: true };
                lane.use_device(network, device).unwrap();
            }
            lane.bind(port, vni.unwrap_or(WIRE_ID), network).unwrap();
            let address = Address::new(&[127, 0, 0, 1], 9, 0).unwrap();
            let vtep = lane.add_vtep(network, address);
            lane.route_vtep(vtep, address, None, OVERLAY_MTU);
            if vni.is_none() {
                lane.program_subnets(network, vec![[10, 9, 0, 0, 24], [10, 9, 1, 0, 24]]);
            }
        }
    }

    fn meet(&mut self, draw: &mut Draw<'_>) {
        self.inputs += 1;
        self.now += 1.0;
        self.lane.book.is_watched = draw.octet() & 7 == 1;
        for _ in 0..PIECES_MAX {
            if draw.is_over() {
                break;
            }
            self.send_piece(draw);
        }
        self.turn();
        self.expect_the_next_frames();
        self.lane.expire(self.now);
        self.check_the_ledger();
        self.lane.book.take_shown(usize::MAX);
        self.lane.take_notices();
    }

    /// Datagrams of one flow, or of none, in one send.
    fn send_piece(&self, draw: &mut Draw<'_>) {
        let how = draw.octet();
        let of_packets = usize::from(how & 1);
        let sender = if how & 0x0E == 2 { &self.stranger } else { &self.member };
        let frames = match how >> 4 & 3 {
            0 => any_octets(draw),
            1 => vec![draw.flow(4000).build()],
            _ => {
                let (made, size) = (draw.flow(4000), 1 + draw.below(1400));
                made.segments(size).take(SEGMENTS_MAX).collect()
            }
        };
        let mut frames: Vec<Vec<u8>> = frames.into_iter().take(SEGMENTS_MAX).collect();
        for _ in 0..draw.octet().saturating_sub(250) {
            let victim = draw.below(frames.len().max(1));
            if let Some(frame) = frames.get_mut(victim) {
                draw.damage(frame);
            }
        }
        let prefix = if of_packets == 1 { vec![] } else { header(draw) };
        let worn = if of_packets == 1 { ETHERNET.len() } else { 0 };
        let datagrams: Vec<Vec<u8>> =
            frames.iter().map(|frame| [&prefix[..], &frame[worn.min(frame.len())..]].concat()).collect();
        // The kernel cuts apart what is sent together: all are as long as the first, but the last.
        let size = datagrams.first().map_or(0, Vec::len);
        let cut = if how >> 6 == 1 { 1 + draw.below(1500) } else { size };
        send(sender, &self.ports[of_packets], &datagrams.concat(), cut, draw.octet() & 3);
    }

    /// Reads, answers, reads what was written, until there is no more.
    fn turn(&mut self) {
        for port in [0, 1].repeat(2) {
            self.lane.drain_port(port, self.now);
            self.answer();
            self.read_devices(&[], &[]);
        }
    }

    /// Plays the loop thread: most flows are delivered, some not, some are remembered.
    fn answer(&mut self) {
        while let Some((number, network, _, headers)) = self.lane.next_question() {
            let how = headers.iter().fold(0u8, |sum, octet| sum.wrapping_add(*octet));
            let verdict = match how % 16 {
                1 if !is_ours(&headers) => Verdict::Drop(DECIDED),
                2 if !is_ours(&headers) => Verdict::Replicate,
                _ => Verdict::Deliver,
            };
            let answer = Answer::Verdict(verdict);
            let subnets = self.lane.network(network).and_then(|network| network.subnets.as_ref());
            let key: Option<Key> = match subnets {
                Some(subnets) => Some(subnets.ingress_key(&headers)),
                None => headers.first_chunk().copied().filter(|_| how & 0x10 == 0 || is_ours(&headers)),
            };
            let Some(key) = key else {
                while self.lane.answer(number, &answer, None, self.now).is_some() {}
                continue;
            };
            let memory = Memory { key, expires_at: f64::INFINITY, places: &[key.to_vec()] };
            self.lane.answer(number, &answer, Some(memory), self.now);
        }
    }

    /// One more frame on each network, that no input can know: it arrives as it was sent.
    fn expect_the_next_frames(&mut self) {
        let nonce = (self.now * 1e3) as u64 ^ 0x5EED_0000_0000;
        let (frame, packet) = (frame(nonce), packet(nonce));
        let datagram = [&[8, 0, 0, 0, 0, 0, LAX as u8, 0][..], &frame].concat();
        let deadline = Instant::now() + PATIENCE;
        let (mut has_frame, mut has_packet) = (false, false);
        send(&self.member, &self.ports[0], &datagram, 0, 0);
        send(&self.member, &self.ports[1], &packet, 0, 0);
        while !(has_frame && has_packet) {
            self.lane.drain_port(0, self.now);
            self.lane.drain_port(1, self.now);
            self.answer();
            let (came, also) = self.read_devices(&frame, &packet);
            (has_frame, has_packet) = (has_frame | came, has_packet | also);
            assert!(Instant::now() < deadline, "no frame passes: VXLAN {has_frame}, bare {has_packet}");
        }
    }

    /// Whether the frame was among what was written to the TAP, and the packet among that to the TUN.
    fn read_devices(&mut self, frame: &[u8], packet: &[u8]) -> (bool, bool) {
        let mut found = [false; 2];
        let wanted = [(&self.tap, frame, 0), (&self.tun, packet, ETHERNET.len())];
        for (found, (device, wanted, worn)) in found.iter_mut().zip(wanted) {
            while let Some(octets) = read(&device[1], &mut self.buffer) {
                let (header, rest) = octets.split_first_chunk::<VNET_LENGTH>().expect("no virtio header");
                let vnet = Vnet::parse(header);
                if vnet.gso_type != GSO_NONE {
                    host_can_cut(vnet, rest, worn);
                }
                let is_same = if worn > 0 { is_one_hop_on(rest, wanted) } else { rest == wanted };
                *found |= is_same && vnet == Vnet::default();
            }
        }
        found.into()
    }

    fn check_the_ledger(&self) {
        let (book, held) = (&self.lane.book, self.lane.held() as u64);
        let ended = book.sent + book.delivered + book.dropped + held;
        assert_eq!(book.received + book.generated, ended, "the ledger: {held} held");
        assert_eq!(held, 0, "all was answered");
        let by_reason: u64 = book.drops.iter().flatten().flat_map(|drops| drops.iter()).sum();
        assert_eq!(by_reason, book.dropped, "every drop has a name");
    }
}

// ── What is sent ────────────────────────────────────────────────────────────────────────────────────────

/// Equal parts of any octets, the last perhaps shorter.
fn any_octets(draw: &mut Draw<'_>) -> Vec<Vec<u8>> {
    let size = 1 + draw.below(200);
    let count = draw.below(200);
    let octets = draw.take(count);
    if octets.is_empty() { vec![vec![]] } else { octets.chunks(size).map(<[u8]>::to_vec).collect() }
}

/// What stands before a frame: a VXLAN header of a network, one that is not right, or none.
fn header(draw: &mut Draw<'_>) -> Vec<u8> {
    let mut header = vec![8, 0, 0, 0, 0, 0, LAX as u8, 0];
    match draw.octet() {
        1 => header[6] = STRICT as u8,
        2 => header[draw.below(8)] = draw.octet(),
        3 => header.truncate(draw.below(8)),
        _ => {}
    }
    header
}

/// A frame of no protocol that is merged or repaired.
fn frame(nonce: u64) -> Vec<u8> {
    [&b"\x02\x0b\0\0\0\x02\x02\x0a\0\0\0\x02\x88\xb5"[..], &nonce.to_be_bytes()].concat()
}

/// The same as a packet between our subnets.
fn packet(nonce: u64) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 9, 253, 0, 0, 10, 9, 1, 1, 10, 9, 0, 1];
    let checksum = (0xFFFF - naive_sum(&packet)) as u16;
    put_word(&mut packet, 10, checksum);
    packet.extend(nonce.to_be_bytes());
    packet
}

/// Whether a question is about `frame` or `packet`, whose flows are always delivered.
fn is_ours(headers: &[u8]) -> bool {
    headers.starts_with(&frame(0)[..12]) || headers.starts_with(&ETHERNET)
}

fn is_one_hop_on(found: &[u8], sent: &[u8]) -> bool {
    found.len() == sent.len() && found.len() > 20 && found[20..] == sent[20..] && found[8] + 1 == sent[8]
}

/// One send, of datagrams that long each where that is shorter; of no more than the kernel cuts apart.
fn send(from: &UdpSocket, to: &UdpSocket, octets: &[u8], cut: usize, ecn: u8) {
    let address = Address::new(&[127, 0, 0, 1], to.local_addr().unwrap().port(), 0).unwrap();
    let is_several = 0 < cut && cut < octets.len();
    let segment = u16::try_from(cut.max(octets.len().div_ceil(63))).ok().filter(|_| is_several);
    let slices = [IoSlice::new(octets)];
    // Not taken is not sent: a super-datagram over 65 507 octets.
    let _ = send_many(from.as_raw_fd(), &address, &[Outgoing { slices: &slices, segment, ecn }]);
}

// ── Doubles ─────────────────────────────────────────────────────────────────────────────────────────────

/// A receiving socket as the engine is given one.
fn port() -> UdpSocket {
    static ONE: libc::c_int = 1;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for (level, option) in [(libc::SOL_UDP, libc::UDP_GRO), (libc::IPPROTO_IP, libc::IP_RECVTOS)] {
        // SAFETY: the option's value is an int.
        let result =
            unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const ONE).cast(), 4) };
        assert_eq!(result, 0);
    }
    socket
}

/// A device's double: it keeps the bounds of what is written, and never waits.
fn device() -> [OwnedFd; 2] {
    let mut ends: [RawFd; 2] = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the kernel writes two descriptors, which are nobody else's.
    unsafe {
        assert_eq!(libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()), 0);
        ends.map(|end| OwnedFd::from_raw_fd(end))
    }
}

fn read<'a>(device: &OwnedFd, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    let mut file = std::mem::ManuallyDrop::new(
        // SAFETY: the descriptor is open, and whoever owns it closes it.
        unsafe { std::fs::File::from_raw_fd(device.as_raw_fd()) },
    );
    let length = file.read(buffer).ok()?;
    Some(&buffer[..length])
}

/// The host cuts a super-frame where its header says; of a TUN the offsets count from the packet.
fn host_can_cut(vnet: Vnet, octets: &[u8], worn: usize) {
    let mut frame = ETHERNET[..worn].to_vec();
    frame.extend(octets);
    let vnet = if worn > 0 { vnet.with_ethernet() } else { vnet };
    assert!(locate_untrusted(&vnet, &frame).is_some(), "{vnet:?} {frame:02x?}");
}
