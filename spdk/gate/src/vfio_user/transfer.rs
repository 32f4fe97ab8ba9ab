//! Validates where a command's data is in guest memory: PRPs and SGLs.

use super::PAGE;

/// The most segments of one SGL. A transfer has some 30 data blocks at most, so a valid chain needs fewer.
pub const SEGMENTS_MAX: u32 = 8;

/// Bytes of an SGL descriptor.
const DESCRIPTOR: u32 = 16;

/// Descriptor types, as in the last byte; subtypes (offsets, keys) do not apply to PCIe.
const DATA_BLOCK: u8 = 0x00;
const SEGMENT: u8 = 0x20;
const LAST_SEGMENT: u8 = 0x30;

/// Returns how many data pointers a transfer of `length` bytes needs in PRPs: 1 is PRP1 alone, with 2 PRP2 points to
/// the second page, with more PRP2 points to a list. 0 refuses: no data, more than `max` pointers, or a misplaced
/// PRP2.
pub fn prps(prp1: u64, prp2: u64, length: u64, max: u32) -> u32 {
    // PRP1 may point into the middle of its page.
    let Some(first) = PAGE.checked_sub(prp1 % PAGE) else {
        return 0;
    };
    let further = length.saturating_sub(first).div_ceil(PAGE);
    let Some(count) = further
        .checked_add(1)
        .and_then(|count| u32::try_from(count).ok())
        .filter(|count| length > 0 && *count <= max)
    else {
        return 0;
    };
    let is_right = match count {
        1 => true,
        2 => prp2 != 0 && prp2.is_multiple_of(PAGE),
        _ => prp2 != 0 && prp2.is_multiple_of(8),
    };
    if is_right { count } else { 0 }
}

/// The state of a walk over an SGL, descriptor by descriptor, each copied out of guest memory first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Bytes of the transfer not yet covered.
    pub left: u64,
    /// Data blocks that may still follow.
    pub room: u32,
    /// Segments visited.
    pub segments: u32,
    /// Whether the walk is in the last segment.
    pub is_last: bool,
}

impl Walk {
    /// Accounts for a data block; `false` refuses the command.
    pub fn data(&mut self, kind: u8, addr: u64, length: u32) -> bool {
        let length = u64::from(length);
        let (Some(left), Some(room)) = (self.left.checked_sub(length), self.room.checked_sub(1))
        else {
            return false;
        };
        let ends = addr.checked_add(length).is_some();
        if kind != DATA_BLOCK || length == 0 || !ends {
            return false;
        }
        self.left = left;
        self.room = room;
        true
    }

