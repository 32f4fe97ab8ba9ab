//! A full state disk: a refused change has had no effect, even if its effect could not be rolled back.

#[path = "common/mod.rs"]
mod common;

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use common::hung_disk::Disk;
use common::tcp_controller;
use common::{Initiator, Options, Resource, Target, malloc, namespace, nqn_of, pattern, subsystem};
use serde_json::json;
use tonic::Code;

/// Allocates all remaining room.
fn fill(path: &Path) {
    let mut file = std::fs::File::create(path).expect("a file");
    for size in [1 << 20, 4096, 1] {
        let block = vec![1; size];
        while file.write_all(&block).is_ok() {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_volume_keeps_its_data_when_its_update_cannot_be_stored() {
    let dir = Arc::new(tempfile::tempdir().expect("a directory"));
    let disk = dir.path().join("state");
    let _disk = Disk::new(&dir.path().join("image"), disk.clone());
    let target = Target::start_with(Options::default().in_dir(Arc::clone(&dir))).await;
    let client = target.client().await;
    let memory = malloc(&client, "memory", 4).await;
    let shown = subsystem(&client, "s", json!({})).await;
    let (_, port) = tcp_controller(&client, &shown).await;
    let host = Initiator::tcp(port, &nqn_of("s"));
    let [namespaces, volumes, nulls] =
        ["NvmeNamespace", "MallocVolume", "NullVolume"].map(|kind| Resource::new(&client, kind));
    let seen = namespace(&client, &shown, &memory, json!({})).await;
    let data = target.scratch().join("data");
    std::fs::write(&data, pattern(1024)).expect("there is room");
    let written = host.copy_in(target.scratch(), &data, 1).await;
    written.expect("it takes data");
    namespaces.deleted(&seen).await;
    let before = volumes.get(&memory).await.expect("it is there");

    // Fill up until the state file has no free page and cannot grow.
    let filler = disk.join("filler");
    fill(&filler);
    let spec = json!({ "block_size": 512, "blocks_count": 64 });
    let mut made = 0;
    let full = loop {
        match nulls.create("", &format!("n{made}"), spec.clone()).await {
            Ok(_) => made += 1,
            Err(status) => break status,
        }
    };
    assert_eq!(full.code(), Code::ResourceExhausted, "{full}");
    let bigger = json!({ "blocks_count": 16384 });
    let refused = volumes.update(&memory, bigger.clone(), None).await;
    let refused = refused.expect_err("there is no room");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("make room"), "{refused}");
    assert_eq!(volumes.get(&memory).await.expect("it is there"), before);

    std::fs::remove_file(&filler).expect("it is there");
    namespace(&client, &shown, &memory, json!({})).await;
    let back = target.scratch().join("back");
    let read = host.copy_out(target.scratch(), 1, 1024, &back).await;
    read.expect("it gives data back");
    let is_same = std::fs::read(&back).expect("a file") == pattern(1024);
    assert!(is_same, "the data is another");
    target.stop();
}
