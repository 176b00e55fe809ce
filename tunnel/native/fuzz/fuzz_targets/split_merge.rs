//! A super-frame cut and merged again is what it was; its segments are what the sender would have made one by one.

#![no_main]

use std::iter;

use libfuzzer_sys::fuzz_target;
use weft_core::merge::{MergeLimits, merge_untrusted};
use weft_core::octets::{ACK, PSH, UDP};
use weft_core::testing::Made;
use weft_fuzz::draw::Draw;
use weft_fuzz::judge::{Places, Told, cut};

const PACKET_MAX: usize = 65_535;
/// Far more than a merge takes; what is above is only slow.
const SEGMENTS_MAX: usize = 200;
/// Shorter ones start no run: they are taken for acknowledgments.
const SHORT: usize = 66;

fuzz_target!(|octets: &[u8]| {
    let mut draw = Draw::new(octets);
    let payload_max = draw.one_of(&[100, 300, 1000, 3000, 3000, 3000, 20_000, 65_300]);
    let made = Made { is_unfinished: true, ..draw.flow(payload_max) };
    let size = 1 + draw.below(1500);
    let is_too_long = made.payload_at() - made.network_at() + made.payload.len() > PACKET_MAX;
    if is_too_long || made.payload.len() > size * SEGMENTS_MAX {
        return;
    }
    let (vnet, frame) = (made.vnet(size), made.build());
    let segments = cut(&vnet, &frame);
    check_segments(&made, size, &segments);
    let views: Vec<&[u8]> = segments.iter().map(Vec::as_slice).collect();
    let segments_max = views.len().max(2);
    let limits = MergeLimits { overlay_mtu: PACKET_MAX, udp: true, mss: None, segments_max };
    let mut told = Told::default();
    merge_untrusted(&views, limits, &mut vec![], &mut told);
    told.account_for(&views);
    if is_one_run(&made, size, &segments) {
        assert_eq!(told.0, [(vnet, frame, segments.len())], "the super-frame is back");
    }
});

/// Each is what its sender would have sent, by the maker of test frames and by the naive judge.
fn check_segments(made: &Made, size: usize, segments: &[Vec<u8>]) {
    let last = segments.len() - 1;
    assert_eq!(segments.len(), made.payload.len().div_ceil(size).max(1));
    let pieces = made.payload.chunks(size).chain(iter::repeat(&[][..]));
    for ((index, segment), piece) in segments.iter().enumerate().zip(pieces) {
        let mut flags = made.flags;
        if index > 0 {
            flags &= 0x7F; // CWR (RFC 3168 section 6.1.2)
        }
        if index < last {
            flags &= 0xF6; // FIN and PSH
        }
        let mut expected = Made {
            payload: piece.to_vec(),
            flags,
            sequence: made.sequence.wrapping_add((index * size) as u32),
            identification: made.identification.wrapping_add(index as u16),
            is_unfinished: false,
            ..made.clone()
        }
        .build();
        let places = Places::of(segment);
        assert!(places.are_right(segment), "segment {index}: {segment:02x?}");
        let checksum = places.checksum_at..places.checksum_at + 2;
        expected[checksum.clone()].copy_from_slice(&segment[checksum]);
        assert_eq!(*segment, expected, "segment {index}");
    }
}

/// Whether nothing is in the way of merging all of them.
fn is_one_run(made: &Made, size: usize, segments: &[Vec<u8>]) -> bool {
    let is_plain = made.protocol == UDP || made.flags & !PSH == ACK;
    let is_within = made.payload_at() - made.network_at() + segments.len() * size <= PACKET_MAX;
    // A right checksum that happens to look unfinished may end a run.
    let is_clear = segments.iter().all(|segment| !Places::of(segment).is_unfinished(segment));
    segments.len() > 1 && segments[0].len() > SHORT && is_plain && is_within && is_clear
}
