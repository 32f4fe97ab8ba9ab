//! SCSI commands: what reaches a disk is within it, and no more than there is data for.

use std::vec::Vec;

use proptest::prelude::*;

use crate::vhost_user::scsi::*;

const DISK: Geometry = Geometry {
    block_size: 512,
    physical_block_size: 4096,
    blocks: 1000,
    unmap: true,
    zeroes: true,
};

const IDENTITY: Identity = Identity {
    uuid: [
        0xab, 0xcd, 1, 2, 3, 4, 0x45, 6, 0x87, 8, 9, 10, 11, 12, 13, 14,
    ],
    product: *b"Malloc disk     ",
};

fn block(bytes: &[u8]) -> [u8; CDB] {
    let mut cdb = [0; CDB];
    cdb[..bytes.len()].copy_from_slice(bytes);
    cdb
}

fn text(cdb: &[u8], disk: &Geometry) -> Result<Vec<u8>, Sense> {
    let mut bytes = [0; MAX_REPLY];
    let length = reply(&block(cdb), disk, &IDENTITY, &mut bytes)?;
    Ok(bytes[..length].to_vec())
}

proptest! {
    #[test]
    fn whatever_a_command_block_says_ranges_are_inside_the_disk(
        operation in prop_oneof![
            any::<u8>(),
            prop::sample::select(&[8u8, 0x0a, 0x28, 0x2a, 0xa8, 0xaa, 0x88, 0x8a, 0x41, 0x93, 0x42][..]),
        ],
        rest in any::<[u8; 31]>(),
        small in any::<bool>(),
        readable in prop_oneof![Just(0u64), Just(512), 0u64..1 << 23, any::<u64>()],
        writable in prop_oneof![Just(0u64), Just(512), 0u64..1 << 23, any::<u64>()],
        blocks in prop_oneof![0u64..2000, any::<u64>()],
        shift in 9u32..17,
    ) {
        let mut cdb = [0; CDB];
        cdb[0] = operation;
        cdb[1..].copy_from_slice(&rest);
        if small {
            // Small numbers get past the range checks more often.
            for at in [2, 3, 4, 6, 10, 11, 12] {
                cdb[at] = 0;
            }
        }
        let disk = Geometry { block_size: 1 << shift, blocks, ..DISK };
        let size = u128::from(blocks) << shift;
        let inside = |offset: u64, length: u64| {
            length > 0
                && u128::from(offset) + u128::from(length) <= size
                && offset.is_multiple_of(1 << shift)
                && length.is_multiple_of(1 << shift)
        };
        match command(&cdb, &disk, readable, writable) {
            Ok(Command::Read { offset, length }) => {
                prop_assert!(inside(offset, length) && length <= writable && length <= MAX_TRANSFER);
                prop_assert_eq!(readable, 0);
            }
            Ok(Command::Write { offset, length }) => {
                prop_assert!(inside(offset, length) && length <= readable && length <= MAX_TRANSFER);
                prop_assert_eq!(writable, 0);
            }
            Ok(Command::Unmap { offset, length }) => prop_assert!(inside(offset, length)),
            Ok(Command::Zero { offset, length, pattern }) => {
                prop_assert!(inside(offset, length) && u64::from(pattern) <= readable);
            }
            Ok(Command::UnmapList(length)) => {
                prop_assert!(length <= PARAMETERS && length as u64 <= readable);
            }
            Ok(Command::Reply) => {
                let mut bytes = [0; MAX_REPLY];
                let made = reply(&cdb, &disk, &IDENTITY, &mut bytes);
                prop_assert!(made.is_err() || made.is_ok_and(|length| length <= MAX_REPLY));
            }
            Ok(Command::Flush | Command::Nothing) | Err(_) => {}
        }
    }

    #[test]
    fn whatever_a_range_list_says_its_ranges_are_inside_the_disk(
        mut list in prop::collection::vec(any::<u8>(), 0..PARAMETERS),
        right in any::<bool>(),
    ) {
        if right && list.len() >= 8 {
            let length = u16::try_from(list.len() - 8).unwrap();
            list[2..4].copy_from_slice(&length.to_be_bytes());
            for descriptor in list[8..].chunks_mut(16) {
                for byte in descriptor.iter_mut().take(7) {
                    *byte = 0;
                }
            }
        }
        if let Ok(mut ranges) = unmap_ranges(&list, &DISK) {
            let mut count = 0;
            while let Some((offset, length)) = ranges.take() {
                prop_assert!(length > 0 && offset + length <= 512_000);
                count += 1;
            }
            prop_assert!(count <= MAX_RANGES);
        }
    }

    #[test]
    fn uuids_that_differ_give_names_that_differ(first in any::<[u8; 16]>(), byte in 0usize..16) {
        let mut second = first;
        second[byte] ^= 0x01;
        let page = |uuid, page| {
            let mut bytes = [0; MAX_REPLY];
            let identity = Identity { uuid, ..IDENTITY };
            let length = reply(&block(&[0x12, 1, page, 0, 255]), &DISK, &identity, &mut bytes).unwrap();
            bytes[..length].to_vec()
        };
        for number in [0x80, 0x83] {
            prop_assert_ne!(page(first, number), page(second, number));
        }
    }
}

