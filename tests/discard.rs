//! Discard over NVMe: a host may send it to any namespace, whatever the volumes of the others can.

mod common;

use common::{Fixture, Resource, Target, eventually, name_of, namespace};
use serde_json::json;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_volume_that_cannot_discard_neither_fails_it_nor_takes_it_from_others() {
    let target = Target::start().await;
    let export = Fixture::tcp(&target, 16).await;
    let volumes = export.resource("MallocVolume");
    let unmaps = async || volumes.stats(&export.volume).await["unmap_ops_count"].as_i64();
    let path = target.scratch().join("disk");
    std::fs::write(&path, vec![7; 16 << 20]).expect("there is room");
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
    unmapped.expect("both namespaces take it");
    eventually(
        "the malloc volume has discarded",
        Duration::from_secs(5),
        async || (unmaps().await > Some(0)).then_some(()),
    )
    .await;
    let kept = std::fs::read(&path).expect("it is there");
    assert!(
        kept.iter().all(|byte| *byte == 7),
        "nothing was done to the file"
    );
    target.stop();
}
