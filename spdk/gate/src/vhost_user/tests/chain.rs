//! A guest with a few descriptors in two regions: valid chains, and chains of arbitrary bits.

use proptest::prelude::*;
use std::vec::Vec;

use crate::vhost_user::chain::{
    Broken, Chain, Descriptor, Guest, MAX_RESERVED, MAX_SEGMENTS, Segment, pieces,
};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// The ring's own table, and the address of indirect ones.
const TABLE: usize = 1;
const INDIRECT_AT: u64 = 0x4000;

/// Guest addresses 0x1000 to 0x3000 at host 0x10_0000, 0x3000 to 0x5000 at host 0x90_0000.
struct Model {
    ring: Vec<Descriptor>,
    indirect: Vec<Descriptor>,
}

impl Guest for Model {
    fn translate(&self, address: u64, length: u64) -> Option<(usize, u64)> {
        let (host, end) = match address {
            0x1000..0x3000 => (0x10_0000 + address - 0x1000, 0x3000),
            0x3000..0x5000 => (0x90_0000 + address - 0x3000, 0x5000),
            _ => return None,
        };
        Some((host as usize, length.min(end - address)))
    }

    fn descriptor(&self, table: usize, index: u32) -> Descriptor {
        match table {
            TABLE => self.ring[index as usize],
            _ => {
                let at = table + index as usize * 16;
                let is_memory = [0x10_0000..0x10_2000, 0x90_0000..0x90_2000]
                    .iter()
                    .any(|region| region.contains(&at) && at + 16 <= region.end);
                assert!(is_memory, "outside of memory: {at:#x}");
                // A driver may place a table anywhere; all places but one hold zeroes.
                let offset = at.checked_sub(0x90_1000).filter(|offset| offset % 16 == 0);
                let descriptor = offset.and_then(|offset| self.indirect.get(offset / 16));
                descriptor.copied().unwrap_or(desc(0, 0, 0, 0))
            }
        }
    }
}

fn desc(address: u64, length: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor {
        address,
        length,
        flags,
        next,
    }
}

fn walk(model: &Model, head: u16) -> Result<Chain, Broken> {
    let mut chain = Chain::default();
    let size = u32::try_from(model.ring.len()).unwrap();
    chain.walk(model, TABLE, size, head, true).map(|()| chain)
}

fn ring(ring: &[Descriptor]) -> Model {
    Model {
        ring: ring.to_vec(),
        indirect: Vec::new(),
    }
}

fn lens(segments: &[Segment]) -> Vec<usize> {
    segments.iter().map(|segment| segment.len).collect()
}

#[test]
fn a_request_is_what_its_descriptors_say() {
    let model = ring(&[
        desc(0x1000, 16, NEXT, 2),
        desc(0x1010, 1, WRITE, 0),
        desc(0x2000, 512, NEXT | WRITE, 1),
    ]);
    let chain = walk(&model, 0).unwrap();
    assert_eq!(
        chain.readable(),
        [Segment {
            base: 0x10_0000,
            len: 16
        }]
    );
    assert_eq!(lens(chain.writable()), [512, 1]);
    assert_eq!((chain.readable_len(), chain.writable_len()), (16, 513));
}

/// The dirty log of a migration follows what was written.
#[test]
fn what_was_written_is_the_response_and_the_data_that_was_touched() {
    let model = ring(&[
        desc(0x1000, 16, NEXT, 2),
        desc(0x1010, 1, WRITE, 0),
        desc(0x2000, 0x2000, NEXT | WRITE, 1),
    ]);
    let written = |chain: &Chain| -> Vec<_> { chain.written().map(|s| (s.base, s.len)).collect() };
    let mut chain = walk(&model, 0).unwrap();
    assert_eq!(written(&chain), [], "nothing yet, however large");
    assert!(chain.reserve_back(1));
    assert_eq!(written(&chain), [], "returned unanswered");
    chain.note_answer();
    let answer = (0x10_0010, 1);
    assert_eq!(written(&chain), [answer], "a rejected request");
    chain.touch(512);
    assert_eq!(written(&chain), [(0x10_1000, 512), answer], "an ID");
    chain.touch(0x1800);
    // A read that failed may have written any part of its data, which lies in two regions.
    let data = [(0x10_1000, 0x1000), (0x90_0000, 0x800)];
    assert_eq!(written(&chain), [data[0], data[1], answer]);
    chain.touch(8);
    assert_eq!(written(&chain).len(), 3, "what was touched stays touched");
    chain.touch(u64::MAX);
    assert_eq!(written(&chain)[1], (0x90_0000, 0x1000));
    // The next request of the slot, a malformed one, has written nothing.
    let malformed = ring(&[desc(0x1000, 16, NEXT | WRITE, 0)]);
    assert!(chain.walk(&malformed, TABLE, 1, 0, true).is_err());
    assert_eq!(written(&chain), []);
    // SCSI: the response comes first.
    let mut chain = walk(&model, 0).unwrap();
    assert!(chain.reserve_front(108));
    chain.note_answer();
    chain.touch(4);
    assert_eq!(written(&chain), [(0x10_106c, 4), (0x10_1000, 108)]);
}

