//! Attacks on the memory table.

use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::ftruncate;

use crate::lab::Lab;
use crate::vhost_user::{
    Disk, Guest, Kind, Message, Pages, Region, Session, USER_BASE, memory_file, request, table,
};

const PAGES: [Pages; 2] = [Pages::Ordinary, Pages::Huge];

pub fn ordinary_pages_and_2_mib_pages_serve_a_disk(lab: &mut Lab, kind: Kind) {
    for pages in PAGES {
        let options = kind.options().pages(pages);
        let mut disk = lab.disk_with(kind, &options);
        for seed in 0..8 {
            let verified = disk.verify(seed * 256, 64 << 10, seed.into());
            verified.unwrap_or_else(|error| panic!("{pages:?}: {error}"));
        }
    }
}

/// QEMU leaves a gap between 640 KiB and 768 KiB, and maps other ranges beside guest memory.
pub fn regions_at_odd_addresses_serve_a_disk(lab: &mut Lab, kind: Kind) {
    for pages in PAGES {
        let options = kind.options().pages(pages);
        let mut session = lab.negotiated(kind, &options);
        let whole = session.guest.regions[0].clone();
        let part = |guest: u64, end: u64| Region {
            guest,
            size: end - guest,
            user: USER_BASE + guest,
            offset: guest,
            file: Arc::clone(&whole.file),
        };
        session.guest.regions = vec![part(0, 0xa_0000), part(0xc_0000, whole.size)];
        session.share_memory().expect("the table is accepted");
        session.start_queues().expect("the rings start");
        let mut disk = Disk { session, kind };
        // One buffer on each side of the gap.
        for at in [0x8_0000, 0x30_0000] {
            let mark = disk.session.guest.mark();
            disk.session.guest.release(at);
            let verified = disk.verify(0, 64 << 10, at);
            verified.unwrap_or_else(|error| panic!("{pages:?}, {at:#x}: {error}"));
            disk.session.guest.release(mark);
        }
    }
}

pub fn a_region_added_before_any_table_does_no_harm(lab: &mut Lab, kind: Kind) -> Option<Session> {
    let options = kind.options();
    let mut held = None;
    for what in [request::ADD_MEM_REG, request::REM_MEM_REG] {
        // Only the header: it declares a payload of 0 bytes.
        drop(held.take());
        let mut session = lab.negotiated(kind, &options);
        session.refused(&Message::new(what));
        drop(session);
        let mut session = lab.negotiated(kind, &options);
        let region = session.guest.regions[0].clone();
        let message = Message::new(what).u64s([0]).u64s(region.words());
        // Adding the region is valid; removing one that was not added is not.
        match what {
            request::ADD_MEM_REG => drop(session.status(&message.fd(&region.file))),
            _ => session.refused(&message),
        }
        held = Some(session);
    }
    held
}

pub fn an_unmappable_memory_table_is_rejected(lab: &mut Lab, kind: Kind) -> Option<Session> {
    let mut held = None;
    let event = eventfd(0, EventfdFlags::NONBLOCK).expect("an eventfd");
    for first in [true, false] {
        drop(held.take());
        // First without memory, then as a replacement while rings run.
        let mut session = if first {
            lab.negotiated(kind, &kind.options())
        } else {
            lab.disk(kind).session
        };
        let words = session.guest.regions[0].words();
        let wrong = Message::new(request::SET_MEM_TABLE)
            .u32s([1, 0])
            .u64s(words)
            .fd(&event);
        session.refused(&wrong);
        // The client continues as if the table had been accepted.
        for queue in &session.queues {
            for message in queue.setup(&session.guest) {
                let _ = session.connection.send(&message);
            }
            let _ = session.connection.send(&queue.set_enable(true));
        }
        held = Some(session);
    }
    held
}

