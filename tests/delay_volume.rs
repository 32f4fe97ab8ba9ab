//! Delay volumes: latency over NVMe/TCP, and their parameters in SPDK's own lists.

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{
    Initiator, Options, Resource, Target, Tool, eventually, malloc, name_of, namespace, nqn_of,
    subsystem, tcp_controller,
};
use serde_json::{Value, json};
use tonic::Code;
use tonic_types::StatusExt;

/// Compares a latency in microseconds with SPDK's value: SPDK rounds the clock rate down to whole MHz.
fn has(delays: &Value, latency: &str, us: i64) -> bool {
    let found = delays[latency].as_i64();
    found.is_some_and(|found| (us - 1 - us / 1000..=us).contains(&found))
}

/// Returns SPDK's delays of a bdev; null if there is no such bdev.
async fn delays(socket: &Path, bdev: &str) -> Value {
    let bdevs = Tool::rpc(socket).args(["bdev_get_bdevs"]).run().await;
    let bdevs: Value = serde_json::from_str(&bdevs.expect("the command succeeds")).expect("JSON");
    let bdevs = bdevs.as_array().expect("a list");
    let found = bdevs.iter().find(|found| found["name"] == bdev);
    found.map_or(Value::Null, |found| {
        found["driver_specific"]["delay"].clone()
    })
}

async fn stats(of: &Resource, name: &str) -> Result<Value, tonic::Status> {
    let method = of.method("Stats");
    of.client.call(&method, json!({ "name": name })).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_delay_volume_slows_reads_and_its_latencies_change_live() {
    let (options, socket) = Options::hugepages().with_rpc();
    let target = Target::start_with(options).await;
    let client = target.client().await;
    let volumes = Resource::new(&client, "DelayVolume");
    let base = malloc(&client, "base", 16).await;
    let object = json!({ "volume_name_ref": base, "avg_read_latency_us": 500_000 });
    let slow = name_of(&volumes.created("", "slow", object).await);
    let over = subsystem(&client, "s", json!({})).await;
    namespace(&client, &over, &slow, json!({})).await;
    let (_, port) = tcp_controller(&client, &over).await;
    let host = Initiator::tcp(port, &nqn_of("s"));
    let copy = target.scratch().join("copy");

    let begun = Instant::now();
    let read = host.copy_out(target.scratch(), 1, 64, &copy).await;
    read.expect("the slow read succeeds");
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(499), "{took:?}");
    let had = delays(&socket, "slow").await;
    assert!(
        has(&had, "avg_read_latency", 500_000) && has(&had, "p99_read_latency", 500_000),
        "the p99 latency must not be below the average: {had}"
    );

    // A different base volume requires a rebuild; new latencies do not.
    let other = malloc(&client, "other", 16).await;
    let change = volumes.update_request(&slow, json!({ "volume_name_ref": other }), None);
    let refused = client.fails("UpdateDelayVolume", change, Code::FailedPrecondition);
    let refused = refused.await;
    let details = refused.get_error_details();
    let about = details
        .resource_info()
        .expect("the error names the resource");
    assert_eq!(about.resource_type, "opi_spdk.v1/DelayVolume");
    let change = json!({ "avg_read_latency_us": 0, "p99_write_latency_us": 7000 });
    let mask = ["avg_read_latency_us", "p99_write_latency_us"];
    let change = volumes.update_request(&slow, change, Some(&mask));
    client.ok("UpdateDelayVolume", change).await;
    let had = delays(&socket, "slow").await;
    assert!(
        has(&had, "avg_read_latency", 0) && has(&had, "p99_write_latency", 7000),
        "{had}"
    );
    let read = host.copy_out(target.scratch(), 1, 64, &copy).await;
    read.expect("the volume can still be read");
    for (method, name, user) in [
        ("DeleteMallocVolume", &base, "volumes/slow"),
        ("DeleteDelayVolume", &slow, "nvmeNamespaces/"),
    ] {
        let request = json!({ "name": name });
        let in_use = client
            .fails(method, request, Code::FailedPrecondition)
            .await;
        assert!(in_use.message().contains(user), "{in_use}");
    }
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_delay_volume_is_restored_with_its_base_unless_deleted() {
    let (options, socket) = Options::default().with_rpc();
    let target = Target::start_with(options).await;
    let client = target.client().await;
    let volumes = Resource::new(&client, "DelayVolume");
    let rpc = async |args: &[&str]| {
        Tool::rpc(&socket)
            .args(args)
            .run()
            .await
            .expect("the command succeeds")
    };
    malloc(&client, "base", 4).await;
    let object = json!({ "volume_name_ref": "volumes/base", "avg_write_latency_us": 10 });
    volumes.created("", "slow", object.clone()).await;
    let change = json!({ "avg_write_latency_us": 30 });
    let change = volumes.update_request("volumes/slow", change, None);
    client.ok("UpdateDelayVolume", change).await;

    rpc(&["bdev_malloc_delete", "base"]).await;
    let gone = stats(&volumes, "volumes/slow").await;
    let gone = gone.expect_err("the volume was removed with its base");
    assert!(gone.message().contains("has gone"), "{gone}");
    rpc(&["bdev_malloc_create", "-b", "base", "4", "512"]).await;
    let what = "the last latencies are restored";
    eventually(what, Duration::from_secs(30), async || {
        let had = delays(&socket, "slow").await;
        has(&had, "avg_write_latency", 30).then_some(())
    })
    .await;
    eventually(
        "the volume's statistics can be read",
        Duration::from_secs(30),
        async || stats(&volumes, "volumes/slow").await.ok(),
    )
    .await;

    // A volume deleted while its base is gone is not restored with the base, and its name is free.
    rpc(&["bdev_malloc_delete", "base"]).await;
    volumes.deleted("volumes/slow").await;
    rpc(&["bdev_malloc_create", "-b", "base", "4", "512"]).await;
    assert_eq!(delays(&socket, "slow").await, Value::Null);
    volumes.created("", "slow", object).await;
    let had = delays(&socket, "slow").await;
    assert!(has(&had, "avg_write_latency", 10), "{had}");
    volumes.deleted("volumes/slow").await;
    target.stop();
}
