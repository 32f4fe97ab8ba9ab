//! Attacks with other shared areas than guest memory: the dirty page log of a migration, and the
//! inflight I/O area.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use crate::lab::Lab;
use crate::vhost_user::{
    Command, Kind, Message, Pages, RESPONSE, Session, blk_header, feature, memory_file, request,
};

pub fn a_dirty_log_outside_its_file_is_rejected(lab: &mut Lab, kind: Kind) -> Option<Session> {
    let mut held = None;
    let log = memory_file(Pages::Ordinary, 4096);
    for [size, offset] in [
        [4096, 1 << 40],
        [4096, 4096],
        [1 << 30, 0],
        [u64::MAX, 0],
        [4096, u64::MAX - 4095],
        [0, 0],
        [1, 4095],
    ] {
        drop(held.take());
        let options = kind
            .options()
            .features(feature::LOG_ALL)
            .protocol(crate::vhost_user::protocol::LOG_SHMFD);
        let mut disk = lab.disk_with(kind, &options);
        let message = Message::new(request::SET_LOG_BASE)
            .u64s([size, offset])
            .fd(&log);
        // SET_LOG_BASE has a reply of its own: either an error, or the log is accepted and stays within
        // its bounds.
        let _ = disk.session.connection.ask(&message);
        let _ = disk.read(0, 4096);
        held = Some(disk.session);
    }
    held
}

/// Takes the pages that are marked in a log.
fn take_marked(log: &File) -> Vec<u64> {
    let mut bytes = [0; 4096];
    log.read_exact_at(&mut bytes, 0).expect("the log");
    log.write_all_at(&[0; 4096], 0).expect("the log");
    let is_marked = |page: &u64| bytes[(page / 8) as usize] & (1 << (page % 8)) != 0;
    (0..4096 * 8).filter(is_marked).collect()
}

/// A rejected request of huge buffers would else keep the reactor busy with marking pages that nobody wrote.
pub fn requests_mark_the_pages_that_they_wrote_and_no_others(lab: &mut Lab, kind: Kind) {
    const LENGTH: usize = 64 << 10;
    let log = memory_file(Pages::Ordinary, 4096);
    let options = kind
        .options()
        .features(feature::LOG_ALL)
        .protocol(crate::vhost_user::protocol::LOG_SHMFD);
    let mut disk = lab.disk_with(kind, &options);
    let message = Message::new(request::SET_LOG_BASE).u64s([4096, 0]).fd(&log);
    let answer = disk.session.connection.ask(&message);
    answer.expect("the log is accepted");
    take_marked(&log);
    let pages = |(at, length): (u64, usize)| at / 4096..=(at + length as u64 - 1) / 4096;
    for is_valid in [false, true, false] {
        // Far behind the end of the disk, or its beginning.
        let (header, sizes, status) = match kind {
            Kind::Blk => {
                let sector = if is_valid { 0 } else { 1 << 40 };
                (blk_header(0, sector), [LENGTH, 1], 1)
            }
            Kind::Scsi => {
                let block = if is_valid { 0 } else { u32::MAX - 1000 };
                let command = Command::transfer(0x28, block, (LENGTH / 512) as u16);
                (command.encode(), [RESPONSE, LENGTH], 0)
            }
        };
        let (chain, places) = disk.session.place(&[&header], &sizes);
        disk.submit(&chain);
        let Session { guest, queues, .. } = &mut disk.session;
        let used = queues[kind.queue()].wait_used(guest, Duration::from_secs(3));
        used.expect("the request is answered");
        let mut expected: Vec<_> = pages(places[status]).collect();
        if is_valid {
            expected.extend(pages(places[1 - status]));
        }
        expected.sort_unstable();
        assert_eq!(take_marked(&log), expected, "valid: {is_valid}");
    }
}

