//! Any octets at every `_untrusted` function of a frame by itself: an answer, and those that belong together agree.

#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_core::discovery::may_be_discovery_untrusted;
use weft_core::ecn::{CE, inner_ecn_untrusted, mark_congested_untrusted};
use weft_core::entropy::flow_hash_untrusted;
use weft_core::packet::{forward_untrusted, is_ipv6_untrusted, source_of_untrusted};
use weft_core::repair::{SEGMENTS_MAX, Way, is_super_frame_untrusted, repair_untrusted, syn_mss_untrusted};
use weft_core::split::{Plan, locate_untrusted, plan_untrusted};
use weft_core::vnet::{GSO_NONE, VNET_LENGTH, Vnet};
use weft_fuzz::draw::Draw;
use weft_fuzz::judge::{cut, naive_sum};

const PATH_MAX: usize = 1480;

fuzz_target!(|octets: &[u8]| {
    let mut draw = Draw::new(octets);
    let header: [u8; VNET_LENGTH] = draw.take(VNET_LENGTH).try_into().unwrap_or_default();
    let way = Way {
        overlay_mtu: draw.one_of(&[1450, 100, 576, 9000]),
        segment_size: draw.one_of(&[None, Some(1), Some(500), Some(1398)]),
        mss: draw.one_of(&[None, Some(1), Some(536), Some(0xFFFF)]),
    };
    let mut frame = if draw.octet() & 1 == 0 { draw.flow(5000).build() } else { vec![] };
    for _ in 0..draw.below(6) {
        draw.damage(&mut frame);
    }
    frame.extend(draw.take(1 << 17));
    looks(&frame);
    marks(&frame);
    forwards(&frame);
    // Only what fills its datagram comes with a segment size.
    let segment_size = way.segment_size.filter(|_| is_super_frame_untrusted(&frame));
    repairs(&frame, Way { segment_size, ..way });
    cuts(&Vnet::parse(&header), &frame);
});

fn looks(frame: &[u8]) {
    let (hash, is_discovery) = (flow_hash_untrusted(frame), may_be_discovery_untrusted(frame));
    let mut longer = frame.to_vec();
    longer.extend([0xFF; 1]);
    assert!(!is_discovery || may_be_discovery_untrusted(&longer), "more octets, less discovery");
    if frame.len() > 1000 {
        assert_eq!(hash, flow_hash_untrusted(&longer), "payload is no part of a flow's hash");
    }
    is_super_frame_untrusted(frame);
    assert!(syn_mss_untrusted(frame).is_none() || frame.len() > 54, "an MSS without a TCP header");
    assert!(!is_ipv6_untrusted(frame) || frame[14] >> 4 == 6);
    let source = source_of_untrusted(frame);
    assert!(frame.len() < 30 || source == frame[26..30]);
}

fn marks(frame: &[u8]) {
    let mut marked = frame.to_vec();
    match mark_congested_untrusted(&mut marked) {
        Ok(()) => assert_eq!(inner_ecn_untrusted(&marked), CE),
        Err(_) => assert!(marked == frame && inner_ecn_untrusted(frame) == 0),
    }
}

fn forwards(frame: &[u8]) {
    let mut forwarded = frame.to_vec();
    match forward_untrusted(&mut forwarded) {
        Ok(length) => {
            let changed: Vec<usize> = (0..frame.len()).filter(|at| frame[*at] != forwarded[*at]).collect();
            assert!(length <= frame.len() && changed.iter().all(|at| [22, 24, 25].contains(at)));
        }
        Err(_) => assert_eq!(forwarded, frame, "refused and changed"),
    }
}

/// What the host is asked to do with a frame, it can do; split stands for the host here.
fn repairs(frame: &[u8], way: Way) {
    let Ok(vnet) = repair_untrusted(frame, way) else { return };
    if vnet == Vnet::default() {
        return;
    }
    if vnet.gso_type != GSO_NONE {
        let segments = cut(&vnet, frame);
        assert!(segments.len() > 1, "one is no super-frame");
        // TCP is bounded by its size, unless its sender said the size.
        assert!(segments.len() <= SEGMENTS_MAX, "{} segments", segments.len());
        return;
    }
    let mut finished = frame.to_vec();
    let plan = plan_untrusted(&vnet, &mut finished, 0, usize::MAX);
    assert!(matches!(plan, Ok(Plan::Whole)), "{vnet:?} {frame:02x?}");
    only_the_checksum_changed(&vnet, frame, &finished);
}

/// A header any device could have given, before a frame from whoever lives behind it.
fn cuts(vnet: &Vnet, frame: &[u8]) {
    let mut planned = frame.to_vec();
    match plan_untrusted(vnet, &mut planned, 8, PATH_MAX) {
        Ok(Plan::Whole) => only_the_checksum_changed(vnet, frame, &planned),
        Ok(Plan::Segments(plan)) => {
            let segments = cut(vnet, frame);
            let own = plan.payload_at;
            assert!(planned == frame && locate_untrusted(vnet, frame).is_some());
            assert!(segments.iter().all(|segment| 8 + segment.len() <= PATH_MAX && segment.len() >= own));
            let payload: Vec<u8> = segments.iter().flat_map(|segment| segment[own..].to_vec()).collect();
            assert_eq!(payload, frame[own..], "the payload is another");
        }
        Err(_) => assert_eq!(planned, frame, "refused and changed"),
    }
}

fn only_the_checksum_changed(vnet: &Vnet, before: &[u8], after: &[u8]) {
    let start = usize::from(vnet.checksum_start);
    let at = start + usize::from(vnet.checksum_offset);
    if before == after {
        return;
    }
    assert_eq!((&before[..at], &before[at + 2..]), (&after[..at], &after[at + 2..]));
    // With the seed for the pseudo-header, the whole sums to nothing.
    let seed = u64::from(u16::from_be_bytes([before[at], before[at + 1]]));
    let is_even = vnet.checksum_offset.is_multiple_of(2);
    assert!(!is_even || (naive_sum(&after[start..]) + seed) % 0xFFFF == 0);
}
