//! The data path end to end: data written through an export is read back and compared by real
//! initiators, and the configuration is visible to hosts.

mod common;

use std::path::Path;
use std::time::Duration;

use common::{
    Client, Fixture, Initiator, Options, Resource, Target, Tool, eventually, malloc, name_of,
    namespace, nqn_of, pattern, pcie_spec, subsystem, tcp_controller, unique,
};
use serde_json::{Value, json};
use tonic::Code;

/// Writes a file through the initiator, reads it back over a second connection and compares; returns the
/// data.
async fn copies_there_and_back(initiator: &Initiator, dir: &Path, nsid: u32) -> Vec<u8> {
    const KIB: u32 = 4096;
    let (file, bytes) = (dir.join("pattern"), pattern(KIB));
    std::fs::write(&file, &bytes).expect("the file can be written");
    initiator.copy_in(dir, &file, nsid).await.expect("written");
    let back = dir.join("back");
    initiator
        .copy_out(dir, nsid, KIB, &back)
        .await
        .expect("read");
    let read = std::fs::read(&back).expect("the copy exists");
    assert!(read == bytes, "what was read differs from what was written");
    bytes
}

fn count(stats: &Value, counter: &str) -> i64 {
    stats[counter]
        .as_i64()
        .unwrap_or_else(|| panic!("{counter} of {stats}"))
}

