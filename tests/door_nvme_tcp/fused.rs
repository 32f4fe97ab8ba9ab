//! Fused commands: a half that waits for the other is completed, and its buffers are returned.

use crate::common::nvme_tcp::{Command, Digests, Pdu, Sgl};
use crate::world::{World, ends};

/// More than the 1,023 large buffers of the process.
const LARGE_BUFFERS: usize = 1_100;

/// Regression: each connection leaked one large buffer; the 1,024th hung all hosts.
#[tokio::test]
async fn a_first_whose_second_never_comes_gives_its_buffer_back_at_close() {
    let mut world = World::new().await;
    let admin = world.identity.admin(Digests::OFF);
    let read = Command::io(2, 7, 1, 0, 256)
        .fuse(1)
        .sgl(Sgl::Transport(131_072));
    let mut held = std::collections::VecDeque::new();
    for n in 0..LARGE_BUFFERS {
        // Connecting a queue ID that is still being closed is refused, so use the next one.
        let qid = u16::try_from(n % 120 + 1).expect("a queue ID");
        let mut io = world.identity.io(&admin, qid);
        io.send(&Pdu::capsule(read, &[])).expect("a capsule");
        held.push_back(io);
        if held.len() > 8 {
            held.pop_front();
        }
    }
    drop(held);
    drop(admin);
    world.unharmed("fused firsts alone").await;
}

#[tokio::test]
async fn connect_with_fuse_bits_ends_the_connection() {
    let mut world = World::new().await;
    let data = world.identity.connect_data(0xffff);
    for fuse in 1..4 {
        let mut host = world.stranger(Digests::OFF);
        let by_r2t = Command::connect(1, 0, 31, Sgl::Transport(1024)).fuse(fuse);
        ends(&mut host, &[Pdu::capsule(by_r2t, &[])], "by R2T");
        let mut host = world.stranger(Digests::OFF);
        let inside = Command::connect(1, 0, 31, Sgl::InCapsule(1024)).fuse(fuse);
        ends(&mut host, &[Pdu::capsule(inside, &data)], "inside");
    }
    world.unharmed("Connect with FUSE bits").await;
}

#[tokio::test]
async fn a_reserved_fuse_value_ends_the_connection() {
    let mut world = World::new().await;
    let (admin, mut io) = world.admitted(Digests::OFF);
    let read = Command::io(2, 7, 1, 0, 1).fuse(3).sgl(Sgl::Transport(512));
    ends(&mut io, &[Pdu::capsule(read, &[])], "FUSE 3");
    drop((admin, io));
    world.unharmed("FUSE 3").await;
}

/// The first half fails by itself (a wrong digest): its second half is refused, and no later command is fused with it.
#[tokio::test]
async fn a_second_whose_first_has_failed_is_refused() {
    let mut world = World::new().await;
    let (admin, mut io) = world.admitted(Digests::DATA);
    assert_eq!(io.write(1, 0, &[1; 512]).expect("a write").status(), 0);
    let compare = Command::io(5, 10, 1, 0, 1).fuse(1).sgl(Sgl::InCapsule(512));
    let mut first = Pdu::capsule(compare, &[1; 512]);
    first.data_digest = Some(3);
    io.send(&first).expect("the first");
    let (answer, _) = io.completion(10, &[]).expect("an answer");
    assert_eq!(answer.status(), 0x22, "transient transport error");
    let write = Command::io(1, 11, 1, 0, 1).fuse(2).sgl(Sgl::InCapsule(512));
    let answer = io.call(write, &[2; 512]).expect("an answer");
    assert_eq!(answer.status(), 0x0a, "missing fused command");
    assert_eq!(io.read(1, 0, 1).expect("a read"), vec![1; 512]);
    for _ in 0..200 {
        assert_eq!(io.write(1, 8, &[4; 512]).expect("a write").status(), 0);
    }
    drop((admin, io));
    world.unharmed("a failed first").await;
}

#[tokio::test]
async fn a_right_pair_is_executed() {
    let mut world = World::new().await;
    let (admin, mut io) = world.admitted(Digests::OFF);
    assert_eq!(io.write(1, 0, &[1; 512]).expect("a write").status(), 0);
    let compare = Command::io(5, 20, 1, 0, 1).fuse(1).sgl(Sgl::InCapsule(512));
    let write = Command::io(1, 21, 1, 0, 1).fuse(2).sgl(Sgl::InCapsule(512));
    for (expected, becomes) in [(1, 2), (2, 3)] {
        let pair = [
            Pdu::capsule(compare, &[expected; 512]),
            Pdu::capsule(write, &[becomes; 512]),
        ];
        io.send_all(&pair).expect("a pair");
        let statuses = [20, 21].map(|cid| io.completion(cid, &[]).expect("an answer").0.status());
        assert_eq!(statuses, [0, 0]);
        assert_eq!(io.read(1, 0, 1).expect("a read"), vec![becomes; 512]);
    }
    drop((admin, io));
    world.unharmed("a fused pair").await;
}
