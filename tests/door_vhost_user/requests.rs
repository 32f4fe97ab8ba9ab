//! Attacks with requests: the shapes of descriptor chains and their contents.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::common::Random;
use crate::lab::Lab;
use crate::vhost_user::{
    Command, Descriptor, Disk, Kind, RESPONSE, SECTOR, Session, Tmf, blk_header, flags, lun,
};

const DISCARD: u32 = 11;
const CONTROL: usize = 0;
const EVENT: usize = 1;

/// Submits chains and waits until each has been used or the session has ended.
fn end_each(disk: &mut Disk, queue: usize, chains: &[Vec<Descriptor>]) {
    let Session {
        guest,
        queues,
        connection,
        ..
    } = &mut disk.session;
    connection.set_limit(Duration::from_millis(100));
    for chain in chains {
        queues[queue].submit(guest, chain);
        if queues[queue]
            .wait_used(guest, Duration::from_secs(2))
            .is_none()
        {
            assert!(
                connection.is_ended(),
                "{chain:?} was not used and the session not closed"
            );
            return;
        }
    }
}

pub fn a_split_discard_at_the_end_of_memory_is_served_or_rejected(
    lab: &mut Lab,
    kind: Kind,
) -> Disk {
    let mut disk = lab.disk(kind);
    let guest = &mut disk.session.guest;
    let end = guest.end();
    let (header, rest, status) = (
        guest.allocate(16, 16),
        guest.allocate(16, 16),
        guest.allocate(16, 16),
    );
    guest.write(header, &blk_header(DISCARD, 0));
    let chain = |parts: &[Descriptor]| {
        let mut chain = vec![Descriptor::readable(header, 16)];
        chain.extend_from_slice(parts);
        chain.push(Descriptor::writable(status, 1));
        chain
    };
    let chains = [
        chain(&[
            Descriptor::readable(end - 1, 1),
            Descriptor::readable(rest, 15),
        ]),
        chain(&[
            Descriptor::readable(end - 8, 8),
            Descriptor::readable(rest, 8),
        ]),
        chain(&[Descriptor::readable(end - 15, 15)]),
        chain(&[Descriptor::readable(rest, 0)]),
        chain(&[]),
    ];
    end_each(&mut disk, kind.queue(), &chains);
    disk
}

pub fn malformed_blk_requests_are_rejected(lab: &mut Lab, kind: Kind) -> Disk {
    let mut disk = lab.disk(kind);
    let guest = &mut disk.session.guest;
    let (data, status) = (guest.allocate(1 << 16, 4096), guest.allocate(16, 16));
    let end = guest.end();
    let read = Descriptor::writable(data, 512);
    let done = Descriptor::writable(status, 1);
    let mut chains = Vec::new();
    for operation in [0, 1, 4, 8, 11, 13, 14, 15, 100, u32::MAX] {
        for sector in [0, 1 << 40, u64::MAX, u64::MAX / 512] {
            let header = guest.allocate(16, 16);
            guest.write(header, &blk_header(operation, sector));
            let head = Descriptor::readable(header, 16);
            chains.extend([
                vec![head],
                vec![head, done],
                vec![head, read],
                vec![head, read, done],
                vec![head, Descriptor::readable(data, 511), done],
                vec![head, Descriptor::readable(data, 512), done],
                vec![head, read, Descriptor::readable(data, 512), done],
                vec![head, Descriptor::writable(end - 16, 512), done],
                vec![head, Descriptor::writable(u64::MAX - 15, 512), done],
                vec![head, read, Descriptor::writable(end, 1)],
                vec![head, read, Descriptor::readable(status, 1)],
                vec![head, read, Descriptor::writable(status, 0)],
                vec![Descriptor::readable(header, 15), read, done],
                vec![Descriptor::writable(header, 16), read, done],
                vec![Descriptor::readable(end - 8, 16), read, done],
                vec![head, Descriptor::writable(data, u32::MAX), done],
            ]);
        }
    }
    for chain in chains.chunks(64) {
        end_each(&mut disk, kind.queue(), chain);
        // The session may have been closed because of an invalid chain: reconnect.
        if disk.read(0, 512).is_err() {
            disk = lab.disk(kind);
        }
    }
    disk
}

