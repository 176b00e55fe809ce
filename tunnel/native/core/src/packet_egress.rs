//! Egress of bare packets: TUN → underlay, in Flannel's UDP format (`tunnel.packet_egress`).
//!
//! ```text
//! drain ─▶ header sound, TTL − 1 ─▶ destination's subnet: flow remembered? ─▶ `egress`
//!             └▶ ICMP error            └▶ ask
//! ```
//!
//! In the arena each packet stands behind its Ethernet header and the octets a VXLAN header would take:
//!
//! ```text
//! read      … │   12   │vnet 10      │packet
//! afterwards… │ 8 unused │Ethernet 14│packet        the packet alone is sent
//! ```

use std::mem;

use crate::bucket::Source;
use crate::ecn::inner_ecn_untrusted;
use crate::egress::{Datagram, FLOOD_FRAMES, FRAME_MAX, Mark, OCTETS_PER_TURN};
use crate::flows::{Owner, Verdict};
use crate::lane::{HEADER_LENGTH, Lane, Point, Work};
use crate::octets::ETHERNET_LENGTH;
use crate::packet::{ETHERNET, LEAD, forward_untrusted, is_ipv6_untrusted, source_of_untrusted};
use crate::reason::Reason;
use crate::sys;
use crate::upcalls::{About, Held, Notice};
use crate::vnet::{VNET_LENGTH, Vnet};

impl Lane {
    /// Reads a turn's packets from a network's device.
    ///
    /// HOT PATH: copies nothing but into segments, and builds nothing for a flow that is known.
    pub(crate) fn drain_packets(&mut self, network: u32, now: f64) -> Work {
        let Some(network_) = self.network_mut(network) else { return Work::default() };
        let (fd, reads) = (network_.device, network_.reads_of_turn(now));
        let mut arena = mem::take(&mut self.arena);
        let (mut at, mut packets, mut octets_read) = (0, 0, 0);
        while packets < reads && octets_read < OCTETS_PER_TURN {
            let start = at + LEAD - VNET_LENGTH;
            let octets = match sys::read(fd, &mut arena[start..start + VNET_LENGTH + FRAME_MAX]) {
                Ok(octets) => octets.saturating_sub(VNET_LENGTH),
                Err(error) => {
                    self.stop_if_gone(network, &error);
                    break;
                }
            };
            let mut vnet = [0; VNET_LENGTH];
            vnet.copy_from_slice(&arena[start..start + VNET_LENGTH]);
            arena[at + HEADER_LENGTH..at + LEAD].copy_from_slice(&ETHERNET);
            let datagram = Datagram { at, end: at + LEAD + octets };
            packets += 1;
            self.meet_packet(network, &mut arena, datagram, Vnet::parse(&vnet).with_ethernet(), now);
            octets_read += datagram.end - datagram.at; // with its lead: it is the arena's room that is counted
            at = if self.arena_waits { datagram.end } else { 0 };
        }
        self.flush_all(&arena);
        self.arena = arena;
        Work { frames: packets, is_flooded: packets >= FLOOD_FRAMES, ..Work::default() }
    }

    fn meet_packet(&mut self, network: u32, arena: &mut [u8], datagram: Datagram, vnet: Vnet, now: f64) {
        self.book.received += 1;
        let frame = &mut arena[datagram.frame()];
        if self.book.is_watched {
            self.book.show(Point::DeviceRead, Some(network), frame.to_vec(), None);
        }
        let length = match forward_untrusted(frame) {
            Ok(length) => length,
            Err(reason) => return self.refuse_packet(network, reason, frame, now),
        };
        let datagram = Datagram { end: datagram.at + HEADER_LENGTH + length, ..datagram };
        let frame = &arena[datagram.frame()];
        let Some(network_) = self.networks.get_mut(network as usize).and_then(Option::as_mut) else { return };
        let Some(key) = network_.subnets.as_ref().map(|subnets| subnets.egress_key(frame)) else { return };
        let Some(flow) = network_.egress.find(&key) else {
            let held = Held { frame: frame.to_vec(), vnet, segment_size: None };
            let source = Source::Address(source_of_untrusted(frame));
            let about = About { key: Some(key), source, is_discovery: false };
            return self.ask_about(Owner::Egress(network), network, about, held, now);
        };
        flow.frames += 1;
        flow.octets += (length - ETHERNET_LENGTH) as u64;
        flow.used_at = now;
        let verdict = flow.verdict;
        if let Verdict::Encapsulate(vtep) = verdict {
            // A VTEP of this format has one socket: there is no flow hash to choose it by.
            let mark = Mark { entropy: 0, ecn: inner_ecn_untrusted(frame) };
            self.offer(network, vtep, arena, datagram, vnet, mark);
        } else {
            self.carry_verdict(network, verdict, arena, datagram, vnet, now);
        }
    }

