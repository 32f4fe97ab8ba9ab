//! Reads that are answered in as many PDUs as they have bytes.

use super::session::{Session, read};
use crate::common::nvme_tcp::flag;
use crate::common::nvme_tcp_peer::{Ask, Peer, Resp, Turn, c2h_data};
use crate::common::{Options, Scrape};

/// Blocks of a read: 128 KiB.
const BLOCKS: u16 = 256;

/// Number of reads, one after the other.
const READS: usize = 8;

/// No poll may hold the reactor for longer: a bound of the metric, in seconds. A read has 2,048 times as many PDUs as
/// `OPI_INITIATOR_POLL_PDUS` allows.
const LIMIT: &str = "0.005";

/// The value of each byte, which the peer's disk has not.
const BYTE: u8 = 0xa5;

/// Builds the answer to a read: a C2HData PDU for each byte, then the response.
fn pieces(ask: &Ask) -> Vec<Vec<u8>> {
    let length = ask.length();
    let piece = |offset| {
        let is_last = offset + 1 == length;
        let flags = if is_last { flag::LAST } else { 0 };
        c2h_data(ask.cid(), offset, &[BYTE], flags, None)
    };
    let mut pdus: Vec<_> = (0..length).map(piece).collect();
    pdus.push(Resp::of(ask.cid()).bytes());
    pdus
}

/// Regression: one poll took all PDUs that came while it took others, since none of them ended a command. That the reads
/// end shows that the rest is taken although no event tells of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_in_pieces_of_a_byte_does_not_hold_the_reactor() {
    let options = Options::default().alone().args(["--measure-polls"]);
    let mut session = Session::of_target(options).await;
    let peer = Peer::start();
    let (attached, mut export) = session.attach_and_export(&peer).await;
    peer.script(|ask| match ask.is_io(2) {
        true => Turn::Send(pieces(ask)),
        false => Turn::Right,
    });
    let before = Scrape::of(&session.target).await.polls_over(LIMIT);
    let mut meanwhile = 0;
    tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| {
                for _ in 0..READS {
                    let data = read(&mut export, 0, BLOCKS).expect("a read");
                    assert_eq!(data.len(), usize::from(BLOCKS) * 512);
                    assert!(data.iter().all(|byte| *byte == BYTE), "other data");
                }
            });
            while !reading.is_finished() {
                session.bystander.verify();
                meanwhile += 1;
            }
        });
    });
    let long = Scrape::of(&session.target).await.polls_over(LIMIT) - before;
    println!("{meanwhile} writes and reads of a host beside {READS} reads in pieces of another");
    assert_eq!(
        long,
        0,
        "polls of over {LIMIT} s, {meanwhile} I/Os of another host:\n{}",
        session.target.log()
    );
    peer.do_right();
    session.withdraw(export).await;
    session.detach(attached).await;
    session.unharmed("data in pieces").await;
    session.target.stop();
}
