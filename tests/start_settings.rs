//! Start options that must reach SPDK.

mod common;

use std::process::Command;

use common::{Fixture, JsonRpc, Options, Target};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn reactors_may_use_cores_outside_the_initial_affinity() {
    let mut options = Options::default();
    (options.core, options.pinned_to) = (1, Some(0));
    let target = Target::start_with(options).await;
    let export = Fixture::tcp(&target, 8).await;
    export.remove().await;
    let threads = format!("/proc/{}/task", target.pid().as_raw_nonzero());
    let mut allowed = std::collections::BTreeMap::new();
    for thread in std::fs::read_dir(threads)
        .expect("the target runs")
        .flatten()
    {
        let read = |file| std::fs::read_to_string(thread.path().join(file)).unwrap_or_default();
        let status = read("status");
        let list = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        let list = list.unwrap_or_default().trim().to_owned();
        allowed.insert(read("comm").trim().to_owned(), list);
    }
    assert_eq!(
        allowed.get("control").map(String::as_str),
        Some("0"),
        "{allowed:?}"
    );
    assert!(allowed.values().any(|list| list == "1"), "{allowed:?}");
    target.stop();
}

#[tokio::test]
async fn buffer_pools_have_the_configured_sizes() {
    let (options, socket) = Options::default().memory(1024).with_rpc();
    let options = options.args(["--iobuf-small", "9000", "--iobuf-large", "3000"]);
    let target = Target::start_with(options).await;
    let mut rpc = JsonRpc::connect(&socket).await.expect("SPDK listens");
    let config = rpc
        .call("framework_get_config", json!({ "name": "iobuf" }))
        .await;
    let config = config.expect("SPDK answers");
    let pools = &config[0]["params"];
    assert_eq!(
        (&pools["small_pool_count"], &pools["large_pool_count"]),
        (&json!(9000), &json!(3000)),
        "{config}"
    );
    target.stop();
}

#[tokio::test]
async fn the_tcp_transport_has_the_configured_sizes() {
    let (options, socket) = Options::default().memory(1024).with_rpc();
    let options = options.args(["--tcp-queue-depth", "64", "--tcp-in-capsule", "8192"]);
    let options = options.args(["--tcp-io-unit", "16384", "--tcp-buffers", "1000"]);
    let target = Target::start_with(options).await;
    let mut rpc = JsonRpc::connect(&socket).await.expect("SPDK listens");
    let transports = rpc.call("nvmf_get_transports", Value::Null).await;
    let transports = transports.expect("SPDK answers");
    let tcp = &transports[0];
    assert_eq!(tcp["trtype"], "TCP", "{transports}");
    for (option, value) in [
        ("max_queue_depth", 64),
        ("in_capsule_data_size", 8192),
        ("io_unit_size", 16384),
        ("num_shared_buffers", 1000),
    ] {
        assert_eq!(tcp[option], value, "{transports}");
    }
    let export = Fixture::tcp(&target, 8).await;
    let verified = export.initiator().verify(target.scratch(), 1).await;
    verified.expect("all I/O is verified");
    target.stop();
}

#[tokio::test]
async fn memory_without_hugepages_has_transparent_hugepages() {
    if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
        eprintln!("skipped: this kernel has no transparent hugepages");
        return;
    }
    let target = Target::start().await;
    let smaps = format!("/proc/{}/smaps", target.pid().as_raw_nonzero());
    let smaps = std::fs::read_to_string(smaps).expect("the target runs");
    // DPDK's memory is where SPDK asks it to reserve it (--base-virtaddr=0x200000000000).
    let mut flags = Vec::new();
    let mut is_of_dpdk = false;
    for line in smaps.lines() {
        match line.split_once(' ') {
            Some((range, _)) if range.contains('-') => {
                is_of_dpdk = range.len() == 25 && range.starts_with("20000");
            }
            Some(("VmFlags:", of)) if is_of_dpdk => flags.push(of),
            _ => {}
        }
    }
    let are_huge = |flags: &&str| flags.split(' ').any(|flag| flag == "hg");
    assert!(flags.iter().any(are_huge), "{flags:?}");
    target.stop();
}

/// An address space that DPDK cannot reserve its memory in, KiB.
const SMALL_SPACE: u32 = 2_000_000;

#[test]
fn why_dpdk_does_not_start_is_in_the_log_with_its_level_and_in_the_error() {
    let dir = tempfile::tempdir().expect("a directory");
    let run = format!("ulimit -v {SMALL_SPACE}; exec \"$@\"");
    let program = env!("CARGO_BIN_EXE_opi-spdk");
    let settings = "--no-huge --mem-mib 4096 --log-format json --grpc-addr 127.0.0.1:0 --http-addr 127.0.0.1:0";
    let output = Command::new("sh")
        .args(["-c", &run, "sh", program, "--state-dir"])
        .arg(dir.path())
        .args(settings.split(' '))
        .output();
    let output = output.expect("a shell");
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).expect("UTF-8");
    let (lines, last): (Vec<&str>, Vec<&str>) =
        error.lines().partition(|line| line.starts_with('{'));
    let lines: Vec<Value> = (lines.iter())
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let of_dpdk: Vec<_> = (lines.iter())
        .filter(|line| line["target"] == "dpdk")
        .map(|line| (line["level"].as_str(), line["message"].as_str()))
        .collect();
    let reason = "EAL: Cannot init memory";
    assert!(of_dpdk.contains(&(Some("ERROR"), Some(reason))), "{error}");
    assert!(last.len() == 1 && last[0].contains(reason), "{error}");
}