    /// Enters the segment that this descriptor points to. Returns its number of descriptors, of which all but the
    /// last are data blocks; 0 refuses the command.
    pub fn segment(&mut self, kind: u8, addr: u64, length: u32) -> u32 {
        let count = length / DESCRIPTOR;
        let Some(segments) = self.segments.checked_add(1) else {
            return 0;
        };
        let is_kind = kind == SEGMENT || kind == LAST_SEGMENT;
        let is_whole = length.is_multiple_of(DESCRIPTOR) && count > 0;
        let ends = addr.checked_add(u64::from(length)).is_some();
        // The last descriptor may point to a further segment instead of a data block.
        let fits = count.saturating_sub(1) <= self.room && segments <= SEGMENTS_MAX;
        if self.is_last || !is_kind || !is_whole || !ends || !fits {
            return 0;
        }
        self.segments = segments;
        self.is_last = kind == LAST_SEGMENT;
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn walk(left: u64) -> Walk {
        Walk {
            left,
            room: 33,
            segments: 0,
            is_last: false,
        }
    }

    #[test]
    fn prps_cover_the_transfer_and_no_more() {
        assert_eq!(prps(0x1000, 0, 4096, 33), 1);
        assert_eq!(prps(0x1010, 0, 4080, 33), 1);
        assert_eq!(prps(0x1010, 0x5000, 4081, 33), 2);
        assert_eq!(prps(0x1000, 0x5000, 8192, 33), 2);
        assert_eq!(prps(0x1000, 0x5008, 8193, 33), 3);
        assert_eq!(prps(0x1200, 0x5008, 32 * 4096, 33), 33);
        for (prp1, prp2, length, max) in [
            (0x1000, 0, 0, 33),
            (0x1000, 0, 4097, 33),
            (0x1000, 0x5010, 8192, 33),
            (0x1000, 0x5004, 8193, 33),
            (0x1000, u64::MAX, 4097, 33),
            (0x1000, 0x5000, 34 * 4096, 33),
            (0x1000, 0x5000, u64::MAX, 33),
            (u64::MAX, 0x5000, u64::MAX, u32::MAX),
            (0x1000, 0x5000, 8192, 1),
        ] {
            assert_eq!(
                prps(prp1, prp2, length, max),
                0,
                "{prp1:#x} {prp2:#x} {length}"
            );
        }
    }

    #[test]
    fn one_block_and_a_chain_of_segments_are_right() {
        let mut one = walk(4096);
        assert!(one.data(DATA_BLOCK, 0x1000, 4096));
        assert_eq!(one.left, 0);

        let mut chain = walk(8192);
        assert_eq!(chain.segment(SEGMENT, 0x1000, 32), 2);
        assert!(chain.data(DATA_BLOCK, 0x2000, 4096));
        assert_eq!(chain.segment(LAST_SEGMENT, 0x3000, 16), 1);
        assert!(chain.data(DATA_BLOCK, 0x4000, 4096));
        assert_eq!(chain.left, 0);
    }

    #[test]
    fn each_rule_is_kept() {
        for (kind, addr, length) in [
            (0x10, 0x1000, 16),
            (0x01, 0x1000, 16),
            (0x40, 0x1000, 16),
            (SEGMENT, 0x1000, 16),
            (DATA_BLOCK, 0x1000, 0),
            (DATA_BLOCK, 0x1000, 4097),
            (DATA_BLOCK, u64::MAX - 15, 16),
            (DATA_BLOCK, u64::MAX, 1),
        ] {
            assert!(
                !walk(4096).data(kind, addr, length),
                "{kind:#x} {addr:#x} {length}"
            );
        }
        for (kind, addr, length) in [
            (DATA_BLOCK, 0x1000, 16),
            (0x21, 0x1000, 16),
            (SEGMENT, 0x1000, 0),
            (SEGMENT, 0x1000, 15),
            (SEGMENT, 0x1000, 17),
            (SEGMENT, 0x1000, 35 * 16),
            (SEGMENT, 0x1000, u32::MAX - 15),
            (LAST_SEGMENT, u64::MAX - 15, 16),
        ] {
            assert_eq!(
                walk(4096).segment(kind, addr, length),
                0,
                "{kind:#x} {addr:#x} {length}"
            );
        }
        let mut ended = walk(4096);
        assert_eq!(ended.segment(LAST_SEGMENT, 0x1000, 16), 1);
        assert_eq!(
            ended.segment(LAST_SEGMENT, 0x1000, 16),
            0,
            "nothing follows the last segment"
        );
        let mut full = Walk { room: 0, ..walk(1) };
        assert!(!full.data(DATA_BLOCK, 0, 1));
        let mut many = Walk {
            segments: u32::MAX,
            ..walk(1)
        };
        assert_eq!(many.segment(SEGMENT, 0, 16), 0);
    }

    #[test]
    fn a_segment_that_points_to_itself_ends() {
        let mut walk = walk(4096);
        let rounds = (0..).take_while(|_| walk.segment(SEGMENT, 0x1000, 16) == 1);
        assert_eq!(u32::try_from(rounds.count()), Ok(SEGMENTS_MAX));
    }

    proptest! {
        #[test]
        fn prps_are_as_many_as_pages(
            prp1 in any::<u64>(), prp2 in any::<u64>(), length in 1_u64..200_000, max in 1_u32..40,
        ) {
            let count = prps(prp1, prp2 & !0xfff, length, max);
            if count > 0 {
                let first = PAGE - prp1 % PAGE;
                let room = first + u64::from(count - 1) * PAGE;
                prop_assert!(count <= max && room >= length && room - length < PAGE.max(first));
            }
        }

        #[test]
        fn no_walk_gives_more_than_the_transfer(
            steps in proptest::collection::vec((any::<u8>(), any::<u64>(), 0_u32..100_000), 0..200),
            left in 0_u64..1_000_000,
        ) {
            let mut walk = walk(left);
            let mut given: Vec<u64> = Vec::new();
            for (kind, addr, length) in steps {
                if walk.segment(kind & 0x3f, addr, length) == 0 && walk.data(kind & 0x11, addr, length) {
                    given.push(u64::from(length));
                }
            }
            prop_assert!(given.len() <= 33 && walk.segments <= SEGMENTS_MAX);
            prop_assert_eq!(given.iter().sum::<u64>() + walk.left, left);
        }
    }
}
