//! A state disk that does not answer: changes say so in time, reads go on, and what was under way is made once
//! the disk is back. A frozen ext4 file system is such a disk: its writes and syncs wait until it is thawed.

#[path = "common/mod.rs"]
mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use common::{Options, Resource, Target, eventually, malloc};
use serde_json::json;
use tonic::Code;

/// How long what comes by itself may take.
const SOON: Duration = Duration::from_secs(30);

fn run(program: &str, args: &[&str], path: &Path) {
    let status = Command::new(program).args(args).arg(path).status();
    let status = status.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(status.success(), "{program} {args:?} {path:?}: {status}");
}

/// An ext4 file system in a file, until the end of the test.
struct Disk(PathBuf);

impl Disk {
    fn new(image: &Path, at: PathBuf) -> Self {
        let file = std::fs::File::create(image).expect("a file");
        file.set_len(64 << 20).expect("there is room");
        run("mkfs.ext4", &["-q"], image);
        std::fs::create_dir(&at).expect("a directory");
        let image = image.to_str().expect("UTF-8");
        run("mount", &["-o", "loop", image], &at);
        let owner = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(&at, owner).expect("it is ours");
        Self(at)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// It does not answer for as long as this is kept.
struct Frozen<'a>(&'a Disk);

impl<'a> Frozen<'a> {
    fn new(disk: &'a Disk) -> Self {
        run("fsfreeze", &["--freeze"], &disk.0);
        Self(disk)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze")
            .arg("--unfreeze")
            .arg(&self.0.0)
            .status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_state_disk_is_told_of_and_holds_up_changes_alone() {
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
    volumes.get(&before).await.expect("reads go on");
    volumes.stats(&before).await;
    eventually("health tells", SOON, async || {
        (!client.is_serving().await).then_some(())
    })
    .await;
    drop(frozen);

    eventually("the change that was under way is made", SOON, async || {
        volumes.get("volumes/late").await.ok()
    })
    .await;
    eventually("health tells that it is well", SOON, async || {
        client.is_serving().await.then_some(())
    })
    .await;
    volumes.created("", "after", spec.clone()).await;
    volumes.created("", "late", spec).await;
    target.stop();
}
