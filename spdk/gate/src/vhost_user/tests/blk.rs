use proptest::prelude::*;
use std::collections::HashSet;
use std::vec::Vec;

use crate::vhost_user::blk::{Command, Config, command, id, range, status};

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let parts = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()];
    parts.concat().try_into().unwrap()
}

#[test]
fn requests_are_known_by_type_and_room() {
    let read = |offset, length| Ok(Command::Read { offset, length });
    let write = |offset, length| Ok(Command::Write { offset, length });
    for (kind, sector, readable, writable, expected) in [
        (0, 2, 0, 512, read(1024, 512)),
        (1, 2, 4096, 0, write(1024, 4096)),
        (0x8000_0000, 0, 0, 512, read(0, 512)),
        (0, 0, 0, 0, Err(status::UNSUPPORTED)),
        (0, 0, 0, 511, Err(status::UNSUPPORTED)),
        (0, 0, 512, 512, Err(status::UNSUPPORTED)),
        (1, 0, 512, 1, Err(status::UNSUPPORTED)),
        (0, 0, 0, 16 << 20, read(0, 16 << 20)),
        (0, 0, 0, (16 << 20) + 512, Err(status::ERROR)),
        (1, 0, (16 << 20) + 512, 0, Err(status::ERROR)),
        (0, u64::MAX, 0, 512, Err(status::ERROR)),
        (0, u64::MAX / 512, 0, 512, Err(status::ERROR)),
        (4, 0, 0, 0, Ok(Command::Flush)),
        (4, 1, 0, 0, Err(status::ERROR)),
        (8, 0, 0, 20, Ok(Command::Id)),
        (8, 0, 0, 0, Err(status::UNSUPPORTED)),
        (11, 0, 16, 0, Ok(Command::Discard)),
        (11, 0, 15, 0, Err(status::ERROR)),
        (11, 0, 32, 0, Err(status::ERROR)),
        (13, 0, 16, 0, Ok(Command::WriteZeroes)),
        (13, 0, 0, 0, Err(status::ERROR)),
        (2, 0, 0, 512, Err(status::UNSUPPORTED)),
    ] {
        let found = command(&header(kind, sector), readable, writable);
        assert_eq!(found, expected, "{kind} {sector} {readable} {writable}");
    }
}

fn payload(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let parts = [
        &sector.to_le_bytes()[..],
        &sectors.to_le_bytes(),
        &flags.to_le_bytes(),
    ];
    parts.concat().try_into().unwrap()
}

#[test]
fn ranges_are_whole_and_their_flags_are_known() {
    assert_eq!(range(&payload(1, 2, 0), true), Ok((512, 1024)));
    assert_eq!(range(&payload(1, 2, 1), false), Ok((512, 1024)));
    assert_eq!(range(&payload(0, 32_768, 0), true), Ok((0, 16 << 20)));
    assert_eq!(range(&payload(0, 32_769, 0), true), Err(status::ERROR));
    assert_eq!(range(&payload(1, 2, 1), true), Err(status::UNSUPPORTED));
    assert_eq!(range(&payload(1, 2, 2), false), Err(status::UNSUPPORTED));
    assert_eq!(range(&payload(1, 0, 0), true), Err(status::ERROR));
    assert_eq!(range(&payload(u64::MAX, 1, 0), true), Err(status::ERROR));
    assert_eq!(
        range(&payload(u64::MAX / 512, 1, 0), true),
        Err(status::ERROR)
    );
}

#[test]
fn ids_of_uuids_that_are_alike_differ_and_have_letters_and_digits_alone() {
    let mut uuids: Vec<[u8; 16]> = (0..1000_u128).map(u128::to_be_bytes).collect();
    uuids.extend((0..128).map(|bit| (1_u128 << bit).to_be_bytes()));
    let uuids: HashSet<_> = uuids.into_iter().collect();
    let ids: HashSet<_> = uuids.iter().map(|uuid| id(*uuid)).collect();
    assert_eq!(ids.len(), uuids.len());
    let plain = |byte: &u8| byte.is_ascii_digit() || byte.is_ascii_lowercase();
    assert!(ids.iter().flatten().all(plain));
    // Guests identify their disks by this ID, so the mapping must never change.
    let fixed = *b"\x1b\x4e\x28\xba\x2f\xa1\x11\xd2\x88\x3f\xb9\xa7\x61\xbd\xe3\xfb";
    assert_eq!(&id(fixed), b"c5kev04fnov5m25wrj7r");
}

#[test]
fn the_configuration_space_is_that_of_the_standard() {
    let config = Config {
        block_size: 4096,
        blocks: 100,
        segments: 126,
        segment_size: 131_072,
        queues: 128,
        discard: true,
        write_zeroes: true,
    };
    let mut space = [0; 60];
    config.write(&mut space);
    let word = |at: usize| u32::from_le_bytes(space[at..at + 4].try_into().unwrap());
    let half = |at: usize| u16::from_le_bytes(space[at..at + 2].try_into().unwrap());
    assert_eq!((word(0), word(4)), (800, 0));
    assert_eq!((word(8), word(12), word(20)), (131_072, 126, 4096));
    assert_eq!((half(26), half(34)), (1, 128));
    assert_eq!((word(36), word(40), word(44)), (32_768, 1, 8));
    assert_eq!((word(48), word(52)), (32_768, 1));
    let mut short = [0; 10];
    config.write(&mut short);
    assert_eq!(short[..8], 800_u64.to_le_bytes());
}

proptest! {
    #[test]
    fn a_range_never_wraps(
        kind in 0..16_u32, sector in any::<u64>(), readable in any::<u64>(), writable in any::<u64>(),
    ) {
        match command(&header(kind, sector), readable, writable) {
            Ok(Command::Read { offset, length } | Command::Write { offset, length }) => {
                prop_assert!(length > 0 && offset.checked_add(length).is_some());
            }
            Ok(_) => {}
            Err(answer) => prop_assert!(answer == status::ERROR || answer == status::UNSUPPORTED),
        }
    }
}
