//! Data transfers: exactly the requested length, and no data that another host left in a buffer.

use serde_json::json;

use crate::common::nvme_tcp::{Bystander, Command, Digests, Host, Identity, Pdu, Sgl};
use crate::common::{Fixture, Resource, Target, name_of, namespace};

/// Marker of the bystander's data: 8 bytes, repeated, that occur nowhere else.
const MARK: [u8; 8] = *b"\xf3SECRET\xf1";

/// Length of the largest transfer in bytes and in blocks.
const WHOLE: u32 = 128 << 10;
const BLOCKS: u16 = 256;

/// Data SGL Length Invalid, without Do Not Retry.
const LENGTH_INVALID: u16 = 0x0f;

/// Sends a command that returns data; returns its status and the data.
fn returned(host: &mut Host, command: Command) -> (u16, Vec<u8>) {
    host.send(&Pdu::capsule(command, &[])).expect("it goes");
    let answer = host.completion(command.cid(), &[]);
    let (answer, data) = answer.expect("a completion");
    assert!(
        !data.windows(MARK.len()).any(|bytes| bytes == MARK),
        "{command:?} returns another host's data"
    );
    (answer.status() & 0x7ff, data)
}

/// Connects another host of the bystander's subsystem; returns its admin and I/O queues.
fn owner(bystander: &Bystander) -> (Host, Host) {
    let owner = Identity::new(bystander.fixture.port, &bystander.fixture.nqn);
    let admin = owner.admin(Digests::OFF);
    let io = owner.io(&admin, 1);
    (admin, io)
}

/// Fills the shared buffers with the marker through the bystander's writes.
fn mark(owner: &mut Host) {
    let marks = MARK.repeat(WHOLE as usize / MARK.len());
    for _ in 0..4 {
        let written = owner.write(1, 0, &marks).expect("an answer");
        assert_eq!(written.status(), 0);
    }
}

#[tokio::test]
async fn what_a_host_receives_is_what_its_command_asked_for() {
    let mut target = Target::start().await;
    let mut bystander = Bystander::new(&target).await;
    let (owner_admin, mut owner) = owner(&bystander);

    let own = Fixture::tcp(&target, 4).await;
    let identity = Identity::new(own.port, &own.nqn).named("other");
    let mut admin = identity.admin(Digests::OFF);
    let mut io = identity.io(&admin, 1);

    // SGL lengths above and below that of the blocks are refused, the exact length is served.
    for length in [1024, 4096, 16 << 10, WHOLE, 511, 0] {
        mark(&mut owner);
        let cid = io.cid();
        let read = Command::io(2, cid, 1, 0, 1).sgl(Sgl::Transport(length));
        assert_eq!(returned(&mut io, read).0, LENGTH_INVALID, "READ {length}");
    }
    mark(&mut owner);
    assert_eq!(
        io.read(1, 0, BLOCKS).expect("its data").len(),
        WHOLE as usize
    );

    // Reservation Report: 64 bytes plus registrants; the rest of the buffer must be zero.
    for (dwords, length) in [(15, WHOLE), (15, 60), (u32::MAX, 64), (u32::MAX, WHOLE)] {
        mark(&mut owner);
        let cid = io.cid();
        let report = Command::new(0x0e, cid).nsid(1).cdw(10, dwords).cdw(11, 1);
        let report = report.sgl(Sgl::Transport(length));
        assert_eq!(returned(&mut io, report).0, LENGTH_INVALID, "{dwords}");
    }
    mark(&mut owner);
    let cid = io.cid();
    let report = Command::new(0x0e, cid).nsid(1).cdw(10, WHOLE / 4 - 1);
    let report = report.cdw(11, 1).sgl(Sgl::Transport(WHOLE));
    let (status, data) = returned(&mut io, report);
    assert_eq!((status, data.len()), (0, WHOLE as usize));
    assert!(data.iter().all(|byte| *byte == 0), "nobody is registered");

    // Identify, log pages, features.
    let command = |opcode: u8, cdw10: u32, cdw11: u32, length: u32| {
        let command = Command::new(opcode, 0).cdw(10, cdw10).cdw(11, cdw11);
        command.sgl(Sgl::Transport(length))
    };
    for (command, right) in [
        (command(0x06, 1, 0, 4096), true),
        (command(0x06, 1, 0, WHOLE), false),
        (command(0x06, 1, 0, 4092), false),
        (command(0x06, 0, 0, 4096).nsid(1), true),
        (command(0x06, 2, 0, 8192), false),
        (command(0x02, 0x007f_0002, 0, 512), true),
        (command(0x02, 0x007f_0002, 0, WHOLE), false),
        (command(0x02, 0x7fff_0001, 0, WHOLE), true),
        (command(0x02, 0x7fff_0002, 0, WHOLE), true),
        (command(0x02, 0xffff_0001, 0xffff, WHOLE), false),
        (command(0x0a, 0x81, 1, 16), true),
        (command(0x0a, 0x81, 1, WHOLE), false),
        (command(0x0a, 0x16, 0, 512), true),
        (command(0x0a, 0x07, 0, WHOLE), false),
    ] {
        mark(&mut owner);
        let cid = admin.cid();
        let command = command.put(2, &cid.to_le_bytes());
        let (status, _) = returned(&mut admin, command);
        assert_eq!(status == 0, right, "{command:?}: {status:#x}");
        assert!(
            right || status == LENGTH_INVALID,
            "{command:?}: {status:#x}"
        );
    }
    bystander.verify();
    drop((io, admin, owner, owner_admin));
    bystander
        .unharmed(&mut target, "lengths that do not fit")
        .await;
}

