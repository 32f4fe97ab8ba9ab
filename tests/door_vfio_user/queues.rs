//! Queues created and deleted in any order.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::common::vfio_user::{
    BASE, Command, DATA, Guest, Memory, PAGE, Queue, READ, SIZE, WRITE, Which, admin, io,
};
use crate::common::{Resource, malloc, namespace, poll_blocking};
use crate::lab::{Lab, PATIENCE};
use crate::{Test, queues, tests};

pub const TESTS: [Test; 6] = tests! { queues:
    memory_comes_and_goes_under_io
    namespaces_come_and_go_under_io
    queues_made_and_deleted_in_one_doorbell_stop_nobody
    a_rejected_queue_can_be_created_later
    queues_can_be_recreated_after_a_controller_reset
    a_client_may_disconnect_while_its_queue_connects
};

const AT: u64 = BASE + 0x4000;

fn queues_made_and_deleted_in_one_doorbell_stop_nobody(lab: &mut Lab) {
    let create = || Command::create_sq(1, 1, 32, AT);
    let delete = || Command::delete(admin::DELETE_SQ, 1);
    let orders: [&[fn() -> Command]; 4] = [
        &[create, delete],
        &[create, delete, create, delete],
        &[create, create, delete, delete],
        &[create, || Command::delete(admin::DELETE_CQ, 1), delete],
    ];
    for order in orders {
        let mut guest = Guest::boot(&lab.socket);
        assert!(guest.admin(Command::create_cq(1, 32, AT + PAGE)).is_ok());
        for command in order {
            guest.push(Which::Admin, command());
        }
        guest.ring(Which::Admin).expect("the device replies");
        for n in 0..order.len() {
            let done = guest.completion(Which::Admin, Duration::from_secs(5));
            assert!(done.is_some(), "{n} of {} commands", order.len());
        }
    }
    // With commands in flight on the queue that is deleted and created.
    let mut guest = lab.guest();
    for block in 0..16 {
        guest.push(Which::Io, Command::rw(io::WRITE, block, 8).prps(DATA, 0));
    }
    for command in [delete(), create(), delete()] {
        guest.push(Which::Admin, command);
    }
    guest.ring(Which::Io).expect("the device replies");
    guest.ring(Which::Admin).expect("the device replies");
    for n in 0..3 {
        let done = guest.completion(Which::Admin, Duration::from_secs(5));
        assert!(done.is_some(), "{n} of 3 commands");
    }
}

fn memory_comes_and_goes_under_io(lab: &mut Lab) {
    // A rate limit keeps commands in flight when their memory is unmapped.
    let limits = Resource::new(&lab.client, "QosVolume");
    let limit = json!({ "max": { "rw_bandwidth_mbs": 1 } });
    let object = json!({ "volume_name_ref": "attacked-volume", "limits": limit });
    lab.block_on(limits.created("", "slow", object));
    let mut guest = lab.guest();
    let other = Memory::new(BASE + SIZE, 16 * PAGE);
    for round in 0..12 {
        let mapped = other.map(&mut guest.link, 0, 16 * PAGE, READ | WRITE);
        assert_eq!(mapped.expect("the device replies"), 0, "map");
        for block in 0..16 {
            let data = BASE + SIZE + block * PAGE;
            guest.push(
                Which::Io,
                Command::rw(io::WRITE, block * 8, 8).prps(data, 0),
            );
        }
        guest.ring(Which::Io).expect("the device replies");
        // Also while the controller is being disabled.
        let disabled = round % 4 == 3;
        if disabled {
            guest
                .write_register(0x14, 0x0046_0000)
                .expect("the device replies");
        }
        let errno = other.unmap(&mut guest.link, 0, 16 * PAGE);
        assert_eq!(errno.expect("the device replies"), 0, "unmap");
        if disabled {
            drop(guest);
            guest = lab.guest();
            continue;
        }
        for _ in 0..16 {
            let done = guest.completion(Which::Io, Duration::from_secs(5));
            assert!(done.is_some(), "a command is lost");
        }
    }
    drop(guest);
    lab.block_on(limits.deleted("qosVolumes/slow"));
}

