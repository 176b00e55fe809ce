//! Sums: what the vectors add is what the naive way adds, and what changes a header keeps its sum.

#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_core::checksum::{WORD_MAX, folded, negative, word_sum};
use weft_core::ecn::mark_congested_untrusted;
use weft_core::octets::put_word;
use weft_core::packet::{ETHERNET, forward_untrusted};
use weft_fuzz::draw::Draw;
use weft_fuzz::judge::naive_sum;

const HEADER_AT: usize = ETHERNET.len();
const HEADER_LENGTH: usize = 20;

fuzz_target!(|octets: &[u8]| {
    let mut draw = Draw::new(octets);
    let how = draw.octet();
    let longer = octets.repeat([1, 1, 1, 1, 1, 3, 17, 200][usize::from(how & 7)]);
    let longer = &longer[..longer.len().min(65_536)];
    for start in 0..longer.len().min(8) {
        sums_as_the_naive_way(&longer[start..], usize::from(how));
    }
    if octets.len() >= HEADER_LENGTH {
        keeps_the_sum_of_a_header(octets);
    }
});

fn sums_as_the_naive_way(octets: &[u8], half: usize) {
    let (sum, naive) = (word_sum(octets), naive_sum(octets));
    assert!(sum <= WORD_MAX && sum % WORD_MAX == naive, "{sum} is not {naive} of {} octets", octets.len());
    assert_eq!(sum == 0, octets.iter().all(|octet| *octet == 0), "only nothing sums to nothing");
    let (field, folded) = (u64::from(negative(sum as i64)), u64::from(folded(sum)));
    assert!(field < WORD_MAX && (sum + field) % WORD_MAX == 0);
    assert!(folded > 0 && folded % WORD_MAX == naive);
    let (first, second) = octets.split_at((2 * half).min(octets.len() & !1));
    assert_eq!((word_sum(first) + word_sum(second)) % WORD_MAX, naive, "two halves sum as the whole");
}

/// RFC 1624: the checksum is brought up to date without summing all of it again, even a wrong one.
fn keeps_the_sum_of_a_header(octets: &[u8]) {
    let mut frame = [&ETHERNET[..], octets].concat();
    frame[HEADER_AT] = 0x45;
    let header = |frame: &[u8]| naive_sum(&frame[HEADER_AT..HEADER_AT + HEADER_LENGTH]);
    let mut marked = frame.clone();
    if mark_congested_untrusted(&mut marked).is_ok() {
        assert_eq!(header(&marked), header(&frame));
        assert_eq!(marked[HEADER_AT + 1], frame[HEADER_AT + 1] | 3);
    }
    put_word(&mut frame, HEADER_AT + 2, octets.len().min(0xFFFF) as u16);
    put_word(&mut frame, HEADER_AT + 10, 0);
    let checksum = (WORD_MAX - header(&frame)) as u16;
    put_word(&mut frame, HEADER_AT + 10, checksum);
    let before = frame.clone();
    if forward_untrusted(&mut frame).is_ok() {
        assert_eq!((header(&frame), frame[HEADER_AT + 8]), (0, before[HEADER_AT + 8] - 1));
    } else {
        assert_eq!(frame, before, "refused and changed");
        assert!(frame[HEADER_AT + 8] <= 1, "a sound packet is refused");
    }
}
