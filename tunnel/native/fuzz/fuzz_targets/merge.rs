//! Frames at merge: each is told once, in its flow's order, and what was merged can be cut into what it was.

#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_core::merge::{MergeLimits, merge_untrusted};
use weft_fuzz::draw::Draw;
use weft_fuzz::judge::Told;

const FRAMES_MAX: usize = 32;

fuzz_target!(|octets: &[u8]| {
    let mut draw = Draw::new(octets);
    let limits = MergeLimits {
        overlay_mtu: draw.one_of(&[1450, 100, 9000]),
        udp: draw.octet() & 1 == 0,
        mss: None,
        segments_max: draw.one_of(&[64, 1, 2, 5]),
    };
    let frames = frames(&mut draw);
    let views: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
    let mut told = Told::default();
    merge_untrusted(&views, limits, &mut vec![], &mut told);
    told.account_for(&views);
});

/// Flows between each other, some of their frames damaged, others of any octets.
fn frames(draw: &mut Draw<'_>) -> Vec<Vec<u8>> {
    let mut frames = vec![];
    while !draw.is_over() && frames.len() < FRAMES_MAX {
        let made = draw.flow(2000);
        let size = 1 + draw.below(500);
        for mut frame in made.segments(size).take(FRAMES_MAX - frames.len()) {
            match draw.octet() & 15 {
                1 => draw.damage(&mut frame),
                2 => frames.push(draw.take(100).to_vec()),
                3 => frame = draw.take(100).to_vec(),
                _ => {}
            }
            let place = frames.len() - draw.octet().saturating_sub(252).min(frames.len() as u8) as usize;
            frames.insert(place, frame);
        }
    }
    frames
}
