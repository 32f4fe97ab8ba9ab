//! Writes whose data comes in as many PDUs as it has bytes.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::common::nvme_tcp::{Command, Digests, Host, Pdu, Sgl, flag};
use crate::common::poll_blocking;
use crate::world::World;

/// Length of a write, bytes, and of the H2CData PDU for one of them.
const LENGTH: u32 = 131_072;
const PIECE: usize = 25;

/// Number of writes, one after the other.
const WRITES: usize = 5;

/// The part of the time until a write has ended after which other hosts, which ask at its beginning, have their answers at
/// the latest, in the best of the writes: the machine can delay either. A poll reads what SPDK's receive pipe holds, which is
/// a hundredth of the data here.
const PART: f64 = 0.2;

/// Builds the H2CData PDUs of a write, one byte each.
fn pieces(cid: u16, ttag: u16, data: &[u8]) -> Vec<u8> {
    let piece = |(offset, byte): (u32, &u8)| {
        let is_last = offset + 1 == LENGTH;
        let flags = if is_last { flag::LAST } else { 0 };
        let pdu = Pdu::h2c_data(cid, ttag, offset, &[*byte]);
        pdu.with_flags(flags).bytes(Digests::OFF)
    };
    let bytes: Vec<u8> = (0..).zip(data).flat_map(piece).collect();
    assert_eq!(bytes.len(), PIECE * data.len());
    bytes
}

/// Bytes that the other end of a connection of this machine has received and not read.
fn unread(stream: &TcpStream) -> Option<u64> {
    let own = stream.local_addr().ok()?.port();
    let other = stream.peer_addr().ok()?.port();
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let (own, other) = (format!(":{own:04X}"), format!(":{other:04X}"));
    let line = table.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let is_it = fields.get(1)?.ends_with(&other) && fields.get(2)?.ends_with(&own);
        is_it.then(|| fields[4].to_owned())
    })?;
    u64::from_str_radix(line.split_once(':')?.1, 16).ok()
}

/// Waits until no more bytes arrive at the stopped target.
fn wait_until_full(stream: &TcpStream) {
    let (mut last, mut same) = (0, 0);
    let full = poll_blocking(Duration::from_secs(10), || {
        let now = unread(stream).expect("the connection");
        same = if now > 0 && now == last { same + 1 } else { 0 };
        last = now;
        (same == 10).then_some(())
    });
    full.unwrap_or_else(|| panic!("{last} bytes have arrived, and more arrive"));
}

fn ask(host: &mut Host) {
    let cid = host.cid();
    let keep_alive = Pdu::capsule(Command::new(0x18, cid), &[]);
    host.send(&keep_alive).expect("a command");
}

/// Stops the target, sends it the data of a write in pieces and commands of other hosts before and after them, and
/// continues it. Returns when these hosts have their answers, as a part of the time until the write ends.
fn part(world: &World, io: &mut Host, others: &mut [Host; 2], data: &[u8]) -> f64 {
    let cid = io.cid();
    let write = Command::io(1, cid, 1, 0, 256).sgl(Sgl::Transport(LENGTH));
    io.send(&Pdu::capsule(write, &[])).expect("a write");
    let (ttag, offset, length) = io.receive().expect("an R2T").r2t();
    assert_eq!((offset, length), (0, LENGTH));
    let bytes = pieces(cid, ttag, data);
    let stream = io.stream().try_clone().expect("a descriptor");
    world.target.signal(Signal::STOP);
    let [before, after] = others;
    ask(before);
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            io.send_bytes(&bytes).expect("the data");
            let done = io.receive().expect("the write ends");
            assert_eq!(done.status(), 0);
            Instant::now()
        });
        wait_until_full(&stream);
        ask(after);
        let begin = Instant::now();
        world.target.signal(Signal::CONT);
        for host in [before, after] {
            assert_eq!(host.receive().expect("an answer").status(), 0);
        }
        let answered = begin.elapsed();
        let ended = writing.join().expect("the write ends") - begin;
        println!("other hosts were answered after {answered:?}, the write ended after {ended:?}");
        answered.as_secs_f64() / ended.as_secs_f64()
    })
}

/// A poll of a connection is bounded by what its receive pipe holds, and not by what its host sends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_in_pieces_of_a_byte_does_not_hold_the_reactor() {
    let mut world = World::new().await;
    let (admin, mut io) = world.admitted(Digests::OFF);
    let mut others = ["before", "after"].map(|name| {
        let identity = world.identity.clone().named(name);
        identity.admin(Digests::OFF)
    });
    let data: Vec<u8> = (0..LENGTH).map(|n| n.to_le_bytes()[0] ^ 0x5a).collect();
    let parts: Vec<f64> = tokio::task::block_in_place(|| {
        let part = |_| part(&world, &mut io, &mut others, &data);
        (0..WRITES).map(part).collect()
    });
    let best = parts.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(best < PART, "{parts:?}");
    assert!(io.read(1, 0, 256).expect("a read") == data, "other data");
    drop((admin, io, others));
    world.unharmed("data in pieces").await;
}