    /// A packet of our own making for that VTEP.
    pub fn send_own(&mut self, vtep: u32, packet: &[u8]) {
        let Some(network) = self.vtep(vtep).map(|vtep| vtep.network) else { return };
        self.book.generated += 1;
        let mut arena = mem::take(&mut self.arena);
        let datagram = Datagram { at: 0, end: LEAD + packet.len() };
        arena[HEADER_LENGTH..LEAD].copy_from_slice(&ETHERNET);
        arena[LEAD..datagram.end].copy_from_slice(packet);
        self.offer(network, vtep, &mut arena, datagram, Vnet::default(), Mark { entropy: 0, ecn: 0 });
        self.flush_all(&arena);
        self.arena = arena;
    }

    /// A packet from the device goes no further: counted, and its sender told where a router tells.
    pub(crate) fn refuse_packet(&mut self, network: u32, reason: Reason, frame: &[u8], now: f64) {
        let is_without_way = reason == Reason::INNER_MALFORMED && is_ipv6_untrusted(frame);
        let reason = if is_without_way { Reason::NO_ROUTE } else { reason };
        self.book.drop(reason, Some(network), frame, None, 1);
        let source = Source::Address(source_of_untrusted(frame));
        if matches!(reason, Reason::NO_ROUTE | Reason::TTL_EXPIRED)
            && self.meter.hold().errors.take(source, now)
        {
            self.notice(Notice::Refused { network, vtep: None, reason, frame: frame.to_vec() });
        }
    }

    /// The host has been given a packet of our own making by another way than its device, or could not be.
    pub fn answered(&mut self, network: u32, packet: &[u8], is_taken: bool) {
        let frame = [&ETHERNET[..], packet].concat();
        self.book.generated += 1;
        if !is_taken {
            return self.book.drop(Reason::DEVICE_FULL, Some(network), &frame, None, 1);
        }
        self.book.delivered += 1;
        if self.book.is_watched {
            self.book.show(Point::DeviceWrite, Some(network), frame, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::ARENA_OCTETS;
    use crate::lane::Device;
    use crate::packet::Subnets;
    use crate::sys::Address;
    use crate::testing::{Made, Octets, lane_of, remember};
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixDatagram;

    /// A turn's octets are the arena's, each packet's lead among them: with packets that all wait and come to a
    /// little less than a turn by themselves, one more would no longer have its room.
    #[test]
    fn a_turn_of_long_packets_that_wait_ends_while_the_arena_has_room() {
        const PACKETS: usize = 5;
        const LENGTH: usize = 26_200; // five are a turn's octets with their leads, and are not without
        const { assert!(PACKETS * LENGTH < OCTETS_PER_TURN && PACKETS * (LENGTH + LEAD) > OCTETS_PER_TURN) };
        let (host, device) = UnixDatagram::pair().unwrap();
        let room: libc::c_int = ARENA_OCTETS as libc::c_int;
        // SAFETY: the option's value is an int.
        let result = unsafe {
            libc::setsockopt(host.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, (&raw const room).cast(), 4)
        };
        assert_eq!(result, 0);
        device.set_nonblocking(true).unwrap();
        let (sender, receiver) =
            (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        receiver.set_nonblocking(true).unwrap();
        let (mut lane, network) = lane_of(None);
        let given =
            Device { fd: device.as_raw_fd(), is_heard: false, overlay_mtu: 65_000, merges_udp: false };
        lane.use_device(network, given).unwrap();
        let everywhere = [0; 5];
        lane.program_subnets(network, vec![everywhere]);
        let underlay = lane.add_underlay(vec![sender.as_raw_fd()], true);
        let address = Address::new(&[127, 0, 0, 1], receiver.local_addr().unwrap().port(), 0).unwrap();
        let vtep = lane.add_vtep(network, address);
        lane.route_vtep(vtep, address, Some(underlay), 65_000);

        let payload = Octets::new(3).take(LENGTH - 28);
        let mut packet = Made::udp(payload).build().split_off(ETHERNET_LENGTH);
        assert_eq!(packet.len(), LENGTH);
        let key = Subnets::new([everywhere]).egress_key(&[&ETHERNET[..], &packet].concat());
        remember(&mut lane, network, key, Verdict::Encapsulate(vtep));
        for _ in 0..=PACKETS {
            host.send(&[&Vnet::default().build()[..], &packet].concat()).unwrap();
        }
        lane.network_mut(network).unwrap().drained_at = 1.0;
        lane.drain_device(network, 1.0);
        assert_eq!(lane.book.sent, PACKETS as u64);
        lane.drain_device(network, 1.0);
        assert_eq!(lane.book.sent, PACKETS as u64 + 1);

        let mut arrived = vec![0; LENGTH + 1];
        assert_eq!(receiver.recv(&mut arrived).unwrap(), LENGTH);
        let mut frame = [&ETHERNET[..], &packet].concat();
        forward_untrusted(&mut frame).unwrap();
        packet = frame.split_off(ETHERNET_LENGTH);
        assert_eq!(arrived[..LENGTH], packet);
    }
}
