//! Access to the devices' sockets by clients of another user, such as a QEMU that does not run as root.

mod common;

use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use common::vfio_user::Link;
use common::vhost_user::{Disk, Kind, Pages};
use common::{Options, Resource, Target, blk_spec, malloc, namespace, pcie_spec, subsystem};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use serde_json::json;

/// Numeric user and group IDs: they need no names.
const USER: u32 = 54322;
const GROUP: u32 = 54321;
const OTHER_GROUP: u32 = 54323;

/// Creates a vfio-user and a vhost-user device; returns their sockets.
async fn devices(target: &Target) -> [PathBuf; 2] {
    let client = target.client().await;
    let volume = malloc(&client, "nvme-volume", 4).await;
    let exported = subsystem(&client, "nvme", json!({})).await;
    namespace(&client, &exported, &volume, json!({})).await;
    Resource::new(&client, "NvmeController")
        .created(&exported, "", pcie_spec(1))
        .await;
    let volume = malloc(&client, "blk-volume", 4).await;
    Resource::new(&client, "VirtioBlk")
        .created("", "blk", blk_spec(&volume))
        .await;
    // The target's temporary directory has mode 0700: let others traverse it.
    let above = target.scratch();
    std::fs::set_permissions(above, std::fs::Permissions::from_mode(0o711))
        .expect("the permissions can be set");
    let dir = target.ctrlr_dir();
    [dir.join("nvme").join("cntrl"), dir.join("blk")]
}

/// Connects to both sockets as another user with this group, and does I/O on the second; returns the
/// results.
fn as_other(group: u32, sockets: &[PathBuf; 2]) -> [io::Result<()>; 2] {
    let [nvme, blk] = sockets.clone();
    let client = std::thread::spawn(move || {
        let (user, group) = (Uid::from_raw(USER), Gid::from_raw(group));
        set_thread_groups(&[]).expect("the test runs as root");
        set_thread_res_gid(group, group, group).expect("the test runs as root");
        set_thread_res_uid(user, user, user).expect("the test runs as root");
        let options = Kind::Blk.options().pages(Pages::Ordinary);
        let used =
            Disk::open_with(Kind::Blk, &blk, &options).and_then(|mut disk| disk.verify(4, 4096, 1));
        [Link::attach(&nvme).map(drop), used]
    });
    client.join().expect("no panic")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_another_user_needs_the_sockets_group() {
    let group = GROUP.to_string();
    let args = ["--socket-group", &group, "--socket-mode", "0660"];
    let target = Target::start_with(Options::hugepages().args(args)).await;
    let sockets = devices(&target).await;
    tokio::task::block_in_place(|| {
        for outcome in as_other(GROUP, &sockets) {
            outcome.expect("the group has access");
        }
        for outcome in as_other(OTHER_GROUP, &sockets) {
            let error = outcome.expect_err("the group has no access");
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        }
    });
    target.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_settings_sockets_are_accessible_to_their_owner_only() {
    let target = Target::start_with(Options::hugepages()).await;
    let sockets = devices(&target).await;
    tokio::task::block_in_place(|| {
        for outcome in as_other(GROUP, &sockets) {
            let error = outcome.expect_err("another user has no access");
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        }
    });
    target.stop();
}
