//! Mappings of client memory: invalid, unmapped while in use, truncated.

use std::fs::File;

use crate::common::vfio_user::{
    BASE, Command, DATA, Guest, Memory, PAGE, READ, SIZE, WRITE, Which, command, io, map_at,
};
use crate::lab::{Lab, PATIENCE};
use crate::{Test, memory, tests};

pub const TESTS: [Test; 5] = tests! { memory:
    memory_that_is_not_whole_pages_of_its_file_is_refused
    a_queue_in_read_only_memory_is_rejected
    queues_in_memory_that_is_unmapped_stand_still
    a_file_that_is_cut_ends_its_own_session
    the_file_of_the_doorbells_cannot_be_cut
};

fn memory_that_is_not_whole_pages_of_its_file_is_refused(lab: &mut Lab) {
    let mut link = lab.link();
    let memory = Memory::new(BASE, 4 * PAGE);
    let page = PAGE;
    let wrong = [
        ("beyond its file", BASE, 5 * page, 0, READ | WRITE),
        (
            "partly beyond its file",
            BASE,
            2 * page,
            3 * page,
            READ | WRITE,
        ),
        ("an offset inside a page", BASE, page, 512, READ | WRITE),
        ("half a page", BASE, page / 2, 0, READ | WRITE),
        (
            "an address inside a page",
            BASE + 512,
            page,
            0,
            READ | WRITE,
        ),
        ("nothing", BASE, 0, 0, READ | WRITE),
        ("without the right to read", BASE, page, 0, WRITE),
        ("without any right", BASE, page, 0, 0),
        (
            "up to the last address",
            u64::MAX - page + 1,
            page,
            0,
            READ | WRITE,
        ),
        (
            "beyond the last address",
            u64::MAX - page + 1,
            2 * page,
            0,
            READ | WRITE,
        ),
        (
            "an offset that wraps",
            BASE,
            page,
            u64::MAX - page + 1,
            READ | WRITE,
        ),
    ];
    let before = lab.descriptors();
    for (what, address, size, offset, flags) in wrong {
        let errno = map_at(&mut link, address, size, offset, flags, &memory.file);
        assert_ne!(errno.expect("the device replies"), 0, "{what}");
    }
    // Neither a device file nor more memory than the per-client limit.
    let null = File::open("/dev/zero").expect("a device");
    let errno = map_at(&mut link, BASE, page, 0, READ | WRITE, &null);
    assert_ne!(errno.expect("the device replies"), 0, "a device");
    let huge = Memory::new(BASE, 3 << 40);
    let errno = map_at(&mut link, BASE, 3 << 40, 0, READ | WRITE, &huge.file);
    assert_ne!(errno.expect("the device replies"), 0, "3 TiB");
    // Repeating a mapping does not keep another descriptor.
    for _ in 0..20 {
        let errno = map_at(&mut link, BASE, page, 0, READ | WRITE, &memory.file);
        errno.expect("the device replies");
    }
    let after = lab.descriptors();
    assert!(
        after < before + 5,
        "{after} descriptors are open, {before} were"
    );
}