/// GET_INFLIGHT_FD for this many rings.
fn area(session: &mut Session, queues: u16, size: u16) -> std::io::Result<Message> {
    let mut message = Message::new(request::GET_INFLIGHT_FD).u64s([0, 0]);
    message.body.extend(
        [queues, size]
            .iter()
            .flat_map(|number| number.to_le_bytes()),
    );
    session.connection.ask(&message)
}

/// SET_INFLIGHT_FD with these numbers.
fn inflight(size: u64, offset: u64, queues: u16, entries: u16) -> Message {
    let mut message = Message::new(request::SET_INFLIGHT_FD).u64s([size, offset]);
    message.body.extend(
        [queues, entries]
            .iter()
            .flat_map(|number| number.to_le_bytes()),
    );
    message
}

pub fn a_too_small_inflight_area_is_rejected(lab: &mut Lab, kind: Kind) -> Option<Session> {
    let mut held = None;
    let file = memory_file(Pages::Ordinary, 4096);
    let queues = u16::try_from(kind.queue() + 1).expect("few");
    for (size, offset, queues, entries) in [
        (4096, 0, queues, 1024),
        (1 << 30, 0, queues, 128),
        (4096, 1 << 40, queues, 128),
        (64, 0, queues, 128),
        (4096, 0, u16::MAX, u16::MAX),
        (4096, 0, 0, 128),
        (u64::MAX, u64::MAX, queues, 128),
    ] {
        drop(held.take());
        let mut session = lab.negotiated(kind, &kind.options());
        session.share_memory().expect("the table is right");
        let _ = session.status(&inflight(size, offset, queues, entries).fd(&file));
        let _ = session.start_queues();
        for queue in &session.queues {
            queue.kick();
        }
        held = Some(session);
    }
    held
}

pub fn hostile_counters_in_the_inflight_area_do_no_harm(
    lab: &mut Lab,
    kind: Kind,
) -> Option<Session> {
    let mut held = None;
    let queues = u16::try_from(kind.queue() + 1).expect("few");
    for fill in [0xffu8, 0x01, 0x7f, 0x80] {
        drop(held.take());
        let mut session = lab.negotiated(kind, &kind.options());
        session.share_memory().expect("the table is right");
        let answer = area(&mut session, queues, 128).expect("an area is made");
        let size = u64::from_le_bytes(answer.body[..8].try_into().expect("8 bytes"));
        assert!(
            (64..1 << 20).contains(&size),
            "{size} bytes for {queues} rings of 128"
        );
        // Fill the whole area, versions and counters included.
        let file = std::fs::File::from(
            answer.fds[0]
                .try_clone()
                .expect("a file descriptor is left"),
        );
        let place = (
            GuestAddress(0),
            size as usize,
            Some(FileOffset::new(file, 0)),
        );
        let shared =
            GuestMemoryMmap::<()>::from_ranges_with_files([place]).expect("the area can be mapped");
        shared
            .write_slice(&vec![fill; size as usize], GuestAddress(0))
            .expect("the area can be written");
        let message = inflight(size, 0, queues, 128).fd(&answer.fds[0]);
        let _ = session.status(&message);
        let _ = session.start_queues();
        for queue in &session.queues {
            queue.kick();
        }
        held = Some(session);
    }
    held
}

pub fn a_huge_inflight_area_is_rejected_at_once(lab: &mut Lab, kind: Kind) -> Session {
    for (queues, size) in [(1024, 65535), (65535, 65535), (0, 0), (65535, 1)] {
        let mut session = lab.negotiated(kind, &kind.options());
        let begun = Instant::now();
        if let Ok(answer) = area(&mut session, queues, size) {
            let made = u64::from_le_bytes(answer.body[..8].try_into().expect("8 bytes"));
            assert!(
                made <= 16 << 20,
                "{made} bytes for {queues} rings of {size}"
            );
        }
        assert!(
            begun.elapsed() < Duration::from_millis(500),
            "{:?}",
            begun.elapsed()
        );
    }
    lab.negotiated(kind, &kind.options())
}
