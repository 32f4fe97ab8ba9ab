use std::vec::Vec;

use crate::vhost_user::room::{ALL, Room, check_table, device_limit, table_limit, take_both};

const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

#[test]
fn a_table_is_bounded_by_what_the_machine_could_hold() {
    for (machine, expected) in [
        (0, 64 * GIB),
        (8 * GIB, 64 * GIB),
        (16 * GIB, 64 * GIB),
        (128 * GIB, 512 * GIB),
        (TIB, 2 * TIB),
        (2 * TIB, 2 * TIB),
        (6 * TIB, 6 * TIB),
        (u64::MAX, u64::MAX),
    ] {
        assert_eq!(table_limit(machine, false), expected, "{machine:#x}");
        assert_eq!(table_limit(machine, true), machine, "pinned memory");
        assert!(table_limit(machine, false) >= machine);
        assert!(check_table(expected, machine, false).is_ok());
        if let Some(more) = expected.checked_add(1) {
            assert!(check_table(more, machine, false).is_err(), "{machine:#x}");
        }
        // A table is replaced by another one of the same size while requests use the old one.
        assert!(device_limit(machine) >= expected.saturating_mul(2));
    }
    // What the gate of the message alone lets through.
    assert!(check_table(1 << 45, 256 * GIB, false).is_err());
    assert!(check_table(16 * GIB + 1, 16 * GIB, true).is_err());
}

#[test]
fn a_room_is_never_overdrawn_and_takes_back_what_it_gave() {
    let room = Room::new(10);
    assert!(room.has(10) && !room.has(11) && !room.has(u64::MAX));
    assert!(room.take(6) && !room.take(5) && room.take(4));
    assert!(!room.has(1) && room.has(0));
    room.give(4);
    assert!(!room.take(u64::MAX), "the sum wraps");
    assert!(room.take(4) && !room.take(1));
}

#[test]
fn devices_share_one_room_and_a_refusal_takes_nothing() {
    let (first, second, all) = (Room::new(8), Room::new(8), Room::new(10));
    assert!(
        take_both(&first, &all, 9).is_err(),
        "more than a device may"
    );
    assert!(all.has(10));
    take_both(&first, &all, 8).expect("there is room");
    let fault = take_both(&second, &all, 3).expect_err("the other has most");
    assert!(fault.what.contains("together"), "{fault}");
    assert!(second.has(8), "nothing was taken");
    take_both(&second, &all, 2).expect("what is left");
    first.give(8);
    all.give(8);
    take_both(&second, &all, 6).expect("the other has gone");
}

/// 64 devices of a machine with 256 GiB, each with a table of the largest size, take what all may have.
#[test]
fn hostile_clients_leave_half_of_the_address_space() {
    let machine = 256 * GIB;
    let all = Room::new(ALL);
    let rooms: Vec<_> = (0..128).map(|_| Room::new(device_limit(machine))).collect();
    let table = table_limit(machine, false);
    let taken = rooms
        .iter()
        .filter(|room| take_both(room, &all, table).is_ok());
    assert_eq!(taken.count() as u64, ALL / table);
    const { assert!(ALL <= 1 << 46) };
}