#[test]
fn a_descriptor_that_crosses_regions_is_two_segments_and_one_that_leaves_them_is_refused() {
    let chain = walk(&ring(&[desc(0x2f00, 0x200, 0, 0)]), 0).unwrap();
    let expected = [(0x10_1f00, 0x100), (0x90_0000, 0x100)];
    let found: Vec<_> = chain.readable().iter().map(|s| (s.base, s.len)).collect();
    assert_eq!(found, expected);
    for (address, length) in [(0x4fff, 2), (0x5000, 1), (0xfff, 1), (u64::MAX, 2), (0, 1)] {
        let refused = walk(&ring(&[desc(address, length, 0, 0)]), 0);
        assert_eq!(refused.unwrap_err(), Broken::Address, "{address:#x}");
    }
}

#[test]
fn chains_that_do_not_end_are_refused() {
    let itself = ring(&[desc(0x1000, 1, NEXT, 0)]);
    assert_eq!(walk(&itself, 0).unwrap_err(), Broken::Loop);
    let empty = ring(&[desc(0x1000, 0, NEXT, 1), desc(0x1000, 0, NEXT, 0)]);
    assert_eq!(walk(&empty, 0).unwrap_err(), Broken::Loop);
    let outside = ring(&[desc(0x1000, 1, NEXT, 1)]);
    assert_eq!(walk(&outside, 0).unwrap_err(), Broken::Index);
    assert_eq!(walk(&outside, 1).unwrap_err(), Broken::Index);
    let many = Model {
        ring: [desc(INDIRECT_AT, 0x1000, INDIRECT, 0)].to_vec(),
        indirect: [desc(0x1000, 0, NEXT, 0)].to_vec(),
    };
    assert_eq!(walk(&many, 0).unwrap_err(), Broken::Loop);
}

#[test]
fn an_indirect_table_is_whole_not_empty_and_not_nested() {
    let model = |length, flags| Model {
        ring: [desc(INDIRECT_AT, length, flags, 0)].to_vec(),
        indirect: [desc(0x1000, 16, NEXT, 1), desc(0x2000, 1, WRITE, 0)].to_vec(),
    };
    let chain = walk(&model(32, INDIRECT), 0).unwrap();
    assert_eq!((chain.readable_len(), chain.writable_len()), (16, 1));
    for (length, flags, expected) in [
        (0, INDIRECT, Broken::Indirect),
        (8, INDIRECT, Broken::Indirect),
        (33, INDIRECT, Broken::Indirect),
        (32, INDIRECT | NEXT, Broken::Indirect),
        (16, INDIRECT, Broken::Index),
        (0x2000, INDIRECT, Broken::Indirect),
    ] {
        let refused = walk(&model(length, flags), 0).unwrap_err();
        assert_eq!(refused, expected, "{length} {flags}");
    }
    let nested = Model {
        ring: [desc(INDIRECT_AT, 16, INDIRECT, 0)].to_vec(),
        indirect: [desc(INDIRECT_AT, 16, INDIRECT, 0)].to_vec(),
    };
    assert_eq!(walk(&nested, 0).unwrap_err(), Broken::Indirect);
    let mut chain = Chain::default();
    let refused = chain.walk(&model(32, INDIRECT), TABLE, 1, 0, false);
    assert_eq!(refused, Err(Broken::Indirect), "not negotiated");
}

#[test]
fn order_and_size_have_limits() {
    let order = ring(&[desc(0x1000, 1, WRITE | NEXT, 1), desc(0x1000, 1, 0, 0)]);
    assert_eq!(walk(&order, 0).unwrap_err(), Broken::Order);
    let long = |count: u16| {
        let last = count - 1;
        let flags = |at| if at < last { NEXT } else { 0 };
        let all: Vec<_> = (0..count)
            .map(|at| desc(0x1000, 1, flags(at), at + 1))
            .collect();
        ring(&all)
    };
    let most = u16::try_from(MAX_SEGMENTS).unwrap();
    assert!(walk(&long(most), 0).is_ok());
    assert_eq!(walk(&long(most + 1), 0).unwrap_err(), Broken::Size);
}

#[test]
fn what_is_taken_and_reserved_leaves_the_data() {
    let model = ring(&[
        desc(0x1000, 10, NEXT, 1),
        desc(0x2000, 10, NEXT, 2),
        desc(0x3000, 5, NEXT | WRITE, 3),
        desc(0x4000, 5, WRITE, 0),
    ]);
    let mut chain = walk(&model, 0).unwrap();
    let mut seen = Vec::new();
    assert!(chain.take(16, |at, piece| seen.push((at, piece.base, piece.len))));
    assert_eq!(seen, [(0, 0x10_0000, 10), (10, 0x10_1000, 6)]);
    assert_eq!(lens(chain.readable()), [4]);
    assert!(!chain.take(5, |_, _| panic!("there are four")));
    assert!(chain.reserve_front(7));
    assert_eq!(lens(chain.answer()), [5, 2]);
    assert_eq!(lens(chain.writable()), [3]);
    assert_eq!(lens(chain.readable()), [4]);
    assert_eq!((chain.readable_len(), chain.writable_len()), (4, 3));
    assert!(!chain.reserve_back(1), "once");

    let mut chain = walk(&model, 0).unwrap();
    assert!(chain.reserve_back(6));
    let answer: Vec<_> = chain.answer().iter().map(|s| (s.base, s.len)).collect();
    assert_eq!(answer, [(0x90_0004, 1), (0x90_1000, 5)]);
    assert_eq!(lens(chain.writable()), [4]);
    assert!(!walk(&model, 0).unwrap().reserve_back(11));
    assert!(!walk(&model, 0).unwrap().reserve_front(11));
}

