//! A hung disk below an aio volume, and who is not blocked by it.

mod common;

use std::time::{Duration, Instant};

use common::hung_disk::{Disk, Frozen};
use common::nvme_tcp::{Bystander, Command, Digests, Identity, Pdu, Sgl};
use common::{Loop, Resource, Target, name_of, namespace, nqn_of, subsystem, tcp_controller};
use serde_json::json;

/// Longest delay accepted for others, on a busy machine.
const SOON: Duration = Duration::from_secs(1);

/// NVM opcodes (NVM command set, 3.2).
const FLUSH: u8 = 0x00;
const WRITE: u8 = 0x01;

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_on_a_hung_disk_blocks_no_one_and_completes_later() {
    let mut target = Target::start().await;
    let mut bystander = Bystander::new(&target).await;
    let client = target.client().await;
    let scratch = target.scratch().to_owned();
    let disk = Disk::new(&scratch.join("image"), scratch.join("mounted"));
    let backing = scratch.join("mounted").join("backing");
    std::fs::write(&backing, vec![0; 4 << 20]).expect("the file can be written");
    let device = Loop::over(&backing, 512);

    let object = json!({ "filename": device.0, "block_size": 512 });
    let volumes = Resource::new(&client, "AioVolume");
    let volume = name_of(&volumes.created("", "slow", object).await);
    let exported = subsystem(&client, "slow", json!({})).await;
    let shown = namespace(&client, &exported, &volume, json!({})).await;
    let (_, port) = tcp_controller(&client, &exported).await;
    let identity = Identity::new(port, &nqn_of("slow"));
    let admin = identity.admin(Digests::OFF);
    let mut host = identity.io(&admin, 1);
    let cid = host.cid();
    let flush = |cid| Command::new(FLUSH, cid).nsid(1);
    assert_eq!(host.call(flush(cid), &[]).expect("an answer").status(), 0);

    let frozen = Frozen::new(&disk);
    let (written, flushed) = (host.cid(), host.cid());
    let write = Command::io(WRITE, written, 1, 0, 1).sgl(Sgl::InCapsule(512));
    host.send(&Pdu::capsule(write, &[7; 512]))
        .expect("the command is sent");
    host.send(&Pdu::capsule(flush(flushed), &[]))
        .expect("the command is sent");
    let begin = Instant::now();
    while begin.elapsed() < 2 * SOON {
        let begin = Instant::now();
        bystander.verify();
        bystander
            .fixture
            .resource("MallocVolume")
            .stats(&bystander.fixture.volume)
            .await;
        let waited = begin.elapsed();
        assert!(waited < SOON, "another host and a call waited {waited:?}");
    }
    let early = host.receive_within(Duration::from_millis(1));
    assert!(
        early.is_err(),
        "the flush completed on a hung disk: {early:?}"
    );

    drop(frozen);
    for _ in [written, flushed] {
        let answer = host.receive().expect("the command completes");
        assert_eq!(answer.status(), 0, "{answer:?}");
    }
    drop((host, admin));
    Resource::new(&client, "NvmeNamespace")
        .deleted(&shown)
        .await;
    volumes.deleted(&volume).await;
    drop(device);
    drop(disk);
    bystander.unharmed(&mut target, "a slow disk").await;
}
