//! Each host's share of the buffers that all hosts use.

use std::time::{Duration, Instant};

use crate::common::nvme_tcp::{Command, Digests, Host, Pdu, Sgl, flag, kind};
use crate::world::World;

/// Nine queues of 120 commands of 128 KiB: more than the 1,023 large buffers of the process.
const QUEUES: u16 = 9;
const COMMANDS: u16 = 120;

/// Number of queues whose commands have buffers within the host's half.
const AT_ONCE: usize = 4;

/// Latency bound of another host's write and read of 128 KiB: some ms; without shares they would wait for 5 s.
const PROMPT: Duration = Duration::from_secs(2);

/// `OPI_NVME_TCP_STALL_SHORT_SECONDS`, two poll periods and a margin for a busy machine.
const SHORT_LIMIT: Duration = Duration::from_secs(12);

/// Timeout for all commands of a host that receives its answers.
const DONE: Duration = Duration::from_secs(20);

/// Sends commands of 128 KiB on each of the host's queues.
fn send(queues: &mut [Host], opcode: u8) {
    for io in queues {
        let command = |cid| {
            let command = Command::io(opcode, cid, 1, 0, 256).sgl(Sgl::Transport(131_072));
            Pdu::capsule(command, &[])
        };
        let commands: Vec<_> = (0..COMMANDS).map(command).collect();
        io.send_all(&commands).expect("commands");
    }
}

/// Connects the attacker's admin queue and I/O queues.
fn queues(world: &World) -> (Host, Vec<Host>) {
    let admin = world.identity.admin(Digests::OFF);
    let queues = (1..=QUEUES).map(|qid| world.identity.io(&admin, qid));
    let queues = queues.collect();
    (admin, queues)
}

/// Writes whose data never arrives.
#[tokio::test]
async fn a_host_that_leaves_all_its_commands_waiting_holds_up_no_other() {
    let mut world = World::new().await;
    let (admin, mut queues) = queues(&world);
    send(&mut queues, 1);
    // The host's share is used up: each of these queues has a buffer.
    for io in &mut queues[..AT_ONCE] {
        let begun = io.receive().expect("an R2T");
        assert_eq!(begun.kind, kind::R2T);
    }
    let mut longest = Duration::ZERO;
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        let begin = Instant::now();
        world.bystander.verify();
        longest = longest.max(begin.elapsed());
    }
    println!("128 KiB written and read beside a host that stalls: {longest:?} at most");
    assert!(longest < PROMPT, "another host's I/O took {longest:?}");
    drop((admin, queues));
    world.unharmed("a host that stalls").await;
}

/// A host that waits for its own share is disconnected after 5 s, while another slow host has its full 30 s.
#[tokio::test]
async fn who_waits_for_its_own_share_shortens_no_others_time() {
    let mut world = World::new().await;
    let slow = world.identity.clone().named("slow");
    let slow_admin = slow.admin(Digests::OFF);
    let mut slow_io = slow.io(&slow_admin, 1);
    let write = Command::io(1, 7, 1, 0, 256).sgl(Sgl::Transport(131_072));
    slow_io.send(&Pdu::capsule(write, &[])).expect("a write");
    let r2t = slow_io.receive().expect("an R2T");
    let (ttag, offset, length) = r2t.r2t();
    assert_eq!((offset, length), (0, 131_072));

    let (admin, mut queues) = queues(&world);
    send(&mut queues, 1);
    for io in &mut queues[..AT_ONCE] {
        let ended = io.closed_within(SHORT_LIMIT);
        assert!(ended.is_ok(), "a host that stalls itself stays: {ended:?}");
    }
    let data = Pdu::h2c_data(7, ttag, 0, &[0x77; 131_072]);
    slow_io.send(&data).expect("the data that was waited for");
    let done = slow_io.receive().expect("the slow host's answer");
    assert_eq!((done.kind, done.status()), (kind::CAPSULE_RESP, 0));
    drop((admin, queues, slow_admin, slow_io));
    world.unharmed("a host that waits for itself").await;
}

/// More reads than the host's share has buffers for; all of them complete.
#[tokio::test]
async fn what_waits_for_its_hosts_share_is_done_when_there_is_room() {
    let mut world = World::new().await;
    let (admin, mut queues) = queues(&world);
    send(&mut queues, 2);
    std::thread::scope(|scope| {
        for io in &mut queues {
            scope.spawn(|| {
                let end = Instant::now() + DONE;
                let mut done = 0;
                while done < COMMANDS {
                    let left = end.saturating_duration_since(Instant::now());
                    let answer = io.receive_within(left).expect("an answer");
                    match answer.kind {
                        kind::C2H_DATA => done += u16::from(answer.flags & flag::SUCCESS != 0),
                        _ => {
                            assert_eq!(answer.status(), 0, "a read");
                            done += 1;
                        }
                    }
                }
            });
        }
    });
    // Closed while most commands wait for buffers: the teardown must find them in the wait queue.
    send(&mut queues, 1);
    let begun = queues[0].receive().expect("an R2T");
    assert_eq!(begun.kind, kind::R2T);
    drop((admin, queues));
    world.unharmed("a host with more than its share").await;
    let (_admin, mut io) = world.admitted(Digests::OFF);
    assert_eq!(io.read(1, 0, 256).expect("a read").len(), 131_072);
}
