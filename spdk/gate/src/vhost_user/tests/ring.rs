use std::vec;

use crate::vhost_user::memory::Mapped;
use crate::vhost_user::ring::{Addresses, available, check_size, locate, wants_event};

#[test]
fn only_powers_of_two_up_to_1024_are_sizes() {
    for size in (0..=1025).chain([2048, 65_536, 65_537, u32::MAX]) {
        let expected = matches!(size, 1 | 2 | 4 | 8 | 16 | 32 | 64 | 128 | 256 | 512 | 1024);
        assert_eq!(check_size(size).is_ok(), expected, "{size}");
    }
}

#[test]
fn parts_lie_whole_in_a_region_and_aligned() {
    let regions = vec![Mapped {
        guest: 0,
        user: 0x10_0000,
        size: 0x10_000,
        host: 0x7000_0000,
    }];
    let good = Addresses {
        flags: 0,
        descriptors: 0x10_0000,
        available: 0x10_1000,
        used: 0x10_2000,
        log: 0,
    };
    let places = locate(&regions, 256, &good).unwrap();
    assert_eq!(places.descriptors, 0x7000_0000);
    assert_eq!(places.available, 0x7000_1000);
    assert_eq!(places.used, 0x7000_2000);
    // The last address at which each part fits, and the one after it.
    let end = 0x11_0000;
    for (length, align, set) in [
        (
            256 * 16,
            16,
            (|a, at| a.descriptors = at) as fn(&mut Addresses, u64),
        ),
        (256 * 2 + 6, 2, |a, at| a.available = at),
        (256 * 8 + 6, 4, |a, at| a.used = at),
    ] {
        let last = (end - length) & !(align - 1);
        for (at, fits) in [
            (last, true),
            (last + align, false),
            (last - 1, false),
            (0, false),
            (0x0f_fff0, false),
            (u64::MAX - 15, false),
        ] {
            let mut addresses = good;
            set(&mut addresses, at);
            let found = locate(&regions, 256, &addresses);
            assert_eq!(found.is_ok(), fits, "{at:#x} of {length}");
        }
    }
    assert!(locate(&[], 1, &good).is_err());
}

#[test]
fn more_than_the_ring_is_never_available() {
    for taken in [0, 1, 255, 256, 65_280, 65_535_u16] {
        for ahead in 0..=u16::MAX {
            let index = taken.wrapping_add(ahead);
            let expected = (ahead <= 256).then_some(ahead);
            assert_eq!(available(index, taken, 256), expected);
        }
    }
}

#[test]
fn an_event_is_wanted_between_old_and_new() {
    for (event, new, old, expected) in [
        (0, 1, 0, true),
        (1, 1, 0, false),
        (1, 2, 0, true),
        (5, 5, 0, false),
        (65_535, 0, 65_535, true),
        (65_535, 1, 65_535, true),
        (10, 5, 5, false),
    ] {
        assert_eq!(
            wants_event(event, new, old),
            expected,
            "{event} {new} {old}"
        );
    }
}