#[tokio::test]
async fn a_null_volume_reads_as_zeroes() {
    let mut target = Target::start().await;
    let mut bystander = Bystander::new(&target).await;
    let (owner_admin, mut owner) = owner(&bystander);
    let own = Fixture::tcp(&target, 4).await;
    let nulls = Resource::new(&own.client, "NullVolume");
    let object = json!({ "block_size": 512, "blocks_count": 2048 });
    let volume = name_of(&nulls.created("", "zeroes", object).await);
    namespace(&own.client, &own.subsystem, &volume, json!({})).await;
    let identity = Identity::new(own.port, &own.nqn).named("other");
    let admin = identity.admin(Digests::OFF);
    let mut io = identity.io(&admin, 1);
    for blocks in [1, 8, BLOCKS] {
        mark(&mut owner);
        let data = io.read(2, 0, blocks).expect("zeroes");
        assert!(data.iter().all(|byte| *byte == 0), "{blocks} blocks");
    }
    drop((io, admin, owner, owner_admin));
    bystander
        .unharmed(&mut target, "reads of a null volume")
        .await;
}

#[tokio::test]
async fn a_fused_compare_compares_all_blocks() {
    let mut target = Target::start().await;
    let mut bystander = Bystander::new(&target).await;
    let own = Fixture::tcp(&target, 4).await;
    let identity = Identity::new(own.port, &own.nqn);
    let admin = identity.admin(Digests::OFF);
    let mut io = identity.io(&admin, 1);
    let (old, new) = ([1; 512], [2; 512]);
    assert_eq!(io.write(1, 0, &old).expect("an answer").status(), 0);
    let mut pair = |compared: &[u8], written: &[u8]| {
        let capsule = |opcode, cid, fuse, data: &[u8]| {
            let sgl = Sgl::InCapsule(u32::try_from(data.len()).expect("a length"));
            let command = Command::io(opcode, cid, 1, 0, 1).fuse(fuse).sgl(sgl);
            Pdu::capsule(command, data)
        };
        let (first, second) = (io.cid(), io.cid());
        let pair = [
            capsule(5, first, 1, compared),
            capsule(1, second, 2, written),
        ];
        io.send_all(&pair).expect("it goes");
        let mut statuses = [None; 2];
        while statuses.contains(&None) {
            let answer = io.receive().expect("a completion");
            let of = usize::from(answer.cid() == second);
            statuses[of] = Some(answer.status());
        }
        (statuses, io.read(1, 0, 1).expect("the block"))
    };
    for compared in [&[][..], &[9; 16], &[9; 1024], &[9; 512]] {
        let (statuses, block) = pair(compared, &new);
        assert!(
            !statuses.contains(&Some(0)),
            "{}: {statuses:?}",
            compared.len()
        );
        assert_eq!(block, old, "{} bytes compared", compared.len());
    }
    let (statuses, block) = pair(&old, &new);
    assert_eq!((statuses, block), ([Some(0); 2], new.to_vec()));
    drop((io, admin));
    bystander.unharmed(&mut target, "fused compares").await;
}