fn a_rejected_queue_can_be_created_later(lab: &mut Lab) {
    let mut guest = Guest::boot(&lab.socket);
    // CC with invalid queue entry sizes: Connect of the I/O queue fails.
    guest
        .write_register(0x14, 0x0000_0001)
        .expect("the device replies");
    let queue = Queue::new(1, AT);
    let made = guest.create(&queue);
    assert!(!made.is_ok(), "{made:?}");
    guest
        .write_register(0x14, 0x0046_0001)
        .expect("the device replies");
    // The rejected queue pair is destroyed asynchronously: retry.
    let made = poll_blocking(PATIENCE, || {
        let made = guest.admin(Command::create_sq(1, 1, 32, AT));
        made.is_ok().then_some(())
    });
    assert!(made.is_some(), "the queue is still rejected");
    guest.verify(1);
    for (qid, entries) in [(0, 32), (500, 32), (u16::MAX, 32), (2, 1), (2, u16::MAX)] {
        let made = guest.admin(Command::create_cq(qid, entries, AT + 0x4000));
        assert!(!made.is_ok(), "queue {qid} of {entries} entries: {made:?}");
    }
}

fn queues_can_be_recreated_after_a_controller_reset(lab: &mut Lab) {
    let mut guest = lab.guest();
    for seed in 0..5 {
        // An unused completion queue is deleted by the reset too.
        assert!(guest.admin(Command::create_cq(2, 32, AT + 0x4000)).is_ok());
        guest.verify(seed);
        guest.disable().expect("the device replies");
        guest.enable().expect("the device replies");
        guest.io = Queue::new(1, AT);
        guest.memory.write(AT + PAGE, &[0; PAGE as usize]);
        let queue = guest.io.clone();
        let made = guest.create(&queue);
        assert!(made.is_ok(), "{made:?}");
        guest.verify(seed + 10);
    }
}

fn a_client_may_disconnect_while_its_queue_connects(lab: &mut Lab) {
    for _ in 0..10 {
        let mut guest = Guest::boot(&lab.socket);
        assert!(guest.admin(Command::create_cq(1, 32, AT + PAGE)).is_ok());
        guest.push(Which::Admin, Command::create_sq(1, 1, 32, AT));
        guest.ring(Which::Admin).expect("the device replies");
    }
    // Disconnect right after the version negotiation.
    for _ in 0..10 {
        drop(lab.link());
    }
}

/// With two reactors (`TEST_REACTORS=2`) a namespace is freed on one while the other computes the length of a command.
/// Without the change `vfio-user-20-block-size` AddressSanitizer may find that: it is a race of a few instructions.
fn namespaces_come_and_go_under_io(lab: &mut Lab) {
    const ROUNDS: usize = 40;
    const BATCH: u64 = 16;
    let socket = lab.socket.clone();
    let stop = AtomicBool::new(false);
    let done = std::thread::scope(|scope| {
        let guest = scope.spawn(|| {
            let mut guest = Guest::start(&socket);
            let (mut found, mut missing) = (0, 0);
            let end = Instant::now() + Duration::from_secs(60);
            while !stop.load(Ordering::Relaxed) && Instant::now() < end {
                for block in 0..BATCH {
                    let read = Command::rw(io::READ, block * 8, 8).nsid(2);
                    guest.push(Which::Io, read.prps(DATA, 0));
                }
                guest.ring(Which::Io).expect("the device replies");
                for _ in 0..BATCH {
                    let done = guest.completion(Which::Io, PATIENCE);
                    match done.expect("a command is lost").is_ok() {
                        true => found += 1,
                        false => missing += 1,
                    }
                }
            }
            guest.verify(3);
            (found, missing)
        });
        let namespaces = Resource::new(&lab.client, "NvmeNamespace");
        lab.block_on(async {
            let volume = malloc(&lab.client, "fleeting", 1).await;
            for _ in 0..ROUNDS {
                let parent = "nvmeSubsystems/attacked";
                let name = namespace(&lab.client, parent, &volume, json!({ "host_nsid": 2 })).await;
                namespaces.deleted(&name).await;
            }
            Resource::new(&lab.client, "MallocVolume")
                .deleted(&volume)
                .await;
        });
        stop.store(true, Ordering::Relaxed);
        guest.join().expect("the guest's I/O")
    });
    assert!(done.0 > 0 && done.1 > 0, "found and missing: {done:?}");
}
