//! The volumes between a base volume and its hosts: encryption, checked on the base volume, and rate
//! limits, measured.

mod common;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{
    Client, Fixture, Initiator, Options, Resource, Target, encrypted_spec, eventually, malloc,
    name_of, namespace, nqn_of, subsystem, tcp_controller, unique,
};
use serde_json::{Value, json};
use tonic::Code;

const KIB: u32 = 1024;

/// A key of 32 bytes that ends in this letter, in base64.
fn key_128(last: char) -> String {
    let last = match last {
        'e' => "ZWU=",
        _ => "ZmY=",
    };
    format!("MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNk{last}")
}

/// A key of 64 bytes with two different halves, in base64.
fn key_256() -> String {
    "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQg=="
        .into()
}

/// Writes a file of text that would be recognized anywhere; returns its path and content.
fn plaintext(dir: &Path) -> (PathBuf, Vec<u8>) {
    let bytes = b"plaintext that must not be seen ".repeat(KIB as usize * 32);
    let path = dir.join("plain");
    std::fs::write(&path, &bytes).expect("the file can be written");
    (path, bytes)
}

/// Exports a volume while `look` runs.
async fn seen<T>(client: &Client, volume: &str, look: impl AsyncFnOnce(Initiator) -> T) -> T {
    let id = unique("seen");
    let over = subsystem(client, &id, json!({})).await;
    let namespace = namespace(client, &over, volume, json!({})).await;
    let (controller, port) = tcp_controller(client, &over).await;
    let seen = look(Initiator::tcp(port, &nqn_of(&id))).await;
    Resource::new(client, "NvmeController")
        .deleted(&controller)
        .await;
    Resource::new(client, "NvmeNamespace")
        .deleted(&namespace)
        .await;
    Resource::new(client, "NvmeSubsystem").deleted(&over).await;
    seen
}