#[test]
fn an_answer_in_too_many_pieces_is_refused() {
    let flags = |at: u16| if at < 9 { WRITE | NEXT } else { WRITE };
    let all: Vec<_> = (0..10)
        .map(|at| desc(0x1000, 1, flags(at), at + 1))
        .collect();
    let model = ring(&all);
    let most = MAX_RESERVED as u64;
    assert!(walk(&model, 0).unwrap().reserve_front(most));
    assert!(!walk(&model, 0).unwrap().reserve_front(most + 1));
    assert!(walk(&model, 0).unwrap().reserve_back(most));
    assert!(!walk(&model, 0).unwrap().reserve_back(most + 1));
}

#[test]
fn pieces_cover_a_part_and_no_more() {
    let segments = [(100, 4), (200, 0), (300, 6)].map(|(base, len)| Segment { base, len });
    let found = |offset, length| -> Vec<_> {
        pieces(&segments, offset, length)
            .map(|(at, s)| (at, s.base, s.len))
            .collect()
    };
    assert_eq!(found(0, 10), [(0, 100, 4), (4, 300, 6)]);
    assert_eq!(found(3, 3), [(0, 103, 1), (1, 300, 2)]);
    assert_eq!(found(9, 5), [(0, 305, 1)]);
    assert_eq!(found(10, 5), []);
    assert_eq!(found(u64::MAX, 5), []);
}

fn any_descriptor() -> impl Strategy<Value = Descriptor> {
    let address = prop_oneof![0x0f00..0x5100_u64, any::<u64>()];
    let length = prop_oneof![0..0x2100_u32, any::<u32>()];
    (address, length, 0..8_u16, 0..9_u16)
        .prop_map(|(address, length, flags, next)| desc(address, length, flags, next))
}

#[test]
fn a_table_anywhere_in_memory_is_read_there() {
    let found = walk(&ring(&[desc(0x1000, 1488, INDIRECT | WRITE, 0)]), 0).unwrap();
    assert_eq!((found.readable_len(), found.writable_len()), (0, 0));
}

proptest! {
    #[test]
    fn whatever_a_ring_holds_segments_lie_in_memory_and_sums_are_theirs(
        ring in prop::collection::vec(any_descriptor(), 1..9),
        indirect in prop::collection::vec(any_descriptor(), 0..9),
        head in 0..10_u16,
        taken in 0..64_u64,
        answer in 0..64_u64,
    ) {
        let model = Model { ring, indirect };
        let Ok(mut chain) = walk(&model, head) else { return Ok(()) };
        let inside = |s: &Segment| {
            let within = |from, to| s.base >= from && s.base + s.len <= to;
            within(0x10_0000, 0x10_2000) || within(0x90_0000, 0x90_2000)
        };
        let sum = |list: &[Segment]| list.iter().map(|s| s.len as u64).sum::<u64>();
        prop_assert!(chain.readable().iter().chain(chain.writable()).all(inside));
        let before = (chain.readable_len(), chain.writable_len());
        prop_assert_eq!(before, (sum(chain.readable()), sum(chain.writable())));
        if chain.take(taken, |_, piece| assert!(inside(&piece))) {
            prop_assert_eq!(chain.readable_len(), before.0 - taken);
        }
        let done = if taken % 2 == 0 { chain.reserve_back(answer) } else { chain.reserve_front(answer) };
        if done {
            prop_assert_eq!(sum(chain.answer()), answer);
            prop_assert_eq!(chain.writable_len(), before.1 - answer);
            prop_assert_eq!(sum(chain.writable()), before.1 - answer);
        }
        prop_assert_eq!(sum(chain.readable()), chain.readable_len());
        prop_assert!(chain.answer().iter().all(inside));
    }
}

#[test]
fn a_descriptor_is_its_bytes() {
    let one = desc(0x1122_3344_5566_7788, 0x99aa_bbcc, 0xddee, 0xff01);
    let [address, rest] = one.words();
    assert_eq!(Descriptor::from_words(address, rest), one);
    let bytes = [address.to_le_bytes(), rest.to_le_bytes()].concat();
    assert_eq!(bytes[8..], [0xcc, 0xbb, 0xaa, 0x99, 0xee, 0xdd, 0x01, 0xff]);
}