/// Returns the statistics of all objects on the path of an I/O.
async fn all_stats(export: &Fixture) -> Vec<Value> {
    let mut all = Vec::new();
    for (kind, name) in [
        ("MallocVolume", &export.volume),
        ("NvmeNamespace", &export.namespace),
        ("NvmeSubsystem", &export.subsystem),
        ("NvmeController", &export.controller),
    ] {
        all.push(export.resource(kind).stats(name).await);
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn data_over_nvme_tcp_is_verified_and_counted() {
    let target = Target::start().await;
    let export = Fixture::tcp(&target, 16).await;
    let dir = target.scratch();
    let before = all_stats(&export).await;
    export
        .initiator()
        .verify(dir, 1)
        .await
        .expect("patterns match");
    let after = all_stats(&export).await;
    for (before, after) in before.iter().zip(&after) {
        for counter in [
            "read_ops_count",
            "read_bytes_count",
            "write_ops_count",
            "write_bytes_count",
        ] {
            assert!(
                count(after, counter) > count(before, counter),
                "{counter}: {before} {after}"
            );
        }
        // 4 KiB per operation, unless the counter has saturated.
        let bytes = count(after, "write_bytes_count");
        assert!(
            bytes >= count(after, "write_ops_count") || bytes == i64::from(i32::MAX),
            "{after}"
        );
    }
    copies_there_and_back(&export.initiator(), dir, 1).await;
    export.remove().await;
}

/// Copies that the acceleration framework has executed.
async fn accelerated_copies(socket: &Path) -> u64 {
    let stats = Tool::rpc(socket).args(["accel_get_stats"]).run().await;
    let stats: Value = serde_json::from_str(&stats.expect("statistics")).expect("JSON");
    let operations = stats["operations"].as_array().expect("a list");
    let copies = operations.iter().find(|each| each["opcode"] == "copy");
    copies.map_or(0, |copies| copies["executed"].as_u64().expect("a count"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_volume_in_memory_copies_its_blocks_itself() {
    let (options, socket) = Options::default().with_rpc();
    let target = Target::start_with(options).await;
    let export = Fixture::tcp(&target, 16).await;
    let dir = target.scratch();
    let before = accelerated_copies(&socket).await;
    export
        .initiator()
        .verify(dir, 1)
        .await
        .expect("patterns match");
    copies_there_and_back(&export.initiator(), dir, 1).await;
    assert_eq!(accelerated_copies(&socket).await, before);
    export.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn fio_verifies_its_checksums_over_nvme_tcp() {
    let target = Target::start().await;
    let export = Fixture::tcp(&target, 16).await;
    let report = export.initiator().fio_verify(target.scratch(), "8m").await;
    report.expect("checksums match");
    let stats = export
        .resource("NvmeNamespace")
        .stats(&export.namespace)
        .await;
    assert!(count(&stats, "write_bytes_count") >= 8 << 20, "{stats}");
    assert!(count(&stats, "read_bytes_count") >= 8 << 20, "{stats}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn host_writes_reach_the_file_of_an_aio_volume() {
    let target = Target::start().await;
    let client = target.client().await;
    let file = target.scratch().join("backing");
    std::fs::File::create(&file)
        .and_then(|file| file.set_len(8 << 20))
        .expect("the file can be extended");
    let object = json!({ "block_size": 512, "filename": file });
    let volume = name_of(
        &Resource::new(&client, "AioVolume")
            .created("", "file", object)
            .await,
    );
    let parent = subsystem(&client, "sub", json!({})).await;
    namespace(&client, &parent, &volume, json!({})).await;
    let (_, port) = tcp_controller(&client, &parent).await;
    let initiator = Initiator::tcp(port, &nqn_of("sub"));
    let bytes = copies_there_and_back(&initiator, target.scratch(), 1).await;
    initiator
        .workload(target.scratch(), "flush")
        .await
        .expect("flushed");
    let stored = std::fs::read(&file).expect("the file exists");
    assert!(
        stored[..bytes.len()] == bytes,
        "the file differs from what the host wrote"
    );
    assert!(
        stored[bytes.len()..].iter().all(|byte| *byte == 0),
        "the file was changed beyond the written range"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn blocks_can_be_unmapped_and_zeroed_over_nvme_tcp() {
    let target = Target::start().await;
    let export = Fixture::tcp(&target, 8).await;
    let dir = target.scratch();
    copies_there_and_back(&export.initiator(), dir, 1).await;
    export
        .initiator()
        .workload(dir, "write_zeroes")
        .await
        .expect("zeroed");
    // The workload is sequential and long enough to cover the whole namespace.
    let back = dir.join("zeroes");
    export
        .initiator()
        .copy_out(dir, 1, 4096, &back)
        .await
        .expect("read");
    assert!(
        std::fs::read(&back)
            .expect("the copy exists")
            .iter()
            .all(|byte| *byte == 0),
        "the blocks were not zeroed"
    );
    let before = export.resource("MallocVolume").stats(&export.volume).await;
    export
        .initiator()
        .workload(dir, "unmap")
        .await
        .expect("unmapped");
    let after = export.resource("MallocVolume").stats(&export.volume).await;
    for counter in ["unmap_ops_count", "unmap_bytes_count"] {
        assert!(
            count(&after, counter) > count(&before, counter),
            "{counter}: {before} {after}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn data_over_vfio_user_is_verified_and_counted() {
    let target = Target::start_with(Options::hugepages()).await;
    let client = target.client().await;
    let volume = malloc(&client, "memory", 16).await;
    let parent = subsystem(&client, "sub", json!({})).await;
    let exported = namespace(&client, &parent, &volume, json!({})).await;
    let controllers = Resource::new(&client, "NvmeController");
    let made = controllers.created(&parent, "pcie", pcie_spec(1)).await;
    assert_eq!(made["status"]["active"], true, "{made}");
    let dir = target.ctrlr_dir().join("sub");
    assert!(
        dir.join("cntrl").exists(),
        "the socket is at its documented path"
    );
    // A subsystem can have only one PCIe controller.
    let second = controllers
        .refused(&parent, "second", pcie_spec(2), Code::AlreadyExists)
        .await;
    assert!(second.message().contains(&name_of(&made)), "{second}");

    let initiator = Initiator::vfio_user(&dir, &nqn_of("sub"));
    initiator
        .verify(target.scratch(), 1)
        .await
        .expect("patterns match");
    copies_there_and_back(&initiator, target.scratch(), 1).await;
    let stats = Resource::new(&client, "NvmeNamespace")
        .stats(&exported)
        .await;
    for counter in [
        "read_ops_count",
        "read_bytes_count",
        "write_ops_count",
        "write_bytes_count",
    ] {
        assert!(count(&stats, counter) > 0, "{counter} of {stats}");
    }

    controllers.deleted(&name_of(&made)).await;
    assert!(!dir.exists(), "{} was not removed", dir.display());
    let made = controllers.created(&parent, "pcie", pcie_spec(1)).await;
    initiator
        .verify(target.scratch(), 1)
        .await
        .expect("the recreated controller serves I/O");
    controllers.deleted(&name_of(&made)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn one_volume_is_exported_over_tcp_and_vfio_user_at_once() {
    let target = Target::start_with(Options::hugepages()).await;
    let export = Fixture::tcp(&target, 16).await;
    let controllers = export.resource("NvmeController");
    let pcie = controllers
        .created(&export.subsystem, "", pcie_spec(1))
        .await;
    let id = export
        .subsystem
        .rsplit('/')
        .next()
        .expect("a name has parts");
    let vfio = Initiator::vfio_user(&target.ctrlr_dir().join(id), &export.nqn);
    let dir = target.scratch();
    let (file, bytes) = (dir.join("pattern"), pattern(1024));
    std::fs::write(&file, &bytes).expect("the file can be written");
    vfio.copy_in(dir, &file, 1)
        .await
        .expect("written over vfio-user");
    let back = dir.join("back");
    export
        .initiator()
        .copy_out(dir, 1, 1024, &back)
        .await
        .expect("read over TCP");
    assert!(
        std::fs::read(&back).expect("the copy exists") == bytes,
        "the data read over TCP differs"
    );
    controllers.deleted(&name_of(&pcie)).await;
    export
        .initiator()
        .verify(dir, 1)
        .await
        .expect("the TCP controller still serves I/O");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn identifiers_reach_the_host() {
    let target = Target::start().await;
    let client = target.client().await;
    let texts = json!({ "serial_number": "SN-4711", "model_number": "A model of ours" });
    let parent = subsystem(&client, "sub", texts).await;
    let volume = malloc(&client, "memory", 1).await;
    let spec = json!({
        "host_nsid": 7,
        "uuid": "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb",
        "nguid": "11111111-2222-3333-4444-555566667777",
        "eui64": 0x0102_0304_0506_0708_i64,
    });
    namespace(&client, &parent, &volume, spec).await;
    let (_, port) = tcp_controller(&client, &parent).await;
    let text = Initiator::tcp(port, &nqn_of("sub"))
        .identify()
        .await
        .expect("identified");
    let plain = text.replace('-', "").to_lowercase();
    for what in [
        "sn4711",
        "a model of ours",
        "namespace id:7",
        "1b4e28ba2fa111d2883fb9a761bde3fb",
        "11111111222233334444555566667777",
        "0102030405060708",
    ] {
        assert!(
            plain.contains(what),
            "{what} did not reach the host:\n{text}"
        );
    }
    let made = Resource::new(&client, "NvmeSubsystem")
        .get(&parent)
        .await
        .expect("the subsystem exists");
    let firmware = made["status"]["firmware_revision"]
        .as_str()
        .expect("the firmware revision is a string");
    let read = text
        .lines()
        .find_map(|line| line.strip_prefix("Firmware Version:"))
        .expect("the host reads a firmware version")
        .trim();
    assert!(
        firmware.contains(read) && !read.is_empty(),
        "{firmware:?}, but hosts read {read:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn only_the_allowed_host_connects_and_the_setting_changes_live() {
    const FIRST: &str = "nqn.2022-09.io.spdk:first-host";
    const SECOND: &str = "nqn.2022-09.io.spdk:second-host";
    let target = Target::start().await;
    let export = Fixture::tcp(&target, 4).await;
    let subsystems = export.resource("NvmeSubsystem");
    let dir = target.scratch();
    let connect = async |hostnqn: &str| {
        let initiator = export.initiator().with_host(hostnqn);
        initiator.copy_out(dir, 1, 64, &dir.join("read")).await
    };
    let allow = async |hostnqn: &str| {
        let object = json!({ "spec": { "hostnqn": hostnqn } });
        subsystems
            .updated(&export.subsystem, object, Some(&["spec.hostnqn"]))
            .await;
    };
    connect(SECOND).await.expect("any host may connect");
    allow(FIRST).await;
    connect(FIRST).await.expect("the allowed host may connect");
    connect(SECOND).await.expect_err("another host is rejected");
    export
        .initiator()
        .identify()
        .await
        .expect_err("a generated host NQN is rejected");
    allow(SECOND).await;
    connect(SECOND)
        .await
        .expect("the newly allowed host may connect");
    connect(FIRST)
        .await
        .expect_err("the formerly allowed host is rejected");
    allow("").await;
    connect(FIRST).await.expect("any host may connect again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn namespaces_are_added_and_removed_under_io() {
    let target = Target::start().await;
    let export = Fixture::tcp(&target, 16).await;
    let namespaces = export.resource("NvmeNamespace");
    let load = export.load(4).await;
    for _ in 0..3 {
        let volume = malloc(&export.client, &unique("extra"), 1).await;
        let second = namespace(
            &export.client,
            &export.subsystem,
            &volume,
            json!({ "host_nsid": 2 }),
        )
        .await;
        let seen = export.initiator().identify().await.expect("identified");
        assert!(
            seen.contains("Namespace ID:2"),
            "a new namespace is not seen:\n{seen}"
        );
        namespaces.deleted(&second).await;
        let seen = export.initiator().identify().await.expect("identified");
        assert!(
            !seen.contains("Namespace ID:2"),
            "a namespace that has gone is seen:\n{seen}"
        );
    }
    let report = load.ended().await.expect("the load is not disturbed");
    assert!(!report.contains("completed with error"), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn deleting_a_controller_disconnects_its_hosts() {
    let target = Target::start().await;
    let export = Fixture::tcp(&target, 16).await;
    let load = export.load(30).await;
    export
        .resource("NvmeController")
        .deleted(&export.controller)
        .await;
    let ended = tokio::time::timeout(Duration::from_secs(10), load.ended()).await;
    ended
        .expect("the host is disconnected before its load ends")
        .ok();
    export
        .initiator()
        .identify()
        .await
        .expect_err("the listener is gone");
    let (_, port) = tcp_controller(&export.client, &export.subsystem).await;
    let again = Initiator::tcp(port, &export.nqn);
    again
        .verify(target.scratch(), 1)
        .await
        .expect("a new controller serves I/O");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_namespace_deleted_under_load_leaves_no_paused_subsystem() {
    let target = Target::start().await;
    let export = Fixture::tcp(&target, 16).await;
    let load = export.load(30).await;
    export
        .resource("NvmeNamespace")
        .deleted(&export.namespace)
        .await;
    // The load would continue on the namespace that replaces this one.
    drop(load);
    let again = namespace(&export.client, &export.subsystem, &export.volume, json!({})).await;
    export
        .initiator()
        .verify(target.scratch(), 1)
        .await
        .expect("the recreated namespace serves I/O");
    export.resource("NvmeNamespace").deleted(&again).await;
}

/// A volume can grow while hosts are connected; shrinking needs a rebuild and is rejected while it is in
/// use.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_size_of_a_volume_reaches_the_host() {
    let target = Target::start().await;
    let client: Client = target.client().await;
    let nulls = Resource::new(&client, "NullVolume");
    let volume = name_of(
        &nulls
            .created("", "null", json!({ "block_size": 512, "blocks_count": 64 }))
            .await,
    );
    let parent = subsystem(&client, "sub", json!({})).await;
    namespace(&client, &parent, &volume, json!({})).await;
    let (_, port) = tcp_controller(&client, &parent).await;
    let initiator = Initiator::tcp(port, &nqn_of("sub"));
    let blocks = async || {
        let text = initiator.identify().await.expect("identified");
        let line = text
            .lines()
            .find(|line| line.starts_with("Size (in LBAs):"))
            .map(str::to_owned);
        line.unwrap_or_else(|| panic!("no size in:\n{text}"))
    };
    assert!(blocks().await.contains(" 64 "), "{}", blocks().await);
    nulls
        .updated(&volume, json!({ "blocks_count": 128 }), None)
        .await;
    eventually(
        "the host sees the new size",
        Duration::from_secs(3),
        async || blocks().await.contains(" 128 ").then_some(()),
    )
    .await;
    let smaller = json!({ "blocks_count": 64 });
    nulls
        .update_refused(&volume, smaller, None, Code::FailedPrecondition)
        .await;
    assert!(
        blocks().await.contains(" 128 "),
        "a rejected update changed the size"
    );
}