pub fn a_reset_of_a_missing_unit_is_rejected(lab: &mut Lab, kind: Kind) -> Disk {
    let mut disk = lab.disk(kind);
    for function in 0..9 {
        for (target, unit) in [(0, 5), (0, 16383), (7, 0), (8, 0), (255, 255), (0, 0)] {
            let tmf = Tmf {
                function,
                lun: lun(target, unit),
            }
            .encode();
            let done = disk.session.transfer(CONTROL, &[&tmf], &[1]);
            let response = done.expect("the request is answered").parts[0][0];
            // A reset of a missing unit must not succeed, nor an unknown function.
            let is_there = (target, unit) == (0, 0);
            assert!(
                is_there || response != 0,
                "function {function} of {target}, {unit}: {response}"
            );
        }
        disk.read(0, 512).expect("the disk is still there");
    }
    disk
}

pub fn malformed_scsi_requests_are_rejected(lab: &mut Lab, kind: Kind) -> Disk {
    let mut disk = lab.disk(kind);
    let guest = &mut disk.session.guest;
    let (data, end) = (guest.allocate(1 << 16, 4096), guest.end());
    let response = guest.allocate(RESPONSE as u64, 64);
    let [done, read] = [
        Descriptor::writable(response, RESPONSE as u32),
        Descriptor::writable(data, 512),
    ];
    let mut control = Vec::new();
    for bytes in [
        vec![0; 3],
        vec![0; 24],
        vec![1; 24],
        vec![0xff; 24],
        vec![2, 0, 0, 0, 9],
    ] {
        let at = guest.allocate(64, 64);
        guest.write(at, &bytes);
        let head = Descriptor::readable(at, bytes.len() as u32);
        control.extend([
            vec![head],
            vec![head, Descriptor::writable(end - 1, 5)],
            vec![head, Descriptor::writable(data, 0)],
            vec![head, Descriptor::readable(data, 5)],
            vec![Descriptor::readable(end - 2, 24), done],
            vec![Descriptor::writable(at, 24)],
        ]);
    }
    let mut requests = Vec::new();
    for operation in 0..=255u8 {
        let command = Command::new(
            operation % 3,
            &[operation, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0],
        );
        let at = guest.allocate(64, 64);
        guest.write(at, &command.encode());
        let head = Descriptor::readable(at, 51);
        requests.extend([
            vec![head, done, read],
            vec![head, Descriptor::readable(data, 24), done],
            vec![head, done],
        ]);
        if operation % 16 == 8 {
            requests.extend([
                vec![head],
                vec![head, read],
                vec![head, Descriptor::writable(end - 8, RESPONSE as u32), read],
                vec![head, done, Descriptor::writable(end - 8, 512)],
                vec![head, done, Descriptor::writable(u64::MAX - 7, 512)],
                vec![head, done, Descriptor::readable(data, 512)],
                vec![head, Descriptor::readable(data, 512)],
                vec![head, done, Descriptor::writable(data, u32::MAX)],
                vec![Descriptor::readable(at, 50), done, read],
                vec![Descriptor::readable(end - 8, 51), done, read],
            ]);
        }
    }
    // Event buffers at invalid addresses.
    for event in [
        Descriptor::writable(end - 4, 16),
        Descriptor::readable(data, 16),
        Descriptor::writable(data, 3),
    ] {
        let Session { guest, queues, .. } = &mut disk.session;
        queues[EVENT].submit(guest, &[event]);
    }
    for (queue, chains) in [(CONTROL, control), (kind.queue(), requests)] {
        for chain in chains.chunks(64) {
            end_each(&mut disk, queue, chain);
            if disk.read(0, 512).is_err() {
                disk = lab.disk(kind);
            }
        }
    }
    disk
}

