//! Volumes as disks of VMs: real drivers on vhost-user sockets with verified data, and operations while
//! a VM is connected.

mod common;

use std::time::Duration;

use common::{
    Client, Options, Resource, Target, Virtio, blk_spec, eventually, lun_spec, malloc, name_of,
    pattern, scsi_spec, unique,
};
use rustix::process::Signal;
use serde_json::json;
use tonic::{Code, Status};

/// Size of each volume, MiB.
const SIZE: u64 = 16;

/// Starts a target with hugepages, and connects a client.
async fn start() -> (Target, Client) {
    let target = Target::start_with(Options::hugepages()).await;
    let client = target.client().await;
    (target, client)
}

fn resources<const N: usize>(client: &Client, kinds: [&'static str; N]) -> [Resource; N] {
    kinds.map(|kind| Resource::new(client, kind))
}

fn expect_state(result: Result<(), Status>, what: &str) {
    let status = result.expect_err(what);
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert!(status.message().contains(what), "{status}");
}

#[tokio::test]
async fn virtio_blk_writes_reach_the_volume() {
    let (target, client) = start().await;
    let [blks, controllers, luns, volumes] = resources(
        &client,
        [
            "VirtioBlk",
            "VirtioScsiController",
            "VirtioScsiLun",
            "MallocVolume",
        ],
    );
    let id = unique("disk");
    let volume = malloc(&client, &id, SIZE).await;
    let blk = name_of(&blks.created("", &id, blk_spec(&volume)).await);
    assert_eq!(blk, format!("volumes/{id}"));
    let socket = target.ctrlr_dir().join(&id);
    let driver = Virtio::blk(socket.clone());
    let dir = target.scratch();

    driver.verify(dir, 2).await.expect("the data is correct");
    for kind in ["unmap", "flush"] {
        driver.workload(dir, kind).await.expect(kind);
    }
    let stats = blks.stats(&blk).await;
    for counter in [
        "read_ops_count",
        "write_ops_count",
        "write_bytes_count",
        "unmap_ops_count",
    ] {
        assert!(
            stats[counter].as_i64().is_some_and(|count| count > 0),
            "{counter}: {stats}"
        );
    }

    // Another export of the volume shows the same data.
    let written = pattern(1024);
    std::fs::write(dir.join("in"), &written).expect("the directory is writable");
    driver
        .copy_in(dir, &dir.join("in"), "Disk")
        .await
        .expect("the disk can be written");
    blks.deleted(&blk).await;
    assert!(!socket.exists(), "the socket goes with the device");
    let controller = name_of(&controllers.created("", &id, scsi_spec()).await);
    let lun = name_of(&luns.created("", &id, lun_spec(&id, &volume)).await);
    let driver = Virtio::scsi(socket.clone());
    driver
        .copy_out(dir, "Diskt0", 1024, &dir.join("out"))
        .await
        .expect("the LUN can be read");
    assert!(
        std::fs::read(dir.join("out")).expect("the copy exists") == written,
        "the data read differs from the data written"
    );

    luns.deleted(&lun).await;
    controllers.deleted(&controller).await;
    assert!(!socket.exists(), "the socket goes with the controller");
    volumes.deleted(&volume).await;
    target.stop();
}

#[tokio::test]
async fn a_scsi_controller_exposes_its_targets_luns_and_its_own() {
    let (target, client) = start().await;
    let [targets, controllers, luns] = resources(
        &client,
        ["VirtioScsiTarget", "VirtioScsiController", "VirtioScsiLun"],
    );
    let id = unique("scsi");
    let mut volumes = Vec::new();
    for n in 0..4 {
        volumes.push(malloc(&client, &format!("{id}-v{n}"), SIZE).await);
    }
    let of_target = format!("virtioScsiTargets/{id}");
    // One LUN exists before the controller, the others are added later.
    targets.created("", &id, json!({ "max_luns": 3 })).await;
    luns.created("", &format!("{id}-l0"), lun_spec(&of_target, &volumes[0]))
        .await;
    let controller = name_of(&controllers.created("", &id, scsi_spec()).await);
    luns.created("", &format!("{id}-l1"), lun_spec(&of_target, &volumes[1]))
        .await;
    luns.created("", &format!("{id}-l2"), lun_spec(&id, &volumes[2]))
        .await;
    let full = luns
        .refused(
            "",
            &format!("{id}-l3"),
            lun_spec(&id, &volumes[3]),
            Code::ResourceExhausted,
        )
        .await;
    assert!(full.message().contains("3 LUNs"), "{full}");

    let driver = Virtio::scsi(target.ctrlr_dir().join(&id));
    let said = driver
        .verify(target.scratch(), 2)
        .await
        .expect("the data is correct");
    for disk in ["Diskt0", "Diskt1", "Diskt2"] {
        assert!(said.contains(disk), "{disk} is missing:\n{said}");
    }
    assert!(!said.contains("Diskt3"), "{said}");
    driver
        .workload(target.scratch(), "unmap")
        .await
        .expect("unmap");

    // The statistics of controller and target are the sums of their LUNs'.
    let mut sum = 0;
    for n in 0..3 {
        let ops = luns.stats(&format!("volumes/{id}-l{n}")).await["write_ops_count"].as_i64();
        assert!(ops.is_some_and(|ops| ops > 0), "LUN {n}");
        sum += ops.unwrap_or_default();
    }
    for whole in [
        controllers.stats(&controller).await,
        targets.stats(&of_target).await,
    ] {
        assert_eq!(whole["write_ops_count"], sum, "{whole}");
    }

    // An object in use is not deleted; the error names the dependent.
    expect_state(
        controllers.delete(&controller).await,
        &format!("volumes/{id}-l0"),
    );
    expect_state(
        targets.delete(&of_target).await,
        &format!("volumes/{id}-l0"),
    );
    let fewer = targets
        .update(&of_target, json!({ "max_luns": 2 }), None)
        .await;
    expect_state(fewer.map(drop), "max_luns: 2 is less than the 3 LUNs");

    for n in 0..3 {
        luns.deleted(&format!("virtioScsiLuns/{id}-l{n}")).await;
    }
    controllers.deleted(&controller).await;
    targets.deleted(&of_target).await;
    target.stop();
}

#[tokio::test]
async fn luns_are_added_and_removed_under_io_of_a_connected_machine() {
    let (target, client) = start().await;
    let [controllers, luns] = resources(&client, ["VirtioScsiController", "VirtioScsiLun"]);
    let id = unique("hot");
    let [first, second, third] = ["a", "b", "c"].map(|part| format!("{id}-{part}"));
    for volume in [&first, &second, &third] {
        malloc(&client, volume, SIZE).await;
    }
    controllers.created("", &id, scsi_spec()).await;
    luns.created("", &first, lun_spec(&id, &first)).await;
    let driver = Virtio::scsi(target.ctrlr_dir().join(&id));
    let load = driver.load(target.scratch(), 4).await;
    let before = luns.stats(&first).await["write_ops_count"]
        .as_i64()
        .expect("a counter");

    luns.created("", &second, lun_spec(&id, &second)).await;
    luns.updated(&second, json!({ "volume_name_ref": third }), None)
        .await;
    luns.deleted(&second).await;
    luns.created("", &second, lun_spec(&id, &second)).await;
    expect_state(controllers.delete(&id).await, &format!("volumes/{first}"));

    eventually("I/O continues", Duration::from_secs(3), async || {
        let now = luns.stats(&first).await["write_ops_count"]
            .as_i64()
            .expect("a counter");
        (now > before).then_some(())
    })
    .await;
    load.ended().await.expect("the load is not disturbed");
    // The LUNs added while the VM was connected are visible to the next one.
    let said = driver
        .verify(target.scratch(), 1)
        .await
        .expect("the data is correct");
    assert!(said.contains("Diskt0") && said.contains("Diskt1"), "{said}");
    target.stop();
}

#[tokio::test]
async fn a_connected_machine_keeps_its_disk_while_limits_change() {
    let (target, client) = start().await;
    let [blks, volumes] = resources(&client, ["VirtioBlk", "MallocVolume"]);
    let id = unique("busy");
    let volume = malloc(&client, &id, SIZE).await;
    let other = malloc(&client, &format!("{id}-other"), SIZE).await;
    let blk = name_of(&blks.created("", &id, blk_spec(&volume)).await);
    let driver = Virtio::blk(target.ctrlr_dir().join(&id));

    let load = driver.load(target.scratch(), 5).await;
    expect_state(blks.delete(&blk).await, "a virtual machine is connected");
    let moved = blks
        .update(&blk, json!({ "volume_name_ref": other }), None)
        .await;
    expect_state(moved.map(drop), "a virtual machine is connected");
    expect_state(volumes.delete(&volume).await, &blk);
    assert_eq!(
        blks.get(&blk).await.expect("the device exists")["volume_name_ref"],
        volume.as_str()
    );

    let limited = blks
        .updated(&blk, json!({ "max_limit": { "rw_iops_kiops": 2 } }), None)
        .await;
    assert_eq!(limited["max_limit"]["rw_iops_kiops"], 2);
    let ops = async || {
        let stats = blks.stats(&blk).await;
        ["read_ops_count", "write_ops_count"]
            .map(|part| stats[part].as_i64().expect("a counter"))
            .iter()
            .sum::<i64>()
    };
    let (begin, first) = (std::time::Instant::now(), ops().await);
    let second = eventually("I/O continues", Duration::from_secs(3), async || {
        let now = ops().await;
        (now > first + 1500).then_some(now)
    })
    .await;
    let rate = f64::from(i32::try_from(second - first).expect("a small number"))
        / begin.elapsed().as_secs_f64();
    assert!(rate < 2600.0, "{rate} IOPS exceed the limit of 2000");
    let free = blks
        .updated(&blk, json!({ "max_limit": {} }), Some(&["max_limit"]))
        .await;
    assert!(
        free["max_limit"].is_null() || free["max_limit"]["rw_iops_kiops"] == 0,
        "{free}"
    );
    load.ended().await.expect("the data is correct");

    // Without a connected VM, the device can be moved to another volume.
    let moved = blks
        .updated(&blk, json!({ "volume_name_ref": other }), None)
        .await;
    assert_eq!(moved["volume_name_ref"], other.as_str());
    volumes.deleted(&volume).await;
    driver
        .verify(target.scratch(), 1)
        .await
        .expect("the data is correct");
    blks.deleted(&blk).await;
    target.stop();
}

#[tokio::test]
async fn a_device_can_be_deleted_after_its_machine_dies() {
    let (target, client) = start().await;
    let [blks] = resources(&client, ["VirtioBlk"]);
    let id = unique("dies");
    let volume = malloc(&client, &id, SIZE).await;
    let blk = name_of(&blks.created("", &id, blk_spec(&volume)).await);
    let driver = Virtio::blk(target.ctrlr_dir().join(&id));
    let load = driver.load(target.scratch(), 30).await;
    // Kill the client with I/O in flight.
    drop(load);
    eventually(
        "the device can be deleted",
        Duration::from_secs(5),
        async || blks.delete(&blk).await.ok(),
    )
    .await;
    // The device's ID and volume are free.
    blks.created("", &id, blk_spec(&volume)).await;
    driver
        .verify(target.scratch(), 1)
        .await
        .expect("the data is correct");
    target.stop();
}

#[tokio::test]
async fn the_server_stops_under_a_connected_machine() {
    for kind in ["blk", "scsi"] {
        let (mut target, client) = start().await;
        let [blks, controllers, luns] = resources(
            &client,
            ["VirtioBlk", "VirtioScsiController", "VirtioScsiLun"],
        );
        let volume = malloc(&client, kind, SIZE).await;
        let socket = target.ctrlr_dir().join(kind);
        let driver = if kind == "blk" {
            blks.created("", kind, blk_spec(&volume)).await;
            Virtio::blk(socket)
        } else {
            controllers.created("", kind, scsi_spec()).await;
            luns.created("", kind, lun_spec(kind, &volume)).await;
            Virtio::scsi(socket)
        };
        // The client keeps its hugepages, so that `Target::stop` would report them as leaked.
        let _load = driver.load(target.scratch(), 30).await;
        target.signal(Signal::TERM);
        let status = target.wait(Duration::from_secs(5));
        assert!(
            status.success(),
            "the target ended with {status}:\n{}",
            target.log()
        );
        let left: Vec<_> = std::fs::read_dir(target.ctrlr_dir())
            .expect("the directory exists")
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[tokio::test]
async fn socket_names_and_volumes_belong_to_one_device() {
    let (target, client) = start().await;
    let [blks, controllers, luns, nulls] = resources(
        &client,
        [
            "VirtioBlk",
            "VirtioScsiController",
            "VirtioScsiLun",
            "NullVolume",
        ],
    );
    let id = unique("one");
    let volume = malloc(&client, &id, 1).await;
    let other = malloc(&client, &format!("{id}-other"), 1).await;
    let blk = name_of(&blks.created("", &id, blk_spec(&volume)).await);
    let taken = controllers
        .refused("", &id, scsi_spec(), Code::AlreadyExists)
        .await;
    assert!(taken.message().contains(&blk), "{taken}");
    let second = format!("{id}-second");
    let taken = blks
        .refused("", &second, blk_spec(&volume), Code::FailedPrecondition)
        .await;
    assert!(taken.message().contains(&blk), "{taken}");
    controllers.created("", &second, scsi_spec()).await;
    luns.refused(
        "",
        &second,
        lun_spec(&second, &volume),
        Code::FailedPrecondition,
    )
    .await;
    for (unknown, lun) in [
        ("nobody", lun_spec("nobody", &other)),
        (
            "virtioScsiTargets/nobody",
            lun_spec("virtioScsiTargets/nobody", &other),
        ),
        ("volumes/nothing", lun_spec(&second, "volumes/nothing")),
        (
            "nullVolumes/nothing",
            lun_spec(&second, "nullVolumes/nothing"),
        ),
    ] {
        let status = luns.refused("", &second, lun, Code::NotFound).await;
        assert!(status.message().contains(unknown), "{status}");
    }
    blks.refused("", "nothing", blk_spec("nothing"), Code::NotFound)
        .await;
    nulls
        .created(
            "",
            "nothing",
            json!({ "block_size": 512, "blocks_count": 64 }),
        )
        .await;
    blks.created("", "nothing", blk_spec("nullVolumes/nothing"))
        .await;
    // An existing file that is not a socket is not replaced by a device's socket.
    std::fs::write(target.ctrlr_dir().join("file"), "mine").expect("the directory is writable");
    let in_the_way = blks
        .refused("", "file", blk_spec(&other), Code::FailedPrecondition)
        .await;
    assert!(
        in_the_way.message().contains("something else is there"),
        "{in_the_way}"
    );
    std::fs::remove_file(target.ctrlr_dir().join("file")).expect("the file was not removed");
    target.stop();
}

#[tokio::test]
async fn without_hugepages_devices_are_rejected_with_the_reason() {
    let target = Target::start().await;
    let client = target.client().await;
    let [blks, controllers, targets] = resources(
        &client,
        ["VirtioBlk", "VirtioScsiController", "VirtioScsiTarget"],
    );
    let volume = malloc(&client, "small", 1).await;
    for (kind, spec) in [
        (&blks, blk_spec(&volume)),
        (&controllers, scsi_spec()),
        (&targets, json!({})),
    ] {
        let status = kind
            .refused("", "without", spec, Code::FailedPrecondition)
            .await;
        assert!(status.message().contains("hugepages"), "{status}");
    }
    target.stop();
}
