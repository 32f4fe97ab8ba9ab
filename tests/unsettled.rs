//! Changes that were answered as failed while they went on: what they leave in SPDK is taken back.

mod common;

use std::path::Path;
use std::time::Duration;

use common::stopped::{Stopped, reactor};
use common::vhost_user::{Disk, Kind, blk_header};
use common::{
    Client, Initiator, Options, Resource, Target, Tool, blk_spec, eventually, malloc, name_of,
    namespace, nqn_of, subsystem, tcp_controller,
};
use serde_json::{Value, json};
use tonic::Code;

const SOON: Duration = Duration::from_secs(30);

/// Returns SPDK's limit of a bdev's bandwidth in MiB/s (0 for none), and its aliases.
async fn limit_of(socket: &Path, bdev: &str) -> (u64, Vec<String>) {
    let bdevs = Tool::rpc(socket)
        .args(["bdev_get_bdevs", "-b", bdev])
        .run()
        .await;
    let bdevs: Value = serde_json::from_str(&bdevs.expect("there is the bdev")).expect("JSON");
    let limit = bdevs[0]["assigned_rate_limits"]["rw_mbytes_per_sec"].as_u64();
    let aliases = bdevs[0]["aliases"].as_array().expect("a list").iter();
    let aliases = aliases.map(|alias| alias.as_str().expect("text").to_owned());
    (limit.expect("a limit"), aliases.collect())
}

/// A target with two reactors, both of which have channels of each of these volumes.
async fn with_volumes<const COUNT: usize>(
    ids: [&str; COUNT],
) -> (Target, Client, std::path::PathBuf) {
    let (mut options, socket) = Options::default().with_rpc();
    options.cores = Some("0,1");
    let target = Target::start_with(options).await;
    let client = target.client().await;
    let over = subsystem(&client, "s", json!({})).await;
    for id in ids {
        let volume = malloc(&client, id, 16).await;
        namespace(&client, &over, &volume, json!({})).await;
    }
    tcp_controller(&client, &over).await;
    (target, client, socket)
}