fn a_queue_in_read_only_memory_is_rejected(lab: &mut Lab) {
    let mut guest = Guest::boot(&lab.socket);
    let other = Memory::new(BASE + SIZE, 4 * PAGE);
    let mapped = other.map(&mut guest.link, 0, 4 * PAGE, READ);
    assert_eq!(mapped.expect("the device replies"), 0);
    let made = guest.admin(Command::create_cq(1, 32, BASE + SIZE));
    assert!(!made.is_ok(), "a completion queue: {made:?}");
    let made = guest.admin(Command::create_cq(1, 32, BASE + 0x5000));
    assert!(made.is_ok(), "{made:?}");
    let made = guest.admin(Command::create_sq(1, 1, 32, BASE + SIZE));
    assert!(!made.is_ok(), "a submission queue: {made:?}");
    // Neither at misaligned addresses nor in the last page of the address space.
    for address in [BASE + 0x4800, u64::MAX - PAGE + 1, u64::MAX - 63, 0] {
        let made = guest.admin(Command::create_sq(1, 1, 32, address));
        assert!(!made.is_ok(), "at {address:#x}: {made:?}");
    }
    // The admin queue's registers undergo the same checks.
    guest.disable().expect("the device replies");
    for address in [BASE + SIZE, u64::MAX - PAGE + 1] {
        guest.admin.address = address;
        let registers = [(0x24, 0x001f_001f_u64), (0x28, address), (0x30, address)];
        for (register, value) in registers {
            let bytes = value.to_le_bytes();
            let bytes = if register == 0x24 {
                &bytes[..4]
            } else {
                &bytes[..]
            };
            guest
                .link
                .write_region(0, register, bytes)
                .expect("the device replies");
        }
        guest
            .write_register(0x14, 0x0046_0001)
            .expect("the device replies");
        let status = guest.read_register(0x1c).expect("the device replies");
        assert_eq!(status & 2, 2, "CSTS.CFS of an admin queue at {address:#x}");
        guest.disable().expect("the device replies");
    }
}

fn queues_in_memory_that_is_unmapped_stand_still(lab: &mut Lab) {
    // Aligned to 2 MiB and not; with both queues, and with a completion queue without a submission
    // queue.
    for (base, with_sq) in [
        (BASE + SIZE, true),
        (BASE + SIZE, false),
        (BASE + SIZE + PAGE, true),
        (BASE + SIZE + PAGE, false),
    ] {
        let mut guest = Guest::boot(&lab.socket);
        let other = Memory::new(base, 8 * PAGE);
        let mapped = other.map(&mut guest.link, 0, 8 * PAGE, READ | WRITE);
        assert_eq!(mapped.expect("the device replies"), 0);
        assert!(guest.admin(Command::create_cq(1, 32, base + PAGE)).is_ok());
        if with_sq {
            assert!(guest.admin(Command::create_sq(1, 1, 32, base)).is_ok());
        }
        let errno = other.unmap(&mut guest.link, 0, 8 * PAGE);
        assert_eq!(errno.expect("the device replies"), 0, "unmap");
        if !with_sq {
            assert!(
                guest
                    .admin(Command::create_sq(1, 1, 32, BASE + 0x4000))
                    .is_ok()
            );
            let read = Command::rw(io::READ, 0, 8).prps(DATA, 0);
            guest.memory.write(BASE + 0x4000, &read.0);
        }
        guest.doorbell(1, false, 1).expect("the device replies");
        lab.check_neighbour();
        assert!(guest.identify().is_ok(), "the admin queue still works");
    }
}

fn a_file_that_is_cut_ends_its_own_session(lab: &mut Lab) {
    // Truncate before the queues' pages, and before the data's.
    for rest in [0, DATA - BASE] {
        let mut guest = lab.guest();
        let read = Command::rw(io::WRITE, 0, 8).prps(DATA, 0);
        guest.push(Which::Io, read);
        guest
            .memory
            .file
            .set_len(rest)
            .expect("the file can be truncated");
        // Either call may find the session closed.
        let _ = guest.ring(Which::Io);
        let _ = guest.doorbell(0, false, 5);
        assert!(guest.link.is_closed_within(PATIENCE), "cut to {rest} bytes");
        lab.check_neighbour();
        drop(guest);
        lab.guest().verify(6);
    }
}

fn the_file_of_the_doorbells_cannot_be_cut(lab: &mut Lab) {
    let mut link = lab.link();
    let mut body: Vec<u8> = [4096_u32, 0, 0, 0]
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .collect();
    body.extend([0; 16]);
    let reply = link.ok(command::GET_REGION_INFO, &body, &[]);
    let doorbells = reply.fds.into_iter().next().expect("BAR 0's file");
    let doorbells = File::from(doorbells);
    for length in [0, PAGE, 1 << 20] {
        assert!(doorbells.set_len(length).is_err(), "cut to {length} bytes");
    }
    lab.check_neighbour();
}
