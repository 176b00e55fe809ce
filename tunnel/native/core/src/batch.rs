//! Batches: datagrams for one VTEP and source port, gathered until they leave.
//!
//! A `Door` holds messages; a message is one send of datagrams that all have one size but the last, which may be
//! shorter and then is the last, and one ECN field.  Octets stay where they lie: what is kept are pieces of the
//! buffers, neighbours joined, so that frames read one behind the other leave as one slice.

use std::io::IoSlice;

/// What one UDP datagram carries over IPv4: 65535 less 20 and 8.
pub const SEND_MAX: usize = 65_507;

/// In which buffer a piece lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// What was read from the device.
    Arena,
    /// Segments made here.
    Scratch,
}

/// Octets somewhere in one of the two buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which buffer.
    pub place: Place,
    /// Where in it.
    pub at: u32,
    /// How many octets.
    pub length: u32,
}

/// The two buffers that pieces lie in.
#[derive(Clone, Copy)]
pub struct Buffers<'a> {
    /// What was read from the device.
    pub arena: &'a [u8],
    /// Segments made here.
    pub scratch: &'a [u8],
}

impl<'a> Buffers<'a> {
    fn octets(&self, piece: &Piece) -> &'a [u8] {
        let buffer = match piece.place {
            Place::Arena => self.arena,
            Place::Scratch => self.scratch,
        };
        &buffer[piece.at as usize..(piece.at + piece.length) as usize]
    }
}

/// One send.
#[derive(Clone, Debug, Default)]
pub struct Message {
    pieces: Vec<Piece>,
    /// Octets of each datagram but perhaps the last.
    pub segment_size: usize,
    /// Datagrams.
    pub count: usize,
    /// Octets of all.
    pub octets: usize,
    /// The ECN field of all their outer headers.
    pub ecn: u8,
    is_closed: bool,
}

/// How messages may be filled.
#[derive(Clone, Copy, Debug)]
pub struct Fill {
    /// Whether a message may carry several datagrams at all.
    pub has_gso: bool,
    /// How many at most.
    pub segments_max: usize,
}

impl Message {
    fn takes(&self, octets: usize, ecn: u8, fill: Fill) -> bool {
        fill.has_gso
            && !self.is_closed
            && ecn == self.ecn
            && octets <= self.segment_size
            && self.count < fill.segments_max
            && self.octets + octets <= SEND_MAX
    }

    fn add(&mut self, datagram: Piece) {
        let octets = datagram.length as usize;
        if self.count == 0 {
            self.segment_size = octets;
        }
        self.is_closed |= octets < self.segment_size;
        match self.pieces.last_mut() {
            Some(last) if last.place == datagram.place && last.at + last.length == datagram.at => {
                last.length += datagram.length
            }
            _ => self.pieces.push(datagram),
        }
        self.count += 1;
        self.octets += octets;
    }

    /// What a send gathers.
    pub fn slices<'a>(&self, buffers: Buffers<'a>, slices: &mut Vec<IoSlice<'a>>) {
        slices.extend(
            self.pieces
                .iter()
                .filter(|piece| piece.length > 0)
                .map(|piece| IoSlice::new(buffers.octets(piece))),
        );
    }

    /// A copy of each datagram, for whoever must see it whole.
    pub fn datagrams(&self, buffers: Buffers<'_>) -> Vec<Vec<u8>> {
        let whole: Vec<u8> = self.pieces.iter().flat_map(|piece| buffers.octets(piece)).copied().collect();
        whole.chunks(self.segment_size.max(1)).map(<[u8]>::to_vec).collect()
    }
}

/// What waits to be sent to one VTEP by one sender of the pool.
#[derive(Default)]
pub struct Door {
    messages: Vec<Message>,
    used: usize,
}

impl Door {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// One more datagram.  HOT PATH: once per frame or segment; builds nothing once it has grown.
    pub fn add(&mut self, datagram: Piece, ecn: u8, fill: Fill) {
        let octets = datagram.length as usize;
        let is_taken = self.used > 0 && self.messages[self.used - 1].takes(octets, ecn, fill);
        if !is_taken {
            if self.used == self.messages.len() {
                self.messages.push(Message::default());
            }
            let fresh = &mut self.messages[self.used];
            fresh.pieces.clear();
            (fresh.segment_size, fresh.count, fresh.octets, fresh.ecn, fresh.is_closed) =
                (0, 0, 0, ecn, false);
            self.used += 1;
        }
        self.messages[self.used - 1].add(datagram);
    }

    /// How many messages wait.
    pub fn len(&self) -> usize {
        self.used
    }

    /// The messages that wait, in order.
    pub fn messages(&self) -> &[Message] {
        &self.messages[..self.used]
    }

    /// The first `count` messages are gone.
    pub fn remove(&mut self, count: usize) {
        self.messages[..self.used].rotate_left(count);
        self.used -= count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILL: Fill = Fill { has_gso: true, segments_max: 4 };

    fn piece(at: u32, length: u32) -> Piece {
        Piece { place: Place::Arena, at, length }
    }

    #[test]
    fn equal_datagrams_share_a_message_and_a_shorter_one_ends_it() {
        let arena: Vec<u8> = (0..=255).collect();
        let buffers = Buffers { arena: &arena, scratch: &[] };
        let mut door = Door::default();
        for (at, length) in [(0, 20), (20, 20), (40, 10), (50, 20), (70, 30)] {
            door.add(piece(at, length), 0, FILL);
        }
        let counts: Vec<usize> = door.messages().iter().map(|message| message.count).collect();
        assert_eq!(counts, [3, 1, 1]);
        assert_eq!(door.messages()[0].datagrams(buffers), [&arena[..20], &arena[20..40], &arena[40..50]]);
        let mut slices = vec![];
        door.messages()[0].slices(buffers, &mut slices);
        assert_eq!(slices.len(), 1, "neighbours are one slice");
        door.remove(2);
        assert_eq!(door.messages()[0].datagrams(buffers), [&arena[70..100]]);
    }

    #[test]
    fn neighbours_by_number_in_two_buffers_are_none() {
        let (arena, scratch) = ([1; 40], [2; 60]);
        let mut door = Door::default();
        for place in [Place::Arena, Place::Scratch] {
            let at = if place == Place::Arena { 0 } else { 20 };
            door.add(Piece { place, at, length: 20 }, 0, FILL);
        }
        let datagrams = door.messages()[0].datagrams(Buffers { arena: &arena, scratch: &scratch });
        assert_eq!(datagrams, [[1; 20], [2; 20]]);
    }

    #[test]
    fn a_message_is_bounded_in_datagrams_octets_and_marks() {
        let mut door = Door::default();
        for ecn in [0, 0, 0, 0, 0, 1, 0] {
            door.add(piece(0, 20), ecn, FILL);
        }
        let counts: Vec<usize> = door.messages().iter().map(|message| message.count).collect();
        assert_eq!(counts, [4, 1, 1, 1]);
        let mut door = Door::default();
        for _ in 0..3 {
            door.add(piece(0, 30_000), 0, FILL);
        }
        assert_eq!(door.messages()[0].count, 2);
        let mut door = Door::default();
        for _ in 0..3 {
            door.add(piece(0, 20), 0, Fill { has_gso: false, ..FILL });
        }
        assert_eq!(door.len(), 3);
    }
}
