//! Attacks by a guest's driver, with a well-behaved VMM as the client.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::common::vfio_user::{BASE, Command, DATA, Guest, LISTS, PAGE, Which, admin, io};
use crate::common::{Random, Resource, malloc, namespace};
use crate::lab::{Lab, PATIENCE};
use crate::{Test, guest, tests};

pub const TESTS: [Test; 7] = tests! { guest:
    addresses_at_the_end_of_the_address_space_are_refused
    registers_are_right_while_a_namespace_is_added_and_removed
    a_wild_doorbell_stops_no_other_machine
    an_abort_that_finds_nothing_to_abort_is_answered
    the_device_takes_a_client_after_each_way_of_leaving
    the_device_accepts_a_client_after_random_commands
    a_guest_cannot_fill_the_log
};

fn addresses_at_the_end_of_the_address_space_are_refused(lab: &mut Lab) {
    let mut guest = lab.guest();
    let last_page = u64::MAX - (PAGE - 1);
    for opcode in [io::READ, io::WRITE] {
        let page = guest.io(Command::rw(opcode, 0, 8).prps(last_page, 0));
        assert!(!page.is_ok(), "PRP1 at the last page: {page:?}");
        let second = guest.io(Command::rw(opcode, 0, 16).prps(DATA, last_page));
        assert!(!second.is_ok(), "PRP2 at the last page: {second:?}");
        let block = guest.io(Command::rw(opcode, 0, 8).sgl(last_page, 4096, 0));
        assert!(!block.is_ok(), "an SGL block at the last page: {block:?}");
        let before = guest.io(Command::rw(opcode, 0, 8).sgl(last_page - 1, 4096, 0));
        assert!(!before.is_ok(), "an SGL block before it: {before:?}");
    }
    // PRP lists there, and at misaligned addresses.
    guest.memory.write(LISTS, &last_page.to_le_bytes());
    for (list, blocks) in [
        (LISTS, 24),
        (u64::MAX, 24),
        (last_page, 24),
        (LISTS + 4, 24),
    ] {
        let read = guest.io(Command::rw(io::READ, 0, blocks).prps(DATA, list));
        assert!(!read.is_ok(), "a list at {list:#x}: {read:?}");
    }
    for prp2 in [u64::MAX, u64::MAX - 7, last_page] {
        let command = Command::new(admin::IDENTIFY).dword(10, 1);
        let identified = guest.admin(command.prps(DATA + 8, prp2));
        assert!(!identified.is_ok(), "{prp2:#x}: {identified:?}");
    }
    assert!(guest.identify().is_ok(), "a valid Identify still succeeds");
    guest.verify(2);
}

fn registers_are_right_while_a_namespace_is_added_and_removed(lab: &mut Lab) {
    let mut guest = lab.guest();
    let (cap, vs, cc) = (
        guest.read_register(0).expect("CAP"),
        guest.read_register(8).expect("VS"),
        guest.read_register(0x14).expect("CC"),
    );
    assert_ne!((cap, vs, cc), (0, 0, 0));
    let socket = lab.target.grpc;
    let changes = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async {
            let client = crate::common::Client::connect(socket)
                .await
                .expect("the target accepts connections");
            malloc(&client, "coming", 4).await;
            for _ in 0..30 {
                let shown =
                    namespace(&client, "nvmeSubsystems/attacked", "coming", json!({})).await;
                Resource::new(&client, "NvmeNamespace")
                    .deleted(&shown)
                    .await;
            }
            Resource::new(&client, "MallocVolume")
                .deleted("mallocVolumes/coming")
                .await;
        });
    });
    let mut reads = 0;
    while !changes.is_finished() {
        assert_eq!(guest.read_register(0).ok(), Some(cap), "CAP");
        assert_eq!(guest.read_register(8).ok(), Some(vs), "VS");
        assert_eq!(guest.read_register(0x14).ok(), Some(cc), "CC");
        assert_eq!(guest.read_register(0x1c).ok(), Some(1), "CSTS");
        reads += 4;
    }
    changes.join().expect("the changes are made");
    assert!(reads > 40, "{reads} reads are too few");
    guest.verify(4);
}