async fn read(client: &Client, volume: &str, dir: &Path) -> Vec<u8> {
    let to = dir.join("read");
    seen(client, volume, async |host: Initiator| {
        host.copy_out(dir, 1, KIB, &to).await.expect("read")
    })
    .await;
    std::fs::read(&to).expect("the copy exists")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_base_of_an_encrypted_volume_holds_ciphertext() {
    let target = Target::start().await;
    let (client, dir) = (target.client().await, target.scratch());
    let (file, plain) = plaintext(dir);
    let volumes = Resource::new(&client, "EncryptedVolume");
    for (cipher, key) in [("AES_XTS_128", key_128('e')), ("AES_XTS_256", key_256())] {
        let base = malloc(&client, &unique("base"), 16).await;
        let object = encrypted_spec(&base, cipher, &key);
        let volume = name_of(&volumes.created("", "secret", object.clone()).await);

        let status = Resource::new(&client, "MallocVolume")
            .delete(&base)
            .await
            .expect_err("the base volume is in use");
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        assert!(status.message().contains(&volume), "{status}");

        seen(&client, &volume, async |host: Initiator| {
            host.copy_in(dir, &file, 1).await.expect("written");
            let change = encrypted_spec(&base, "AES_XTS_128", &key_128('f'));
            let refused = volumes.update(&volume, change, Some(&["*"])).await;
            assert_eq!(
                refused.expect_err("the volume is in use").code(),
                Code::FailedPrecondition
            );
        })
        .await;
        assert!(
            read(&client, &volume, dir).await == plain,
            "the data read differs from the data written"
        );
        assert!(volumes.stats(&volume).await["read_ops_count"].as_i64() > Some(0));
        volumes.deleted(&volume).await;

        let beneath = read(&client, &base, dir).await;
        assert_eq!(beneath.len(), plain.len());
        let leak = beneath.windows(16).any(|bytes| bytes == &plain[..16]);
        assert!(!leak, "{cipher}: the base volume has plaintext");

        volumes
            .created(
                "",
                "secret",
                encrypted_spec(&base, "AES_XTS_128", &key_128('f')),
            )
            .await;
        assert!(
            read(&client, &volume, dir).await != plain,
            "{cipher}: another key decrypts the data"
        );
        volumes.updated(&volume, object, Some(&["*"])).await;
        assert!(
            read(&client, &volume, dir).await == plain,
            "{cipher}: the original key does not decrypt the data"
        );
        volumes.deleted(&volume).await;
    }
    target.stop();
}

/// Returns the throughput of a host, bytes/s.
async fn rate(export: &Fixture) -> f64 {
    let bytes = async || {
        let stats = export
            .resource("NvmeNamespace")
            .stats(&export.namespace)
            .await;
        let count = |name: &str| stats[name].as_f64().expect("a counter");
        count("read_bytes_count") + count("write_bytes_count")
    };
    let at_first = bytes().await;
    let load = export.load(5).await;
    let (before, begin) = eventually("I/O has started", Duration::from_secs(10), async || {
        let now = bytes().await;
        (now > at_first).then(|| (now, Instant::now()))
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let rate = (bytes().await - before) / begin.elapsed().as_secs_f64();
    load.ended().await.expect("the load is served");
    rate
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn limits_apply_under_io_change_live_and_end_with_the_qos_volume() {
    const MIB: f64 = 1024.0 * 1024.0;
    let target = Target::start_with(Options::default().alone()).await;
    let export = Fixture::tcp(&target, 16).await;
    let volumes = export.resource("QosVolume");
    let limit = |max: Value| json!({ "volume_name_ref": export.volume, "limits": { "max": max } });

    let name = name_of(
        &volumes
            .created("", "slow", limit(json!({ "rw_bandwidth_mbs": 2 })))
            .await,
    );
    let slow = rate(&export).await;
    assert!(
        (0.2 * MIB..3.0 * MIB).contains(&slow),
        "limited to 2 MiB/s, measured {} MiB/s",
        slow / MIB
    );

    let status = volumes
        .refused(
            "",
            "twice",
            limit(json!({ "rw_bandwidth_mbs": 1 })),
            Code::AlreadyExists,
        )
        .await;
    assert!(status.message().contains(&name), "{status}");

    volumes
        .updated(&name, limit(json!({ "rw_iops_kiops": 1 })), Some(&["*"]))
        .await;
    let thousand = rate(&export).await;
    assert!(
        (0.4 * MIB..6.0 * MIB).contains(&thousand),
        "limited to 1000 IOPS of 4 KiB, measured {} MiB/s",
        thousand / MIB
    );

    volumes.deleted(&name).await;
    let free = rate(&export).await;
    assert!(
        free > 8.0 * MIB,
        "only {} MiB/s without a limit",
        free / MIB
    );
    export.remove().await;
    target.stop();
}

#[tokio::test]
async fn a_volume_has_one_owner_of_its_limits_by_any_name() {
    let target = Target::start().await;
    let client = target.client().await;
    let base = malloc(&client, "base", 4).await;
    let max = json!({ "rw_iops_kiops": 1 });
    let object = json!({ "volume_name_ref": base, "limits": { "max": max } });
    let qos = Resource::new(&client, "QosVolume");
    let limited = name_of(&qos.created("", "limited", object).await);
    for reference in [&base, &limited, "qosVolumes/limited", "base"] {
        let disk = json!({
            "pcie_id": { "port_id": 0, "physical_function": 1, "virtual_function": 0 },
            "volume_name_ref": reference,
            "max_limit": max,
        });
        let blks = Resource::new(&client, "VirtioBlk");
        let status = blks.refused("", "disk", disk, Code::AlreadyExists).await;
        assert!(status.message().contains(&limited), "{status}");
    }
    qos.deleted(&limited).await;
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_reference_to_a_qos_volume_means_its_base() {
    let target = Target::start().await;
    let (client, dir) = (target.client().await, target.scratch());
    let base = malloc(&client, "base", 16).await;
    let object = json!({
        "volume_name_ref": base, "limits": { "max": { "rw_bandwidth_mbs": 500 } },
    });
    let volumes = Resource::new(&client, "QosVolume");
    let qos = name_of(&volumes.created("", "limited", object).await);
    for reference in ["qosVolumes/limited", "volumes/limited", "limited"] {
        seen(&client, reference, async |host: Initiator| {
            host.verify(dir, 1).await.expect("the data is correct");
            let status = volumes
                .delete(&qos)
                .await
                .expect_err("the volume is in use");
            assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
            // A volume can be exported once, under whichever of its names.
            let over = subsystem(&client, "second", json!({})).await;
            let second = json!({ "spec": { "volume_name_ref": base } });
            let namespaces = Resource::new(&client, "NvmeNamespace");
            namespaces
                .refused(&over, "n", second, Code::FailedPrecondition)
                .await;
            Resource::new(&client, "NvmeSubsystem").deleted(&over).await;
        })
        .await;
    }
    assert!(volumes.stats(&qos).await["write_ops_count"].as_i64() > Some(0));
    volumes.deleted(&qos).await;
    Resource::new(&client, "MallocVolume").deleted(&base).await;
    target.stop();
}
