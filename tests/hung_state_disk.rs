//! A hung state disk: changes fail in time, reads continue, and the change in progress is completed once
//! the disk recovers.

#[path = "common/mod.rs"]
mod common;

use std::sync::Arc;
use std::time::Duration;

use common::hung_disk::{Disk, Frozen};
use common::{Options, Resource, Target, eventually, malloc};
use serde_json::json;
use tonic::Code;

/// Timeout of what happens asynchronously.
const SOON: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_state_disk_is_reported_and_blocks_only_changes() {
    let dir = Arc::new(tempfile::tempdir().expect("a directory"));
    let disk = Disk::new(&dir.path().join("image"), dir.path().join("state"));
    let target = Target::start_with(Options::default().in_dir(Arc::clone(&dir))).await;
    let client = target.client().await;
    let before = malloc(&client, "before", 1).await;
    let volumes = Resource::new(&client, "MallocVolume");
    let spec = json!({ "block_size": 512, "blocks_count": 2048 });

    let frozen = Frozen::new(&disk);
    let late = volumes
        .refused("", "late", spec.clone(), Code::Unavailable)
        .await;
    assert!(late.message().contains("is not known yet"), "{late}");
    assert!(late.message().contains("state-dir"), "{late}");
    volumes.get(&before).await.expect("reads are not blocked");
    volumes.stats(&before).await;
    eventually("health reports NOT_SERVING", SOON, async || {
        (!client.is_serving().await).then_some(())
    })
    .await;
    drop(frozen);

    eventually("the change in progress is completed", SOON, async || {
        volumes.get("volumes/late").await.ok()
    })
    .await;
    eventually("health reports SERVING", SOON, async || {
        client.is_serving().await.then_some(())
    })
    .await;
    volumes.created("", "after", spec.clone()).await;
    volumes.created("", "late", spec).await;
    target.stop();
}