#[test]
fn reads_and_writes_of_every_length_mean_the_same_blocks() {
    let (offset, length) = (512 * 7, 512 * 2);
    for cdb in [
        &[0x08, 0, 0, 7, 2, 0][..],
        &[0x28, 0, 0, 0, 0, 7, 0, 0, 2, 0],
        &[0xa8, 0, 0, 0, 0, 7, 0, 0, 0, 2, 0, 0],
        &[0x88, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 2, 0, 0],
    ] {
        let cdb = block(cdb);
        assert_eq!(
            command(&cdb, &DISK, 0, 1024),
            Ok(Command::Read { offset, length })
        );
        // A larger buffer is left as is; a smaller one is an underrun of whole blocks.
        assert_eq!(
            command(&cdb, &DISK, 0, 9999),
            Ok(Command::Read { offset, length })
        );
        let short = Ok(Command::Read {
            offset,
            length: 512,
        });
        assert_eq!(command(&cdb, &DISK, 0, 1023), short);
        assert_eq!(command(&cdb, &DISK, 0, 511), Err(Sense::INVALID_FIELD));
        assert_eq!(command(&cdb, &DISK, 1, 1024), Err(Sense::INVALID_FIELD));
        let mut write = cdb;
        write[0] |= 2;
        assert_eq!(
            command(&write, &DISK, 1024, 0),
            Ok(Command::Write { offset, length })
        );
        assert_eq!(command(&write, &DISK, 1023, 0), Err(Sense::INVALID_FIELD));
        assert_eq!(command(&write, &DISK, 1024, 1), Err(Sense::INVALID_FIELD));
    }
    // In 6-byte commands a count of 0 means 256.
    let many = command(&block(&[0x08, 0, 0, 0, 0, 0]), &DISK, 0, 1 << 20);
    assert_eq!(
        many,
        Ok(Command::Read {
            offset: 0,
            length: 256 * 512
        })
    );
    let none = command(&block(&[0x28]), &DISK, 0, 512);
    assert_eq!(none, Ok(Command::Nothing));
    for far in [999u32, 1000, u32::MAX] {
        let [a, b, c, d] = far.to_be_bytes();
        let read = command(&block(&[0x28, 0, a, b, c, d, 0, 0, 2]), &DISK, 0, 1024);
        assert_eq!(read, Err(Sense::OUT_OF_RANGE));
    }
    let large = Geometry {
        blocks: 1 << 40,
        ..DISK
    };
    let long = command(
        &block(&[0xa8, 0, 0, 0, 0, 0, 0, 0, 0x20, 1]),
        &large,
        0,
        1 << 30,
    );
    assert_eq!(long, Err(Sense::INVALID_FIELD));
}

#[test]
fn a_range_list_has_whole_ranges_and_not_too_many() {
    let list = |count: usize, odd: usize| {
        let length = count * 16 + odd;
        let mut bytes = std::vec![0; 8 + length];
        bytes[2..4].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
        for descriptor in bytes[8..].chunks_exact_mut(16) {
            descriptor[11] = 1;
        }
        bytes
    };
    assert!(unmap_ranges(&list(MAX_RANGES, 0), &DISK).is_ok());
    assert_eq!(
        unmap_ranges(&list(MAX_RANGES + 1, 0), &DISK),
        Err(Sense::INVALID_PARAMETER)
    );
    assert_eq!(
        unmap_ranges(&list(1, 15), &DISK),
        Err(Sense::INVALID_PARAMETER)
    );
    assert_eq!(
        unmap_ranges(&list(2, 0)[..30], &DISK),
        Err(Sense::PARAMETER_LENGTH)
    );
    assert_eq!(unmap_ranges(&[0; 7], &DISK), Err(Sense::PARAMETER_LENGTH));
    let cdb = |length: u8| block(&[0x42, 0, 0, 0, 0, 0, 0, 1, length]);
    assert_eq!(command(&cdb(8), &DISK, 264, 0), Ok(Command::UnmapList(264)));
    assert_eq!(
        command(&cdb(9), &DISK, 1000, 0),
        Err(Sense::PARAMETER_LENGTH)
    );
    assert_eq!(
        command(&cdb(8), &DISK, 263, 0),
        Err(Sense::PARAMETER_LENGTH)
    );
    let fixed = Geometry {
        unmap: false,
        ..DISK
    };
    assert_eq!(command(&cdb(8), &fixed, 264, 0), Err(Sense::INVALID_FIELD));
    assert_eq!(command(&block(&[0x42]), &DISK, 0, 0), Ok(Command::Nothing));
}

