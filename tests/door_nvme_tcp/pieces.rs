//! Writes whose data comes in as many PDUs as it has bytes.

use crate::common::Scrape;
use crate::common::nvme_tcp::{Command, Digests, Host, Pdu, Sgl, flag};
use crate::world::World;

/// Length of a write, bytes, and of the H2CData PDU for one of them.
const LENGTH: u32 = 131_072;
const PIECE: usize = 25;

/// Number of writes, one after the other.
const WRITES: usize = 8;

/// No poll may hold the reactor for longer: a bound of the metric, in seconds. A write has 2,048 times as many PDUs as
/// `OPI_NVME_TCP_POLL_PDUS` allows.
const LIMIT: &str = "0.005";

/// Builds the H2CData PDUs of a write, one byte each, with the transfer tag 0.
fn pieces(cid: u16, data: &[u8]) -> Vec<u8> {
    let piece = |(offset, byte): (u32, &u8)| {
        let is_last = offset + 1 == LENGTH;
        let flags = if is_last { flag::LAST } else { 0 };
        let pdu = Pdu::h2c_data(cid, 0, offset, &[*byte]);
        pdu.with_flags(flags).bytes(Digests::OFF)
    };
    (0..).zip(data).flat_map(piece).collect()
}

/// Sends the writes, and the data of each in pieces once it is asked for.
fn write_in_pieces(io: &mut Host, data: &[u8]) {
    let cid = io.cid();
    let mut bytes = pieces(cid, data);
    for _ in 0..WRITES {
        let write = Command::io(1, cid, 1, 0, 256).sgl(Sgl::Transport(LENGTH));
        io.send(&Pdu::capsule(write, &[])).expect("a write");
        let (ttag, offset, length) = io.receive().expect("an R2T").r2t();
        assert_eq!((offset, length), (0, LENGTH));
        for piece in bytes.chunks_exact_mut(PIECE) {
            piece[10..12].copy_from_slice(&ttag.to_le_bytes());
        }
        io.send_bytes(&bytes).expect("the data");
        let done = io.receive().expect("the write ends");
        assert_eq!(done.status(), 0);
    }
}

/// Regression: one poll took all PDUs that came while it took others. That the writes end shows that the rest is taken
/// although no event tells of it: the last pieces have left the kernel's buffer long before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_in_pieces_of_a_byte_does_not_hold_the_reactor() {
    let mut world = World::measured().await;
    let (admin, mut io) = world.admitted(Digests::OFF);
    let data: Vec<u8> = (0..LENGTH).map(|n| n.to_le_bytes()[0] ^ 0x5a).collect();
    let before = Scrape::of(&world.target).await.polls_over(LIMIT);
    let mut meanwhile = 0;
    tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| write_in_pieces(&mut io, &data));
            while !writing.is_finished() {
                world.bystander.verify();
                meanwhile += 1;
            }
        });
    });
    let long = Scrape::of(&world.target).await.polls_over(LIMIT) - before;
    println!("{meanwhile} writes and reads of another host beside {WRITES} writes in pieces");
    assert_eq!(
        long,
        0,
        "polls of over {LIMIT} s, {meanwhile} I/Os of another host:\n{}",
        world.target.log()
    );
    assert!(io.read(1, 0, 256).expect("a read") == data, "other data");
    drop((admin, io));
    world.unharmed("data in pieces").await;
}
