//! Devices that are lost unexpectedly: hosts get errors, states are accurate, dependents can be deleted,
//! and a device that comes back is used again.

mod common;

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use common::{
    Fixture, Initiator, Options, Resource, Target, Tool, Virtio, blk_spec, eventually, malloc,
    name_of, namespace, nqn_of, subsystem, tcp_controller,
};
use serde_json::{Value, json};
use tonic::Code;

/// Deadline for states to follow.
const SOON: Duration = Duration::from_secs(10);

/// Bytes per MiB.
const MIB: u64 = 1 << 20;

async fn becomes(namespaces: &Resource, namespace: &str, state: &str) {
    let state = format!("OPER_STATE_{state}");
    eventually(&state, SOON, async || {
        let now = namespaces
            .get(namespace)
            .await
            .expect("the namespace exists");
        assert_eq!(now["status"]["state"], "STATE_ENABLED");
        (now["status"]["oper_state"] == state).then_some(())
    })
    .await;
}

async fn fails_clearly(call: impl Future<Output = Result<Value, tonic::Status>>, what: &str) {
    let status = call.await.expect_err("the volume is lost");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert!(status.message().contains(what), "{status}");
}

async fn stats(of: &Resource, name: &str) -> Result<Value, tonic::Status> {
    let method = of.method("Stats");
    of.client.call(&method, json!({ "name": name })).await
}