fn a_wild_doorbell_stops_no_other_machine(lab: &mut Lab) {
    let mut guest = lab.guest();
    for value in [32, 0xffff, 0x1_0000, u32::MAX] {
        for qid in [0, 1] {
            guest
                .doorbell(qid, false, value)
                .expect("the device replies");
            lab.check_neighbour();
            guest
                .doorbell(qid, true, value)
                .expect("the device replies");
            lab.check_neighbour();
        }
    }
    for at in [0x1008 + 512 * 8, 0x2ffc] {
        let reply = guest.link.write_region(0, at, &[0; 4]);
        reply.expect("the device replies");
    }
}

fn an_abort_that_finds_nothing_to_abort_is_answered(lab: &mut Lab) {
    let mut guest = lab.guest();
    let event = guest.push(Which::Admin, Command::new(admin::ASYNC_EVENT));
    guest.ring(Which::Admin).expect("the device replies");
    // Half of a fused pair is held back in the controller: it has not reached the volume, where it could
    // be aborted.
    let half = Command::rw(io::COMPARE, 0, 8).prps(DATA, 0).fused(1);
    let half = guest.push(Which::Io, half);
    guest.ring(Which::Io).expect("the device replies");
    // The two commands, unknown command IDs and an unknown queue.
    for (id, queue) in [(half, 1), (event, 0), (999, 0), (1, 1), (1, 77)] {
        let abort = Command::new(admin::ABORT).dword(10, u32::from(id) << 16 | queue);
        let abort = guest.push(Which::Admin, abort);
        guest.ring(Which::Admin).expect("the device replies");
        // The event's completion may arrive first.
        let mut completions =
            std::iter::from_fn(|| guest.completion(Which::Admin, Duration::from_secs(5)));
        let aborted = completions.find(|completion| completion.id == abort);
        let aborted = aborted.map(|completion| completion.is_ok());
        assert_eq!(aborted, Some(true), "command {id} of queue {queue}");
    }
    // An Abort that never completes would block every later change of the subsystem.
    drop(guest);
    lab.block_on(async {
        let volume = malloc(&lab.client, "after-abort", 4).await;
        let shown = namespace(&lab.client, "nvmeSubsystems/attacked", &volume, json!({})).await;
        Resource::new(&lab.client, "NvmeNamespace")
            .deleted(&shown)
            .await;
        Resource::new(&lab.client, "MallocVolume")
            .deleted(&volume)
            .await;
    });
}

/// Brings a guest into the state in which its client disconnects.
type Way = fn(&mut Guest);