/// A TOCTOU race: another guest CPU rewrites the length while the device reads the descriptor.
pub fn a_length_changed_during_the_read_stays_within_memory(lab: &mut Lab, kind: Kind) -> Disk {
    const ROUNDS: usize = 1500;
    let mut disk = lab.disk(kind);
    let queue = kind.queue();
    let status = if kind == Kind::Blk { 1 } else { RESPONSE };
    let header = match kind {
        Kind::Blk => blk_header(0, 0),
        Kind::Scsi => Command::transfer(0x28, 0, 1).encode(),
    };
    let (mut chain, places) = disk.session.place(&[&header], &[status, SECTOR]);
    // A buffer at the end of memory, with room for exactly one sector.
    let end = disk.session.guest.end();
    let data = Descriptor::writable(end - SECTOR as u64, SECTOR as u32);
    let status = Descriptor::writable(places[0].0, status as u32);
    let at = if kind == Kind::Blk { 1 } else { 2 };
    chain.truncate(1);
    chain.extend(if at == 1 {
        [data, status]
    } else {
        [status, data]
    });
    let stop = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let Session { guest, queues, .. } = &mut disk.session;
        let guest = &*guest;
        let numbers: Vec<u16> = (0..3).collect();
        for (n, descriptor) in chain.iter().enumerate() {
            let linked = numbers.get(n + 1).map(|next| descriptor.then(*next));
            queues[queue].write(guest, numbers[n], linked.unwrap_or(*descriptor));
        }
        let length = queues[queue].descriptors + 16 * at + 8;
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                guest.store(length, 512u32);
                guest.store(length, 1u32 << 20);
            }
        });
        for _ in 0..ROUNDS {
            queues[queue].offer(guest, 0);
            queues[queue].kick();
            if queues[queue]
                .wait_used(guest, Duration::from_secs(1))
                .is_none()
            {
                // The session was closed because of the descriptor.
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    disk
}

pub fn random_chains_do_no_harm(lab: &mut Lab, kind: Kind) {
    let mut random = Random(0x5eed);
    let mut below = |limit: u64| random.below(limit as usize) as u64;
    for _ in 0..12 {
        let mut disk = lab.disk(kind);
        for queue in 0..=kind.queue() {
            let Session { guest, queues, .. } = &mut disk.session;
            let end = guest.end();
            // Fill the table with random descriptors, some of them valid, and offer all of them.
            for number in 0..queues[queue].size {
                let address = match below(6) {
                    0 => end - below(64),
                    1 => u64::MAX - below(64),
                    2 => queues[queue].descriptors + 16 * below(128),
                    _ => below(end),
                };
                let length = match below(6) {
                    0 => below(1 << 32) as u32,
                    1 => 0,
                    2 => 16 * below(300) as u32,
                    3 => RESPONSE as u32,
                    _ => below(4096) as u32,
                };
                let descriptor = Descriptor {
                    address,
                    length,
                    flags: below(8) as u16 & !(flags::INDIRECT * u16::from(below(2) == 0)),
                    next: below(140) as u16,
                };
                queues[queue].write(guest, number, descriptor);
            }
            for _ in 0..64 {
                queues[queue].offer(guest, below(130) as u16);
            }
            queues[queue].kick();
        }
    }
}

/// A turn of the poller ends after 1 MiB of data, and what it leaves needs no further kick.
pub fn large_requests_left_by_a_turn_are_served_without_a_kick(lab: &mut Lab, kind: Kind) {
    const EACH: usize = 256 << 10;
    const COUNT: usize = 40;
    let mut disk = lab.disk_with(kind, &kind.options().memory(16 << 20));
    disk.begin_reads(COUNT * EACH);
    let Session { guest, queues, .. } = &mut disk.session;
    for n in 0..COUNT {
        let used = queues[kind.queue()].wait_used(guest, Duration::from_secs(3));
        assert!(used.is_some(), "{n} of {COUNT} requests");
    }
}
