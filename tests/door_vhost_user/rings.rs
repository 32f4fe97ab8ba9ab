//! Attacks on the setup of rings and on their contents.

use crate::lab::Lab;
use crate::vhost_user::{Descriptor, Disk, Kind, Message, Options, Session, flags, request};

pub fn a_ring_enlarged_while_it_runs_stays_within_memory(
    lab: &mut Lab,
    kind: Kind,
) -> Option<Disk> {
    let mut held = None;
    for size in [1024, 32768, 65535, 65536, u32::MAX, 0, 3] {
        drop(held.take());
        let mut disk = lab.disk(kind);
        let queue = &disk.session.queues[kind.queue()];
        let [num, kick] = [queue.set_num(size), queue.set_kick()];
        let _ = disk.session.status(&num);
        let _ = disk.session.status(&kick);
        let queue = &disk.session.queues[kind.queue()];
        // Pretend that the whole ring is available.
        disk.session
            .guest
            .store(queue.available + 2, u16::try_from(size).unwrap_or(u16::MAX));
        queue.kick();
        held = Some(disk);
    }
    held
}

pub fn a_ring_kicked_twice_is_one_ring(lab: &mut Lab, kind: Kind) -> Disk {
    let mut disk = lab.disk(kind);
    for round in 0..8 {
        let queue = kind.queue();
        disk.begin_read(0, 4096);
        let kick = disk.session.queues[queue].set_kick();
        // Either the ring keeps running or the connection ends.
        if disk.session.status(&kick).is_err() {
            break;
        }
        disk.session.queues[queue].kick();
        let session = &mut disk.session;
        let limit = std::time::Duration::from_secs(2);
        let used = session.queues[queue].wait_used(&session.guest, limit);
        assert!(used.is_some(), "round {round}: the ring has stalled");
        assert!(
            session.queues[queue].take_used(&session.guest).is_none(),
            "one chain, used twice"
        );
    }
    disk
}

pub fn ring_parts_outside_memory_are_rejected(lab: &mut Lab, kind: Kind) -> Option<Session> {
    let mut held = None;
    for part in 0..3 {
        for wrong in ["last", "end", "behind", "wraps", "odd"] {
            drop(held.take());
            let mut session = lab.negotiated(kind, &kind.options());
            session.share_memory().expect("the table is right");
            let (user, end) = (session.guest.user(0), session.guest.end());
            let at = match wrong {
                "last" => user + end - 16,
                "end" => user + end,
                "behind" => user + end + (1 << 30),
                "wraps" => u64::MAX - 15,
                _ => user + end - 4099,
            };
            for queue in &session.queues {
                let mut parts = [queue.descriptors, queue.used, queue.available]
                    .map(|part| session.guest.user(part));
                parts[part] = at;
                let [num, base, _, kick, call] = queue.setup(&session.guest);
                let enable = queue.set_enable(true);
                for message in [num, base, queue.set_addresses(parts), call, kick, enable] {
                    let _ = session.connection.send(&message);
                }
                queue.kick();
            }
            held = Some(session);
        }
    }
    // The same in a running ring.
    for part in 0..3 {
        drop(held.take());
        let mut disk = lab.disk(kind);
        let queue = &disk.session.queues[kind.queue()];
        let mut parts = [queue.descriptors, queue.used, queue.available]
            .map(|part| disk.session.guest.user(part));
        parts[part] = disk.session.guest.user(0) + disk.session.guest.end() - 16;
        let messages = [queue.set_addresses(parts), queue.set_kick()];
        for message in &messages {
            let _ = disk.session.connection.send(message);
        }
        disk.session.queues[kind.queue()].kick();
        held = Some(disk.session);
    }
    held
}

pub fn reset_of_the_owner_stops_the_rings(lab: &mut Lab, kind: Kind) -> Option<Disk> {
    let mut held = None;
    for what in [request::RESET_OWNER, request::RESET_DEVICE] {
        drop(held.take());
        let mut disk = lab.disk(kind);
        disk.begin_reads(1 << 20);
        let _ = disk.session.connection.send(&Message::new(what));
        for queue in &disk.session.queues {
            queue.kick();
        }
        held = Some(disk);
    }
    held
}