#[test]
fn write_same_zeroes_or_unmaps_and_does_nothing_else() {
    let cdb = |flags| block(&[0x41, flags, 0, 0, 0, 4, 0, 0, 2]);
    let (offset, length) = (2048, 1024);
    let zero = Command::Zero {
        offset,
        length,
        pattern: 512,
    };
    assert_eq!(command(&cdb(0), &DISK, 512, 0), Ok(zero));
    assert_eq!(
        command(&cdb(8), &DISK, 512, 0),
        Ok(Command::Unmap { offset, length })
    );
    assert_eq!(command(&cdb(0), &DISK, 511, 0), Err(Sense::INVALID_FIELD));
    let plain = Geometry {
        unmap: false,
        zeroes: false,
        ..DISK
    };
    assert_eq!(command(&cdb(8), &plain, 512, 0), Err(Sense::INVALID_FIELD));
    // No data, up to the end of the disk.
    let mut long = block(&[0x93, 1]);
    long[9] = 4;
    let rest = Command::Zero {
        offset,
        length: 996 * 512,
        pattern: 0,
    };
    assert_eq!(command(&long, &DISK, 0, 0), Ok(rest));
    long[8] = 0xff;
    assert_eq!(command(&long, &DISK, 0, 0), Err(Sense::OUT_OF_RANGE));
    let flush = command(&block(&[0x35]), &DISK, 0, 0);
    assert_eq!(flush, Ok(Command::Flush));
    for operation in [0x00, 0x1b] {
        assert_eq!(
            command(&block(&[operation]), &DISK, 0, 0),
            Ok(Command::Nothing)
        );
    }
    assert_eq!(
        command(&block(&[0x5f]), &DISK, 24, 0),
        Err(Sense::INVALID_OPERATION)
    );
}

#[test]
fn addresses_name_a_target_and_a_unit() {
    assert_eq!(
        address(&[1, 7, 0x40, 0, 0, 0, 0, 0]),
        Some(Address { target: 7, unit: 0 })
    );
    assert_eq!(
        address(&[1, 0, 0x7f, 0xff, 0, 0, 0, 0]),
        Some(Address {
            target: 0,
            unit: 0x3fff
        })
    );
    for wrong in [
        &[0, 0, 0x40, 0][..],
        &[1, 8, 0, 0],
        &[1, 255, 0, 0],
        &[1, 0, 0],
        &[0xc1, 1, 0, 0],
    ] {
        assert_eq!(address(wrong), None, "{wrong:?}");
    }
    let mut bytes = [0; HEADER];
    bytes[..4].copy_from_slice(&[1, 2, 0x40, 0]);
    bytes[8] = 9;
    bytes[19] = 0x28;
    let (whom, cdb) = header(&bytes);
    assert_eq!((whom, cdb[0]), (Some(Address { target: 2, unit: 0 }), 0x28));
    assert_eq!(tag(&bytes), 9);
    assert!(is_about_itself(&block(&[0x12])) && !is_about_itself(&cdb));
}

#[test]
fn task_management_resets_a_disk_and_refuses_the_rest() {
    for function in 0..20u32 {
        for (target, unit) in [(0u8, 0u8), (0, 5), (7, 0), (8, 0), (255, 1)] {
            let mut bytes = [0; TASK_MANAGEMENT];
            bytes[4..8].copy_from_slice(&function.to_le_bytes());
            bytes[8..12].copy_from_slice(&[1, target, 0x40, unit]);
            let wanted = match (function, target, unit) {
                (_, 8.., _) => Control::Answer(response::BAD_TARGET),
                (_, _, 1..) => Control::Answer(response::INCORRECT_LUN),
                (5, ..) => Control::Reset(target),
                _ => Control::Answer(response::FUNCTION_REJECTED),
            };
            assert_eq!(task_management(&bytes), wanted);
        }
    }
    assert!(is_task_management([0; 4]) && !is_task_management([1, 0, 0, 0]));
}

