//! SGLs from a guest's driver, valid and invalid.

use crate::common::vfio_user::{Command, DATA, Guest, LISTS, PAGE, io};
use crate::lab::Lab;
use crate::{Test, sgl, tests};

pub const TESTS: [Test; 3] = tests! { sgl:
    valid_sgls_are_served
    sgls_that_do_not_add_up_are_refused
    an_sgl_changed_while_it_is_read_does_no_harm
};

const SEGMENT: u8 = 0x20;
const LAST: u8 = 0x30;

/// Writes SGL descriptors to guest memory.
fn list(guest: &Guest, at: u64, descriptors: &[(u64, u32, u8)]) {
    let bytes: Vec<u8> = descriptors.iter().flat_map(descriptor).collect();
    guest.memory.write(at, &bytes);
}

fn descriptor((address, length, kind): &(u64, u32, u8)) -> Vec<u8> {
    let mut bytes = address.to_le_bytes().to_vec();
    bytes.extend(length.to_le_bytes());
    bytes.extend([0, 0, 0, *kind]);
    bytes
}

fn valid_sgls_are_served(lab: &mut Lab) {
    let mut guest = lab.guest();
    let data: Vec<u8> = (0..8192_u32).map(|n| (n * 7 / 3) as u8).collect();
    guest.memory.write(DATA, &data);
    let written = guest.io(Command::rw(io::WRITE, 0, 16).sgl(DATA, 8192, 0));
    assert!(written.is_ok(), "one block: {written:?}");

    let target = DATA + 0x8000;
    list(&guest, LISTS, &[(target, 4096, 0), (LISTS + 256, 32, LAST)]);
    list(
        &guest,
        LISTS + 256,
        &[(target + 4096, 2048, 0), (target + 6144, 2048, 0)],
    );
    let read = guest.io(Command::rw(io::READ, 0, 16).sgl(LISTS, 32, SEGMENT));
    assert!(read.is_ok(), "a chain: {read:?}");
    assert!(
        guest.memory.read(target, 8192) == data,
        "the data read differs from the data written"
    );
}

fn sgls_that_do_not_add_up_are_refused(lab: &mut Lab) {
    let mut guest = lab.guest();
    let blocks: Vec<_> = (0..34).map(|n| (DATA + n * 512, 512, 0)).collect();
    type List<'a> = &'a [(u64, u32, u8)];
    let lists: [(&str, u32, u8, List<'_>); 9] = [
        ("an empty segment", 0, SEGMENT, &[(DATA, 4096, 0)]),
        ("half a descriptor", 8, LAST, &[(DATA, 4096, 0)]),
        ("itself", 16, SEGMENT, &[(LISTS, 16, SEGMENT)]),
        ("less than the blocks", 16, LAST, &[(DATA, 512, 0)]),
        (
            "more than the blocks",
            32,
            LAST,
            &[(DATA, 4096, 0), (DATA, 512, 0)],
        ),
        (
            "a block of 0 bytes",
            32,
            LAST,
            &[(DATA, 0, 0), (DATA, 4096, 0)],
        ),
        (
            "a segment in the middle",
            48,
            LAST,
            &[(DATA, 2048, 0), (LISTS, 16, SEGMENT), (DATA, 2048, 0)],
        ),
        (
            "behind the last segment",
            16,
            LAST,
            &[(LISTS + 1024, 16, LAST)],
        ),
        ("more blocks than there is room for", 34 * 16, LAST, &blocks),
    ];
    for (what, length, kind, descriptors) in lists {
        list(&guest, LISTS, descriptors);
        list(&guest, LISTS + 1024, &[(DATA, 4096, 0)]);
        let count = if descriptors.len() > 30 { 34 } else { 8 };
        let read = guest.io(Command::rw(io::READ, 0, count).sgl(LISTS, length, kind));
        assert!(!read.is_ok(), "{what}: {read:?}");
    }
    // 33 segments of one descriptor each.
    for n in 0..33 {
        list(
            &guest,
            LISTS + n * 16,
            &[(LISTS + (n + 1) * 16, 16, SEGMENT)],
        );
    }
    let read = guest.io(Command::rw(io::READ, 0, 8).sgl(LISTS, 16, SEGMENT));
    assert!(!read.is_ok(), "33 segments: {read:?}");
    for kind in [0x01, 0x10, 0x40, 0x50, 0xf0] {
        let read = guest.io(Command::rw(io::READ, 0, 8).sgl(DATA, 4096, kind));
        assert!(!read.is_ok(), "type {kind:#x}: {read:?}");
    }
    for length in [0, 1, 4095, 4097, 1 << 20, u32::MAX] {
        let read = guest.io(Command::rw(io::READ, 0, 8).sgl(DATA, length, 0));
        assert!(!read.is_ok(), "{length} bytes for 4096: {read:?}");
    }
    guest.verify(1);
}

fn an_sgl_changed_while_it_is_read_does_no_harm(lab: &mut Lab) {
    let mut guest = lab.guest();
    let file = guest.memory.file.try_clone().expect("a descriptor");
    let (ends, ended) = std::sync::mpsc::channel::<()>();
    let changer = std::thread::spawn(move || {
        use std::os::unix::fs::FileExt;
        let at = LISTS - crate::common::vfio_user::BASE;
        let lists = [
            (DATA, 4096, 0),
            (u64::MAX - PAGE + 1, u32::MAX, 0),
            (LISTS, 16, SEGMENT),
        ];
        let lists = lists.map(|one| descriptor(&one));
        // Until the guest has executed its commands.
        while ended.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            for list in &lists {
                file.write_all_at(list, at).expect("memory");
            }
        }
    });
    for _ in 0..500 {
        // Either outcome is correct: each descriptor is read once and the copy is validated.
        guest.io(Command::rw(io::READ, 0, 8).sgl(LISTS, 16, LAST));
    }
    drop(ends);
    changer.join().expect("the changing thread did not panic");
    guest.verify(2);
}
