//! Commands of a host that zero much at once: Dataset Management of many ranges, and Write Zeroes.

mod common;

use std::time::{Duration, Instant};

use common::nvme_tcp::{Bystander, Command, Digests, Host, Identity, Pdu};
use common::{Fixture, Options, Target};

/// Size of the volume. 256 ranges of it, zeroed in one step, would take some seconds.
const MIB: u64 = 256;
const BLOCKS: u64 = MIB << 11;

/// Blocks of a MiB.
const ONE: u64 = 1 << 11;

/// Another host's write and read take no longer meanwhile, on a machine that also runs the test.
const ANSWERED: Duration = Duration::from_millis(500);

/// Ranges of a command, at most.
const RANGES: u64 = 256;

/// Commands in flight.
const DEPTH: u16 = 16;

const WRITE_ZEROES: u8 = 0x08;
const LBA_OUT_OF_RANGE: u16 = 0x80;

/// Memory for the volumes and the buffers, MiB.
const MEMORY: u32 = 1024;

fn discard(host: &mut Host, ranges: &[(u64, u32)]) -> u16 {
    let (command, list) = Command::deallocate(host.cid(), 1, ranges);
    host.call(command, &list).expect("an answer").status() & 0x7ff
}

/// Sends the command in as many copies as [`DEPTH`], and waits for their end while another host's I/O goes on.
fn many(
    host: &mut Host,
    bystander: &mut Bystander,
    command: impl Fn(&mut Host) -> (Command, Vec<u8>),
) {
    for _ in 0..DEPTH {
        let (command, data) = command(host);
        host.send(&Pdu::capsule(command, &data)).expect("it goes");
    }
    let begin = Instant::now();
    bystander.verify();
    let took = begin.elapsed();
    assert!(
        took < ANSWERED,
        "another host's write and read took {took:?}"
    );
    for _ in 0..DEPTH {
        let status = host.receive().expect("a completion").status() & 0x7ff;
        assert_eq!(status, 0);
    }
}

/// 256 ranges of the whole volume each.
fn whole(host: &mut Host) -> (Command, Vec<u8>) {
    let blocks = u32::try_from(BLOCKS).expect("a small volume");
    Command::deallocate(host.cid(), 1, &[(0, blocks); RANGES as usize])
}

async fn start() -> (Target, Bystander, Fixture, Host, Host) {
    let options = Options::default().alone().memory(MEMORY);
    let target = Target::start_with(options).await;
    let bystander = Bystander::new(&target).await;
    let export = Fixture::tcp(&target, MIB).await;
    let identity = Identity::new(export.port, &export.nqn).named("zeroes");
    let admin = identity.admin(Digests::OFF);
    let io = identity.io(&admin, 1);
    (target, bystander, export, admin, io)
}

/// Regression: each range was a memset of its own length, and all ranges of a command were submitted in one step.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zeroing_of_whole_volumes_does_not_hold_the_reactor() {
    let (target, mut bystander, _export, _admin, mut io) = start().await;
    tokio::task::block_in_place(|| {
        many(&mut io, &mut bystander, whole);
        many(&mut io, &mut bystander, |host| {
            let zeroes = Command::io(WRITE_ZEROES, host.cid(), 1, 0, 0);
            // 65,536 blocks: the number is 0-based.
            (zeroes.cdw(12, 0xffff), Vec::new())
        });
    });
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_discard_zeroes_its_ranges_and_nothing_else() {
    let (target, _bystander, _export, _admin, mut io) = start().await;
    let data = vec![0xa5; 4096];
    let places = [
        0,
        ONE - 8,
        ONE,
        BLOCKS / 2,
        BLOCKS - ONE - 8,
        BLOCKS - ONE,
        BLOCKS - 8,
    ];
    let fill = |io: &mut Host| {
        for place in places {
            assert_eq!(io.write(1, place, &data).expect("an answer").status(), 0);
        }
    };
    fill(&mut io);
    // All but the first and the last MiB, in pieces; one of them is empty.
    let each = (BLOCKS - 2 * ONE) / (RANGES - 1);
    let last = BLOCKS - ONE - (ONE + (RANGES - 2) * each);
    let ranges: Vec<_> = (0..RANGES)
        .map(|n| match n {
            0 => (0, 0),
            255 => (ONE + (n - 1) * each, last),
            _ => (ONE + (n - 1) * each, each),
        })
        .map(|(first, length)| (first, u32::try_from(length).expect("a small volume")))
        .collect();
    assert_eq!(discard(&mut io, &ranges), 0);
    for place in places {
        let is_kept = !(ONE..BLOCKS - ONE).contains(&place);
        let wanted = if is_kept { 0xa5 } else { 0 };
        let found = io.read(1, place, 8).expect("data");
        assert!(found.iter().all(|byte| *byte == wanted), "block {place}");
    }

    // A command with a range beyond the end changes nothing.
    fill(&mut io);
    for beyond in [
        (BLOCKS - 8, 9),
        (BLOCKS, 1),
        (u64::MAX, 8),
        (u64::MAX - 7, u32::MAX),
    ] {
        assert_eq!(
            discard(&mut io, &[(0, 8), beyond]),
            LBA_OUT_OF_RANGE,
            "{beyond:?}"
        );
    }
    for place in places {
        let found = io.read(1, place, 8).expect("data");
        assert!(found.iter().all(|byte| *byte == 0xa5), "block {place}");
    }
    target.stop();
}

/// A namespace can be deleted while hosts zero it; what they are in the middle of ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_is_deleted_under_long_commands() {
    let (target, mut bystander, export, _admin, mut io) = start().await;
    for _ in 0..DEPTH {
        let (command, data) = whole(&mut io);
        io.send(&Pdu::capsule(command, &data)).expect("it goes");
    }
    let deleted = export.resource("NvmeNamespace");
    let deletion = deleted.deleted(&export.namespace);
    let deletion = tokio::time::timeout(Duration::from_secs(5), deletion);
    deletion.await.expect("the deletion ends");
    for _ in 0..DEPTH {
        io.receive().expect("each command ends");
    }
    bystander.verify();
    target.stop();
}
