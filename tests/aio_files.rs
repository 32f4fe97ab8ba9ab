//! Files and block devices as backing of aio volumes: which are accepted, and how a volume reacts to
//! changes of its file.

mod common;

use std::fs::File;
use std::path::Path;

use common::{
    Initiator, Loop, Options, Resource, Target, Tool, expect_invalid, name_of, namespace, nqn_of,
    subsystem, tcp_controller,
};
use serde_json::{Value, json};
use tonic::Code;

const MIB: u64 = 1 << 20;

fn volume(path: impl AsRef<Path>, block_size: u64, blocks_count: u64) -> Value {
    json!({ "filename": path.as_ref(), "block_size": block_size, "blocks_count": blocks_count })
}

fn file(path: &Path, bytes: u64) -> File {
    let file = File::create(path).expect("a file");
    file.set_len(bytes).expect("the file can be extended");
    file
}

#[tokio::test]
async fn a_block_size_below_the_devices_is_rejected() {
    let target = Target::start().await;
    let client = target.client().await;
    let volumes = Resource::new(&client, "AioVolume");
    let path = target.scratch().join("beneath");
    file(&path, 16 * MIB);
    let device = Loop::over(&path, 4096);
    let small = volume(&device.0, 512, 64);
    let status = volumes
        .refused("", "dev", small, Code::InvalidArgument)
        .await;
    expect_invalid(&status, "aio_volume.block_size");
    assert!(status.message().contains("4096"), "{status}");
    let own = json!({ "filename": device.0 });
    let made = volumes.created("", "dev", own).await;
    assert_eq!(made["block_size"], 4096, "{made}");
    volumes.deleted(&name_of(&made)).await;
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_unused_volume_with_a_truncated_file_is_rebuilt_by_an_update() {
    let target = Target::start().await;
    let client = target.client().await;
    let volumes = Resource::new(&client, "AioVolume");
    let path = target.scratch().join("disk");
    let file = file(&path, 16 * MIB);
    let name = name_of(&volumes.created("", "v", volume(&path, 512, 32768)).await);
    let over = subsystem(&client, "s", json!({})).await;
    let shown = namespace(&client, &over, &name, json!({})).await;
    let (_, port) = tcp_controller(&client, &over).await;
    file.set_len(8 * MIB).expect("the file can be truncated");

    let shorter = volume(&path, 512, 16384);
    let status = volumes
        .update_refused(&name, shorter.clone(), None, Code::FailedPrecondition)
        .await;
    assert!(status.message().contains(&shown), "{status}");
    let namespaces = Resource::new(&client, "NvmeNamespace");
    namespaces.deleted(&shown).await;
    volumes.updated(&name, shorter, None).await;
    namespace(&client, &over, &name, json!({})).await;
    let seen = Initiator::tcp(port, &nqn_of("s")).identify().await;
    let seen = seen.expect("the host can connect");
    assert!(seen.contains("16384"), "{seen}");
    target.stop();
}

#[tokio::test]
async fn a_volume_lost_by_a_failed_update_is_recreated_by_the_next() {
    let (options, socket) = Options::default().with_rpc();
    let target = Target::start_with(options).await;
    let client = target.client().await;
    let volumes = Resource::new(&client, "AioVolume");
    let [first, second] = ["first", "second"].map(|name| target.scratch().join(name));
    file(&first, MIB);
    file(&second, MIB);
    let name = name_of(&volumes.created("", "v", volume(&first, 512, 64)).await);

    // A bdev that is not managed by the API has the UUID.
    let uuid = "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb";
    let raw = ["bdev_malloc_create", "-b", "raw", "-u", uuid, "4", "512"];
    Tool::rpc(&socket).args(raw).run().await.expect("made");
    std::fs::remove_file(&first).expect("the file can be removed");
    let mut taken = volume(&second, 512, 64);
    taken["uuid"] = uuid.into();
    let refused = volumes.update(&name, taken, None).await;
    let status = refused.expect_err("the UUID is taken");
    let lost = "what was there before could not be put back";
    assert!(status.message().contains(lost), "{status}");
    assert_eq!(
        volumes.get(&name).await.expect("the record is kept")["filename"],
        first.to_str().expect("UTF-8")
    );
    let stats = json!({ "name": name });
    client
        .fails("StatsAioVolume", stats, Code::FailedPrecondition)
        .await;

    volumes
        .updated(&name, volume(&second, 512, 64), Some(&["filename"]))
        .await;
    volumes.stats(&name).await;
    volumes.deleted(&name).await;
    target.stop();
}
