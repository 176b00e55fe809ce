//! Octets by the handful for tests and fuzz targets: a small generator with a seed, frames of every kind, a
//! lane to put them through, and a core to run on.

use std::sync::Arc;

use crate::bucket::Meter;
use crate::checksum::{negative, word_sum};
use crate::flows::{Key, Remembered, Verdict};
use crate::lane::{Bounds, Lane, NetworkSettings};
use crate::limits::{NetworkLimits, Shared};
use crate::octets::{NO_OPTIONS, TCP, UDP, put_long, put_word};
use crate::sys::{Bell, Waiter};
use crate::vnet::{GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, Vnet};

/// Pseudo-random octets from a seed (xorshift64*).
pub struct Octets(u64);

impl Octets {
    /// The same octets for the same seed.
    pub fn new(seed: u64) -> Octets {
        Octets(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.number() >> 16) as usize % end
    }

    /// So many octets.
    pub fn take(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| (self.number() >> 32) as u8).collect()
    }
}

/// How a frame of a test is made.
#[derive(Clone, Debug)]
pub struct Made {
    /// 4 or 6.
    pub version: u8,
    /// TCP or UDP.
    pub protocol: u8,
    /// VLAN tags.
    pub tags: usize,
    /// Octets of TCP options, a multiple of four.
    pub options: usize,
    /// TCP's flags.
    pub flags: u8,
    /// TCP's sequence number.
    pub sequence: u32,
    /// IPv4's identification.
    pub identification: u16,
    /// Behind the headers.
    pub payload: Vec<u8>,
    /// Whether the checksum is only the pseudo-header's sum.
    pub is_unfinished: bool,
}

impl Made {
    /// A segment of a TCP flow over IPv4.
    pub fn tcp(sequence: u32, payload: Vec<u8>) -> Made {
        Made {
            version: 4,
            protocol: TCP,
            tags: 0,
            options: 12,
            flags: 0x10,
            sequence,
            identification: 1,
            payload,
            is_unfinished: false,
        }
    }

    /// A datagram over IPv4.
    pub fn udp(payload: Vec<u8>) -> Made {
        Made { protocol: UDP, ..Made::tcp(0, payload) }
    }

    /// Where the IP header begins.
    pub fn network_at(&self) -> usize {
        14 + 4 * self.tags
    }

    /// Where the transport header begins.
    pub fn l4_at(&self) -> usize {
        self.network_at() + if self.version == 4 { 20 } else { 40 }
    }

    /// Where the payload begins.
    pub fn payload_at(&self) -> usize {
        self.l4_at() + if self.protocol == TCP { 20 + self.options } else { 8 }
    }

    /// What its sender leaves to be cut to that size says so with this header.
    pub fn vnet(&self, size: usize) -> Vnet {
        Vnet {
            flags: NEEDS_CSUM,
            gso_type: match (self.protocol, self.version) {
                (UDP, _) => GSO_UDP_L4,
                (_, 4) => GSO_TCPV4,
                _ => GSO_TCPV6,
            },
            header_length: self.payload_at() as u16,
            gso_size: size as u16,
            checksum_start: self.l4_at() as u16,
            checksum_offset: if self.protocol == TCP { 16 } else { 6 },
        }
    }

    /// The frames its sender makes of the payload where nobody cuts for it, flags as they are.
    pub fn segments(&self, size: usize) -> impl Iterator<Item = Vec<u8>> {
        self.payload.chunks(size).enumerate().map(move |(index, piece)| {
            Made {
                payload: piece.to_vec(),
                sequence: self.sequence.wrapping_add((index * size) as u32),
                identification: self.identification.wrapping_add(index as u16),
                ..self.clone()
            }
            .build()
        })
    }

