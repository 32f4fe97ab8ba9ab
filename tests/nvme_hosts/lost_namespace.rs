//! Hot removal of a namespace's bdev while the whole subsystem is paused for something else.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::SOON;
use crate::common::nvme_tcp::{Bystander, Command, Digests, Identity, Pdu, Sgl};
use crate::common::{
    JsonRpc, Options, Resource, Target, eventually, free_port, malloc, name_of, namespace, nqn_of,
    subsystem, tcp_controller,
};

/// Latency of the first namespace's reads: of the one whose bdev is removed.
const LOST: Duration = Duration::from_secs(4);

/// Latency of the second namespace's reads.
const DRAINED: Duration = Duration::from_secs(1);

/// The changes of state of a subsystem are queued. The removal of the second namespace drains its read, so the other
/// changes are queued by then: the pause for a listener, and the one for the first namespace, whose bdev is removed.
/// The resumptions are queued behind that, so the subsystem is still paused as a whole, with a read in flight.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_is_lost_in_a_pause_of_the_whole_waits_for_its_io() {
    let (options, socket) = Options::default().with_rpc();
    let mut target = Target::start_with(options).await;
    let mut bystander = Bystander::new(&target).await;
    let client = target.client().await;
    let over = subsystem(&client, "s", json!({})).await;
    for (id, latency) in [("lost", LOST), ("drained", DRAINED)] {
        let base = malloc(&client, &format!("{id}-base"), 4).await;
        let us = u64::try_from(latency.as_micros()).expect("seconds");
        let object = json!({ "volume_name_ref": base, "avg_read_latency_us": us });
        let volumes = Resource::new(&client, "DelayVolume");
        let slow = name_of(&volumes.created("", id, object).await);
        namespace(&client, &over, &slow, json!({})).await;
    }
    let (_, port) = tcp_controller(&client, &over).await;
    let nqn = nqn_of("s");
    let identity = Identity::new(port, &nqn);
    let admin = identity.admin(Digests::OFF);
    let mut io = identity.io(&admin, 1);
    let data = [7; 512];
    assert_eq!(io.write(1, 0, &data).expect("an answer").status(), 0);

    let reads = [2, 1].map(|nsid| {
        let read = Command::io(2, io.cid(), nsid, 0, 1).sgl(Sgl::Transport(512));
        (read.cid(), Pdu::capsule(read, &[]))
    });
    let sent = Instant::now();
    for (_, read) in &reads {
        io.send(read).expect("it goes");
    }
    // A queue's commands are executed in order: the reads are in flight once a later write has ended.
    assert_eq!(io.write(2, 8, &data).expect("an answer").status(), 0);

    let port = free_port();
    let address = json!({
        "trtype": "tcp", "adrfam": "ipv4", "traddr": "127.0.0.1", "trsvcid": port.to_string(),
    });
    let connected = async || JsonRpc::connect(&socket).await.expect("SPDK's socket");
    let [first, second, third] = [connected().await, connected().await, connected().await];
    let call = async |mut rpc: JsonRpc, method: &str, parameters| {
        let answer = timeout(SOON, rpc.call(method, parameters)).await;
        answer.expect("in time").expect("it succeeds");
        sent.elapsed()
    };
    let drained = json!({ "nqn": nqn, "nsid": 2 });
    let listener = json!({ "nqn": nqn, "listen_address": address });
    let listens = async || TcpStream::connect(("127.0.0.1", port)).await.ok();
    // The target listens once the subsystem is paused for that.
    let paused = async {
        eventually("the port takes connections", SOON, listens).await;
        sent.elapsed()
    };
    let (_, _, removed, paused) = tokio::join!(
        call(first, "nvmf_subsystem_remove_ns", drained),
        call(second, "nvmf_subsystem_add_listener", listener),
        call(third, "bdev_delay_delete", json!({ "name": "lost" })),
        paused,
    );
    // SPDK rounds the clock rate down to whole MHz, and so the latency.
    let ended = LOST - LOST / 500;
    assert!(removed >= ended, "the bdev was gone after {removed:?}");
    assert!(paused < ended, "the pause came after the read: {paused:?}");
    for ((cid, _), expected) in reads.iter().zip([[0; 512], data]) {
        let (answer, read) = io.completion(*cid, &[]).expect("the read has an answer");
        assert_eq!(answer.status(), 0);
        assert_eq!(read, expected);
    }

    // The subsystem is no longer paused.
    drop(Identity::new(port, &nqn).admin(Digests::OFF));
    drop((io, admin));
    bystander
        .unharmed(&mut target, "a namespace lost in a pause")
        .await;
    target.stop();
}