/// Creates a file of 16 MiB, and a volume on it.
async fn file_volume(volumes: &Resource, dir: &Path) -> (File, String) {
    let path = dir.join("disk");
    let file = File::create(&path).expect("a file");
    file.set_len(16 * MIB).expect("the file can be extended");
    let object = json!({ "filename": path, "block_size": 512, "blocks_count": 32768 });
    let volume = name_of(&volumes.created("", "file", object).await);
    (file, volume)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_file_truncated_under_io_fails_the_io_until_it_is_restored() {
    let target = Target::start().await;
    let (client, dir) = (target.client().await, target.scratch());
    let volumes = Resource::new(&client, "AioVolume");
    let (file, volume) = file_volume(&volumes, dir).await;
    let over = subsystem(&client, "cut", json!({})).await;
    let shown = namespace(&client, &over, &volume, json!({})).await;
    let (controller, port) = tcp_controller(&client, &over).await;
    let host = Initiator::tcp(port, &nqn_of("cut"));
    let namespaces = Resource::new(&client, "NvmeNamespace");
    becomes(&namespaces, &shown, "ONLINE").await;

    for left in [8 * MIB, 0] {
        // Reads only: writes would extend the file again.
        let load = host.load_of("randread", 5).await;
        file.set_len(left).expect("the file can be truncated");
        becomes(&namespaces, &shown, "OFFLINE").await;
        let report = load.ended().await;
        let report = report.unwrap_or_else(|failed| failed);
        assert!(report.contains("completed with error"), "{report}");
        if left == 0 {
            fails_clearly(stats(&volumes, &volume), "\"file\" has gone").await;
            fails_clearly(stats(&namespaces, &shown), "\"file\" has gone").await;
        }
        file.set_len(16 * MIB).expect("the file can be extended");
        becomes(&namespaces, &shown, "ONLINE").await;
        host.verify(dir, 1)
            .await
            .expect("the restored volume serves I/O");
    }
    let log = target.log();
    for line in ["has 8388608 of its 16777216 bytes", "is whole again"] {
        assert!(log.contains(line), "{line}:\n{log}");
    }

    let load = host.load_of("randread", 3).await;
    file.set_len(0).expect("the file can be truncated");
    becomes(&namespaces, &shown, "OFFLINE").await;
    let _ = load.ended().await;
    namespaces.deleted(&shown).await;
    volumes.deleted(&volume).await;
    Resource::new(&client, "NvmeController")
        .deleted(&controller)
        .await;
    Resource::new(&client, "NvmeSubsystem").deleted(&over).await;
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_file_of_a_configured_volume_is_monitored_too() {
    let made = tempfile::tempdir().expect("a directory");
    let [path, config] = ["disk", "config.toml"].map(|name| made.path().join(name));
    let file = File::create(&path).expect("a file");
    file.set_len(16 * MIB).expect("the file can be extended");
    let volume = format!(
        "[[volume]]\nkind = \"aio\"\nname = \"raw\"\nfilename = {path:?}\nblock-size = 4096\n"
    );
    std::fs::write(&config, volume).expect("the file can be written");
    let args = ["--config".to_owned(), config.display().to_string()];
    let (options, socket) = Options::default().args(args).with_rpc();
    let target = Target::start_with(options).await;
    let client = target.client().await;
    let identity = async || {
        let bdevs = Tool::rpc(&socket).args(["bdev_get_bdevs", "-b", "raw"]);
        let bdevs = bdevs.run().await.expect("the bdev exists");
        let bdevs: Value = serde_json::from_str(&bdevs).expect("JSON");
        ["uuid", "block_size", "num_blocks"].map(|field| bdevs[0][field].clone())
    };
    let before = identity().await;
    let over = subsystem(&client, "named", json!({})).await;
    let shown = namespace(&client, &over, "volumes/raw", json!({})).await;
    let (_, port) = tcp_controller(&client, &over).await;
    let host = Initiator::tcp(port, &nqn_of("named"));
    let namespaces = Resource::new(&client, "NvmeNamespace");

    // First truncated, then also removed by SPDK.
    for left in [8 * MIB, 0] {
        let load = host.load_of("randread", 5).await;
        file.set_len(left).expect("the file can be truncated");
        becomes(&namespaces, &shown, "OFFLINE").await;
        let _ = load.ended().await;
        if left == 0 {
            fails_clearly(stats(&namespaces, &shown), "\"raw\" has gone").await;
            let object = json!({ "block_size": 512, "blocks_count": 64 });
            let nulls = Resource::new(&client, "NullVolume");
            let status = nulls.refused("", "raw", object, Code::AlreadyExists).await;
            assert!(
                status.message().contains("volumes/raw (AioVolume)"),
                "{status}"
            );
        }
        file.set_len(16 * MIB).expect("the file can be extended");
        becomes(&namespaces, &shown, "ONLINE").await;
        host.verify(target.scratch(), 1)
            .await
            .expect("the restored volume serves I/O");
    }
    assert_eq!(identity().await, before, "hosts must see the same disk");
    let log = target.log();
    for line in ["has 8388608 of its 16777216 bytes", "is whole again"] {
        assert!(log.contains(line), "{line}:\n{log}");
    }
    target.stop();
}

#[tokio::test]
async fn an_encrypted_volume_deleted_without_its_base_is_not_restored_with_it() {
    let (options, socket) = Options::default().with_rpc();
    let target = Target::start_with(options).await;
    let client = target.client().await;
    let volumes = Resource::new(&client, "EncryptedVolume");
    let rpc = async |args: &[&str]| {
        Tool::rpc(&socket)
            .args(args)
            .run()
            .await
            .expect("the command succeeds")
    };
    malloc(&client, "base", 4).await;
    let object = |key: &str| {
        json!({
            "volume_name_ref": "volumes/base", "key": key, "cipher": "ENCRYPTION_TYPE_AES_XTS_128",
        })
    };
    let key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWU=";
    let other = "ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTE=";
    volumes.created("", "secret", object(key)).await;
    rpc(&["bdev_malloc_delete", "base"]).await;
    fails_clearly(stats(&volumes, "volumes/secret"), "has gone").await;
    assert!(rpc(&["accel_crypto_keys_get"]).await.contains("secret"));

    volumes.deleted("volumes/secret").await;
    assert_eq!(rpc(&["accel_crypto_keys_get"]).await.trim(), "[]");
    rpc(&["bdev_malloc_create", "-b", "base", "4", "512"]).await;
    let there = rpc(&["bdev_get_bdevs"]).await;
    assert!(
        there.contains("base") && !there.contains("secret"),
        "{there}"
    );

    // The name and the base are free, for another key too.
    volumes.created("", "secret", object(other)).await;
    stats(&volumes, "volumes/secret")
        .await
        .expect("the volume exists");
    volumes.deleted("volumes/secret").await;
    Resource::new(&client, "MallocVolume")
        .deleted("volumes/base")
        .await;
    target.stop();
}

#[tokio::test]
async fn dependents_of_a_lost_volume_report_it_and_can_be_deleted() {
    let (options, socket) = Options::hugepages().with_rpc();
    let target = Target::start_with(options).await;
    let client = target.client().await;
    let of = |message| Resource::new(&client, message);
    for id in ["plain", "beneath", "limited", "blk", "lun"] {
        malloc(&client, id, 4).await;
    }
    let key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWU=";
    let crypto = json!({
        "volume_name_ref": "volumes/beneath", "key": key, "cipher": "ENCRYPTION_TYPE_AES_XTS_128",
    });
    let limits = |volume: &str| {
        let max = json!({ "rw_iops_kiops": 1 });
        json!({ "volume_name_ref": volume, "limits": { "max": max } })
    };
    of("EncryptedVolume").created("", "secret", crypto).await;
    of("QosVolume")
        .created("", "slow", limits("volumes/limited"))
        .await;
    let over = subsystem(&client, "lost", json!({})).await;
    let mut shown = Vec::new();
    for volume in ["volumes/plain", "volumes/secret", "volumes/slow"] {
        shown.push(namespace(&client, &over, volume, json!({})).await);
    }
    let pcie =
        |port_id| json!({ "port_id": port_id, "physical_function": 1, "virtual_function": 0 });
    let blk = json!({ "pcie_id": pcie(0), "volume_name_ref": "volumes/blk" });
    of("VirtioBlk").created("", "disk", blk).await;
    let scsi = json!({ "pcie_id": pcie(3) });
    of("VirtioScsiController").created("", "scsi", scsi).await;
    let lun = json!({ "target_name_ref": "scsi", "volume_name_ref": "volumes/lun" });
    of("VirtioScsiLun").created("", "disk", lun).await;

    let mask = json!({ "namespace": shown[0], "hostnqns": [] });
    let mask = of("NvmeNamespaceMask").created(&over, "mask", mask).await;

    for id in ["plain", "beneath", "limited", "blk", "lun"] {
        let delete = Tool::rpc(&socket).args(["bdev_malloc_delete", id]);
        delete.run().await.expect("the command succeeds");
    }
    let namespaces = of("NvmeNamespace");
    for name in &shown {
        becomes(&namespaces, name, "OFFLINE").await;
        fails_clearly(stats(&namespaces, name), "has gone").await;
    }
    for (kind, name) in [
        ("MallocVolume", "volumes/plain"),
        ("EncryptedVolume", "volumes/secret"),
        ("QosVolume", "volumes/slow"),
        ("VirtioBlk", "volumes/disk"),
        ("VirtioScsiLun", "volumes/disk"),
    ] {
        fails_clearly(stats(&of(kind), name), "has gone").await;
    }
    // Not those of another bdev of the name, which another module takes as soon as it is there: the namespace would be
    // given it otherwise.
    let takes = "bdev_delay_create -b plain -d over -r 0 -t 0 -w 0 -n 0";
    for command in [takes, "bdev_null_create plain 4 512"] {
        let other = Tool::rpc(&socket).args(command.split(' '));
        other.run().await.expect("the command succeeds");
    }
    fails_clearly(stats(&of("NvmeNamespaceMask"), &name_of(&mask)), "has gone").await;
    let delete = Tool::rpc(&socket).args(["bdev_null_delete", "plain"]);
    delete.run().await.expect("the command succeeds");
    of("NvmeNamespaceMask").deleted(&name_of(&mask)).await;
    let mut faster = limits("volumes/limited");
    faster["limits"]["max"]["rw_iops_kiops"] = 2.into();
    let refused = of("QosVolume").update("volumes/slow", faster, None).await;
    let status = refused.expect_err("the limited volume is lost");
    assert!(status.message().contains("volumes/limited"), "{status}");

    // Lost namespaces keep their NSIDs: a new one gets another NSID, and keeps it when the lost ones are
    // deleted.
    malloc(&client, "late", 4).await;
    let late = namespace(&client, &over, "volumes/late", json!({})).await;
    let given = namespaces.get(&late).await.expect("the namespace exists");
    assert_eq!(given["spec"]["host_nsid"], 4, "{given}");
    let first = shown.remove(0);
    namespaces.deleted(&first).await;
    becomes(&namespaces, &late, "ONLINE").await;
    stats(&namespaces, &late)
        .await
        .expect("the namespace exists");
    let object = json!({ "spec": { "volume_name_ref": "volumes/late" } });
    namespaces.deleted(&late).await;
    let again = namespaces.created(&over, "first", object).await;
    assert_eq!(again["spec"]["host_nsid"], 1, "{again}");
    shown.insert(0, name_of(&again));

    // A lost namespace that is given another volume is online again.
    malloc(&client, "fresh", 4).await;
    let other = json!({ "spec": { "volume_name_ref": "volumes/fresh" } });
    let mask: &[&str] = &["spec.volume_name_ref"];
    namespaces.updated(&shown[0], other, Some(mask)).await;
    becomes(&namespaces, &shown[0], "ONLINE").await;
    let gone = json!({ "spec": { "volume_name_ref": "volumes/plain" } });
    namespaces
        .update_refused(&shown[0], gone, Some(mask), Code::NotFound)
        .await;
    becomes(&namespaces, &shown[0], "ONLINE").await;

    // A volume that is back is exported again, and so are the volumes built on it.
    for id in ["beneath", "limited", "blk", "lun"] {
        let again = ["bdev_malloc_create", "-b", id, "16", "512"];
        Tool::rpc(&socket).args(again).run().await.expect("made");
    }
    becomes(&namespaces, &shown[1], "ONLINE").await;
    becomes(&namespaces, &shown[2], "ONLINE").await;
    let bdevs = Tool::rpc(&socket).args(["bdev_get_bdevs", "-b", "limited"]);
    let bdevs = bdevs.run().await.expect("the bdev exists");
    assert!(bdevs.contains("\"rw_ios_per_sec\": 1000"), "{bdevs}");
    let luns = of("VirtioScsiLun");
    eventually("the LUN is back", SOON, async || {
        stats(&luns, "volumes/disk").await.ok()
    })
    .await;
    let machine = Virtio::scsi(target.ctrlr_dir().join("scsi"));
    machine
        .verify(target.scratch(), 1)
        .await
        .expect("the LUN serves I/O");

    // The device without a connected client is recreated on its volume.
    let blks = of("VirtioBlk");
    eventually("the virtio-blk device is back", SOON, async || {
        stats(&blks, "volumes/disk").await.ok()
    })
    .await;
    let machine = Virtio::blk(target.ctrlr_dir().join("disk"));
    machine
        .verify(target.scratch(), 1)
        .await
        .expect("the device serves I/O");

    for name in &shown {
        namespaces.deleted(name).await;
    }
    for (kind, name) in [
        ("VirtioBlk", "volumes/disk"),
        ("VirtioScsiLun", "volumes/disk"),
        ("VirtioScsiController", "volumes/scsi"),
        ("EncryptedVolume", "volumes/secret"),
        ("QosVolume", "volumes/slow"),
        ("NvmeSubsystem", over.as_str()),
        ("MallocVolume", "volumes/plain"),
        ("MallocVolume", "volumes/beneath"),
        ("MallocVolume", "volumes/limited"),
        ("MallocVolume", "volumes/blk"),
        ("MallocVolume", "volumes/lun"),
        ("MallocVolume", "volumes/fresh"),
        ("MallocVolume", "volumes/late"),
    ] {
        of(kind).deleted(name).await;
    }
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_virtio_blk_device_is_restored_with_its_volume_and_limits() {
    let (options, socket) = Options::hugepages().with_rpc();
    let target = Target::start_with(options).await;
    let (client, dir) = (target.client().await, target.scratch());
    let volumes = Resource::new(&client, "AioVolume");
    let (file, volume) = file_volume(&volumes, dir).await;
    let blks = Resource::new(&client, "VirtioBlk");
    let mut object = blk_spec(&volume);
    object["max_limit"] = json!({ "rw_iops_kiops": 50 });
    let disk = name_of(&blks.created("", "disk", object).await);
    let machine = Virtio::blk(target.ctrlr_dir().join("disk"));
    for round in 0..2 {
        file.set_len(0).expect("the file can be truncated");
        // The first I/O detects the loss; reads only, as writes would extend the file again.
        let _ = machine.workload(dir, "randread").await;
        eventually("the volume is lost", SOON, async || {
            stats(&blks, &disk).await.is_err().then_some(())
        })
        .await;
        fails_clearly(stats(&blks, &disk), "\"file\" has gone").await;
        file.set_len(16 * MIB).expect("the file can be extended");
        eventually("the device is back", SOON, async || {
            stats(&blks, &disk).await.ok()
        })
        .await;
        machine.verify(dir, 1).await.expect("the device serves I/O");
        let bdevs = Tool::rpc(&socket).args(["bdev_get_bdevs", "-b", "file"]);
        let bdevs = bdevs.run().await.expect("the bdev exists");
        let limited = bdevs.contains("\"rw_ios_per_sec\": 50000");
        assert!(limited, "round {round}: {bdevs}");
    }
    blks.deleted(&disk).await;
    volumes.deleted(&volume).await;
    target.stop();
}

#[tokio::test]
async fn a_lost_remote_target_fails_the_io_and_its_dependents_can_be_deleted() {
    let target = Target::start().await;
    let mut peer = Target::start_with(Options::default().beside(&target)).await;
    let export = Fixture::tcp(&peer, 16).await;
    let client = target.client().await;
    let of = |message| Resource::new(&client, message);
    let object = json!({ "multipath": "NVME_MULTIPATH_MULTIPATH" });
    let remote = name_of(&of("NvmeRemoteController").created("", "far", object).await);
    let path = json!({
        "trtype": "NVME_TRANSPORT_TYPE_TCP",
        "traddr": "127.0.0.1",
        "fabrics": {
            "adrfam": "NVME_ADDRESS_FAMILY_IPV4", "trsvcid": export.port, "subnqn": export.nqn,
        },
    });
    let path = name_of(&of("NvmePath").created(&remote, "p", path).await);
    let over = subsystem(&client, "near", json!({})).await;
    let shown = namespace(&client, &over, "farn1", json!({})).await;
    let (_, port) = tcp_controller(&client, &over).await;
    let host = Initiator::tcp(port, &nqn_of("near"));
    let namespaces = of("NvmeNamespace");
    becomes(&namespaces, &shown, "ONLINE").await;
    stats(&of("NvmePath"), &path).await.expect("the path works");

    // SPDK queues I/O for 10 s before it fails.
    let load = host.load(14).await;
    peer.kill();
    becomes(&namespaces, &shown, "OFFLINE").await;
    let status = stats(&of("NvmePath"), &path)
        .await
        .expect_err("the path has dropped");
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    let where_to = format!("tcp 127.0.0.1:{} has dropped", export.port);
    assert!(status.message().contains(&where_to), "{status}");
    let report = load.ended().await.unwrap_or_else(|failed| failed);
    assert!(report.contains("completed with error"), "{report}");
    let log = target.log();
    for line in [
        where_to.as_str(),
        "no path to nvmeRemoteControllers/far works",
    ] {
        assert!(log.contains(line), "{line}:\n{log}");
    }

    namespaces.deleted(&shown).await;
    of("NvmePath").deleted(&path).await;
    of("NvmeRemoteController").deleted(&remote).await;
    target.stop();
}