    /// The frame, every length and checksum as it must be.
    pub fn build(&self) -> Vec<u8> {
        let (network_at, l4_at, payload_at) = (self.network_at(), self.l4_at(), self.payload_at());
        let mut frame = vec![0; payload_at];
        frame[..12].copy_from_slice(b"\x02\x0b\0\0\0\x01\x02\x0a\0\0\0\x01");
        for tag in 0..self.tags {
            put_long(&mut frame, 12 + 4 * tag, 0x8100_0005);
        }
        frame.extend(&self.payload);
        let l4_length = frame.len() - l4_at;
        if self.version == 4 {
            put_word(&mut frame, network_at - 2, 0x0800);
            frame[network_at] = NO_OPTIONS;
            put_word(&mut frame, network_at + 2, (20 + l4_length) as u16);
            put_word(&mut frame, network_at + 4, self.identification);
            frame[network_at + 6] = 0x40;
            frame[network_at + 8] = 64;
            frame[network_at + 9] = self.protocol;
            frame[network_at + 12..network_at + 20].copy_from_slice(&[10, 9, 0, 1, 10, 9, 0, 2]);
            let sum = word_sum(&frame[network_at..l4_at]) as i64;
            put_word(&mut frame, network_at + 10, negative(sum));
        } else {
            put_word(&mut frame, network_at - 2, 0x86DD);
            frame[network_at] = 0x60;
            put_word(&mut frame, network_at + 4, l4_length as u16);
            frame[network_at + 6] = self.protocol;
            frame[network_at + 7] = 64;
            frame[network_at + 8] = 0xFD;
            frame[network_at + 23] = 1;
            frame[network_at + 24] = 0xFD;
            frame[network_at + 39] = 2;
        }
        put_long(&mut frame, l4_at, 0x1234_5678);
        let checksum_at = if self.protocol == TCP {
            put_long(&mut frame, l4_at + 4, self.sequence);
            put_long(&mut frame, l4_at + 8, 77);
            frame[l4_at + 12] = (((20 + self.options) / 4) << 4) as u8;
            frame[l4_at + 13] = self.flags;
            put_word(&mut frame, l4_at + 14, 500);
            frame[l4_at + 20..payload_at].fill(1);
            l4_at + 16
        } else {
            put_word(&mut frame, l4_at + 4, l4_length as u16);
            l4_at + 6
        };
        let addresses = if self.version == 4 { network_at + 12 } else { network_at + 8 };
        let pseudo = word_sum(&frame[addresses..l4_at]) + u64::from(self.protocol) + l4_length as u64;
        let field = if self.is_unfinished {
            crate::checksum::folded(pseudo)
        } else {
            match negative((pseudo + word_sum(&frame[l4_at..])) as i64) {
                0 => 0xFFFF,
                field => field,
            }
        };
        put_word(&mut frame, checksum_at, field);
        frame
    }
}

/// A lane, and its one network: a bridge with that VNI, or bare packets.
///
/// # Panics
///
/// Where the kernel has no descriptor left.
pub fn lane_of(vni: Option<u32>) -> (Lane, u32) {
    let (waiter, bell) = (Arc::new(Waiter::new().unwrap()), Arc::new(Bell::new().unwrap()));
    let bounds = Bounds { send_segments: 63, write_segments: 64 };
    let mut lane = Lane::new(waiter, bell, Shared::new(Meter::new(0.0)), bounds);
    let settings = NetworkSettings { vni, is_strict: false, suppresses: false, repairs: true };
    let network = lane.add_network(settings, NetworkLimits::new(0.0), 0.0);
    (lane, network)
}

/// Has a network of the lane remember the verdict for what its device gives.
///
/// # Panics
///
/// Where the lane has no such network.
pub fn remember(lane: &mut Lane, network: u32, key: Key, verdict: Verdict) {
    let remembered = Remembered { key, verdict, places: &[], expires_at: f64::INFINITY, now: 0.0 };
    let Lane { networks, dependents, .. } = lane;
    networks[network as usize].as_mut().unwrap().egress.activate(dependents, remembered);
}

/// A core that this process may run on.
///
/// # Panics
///
/// Where /proc does not tell.
pub fn usable_core() -> usize {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let usable = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:\t")).unwrap();
    usable.split(['-', ',']).next().unwrap().parse().unwrap()
}
