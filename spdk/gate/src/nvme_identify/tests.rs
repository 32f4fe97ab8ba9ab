use super::*;
use proptest::prelude::*;
use std::vec::Vec;

fn data(fields: &[(usize, &[u8])]) -> [u8; IDENTIFY_LEN] {
    let mut data = [0; IDENTIFY_LEN];
    for (at, bytes) in fields {
        data[*at..*at + bytes.len()].copy_from_slice(bytes);
    }
    data
}

/// 2048 blocks of 512 bytes.
fn sane_namespace() -> [u8; IDENTIFY_LEN] {
    data(&[(1, &[8]), (9, &[8]), (128, &[0, 0, 9, 0])])
}

const HUGE: u32 = u32::MAX;

#[test]
fn a_sane_controller_stays_as_it_is() {
    let mut one = data(&[
        (77, &[5]),
        (128, &[3, 0]),
        (256, &[8]),
        (348, &32_u32.to_le_bytes()),
        (516, &32_u32.to_le_bytes()),
        (540, &32_u32.to_le_bytes()),
        (1792, &260_u32.to_le_bytes()),
    ]);
    let before = one;
    assert_eq!(controller(&mut one, 12, true), Ok(()));
    assert_eq!(controller(&mut one, 12, false), Ok(()));
    assert_eq!(one, before);
}

#[test]
fn what_a_controller_says_of_itself_is_brought_into_bounds() {
    let mut one = data(&[
        (77, &[20]),
        (128, &[0xff; 6]),
        (256, &[0xff; 2]),
        (516, &[0xff; 4]),
        (540, &[0xff; 4]),
        (1792, &[0xff; 4]),
    ]);
    assert_eq!(controller(&mut one, 12, true), Ok(()));
    assert_eq!(one[77], 0);
    assert_eq!(one[128..134], [10, 0, 10, 0, 10, 0]);
    assert_eq!(one[256..258], [0xfe, 0xfe]);
    assert_eq!(one[540..544], MAX_NAMESPACES.to_le_bytes());
    assert_eq!(one[1792..1796], [0, 0, 1, 0]);
    let mut small = data(&[(77, &[19])]);
    assert_eq!(controller(&mut small, 12, true), Ok(()));
    assert_eq!((small[77], small[1792]), (19, 4));
}

#[test]
fn a_controller_with_too_much_is_refused() {
    let mut many = data(&[(516, &[0xff; 4])]);
    assert!(controller(&mut many, 12, false).is_err());
    let mut groups = data(&[(348, &1025_u32.to_le_bytes())]);
    assert!(controller(&mut groups, 12, true).is_err());
    assert_eq!(smallest_page(4), Ok(()));
    assert!(smallest_page(5).is_err());
}

#[test]
fn the_keep_alive_time_is_ours_or_shorter() {
    for (answered, wanted, used) in [
        (5_000, 5_000, 5_000),
        (3_000, 5_000, 3_000),
        (120_000, 5_000, 5_000),
        (u32::MAX, 5_000, 5_000),
        (0, 5_000, 5_000),
        (1, 5_000, 1_000),
        (0, 60_000, 5_000),
        (10_000, 0, 0),
    ] {
        assert_eq!(keep_alive(answered, wanted), used, "{answered} {wanted}");
    }
}

#[test]
fn a_namespace_is_taken_for_what_it_says() {
    let plain = Geometry {
        block: 512,
        metadata: 0,
        extended: false,
    };
    assert_eq!(namespace(&mut sane_namespace(), HUGE), Ok(plain));
    assert_eq!(namespace(&mut sane_namespace(), 512), Ok(plain));
    // The 18th format: 4 KiB blocks with 8 bytes of interleaved metadata.
    let mut other = sane_namespace();
    (other[25], other[26], other[29]) = (20, 0b0011_0001, 1);
    other[128 + 17 * 4..128 + 18 * 4].copy_from_slice(&[8, 0, 12, 0]);
    let extended = Geometry {
        block: 4096,
        metadata: 8,
        extended: true,
    };
    assert_eq!(namespace(&mut other, HUGE), Ok(extended));
    assert!(namespace(&mut other, 4096).is_err());
}

#[test]
fn a_namespace_that_makes_no_sense_is_refused() {
    for (at, bytes) in [
        (0, &[0_u8; 8][..]),
        (8, &[0; 8]),
        (8, &[0xff; 8]),
        (25, &[64]),
        (26, &[1]),
        (130, &[8]),
        (130, &[16]),
        (130, &[0]),
        (130, &[255]),
        (128, &[1, 2]),
        (29, &[4]),
        (29, &[1]),
    ] {
        let mut one = sane_namespace();
        one[at..at + bytes.len()].copy_from_slice(bytes);
        assert!(namespace(&mut one, HUGE).is_err(), "{at} {bytes:?}");
    }
    let mut huge = sane_namespace();
    huge[..16].fill(0xff);
    assert!(namespace(&mut huge, HUGE).is_err());
    assert!(namespace(&mut sane_namespace(), 511).is_err());
}

#[test]
fn a_boundary_is_a_power_of_two_or_none() {
    for (told, used) in [(8_u16, 8_u16), (6, 0), (0, 0), (0x8000, 0x8000)] {
        let mut one = sane_namespace();
        one[46..48].copy_from_slice(&told.to_le_bytes());
        assert!(namespace(&mut one, HUGE).is_ok());
        assert_eq!(one[46..48], used.to_le_bytes());
    }
}

#[test]
fn a_list_ascends_and_ends() {
    assert_eq!(active_list(&[1, 2, 7, 0, 3], 7), Ok(List::Ends(3)));
    assert_eq!(active_list(&[0], 7), Ok(List::Ends(0)));
    assert_eq!(active_list(&[1, 2], 7), Ok(List::GoesOn(2)));
    let full: Vec<u32> = (1..=MAX_NAMESPACES).collect();
    assert_eq!(active_list(&full, HUGE), Ok(List::GoesOn(MAX_NAMESPACES)));
    let more: Vec<u32> = (1..=MAX_NAMESPACES + 1).collect();
    for (pages, highest) in [(&[2, 1][..], 7), (&[1, 1], 7), (&[1, 8], 7), (&more, HUGE)] {
        assert!(active_list(pages, highest).is_err(), "{pages:?}");
    }
}

proptest! {
    #[test]
    fn a_namespace_that_is_taken_can_be_computed_with(
        fields in prop::collection::vec((0_usize..400, any::<u8>()), 0..40),
        max_transfer in 512_u32..,
    ) {
        let mut one = sane_namespace();
        for (at, byte) in fields {
            one[at] = byte;
        }
        if let Ok(Geometry { block, metadata, extended }) = namespace(&mut one, max_transfer) {
            prop_assert!(block.is_power_of_two() && block >= 512);
            prop_assert!(block.checked_mul(1 << 16).is_some());
            prop_assert!(metadata <= block);
            let moved = block + if extended { metadata } else { 0 };
            prop_assert!(max_transfer / moved >= 1);
            let size = u64::from_le_bytes(one[..8].try_into().unwrap());
            prop_assert!(size.checked_mul(u64::from(block)).is_some());
        }
    }

    #[test]
    fn a_list_that_is_taken_is_short_and_in_order(pages in prop::collection::vec(0_u32..40, 0..60)) {
        if let Ok(List::Ends(count)) = active_list(&pages, 39) {
            let taken = &pages[..count as usize];
            prop_assert!(taken.is_sorted_by(|a, b| a < b));
            prop_assert_eq!(pages[count as usize], 0);
        }
    }
}
