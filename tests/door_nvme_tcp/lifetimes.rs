//! Lifetimes: commands and connections that end while something still refers to them.

use std::time::{Duration, Instant};

use crate::common::nvme_tcp::{CC, Command, Digests, Pdu, Sgl, kind};
use crate::world::World;

/// How long the target retries an Abort.
const ABORT_RETRIES: Duration = Duration::from_secs(1);

/// Regression: the Abort's poller used the command after its queue had been freed.
#[tokio::test]
async fn an_abort_ends_with_the_queue_of_its_command() {
    let mut world = World::new().await;
    for round in 0..3 {
        let mut admin = world.identity.admin(Digests::OFF);
        let mut io = world.identity.io(&admin, 1);
        let write = Command::io(1, 77, 1, 0, 8).sgl(Sgl::Transport(4096));
        io.send(&Pdu::capsule(write, &[])).expect("a capsule");
        assert_eq!(io.receive().expect("an R2T").kind, kind::R2T);
        let aborts = [500_u16, 501]
            .map(|cid| Pdu::capsule(Command::new(0x08, cid).cdw(10, 77 << 16 | 1), &[]));
        let begin = Instant::now();
        admin.send_all(&aborts).expect("two Aborts");
        drop(io);
        for _ in &aborts {
            let answer = admin.receive().expect("an answer to Abort");
            assert_eq!(answer.status(), 0, "round {round}");
            assert_eq!(answer.u32(8) & 1, 1, "nothing was aborted");
        }
        let took = begin.elapsed();
        assert!(
            took < ABORT_RETRIES / 2,
            "an Abort outlived its command: {took:?}"
        );
    }
    world.unharmed("Aborts of a closed queue").await;
}

/// Resets while data digests are being computed, in both directions.
#[tokio::test]
async fn a_reset_waits_for_digests() {
    let mut world = World::new().await;
    for _ in 0..16 {
        let (mut admin, mut io) = world.admitted(Digests::DATA);
        let write = |cid| {
            let command = Command::io(1, cid, 1, 0, 8).sgl(Sgl::InCapsule(4096));
            Pdu::capsule(command, &[1; 4096])
        };
        let read = |cid| {
            let command = Command::io(2, cid, 1, 0, 256).sgl(Sgl::Transport(131_072));
            Pdu::capsule(command, &[])
        };
        let pdus: Vec<_> = (0..14).flat_map(|n| [write(n), read(100 + n)]).collect();
        io.send_all(&pdus).expect("commands");
        let cid = admin.cid();
        let reset = admin.call(Command::property_set(cid, CC, 0x0046_0000), &[]);
        assert_eq!(reset.expect("an answer").status(), 0);
    }
    world.unharmed("resets beside digests").await;
}