#[test]
fn a_disk_tells_who_it_is_and_how_large() {
    let standard = text(&[0x12, 0, 0, 0, 96], &DISK).unwrap();
    assert_eq!(standard.len(), 96);
    assert_eq!(&standard[8..32], b"OPI     Malloc disk     ");
    assert_eq!(usize::from(standard[4]), 91);
    assert_eq!(text(&[0x12, 0, 0, 0, 5], &DISK).unwrap().len(), 5);
    assert_eq!(text(&[0x12, 0, 1, 0, 96], &DISK), Err(Sense::INVALID_FIELD));
    let pages = text(&[0x12, 1, 0, 0, 255], &DISK).unwrap();
    for page in &pages[4..] {
        let data = text(&[0x12, 1, *page, 0, 255], &DISK).unwrap();
        assert_eq!(data[1], *page);
        assert_eq!(data.len(), 4 + usize::from(data[3]), "page {page:#x}");
    }
    assert_eq!(
        &text(&[0x12, 1, 0x80, 0, 255], &DISK).unwrap()[4..],
        b"abcd010203044506870809 0a0b0c0d0e"
            .iter()
            .copied()
            .filter(|byte| *byte != b' ')
            .collect::<Vec<_>>()
    );
    assert_eq!(
        text(&[0x12, 1, 0x83, 0, 255], &DISK).unwrap()[8] >> 4,
        6,
        "NAA 6"
    );
    assert_eq!(
        text(&[0x12, 1, 0x99, 0, 255], &DISK),
        Err(Sense::INVALID_FIELD)
    );
    let fixed = Geometry {
        unmap: false,
        ..DISK
    };
    assert_eq!(
        text(&[0x12, 1, 0xb2, 0, 255], &fixed),
        Err(Sense::INVALID_FIELD)
    );

    assert_eq!(text(&[0x25], &DISK).unwrap(), [0, 0, 3, 231, 0, 0, 2, 0]);
    let mut long = std::vec![0x9e, 0x10];
    long.extend([0; 11]);
    long.push(32);
    let capacity = text(&long, &DISK).unwrap();
    assert_eq!(
        (capacity.len(), capacity[7], capacity[13], capacity[14]),
        (32, 231, 3, 0x80)
    );
    long[1] = 0x11;
    assert_eq!(text(&long, &DISK), Err(Sense::INVALID_FIELD));
    assert_eq!(
        text(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16], &DISK).unwrap()[3],
        8
    );
    assert_eq!(
        text(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 15], &DISK),
        Err(Sense::INVALID_FIELD)
    );
    assert_eq!(text(&[0x03, 0, 0, 0, 18], &DISK).unwrap().len(), 18);
    for (cdb, length) in [
        (&[0x1a, 0, 8, 0, 255][..], 24),
        (&[0x1a, 0, 0x3f, 0, 255], 36),
        (&[0x1a, 0, 0x0a, 0, 255], 16),
        (&[0x5a, 0, 0x3f, 0, 0, 0, 0, 0, 255], 40),
    ] {
        let sense = text(cdb, &DISK).unwrap();
        assert_eq!(sense.len(), length);
        let own = if cdb[0] == 0x1a {
            usize::from(sense[0]) + 1
        } else {
            usize::from(sense[1]) + 2
        };
        assert_eq!(own, length);
    }
    assert_eq!(
        text(&[0x1a, 0, 0x48, 0, 255], &DISK).unwrap()[6],
        0,
        "nothing can be changed"
    );
    assert_eq!(
        text(&[0x1a, 0, 2, 0, 255], &DISK),
        Err(Sense::INVALID_FIELD)
    );
    assert_eq!(no_unit_inquiry()[0], 0x7f);
}

#[test]
fn answers_events_and_configuration_are_laid_out_as_virtio_says() {
    let good = answer(Ok(status::GOOD), 7);
    assert_eq!((good[4], good[10], good[11]), (7, 0, 0));
    let bad = answer(Err(Sense::OUT_OF_RANGE), 0);
    assert_eq!(
        (bad[0], bad[10], bad[12], bad[14], bad[24]),
        (18, 2, 0x70, 5, 0x21)
    );
    assert_eq!(unreached(response::BAD_TARGET)[11], 3);
    assert_eq!(
        Event::Added(3).encode(),
        [1, 0, 0, 0, 1, 3, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]
    );
    assert_eq!(Event::Removed(3).encode()[12], 2);
    assert_eq!(Event::Resized(3).encode()[..1], [3]);
    assert_eq!(Event::Resized(3).encode()[12..14], [0x2a, 9]);
    let mut space = [0; 64];
    configure(&mut space, 126, 100);
    assert_eq!(
        (
            space[0], space[4], space[16], space[20], space[24], space[30]
        ),
        (126, 100, 16, 96, 32, 7)
    );
}
