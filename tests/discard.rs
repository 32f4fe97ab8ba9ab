//! Discard over NVMe: a host may send it to any namespace, whatever the other namespaces' volumes
//! support.

mod common;

use common::nvme_tcp::{Command, Digests, Host, Identity, Pdu, Sgl};
use common::{
    Fixture, Resource, Target, eventually, malloc, name_of, namespace, nqn_of, subsystem,
    tcp_controller,
};
use serde_json::json;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn discard_succeeds_on_every_namespace_without_affecting_others() {
    let target = Target::start().await;
    let export = Fixture::tcp(&target, 16).await;
    let volumes = export.resource("MallocVolume");
    let unmaps = async || volumes.stats(&export.volume).await["unmap_ops_count"].as_i64();
    let path = target.scratch().join("disk");
    std::fs::write(&path, vec![7; 16 << 20]).expect("the file can be written");
    let object = json!({ "filename": path, "block_size": 512 });
    let made = Resource::new(&export.client, "AioVolume")
        .created("", "file", object)
        .await;
    namespace(
        &export.client,
        &export.subsystem,
        &name_of(&made),
        json!({}),
    )
    .await;

    let unmapped = export.initiator().workload(target.scratch(), "unmap").await;
    unmapped.expect("both namespaces accept the unmap");
    eventually(
        "the malloc volume has discarded",
        Duration::from_secs(5),
        async || (unmaps().await > Some(0)).then_some(()),
    )
    .await;
    let kept = std::fs::read(&path).expect("the file exists");
    assert!(kept.iter().all(|byte| *byte == 7), "the file was changed");
    target.stop();
}

/// ONCS in Identify Controller; bit 2 is Dataset Management (base specification, 5.17.2.1).
const ONCS: usize = 520;
const DSM_BIT: u8 = 1 << 2;

/// Sends Dataset Management with one range to deallocate; returns the status.
fn discard(host: &mut Host, nsid: u32) -> u16 {
    let (command, range) = Command::deallocate(host.cid(), nsid, &[(0, 8)]);
    host.call(command, &range).expect("an answer").status()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_connected_host_may_discard_on_namespaces_added_later() {
    let target = Target::start().await;
    let client = target.client().await;
    let path = target.scratch().join("disk");
    std::fs::write(&path, vec![7; 1 << 20]).expect("the file can be written");
    let object = json!({ "filename": path, "block_size": 512 });
    let volumes = Resource::new(&client, "AioVolume");
    let file = name_of(&volumes.created("", "file", object).await);
    let memory = malloc(&client, "memory", 4).await;
    let mallocs = Resource::new(&client, "MallocVolume");
    let unmaps = async || mallocs.stats(&memory).await["unmap_ops_count"].as_i64();
    // The order decides which volume is exported when the host connects.
    for (order, volumes) in [[&memory, &file], [&file, &memory]].into_iter().enumerate() {
        let id = format!("order-{order}");
        let exported = subsystem(&client, &id, json!({})).await;
        let (_, port) = tcp_controller(&client, &exported).await;
        let mut shown = vec![namespace(&client, &exported, volumes[0], json!({})).await];
        let identity = Identity::new(port, &nqn_of(&id));
        let mut admin = identity.admin(Digests::OFF);
        let mut host = identity.io(&admin, 1);
        assert_eq!(discard(&mut host, 1), 0, "{id}");

        shown.push(namespace(&client, &exported, volumes[1], json!({})).await);
        let before = unmaps().await;
        for nsid in [1, 2] {
            assert_eq!(discard(&mut host, nsid), 0, "{id}: namespace {nsid}");
        }
        assert!(
            unmaps().await > before,
            "{id}: the malloc volume was not unmapped"
        );
        // Hosts read this once, when they connect.
        let cid = admin.cid();
        let identify = Command::new(0x06, cid).cdw(10, 1).sgl(Sgl::Transport(4096));
        admin
            .send(&Pdu::capsule(identify, &[]))
            .expect("the command is sent");
        let (_, data) = admin.completion(cid, &[]).expect("an answer");
        assert_ne!(data[ONCS] & DSM_BIT, 0, "{id}");
        drop((host, admin));
        for namespace in shown {
            Resource::new(&client, "NvmeNamespace")
                .deleted(&namespace)
                .await;
        }
    }
    let kept = std::fs::read(&path).expect("the file exists");
    assert!(kept.iter().all(|byte| *byte == 7), "the file was changed");
    target.stop();
}
