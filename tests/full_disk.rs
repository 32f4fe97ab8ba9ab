//! A state directory on a file system that fills up: a change that does not fit is refused with a clear status and
//! rolled back in SPDK, existing objects and all other calls continue, and changes are accepted again once there is
//! room.

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{Client, Fixture, JsonRpc, Options, Resource, SmallDisk, Target, eventually, name_of};
use futures_util::future::join_all;
use rustix::process::Signal;
use serde_json::{Value, json};
use tonic::{Code, Status};

/// Number of concurrent creates, which fill the file faster.
const AT_ONCE: usize = 32;

/// More creates than fit into the file without growing it.
const MOST: usize = 40_000;

fn volume(blocks: usize) -> Value {
    json!({ "block_size": 512, "blocks_count": blocks })
}

/// Asserts that the call was refused for want of room, with advice.
fn is_full(status: &Status) {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    let text = status.message();
    assert!(
        text.contains("file system of the state directory is full") && text.contains("state-dir"),
        "{status}"
    );
}

/// Creates volumes until some are refused; returns the names of created and refused volumes.
async fn fill_state(volumes: &Resource) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut made, mut refused) = (BTreeSet::new(), BTreeSet::new());
    for first in (0..MOST).step_by(AT_ONCE) {
        let creates = (first..first + AT_ONCE).map(|number| async move {
            let id = format!("filling-{number}");
            (volumes.create("", &id, volume(64)).await, id)
        });
        for (answer, id) in join_all(creates).await {
            match answer {
                Ok(object) => made.insert(name_of(&object)),
                Err(status) => {
                    is_full(&status);
                    refused.insert(format!("volumes/{id}"))
                }
            };
        }
        if !refused.is_empty() {
            return (made, refused);
        }
    }
    panic!("the disk was never full")
}

/// Returns the names of SPDK's bdevs.
async fn bdevs(socket: &Path) -> BTreeSet<String> {
    let mut rpc = JsonRpc::connect(socket).await.expect("SPDK listens");
    let bdevs = rpc.call("bdev_get_bdevs", Value::Null).await;
    let bdevs = bdevs.expect("it answers");
    let names = bdevs.as_array().expect("a list").iter();
    let names = names.map(|bdev| bdev["name"].as_str().expect("a name"));
    names.map(|name| format!("volumes/{name}")).collect()
}

/// Returns the names of all listed volumes.
async fn listed(client: &Client) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for message in ["NullVolume", "MallocVolume"] {
        all.extend(Resource::new(client, message).names("").await);
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_state_disk_fails_the_change_alone_until_there_is_room() {
    let dir = tempfile::Builder::new().prefix("opi-").tempdir();
    let dir = Arc::new(dir.expect("a directory"));
    let disk = SmallDisk::new(dir.path().join("state"), 12);
    let socket = dir.path().join("rpc.sock");
    let args = ["--spdk-rpc-socket", socket.to_str().expect("UTF-8")];
    let options = Options::default().in_dir(Arc::clone(&dir)).args(args);
    let mut target = Target::start_with(options.clone()).await;
    let export = Fixture::tcp(&target, 4).await;
    let volumes = export.resource("NullVolume");
    let before = listed(&export.client).await;

    let filler = disk.fill();
    let (mut made, refused) = fill_state(&volumes).await;
    // Refused volumes exist nowhere; earlier and created ones exist everywhere.
    let mut all: BTreeSet<_> = before.union(&made).cloned().collect();
    assert_eq!(listed(&export.client).await, all);
    assert_eq!(bdevs(&socket).await, all);
    for name in &refused {
        let status = volumes.get(name).await.expect_err("it was refused");
        assert_eq!(status.code(), Code::NotFound, "{status}");
    }
    // An update is either committed or refused as a whole, like a create.
    let mut updates = 0;
    for name in made.iter().take(50) {
        let grown = volumes
            .update(name, volume(128), Some(&["blocks_count"]))
            .await;
        let expected = match grown {
            Ok(_) => 128,
            Err(status) => {
                is_full(&status);
                updates += 1;
                64
            }
        };
        let is = volumes.get(name).await.expect("it is there");
        assert_eq!(is["blocks_count"], expected, "{name}");
        volumes.stats(name).await;
    }
    println!(
        "{} made, {} creates and {updates} updates refused",
        made.len(),
        refused.len()
    );
    // I/O and reads continue, and the process keeps running.
    let verified = export.initiator().verify(target.scratch(), 1).await;
    verified.expect("hosts notice nothing");
    assert!(target.exited().is_none(), "{}", target.log());

    std::fs::remove_file(filler).expect("it is there");
    for name in &refused {
        let id = name.strip_prefix("volumes/").expect("its collection");
        // A disk that has failed several times in a row is tried again within a second.
        let bound = Duration::from_secs(10);
        let created = eventually("there is room again", bound, async || {
            let created = volumes.create("", id, volume(64)).await;
            created.inspect_err(is_full).ok()
        });
        made.insert(name_of(&created.await));
    }
    let gone = made.pop_first().expect("some were made");
    volumes.deleted(&gone).await;
    all = before.union(&made).cloned().collect();
    assert_eq!(listed(&export.client).await, all);
    let health = "health tells that it is well";
    eventually(health, Duration::from_secs(10), async || {
        export.client.is_serving().await.then_some(())
    })
    .await;

    target.stop_with(Signal::TERM);
    let target = Target::start_with(options.after(&target)).await;
    assert_eq!(listed(&target.client().await).await, all);
    assert_eq!(bdevs(&socket).await, all);
    target.stop();
}