fn the_device_takes_a_client_after_each_way_of_leaving(lab: &mut Lab) {
    let ways: [(&str, Way); 8] = [
        ("idle", |_| {}),
        ("I/O in flight", |guest| {
            for block in 0..24 {
                let data = DATA + block * PAGE;
                guest.push(
                    Which::Io,
                    Command::rw(io::WRITE, block * 8, 8).prps(data, 0),
                );
            }
            guest.ring(Which::Io).expect("the device replies");
        }),
        ("half a fused pair", |guest| {
            let first = Command::rw(io::COMPARE, 0, 8).prps(DATA, 0).fused(1);
            guest.push(Which::Io, first);
            guest.ring(Which::Io).expect("the device replies");
        }),
        ("half a fused pair, and a deleted queue", |guest| {
            let first = Command::rw(io::COMPARE, 0, 8).prps(DATA, 0).fused(1);
            guest.push(Which::Io, first);
            guest.ring(Which::Io).expect("the device replies");
            guest.push(Which::Admin, Command::delete(admin::DELETE_SQ, 1));
            guest.ring(Which::Admin).expect("the device replies");
        }),
        ("an async event request and its abort", |guest| {
            let id = guest.push(Which::Admin, Command::new(admin::ASYNC_EVENT));
            let abort = Command::new(admin::ABORT).dword(10, u32::from(id) << 16);
            guest.push(Which::Admin, abort);
            guest.ring(Which::Admin).expect("the device replies");
        }),
        ("disabled", |guest| {
            guest.disable().expect("the device replies")
        }),
        ("shut down", |guest| {
            guest
                .write_register(0x14, 0x0046_4001)
                .expect("the device replies");
        }),
        ("an unmap in flight", |guest| {
            let first = Command::rw(io::COMPARE, 0, 8).prps(DATA, 0).fused(1);
            guest.push(Which::Io, first);
            guest.ring(Which::Io).expect("the device replies");
            let mut body = [24_u32, 0]
                .into_iter()
                .flat_map(u32::to_le_bytes)
                .collect::<Vec<u8>>();
            body.extend([BASE, 4 << 20].into_iter().flat_map(u64::to_le_bytes));
            guest
                .link
                .send(3, &body, &[])
                .expect("the message fits the socket buffer");
        }),
    ];
    for (way, leave) in ways {
        let mut guest = lab.guest();
        leave(&mut guest);
        drop(guest);
        let begin = Instant::now();
        lab.guest().verify(9);
        assert!(begin.elapsed() < PATIENCE, "{way}");
    }
}

fn the_device_accepts_a_client_after_random_commands(lab: &mut Lab) {
    let mut random = Random(0x5eed_0010);
    for _ in 0..4 {
        let mut guest = lab.guest();
        for _ in 0..40 {
            for _ in 0..16 {
                let queue = if random.one_in(4) {
                    Which::Admin
                } else {
                    Which::Io
                };
                guest.push(queue, random_command(&mut random));
            }
            let rung = guest
                .ring(Which::Admin)
                .and_then(|()| guest.ring(Which::Io));
            // The controller may have failed: the device must still recover.
            if rung.is_err() {
                break;
            }
            let some = Duration::from_millis(1);
            while guest.completion(Which::Io, some).is_some() {}
            while guest.completion(Which::Admin, some).is_some() {}
            if random.one_in(8) {
                let _ = guest.doorbell(1, random.one_in(2), random.below(1 << 20) as u32);
            }
        }
        drop(guest);
        lab.check_neighbour();
        lab.guest().verify(5);
    }
}

/// A command with random opcode and fields, PRPs only; addresses inside and outside of guest memory.
fn random_command(random: &mut Random) -> Command {
    let mut command = Command::new(random.below(256) as u8)
        .nsid([0, 1, 1, 1, 2, u32::MAX][random.below(6)])
        .prps(
            DATA + random.below(1 << 20) as u64,
            DATA + random.below(64) as u64 * PAGE,
        );
    for dword in 10..16 {
        let value = if random.one_in(3) {
            random.below(usize::MAX)
        } else {
            random.below(16)
        };
        command = command.dword(dword, value as u32);
    }
    // Keep the queues that the test polls.
    if matches!(command.0[0], admin::DELETE_SQ | admin::DELETE_CQ) {
        command = command.dword(10, 2 + random.below(300) as u32);
    }
    command.fused(if random.one_in(3) {
        random.below(4) as u8
    } else {
        0
    })
}

fn a_guest_cannot_fill_the_log(lab: &mut Lab) {
    let before = lab.target.log().len();
    let mut guest = lab.guest();
    for _ in 0..300 {
        let bad = guest.io(Command::rw(io::READ, 0, 8).prps(u64::MAX - 4095, 0));
        assert!(!bad.is_ok());
    }
    let log = lab.target.log();
    let lines = log[before..].lines().count();
    assert!(lines < 100, "{lines} lines:\n{}", &log[before..]);
}
