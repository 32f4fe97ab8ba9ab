use std::vec::Vec;

use crate::vhost_user::inflight::{Area, Noted, pending};

fn area(queues: u16, entries: u16) -> Area {
    Area {
        size: 0,
        offset: 0,
        queues,
        entries,
    }
}

#[test]
fn an_area_has_limits_and_the_size_of_its_queues() {
    for (queues, entries, good) in [
        (1, 1, true),
        (128, 1024, true),
        (0, 1, false),
        (1, 0, false),
        (129, 1, false),
        (1, 1025, false),
        (u16::MAX, u16::MAX, false),
    ] {
        assert_eq!(
            area(queues, entries).check().is_ok(),
            good,
            "{queues} {entries}"
        );
    }
    let most = area(128, 1024);
    assert_eq!(most.stride(), 16_448);
    assert_eq!(most.needed(), 128 * 16_448);
    assert_eq!(area(1, 1).stride(), 64);
    for (size, good) in [
        (most.needed(), true),
        (most.needed() - 1, false),
        (2 << 20, false),
        (4 << 20, true),
        (1 << 40, false),
        (u64::MAX, false),
    ] {
        let given = Area { size, ..most };
        assert_eq!(given.check_given().is_ok(), good, "{size}");
    }
}

#[test]
fn a_region_is_inside_the_area() {
    let area = area(3, 64);
    assert_eq!(area.region(0, 64), Some(0));
    assert_eq!(area.region(2, 16), Some(2 * area.stride()));
    assert_eq!(area.region(3, 64), None);
    assert_eq!(area.region(0, 128), None);
}

#[test]
fn an_area_is_its_bytes() {
    let whole = Area {
        size: 1 << 33,
        offset: 5,
        queues: 7,
        entries: 128,
    };
    let bytes = whole.bytes();
    assert_eq!(bytes[..8], (1_u64 << 33).to_le_bytes());
    assert_eq!(Area::parse(&bytes), whole);
}

#[test]
fn what_is_pending_comes_in_its_order_whatever_the_counters_are() {
    let noted = [
        (true, 9),
        (false, 1),
        (true, u64::MAX),
        (true, 0),
        (true, 9),
    ];
    let noted = noted.map(|(inflight, counter)| Noted { inflight, counter });
    let mut heads = [(0, 0); 8];
    let count = pending(noted.into_iter(), &mut heads);
    let order: Vec<_> = heads[..count].iter().map(|(_, head)| *head).collect();
    assert_eq!(order, [3, 0, 4, 2]);
    let mut few = [(0, 0); 2];
    assert_eq!(
        pending(noted.into_iter(), &mut few),
        1,
        "those behind are not looked at"
    );
}