pub fn rings_without_their_parts_do_not_run(lab: &mut Lab, kind: Kind) -> Option<Session> {
    let mut held = None;
    // Bit mask: bit n leaves out the n-th setup message, bit 5 the memory table.
    for left_out in 1..64u32 {
        drop(held.take());
        let mut session = lab.negotiated(kind, &kind.options());
        if left_out & 32 == 0 {
            session.share_memory().expect("the table is right");
        }
        for queue in &session.queues {
            for (n, message) in queue.setup(&session.guest).iter().enumerate() {
                if left_out & (1 << n) == 0 {
                    let _ = session.connection.send(message);
                }
            }
            let _ = session.connection.send(&queue.set_enable(true));
            session.guest.store::<u16>(queue.available + 2, 1);
            queue.kick();
        }
        if left_out % 8 == 0 {
            held = Some(session);
        }
    }
    held
}

/// Offers each chain to a ring in a new session with these options.
fn offered(
    lab: &Lab,
    kind: Kind,
    options: &Options,
    chains: impl IntoIterator<Item = fn(&mut Disk) -> Descriptor>,
) -> Option<Disk> {
    let mut held = None;
    for chain in chains {
        for queue in 0..disk_queues(kind) {
            drop(held.take());
            let mut disk = lab.disk_with(kind, options);
            let head = chain(&mut disk);
            let Session { guest, queues, .. } = &mut disk.session;
            queues[queue].write(guest, 0, head);
            queues[queue].offer(guest, 0);
            queues[queue].kick();
            held = Some(disk);
        }
    }
    held
}

fn disk_queues(kind: Kind) -> usize {
    kind.queue() + 1
}

pub fn an_indirect_table_of_invalid_length_is_rejected(lab: &mut Lab, kind: Kind) -> Option<Disk> {
    let chains: [fn(&mut Disk) -> Descriptor; 7] = [
        // A partial entry at the end of memory.
        |disk| Descriptor::indirect(disk.session.guest.end() - 8, 8),
        |disk| Descriptor::indirect(disk.session.guest.end() - 16, 0),
        |disk| Descriptor::indirect(disk.session.guest.end() - 16, 32),
        |disk| Descriptor::indirect(disk.session.guest.end() - 24, 24),
        |_| Descriptor::indirect(u64::MAX - 15, 16),
        // An indirect table within an indirect table.
        |disk| {
            let at = disk.session.guest.allocate(4096, 4096);
            disk.session
                .guest
                .write(at, &Descriptor::indirect(at, 16).encode());
            Descriptor::indirect(at, 16)
        },
        // A table as large as memory.
        |disk| Descriptor::indirect(0, u32::try_from(disk.session.guest.end()).expect("small")),
    ];
    offered(lab, kind, &kind.options(), chains)
}

pub fn an_endless_chain_is_rejected(lab: &mut Lab, kind: Kind) -> Option<Disk> {
    let chains: [fn(&mut Disk) -> Descriptor; 4] = [
        // A descriptor linked to itself.
        |_| Descriptor::readable(0, 16).then(0),
        |_| Descriptor::writable(0, 512).then(0),
        // A link out of the ring.
        |_| Descriptor::readable(0, 16).then(60_000),
        // An indirect table whose second entry is linked to itself.
        |disk| {
            let at = disk.session.guest.allocate(4096, 4096);
            let [first, second] = [
                Descriptor::readable(0, 16).then(1),
                Descriptor::writable(0, 64).then(1),
            ];
            disk.session
                .guest
                .write(at, &[first.encode(), second.encode()].concat());
            Descriptor::indirect(at, 32)
        },
    ];
    // With dirty page logging enabled too.
    let log = crate::vhost_user::feature::LOG_ALL;
    drop(offered(lab, kind, &kind.options(), chains));
    offered(lab, kind, &kind.options().features(log), chains)
}

pub fn indices_outside_the_ring_are_rejected(lab: &mut Lab, kind: Kind) -> Option<Disk> {
    let mut held = None;
    for (head, ahead) in [(128, 1), (u16::MAX, 1), (0, 129), (0, 0x8000), (5, 128)] {
        for queue in 0..disk_queues(kind) {
            drop(held.take());
            let mut disk = lab.disk(kind);
            let Session { guest, queues, .. } = &mut disk.session;
            let queue = &mut queues[queue];
            for slot in 0..u64::from(queue.size) {
                guest.store(queue.available + 4 + 2 * slot, head);
            }
            queue.write(
                guest,
                5,
                Descriptor {
                    address: 0,
                    length: 16,
                    flags: flags::NEXT,
                    next: 5,
                },
            );
            guest.store::<u16>(queue.available + 2, ahead);
            queue.kick();
            held = Some(disk);
        }
    }
    held
}