fn limited(volume: &str, mib: u64) -> Value {
    let max = json!({ "rw_bandwidth_mbs": mib });
    json!({ "volume_name_ref": format!("volumes/{volume}"), "limits": { "max": max } })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_limit_that_takes_effect_after_its_create_has_failed_is_taken_back() {
    let (target, client, socket) = with_volumes(["a"]).await;
    let limits = Resource::new(&client, "QosVolume");
    let stopped = Stopped::new(reactor(&target, 1));
    let status = limits
        .refused("", "q", limited("a", 20), Code::DeadlineExceeded)
        .await;
    assert!(status.message().contains("goes on by itself"), "{status}");
    stopped.go_on();
    eventually("the limit and its record are gone", SOON, async || {
        let is_free = limit_of(&socket, "a").await.0 == 0;
        (is_free && limits.names("").await.is_empty()).then_some(())
    })
    .await;
    limits.created("", "q", limited("a", 30)).await;
    assert_eq!(limit_of(&socket, "a").await.0, 30);
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn limits_that_were_to_move_to_another_volume_are_back_at_theirs() {
    let (target, client, socket) = with_volumes(["a", "b"]).await;
    let limits = Resource::new(&client, "QosVolume");
    let name = name_of(&limits.created("", "q", limited("a", 20)).await);
    let stopped = Stopped::new(reactor(&target, 1));
    let update = limits.update(&name, limited("b", 30), None).await;
    assert_eq!(
        update.expect_err("it is not done in time").code(),
        Code::DeadlineExceeded
    );
    let found = limits.get(&name).await.expect("it is there");
    assert_eq!(found["volume_name_ref"], "volumes/a");
    stopped.go_on();
    eventually("volume a has its limit and alias again", SOON, async || {
        let (limit, aliases) = limit_of(&socket, "a").await;
        (limit == 20 && aliases.iter().any(|alias| alias == "q")).then_some(())
    })
    .await;
    assert_eq!(limit_of(&socket, "b").await.0, 0);
    limits.updated(&name, limited("b", 30), None).await;
    assert_eq!(limit_of(&socket, "a").await.0, 0);
    assert_eq!(limit_of(&socket, "b").await.0, 30);
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_deletion_that_was_not_done_in_time_is_completed() {
    let (target, client, socket) = with_volumes(["a"]).await;
    let limits = Resource::new(&client, "QosVolume");
    let name = name_of(&limits.created("", "q", limited("a", 20)).await);
    let stopped = Stopped::new(reactor(&target, 1));
    let delete = limits.delete(&name).await;
    let status = delete.expect_err("it is not done in time");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    stopped.go_on();
    eventually("the limit and its record are gone", SOON, async || {
        let is_free = limit_of(&socket, "a").await.0 == 0;
        (is_free && limits.names("").await.is_empty()).then_some(())
    })
    .await;
    target.stop();
}

/// A virtio-blk device over a volume, with or without a limit.
fn disk(volume: &str, mib: Option<u64>) -> Value {
    let mut spec = blk_spec(&format!("volumes/{volume}"));
    if let Some(mib) = mib {
        spec["max_limit"] = json!({ "rw_bandwidth_mbs": mib });
    }
    spec
}

/// Returns the ID of the volume that a device shows (VIRTIO_BLK_T_GET_ID).
fn id_of(disk: &mut Disk) -> Vec<u8> {
    let answer = disk.session.transfer(0, &[&blk_header(8, 0)], &[20, 1]);
    answer.expect("an answer").parts.swap_remove(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_device_whose_limits_were_to_change_serves_its_machine_with_its_own() {
    let (mut options, rpc) = Options::hugepages().with_rpc();
    options.cores = Some("0,1");
    let target = Target::start_with(options).await;
    let client = target.client().await;
    let devices = Resource::new(&client, "VirtioBlk");
    // One of the two is served by the reactor that is stopped.
    let mut disks = Vec::new();
    for (device, volume, other) in [("d0", "a", "b"), ("d1", "c", "d")] {
        malloc(&client, volume, 16).await;
        malloc(&client, other, 16).await;
        devices.created("", device, disk(volume, Some(20))).await;
        let socket = target.ctrlr_dir().join(device);
        let mut disk = Disk::open(Kind::Blk, &socket).expect("a machine connects");
        let id = id_of(&mut disk);
        // SPDK ends such a change on the reactor that serves the device.
        let name = format!("volumes/{device}");
        devices
            .updated(&name, self::disk(volume, Some(25)), None)
            .await;
        devices.updated(&name, self::disk(volume, None), None).await;
        devices
            .updated(&name, self::disk(volume, Some(20)), None)
            .await;
        disks.push((device, volume, other, disk, id));
    }
    let stopped = Stopped::new(reactor(&target, 1));
    let mut codes = Vec::new();
    for (device, volume, other, ..) in &disks {
        let name = format!("volumes/{device}");
        // Refused before anything is changed.
        let update = devices.update(&name, disk(other, Some(30)), None).await;
        let refused = update.expect_err("a machine uses it");
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        let update = devices.update(&name, disk(volume, Some(30)), None).await;
        codes.extend(update.err().map(|status| status.code()));
    }
    assert!(codes.contains(&Code::DeadlineExceeded), "{codes:?}");
    stopped.go_on();
    eventually("the device is as recorded again", SOON, async || {
        target.log().contains("object applied again").then_some(())
    })
    .await;
    for (device, volume, other, disk, id) in &mut disks {
        assert_eq!(
            id_of(disk),
            *id,
            "{device}: the same machine, the same volume"
        );
        let found = devices.get(&format!("volumes/{device}")).await;
        let found = found.expect("it is there");
        let limit = json!(limit_of(&rpc, volume).await.0);
        assert_eq!(limit, found["max_limit"]["rw_bandwidth_mbs"], "{device}");
        assert_eq!(limit_of(&rpc, other).await.0, 0);
    }
    drop(disks);
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_subsystem_whose_deletion_was_given_up_serves_its_hosts() {
    let (target, client, _) = with_volumes(["a"]).await;
    let subsystems = Resource::new(&client, "NvmeSubsystem");
    let name = subsystem(&client, "empty", json!({})).await;
    let stopped = Stopped::new(reactor(&target, 1));
    let status = subsystems
        .delete(&name)
        .await
        .expect_err("it is not done in time");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    // This one waits behind the first, and is given up before it begins.
    let status = subsystems
        .delete(&name)
        .await
        .expect_err("it is not done in time");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    stopped.go_on();
    eventually("the log tells it", SOON, async || {
        target
            .log()
            .contains("it serves its hosts again")
            .then_some(())
    })
    .await;
    subsystems.get(&name).await.expect("its record has stayed");
    let volume = malloc(&client, "b", 16).await;
    let shown = namespace(&client, &name, &volume, json!({})).await;
    let (controller, port) = tcp_controller(&client, &name).await;
    let host = Initiator::tcp(port, &nqn_of("empty"));
    let copy = target.scratch().join("copy");
    let read = host.copy_out(target.scratch(), 1, 64, &copy).await;
    read.expect("a host reads from it");
    for (kind, name) in [
        ("NvmeController", controller),
        ("NvmeNamespace", shown),
        ("NvmeSubsystem", name.clone()),
    ] {
        Resource::new(&client, kind).deleted(&name).await;
    }
    target.stop();
}
