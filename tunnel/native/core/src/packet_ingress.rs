//! Ingress of bare packets: underlay → TUN, from Flannel's UDP format (`tunnel.packet_ingress`).
//!
//! ```text
//! drain ─▶ packets of one read ─▶ VTEP ─▶ header sound, TTL − 1 ─▶ both subnets: flow remembered?
//!                                            └▶ ICMP error            └▶ ask
//!                                 merge, repair, write (`ingress`) ◀─┘
//! ```
//!
//! What one read gave is taken apart, each packet behind an Ethernet header of its own, which costs a copy.

use std::mem;

use crate::bucket::Source;
use crate::ecn::{CE, mark_congested_untrusted};
use crate::flows::{Owner, Verdict};
use crate::ingress::delivered;
use crate::lane::{Lane, Point};
use crate::octets::ETHERNET_LENGTH;
use crate::packet::{ETHERNET, forward_untrusted};
use crate::reason::Reason;
use crate::sys::Arrived;
use crate::upcalls::{About, Held, Notice};
use crate::vnet::Vnet;

impl Lane {
    /// The packets of one read, all from one sender.
    pub(crate) fn receive_packets(&mut self, network: u32, octets: &[u8], read: &Arrived, now: f64) {
        let mut apart = mem::take(&mut self.apart);
        apart.clear();
        let stride = read.stride.filter(|stride| *stride < octets.len()).unwrap_or(octets.len()).max(1);
        for packet in octets.chunks(stride) {
            apart.extend_from_slice(&ETHERNET);
            apart.extend_from_slice(packet);
        }
        if octets.is_empty() {
            apart.extend_from_slice(&ETHERNET); // an empty datagram is one, too
        }
        self.receive_apart(network, &mut apart, ETHERNET_LENGTH + stride, read, now);
        self.apart = apart;
    }

    fn receive_apart(&mut self, network: u32, apart: &mut [u8], stride: usize, read: &Arrived, now: f64) {
        let Some(network_) = self.network(network) else { return };
        let vtep = network_.hosts.get(&read.host).copied().filter(|vtep| self.vtep(*vtep).is_some());
        let mut lengths = vec![];
        for frame in apart.chunks_mut(stride) {
            self.book.received += 1;
            if self.book.is_watched {
                self.book.show(Point::UnderlayReceive, Some(network), frame.to_vec(), None);
            }
            let Some(vtep) = vtep else {
                self.book.drop(Reason::UNKNOWN_VTEP, Some(network), frame, None, 1);
                continue;
            };
            lengths.push(self.accept(network, vtep, frame, read.ecn == CE, now).unwrap_or(0));
        }
        let Some(vtep) = vtep else { return };
        let frames = apart.chunks(stride).zip(lengths).filter(|(_, length)| *length > 0);
        let ready: Vec<&[u8]> = frames.map(|(frame, length)| &frame[..length]).collect();
        match ready[..] {
            [] => {}
            [frame] => self.carry_one(network, vtep, Verdict::Deliver, frame, None),
            _ => self.carry_together((network, vtep, Verdict::Deliver), &ready),
        }
    }

    /// HOT PATH: the length of one packet that may be delivered, else None: it waits, or is counted.
    fn accept(
        &mut self,
        network: u32,
        vtep: u32,
        frame: &mut [u8],
        is_marked: bool,
        now: f64,
    ) -> Option<usize> {
        let forwarded = forward_untrusted(frame);
        let Lane { networks, vteps, book, .. } = self;
        let vtep_ = vteps.get_mut(vtep as usize)?.as_mut()?;
        let source = Source::Vtep(vtep_.host);
        let length = match forwarded {
            Ok(length) => length,
            Err(reason) => {
                book.drop(reason, Some(network), frame, Some(&mut vtep_.drops), 1);
                if reason == Reason::TTL_EXPIRED && self.meter.hold().errors.take(source, now) {
                    let frame = frame.to_vec();
                    self.notice(Notice::Refused { network, vtep: Some(vtep), reason, frame });
                }
                return None;
            }
        };
        let frame = &mut frame[..length];
        if is_marked && let Err(reason) = mark_congested_untrusted(frame) {
            book.drop(reason, Some(network), frame, Some(&mut vtep_.drops), 1); // RFC 6040 section 4.2
            return None;
        }
        vtep_.traffic.received_frames += 1;
        vtep_.traffic.received_octets += (length - ETHERNET_LENGTH) as u64;
        let key = networks.get(network as usize)?.as_ref()?.subnets.as_ref()?.ingress_key(frame);
        let Some(flow) = vtep_.ingress.find(&key) else {
            let held = Held { frame: frame.to_vec(), vnet: Vnet::default(), segment_size: None };
            let about = About { key: Some(key), source, is_discovery: false };
            self.ask_about(Owner::Ingress(vtep), network, about, held, now);
            return None;
        };
        flow.frames += 1;
        flow.octets += (length - ETHERNET_LENGTH) as u64;
        flow.used_at = now;
        match delivered(flow.verdict) {
            Ok(()) => Some(length),
            Err(reason) => {
                book.drop(reason, Some(network), frame, Some(&mut vtep_.drops), 1);
                None
            }
        }
    }
}
