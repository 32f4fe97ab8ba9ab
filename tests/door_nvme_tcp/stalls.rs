//! Admitted hosts that hold buffers and then stall.

use std::time::{Duration, Instant};

use crate::common::nvme_tcp::{Command, Digests, Pdu, Sgl, kind};
use crate::world::World;

/// Two hosts, each with this many queues of 120 commands, hold the 1,023 large buffers of the process: one host's share
/// is half of them at most.
const QUEUES: u16 = 5;
const COMMANDS: u16 = 120;

/// `OPI_NVME_TCP_STALL_SHORT_SECONDS` and two poll periods.
const SHORT_LIMIT: Duration = Duration::from_secs(7);

/// Regression: writes of 128 KiB whose R2Ts are never answered blocked all hosts' large commands for ever.
#[tokio::test]
async fn hosts_that_answer_no_r2t_give_way_to_others() {
    let mut world = World::new().await;
    let mut queues = Vec::new();
    let (mut admins, mut rest) = (Vec::new(), Vec::new());
    for name in ["one", "two"] {
        let identity = world.identity.clone().named(name);
        let admin = identity.admin(Digests::OFF);
        for qid in 1..=QUEUES {
            let mut io = identity.io(&admin, qid);
            let write = |cid| {
                let command = Command::io(1, cid, 1, 0, 256).sgl(Sgl::Transport(131_072));
                Pdu::capsule(command, &[])
            };
            let writes: Vec<_> = (0..COMMANDS).map(write).collect();
            io.send_all(&writes).expect("writes");
            // The last queue's commands wait for buffers, not for their host.
            if qid == QUEUES {
                rest.push(io);
                continue;
            }
            assert_eq!(io.receive().expect("an R2T").kind, kind::R2T);
            queues.push(io);
        }
        admins.push(admin);
    }
    let begin = Instant::now();
    let fixture = &world.bystander.fixture;
    let identity =
        crate::common::nvme_tcp::Identity::new(fixture.port, &fixture.nqn).named("waiting");
    let other = identity.admin(Digests::OFF);
    let mut io = identity.io(&other, 1);
    let read = Command::io(2, 1, 1, 0, 256).sgl(Sgl::Transport(131_072));
    io.send(&Pdu::capsule(read, &[])).expect("a capsule");
    let answer = io.receive_within(SHORT_LIMIT);
    assert!(
        answer.is_ok(),
        "a read of 128 KiB hangs beside hosts that stall: {answer:?}"
    );
    println!(
        "a read of 128 KiB beside stalled hosts took {:?}",
        begin.elapsed()
    );
    for io in &mut queues {
        assert!(
            io.closed_within(SHORT_LIMIT).is_ok(),
            "a stalled queue stays open"
        );
    }
    drop((queues, rest, admins, other, io));
    world.unharmed("stalled hosts").await;
}
