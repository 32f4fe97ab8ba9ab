use proptest::prelude::*;
use std::vec::Vec;

use crate::vhost_user::memory::{
    MAX_MEMORY, MAX_REGIONS, Mapped, Region, Table, Window, by_guest, by_user, to_guest,
};

fn payload(count: u32, regions: &[[u64; 4]]) -> Vec<u8> {
    let mut bytes = [count.to_le_bytes(), [0; 4]].concat();
    bytes.extend(
        regions
            .iter()
            .flatten()
            .flat_map(|field| field.to_le_bytes()),
    );
    bytes
}

#[test]
fn a_table_is_its_regions() {
    let table = Table::parse(&payload(
        2,
        &[[0, 4096, 1 << 40, 0], [4096, 4096, 2 << 40, 7]],
    ));
    let regions = [
        Region {
            guest: 0,
            size: 4096,
            user: 1 << 40,
            offset: 0,
        },
        Region {
            guest: 4096,
            size: 4096,
            user: 2 << 40,
            offset: 7,
        },
    ];
    assert_eq!(table.unwrap().regions(), regions);
    assert_eq!(Table::parse(&payload(0, &[])).unwrap().regions(), []);
}

#[test]
fn what_cannot_be_a_table_is_refused_with_the_reason() {
    let one = [0, 4096, 1 << 40, 0];
    for (count, regions, reason) in [
        (9, &[one; 9][..], "8 regions"),
        (u32::MAX, &[], "8 regions"),
        (1, &[], "length"),
        (1, &[one, one], "length"),
        (1, &[[0, 0, 1 << 40, 0]], "empty"),
        (1, &[[u64::MAX, 2, 1 << 40, 0]], "2^64"),
        (1, &[[0, 4096, u64::MAX, 0]], "2^64"),
        (1, &[[0, 4096, 0, u64::MAX]], "2^64"),
        (1, &[[0, MAX_MEMORY + 1, 0, 0]], "2^45"),
        (2, &[one, [4095, 1, 2 << 40, 0]], "overlap"),
        (2, &[one, [4096, 1, (1 << 40) + 4095, 0]], "overlap"),
    ] {
        let fault = Table::parse(&payload(count, regions)).unwrap_err();
        assert!(fault.what.contains(reason), "{fault} for {regions:?}");
    }
    let half = MAX_MEMORY / 2 + 1;
    let two = [[0, half, 0, 0], [half, half, half, 0]];
    assert!(Table::parse(&payload(2, &two)).is_err(), "the sum");
    let eight: Vec<_> = (0..8).map(|n| [n * 4096, 4096, n << 40, 0]).collect();
    assert_eq!(
        Table::parse(&payload(8, &eight)).unwrap().regions().len(),
        MAX_REGIONS
    );
}

#[test]
fn a_window_is_whole_pages_within_its_file() {
    let window = Window::new(5000, 100, 8192, 4096).unwrap();
    assert_eq!(
        (window.offset, window.length, window.lead),
        (4096, 4096, 904)
    );
    let whole = Window::new(0, 2 << 20, 2 << 20, 2 << 20).unwrap();
    assert_eq!((whole.offset, whole.length, whole.lead), (0, 2 << 20, 0));
    for (offset, size, file) in [
        (0, 0, 8192),
        (0, 8193, 8192),
        (8192, 1, 8192),
        (u64::MAX, 2, u64::MAX),
        (u64::MAX - 1, 1, u64::MAX),
    ] {
        assert!(
            Window::new(offset, size, file, 4096).is_err(),
            "{offset} {size}"
        );
    }
}

const MAPPED: [Mapped; 2] = [
    Mapped {
        guest: 0x1000,
        user: 0x70_0000,
        size: 0x1000,
        host: 0x10_0000,
    },
    Mapped {
        guest: u64::MAX - 0xfff,
        user: 0x80_0000,
        size: 0xfff,
        host: 0x20_0000,
    },
];

#[test]
fn addresses_are_found_at_every_edge() {
    for (address, length, expected) in [
        (0xfff, 1, None),
        (0x1000, 1, Some((0x10_0000, 1))),
        (0x1fff, 1, Some((0x10_0fff, 1))),
        (0x1fff, 2, Some((0x10_0fff, 1))),
        (0x2000, 1, None),
        (u64::MAX - 0xfff, 0x2000, Some((0x20_0000, 0xfff))),
        (u64::MAX - 1, 1, Some((0x20_0ffe, 1))),
        (u64::MAX, 1, None),
        (0, u64::MAX, None),
    ] {
        assert_eq!(by_guest(&MAPPED, address, length), expected, "{address:#x}");
    }
    assert_eq!(by_user(&MAPPED, 0x70_0000, 0x1000), Some(0x10_0000));
    assert_eq!(by_user(&MAPPED, 0x70_0000, 0x1001), None);
    assert_eq!(to_guest(&MAPPED, 0x10_0fff), Some(0x1fff));
    assert_eq!(to_guest(&MAPPED, 0x10_1000), None);
}

proptest! {
    #[test]
    fn a_window_never_leaves_its_file_by_more_than_its_last_page(
        offset in any::<u64>(), size in any::<u64>(), file in any::<u64>(), shift in 12..31_u32,
    ) {
        let page = 1_u64 << shift;
        if let Ok(window) = Window::new(offset, size, file, page) {
            prop_assert!(offset + size <= file);
            prop_assert_eq!(window.offset % page, 0);
            prop_assert_eq!(window.length % page, 0);
            prop_assert_eq!(window.offset + window.lead, offset);
            prop_assert!(window.lead + size <= window.length);
        }
    }

    #[test]
    fn any_bytes_are_a_sane_table_or_none(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(table) = Table::parse(&bytes) {
            for region in table.regions() {
                prop_assert!(region.size > 0 && region.guest.checked_add(region.size).is_some());
            }
        }
    }
}
