//! Reservations that cannot be made durable: the command fails in time, the reservation is effective in
//! the running process, and the next command makes it durable.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tonic::Code;

use super::*;
use crate::common::hung_disk::{self, Frozen};
use crate::common::{SmallDisk, eventually};

/// Status: Internal Error.
const INTERNAL: u16 = 0x06;

fn directory() -> Arc<TempDir> {
    let dir = tempfile::Builder::new().prefix("opi-").tempdir();
    Arc::new(dir.expect("a directory"))
}

/// Asserts that the reservation is effective although the command failed.
fn holds(disk: &Disk) {
    let (_admin, mut other) = connected(&disk.other);
    let refused = other.write(1, 0, &[1; 512]).expect("an answer");
    assert_eq!(refused.status(), CONFLICT);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_fails_after_three_seconds_on_a_hung_disk() {
    let dir = directory();
    let state = hung_disk::Disk::new(&dir.path().join("image"), dir.path().join("state"));
    let options = Options::default().in_dir(Arc::clone(&dir));
    let target = Target::start_with(options.clone()).await;
    let disk = Disk::new(&target).await;
    let (admin, mut holder) = connected(&disk.holder);
    assert_eq!(command(&mut holder, REGISTER, PERSIST, [0, KEY]), 0);

    let frozen = Frozen::new(&state);
    let begun = Instant::now();
    let status = command(&mut holder, ACQUIRE, EXCLUSIVE, [KEY, 0]);
    let took = begun.elapsed();
    assert_eq!(status, INTERNAL);
    assert!(
        took >= Duration::from_secs(2) && took < Duration::from_secs(10),
        "{took:?}"
    );
    holds(&disk);
    drop(frozen);

    assert_eq!(command(&mut holder, ACQUIRE, EXCLUSIVE, [KEY, 0]), 0);
    let options = killed(target, options);
    drop((admin, holder));
    let target = Target::start_with(options).await;
    is_held(&disk);
    target.stop();
}

/// Creates volumes until the state's file is full.
async fn use_up(target: &Target, round: u32) {
    let mut running = JoinSet::new();
    for client in 0..8 {
        let connection = target.client().await;
        running.spawn(async move {
            let volumes = Resource::new(&connection, "NullVolume");
            for number in 0.. {
                let id = format!("fills-the-state-{round}-{client}-{number}");
                let spec = json!({ "block_size": 512, "blocks_count": 64 });
                match volumes.create("", &id, spec).await {
                    Ok(_) => {}
                    Err(status) if status.code() == Code::ResourceExhausted => return,
                    Err(status) => panic!("{status}"),
                }
            }
        });
    }
    running.join_all().await;
}

fn is_checked(dir: &Path) {
    let checked = Command::new(env!("CARGO_BIN_EXE_opi-spdk"))
        .args(["state", "check", "--state-dir"])
        .arg(dir)
        .output()
        .expect("the program starts");
    assert!(checked.status.success(), "{checked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_fails_on_a_full_disk_and_the_next_command_stores_it() {
    let dir = directory();
    let state = SmallDisk::new(dir.path().join("state"), 8);
    let options = Options::default().in_dir(Arc::clone(&dir));
    let target = Target::start_with(options.clone()).await;
    let disk = Disk::new(&target).await;
    let (admin, mut holder) = connected(&disk.holder);
    assert_eq!(command(&mut holder, REGISTER, PERSIST, [0, KEY]), 0);

    let filler = state.fill();
    let mut is_full = false;
    // The remaining space may suffice for one more small record: then release the reservation, and use
    // up the space.
    for round in 0..20 {
        use_up(&target, round).await;
        match command(&mut holder, ACQUIRE, EXCLUSIVE, [KEY, 0]) {
            0 => assert_eq!(command(&mut holder, RELEASE, EXCLUSIVE, [KEY, 0]), 0),
            status => {
                assert_eq!(status, INTERNAL);
                is_full = true;
                break;
            }
        }
    }
    assert!(is_full, "every command found room");
    holds(&disk);
    // While it is not durable, with another key: all reactors are told, and there is nothing to abort.
    let preempts = EXCLUSIVE | PREEMPT_AND_ABORT;
    assert_ne!(command(&mut holder, ACQUIRE, preempts, [KEY + 1, KEY]), 0);
    holds(&disk);
    std::fs::remove_file(filler).expect("the filler can be removed");

    // The command does not change the reservation, but is not completed before the reservation is
    // durable. After failures in a row the disk is tried again within a second.
    eventually(
        "there is room",
        Duration::from_secs(10),
        async || match command(&mut holder, ACQUIRE, EXCLUSIVE, [KEY, 0]) {
            0 => Some(()),
            status => {
                assert_eq!(status, INTERNAL);
                None
            }
        },
    )
    .await;
    let options = killed(target, options);
    drop((admin, holder));
    is_checked(state.path());
    let target = Target::start_with(options).await;
    is_held(&disk);
    target.stop();
}