pub fn an_invalid_memory_table_is_rejected(lab: &mut Lab, kind: Kind) {
    let file = memory_file(Pages::Huge, 8 << 20);
    let right = Region {
        guest: 0,
        size: 8 << 20,
        user: USER_BASE,
        offset: 0,
        file: Arc::clone(&file),
    };
    let with = |change: fn(&mut Region)| {
        let mut region = right.clone();
        change(&mut region);
        vec![region]
    };
    let wrong = [
        with(|region| region.size = 0),
        with(|region| region.size = u64::MAX),
        with(|region| region.offset = u64::MAX - 4095),
        with(|region| region.offset = 1 << 62),
        with(|region| region.guest = u64::MAX - 4095),
        with(|region| region.user = u64::MAX - 4095),
        // The second overlaps the first.
        vec![
            right.clone(),
            Region {
                guest: 4096,
                ..right.clone()
            },
        ],
    ];
    for regions in &wrong {
        let mut session = lab.negotiated(kind, &kind.options());
        session.refused(&table(regions));
    }
    // More or fewer regions declared than described, and more than the limit.
    for count in [0, 2, 9, u32::MAX] {
        let mut session = lab.negotiated(kind, &kind.options());
        let message = Message::new(request::SET_MEM_TABLE).u32s([count, 0]);
        session.refused(&message.u64s(right.words()).fd(&file));
    }
}

/// A sparse file has any size at no cost, and each mapping takes address space that all devices share.
pub fn a_table_larger_than_the_machine_could_hold_is_rejected(lab: &mut Lab, kind: Kind) {
    const SIZE: u64 = 1 << 45;
    let file = memory_file(Pages::Ordinary, SIZE);
    let region = |guest: u64, size: u64| Region {
        guest,
        size,
        user: USER_BASE + guest,
        offset: guest,
        file: Arc::clone(&file),
    };
    let eighth = SIZE / 8;
    for regions in [
        vec![region(0, SIZE)],
        (0..8).map(|n| region(n * eighth, eighth)).collect(),
    ] {
        let mut session = lab.negotiated(kind, &kind.options());
        session.refused(&table(&regions));
    }
}

pub fn a_file_shorter_than_declared_does_no_harm(lab: &mut Lab, kind: Kind) -> Option<Session> {
    let mut held = None;
    for pages in PAGES {
        let options = kind.options().pages(pages);
        drop(held.take());
        let mut session = lab.negotiated(kind, &options);
        let region = &session.guest.regions[0];
        let half = region.size / 2;
        ftruncate(&region.file, half).expect("a file can be cut");
        if session.share_memory().is_ok() {
            // Rings in the part beyond the end of the file.
            for queue in &session.queues {
                let at = [0, 0x1000, 0x2000].map(|part| USER_BASE + half + part);
                let [num, base, _, kick, call] = queue.setup(&session.guest);
                for message in [num, base, queue.set_addresses(at), kick, call] {
                    let _ = session.connection.send(&message);
                }
                let _ = session.connection.send(&queue.set_enable(true));
                queue.kick();
            }
        }
        held = Some(session);
    }
    held
}

pub fn memory_truncated_while_in_use_ends_only_its_session(
    lab: &mut Lab,
    kind: Kind,
) -> Option<Disk> {
    let mut held = None;
    for pages in PAGES {
        let options = kind.options().pages(pages);
        drop(held.take());
        let mut disk = lab.disk_with(kind, &options);
        disk.verify(0, 4096, 5).expect("the disk is served");
        ftruncate(&disk.session.guest.regions[0].file, 0).expect("a file can be cut");
        for queue in &disk.session.queues {
            queue.kick();
        }
        assert!(
            disk.session.is_ended(),
            "{pages:?}: the session was not closed"
        );
        held = Some(disk);
    }
    held
}

pub fn a_second_memory_table_leaves_no_ring_in_the_old_one(lab: &mut Lab, kind: Kind) -> Disk {
    let mut disk = lab.disk(kind);
    disk.verify(0, 4096, 1).expect("the disk is served");
    // The same addresses in another file: the rings' contents change.
    let other = Guest::new(Pages::Huge, 8 << 20);
    let _ = disk.session.status(&other.table());
    for queue in &disk.session.queues {
        queue.kick();
    }
    // Memory at other addresses, which does not contain the rings.
    let file = memory_file(Pages::Huge, 2 << 20);
    let elsewhere = Region {
        guest: 1 << 40,
        size: 2 << 20,
        user: 1 << 40,
        offset: 0,
        file,
    };
    let _ = disk.session.status(&table(&[elsewhere]));
    for queue in &disk.session.queues {
        queue.kick();
    }
    disk
}
